"""What the backend and its workers ask the cluster. Everything here runs in the event loop of the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from dss_client import AsyncClient, Forbidden, OverLimit, Receipt, TooLarge, Unavailable, UnknownOutcome
from dss_client.queue import AsyncMessage, AsyncTopic
from dss_django.tasks.names import GROUP, TaskId, results_topic, tasks_topic
from dss_django.tasks.options import TaskOptions
from dss_django.tasks.records import Call, Known, Record, from_message, from_result, last_said

T = TypeVar("T")
log = logging.getLogger("dss_django.tasks")

#: how long a worker tries to write a result for which there is no room, before it drops it
NO_ROOM_S = 5.0
#: Over HTTP, a query has at most 64 parameters.
TOPICS_PER_QUERY = 50
#: between two attempts to settle a message
PAUSE_S = 0.5


class Store:
    """See the module."""

    def __init__(self, client: AsyncClient, options: TaskOptions) -> None:
        self._client = client
        self._options = options
        self._results = client.topic(results_topic(options.namespace))
        #: topics that this process has prepared, until it learns that one of them has other settings now
        self._prepared: set[str] = set()
        self._of_tasks = {"max_attempts": options.max_attempts, "retention_ms": 0}
        retention_ms = round(options.result_retention * 1000)
        # A result is found by its dedup_id.
        self._of_results = {"retention_ms": retention_ms, "dedup_window_ms": retention_ms}

    def topic(self, segment: str, level: int) -> AsyncTopic:
        """The topic of a queue's tasks."""
        return self._client.topic(tasks_topic(self._options.namespace, segment, level))

    # ------------------------------------------------------------- topics

    async def prepare(self, *topics: AsyncTopic, strict: bool = False) -> None:
        """Give topics their settings and the workers' group, once in a process.

        Args:
            strict: fail if the token does not permit this.

        Raises:
            Forbidden
        """
        await asyncio.gather(*(self._prepare(topic, self._of_tasks, strict, GROUP) for topic in topics))

    async def prepare_results(self) -> None:
        """As `prepare`, for the results."""
        await self._prepare(self._results, self._of_results, strict=True)

    async def ready(self, topics: Sequence[AsyncTopic]) -> list[AsyncTopic]:
        """Those that have a task that is ready, as far as the node knows.

        A topic that was deleted, or has come back with other settings, is prepared again.

        Raises:
            Forbidden
        """
        names = [self._results.name, *(topic.name for topic in topics)]
        parts = [names[start : start + TOPICS_PER_QUERY] for start in range(0, len(names), TOPICS_PER_QUERY)]
        answers = await asyncio.gather(*(self._results.stats_of(part, GROUP, is_local=True) for part in parts))
        lines = {line["topic"]: line for answer in answers for line in answer}
        if not _has(lines.get(self._results.name), self._of_results):
            self._prepared.discard(self._results.name)
            await self.prepare_results()
        wrong = [topic for topic in topics if not _has(lines.get(topic.name), self._of_tasks)]
        if wrong:
            self._prepared.difference_update(topic.name for topic in wrong)
            await self.prepare(*wrong, strict=True)
        return [topic for topic in topics if topic.name in lines and lines[topic.name]["ready"]]

    async def _prepare(self, topic: AsyncTopic, wanted: dict[str, int], strict: bool, group: str = "") -> None:
        if topic.name in self._prepared:
            return
        stats = await topic.stats()
        present: dict[str, Any] = stats.get("settings") or {}
        try:
            if not _has(stats, wanted):
                # A task that is dead stays where `find` looks for it; the topic stays on its engine if nothing is said about that.
                for name in ("dead_letter_topic", "engine", "acks"):
                    present.pop(name, None)
                await self._client.call("queue.topic", topic=topic.name, **{**present, **wanted})
            if group and not any(one["group"] == group for one in stats["groups"]):
                await self._client.call("queue.group", topic=topic.name, group=group, start="first")
        except Forbidden as error:
            if strict:
                raise
            log.warning("the settings of %s are left to the workers: %s", topic.name, error)
        self._prepared.add(topic.name)

    # -------------------------------------------------------------- tasks

    async def enqueue(self, segment: str, level: int, call: Call, delay: float) -> TaskId:
        topic = self.topic(segment, level)
        await self.prepare(topic)
        receipt = await topic.publish(msgspec.to_builtins(call), delay=delay)
        if receipt.created:
            # It was deleted, and is back with the default settings.
            self._prepared.discard(topic.name)
            await self.prepare(topic)
        return TaskId(segment, level, receipt.msg_id, call.secret)

    async def find(self, id: TaskId) -> Known | None:
        """What is known of a task; None: there is none, or its result is no longer kept.

        A task that is not among the messages any more has its result already, because both change in one step.
        """
        topic = self.topic(id.segment, id.level)
        known = await self._of_message(id, await topic.peek(1, GROUP, msg_id=id.msg_id))
        if known is not None:
            return known
        record = await self._record(str(id))
        if record is not None:
            return from_result(str(id), record)
        stats = await topic.stats()
        if any(one["group"] == GROUP for one in stats["groups"]):
            return None
        # No worker has ever asked for tasks of this topic.
        return await self._of_message(id, await topic.peek(1, msg_id=id.msg_id))

    async def _of_message(self, id: TaskId, lines: list[dict[str, Any]]) -> Known | None:
        if not lines:
            return None
        line = lines[0]
        call = decoded_call(line["value"])
        if call is None or call.secret != id.secret:
            return None
        said_ms = last_said(line)
        record = await self._record(f"{id}#{said_ms}") if said_ms else None
        return from_message(str(id), call, {"state": "ready", **line}, record)

    async def _record(self, dedup_id: str) -> Record | None:
        lines = await self._results.peek(1, dedup_id=dedup_id)
        return msgspec.convert(lines[0]["value"], Record) if lines else None

    # ------------------------------------------------------------ results

    async def succeed(self, message: AsyncMessage, known: Known) -> bool:
        """Acknowledge a task and store its result, in one step. False: its message is gone, for example purged.

        Raises:
            StaleReceipt: another worker has the task.
            TooLarge: the cluster does not take values of this size.
        """
        result = {
            "topic": self._results.name,
            "value": msgspec.to_builtins(known.record(with_call=True)),
            "dedup_id": known.id,
        }

        async def ack() -> list[Receipt]:
            return await message.ack(publish=[result])

        try:
            return bool(await _patiently(message, ack))
        except OverLimit as error:
            # To run the task again would not make room.
            log.error("the result of task %s is dropped: %s", known.id, error)
            await _patiently(message, message.ack)
            return True

    async def fail(self, message: AsyncMessage, known: Known, delay: float | None) -> None:
        """Store the errors of a task, and let it be run again after a delay; None: it has failed.

        Raises:
            StaleReceipt: another worker has the task.
        """
        dedup_id = f"{known.id}#{known.attempted_ms}"

        async def keep(record: Record) -> None:
            await _patiently(message, lambda: self._results.publish(msgspec.to_builtins(record), dedup_id=dedup_id))

        record = known.record(with_call=False)
        try:
            try:
                await keep(record)
            except TooLarge:
                last = record.errors[-1]
                await keep(
                    msgspec.structs.replace(record, errors=[msgspec.structs.replace(last, traceback=last.traceback[-500:])])
                )
        except (OverLimit, TooLarge) as error:
            log.error("the error of task %s is dropped: %s", known.id, error)
        await _patiently(message, lambda: message.nack(delay, dead=delay is None))


def _has(stats: dict[str, Any] | None, wanted: dict[str, int]) -> bool:
    """Whether a topic exists and has these settings."""
    present = (stats or {}).get("settings")
    if not present or present.get("dead_letter_topic"):
        return False
    return all(present.get(name) == value for name, value in wanted.items())


_stores: WeakKeyDictionary[AsyncClient, dict[TaskOptions, Store]] = WeakKeyDictionary()


def store_for(client: AsyncClient, options: TaskOptions) -> Store:
    """One for all threads: each of them has a backend of its own."""
    return _stores.setdefault(client, {}).setdefault(options, Store(client, options))


async def _patiently(message: AsyncMessage, call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call while the message is this worker's: its task has had its effects, and should not be run again."""
    full = 0.0
    while True:
        try:
            return await call()
        except OverLimit:
            full += PAUSE_S
            if full > NO_ROOM_S:
                raise
        except (Unavailable, UnknownOutcome) as error:
            if not message.remaining:
                raise
            log.warning("%s: %s", message, error)
        await asyncio.sleep(PAUSE_S)


def decoded_call(value: Any) -> Call | None:
    """None: the message is not a task."""
    try:
        return msgspec.convert(value, Call)
    except msgspec.ValidationError:
        return None
