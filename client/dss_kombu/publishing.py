"""Publications that their caller does not wait for: transient messages, such as events and the answers of `inspect`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import Any

from dss_client.aio import AsyncClient
from dss_client.errors import DssError

log = logging.getLogger("dss_kombu")

#: Transient messages that wait to be published. When there are more, the publishing thread waits.
PENDING_MAX = 1000
#: in one call
BATCH_MAX = 100
BATCH_BYTES_MAX = 1024 * 1024


class Publisher:
    """Publishes in order, as many messages of a topic in a call as there are. A message that no node takes is lost, and logged."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
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
                    await self._client.topic(topic).publish_many(values)
                except DssError as error:
                    log.warning("%d transient messages for %s are lost: %s", len(values), topic, error)
                finally:
                    self.room.release(len(values))
        finally:
            self._task = None
