"""What the queues of kombu hold: their sizes, and emptying and deleting them. All of it runs in the background thread."""

from __future__ import annotations

import asyncio
from typing import Any

from dss_client.aio import AsyncClient
from dss_client.clock import now
from dss_kombu.directory import GROUP, Directory, Source

#: A queue that is consumed for this long after its channel was closed has another consumer.
UNUSED_S = 1.0


class Contents:
    """The contents of the queues of one channel."""

    def __init__(self, client: AsyncClient, directory: Directory) -> None:
        self._client = client
        self._directory = directory

    async def count(self, queue: str) -> int:
        """How many messages a consumer could get now."""
        total = 0
        for source in await self._directory.sources(queue):
            stats, group = await self._stats(source)
            if group is not None:
                total += group["ready"]
            elif source.group == GROUP:
                total += stats.get("messages", 0)
        return total

    async def _stats(self, source: Source) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Of the topic, and of the group if there is one."""
        stats = await self._client.call("queue.stats", topic=source.topic)
        return stats, next((group for group in stats.get("groups", ()) if group["group"] == source.group), None)

    async def purge(self, queue: str) -> int:
        """Delete all messages. Returns how many there were."""
        purged = await self.count(queue)
        for source in await self._directory.sources(queue):
            if source.group == GROUP:
                await self._client.call("queue.purge", topic=source.topic)
            else:
                await self._client.call("queue.group_delete", topic=source.topic, group=source.group)
                await self._client.call("queue.group", topic=source.topic, group=source.group, start="now")
        return purged

    async def delete_unused(self, queue: str) -> None:
        """Delete a queue, unless another channel consumes it."""
        until = now() + UNUSED_S
        while await self._is_consumed(queue):
            # A cancelled wait of this channel may be counted for a moment.
            if now() >= until:
                return
            await asyncio.sleep(UNUSED_S / 20)
        await self._directory.delete_queue(queue)

    async def _is_consumed(self, queue: str) -> bool:
        for source in await self._directory.sources(queue):
            _, group = await self._stats(source)
            if group is not None and (group["waiters"] or group["in_flight"]):
                return True
        return False
