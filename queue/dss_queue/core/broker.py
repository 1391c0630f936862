"""The queue's state machine: topics, and the commands that move messages through them.

Theory of operation. A published message gets a number: the Raft index of its entry and a count inside that entry. The topic retains
it until every group is finished with it (topic_messages.py). In a group, a message is *fresh* until the group's position reaches it
(backlog.py). Then it is *in flight*: one consumer has it, until a deadline. Then it is either *finished* (acked) or *returned* (nack,
timeout, consumer gone) and delivered again. After too many attempts it becomes a *dead letter* of the group; for the topic, the group
is then finished with it (group.py). Messages are removed in two other ways only: by `purge`, and by retention while the topic has no
group.

    fresh ──consume──▶ in flight ──ack──▶ finished
      ▲                   │   ▲
      │ publish       nack│   │consume
                   timeout▼   │
                        returned ──attempts used up, retention──▶ dead ──redrive──▶ returned

A consume that finds nothing waits in the group's queue of waiters, first come first served, until a message is ready or its own
deadline passes. Every step that makes a message ready ends with `Group.serve`.

Each step costs O(log n) in the size of the backlog, with three exceptions: a new group visits every routing key once, and `purge` and
`rearm` visit what they change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dss_api.result import Result
from dss_queue.core.account import LIMIT, QUEUE_BYTES_MAX_DEFAULT, attempt_bytes, waiter_bytes
from dss_queue.core.administration import Administration
from dss_queue.core.backlog import Returned
from dss_queue.core.commands import (
    Ack,
    Consume,
    ConsumeRuns,
    Deliveries,
    Extend,
    GiveBack,
    LockRelease,
    MarkReceived,
    Nack,
    Publish,
    Purge,
    PutTopic,
    Redrive,
    SetTopic,
)
from dss_queue.core.engines import ConsumeAfterEngine, EngineClosed, EngineForgotten, EngineLeft, on_engine
from dss_queue.core.group import Callers, Delivery, Group, Waiter, was_deleted
from dss_queue.core.publishing import Publisher
from dss_queue.core.queue_moves import QueueMoves
from dss_queue.core.records import message_number, receipt_of
from dss_queue.core.registry import Registry
from dss_queue.core.snapshot import FORMAT, decode_state, encode_state
from dss_queue.core.sns_fanout import SnsFanout
from dss_queue.core.sns_topics import CreateSnsTopic, DeleteSnsTopic, PublishToSns, Subscribe, Unsubscribe
from dss_queue.core.sqs_queues import CancelMove, ChangeQueue, CreateQueue, PublishToQueues, PurgeQueue, StartMove
from dss_queue.core.topic import MoveTimer, Topic, TopicTimer
from dss_queue.core.topic_commands import CreateGroup, DeleteDead, DeleteGroup, DeleteTopic, DropIdle, PutGroup, PutQueueSettings
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import StateLimit, StateLimits
from dss_raft.replication.machine import Event, Origin, Restoring, all_at_once
from dss_raft.versions import LATEST

_STALE = "stale_receipt"
#: A new cluster that begins with a copy of the state raises the serial number by this for each index.
SERIALS_PER_INDEX = 2**16


class Locks(Protocol):
    """The part of the lock table that an ack with `release` uses. Both apply the same log, so both change in one step."""

    def holds(self, key: str, client: str, fencing_token: int) -> bool:
        """Whether the client holds the key under this token."""

    def release(self, key: str, client: str, at_ms: int, index: int) -> bool:
        """Release it; False when the client does not hold it."""


class NoLocks:
    """For a broker without a lock table: no client holds anything."""

    def holds(self, key: str, client: str, fencing_token: int) -> bool:
        return False

    def release(self, key: str, client: str, at_ms: int, index: int) -> bool:
        return False


class Broker:
    """See the module. Implements `dss_raft.replication.machine.StateMachine`.

    Args:
        locks: the lock table of the same replica, for acks that release locks.
        limits: those of the replica.
    """

    name = "queue"
    format_version = FORMAT
    commands: tuple[type[Command], ...] = (
        Publish,
        Consume,
        Ack,
        Nack,
        Extend,
        GiveBack,
        MarkReceived,
        PutTopic,
        Redrive,
        Purge,
        DeleteTopic,
        PutGroup,
        CreateGroup,
        DeleteGroup,
        DeleteDead,
        PutQueueSettings,
        DropIdle,
        ConsumeRuns,
        SetTopic,
        CreateQueue,
        ChangeQueue,
        PublishToQueues,
        PurgeQueue,
        StartMove,
        CancelMove,
        CreateSnsTopic,
        DeleteSnsTopic,
        Subscribe,
        Unsubscribe,
        PublishToSns,
        EngineLeft,
        EngineForgotten,
        ConsumeAfterEngine,
        EngineClosed,
    )

    def __init__(self, locks: Locks | None = None, limits: StateLimits | None = None) -> None:
        self._locks = locks or NoLocks()
        if limits is None:
            limits = StateLimits()
            limits.cluster_version = LATEST
        self.limits = limits
        self.limits.declare(StateLimit(LIMIT, QUEUE_BYTES_MAX_DEFAULT, "bytes", lambda: self.registry.account.used))
        self.topics: dict[str, Topic] = {}
        self.registry = Registry(self.limits)
        self.callers = Callers()
        #: the highest stamp seen
        self.at_ms = 0
        self._begin()

    def _begin(self) -> None:
        """The state is new: connect what works on it."""
        self._publisher = Publisher(self.topics, self.registry, self.callers)
        self._administration = Administration(self.topics, self.registry, self._publisher)
        self._queue_moves = QueueMoves(self.topics, self.registry, self._publisher)
        self._appliers: dict[type[Command], Callable[[Any, int, int, Origin], Result | None]] = {
            Publish: self._publish,
            PublishToQueues: self._publish_to_queues,
            Consume: self._consume,
            ConsumeRuns: self._consume,
            ConsumeAfterEngine: self._consume,
            Ack: self._ack,
            Nack: self._nack,
            Extend: self._extend,
            GiveBack: self._give_back,
            MarkReceived: self._mark_received,
            **self._administration.appliers,
            **self._queue_moves.appliers,
            **SnsFanout(self.topics, self.registry, self._publisher).appliers,
        }

    # ------------------------------------------------------- the machine's contract

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """Apply one command. None: a consume that waits."""
        self.at_ms, self.registry.index = at_ms, index
        result = self._appliers[type(command)](command, at_ms, index, origin)
        self._publisher.serve_moved(at_ms)
        return result

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """The consumer has hung up. Its messages go back, and the attempt does not count."""
        waiting = self.callers.waiters.get(waiter)
        if waiting is not None:
            waiting.group.forget_waiter(waiting)
        handout = self.callers.handouts.get(waiter)
        if handout is None:
            return
        group = handout.group
        for number in handout.numbers:
            delivery = group.in_flight.get(number)
            if delivery is not None and delivery.handout is handout:
                group.gave_back(delivery, "gone", at_ms)
        group.serve(at_ms)

    def expire(self, at_ms: int, index: int) -> None:
        """Visibility timeouts, delays and retention, and finally the waiters whose time is up."""
        self.at_ms = at_ms
        due = self.registry.deadlines.pop_due(at_ms)
        if not due:
            return
        changed: dict[int, Group] = {}
        late: list[Waiter] = []
        self.registry.index = index
        self._queue_moves.begin()
        for item in due:
            if not item.due_ms:
                # The handling of an earlier item removed its deadline.
                continue
            self.registry.disarm(item)
            if isinstance(item, Delivery):
                group = item.handout.group
                if item.received:
                    group.failed(item, "timeout", at_ms)
                else:
                    group.not_received(item, "not_received", at_ms)
                changed[id(group)] = group
            elif isinstance(item, Returned):
                item.backlog.wait_is_over(item, at_ms)
                group = self.topics[item.backlog.messages.topic].groups[item.backlog.group]
                changed[id(group)] = group
            elif isinstance(item, Waiter):
                late.append(item)
            elif isinstance(item, TopicTimer):
                item.topic.timer_is_due(item, at_ms)
                changed.update((id(group), group) for group in item.topic.groups.values())
            elif isinstance(item, MoveTimer):
                self._queue_moves.step(item, at_ms, index)
        for group in changed.values():
            group.serve(at_ms)
        self._publisher.serve_moved(at_ms)
        for waiter in late:
            if waiter.live:
                waiter.group.answer(waiter, _nothing(waiter.group))

    def next_deadline_ms(self) -> int | None:
        return self.registry.deadlines.next_ms()

    def rearm(self, at_ms: int, index: int) -> None:
        """Every message in flight gets its full visibility again: consumers could not ack while there was no leader."""
        for topic in self.topics.values():
            for group in topic.groups.values():
                for delivery in group.in_flight.values():
                    self.registry.arm(delivery, at_ms + delivery.visibility_ms)

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """Its connections are gone, and so are the consumes that waited. Messages that it handed out come back after their timeout."""
        for waiter in list(self.callers.waiters.values()):
            if waiter.origin.node == node:
                waiter.group.forget_waiter(waiter)

    def raise_numbers(self, at_ms: int, indexes: int) -> None:
        """See `GivesOutNumbers`: a receipt contains a serial number."""
        self.registry.serial += indexes * SERIALS_PER_INDEX

    def node_removed(self, node: str, at_ms: int, index: int) -> None:
        """See `StateMachine.node_removed`."""
        self.node_restarted(node, at_ms, index)

    def take_events(self) -> list[Event]:
        events, self.registry.events = self.registry.events, []
        return events

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        return self.registry.account.usage()

    def snapshot(self) -> Any:
        """The whole state as one binary. A million messages are encoded and decoded without a Python object for each field."""
        return encode_state(self.at_ms, self.registry, self.callers, self.topics)

    def restore(self, state: Any) -> None:
        all_at_once(self.restoring(state))

    def restoring(self, state: bytes | memoryview) -> Restoring:
        """See `dss_raft.replication.machine.RestoresInSlices`. The previous state stays readable until the new one is installed."""
        registry, callers = Registry(self.limits), Callers()
        topics: dict[str, Topic] = {}
        at_ms = yield from decode_state(state, registry, callers, topics)

        def install() -> None:
            self.at_ms, self.registry, self.callers, self.topics = at_ms, registry, callers, topics
            self._begin()

        return install

    # ------------------------------------------------------------------- publish

    def _publish(self, command: Publish, at_ms: int, index: int, origin: Origin) -> Result:
        refused = self._publisher.over_limits(command.messages, at_ms)
        if refused is not None:
            return refused
        answers = self._publisher.store(command.messages, at_ms, index)
        self._publisher.serve(command.messages, at_ms)
        return Result({"messages": answers})

    def _publish_to_queues(self, command: PublishToQueues, at_ms: int, index: int, origin: Origin) -> Result:
        for new in command.messages:
            topic = self.topics.get(new.topic)
            if topic is None or topic.queue is None:
                return was_deleted()
        return self._publish(command, at_ms, index, origin)

    # ------------------------------------------------------------------- consume

    def _consume(self, command: Consume, at_ms: int, index: int, origin: Origin) -> Result | None:
        topic = self.topics.get(command.topic)
        group = None if topic is None else topic.groups.get(command.group)
        if topic is None or group is None:
            if not command.create:
                return was_deleted()
            waiting_bytes = waiter_bytes(command.attempt_id) if command.timeout_ms else 0
            made = self._administration.create_group(command.topic, command.group, at_ms, growth=waiting_bytes)
            if isinstance(made, Result):
                return made
            group, topic = made, self.topics[command.topic]
        topic.used_ms = at_ms
        attempt_id, visibility_ms = command.attempt_id, command.visibility_ms
        per_key_max = command.max_per_key if isinstance(command, ConsumeRuns) else 1
        if attempt_id:
            waiting = group.waiting_attempts.get(attempt_id)
            if waiting is not None:
                # A client that repeats an attempt no longer reads the answer of the earlier call.
                group.answer(waiting, _nothing(group))
            handout = group.replays.get(attempt_id)
            if handout is not None:
                return Result({"messages": group.hand_out_again(handout, origin, visibility_ms, at_ms)})
            long_id = attempt_bytes(attempt_id)
            if long_id and (refused := self.registry.account.refusal(long_id)) is not None:
                return refused
        if topic.engine is not None and topic.engine.is_leaving:
            finished = command.incarnation if isinstance(command, ConsumeAfterEngine) else None
            if finished != topic.engine.incarnation:
                return on_engine(command.topic)
        answers = group.hand_out(origin, attempt_id, command.max_messages, visibility_ms, at_ms, per_key_max)
        if answers:
            return Result({"messages": answers})
        if group.goes_on_with_engine:
            return on_engine(command.topic)
        if not command.timeout_ms:
            return _nothing(group)
        refused = self.registry.account.refusal(waiter_bytes(attempt_id))
        if refused is not None:
            return refused
        serial = self.registry.next_serial()
        waiter = Waiter(origin, group, serial, visibility_ms, command.max_messages, attempt_id, per_key_max)
        group.add_waiter(waiter, at_ms + command.timeout_ms)
        return None

    # --------------------------------------------------------- ack, nack, extend

    def _ack(self, command: Ack, at_ms: int, index: int, origin: Origin) -> Result:
        group = self._administration.find_group(command.topic, command.group)
        if command.msg_id is not None and not command.publish and not command.release:
            held, is_stale = _held(group, command.msg_id, command.receipt)
            if is_stale:
                return _stale(command.msg_id)
            if held is None or group is None:
                return Result({"acked": False})
            group.acked(held, at_ms)
            if group.waiters:
                group.serve(at_ms)
            return Result({"acked": True})
        return self._ack_many(group, command, at_ms, index)

    def _ack_many(self, group: Group | None, command: Ack, at_ms: int, index: int) -> Result:
        """Several messages, or a transaction: acks, publishes and lock releases take effect together or not at all."""
        receipts: Mapping[str, str | None]
        if command.msg_ids is None:
            receipts = {command.msg_id or "": command.receipt}
        elif command.receipts is None:
            receipts = dict.fromkeys(command.msg_ids)
        else:
            receipts = dict(zip(command.msg_ids, command.receipts, strict=True))
        found = _all_held(group, receipts)
        held_count = sum(held is not None for _, held, _ in found)
        answers: dict[str, Any] = {}
        if command.publish or command.release:
            stale = [msg_id for msg_id, _, is_stale in found if is_stale]
            if not held_count and not stale:
                return Result({"acked": False, "published": [], "released": []})
            if held_count < len(found):
                return _stale(*(stale or [msg_id for msg_id, held, _ in found if held is None]))
            refused = self._not_held(command.release) or self._publisher.over_limits(command.publish, at_ms)
            if refused is not None:
                return refused
            answers["published"] = self._publisher.store(command.publish, at_ms, index)
            answers["released"] = [self._locks.release(one.key, one.client, at_ms, index) for one in command.release]
        if group is not None:
            group.acked_all((held for _, held, _ in found if held is not None), at_ms)
        if command.msg_ids is not None:
            answers["results"] = [
                {"msg_id": msg_id, "acked": False, "code": _STALE} if is_stale else {"msg_id": msg_id, "acked": held is not None}
                for msg_id, held, is_stale in found
            ]
        if group is not None:
            group.serve(at_ms)
        self._publisher.serve(command.publish, at_ms)
        return Result({"acked": held_count == len(found), **answers})

    def _not_held(self, releases: list[LockRelease]) -> Result | None:
        """A refusal when one of these locks is no longer held under its token."""
        lost = [
            one.key
            for one in releases
            if one.fencing_token is not None and not self._locks.holds(one.key, one.client, one.fencing_token)
        ]
        if not lost:
            return None
        return Result(
            {"detail": "these locks are no longer held under their tokens; nothing was done", "keys": lost}, "not_holder"
        )

    def _nack(self, command: Nack, at_ms: int, index: int, origin: Origin) -> Result:
        group = self._administration.find_group(command.topic, command.group)
        held, is_stale = _held(group, command.msg_id, command.receipt)
        if is_stale:
            return _stale(command.msg_id)
        if group is None or not isinstance(held, Delivery):
            return Result({"nacked": False, "dead": False})
        is_dead = False
        if command.silent and not command.dead:
            group.gave_back(held, "silent", at_ms, command.delay_ms or 0)
        else:
            is_dead = group.failed(held, "rejected" if command.dead else "nack", at_ms, command.delay_ms)
        group.serve(at_ms)
        return Result({"nacked": True, "dead": is_dead})

    def _extend(self, command: Extend, at_ms: int, index: int, origin: Origin) -> Result:
        group = self._administration.find_group(command.topic, command.group)
        held, _ = _held(group, command.msg_id, command.receipt)
        if group is None or not isinstance(held, Delivery):
            return _stale(command.msg_id)
        held.received = True
        group.extend(held, command.visibility_ms, at_ms)
        return Result({"msg_id": command.msg_id, "visible_until_ms": held.due_ms})

    def _give_back(self, command: GiveBack, at_ms: int, index: int, origin: Origin) -> Result:
        group, deliveries = self._deliveries(command)
        for delivery in deliveries:
            if delivery.due_ms:
                # Otherwise it went back behind an earlier message of its run.
                delivery.handout.group.not_received(delivery, "gone", at_ms)
        if group is not None:
            group.serve(at_ms)
        return Result({})

    def _mark_received(self, command: MarkReceived, at_ms: int, index: int, origin: Origin) -> Result:
        for delivery in self._deliveries(command)[1]:
            delivery.received = command.received
        return Result({})

    def _deliveries(self, command: Deliveries) -> tuple[Group | None, list[Delivery]]:
        """Those of the command's deliveries that are still in flight."""
        group = self._administration.find_group(command.topic, command.group)
        found = [_held(group, *one)[0] for one in zip(command.msg_ids, command.receipts, strict=True)]
        return group, [held for held in found if isinstance(held, Delivery)]


