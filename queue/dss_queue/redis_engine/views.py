"""Statistics and peeks of topics on the engine. They change nothing; partitions are read one after another, not at one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from dss_queue.answers import Ended, GroupStats, PeekedMessage, TopicStats
from dss_queue.redis_engine import messages
from dss_queue.redis_engine.engine import RedisEngine
from dss_queue.redis_engine.errors import NoGroup
from dss_queue.redis_engine.keys import DEAD_ORDER, group_keys, partition_keys
from dss_queue.redis_engine.servers import Servers

#: Groups of a topic that are read at the same time, each in all partitions.
GROUPS_AT_ONCE = 8
#: Behind the numbers of all messages.
_LAST = "~"


class EngineTopicStats(TopicStats, kw_only=True):
    """What the engine knows of one topic."""

    #: messages that were too old before there was a group
    expired: int
    #: over ten seconds
    publish_per_second: float


class Views:
    """See the module."""

    def __init__(self, servers: Servers, engine: RedisEngine) -> None:
        self._servers = servers
        self._engine = engine

    async def topic_stats(self, topic: str, now_ms: int) -> tuple[EngineTopicStats, list[GroupStats]]:
        """A topic and its groups, sorted by name.

        Args:
            now_ms: for ages.
        """
        parts = await self._parts(topic)
        names = sorted({name for part in parts for name in part.groups})
        groups: list[GroupStats] = []
        for first in range(0, len(names), GROUPS_AT_ONCE):
            some = names[first : first + GROUPS_AT_ONCE]
            groups += await asyncio.gather(*(self.group_stats(topic, name, now_ms) for name in some))
        return _of_topic(topic, parts, sum(group.dead for group in groups), now_ms), groups

    async def topic_line(self, topic: str, now_ms: int) -> EngineTopicStats:
        """A topic without its groups: two calls of each partition, whatever the number of groups."""
        parts = await self._parts(topic)

        async def dead(partition: int, names: list[str]) -> int:
            if not names:
                return 0
            keys = partition_keys(topic, partition)
            orders = tuple(group_keys(topic, partition, name)[DEAD_ORDER] for name in names)
            return messages.dead_count_answer.decode(await self._servers.call("dead_count", keys + orders))[1]

        counts = await asyncio.gather(*(dead(partition, part.groups) for partition, part in enumerate(parts)))
        return _of_topic(topic, parts, sum(counts), now_ms)

    async def message_count(self, topic: str) -> int:
        """How many messages a topic has."""
        return sum(part.messages for part in await self._parts(topic))

    async def _parts(self, topic: str) -> list[messages.PartitionStats]:
        return await asyncio.gather(*(self._partition(topic, one) for one in range(self._engine.partitions)))

    async def _partition(self, topic: str, partition: int) -> messages.PartitionStats:
        return messages.stats_answer.decode(await self._servers.call("stats", partition_keys(topic, partition)))

    async def unfinished(self, topic: str, group: str) -> int:
        """How many messages a group has not finished."""
        stats = await self.group_stats(topic, group, 0)
        return stats.ready + stats.delayed + stats.in_flight

    async def group_stats(self, topic: str, group: str, now_ms: int) -> GroupStats:
        """A group; zeros if it does not exist.

        Args:
            now_ms: for ages.
        """

        async def of_partition(partition: int) -> messages.PartitionGroupStats | None:
            keys = partition_keys(topic, partition) + group_keys(topic, partition, group)
            try:
                return messages.group_stats_answer.decode(await self._servers.call("group_stats", keys))
            except NoGroup:
                return None

        found = await asyncio.gather(*map(of_partition, range(self._engine.partitions)))
        parts = [part for part in found if part is not None]
        dead_total: dict[str, int] = {}
        with messages.reading():
            for part in parts:
                for reason, count in zip(part.dead_total[::2], part.dead_total[1::2], strict=True):
                    dead_total[str(reason)] = dead_total.get(str(reason), 0) + int(count)
        return GroupStats(
            group=group,
            ready=sum(part.ready for part in parts),
            delayed=sum(part.delayed for part in parts),
            in_flight=sum(part.in_flight for part in parts),
            dead=sum(part.dead for part in parts),
            waiters=self._engine.waiting(topic, group),
            oldest_age_ms=_age_ms([part.oldest for part in parts], now_ms),
            delivered=sum(part.delivered for part in parts),
            redelivered=sum(part.redelivered for part in parts),
            acked=sum(part.acked for part in parts),
            dead_total=dead_total,
            deliver_per_second=sum(part.delivered_lately for part in parts) / 10,
            ack_per_second=sum(part.acked_lately for part in parts) / 10,
        )

    async def peek(
        self, topic: str, group: str = "", *, dead: bool = False, msg_id: str | None = None, dedup_id: str = "", limit: int = 10
    ) -> list[PeekedMessage]:
        """The retained messages of a topic, a group's unfinished ones, or with `dead` its dead letters, oldest first. When messages are
        long, there are fewer than `limit`: a node and a server hold only so much of them at once."""
        number, partitions = "", list(range(self._engine.partitions))
        if msg_id is not None:
            place = messages.place_of(msg_id)
            if place is None or place.partition >= self._engine.partitions:
                return []
            number, partitions = place.number, [place.partition]
        wanted = (limit, number, dedup_id)
        found = await asyncio.gather(*(self._lines(topic, one, group, dead, wanted) for one in partitions))
        # Behind the end of a partition's lines, those of the others would leave some out.
        with messages.reading():
            last = min((lines[-1][0] for lines, is_cut in found if is_cut and lines), default=_LAST)
            of_partition = zip(partitions, found, strict=True)
            rows = sorted(
                (line[0], partition, line) for partition, (lines, _) in of_partition for line in lines if line[0] <= last
            )
            return [_line(partition, line, bool(group)) for _, partition, line in rows[:limit]]

    async def in_flight(self, topic: str, group: str, receipts: dict[str, str]) -> set[str]:
        """Those of these messages that are in flight in the deliveries that the receipts name."""
        of_partition: dict[int, dict[str, str]] = {}
        for msg_id in receipts:
            place = messages.place_of(msg_id)
            if place is not None:
                of_partition.setdefault(place.partition, {})[place.number] = msg_id

        async def held(partition: int, ids: dict[str, str]) -> list[str]:
            keys = partition_keys(topic, partition) + group_keys(topic, partition, group)
            try:
                step = await self._servers.call("in_flight", keys, "".join(ids))
            except NoGroup:
                return []
            _, serials = messages.in_flight_answer.decode(step)
            with messages.reading():
                return [
                    msg_id
                    for msg_id, serial in zip(ids.values(), serials, strict=True)
                    if serial and serial == messages.serial_of(msg_id, receipts[msg_id])
                ]

        found = await asyncio.gather(*(held(*item) for item in of_partition.items()))
        return {msg_id for part in found for msg_id in part}

    async def _lines(
        self, topic: str, partition: int, group: str, dead: bool, wanted: tuple[int, str, str]
    ) -> tuple[list[list[Any]], bool]:
        """Lines, and whether there are fewer because they are long."""
        keys = partition_keys(topic, partition)
        try:
            if group:
                data = await self._servers.call("group_peek", keys + group_keys(topic, partition, group), *wanted, dead)
            else:
                data = await self._servers.call("peek", keys, *wanted)
        except NoGroup:
            return [], False
        return messages.lines_answer.decode(data)[1:]


def _of_topic(topic: str, parts: Sequence[messages.PartitionStats], dead: int, now_ms: int) -> EngineTopicStats:
    return EngineTopicStats(
        topic=topic,
        messages=sum(part.messages for part in parts),
        bytes=sum(part.bytes for part in parts),
        published=sum(part.published for part in parts),
        oldest_age_ms=_age_ms([part.oldest for part in parts], now_ms),
        dead=dead,
        group_count=len({name for part in parts for name in part.groups}),
        expired=sum(part.expired for part in parts),
        publish_per_second=sum(part.published_lately for part in parts) / 10,
    )


def _line(partition: int, line: list[Any], is_of_group: bool) -> PeekedMessage:
    number, value, key, headers, delayed_for_ms = line[:5]
    message = PeekedMessage(
        msg_id=messages.message_id(partition, number),
        value=msgspec.Raw(value),
        headers=msgspec.Raw(headers) if headers else None,
        key=key,
        partition=partition,
        published_ms=int(number) // 1000,
    )
    if not is_of_group:
        message.delayed_for_ms = delayed_for_ms
        return message
    message.state, message.attempt = line[5], line[6]
    if message.state == "dead":
        message.dead_ms, message.reason = line[7], line[8]
        message.history = [Ended(*ending) for ending in line[9]]
        return message
    message.delayed_for_ms = delayed_for_ms
    if message.state == "in_flight":
        attempt_id, message.delivered_ms, message.visible_until_ms, message.node = line[7:11]
        message.attempt_id = "" if attempt_id.startswith(messages.OWN_ATTEMPT) else attempt_id
    message.history = [Ended(*ending) for ending in line[11]]
    return message


def _age_ms(oldest: list[str], now_ms: int) -> int:
    with messages.reading():
        numbers = [int(number) for number in oldest if number]
    return max(0, now_ms - min(numbers) // 1000) if numbers else 0
