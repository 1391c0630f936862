"""Operations on whole topics and groups, and upkeep. Each is a number of small steps, and may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dss_queue.core.commands import TopicSettings
from dss_queue.redis_engine import messages
from dss_queue.redis_engine.engine import RedisEngine, for_deliveries
from dss_queue.redis_engine.errors import NoGroup
from dss_queue.redis_engine.keys import group_keys, partition_keys
from dss_queue.redis_engine.servers import Servers

#: Steps of one sweep of a group in a partition; the next sweep goes on.
SWEEP_STEPS_MAX = 10


T = TypeVar("T")


class Administration:
    """See the module."""

    def __init__(self, servers: Servers, engine: RedisEngine) -> None:
        self._servers = servers
        self._engine = engine

    async def redrive(self, topic: str, group: str, msg_id: str | None = None) -> int:
        """Move dead letters of a group back to its queue. Returns their number."""
        if msg_id is None:
            return await self._until_done("redrive", topic, group, "")
        place = messages.place_of(msg_id)
        if place is None or place.partition >= self._engine.partitions:
            return 0
        try:
            step = await self._group_step("redrive", topic, place.partition, group, place.number)
        except NoGroup:
            return 0
        return messages.counted_answer.decode(step)[1]

    async def purge(self, topic: str) -> int:
        """Delete the messages of a topic, but no dead letters. Returns the number of retained ones."""

        async def step(partition: int) -> int:
            data = await self._servers.call("purge", partition_keys(topic, partition))
            return messages.count_answer.decode(data)[1]

        return sum(await self._of_all(step))

    async def purge_dead(self, topic: str, group: str) -> int:
        """Delete the dead letters of a group. Returns their number."""
        return await self._until_done("purge_dead", topic, group)

    async def _until_done(self, step: str, topic: str, group: str, *args: object) -> int:
        async def of_partition(partition: int) -> int:
            total, more = 0, True
            while more:
                try:
                    data = await self._group_step(step, topic, partition, group, *args)
                except NoGroup:
                    return total
                _, count, more = messages.counted_answer.decode(data)
                total += count
            return total

        return sum(await self._of_all(of_partition))

    async def groups(self, topic: str) -> list[str]:
        """The groups of a topic, by name."""
        names: set[str] = set()
        for partition in range(self._engine.partitions):
            data = await self._servers.call("stats", partition_keys(topic, partition))
            names.update(messages.stats_answer.decode(data)[6])
        return sorted(names)

    async def sweep(self, topic: str, settings: TopicSettings) -> bool:
        """What no call waits for: timeouts, delays and retention of all groups. Returns whether there is more to do now."""
        groups = await self.groups(topic)

        async def of_partition(partition: int) -> bool:
            is_left = False
            for group in groups:
                for _ in range(SWEEP_STEPS_MAX):
                    try:
                        data = await self._group_step("sweep", topic, partition, group, for_deliveries(settings))
                    except NoGroup:
                        await self._engine.put_group(topic, group)
                        break
                    if not messages.sweep_answer.decode(data)[2]:
                        break
                else:
                    is_left = True
            return is_left

        return any(await self._of_all(of_partition))

    async def delete_topic(self, topic: str) -> int:
        """Delete a topic with its groups. Returns the number of retained messages."""
        groups = await self.groups(topic)
        purged = await self.purge(topic)
        for partition in range(self._engine.partitions):
            keys = list(partition_keys(topic, partition))
            for group in groups:
                keys += group_keys(topic, partition, group)
            await self._servers.read(keys[0], b"UNLINK", *(key.encode() for key in keys))
        return purged

    async def _group_step(self, step: str, topic: str, partition: int, group: str, *args: object) -> bytes:
        keys = partition_keys(topic, partition) + group_keys(topic, partition, group)
        return await self._servers.call(step, keys, *args)

    async def _of_all(self, step: Callable[[int], Awaitable[T]]) -> list[T]:
        return list(await asyncio.gather(*map(step, range(self._engine.partitions))))
