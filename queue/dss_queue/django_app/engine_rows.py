"""What the lists of the admin show of topics on the engine `redis`. It is read from the servers, so it is bounded in rows and in time;
a list says what it lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from dss_admin.live_rows import Taken, rows_from_loop
from dss_admin.texts import count, moment
from dss_api import running
from dss_api.errors import Refused
from dss_api.running import await_in_loop
from dss_queue.answers import GroupStats, PeekedMessage, TopicStats
from dss_queue.core.broker import Broker
from dss_queue.core.topic import Topic
from dss_queue.django_app.rows import (
    DELAYED,
    IN_FLIGHT,
    READY,
    TakenBacklog,
    TakenTopic,
    beginning_of,
    ending_text,
    message_row_id,
)
from dss_queue.engine_service import EngineService, engine_of

#: Topics that are read for one list.
TOPICS_MAX = 100
#: Messages, or dead letters, of a group.
MESSAGES_MAX = 100
#: Topics that are read at the same time.
AT_ONCE_MAX = 8
#: For one list.
TIMEOUT_S = 3.0
Read = Callable[[EngineService, Topic, int], Awaitable[None]]
STATES = {"ready": READY, "delayed": DELAYED, "in_flight": IN_FLIGHT}


def add_topics(rows: Taken[TakenTopic]) -> Taken[TakenTopic]:
    """Add what is on the engine to the numbers of topics."""
    numbers, rows.note = _numbers()
    for place, row in enumerate(rows):
        if row.topic in numbers:
            topic, groups = numbers[row.topic]
            rows[place] = replace(
                row,
                messages=row.messages + topic.messages,
                bytes=row.bytes + topic.bytes,
                consumers=row.consumers + sum(group.waiters for group in groups),
                dead=row.dead + topic.dead,
                oldest_age_ms=max(row.oldest_age_ms, topic.oldest_age_ms),
                published=row.published + topic.published,
            )
    return rows


def add_backlogs(rows: Taken[TakenBacklog], only: str = "") -> Taken[TakenBacklog]:
    """Add what is on the engine to the numbers of groups, of all topics or of one."""
    numbers, rows.note = _numbers(only)
    lines = {(name, group.group): (topic, group) for name, (topic, groups) in numbers.items() for group in groups}
    for place, row in enumerate(rows):
        if (row.topic, row.group) in lines:
            topic, group = lines[row.topic, row.group]
            rows[place] = replace(
                row,
                ready=row.ready + group.ready,
                delayed=row.delayed + group.delayed,
                in_flight=row.in_flight + group.in_flight,
                dead=row.dead + group.dead,
                waiting=row.waiting + group.waiters,
                oldest_age_ms=max(row.oldest_age_ms, group.oldest_age_ms),
                acked_per_s=row.acked_per_s + group.ack_per_second,
                bytes=row.bytes + topic.bytes,
            )
    return rows


def _numbers(only: str = "") -> tuple[dict[str, tuple[TopicStats, list[GroupStats]]], str]:
    """The numbers of topics on the engine, by name; and what is missing, for people."""
    topics: dict[str, tuple[TopicStats, list[GroupStats]]] = {}

    async def read(service: EngineService, topic: Topic, now_ms: int) -> None:
        topics[topic.name] = await service.views().topic_stats(service.name_of(topic), now_ms)

    return topics, _read_each(read, only)


def add_messages(rows: Taken[Any], *, dead: bool) -> Taken[Any]:
    """Add the unfinished messages of all groups on the engine, or their dead letters."""
    made = _dead if dead else _unfinished
    found: list[Any] = []

    async def read(service: EngineService, topic: Topic, now_ms: int) -> None:
        for group in list(topic.groups):
            lines = await service.views().peek(service.name_of(topic), group, dead=dead, limit=MESSAGES_MAX)
            found.extend(made(topic.name, group, line, now_ms) for line in lines)

    rows.note = _read_each(read)
    if found and not rows.note:
        rows.note = f"Of each group on the engine redis, the first {MESSAGES_MAX} are shown and searched."
    rows.extend(found)
    return rows


def _read_each(read: Read, only: str = "") -> str:
    """Read each topic on the engine. Returns what is missing."""
    found = rows_from_loop(lambda: _on_engine(only))
    return await_in_loop(_read(read, found)) if found else ""


def _on_engine(only: str) -> list[Topic]:
    topics = cast(Broker, running.node().machine("queue")).topics
    return [topic for topic in topics.values() if topic.engine is not None and (not only or topic.name == only)]


async def _read(read: Read, found: list[Topic]) -> str:
    node = running.node()
    service = engine_of(node)
    topics = iter(found[:TOPICS_MAX])
    left = len(found)
    trouble = ""

    async def work() -> None:
        nonlocal left, trouble
        try:
            for topic in topics:
                # Its stay on the engine may have ended meanwhile.
                if topic.engine is not None:
                    await read(service, topic, node.now_ms())
                left -= 1
        except Refused as refusal:
            trouble = refusal.detail or refusal.code

    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(work() for _ in range(AT_ONCE_MAX)))
    except TimeoutError:
        trouble = "it answers slowly"
    if not left:
        return ""
    topics_left = count(left, "topic has", "topics have")
    return f"Without what {topics_left} on the engine redis: {trouble or f'the first {TOPICS_MAX} are read'}."


class MessageOnEngine(msgspec.Struct, frozen=True, gc=False):
    """An unfinished message of a group; see `TakenMessage`."""

    topic: str
    group: str
    msg_id: str
    key: str
    partition: int
    state: str
    attempt: int
    node: str
    due_in_ms: int | None
    age_ms: int
    headers: str
    value: str
    #: the engine tells it only to the consumer
    receipt: str = ""

    @property
    def row_id(self) -> str:
        return message_row_id(self.msg_id, self.group, self.topic)


class DeadOnEngine(msgspec.Struct, frozen=True, gc=False):
    """A dead letter; see `TakenDead`."""

    topic: str
    group: str
    msg_id: str
    key: str
    reason: str
    attempts: int
    dead_at: datetime
    published_at: datetime
    history: str
    headers: str
    value: str

    @property
    def row_id(self) -> str:
        return message_row_id(self.msg_id, self.group, self.topic)


def _unfinished(topic: str, group: str, message: PeekedMessage, now_ms: int) -> MessageOnEngine:
    until_ms = message.visible_until_ms
    return MessageOnEngine(
        topic,
        group,
        message.msg_id,
        message.key,
        message.partition,
        STATES.get(str(message.state), READY),
        message.attempt or 0,
        message.node or "",
        max(0, until_ms - now_ms) if until_ms else message.delayed_for_ms or None,
        max(0, now_ms - message.published_ms),
        beginning_of(bytes(message.headers or b"")),
        beginning_of(bytes(message.value)),
    )


def _dead(topic: str, group: str, message: PeekedMessage, now_ms: int) -> DeadOnEngine:
    return DeadOnEngine(
        topic,
        group,
        message.msg_id,
        message.key,
        message.reason or "",
        message.attempt or 0,
        moment(message.dead_ms or 0),
        moment(message.published_ms),
        "\n".join(ending_text(ending) for ending in message.history or ()),
        beginning_of(bytes(message.headers or b"")),
        beginning_of(bytes(message.value)),
    )
