"""Operations on whole topics and groups, and upkeep. Each is a number of small steps, and may be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dss_queue.core.commands import Acks, TopicSettings
from dss_queue.redis_engine import messages
from dss_queue.redis_engine.endings import for_deliveries
from dss_queue.redis_engine.engine import RedisEngine
from dss_queue.redis_engine.errors import NoGroup
from dss_queue.redis_engine.keys import ONCE, group_keys, partition_keys
from dss_queue.redis_engine.messages import OF_REQUEST
from dss_queue.redis_engine.servers import Servers

#: Steps of one sweep of a group in a partition; the next sweep goes on.
SWEEP_STEPS_MAX = 10
#: Groups that one look for something to do visits.
GROUPS_PER_LOOK = 100
#: Old messages may be in flight, or behind others of their key: they are looked at again after this time.
OLD_AGAIN_MS = 10_000
#: How many of a partition's latest publishes are searched for a `request_id`. The larger number is used if the smaller one finds none.
PUBLISHES_SEARCHED = (100, 10_000)
#: The number of groups of a partition that is not open.
NOT_OPEN = -1


class Swept(NamedTuple):
    """What a sweep found."""

    #: until there is something to do again, unless calls change it; 0: there is more to do now
    next_in_ms: int
    did_something: bool
    #: the topic has more or fewer groups on the engine
    has_other_groups: bool


class Administration:
    """See the module."""

    def __init__(self, servers: Servers, engine: RedisEngine) -> None:
        self._servers = servers
        self._engine = engine

    async def redrive(self, topic: str, group: str, msg_id: str | None = None, *, acks: Acks = "primary") -> int:
        """Move dead letters of a group back to its queue. Returns their number."""
        if msg_id is None:
            return await self._until_done("redrive", topic, group, acks)
        return await self._of_dead("redrive", topic, group, msg_id, acks)

    async def purge(self, topic: str, *, acks: Acks = "primary") -> int:
        """Delete the messages of a topic, but no dead letters. Returns the number of retained ones."""

        async def step(partition: int) -> int:
            data = await self._servers.call("purge", partition_keys(topic, partition), acks=acks)
            return messages.count_answer.decode(data)[1]

        return sum(await self._engine.lifecycle.of_all(step))

    async def purge_dead(self, topic: str, group: str, *, acks: Acks = "primary") -> int:
        """Delete the dead letters of a group. Returns their number."""
        return await self._until_done("purge_dead", topic, group, acks)

    async def delete_dead(self, topic: str, group: str, msg_id: str, *, acks: Acks = "primary") -> bool:
        """Delete one dead letter of a group. Returns whether there was one."""
        return await self._of_dead("purge_dead", topic, group, msg_id, acks) > 0

    async def _of_dead(self, step: str, topic: str, group: str, msg_id: str, acks: Acks) -> int:
        place = messages.place_of(msg_id)
        if place is None or place.partition >= self._engine.partitions:
            return 0
        try:
            data = await self._group_step(step, topic, place.partition, group, place.number, acks=acks)
        except NoGroup:
            return 0
        return messages.counted_answer.decode(data)[1]

    async def _until_done(self, step: str, topic: str, group: str, acks: Acks) -> int:
        async def of_partition(partition: int) -> int:
            total, more = 0, True
            while more:
                try:
                    data = await self._group_step(step, topic, partition, group, "", acks=acks)
                except NoGroup:
                    return total
                _, count, more = messages.counted_answer.decode(data)
                total += count
            return total

        return sum(await self._engine.lifecycle.of_all(of_partition))

    async def groups(self, topic: str) -> list[str]:
        """The groups of a topic, by name."""
        return sorted({name for part in await self._parts(topic) for name in part.groups})

    async def _parts(self, topic: str) -> list[messages.PartitionStats]:
        async def step(partition: int) -> messages.PartitionStats:
            return messages.stats_answer.decode(await self._servers.call("stats", partition_keys(topic, partition)))

        return await self._engine.lifecycle.of_all(step)

    async def is_drained(self, topic: str) -> bool:
        """Whether a topic has nothing on the engine, not even dead letters, and will get nothing."""
        return not any(part.messages or part.bytes or part.state == "open" for part in await self._parts(topic))

    async def knows_requests(self, topic: str) -> bool:
        """Whether the servers may still know publishes with a `request_id`, so that a repeat would get the first answer."""

        async def step(partition: int) -> bool:
            key = partition_keys(topic, partition)[ONCE]
            tokens: list[bytes] = []
            for count in PUBLISHES_SEARCHED:
                tokens = await self._servers.read(key, b"ZREVRANGE", key.encode(), b"0", b"%d" % (count - 1))
                if any(OF_REQUEST.encode() in one for one in tokens):
                    return True
                if len(tokens) < count:
                    return False
            return True

        return any(await self._engine.lifecycle.of_all(step))

    # ------------------------------------------------------------------- sweeps

    async def sweep(self, topic: str, settings: TopicSettings, groups: Sequence[str] | None = None) -> Swept:
        """Do what no call waits for and is due: timeouts, delays and retention of all groups.

        Args:
            groups: those that the topic has; None: ask the servers.
        """
        known = await self.groups(topic) if groups is None else groups

        async def step(partition: int) -> Swept:
            chunks = [known[first : first + GROUPS_PER_LOOK] for first in range(0, len(known), GROUPS_PER_LOOK)]
            parts = [await self._sweep_chunk(topic, partition, chunk, settings, len(known)) for chunk in chunks or [[]]]
            return _joined(parts)

        return _joined(await self._engine.lifecycle.of_all(step))

    async def _sweep_chunk(
        self, topic: str, partition: int, groups: Sequence[str], settings: TopicSettings, group_count: int
    ) -> Swept:
        keys = partition_keys(topic, partition)
        looked = (*keys, *(group_keys(topic, partition, group)[0] for group in groups))
        data = await self._servers.call("due", looked, settings.retention_ms)
        _, at_ms, places, next_ms, old_ms, found_groups, known = messages.due_answer.decode(data)
        is_old = old_ms <= at_ms
        is_left = False
        with messages.reading():
            due = groups if is_old else [groups[place] for place in places]
        for group in due:
            is_left |= await self._sweep_group(topic, partition, group, settings)
        if is_old and not found_groups:
            is_left |= await self._retain(keys, settings)
        in_ms = [next_ms - at_ms, OLD_AGAIN_MS if is_old else old_ms - at_ms]
        has_others = found_groups != NOT_OPEN and (found_groups != group_count or known != len(groups))
        return Swept(0 if is_left else min(in_ms), bool(places or is_old), has_others)

    async def _sweep_group(self, topic: str, partition: int, group: str, settings: TopicSettings) -> bool:
        """Whether there is more to do now."""
        for _ in range(SWEEP_STEPS_MAX):
            try:
                data = await self._group_step("sweep", topic, partition, group, for_deliveries(settings))
            except NoGroup:
                return False
            if not messages.sweep_answer.decode(data)[2]:
                return False
        return True

    async def _retain(self, keys: tuple[str, ...], settings: TopicSettings) -> bool:
        """Whether there is more to do now."""
        for _ in range(SWEEP_STEPS_MAX):
            data = await self._servers.call("retain", keys, settings.retention_ms)
            if not messages.counted_answer.decode(data)[2]:
                return False
        return True

    # ------------------------------------------------------------ ends of things

    async def close(self, topic: str) -> None:
        """See `Lifecycle.close`."""
        await self._engine.lifecycle.close(topic)

    async def delete_group(self, topic: str, group: str) -> None:
        """See `Lifecycle.delete_group`."""
        await self._engine.lifecycle.delete_group(topic, group)

    async def delete_topic(self, topic: str) -> int:
        """Delete a topic with its groups. Returns the number of retained messages."""
        purged = sum(part.messages for part in await self._parts(topic))
        await self._engine.lifecycle.delete(topic)
        return purged

    async def _group_step(
        self, step: str, topic: str, partition: int, group: str, *args: object, acks: Acks = "primary"
    ) -> bytes:
        keys = partition_keys(topic, partition) + group_keys(topic, partition, group)
        return await self._servers.call(step, keys, *args, acks=acks)


def _joined(parts: Sequence[Swept]) -> Swept:
    return Swept(
        min(part.next_in_ms for part in parts),
        any(part.did_something for part in parts),
        any(part.has_other_groups for part in parts),
    )
