"""The broker's state as bytes. Heaps and chains are not in it: they are rebuilt from the messages.

Brokers that applied the same entries give the same bytes, whether or not they were restored from a snapshot in between. So do brokers of
older releases: what came with a later cluster version is written only where it is used (the classes with a version in their names).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from heapq import heapify
from typing import Any

import msgspec

from dss_queue.core.account import attempt_bytes
from dss_queue.core.backlog import READY, Backlog, KeyState, Returned
from dss_queue.core.commands import TopicFields, TopicSettings
from dss_queue.core.engines import EngineUse
from dss_queue.core.group import Callers, Counters, Delivery, Group, Handout, Waiter
from dss_queue.core.records import Dead, Ending, Message, Rate
from dss_queue.core.registry import Registry
from dss_queue.core.sns_topics import SnsTopic
from dss_queue.core.sqs_queues import Queue
from dss_queue.core.topic import Topic
from dss_queue.core.window import Chain
from dss_raft.formats import Format, array_version
from dss_raft.replication.machine import Origin

FORMAT = 2
_FORMAT = Format("the state of `queue` in this snapshot", FORMAT, oldest=FORMAT)
#: Messages per piece. Pieces are decoded one by one, about a millisecond each, so that the event loop is not blocked.
PIECE = 1000
#: greater than any message number
NEVER = 1 << 128


class _Delivery(msgspec.Struct, array_like=True):
    number: int
    serial: int
    attempt: int
    delivered_ms: int
    visibility_ms: int
    due_ms: int
    history: tuple[Ending, ...]
    # Missing in older snapshots.
    uncounted: int = 0
    received: bool = True


class _DeliveryV5(_Delivery):
    first_ms: int = 0


class _Handout(msgspec.Struct, array_like=True):
    origin: Origin
    attempt_id: str
    topic: str
    group: str
    deliveries: list[_DeliveryV5]


class _Returned(msgspec.Struct, array_like=True):
    number: int
    attempts: int
    history: tuple[Ending, ...]
    serial: int
    last_serial: int
    due_ms: int
    # Missing in older snapshots.
    uncounted: int = 0


class _ReturnedV5(_Returned):
    first_ms: int = 0


class _Waiter(msgspec.Struct, array_like=True):
    origin: Origin
    serial: int
    visibility_ms: int
    messages_max: int
    attempt_id: str
    due_ms: int


class _WaiterV5(_Waiter):
    per_key_max: int = 1


class _KeyState(msgspec.Struct, array_like=True):
    """A `KeyState` without a run."""

    position: int
    state: int
    extra: list[int]


class _Group(msgspec.Struct, array_like=True):
    name: str
    #: number of the first message without a key that the group has not met; -1: none
    fresh: int
    #: positions count from the start of each chain
    keys: dict[str, KeyState]
    private: list[Message]
    returned: list[_ReturnedV5]
    dead: list[Dead]
    waiters: list[_WaiterV5]
    pending: int
    counters: Counters
    # Missing in older snapshots.
    declared: bool = False


class _Topic(msgspec.Struct, array_like=True):
    name: str
    serial: int
    settings: TopicSettings
    #: pieces, each an encoded list of `Message`
    messages: list[memoryview]
    released: list[int]
    dedup: dict[str, tuple[int, int, int]]
    published: int
    expired: int
    publish_rate: Rate
    timers_ms: list[int]
    groups: list[_Group]
    # Missing in older snapshots.
    kept: list[int] = []
    used_ms: int | None = None


class _TopicV5(_Topic):
    queue: Queue | None = None
    engine: EngineUse | None = None


class _State(msgspec.Struct, array_like=True):
    format: int
    at_ms: int
    serial: int
    topics: list[_TopicV5]
    handouts: list[_Handout]
    # Missing in older snapshots.
    create_topics: bool = True


class _StateV5(_State):
    sns: list[SnsTopic] = []
    abandoned: dict[int, str] = {}


_decoder = msgspec.msgpack.Decoder(_StateV5)
_piece_decoder = msgspec.msgpack.Decoder(list[Message])
_encoder = msgspec.msgpack.Encoder()


def encode_state(at_ms: int, registry: Registry, callers: Callers, topics: dict[str, Topic]) -> bytes:
    """The state of a broker."""
    short = (
        FORMAT,
        at_ms,
        registry.serial,
        [_topic_state(topic) for topic in topics.values()],
        [_handout_state(handout) for handout in callers.handouts.values()],
        registry.create_topics,
    )
    is_short = not registry.sns and not registry.abandoned
    return _encoder.encode(_State(*short) if is_short else _StateV5(*short, list(registry.sns.values()), registry.abandoned))


def decode_state(
    data: bytes | memoryview, registry: Registry, callers: Callers, topics: dict[str, Topic]
) -> Generator[None, None, int]:
    """Fill an empty registry, callers and topics, in slices. Returns the `at_ms` of the state.

    Raises:
        WrongFormat: the bytes are of another format.
    """
    _FORMAT.require(array_version(data) or 0)
    state = _decoder.decode(data)
    for topic_state in state.topics:
        restoring = _Restoring(topic_state, registry, callers)
        yield from restoring.run()
        restoring.topic.used_ms = state.at_ms if topic_state.used_ms is None else topic_state.used_ms
        topics[topic_state.name] = restoring.topic
    for handout_state in state.handouts:
        _restore_handout(topics[handout_state.topic].groups[handout_state.group], handout_state, registry, callers)
        yield
    for topic in topics.values():
        for group in topic.groups.values():
            _fill_ready(group.backlog)
            yield
    for sns_topic in state.sns:
        registry.add_sns(sns_topic)
    for incarnation, topic_name in state.abandoned.items():
        registry.abandon(incarnation, topic_name)
    registry.serial, registry.create_topics = state.serial, state.create_topics
    return state.at_ms


# ----------------------------------------------------------------- encoding


def _topic_state(topic: Topic) -> Any:
    short = (
        topic.name,
        topic.serial,
        _settings_state(topic.messages.settings),
        _pieces(list(topic.messages.by_number.values())),
        list(topic.messages.released),
        topic.dedup,
        topic.published,
        topic.expired,
        topic.publish_rate,
        [timer.due_ms for timer in topic.timers],
        [_group_state(group) for group in topic.groups.values()],
        topic.messages.kept_numbers(),
        topic.used_ms,
    )
    is_short = topic.queue is None and topic.engine is None
    return _Topic(*short) if is_short else _TopicV5(*short, topic.queue, topic.engine)


def _pieces(messages: list[Message]) -> list[memoryview]:
    return [memoryview(_encoder.encode(messages[start : start + PIECE])) for start in range(0, len(messages), PIECE)]


def _group_state(group: Group) -> _Group:
    messages, backlog = group.messages, group.backlog
    cursor = backlog.cursor
    while (fresh := messages.unkeyed.get(cursor)) is not None and fresh not in messages.by_number:
        cursor += 1
    keys: dict[str, Any] = {}
    for key, state in backlog.keys.items():
        chain = messages.chains.get(key)
        position = 0 if chain is None else state.position - chain.start
        short = position, state.state, state.extra
        keys[key] = KeyState(*short, state.more, state.early) if state.more or state.early else _KeyState(*short)
    return _Group(
        group.name,
        -1 if fresh is None else fresh,
        keys,
        list(backlog.private.values()),
        [_returned_state(returned) for returned in backlog.returned.values()],
        list(group.dead.values()),
        [_waiter_state(waiter) for waiter in group.waiters if waiter.live],
        backlog.pending,
        group.counters,
        group.declared,
    )


def _returned_state(returned: Returned) -> Any:
    r = returned
    short = r.message.number, r.attempts, r.history, r.serial, r.last_serial, r.due_ms, r.uncounted
    return _ReturnedV5(*short, r.first_ms) if r.first_ms else _Returned(*short)


def _waiter_state(waiter: Waiter) -> Any:
    w = waiter
    short = w.origin, w.serial, w.visibility_ms, w.messages_max, w.attempt_id, w.due_ms
    return _WaiterV5(*short, w.per_key_max) if w.per_key_max != 1 else _Waiter(*short)


def _delivery_state(delivery: Delivery) -> Any:
    d = delivery
    short = d.message.number, d.serial, d.attempt, d.delivered_ms, d.visibility_ms, d.due_ms, d.history, d.uncounted, d.received
    return _DeliveryV5(*short, d.first_ms) if d.first_ms else _Delivery(*short)


def _settings_state(settings: TopicSettings) -> Any:
    if settings.dead_letter_topic or settings.engine != "raft":
        return settings
    return TopicFields(**{name: getattr(settings, name) for name in TopicFields.__struct_fields__})


def _handout_state(handout: Handout) -> _Handout:
    group = handout.group
    deliveries = []
    for number in handout.numbers:
        d = group.in_flight.get(number)
        if d is not None and d.handout is handout:
            deliveries.append(_delivery_state(d))
    return _Handout(handout.origin, handout.attempt_id, group.messages.topic, group.name, deliveries)


# ---------------------------------------------------------------- restoring


class _Restoring:
    """Builds one topic."""

    def __init__(self, state: _TopicV5, registry: Registry, callers: Callers) -> None:
        self.topic = Topic(state.name, registry, callers, state.serial)
        self._registry = registry
        self._callers = callers
        self._state = state
        #: number -> a message of which only groups have copies
        self._contents: dict[int, Message | Dead] = {}

    def run(self) -> Generator[None, None, None]:
        topic, state = self.topic, self._state
        messages = topic.messages
        messages.settings = state.settings
        if state.queue is not None:
            topic.set_queue(state.queue)
        topic.set_engine(state.engine)
        messages.released = dict.fromkeys(state.released)
        topic.published, topic.expired, topic.publish_rate = state.published, state.expired, state.publish_rate
        topic.restore_dedup(state.dedup)
        yield
        unkeyed_from = 0 if state.settings.keep_ms else _earliest(state.groups)
        for piece in state.messages:
            self._restore_messages(_piece_decoder.decode(piece), unkeyed_from)
            yield
        heapify(messages.hidden_heap)
        for group_state in state.groups:
            topic.attach(self._group(group_state))
            yield
        messages.kept = state.kept
        for timer, due_ms in zip(topic.timers, state.timers_ms, strict=True):
            if due_ms:
                self._registry.arm(timer, due_ms)

    def _restore_messages(self, restored: list[Message], unkeyed_from: int) -> None:
        messages = self.topic.messages
        for message in restored:
            number, key = message.number, message.key
            messages.retain(message)
            if key:
                chain = messages.chains.get(key)
                if chain is None:
                    chain = messages.chains[key] = Chain(key)
                    self._registry.account.add_keys(1, 0)
                message.key = chain.key
                chain.append(number)
            elif not message.ready_ms:
                if number >= unkeyed_from:
                    messages.unkeyed.append(number)
            elif number not in messages.released:
                messages.hidden_heap.append((message.ready_ms, number))

    def _group(self, state: _Group) -> Group:
        messages, registry = self.topic.messages, self._registry
        group = Group(messages, state.name, registry, self._callers, messages.position_of(state.fresh))
        backlog = group.backlog
        backlog.keys, backlog.pending = state.keys, state.pending
        backlog.private = {message.number: message for message in state.private}
        group.dead = {dead.number: dead for dead in state.dead}
        self._share_content(state.private)
        self._share_content(state.dead)
        registry.account.add_dead(len(state.dead))
        registry.account.add_endings(sum(len(dead.history) for dead in state.dead))
        group.counters, group.declared = state.counters, state.declared
        for r in state.returned:
            message = backlog.find(r.number)
            assert message is not None
            returned = Returned(message, backlog, r.attempts, r.history, r.serial, r.last_serial, uncounted=r.uncounted)
            returned.first_ms = r.first_ms
            backlog.returned[r.number] = returned
            registry.account.add_endings(len(r.history))
            if r.due_ms:
                backlog.waiting += 1
                registry.arm(returned, r.due_ms)
        for w in state.waiters:
            waiter = Waiter(w.origin, group, w.serial, w.visibility_ms, w.messages_max, w.attempt_id, w.per_key_max)
            group.add_waiter(waiter, w.due_ms)
        return group

    def _share_content(self, copies: Sequence[Message | Dead]) -> None:
        """The copies that groups have of a message have its value only once in memory."""
        messages = self.topic.messages
        for one in copies:
            first = messages.by_number.get(one.number) or self._contents.setdefault(one.number, one)
            one.key, one.value, one.headers = first.key, first.value, first.headers
            messages.add_copy(one)


def _earliest(groups: list[_Group]) -> int:
    """Number of the first unkeyed message that not every group has met."""
    if not groups:
        return 0
    return min((group.fresh for group in groups if group.fresh >= 0), default=NEVER)


def _restore_handout(group: Group, state: _Handout, registry: Registry, callers: Callers) -> None:
    numbers = [d.number for d in state.deliveries]
    handout = Handout(origin=state.origin, attempt_id=state.attempt_id, group=group, numbers=numbers, live=len(numbers))
    callers.handouts[state.origin] = handout
    if state.attempt_id:
        group.replays[state.attempt_id] = handout
        registry.account.add_attempt(attempt_bytes(state.attempt_id))
    for d in state.deliveries:
        message = group.backlog.find(d.number)
        assert message is not None
        delivery = Delivery(
            message, d.serial, d.attempt, d.delivered_ms, d.visibility_ms, handout, d.history, uncounted=d.uncounted
        )
        delivery.received, delivery.first_ms = d.received, d.first_ms
        registry.account.add_endings(len(d.history))
        group.in_flight[d.number] = delivery
        registry.arm(delivery, d.due_ms)


def _fill_ready(backlog: Backlog) -> None:
    messages = backlog.messages
    ready = [r.message.number for r in backlog.returned.values() if not r.due_ms and not r.message.key]
    for key, chain in messages.chains.items():
        if key not in backlog.keys:
            head = chain.get(chain.start)
            assert head is not None
            ready.append(head)
    for key, state in backlog.keys.items():
        if state.state == READY:
            head = backlog.head(key, state)
            assert head is not None
            ready.append(head)
    heapify(ready)
    backlog.ready = ready
