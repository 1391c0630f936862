"""How messages are published: many in a call where several come at the same time. All of it runs in the background thread, except what
says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from typing import Any

from dss_client.aio import AsyncClient
from dss_client.core import Repeat
from dss_client.errors import ClientClosed, DssError, Invalid, TooLarge, UnknownOutcome

log = logging.getLogger("dss_kombu")

#: Transient messages that wait to be published. When there are more, the publishing thread waits.
PENDING_MAX = 1000
#: in one call
BATCH_MAX = 100
BATCH_BYTES_MAX = 1024 * 1024
#: While this many calls are in progress, further messages wait and share the next call.
CALLS_MAX = 2
#: refusals that a single message of a batch can cause; the others concern the topic, the caller or the node
OF_ONE_MESSAGE = (Invalid, TooLarge)


class Publication:
    """A message that a thread waits to be stored.

    Attributes:
        fields: of the message in `queue.publish`.
        size: of its value, in bytes.
        stored: when it is stored, or why it is not.
        is_sent: A call with it is in progress.
    """

    __slots__ = ("fields", "is_sent", "size", "stored", "topic")

    def __init__(self, topic: str, fields: dict[str, Any], size: int) -> None:
        self.topic = topic
        self.fields = fields
        self.size = size
        self.stored: Future[None] = Future()
        self.is_sent = False

    def abandon(self) -> None:
        """The client was closed before the outcome was known."""
        with contextlib.suppress(InvalidStateError):
            if self.is_sent:
                self.stored.set_exception(
                    UnknownOutcome("the message may be stored: this client was closed while it was being published")
                )
            else:
                self.stored.set_exception(ClientClosed("this client is closed"))


class Publisher:
    """Publishes what threads wait for. The messages of several threads share a call; each thread gets the outcome of its own message."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        #: by topic; the first one is next
        self._pending: dict[str, deque[Publication]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._is_planned = False
        #: what threads wait for, even if it never comes to `add`
        self._expected: set[Publication] = set()
        self._is_abandoned = False
        # A signal handler may publish, too.
        self._expecting = threading.RLock()

    def expect(self, publication: Publication) -> None:
        """A thread is going to wait for this. In any thread.

        Raises:
            ClientClosed
        """
        with self._expecting:
            if self._is_abandoned:
                raise ClientClosed("this client is closed")
            self._expected.add(publication)

    def forget(self, publication: Publication) -> None:
        """The thread no longer waits. In any thread."""
        with self._expecting:
            self._expected.discard(publication)

    def abandon(self) -> None:
        """The background thread has ended: nothing that is pending will be published. In any thread."""
        with self._expecting:
            self._is_abandoned = True
            for publication in list(self._expected):
                publication.abandon()

    def add(self, publication: Publication) -> None:
        self._pending.setdefault(publication.topic, deque()).append(publication)
        if not self._is_planned and len(self._calls) < CALLS_MAX:
            # In the next turn, so that it takes along what other threads publish in this one.
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._begin)

    async def flush(self) -> None:
        """Wait until all that was added is published."""
        while self._calls or self._pending:
            await (asyncio.wait(self._calls) if self._calls else asyncio.sleep(0))

    def forked(self) -> None:
        """In the child of a fork: the threads that wait are the parent's."""
        self._pending, self._calls, self._is_planned = {}, set(), False
        self._expected, self._expecting = set(), threading.RLock()

    def _begin(self) -> None:
        self._is_planned = False
        while self._pending and len(self._calls) < CALLS_MAX:
            topic, batch = self._next()
            if batch:
                call = asyncio.ensure_future(self._carry_out(topic, batch))
                self._calls.add(call)
                call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._begin()

    def _next(self) -> tuple[str, list[Publication]]:
        """What the next call publishes. If there is more for this topic, it goes to the end."""
        topic = next(iter(self._pending))
        waiting = self._pending.pop(topic)
        batch: list[Publication] = []
        size = 0
        while waiting and len(batch) < BATCH_MAX and (not batch or size + waiting[0].size <= BATCH_BYTES_MAX):
            one = waiting.popleft()
            if one.stored.set_running_or_notify_cancel():
                batch.append(one)
                size += one.size
        if waiting:
            self._pending[topic] = waiting
        return topic, batch

    async def _carry_out(self, topic: str, batch: list[Publication]) -> None:
        try:
            await self._publish(topic, batch)
        finally:
            for one in batch:
                one.abandon()

    async def _publish(self, topic: str, batch: list[Publication]) -> None:
        fields = batch[0].fields if len(batch) == 1 else {"messages": [one.fields for one in batch]}
        for one in batch:
            one.is_sent = True
        try:
            await self._client._running().call("queue.publish", {"topic": topic, **fields}, Repeat.NUMBERED)
        except Exception as error:
            if len(batch) > 1 and isinstance(error, OF_ONE_MESSAGE) and not error.was_repeated:
                # None is stored. By halves, one after the other: the messages that are not the reason need few calls.
                for one in batch:
                    one.is_sent = False
                middle = len(batch) // 2
                await self._publish(topic, batch[:middle])
                await self._publish(topic, batch[middle:])
                return
            for one in batch:
                with contextlib.suppress(InvalidStateError):
                    one.stored.set_exception(error)
        else:
            for one in batch:
                with contextlib.suppress(InvalidStateError):
                    one.stored.set_result(None)


class TransientPublisher:
    """Publishes what no thread waits for, such as events and the answers of `inspect`: in order, as many messages of a topic in a call as
    there are. A message that no node takes is lost, and logged.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        #: topic, value as JSON, its size
        self._pending: deque[tuple[str, Any, int]] = deque()
        self._task: asyncio.Task[None] | None = None
        self.room = threading.BoundedSemaphore(PENDING_MAX)

    def add(self, topic: str, value: Any, size: int) -> None:
        """Only in the background thread. The caller has taken one of `room`."""
        self._pending.append((topic, value, size))
        if self._task is None:
            self._task = asyncio.ensure_future(self._publish())

    async def flush(self) -> None:
        """Wait until all that was added is published."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def forked(self) -> None:
        """In the child of a fork: the parent publishes what was pending."""
        self._pending.clear()
        self._task = None
        self.room = threading.BoundedSemaphore(PENDING_MAX)

    async def _publish(self) -> None:
        try:
            while self._pending:
                topic, value, size = self._pending.popleft()
                values = [value]
                while self._pending and self._pending[0][0] == topic and len(values) < BATCH_MAX:
                    if size + self._pending[0][2] > BATCH_BYTES_MAX:
                        break
                    size += self._pending[0][2]
                    values.append(self._pending.popleft()[1])
                try:
                    messages = [{"value": value} for value in values]
                    await self._client._running().call("queue.publish", {"topic": topic, "messages": messages}, Repeat.NUMBERED)
                except DssError as error:
                    log.warning("%d transient messages for %s are lost: %s", len(values), topic, error)
                finally:
                    self.room.release(len(values))
        finally:
            self._task = None
