"""What the lists of the admin show of the broker. The generators run in the node's event loop, a slice in each turn."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from dss_admin.texts import moment
from dss_api.durations import duration_text
from dss_queue.answers import Ended
from dss_queue.core import inspection
from dss_queue.core.broker import Broker
from dss_queue.core.commands import TopicSettings
from dss_queue.core.group import Group
from dss_queue.core.records import Dead, Ending, Message, message_id, receipt_of
from dss_queue.core.topic import Topic
from dss_queue.core.topic_messages import TopicMessages

VALUE_SHOWN_MAX = 2_000
READY, DELAYED, IN_FLIGHT = "ready", "delayed", "in flight"


class TakenTopic(msgspec.Struct, frozen=True, gc=False):
    """A topic."""

    topic: str
    messages: int
    bytes: int
    groups: int
    consumers: int
    dead: int
    oldest_age_ms: int
    published: int
    published_per_s: float
    stored_settings: TopicSettings
    #: where it moves from; None: it does not move
    moving_from: str | None

    @property
    def engine(self) -> str:
        engine = self.stored_settings.engine
        return engine if self.moving_from is None else f"{self.moving_from} → {engine}"

    @property
    def settings(self) -> str:
        return settings_text(self.stored_settings)


def settings_text(settings: TopicSettings) -> str:
    """The settings in words; the lengths of time as people read them. The engine has a column of its own."""
    shown = []
    for name in TopicSettings.__struct_fields__:
        if name == "engine" or (name == "acks" and settings.engine == "raft"):
            continue
        value = getattr(settings, name)
        text = value if isinstance(value, str) else duration_text(value) if name.endswith("_ms") else f"{value:,}"
        if text:
            shown.append(f"{name.removesuffix('_ms')} {text}")
    return ", ".join(shown)


def take_topics(broker: Broker, now_ms: int) -> Iterator[TakenTopic | None]:
    """Every topic."""
    for topic in list(broker.topics.values()):
        dead = consumers = 0
        for group in list(topic.groups.values()):
            yield None
            dead += len(group.dead)
            consumers += group.waiting
        messages = topic.messages
        yield TakenTopic(
            topic.name,
            len(messages.by_number),
            messages.bytes,
            len(topic.groups),
            consumers,
            dead,
            inspection.oldest_age_ms(topic, now_ms),
            topic.published,
            topic.publish_rate.per_second(now_ms),
            messages.settings,
            topic.moving_from,
        )


class TakenBacklog(msgspec.Struct, frozen=True, gc=False):
    """A consumer group, or a topic without one."""

    topic: str
    group: str
    ready: int
    delayed: int
    in_flight: int
    dead: int
    waiting: int
    oldest_age_ms: int
    published_per_s: float
    acked_per_s: float
    bytes: int

    @property
    def row_id(self) -> str:
        return f"{len(self.topic)}.{self.topic}.{self.group}"


def take_backlogs(broker: Broker, now_ms: int, only: str = "") -> Iterator[TakenBacklog]:
    """Every group, and every topic without one, or those of one topic."""
    topics = list(broker.topics.values()) if not only else [broker.topics[only]] if only in broker.topics else []
    for topic in topics:
        for line in inspection.backlogs_of(topic, now_ms):
            yield TakenBacklog(**line)


class TakenConsumer(msgspec.Struct, frozen=True, gc=False):
    """A consume call, or a pull of a subscription."""

    topic: str
    group: str
    node: str
    number: int
    doing: str
    messages: int
    until_ms: int | None

    @property
    def row_id(self) -> str:
        return f"{self.number}.{self.doing}.{self.node}"


def take_consumers(broker: Broker, now_ms: int) -> Iterator[TakenConsumer | None]:
    """Every consume that waits, and every one whose messages are in flight."""
    for waiter in list(broker.callers.waiters.values()):
        group, origin = waiter.group, waiter.origin
        until_ms = max(0, waiter.due_ms - now_ms)
        yield TakenConsumer(group.messages.topic, group.name, origin.node, origin.seq, "waits", waiter.messages_max, until_ms)
    for handout in list(broker.callers.handouts.values()):
        group, origin = handout.group, handout.origin
        yield TakenConsumer(group.messages.topic, group.name, origin.node, origin.seq, "works", handout.live, None)


def message_row_id(msg_id: str, group: str, topic: str) -> str:
    """The address of a message of a group in the lists."""
    return f"{msg_id}.{len(group)}.{group}.{topic}"


class TakenMessage(msgspec.Struct, frozen=True, gc=False):
    """A message of a group. Its value is never changed, so it is not copied."""

    topic: str
    group: str
    message: Message
    state: str
    attempt: int
    node: str
    due_in_ms: int | None
    age_ms: int
    serial: int

    @property
    def row_id(self) -> str:
        return message_row_id(self.msg_id, self.group, self.topic)

    @property
    def msg_id(self) -> str:
        return message_id(self.message.number)

    @property
    def key(self) -> str:
        return self.message.key

    @property
    def partition(self) -> int:
        return self.message.partition

    @property
    def receipt(self) -> str:
        return receipt_of(self.msg_id, self.serial) if self.serial else ""

    @property
    def headers(self) -> str:
        return beginning_of(self.message.headers)

    @property
    def value(self) -> str:
        return beginning_of(self.message.value)


def take_messages(broker: Broker, now_ms: int) -> Iterator[TakenMessage | None]:
    """Every unfinished message of every group, and every message of a topic without one."""
    for topic in list(broker.topics.values()):
        groups = list(topic.groups.values())
        if not groups:
            yield from _of_topic(topic, now_ms)
        for group in groups:
            yield from _of_group(group, now_ms)


def _of_topic(topic: Topic, now_ms: int) -> Iterator[TakenMessage]:
    for message in list(topic.messages.by_number.values()):
        delay_ms = max(0, message.ready_ms - now_ms)
        age_ms = max(0, now_ms - message.published_ms)
        yield TakenMessage(topic.name, "", message, DELAYED if delay_ms else READY, 0, "", delay_ms or None, age_ms, 0)


def _of_group(group: Group, now_ms: int) -> Iterator[TakenMessage | None]:
    messages, backlog = group.messages, group.backlog
    past = _Past(group)
    for message in [*backlog.private.values(), *messages.by_number.values()]:
        number = message.number
        state, attempt, node, due_ms, serial = READY, 0, "", message.ready_ms, 0
        delivery = group.in_flight.get(number)
        if delivery is not None:
            state, attempt, node = IN_FLIGHT, delivery.attempt, delivery.handout.origin.node
            due_ms, serial = delivery.due_ms, delivery.serial
        elif (returned := backlog.returned.get(number)) is not None:
            attempt, due_ms = returned.attempts, returned.due_ms
        elif number not in backlog.private and (number not in messages.by_number or past.has(message)):
            yield None
            continue
        if state is READY and due_ms > now_ms:
            state = DELAYED
        due_in_ms = None if state is READY else max(0, due_ms - now_ms)
        age_ms = max(0, now_ms - message.published_ms)
        yield TakenMessage(messages.topic, group.name, message, state, attempt, node, due_in_ms, age_ms, serial)


class _Past:
    """Which retained messages a group is finished with, if they are neither in flight nor returned."""

    def __init__(self, group: Group) -> None:
        self._backlog = group.backlog
        self._messages: TopicMessages = group.messages
        #: routing key -> the finished ones
        self._of_key: dict[str, frozenset[int]] = {}

    def has(self, message: Message) -> bool:
        key = message.key
        if not key:
            return self._backlog.is_past(message)
        if key not in self._of_key:
            chain = self._messages.chains.get(key)
            self._of_key[key] = frozenset(self._backlog.past_of(chain)) if chain is not None else frozenset()
        return message.number in self._of_key[key]


class TakenDead(msgspec.Struct, frozen=True, gc=False):
    """A dead letter. Nothing changes it, so it is not copied."""

    topic: str
    group: str
    letter: Dead

    @property
    def row_id(self) -> str:
        return message_row_id(self.msg_id, self.group, self.topic)

    @property
    def msg_id(self) -> str:
        return message_id(self.letter.number)

    @property
    def key(self) -> str:
        return self.letter.key

    @property
    def reason(self) -> str:
        return self.letter.reason

    @property
    def attempts(self) -> int:
        return self.letter.attempts

    @property
    def dead_at(self) -> datetime:
        return moment(self.letter.dead_ms)

    @property
    def published_at(self) -> datetime:
        return moment(self.letter.published_ms)

    @property
    def history(self) -> str:
        return "\n".join(ending_text(ending) for ending in self.letter.history)

    @property
    def headers(self) -> str:
        return beginning_of(self.letter.headers)

    @property
    def value(self) -> str:
        return beginning_of(self.letter.value)


def take_dead_letters(broker: Broker) -> Iterator[TakenDead]:
    """Every dead letter."""
    for topic in list(broker.topics.values()):
        for group in list(topic.groups.values()):
            for dead in list(group.dead.values()):
                yield TakenDead(topic.name, group.name, dead)


def beginning_of(value: bytes) -> str:
    """What a list shows of a value or of headers."""
    return value[:VALUE_SHOWN_MAX].decode(errors="replace") + ("…" if len(value) > VALUE_SHOWN_MAX else "")


def ending_text(ending: Ending | Ended) -> str:
    """How a delivery ended, in words."""
    held = duration_text(max(0, ending.ended_ms - ending.delivered_ms))
    return f"attempt {ending.attempt}: {ending.reason} after {held}, by {ending.node}, {moment(ending.ended_ms):%F %T}"
