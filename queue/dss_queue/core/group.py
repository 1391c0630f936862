"""A consumer group of a topic: which consumer has which message, and what happens when a delivery ends.

The backlog (backlog.py) decides which message is next. A group delivers messages, and keeps each delivery until it ends, the dead
letters, and the consumes that wait.

A message of a run that comes back takes those behind it along, so that they are delivered after it: their attempts do not count, unless
their own time is over, too. A message that becomes a dead letter leaves them with their consumer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from dss_api.result import Result
from dss_queue.core.account import ENDING_BYTES, attempt_bytes, waiter_bytes
from dss_queue.core.backlog import Backlog, Returned
from dss_queue.core.commands import BYTES_PER_CONSUME_MAX
from dss_queue.core.engines import on_engine
from dss_queue.core.records import GONE, HISTORY_MAX, Dead, DeadLettered, DeadMove, Ending, Message, Rate, message_id, receipt_of
from dss_queue.core.registry import Registry
from dss_queue.core.topic_messages import TopicMessages
from dss_raft.replication.deadlines import NO_TIMER
from dss_raft.replication.machine import Origin, Resolved

BACKOFF_MS_MAX = 3_600_000
#: Waiters that were answered, and deliveries of a handout that have ended, stay in their lists up to this number.
ENDED_MAX = 64
#: Pushed deliveries of a message that do not count because they were not received. Further ones count, so that a message that
#: crashes its consumers becomes a dead letter in the end.
UNCOUNTED_MAX = 20


#: How the delivery of a message ends when an earlier one of its run comes back.
BEHIND = "behind"
#: Cluster version from which the time of a message's first delivery is kept.
FIRST_DELIVERED_SINCE = 5


class Handout(msgspec.Struct, kw_only=True):
    """What one consume call got. It exists until the last of its deliveries has ended."""

    origin: Origin
    attempt_id: str
    group: Group
    numbers: list[int]
    live: int


class Delivery(msgspec.Struct):
    """A message in flight. `due_ms`: it comes back unless it is acked by then."""

    message: Message
    #: the delivery number in the receipt: unique in the broker
    serial: int
    attempt: int
    delivered_ms: int
    visibility_ms: int
    handout: Handout
    #: of earlier deliveries
    history: tuple[Ending, ...]
    due_ms: int = 0
    timer: int = NO_TIMER
    #: earlier deliveries that were not received and did not count
    uncounted: int = 0
    #: False: nothing has been heard from the client since the message was pushed to it
    received: bool = True
    #: when the first delivery of the message that counts began
    first_ms: int = 0


class Waiter(msgspec.Struct):
    """A consume that waits. `due_ms`: answered empty then."""

    origin: Origin
    group: Group
    serial: int
    visibility_ms: int
    messages_max: int
    attempt_id: str
    per_key_max: int = 1
    #: False once answered or cancelled; it leaves the queue of waiters when it is the first one
    live: bool = True
    due_ms: int = 0
    timer: int = NO_TIMER


class Callers:
    """The consume calls of all groups that can still be cancelled."""

    def __init__(self) -> None:
        #: consumes that wait
        self.waiters: dict[Origin, Waiter] = {}
        #: consumes that were answered with messages which are still in flight
        self.handouts: dict[Origin, Handout] = {}


class Counters(msgspec.Struct, array_like=True):
    """Totals of a group since it was created."""

    delivered: int = 0
    redelivered: int = 0
    acked: int = 0
    #: dead letters ever, by reason
    dead: dict[str, int] = {}
    deliver_rate: Rate = msgspec.field(default_factory=Rate)
    ack_rate: Rate = msgspec.field(default_factory=Rate)


class Group:
    """See the module. `Topic.add_group` makes one."""

    def __init__(self, messages: TopicMessages, name: str, registry: Registry, callers: Callers, cursor: int) -> None:
        self.messages = messages
        self.name = name
        self.backlog = Backlog(messages, name, registry, cursor)
        self.in_flight: dict[int, Delivery] = {}
        self.dead: dict[int, Dead] = {}
        #: first come, first served; the first one is live
        self.waiters: deque[Waiter] = deque()
        #: those of them that are live
        self.waiting = 0
        #: waiting consumes by their attempt_id
        self.waiting_attempts: dict[str, Waiter] = {}
        #: answered consumes by their attempt_id, while their messages are in flight
        self.replays: dict[str, Handout] = {}
        self.counters = Counters()
        #: created by a call of its own, not by a consume
        self.declared = False
        self._registry = registry
        self._callers = callers
        self._account = registry.account

    # ------------------------------------------------------------------ waiters

    def add_waiter(self, waiter: Waiter, due_ms: int) -> None:
        """A consume waits until `due_ms`, behind those that wait already."""
        self._callers.waiters[waiter.origin] = waiter
        self._account.add_waiter(waiter_bytes(waiter.attempt_id))
        self._registry.arm(waiter, due_ms)
        self.waiters.append(waiter)
        self.waiting += 1
        if waiter.attempt_id:
            self.waiting_attempts[waiter.attempt_id] = waiter

    def forget_waiter(self, waiter: Waiter) -> None:
        """It is answered, or its caller has gone."""
        waiter.live = False
        self._registry.disarm(waiter)
        del self._callers.waiters[waiter.origin]
        self._account.add_waiter(-waiter_bytes(waiter.attempt_id))
        if waiter.attempt_id:
            del self.waiting_attempts[waiter.attempt_id]
        waiters = self.waiters
        self.waiting -= 1
        while waiters and not waiters[0].live:
            waiters.popleft()
        if len(waiters) > 2 * self.waiting + ENDED_MAX:
            live = [waiter for waiter in waiters if waiter.live]
            waiters.clear()
            waiters.extend(live)

    def answer(self, waiter: Waiter, result: Result) -> None:
        """Answer a consume that waited."""
        self.forget_waiter(waiter)
        self._registry.events.append(Resolved(waiter.origin, result))

    def serve(self, at_ms: int) -> None:
        """Give ready messages to the consumes that wait. If the engine `redis` has what comes next, they are told so."""
        waiters = self.waiters
        while waiters:
            waiter = waiters[0]
            asked = waiter.messages_max, waiter.visibility_ms, at_ms, waiter.per_key_max
            answers = self.hand_out(waiter.origin, waiter.attempt_id, *asked)
            if not answers:
                break
            self.answer(waiter, Result({"messages": answers}))
        if waiters and self.goes_on_with_engine:
            for waiter in [waiter for waiter in waiters if waiter.live]:
                self.answer(waiter, on_engine(self.messages.topic))

    @property
    def goes_on_with_engine(self) -> bool:
        """Whether its next messages are on the engine `redis`: it has finished what is in the log."""
        return not self.backlog.pending and self.messages.settings.engine == "redis"

    def empty_reason(self) -> str:
        """Why there is nothing to deliver now."""
        in_flight, delayed = len(self.in_flight), self.backlog.delayed
        if in_flight and self.backlog.pending > in_flight + delayed:
            return "key_blocked"
        if delayed:
            return "delayed"
        return "all_in_flight" if in_flight else "no_messages"

    # -------------------------------------------------------------- handing out

    def hand_out(
        self, origin: Origin, attempt_id: str, messages_max: int, visibility_ms: int, at_ms: int, per_key_max: int = 1
    ) -> list[dict[str, Any]]:
        """Deliver up to `messages_max` messages to the caller of `origin`; the answer's list, empty when nothing is ready."""
        backlog = self.backlog
        message = backlog.take()
        if message is None:
            return []
        handout = Handout(origin=origin, attempt_id=attempt_id, group=self, numbers=[], live=0)
        deliveries: list[Delivery] = []
        due_ms = at_ms + visibility_ms
        first_ms = at_ms if self._account.limits.cluster_version >= FIRST_DELIVERED_SINCE else 0
        size = 0
        run = self._run_of(message, per_key_max, at_ms)
        while message is not None:
            deliveries.append(self._deliver(message, handout, at_ms, visibility_ms, due_ms, first_ms))
            if len(deliveries) == messages_max:
                break
            size += message.size
            if size > BYTES_PER_CONSUME_MAX:
                break
            if per_key_max == 1:
                message = backlog.take()
                continue
            following = next(run, None)
            if following is None:
                following = backlog.take()
                if following is not None:
                    run = self._run_of(following, per_key_max, at_ms)
            message = following
        self._registry.deadlines.add_all(deliveries, due_ms)
        handout.live = len(deliveries)
        self._callers.handouts[origin] = handout
        if attempt_id:
            self.replays[attempt_id] = handout
            self._account.add_attempt(attempt_bytes(attempt_id))
        self.counters.delivered += len(deliveries)
        self.counters.deliver_rate.add(at_ms, len(deliveries))
        return [_answer(delivery) for delivery in deliveries]

    def _run_of(self, head: Message, per_key_max: int, at_ms: int) -> Iterator[Message]:
        """The messages that may be delivered together with `head`, which was just taken."""
        return self.backlog.take_after(head, per_key_max - 1, at_ms) if head.key and per_key_max > 1 else iter(())

    def hand_out_again(self, handout: Handout, origin: Origin, visibility_ms: int, at_ms: int) -> list[dict[str, Any]]:
        """The answer to a repeat of an attempt: its messages that are still in flight, with the same receipts and full visibility."""
        handouts = self._callers.handouts
        del handouts[handout.origin]
        handout.origin = origin
        handouts[origin] = handout
        answers = []
        for number in handout.numbers:
            if self._is_of(handout, number):
                delivery = self.in_flight[number]
                self.extend(delivery, visibility_ms, at_ms)
                answers.append(_answer(delivery))
        return answers

    def _deliver(
        self, message: Message, handout: Handout, at_ms: int, visibility_ms: int, due_ms: int, first_ms: int
    ) -> Delivery:
        registry, number, met = self._registry, message.number, self.backlog.returned
        returned = met.pop(number, None) if met else None
        registry.serial = serial = registry.serial + 1
        delivery = Delivery(message, serial, 1, at_ms, visibility_ms, handout, (), due_ms)
        delivery.first_ms = first_ms
        if returned is not None:
            delivery.attempt = returned.attempts + 1
            delivery.history, delivery.uncounted = returned.history, returned.uncounted
            delivery.first_ms = returned.first_ms or delivery.first_ms
            if delivery.attempt > 1:
                self.counters.redelivered += 1
        self.in_flight[number] = delivery
        handout.numbers.append(number)
        return delivery

    # -------------------------------------------------------- ends of a delivery

    def acked(self, held: Delivery | Returned, at_ms: int) -> None:
        """The consumer is done with a message: in time, or late, when it had come back and no other consumer got it yet."""
        message = held.message
        if isinstance(held, Delivery):
            self._close(held)
        else:
            self.backlog.forget_returned(held)
        if held.history:
            self._account.add_endings(-len(held.history))
        self.backlog.finish(message, at_ms)
        self.counters.acked += 1
        self.counters.ack_rate.add(at_ms)

    def acked_all(self, held: Iterable[Delivery | Returned], at_ms: int) -> None:
        """`acked` for each of them, with one update of each count."""
        deliveries: list[Delivery] = []
        messages: list[Message] = []
        in_flight, has_plain = self.in_flight, self.backlog.has_plain
        for one in held:
            message = one.message
            if not has_plain or message.key or one.history or not isinstance(one, Delivery):
                self.acked(one, at_ms)
                continue
            del in_flight[message.number]
            one.due_ms, one.message = 0, GONE
            deliveries.append(one)
            messages.append(message)
        if not messages:
            return
        self._registry.deadlines.discard_all(deliveries)
        for delivery in deliveries:
            self._one_less(delivery.handout)
        self.backlog.finish_plain(messages)
        self.counters.acked += len(messages)
        self.counters.ack_rate.add(at_ms, len(messages))

    def failed(self, delivery: Delivery, reason: str, at_ms: int, delay_ms: int | None = None) -> bool:
        """The attempt counts: back to the queue after `delay_ms` (None: the topic's backoff), or to the dead letters.

        A message is also dead when `reason` is "rejected". Returns whether it is dead.
        """
        behind = self._behind(delivery)
        is_dead = self._fail(delivery, reason, at_ms, delay_ms)
        if not is_dead:
            self._return_run(behind, BEHIND, at_ms)
        return is_dead

    def gave_back(self, delivery: Delivery, reason: str, at_ms: int, delay_ms: int = 0) -> None:
        """Back to the queue as if it had not been delivered: the attempt does not count."""
        behind = self._behind(delivery)
        self._give_back(delivery, reason, at_ms, delay_ms)
        self._return_run(behind, reason, at_ms)

    def _behind(self, delivery: Delivery) -> list[Delivery]:
        """The deliveries behind this one in its run."""
        key = delivery.message.key
        if not key or not self.backlog.keys[key].more:
            return []
        numbers = delivery.handout.numbers
        later = numbers[numbers.index(delivery.message.number) + 1 :]
        run = [self.in_flight[number] for number in later if self._is_of(delivery.handout, number)]
        return [one for one in run if one.message.key == key]

    def _return_run(self, behind: list[Delivery], reason: str, at_ms: int) -> None:
        for one in behind:
            if one.due_ms <= at_ms and one.received:
                self._fail(one, "timeout", at_ms, None)
            else:
                self._give_back(one, reason, at_ms, 0)

    def _fail(self, delivery: Delivery, reason: str, at_ms: int, delay_ms: int | None) -> bool:
        message, settings = delivery.message, self.messages.settings
        self._close(delivery)
        history = self._history_with(delivery, reason, at_ms)
        if reason == "rejected" or 0 < settings.max_attempts <= delivery.attempt:
            why = "rejected" if reason == "rejected" else "max_attempts"
            self._bury(message, delivery.attempt, history, why, at_ms)
            return True
        if delay_ms is None:
            delay_ms = min(settings.backoff_ms << min(delivery.attempt - 1, 32), BACKOFF_MS_MAX)
        self._take_back(message, delivery, delivery.attempt, history, at_ms, delay_ms)
        return False

    def _give_back(self, delivery: Delivery, reason: str, at_ms: int, delay_ms: int) -> None:
        message = delivery.message
        self._close(delivery)
        history = self._history_with(delivery, reason, at_ms)
        self._take_back(message, delivery, delivery.attempt - 1, history, at_ms, delay_ms)

    def not_received(self, delivery: Delivery, reason: str, at_ms: int) -> None:
        """A pushed message did not reach its consumer, or its consumer left. The attempt counts only after `UNCOUNTED_MAX` of these."""
        if delivery.uncounted < UNCOUNTED_MAX:
            delivery.uncounted += 1
            self.gave_back(delivery, reason, at_ms)
        else:
            self.failed(delivery, reason, at_ms)

    def _take_back(
        self, message: Message, delivery: Delivery, attempts: int, history: tuple[Ending, ...], at_ms: int, delay_ms: int
    ) -> None:
        first_ms = delivery.first_ms if attempts else 0
        self.backlog.take_back(message, attempts, history, delivery.serial, at_ms, delay_ms, delivery.uncounted, first_ms)

    def extend(self, delivery: Delivery, visibility_ms: int, at_ms: int) -> None:
        """Hidden for `visibility_ms` from now."""
        delivery.visibility_ms = visibility_ms
        self._registry.arm(delivery, at_ms + visibility_ms)

    def _close(self, delivery: Delivery) -> None:
        handout, message = delivery.handout, delivery.message
        del self.in_flight[message.number]
        delivery.due_ms, delivery.message = 0, GONE
        self._registry.deadlines.discard(delivery)
        if message.key:
            self.backlog.free_key(message.key)
        self._one_less(handout)

    def _one_less(self, handout: Handout) -> None:
        """A delivery of the handout has ended."""
        handout.live -= 1
        if not handout.live:
            del self._callers.handouts[handout.origin]
            if handout.attempt_id:
                self._account.add_attempt(-attempt_bytes(handout.attempt_id))
                if self.replays.get(handout.attempt_id) is handout:
                    del self.replays[handout.attempt_id]
        elif len(handout.numbers) > 2 * handout.live + ENDED_MAX:
            handout.numbers = [number for number in handout.numbers if self._is_of(handout, number)]

    def _is_of(self, handout: Handout, number: int) -> bool:
        delivery = self.in_flight.get(number)
        return delivery is not None and delivery.handout is handout

    # ------------------------------------------- dead letters, retention, purge

    def _bury(self, message: Message, attempts: int, history: tuple[Ending, ...], reason: str, at_ms: int) -> None:
        self._registry.events.append(DeadLettered(self.messages.topic, self.name, reason))
        self.counters.dead[reason] = self.counters.dead.get(reason, 0) + 1
        target = self.messages.settings.dead_letter_topic
        move = DeadMove(message, self.messages.topic, self.name, target, attempts, reason)
        if target and self._registry.move_dead(move, at_ms):
            self._account.add_endings(-len(history))
            self.backlog.finish(message, at_ms)
            return
        dead = Dead(
            message.number,
            message.key,
            message.partition,
            message.value,
            message.headers,
            message.published_ms,
            at_ms,
            attempts,
            reason,
            history,
        )
        self.dead[message.number] = dead
        self._account.add_dead(1)
        self.messages.add_copy(dead)
        self.backlog.finish(message, at_ms)

    def redrive(self, number: int, at_ms: int) -> None:
        """A dead letter goes back to the queue."""
        dead = self.dead.pop(number)
        self._account.add_dead(-1)
        message = Message(number, dead.key, dead.partition, dead.value, dead.headers, dead.published_ms, 0)
        # The copy that was a dead letter is a private message now.
        self.backlog.redriven(message, dead.history, at_ms)

    def forget_dead(self) -> int:
        """Delete the dead letters. Returns their number."""
        count = len(self.dead)
        for dead in self.dead.values():
            self.messages.drop_copy(dead)
            self._account.add_endings(-len(dead.history))
        self._account.add_dead(-count)
        self.dead = {}
        return count

    def forget_one_dead(self, number: int) -> bool:
        """Delete a dead letter. False: there is none with this number."""
        dead = self.dead.pop(number, None)
        if dead is None:
            return False
        self.messages.drop_copy(dead)
        self._account.add_endings(-len(dead.history))
        self._account.add_dead(-1)
        return True

    def is_finished_with(self, message: Message) -> bool:
        """For a message without a key, or at the head of its key's chain."""
        number, backlog = message.number, self.backlog
        if number in self.in_flight or number in backlog.returned:
            return number in backlog.private
        return backlog.is_past(message)

    def outlived(self, message: Message, at_ms: int) -> None:
        """The topic drops a message for its age: it is dead for this group, or private while it is in flight."""
        if message.number in self.in_flight:
            self.backlog.make_private(message, self._place_in_run(message))
            return
        returned = self.backlog.returned.get(message.number)
        attempts, history = (returned.attempts, returned.history) if returned is not None else (0, ())
        if returned is not None:
            self.backlog.forget_returned(returned)
        if self.messages.drops_expired:
            self._account.add_endings(-len(history))
            self.backlog.finish(message, at_ms)
        else:
            self._bury(message, attempts, history, "expired", at_ms)

    def _place_in_run(self, message: Message) -> int:
        """How many private messages of its key must stay before this one, which is in flight: up to the last one in flight."""
        extra = self.backlog.keys[message.key].extra if message.key else []
        return next((i + 1 for i in reversed(range(len(extra))) if extra[i] in self.in_flight), 0)

    def close(self) -> None:
        """The group is deleted: its waiters are refused, and everything else goes."""
        for waiter in [waiter for waiter in self.waiters if waiter.live]:
            self.answer(waiter, was_deleted())
        self.reset(0)
        self.forget_dead()

    def reset(self, cursor: int) -> None:
        """Everything but dead letters and waiters is gone."""
        for delivery in list(self.in_flight.values()):
            self._close(delivery)
            self._account.add_endings(-len(delivery.history))
        self.backlog.reset(cursor)

    def _history_with(self, delivery: Delivery, reason: str, at_ms: int) -> tuple[Ending, ...]:
        """The history of a message with its latest delivery. It does not grow when it is long, or the queue is full."""
        history = delivery.history
        ending = Ending(delivery.attempt, delivery.delivered_ms, at_ms, reason, delivery.handout.origin.node)
        if len(history) < HISTORY_MAX and self._account.refusal(ENDING_BYTES) is None:
            self._account.add_endings(1)
            return (*history, ending)
        return (*history[1:], ending) if history else ()


def was_deleted() -> Result:
    """The refusal of a consume whose group is gone."""
    return Result({"detail": "the topic or the group was deleted"}, "not_found")


def _answer(delivery: Delivery) -> dict[str, Any]:
    message = delivery.message
    msg_id = message_id(message.number)
    answer = {
        "msg_id": msg_id,
        "value": message.value,
        "key": message.key,
        "headers": message.headers,
        "partition": message.partition,
        "receipt": receipt_of(msg_id, delivery.serial),
        "attempt": delivery.attempt,
        "first_delivered_ms": delivery.first_ms,
        "delivered_ms": delivery.delivered_ms,
        "visible_until_ms": delivery.due_ms,
        "published_ms": message.published_ms,
    }
    if not delivery.first_ms:
        # Nodes of older releases keep the same answers.
        del answer["first_delivered_ms"]
    return answer
