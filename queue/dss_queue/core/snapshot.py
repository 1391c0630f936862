"""The broker's state as bytes. What can be derived is not in it: heaps, lane and chains are built anew from the messages.

Two brokers that applied the same entries give the same bytes, whether or not one of them was restored on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify
from typing import TYPE_CHECKING

import msgspec

from dss_queue.core.commands import TopicSettings
from dss_queue.core.group import READY, Counters, Group, KeyState
from dss_queue.core.records import Dead, Delivery, Ending, Handout, Message, Rate, Returned, Waiter
from dss_queue.core.registry import Registry
from dss_queue.core.topic import Topic
from dss_queue.core.window import Chain
from dss_raft.replication.machine import Origin

if TYPE_CHECKING:
    from dss_queue.core.broker import Broker

FORMAT = 2
#: Messages in one piece, encoded by itself: decoding a million at once would hold up the loop; a piece takes about a millisecond.
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


class _Handout(msgspec.Struct, array_like=True):
    origin: Origin
    attempt_id: str
    topic: str
    group: str
    deliveries: list[_Delivery]


class _Returned(msgspec.Struct, array_like=True):
    number: int
    attempts: int
    history: tuple[Ending, ...]
    serial: int
    last_serial: int
    due_ms: int


class _Waiter(msgspec.Struct, array_like=True):
    origin: Origin
    serial: int
    visibility_ms: int
    messages_max: int
    attempt_id: str
    due_ms: int


class _Group(msgspec.Struct, array_like=True):
    name: str
    #: number of the first message of the lane that the group has not met; -1: none
    fresh: int
    #: positions count from the start of each chain
    keys: dict[str, KeyState]
    private: list[Message]
    returned: list[_Returned]
    dead: list[Dead]
    waiters: list[_Waiter]
    pending: int
    counters: Counters


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


class _State(msgspec.Struct, array_like=True):
    format: int
    at_ms: int
    serial: int
    topics: list[_Topic]
    handouts: list[_Handout]


_decoder = msgspec.msgpack.Decoder(_State)
_piece_decoder = msgspec.msgpack.Decoder(list[Message])
_encoder = msgspec.msgpack.Encoder()


def encode_state(broker: Broker) -> bytes:
    """The state of `broker`."""
    return _encoder.encode(
        _State(
            FORMAT,
            broker.at_ms,
            broker.registry.serial,
            [_topic_state(topic) for topic in broker.topics.values()],
            [_handout_state(handout) for handout in broker.registry.handouts.values()],
        )
    )


def decode_state(broker: Broker, data: bytes | memoryview) -> Iterator[None]:
    """Fill an empty broker, in slices.

    Raises:
        ValueError: the bytes are of another format.
    """
    state = _decoder.decode(data)
    if state.format != FORMAT:
        raise ValueError(f"queue snapshot of format {state.format}; this program reads {FORMAT}")
    broker.at_ms = state.at_ms
    registry = broker.registry
    for topic_state in state.topics:
        restoring = _Restoring(topic_state, registry)
        yield from restoring.run()
        broker.topics[topic_state.name] = restoring.topic
    for handout_state in state.handouts:
        _restore_handout(broker.topics[handout_state.topic].groups[handout_state.group], handout_state, registry)
        yield
    for topic in broker.topics.values():
        for group in topic.groups.values():
            _fill_ready(group)
            yield
    registry.serial = state.serial


# ----------------------------------------------------------------- encoding


def _topic_state(topic: Topic) -> _Topic:
    return _Topic(
        topic.name,
        topic.serial,
        topic.settings,
        _pieces(list(topic.messages.values())),
        list(topic.released),
        topic.dedup,
        topic.published,
        topic.expired,
        topic.publish_rate,
        [timer.due_ms for timer in topic.timers],
        [_group_state(topic, group) for group in topic.groups.values()],
    )


def _pieces(messages: list[Message]) -> list[memoryview]:
    return [memoryview(_encoder.encode(messages[start : start + PIECE])) for start in range(0, len(messages), PIECE)]


def _group_state(topic: Topic, group: Group) -> _Group:
    cursor = group.cursor
    while (fresh := topic.lane.get(cursor)) is not None and fresh not in topic.messages:
        cursor += 1
    keys = {}
    for key, state in group.keys.items():
        chain = topic.chains.get(key)
        keys[key] = KeyState(0 if chain is None else state.position - chain.start, state.state, state.extra)
    return _Group(
        group.name,
        -1 if fresh is None else fresh,
        keys,
        list(group.private.values()),
        [_Returned(r.message.number, r.attempts, r.history, r.serial, r.last_serial, r.due_ms) for r in group.returned.values()],
        list(group.dead.values()),
        [_Waiter(w.origin, w.serial, w.visibility_ms, w.messages_max, w.attempt_id, w.due_ms) for w in group.waiters if w.live],
        group.pending,
        group.counters,
    )


def _handout_state(handout: Handout) -> _Handout:
    group = handout.group
    deliveries = []
    for number in handout.numbers:
        d = group.in_flight.get(number)
        if d is not None and d.handout is handout:
            deliveries.append(_Delivery(number, d.serial, d.attempt, d.delivered_ms, d.visibility_ms, d.due_ms, d.history))
    return _Handout(handout.origin, handout.attempt_id, group.topic.name, group.name, deliveries)


# ---------------------------------------------------------------- restoring


class _Restoring:
    """Builds one topic."""

    def __init__(self, state: _Topic, registry: Registry) -> None:
        self.registry = registry
        self.topic = Topic(state.name, registry, state.serial)
        self._state = state

    def run(self) -> Iterator[None]:
        topic, state = self.topic, self._state
        topic.settings = state.settings
        topic.published, topic.expired, topic.publish_rate = state.published, state.expired, state.publish_rate
        topic.released = dict.fromkeys(state.released)
        topic.restore_dedup(state.dedup)
        yield
        lane_from = _earliest(state.groups)
        for piece in state.messages:
            self._restore_messages(_piece_decoder.decode(piece), lane_from)
            yield
        heapify(topic.hidden_heap)
        for group_state in state.groups:
            topic.groups[group_state.name] = self._group(group_state)
            yield
        for timer, due_ms in zip(topic.timers, state.timers_ms, strict=True):
            if due_ms:
                self.registry.timers.arm(timer, due_ms)

    def _restore_messages(self, messages: list[Message], lane_from: int) -> None:
        topic = self.topic
        size = 0
        for message in messages:
            number, key = message.number, message.key
            topic.messages[number] = message
            size += message.size
            if key:
                chain = topic.chains.get(key)
                if chain is None:
                    chain = topic.chains[key] = Chain(key)
                message.key = chain.key
                chain.append(number)
            elif not message.ready_ms:
                if number >= lane_from:
                    topic.lane.append(number)
            elif number not in topic.released:
                topic.hidden_heap.append((message.ready_ms, number))
        topic.add_bytes(size)

    def _group(self, state: _Group) -> Group:
        topic, registry = self.topic, self.registry
        group = Group(topic, state.name, registry, 0)
        topic.place_cursor(group, state.fresh)
        group.keys = state.keys
        group.private = {message.number: message for message in state.private}
        group.dead = {dead.number: dead for dead in state.dead}
        group.pending, group.counters = state.pending, state.counters
        for r in state.returned:
            message = group.find(r.number)
            assert message is not None
            returned = Returned(message, group, r.attempts, r.history, r.serial, r.last_serial)
            group.returned[r.number] = returned
            if r.due_ms:
                group.waiting += 1
                registry.timers.arm(returned, r.due_ms)
        for w in state.waiters:
            waiter = Waiter(w.origin, group, w.serial, w.visibility_ms, w.messages_max, w.attempt_id)
            registry.add_waiter(waiter, w.due_ms)
        topic.add_bytes(sum(m.size for m in state.private) + sum(d.size for d in state.dead))
        return group


def _earliest(groups: list[_Group]) -> int:
    """The lane begins with the message that the slowest group comes to next; everything before it was met by all."""
    if not groups:
        return 0
    return min((group.fresh for group in groups if group.fresh >= 0), default=NEVER)


def _restore_handout(group: Group, state: _Handout, registry: Registry) -> None:
    numbers = [d.number for d in state.deliveries]
    handout = Handout(origin=state.origin, attempt_id=state.attempt_id, group=group, numbers=numbers, live=len(numbers))
    registry.handouts[state.origin] = handout
    if state.attempt_id:
        group.replays[state.attempt_id] = handout
    for d in state.deliveries:
        message = group.find(d.number)
        assert message is not None
        delivery = Delivery(message, d.serial, d.attempt, d.delivered_ms, d.visibility_ms, handout, d.history)
        group.in_flight[d.number] = delivery
        registry.timers.arm(delivery, d.due_ms)


def _fill_ready(group: Group) -> None:
    topic = group.topic
    ready = [r.message.number for r in group.returned.values() if not r.due_ms and not r.message.key]
    for key, chain in topic.chains.items():
        if key not in group.keys:
            head = chain.get(chain.start)
            assert head is not None
            ready.append(head)
    for key, state in group.keys.items():
        if state.state == READY:
            head = group.head(key, state)
            assert head is not None
            ready.append(head)
    heapify(ready)
    group.ready = ready