def _held(group: Group | None, msg_id: str, receipt: str | None) -> tuple[Delivery | Returned | None, bool]:
    """The delivery that `msg_id` names, or the returned message that no other consumer got since; and whether the receipt is stale."""
    if group is None:
        return None, False
    number = message_number(msg_id)
    delivery = group.in_flight.get(number)
    if delivery is not None:
        if receipt is None or receipt == receipt_of(msg_id, delivery.serial):
            return delivery, False
        return None, True
    returned = group.backlog.returned.get(number)
    if returned is not None and returned.last_serial:
        if receipt is None or receipt == receipt_of(msg_id, returned.last_serial):
            return returned, False
        return None, True
    return None, receipt is not None and number in group.dead


def _all_held(group: Group | None, receipts: Mapping[str, str | None]) -> list[tuple[str, Delivery | Returned | None, bool]]:
    """`_held` of each message: (msg_id, delivery, whether the receipt is stale)."""
    found: list[tuple[str, Delivery | Returned | None, bool]] = []
    in_flight = {} if group is None else group.in_flight
    for msg_id, receipt in receipts.items():
        delivery = in_flight.get(message_number(msg_id))
        if delivery is not None and (receipt is None or receipt == receipt_of(msg_id, delivery.serial)):
            found.append((msg_id, delivery, False))
        else:
            found.append((msg_id, *_held(group, msg_id, receipt)))
    return found


def _nothing(group: Group) -> Result:
    return Result({"messages": [], "empty_reason": group.empty_reason()})


def _stale(*msg_ids: str) -> Result:
    return Result({"detail": "the delivery is over: another consumer may have the message", "msg_ids": list(msg_ids)}, _STALE)
