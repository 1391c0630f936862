"""Taking tasks by priority from the topics of several queues.

While any topic has a task that is ready, the worker takes one of the highest level; among queues of the same level, in their order.
Which topics have one is asked in one call, without the log. If none has, a long poll waits at each topic. The first that
gets a task ends the others; what these get nevertheless goes back, and that is no attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from dss_client import Cancelled, DssError
from dss_client.connection import Handle
from dss_client.queue import AsyncMessage, AsyncTopic
from dss_client.tracing import Tracing

log = logging.getLogger("dss_django.tasks")

#: between two looks at whether the last tasks have ended
BATCH_PAUSE_S = 0.1


class TaskTopics:
    """The topics of a worker, in the order in which it takes tasks. To `WorkerLoop`, they are one topic.

    Args:
        ready: says which of them have a message that is ready.
        consumer: the worker's id.
        is_batch: do not wait for tasks.
        max_tasks: take this many.
        is_busy: whether tasks are running.
        on_end: is called when the last task of a batch, or of `max_tasks`, has ended.
    """

    def __init__(
        self,
        name: str,
        topics: Sequence[AsyncTopic],
        ready: Callable[[Sequence[AsyncTopic]], Awaitable[list[AsyncTopic]]],
        consumer: str,
        is_batch: bool,
        max_tasks: int | None,
        is_busy: Callable[[], bool],
        on_end: Callable[[str], None],
    ) -> None:
        self.name = name
        self._topics = topics
        self._ready = ready
        self._consumer = consumer
        self._is_batch = is_batch
        self._left = max_tasks
        self._max_tasks = max_tasks
        self._is_busy = is_busy
        self._on_end = on_end
        self._handles: list[Handle] = []
        self._is_cancelled = False

    @property
    def tracing(self) -> Tracing | None:
        return self._topics[0].tracing

    def cancel(self) -> None:
        """Take no more tasks."""
        self._is_cancelled = True
        for handle in self._handles:
            handle.cancel()

    async def consume(
        self, group: str, max_messages: int, wait: float, visibility: float, handle: Handle | None = None
    ) -> list[AsyncMessage]:
        """As `AsyncTopic.consume`. The messages are of one topic.

        Raises:
            Cancelled: by `cancel`, or there is nothing more to take.
        """
        if self._is_cancelled:
            raise Cancelled()
        if self._left is None:
            return await self._take(group, max_messages, wait, visibility)
        if self._left:
            messages = await self._take(group, min(max_messages, self._left), wait, visibility)
            self._left -= len(messages)
            return messages
        if self._is_busy():
            # A worker that is stopped gives back what it has not started.
            await asyncio.sleep(BATCH_PAUSE_S)
        else:
            self._on_end(f"Run maximum tasks ({self._max_tasks})")
        return []

    async def _take(self, group: str, count: int, wait: float, visibility: float) -> list[AsyncMessage]:
        # Also when all of them are asked: one that an operator has deleted must not come back with other settings.
        ready = await self._ready(self._topics)
        topics = self._topics if self._is_batch else ready
        # A task that is running may enqueue others, and end, after its topic was found empty.
        was_busy = self._is_busy()
        for topic in topics:
            messages = await topic.consume(group, count, 0, visibility, consumer=self._consumer)
            if messages:
                return messages
        if not self._is_batch:
            return await self._wait(group, count, wait, visibility)
        if was_busy:
            await asyncio.sleep(BATCH_PAUSE_S)
        else:
            self._on_end("No more tasks to run")
        return []

    async def _wait(self, group: str, count: int, wait: float, visibility: float) -> list[AsyncMessage]:
        """The first messages that come to any topic."""
        self._handles = [Handle() for _ in self._topics]
        polls = [
            asyncio.ensure_future(topic.consume(group, count, wait, visibility, handle, self._consumer))
            for topic, handle in zip(self._topics, self._handles, strict=True)
        ]
        try:
            if self._is_cancelled:
                raise Cancelled()
            pending = set(polls)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if any(poll.exception() is not None or poll.result() for poll in done):
                    break
        finally:
            for handle in self._handles:
                handle.cancel()
            self._handles = []
            outcomes = await asyncio.gather(*polls, return_exceptions=True)
        # In the order of the topics.
        messages = [message for outcome in outcomes if isinstance(outcome, list) for message in outcome]
        await asyncio.gather(*(_give_back(message) for message in messages[count:]))
        if not messages:
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, Cancelled):
                    raise outcome
            if self._is_cancelled:
                raise Cancelled()
        return messages[:count]


async def _give_back(message: AsyncMessage) -> None:
    try:
        await message.nack(silent=True)
    except DssError as error:
        # It comes back after its visibility timeout.
        log.warning("%s cannot be given back: %s", message, error)
