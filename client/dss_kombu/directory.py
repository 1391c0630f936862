"""Queues, exchanges and bindings: what kombu declares, as values in the cluster's cache.

A queue is a topic with one group; with priorities, a topic for each level of them. Messages for a queue are published to its topic.

A *temporary* queue (exclusive, auto_delete, or with `x-expires`) that is bound to a fanout or topic exchange is a group of the exchange's
own topic instead: one publish reaches all of them. Each consumer of such a group drops what its routing pattern does not match.

Records, all under the transport's prefix:

- `exchange/NAME`: its type, the bindings that a publisher follows, and which temporary queues are groups of its topic.
- `queue/NAME`: whether it has priorities, and of which exchanges' topics it is a group. That of a temporary queue expires unless its
  consumer touches it.
- `temporary`: the temporary queues with their exchanges. `sweep` deletes those whose record has expired.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from dss_client.aio import AsyncClient
from dss_client.errors import Exists, NotFound, VersionConflict
from dss_kombu.options import PRIORITY_STEPS, Options

#: the group of a queue's own topics
GROUP = "workers"
#: A temporary queue whose consumer is gone is kept for at least this many seconds: longer than an election takes.
TEMPORARY_S_MIN = 60.0

Record = dict[str, Any]


class Source:
    """A topic and a group from which a queue gets messages.

    Attributes:
        patterns: only messages whose routing key matches one of them are the queue's; None: all are.
    """

    __slots__ = ("group", "patterns", "topic")

    def __init__(self, topic: str, group: str, patterns: tuple[str, ...] | None = None) -> None:
        self.topic = topic
        self.group = group
        self.patterns = patterns

    def takes(self, routing_key: str) -> bool:
        return self.patterns is None or any(matches(pattern, routing_key) for pattern in self.patterns)


def matches(pattern: str, routing_key: str) -> bool:
    """Whether a pattern of a topic exchange, as kombu writes it, matches. `re` keeps the compiled patterns."""
    return re.match(pattern, routing_key) is not None


class Directory:
    """The records of one prefix."""

    def __init__(self, client: AsyncClient, options: Options) -> None:
        self._client = client
        self._cache = client.cache
        self._options = options
        self._prefix = options.prefix

    # -------------------------------------------------------------- names

    def topic(self, queue: str, step: int = 0) -> str:
        return f"{self._prefix}/priority-{step}/{queue}" if step else f"{self._prefix}/queue/{queue}"

    def exchange_topic(self, exchange: str) -> str:
        return f"{self._prefix}/exchange/{exchange}"

    def _exchange_key(self, exchange: str) -> str:
        return f"{self._prefix}/exchange/{exchange}"

    def _queue_key(self, queue: str) -> str:
        return f"{self._prefix}/queue/{queue}"

    @property
    def _temporary_key(self) -> str:
        return f"{self._prefix}/temporary"

    # ----------------------------------------------------------- exchanges

    async def exchange(self, exchange: str) -> Record | None:
        found: Record | None = await self._cache.get(self._exchange_key(exchange))
        return found

    async def declare_exchange(self, exchange: str, type: str) -> str:
        """Returns its type, which an earlier declaration may have set."""
        record = await self.exchange(exchange)
        if record is None:
            try:
                await self._cache.add(self._exchange_key(exchange), {"type": type, "bindings": [], "groups": []})
                return type
            except Exists:
                record = await self.exchange(exchange)
        return type if record is None else str(record["type"])

    async def delete_exchange(self, exchange: str) -> None:
        """Delete it with its bindings. The queues stay."""
        record = await self.exchange(exchange)
        if record is None:
            return
        await self._cache.delete(self._exchange_key(exchange))
        for queue in record["groups"]:
            await self._change(self._queue_key(queue), lambda queue: _without_exchange(queue, exchange), create=False)
        await self._client.call("queue.topic_delete", topic=self.exchange_topic(exchange))

    # -------------------------------------------------------------- queues

    async def queue(self, queue: str) -> Record | None:
        found: Record | None = await self._cache.get(self._queue_key(queue))
        return found

    async def declare_queue(self, queue: str, *, has_priorities: bool, expires_s: float | None) -> Record:
        """
        Args:
            expires_s: the queue is temporary, and is deleted when it has had no consumer for this long.
        """
        record = await self.queue(queue)
        if record is not None and (record["priorities"] or not has_priorities):
            return record
        if record is None and expires_s is None:
            await self._create_group(self.topic(queue), GROUP)

        def change(old: Record | None) -> Record:
            new = old or {"priorities": False, "exchanges": {}, "ttl": expires_s and max(expires_s, TEMPORARY_S_MIN)}
            return {**new, "priorities": new["priorities"] or has_priorities}

        record = await self._change(self._queue_key(queue), change)
        if record["ttl"]:
            await self._change(self._temporary_key, lambda all: {queue: [], **(all or {})})
        return record

    async def touch(self, queue: str, ttl: float) -> bool:
        """A consumer of this temporary queue is alive. False: the queue was deleted."""
        return await self._cache.touch(self._queue_key(queue), ttl)

    async def sources(self, queue: str) -> list[Source]:
        """Where to take the queue's messages from, the most urgent first."""
        record = await self.queue(queue)
        if record is None:
            return [Source(self.topic(queue), GROUP)]
        steps = PRIORITY_STEPS if record["priorities"] else PRIORITY_STEPS[:1]
        own = [Source(self.topic(queue, step), GROUP) for step in reversed(steps)]
        groups = [
            Source(self.exchange_topic(exchange), queue, None if None in patterns else tuple(patterns))
            for exchange, patterns in record["exchanges"].items()
        ]
        return own + groups

    async def delete_queue(self, queue: str) -> None:
        await self._delete_queue(queue, await self.queue(queue))

    async def _delete_queue(self, queue: str, record: Record | None, exchanges: list[str] | None = None) -> None:
        """
        Args:
            exchanges: of an expired queue, whose record is gone.
        """
        temporary = await self._cache.get(self._temporary_key) or {}
        bound = {*(exchanges or ()), *temporary.get(queue, ())}
        if record is not None:
            bound |= {*record["exchanges"], *record.get("bound", ())}
        for exchange in bound:
            await self._change(self._exchange_key(exchange), lambda old: _without_queue(old, queue), create=False)
        for exchange in bound:
            await self._client.call("queue.group_delete", topic=self.exchange_topic(exchange), group=queue)
        steps = PRIORITY_STEPS if record is None or record["priorities"] else PRIORITY_STEPS[:1]
        for step in steps:
            await self._client.call("queue.topic_delete", topic=self.topic(queue, step))
        await self._cache.delete(self._queue_key(queue))
        if queue in temporary:
            await self._change(self._temporary_key, lambda all: {name: at for name, at in (all or {}).items() if name != queue})

    async def sweep(self) -> list[str]:
        """Delete the temporary queues that have had no consumer for too long. Returns their names."""
        temporary: dict[str, list[str]] = await self._cache.get(self._temporary_key) or {}
        if not temporary:
            return []
        alive = await self._cache.mget([self._queue_key(queue) for queue in temporary])
        gone = [queue for queue in temporary if self._queue_key(queue) not in alive]
        for queue in gone:
            await self._delete_queue(queue, None, temporary[queue])
        return gone

    # ------------------------------------------------------------ bindings

    async def bind(self, queue: str, exchange: str, type: str, routing_key: str, pattern: str | None) -> None:
        record = await self.queue(queue)
        is_group = type != "direct" and record is not None and bool(record["ttl"])
        binding = [routing_key, pattern, queue]

        def add(old: Record | None) -> Record:
            new = old or {"type": type, "bindings": [], "groups": []}
            if is_group:
                return new if queue in new["groups"] else {**new, "groups": [*new["groups"], queue]}
            return new if binding in new["bindings"] else {**new, "bindings": [*new["bindings"], binding]}

        def add_to_queue(old: Record | None) -> Record | None:
            if old is None:
                return None
            if not is_group:
                bound = old.get("bound", [])
                return old if exchange in bound else {**old, "bound": [*bound, exchange]}
            patterns = old["exchanges"].get(exchange, [])
            if pattern in patterns:
                return old
            return {**old, "exchanges": {**old["exchanges"], exchange: [*patterns, pattern]}}

        if is_group:
            settings = {"retention_ms": round(self._options.fanout_retention * 1000)}
            await self._create_group(self.exchange_topic(exchange), queue, **settings)
        if record is not None:
            if record["ttl"]:

                def index(all: Record | None) -> Record:
                    bound = (all or {}).get(queue, [])
                    return (all or {}) if exchange in bound else {**(all or {}), queue: [*bound, exchange]}

                await self._change(self._temporary_key, index)
            await self._change(self._queue_key(queue), add_to_queue, create=False)
        await self._change(self._exchange_key(exchange), add)

    async def unbind(self, queue: str, exchange: str, routing_key: str, pattern: str | None) -> None:
        def remove_pattern(old: Record) -> Record:
            patterns = [one for one in old["exchanges"].get(exchange, ()) if one != pattern]
            return {
                **_without_exchange(old, exchange),
                **({"exchanges": {**old["exchanges"], exchange: patterns}} if patterns else {}),
            }

        record = await self._change(self._queue_key(queue), lambda old: old and remove_pattern(old), create=False)
        is_still_bound = bool(record) and exchange in record["exchanges"]

        def remove(old: Record | None) -> Record | None:
            if old is None:
                return None
            bindings = [one for one in old["bindings"] if one != [routing_key, pattern, queue]]
            groups = old["groups"] if is_still_bound else [one for one in old["groups"] if one != queue]
            return {**old, "bindings": bindings, "groups": groups}

        await self._change(self._exchange_key(exchange), remove, create=False)
        if not is_still_bound:
            await self._client.call("queue.group_delete", topic=self.exchange_topic(exchange), group=queue)

    # ------------------------------------------------------------- helpers

    async def _create_group(self, topic: str, group: str, **settings: Any) -> None:
        """Create a group that begins now, and its topic, unless they exist."""
        fields = {"topic": topic, "group": group} if group == GROUP else {"topic": topic, "group": group, "start": "now"}
        try:
            await self._client.call("queue.group", **fields)
        except NotFound:
            await self._client.call("queue.topic", topic=topic, **settings)
            await self._client.call("queue.group", **fields)

    async def _change(self, key: str, change: Callable[[Any], Record | None], create: bool = True) -> Record:
        """Compare and set until it succeeds. Returns the new record; empty: there is none."""
        while True:
            entry = await self._cache.entry(key)
            old = entry.value if entry.found else None
            if old is None and not create:
                return {}
            new = change(old)
            if new is None or new == old:
                return new or {}
            # In `temporary`, "ttl" would be the name of a queue.
            ttl = None if key == self._temporary_key else new.get("ttl")
            try:
                await self._cache.cas(key, new, entry.version if entry.found else 0, ttl)
                return new
            except VersionConflict:
                continue


def _without_exchange(queue: Record, exchange: str) -> Record:
    return {**queue, "exchanges": {name: patterns for name, patterns in queue["exchanges"].items() if name != exchange}}


def _without_queue(exchange: Record, queue: str) -> Record:
    bindings = [one for one in exchange["bindings"] if one[2] != queue]
    return {**exchange, "bindings": bindings, "groups": [one for one in exchange["groups"] if one != queue]}
