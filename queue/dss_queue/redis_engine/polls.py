"""The consumes of this process that wait for the same group: first come, first served, one look at a partition for each sign.

While the servers of some partitions are away, they wait for messages of the others. A wait that ends without a message is then refused:
there may be messages where it could not look.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NoReturn

from dss_queue.redis_engine.errors import EngineAway
from dss_queue.redis_engine.keys import channel, group_keys
from dss_queue.redis_engine.lane import NotSent
from dss_queue.redis_engine.messages import CLOSED, Consumed
from dss_queue.redis_engine.servers import Servers
from dss_queue.redis_engine.wakeups import Listener, Wakeups

#: A look that was refused within this time cost nothing, so the others follow.
QUICK_S = 0.1

#: Takes messages of one partition.
Look = Callable[[int], Awaitable[Consumed]]


class Polls:
    """The waiting consumes of one group of a topic, and which partitions may have something for them."""

    def __init__(self, topic: str, group: str, partitions: int, servers: Servers) -> None:
        self.partitions = range(partitions)
        self._topic = topic
        self._group = group
        self._servers = servers
        self._waiters: deque[asyncio.Event] = deque()
        #: partitions that may have something ready
        self._signs: dict[int, None] = {}
        #: partition -> loop time at which something becomes ready by itself
        self._due: dict[int, float] = {}
        #: partitions of a topic that has left the engine, without anything of the group
        self._closed: set[int] = set()
        #: partition -> why the last look at it was refused
        self._away: dict[int, str] = {}
        self._first = 0
        #: looks so far
        self._looks = 0
        #: partition -> its last look that found nothing: how many had begun before it, and why there was nothing
        self._empty: dict[int, tuple[int, str]] = {}
        self.is_listening = False
        #: consumes that use it, whether they wait yet or not
        self.users = 0

    @property
    def waiting(self) -> int:
        """Consumes that wait."""
        return len(self._waiters)

    @property
    def channels(self) -> list[str]:
        return [channel(self._topic, one) for one in self.partitions]

    async def listen(self, wakeups: Wakeups) -> None:
        """Get a sign whenever a partition may have something. Must be done before the look that a wait follows."""
        if not self.is_listening:
            await wakeups.listen(self.channels, self, self._listener)
            self.is_listening = True

    def _listener(self, name: str) -> Listener:
        partition = self.channels.index(name)
        #: what means this group
        payload = group_keys(self._topic, partition, self._group)[0]

        def heard(text: str) -> None:
            # While its server is away, each attempt to listen again ends so. `servers_were_asked` says when it is back.
            is_away = partition in self._away and not self._servers.health.can_use(name)
            if text == payload or (not text and not is_away):
                self._sign(partition)

        return heard

    def _sign(self, partition: int) -> None:
        self._signs[partition] = None
        if self._waiters:
            self._waiters[0].set()

    def servers_were_asked(self) -> None:
        """Called after each look at the servers. Some may be away or back: look at their partitions."""
        health = self._servers.health
        if not self._waiters or not (self._away or health.has_troubles):
            return
        for partition, name in enumerate(self.channels):
            if health.can_use(name) == (partition in self._away):
                self._sign(partition)

    async def look_at_all(self, look: Look, first: int | None = None, *, shares: bool = True, waits: bool = False) -> Consumed:
        """The first partition that has something, from `first` on or in turns; otherwise why none has.

        Args:
            shares: where another consume has looked since this one began, and found nothing, there is nothing. False for a repeat of a
                consume, which may find what the first one got.
            waits: `wait` follows, so it is enough if some partitions can be used.

        Raises:
            EngineAway: some partitions could not be used, and the others have nothing. With `waits`: none can be used.
        """
        if first is None:
            self._first += 1
            first = self._first
        count = len(self.partitions)
        order = [*range(first % count, count), *range(first % count)]
        return await self._look(order, look, self._looks if shares else None, waits=waits)

    async def _look(self, order: list[int], look: Look, since: int | None = None, *, waits: bool) -> Consumed:
        """
        Args:
            since: number of looks that had begun by then; None: all looks are its own.
            waits: see `look_at_all`.

        Raises:
            EngineAway: see `look_at_all`.
        """
        loop = asyncio.get_running_loop()
        reasons: list[str] = []
        away: EngineAway | None = None
        #: a server that did not answer in time
        hung: tuple[str, EngineAway] | None = None
        for partition in order:
            if since is not None and partition in self._empty and self._empty[partition][0] >= since:
                reasons.append(self._empty[partition][1])
                continue
            began = self._looks
            self._looks += 1
            self._signs.pop(partition, None)
            if hung is not None and self._server_of(partition) == hung[0]:
                # It would take as long again.
                self._is_refused(partition, hung[1])
                continue
            began_s = loop.time()
            try:
                found = await look(partition)
                while not found.messages and found.more:
                    found = await look(partition)
            except EngineAway as error:
                self._is_refused(partition, error)
                if loop.time() - began_s > QUICK_S:
                    if not waits:
                        raise
                    hung = self._server_of(partition), error
                # The partitions on other servers go on.
                away = error
                continue
            except BaseException:
                self._sign(partition)
                raise
            if self._away:
                self._away.pop(partition, None)
            if found.next_in_ms is None:
                self._due.pop(partition, None)
            else:
                self._due[partition] = loop.time() + found.next_in_ms / 1000
            if found.empty_reason == CLOSED:
                self._closed.add(partition)
            elif self._closed:
                self._closed.discard(partition)
            if found.messages:
                if found.more:
                    self._sign(partition)
                return found
            self._empty[partition] = (began, found.empty_reason)
            reasons.append(found.empty_reason)
        if away is not None:
            if not waits:
                raise away
            self._require_some()
        reason = CLOSED if len(self._closed) == len(self.partitions) else _reason(reasons)
        return Consumed([], reason, None, False)

    def _is_refused(self, partition: int, error: EngineAway) -> None:
        self._away[partition] = error.detail
        self._closed.discard(partition)
        self._due.pop(partition, None)

    def _server_of(self, partition: int) -> str:
        """The address of the server that has a partition; empty: none has it."""
        try:
            return self._servers.address_of(channel(self._topic, partition))
        except NotSent:
            return ""

    def _require_some(self) -> None:
        """
        Raises:
            EngineAway: none of the partitions can be used.
        """
        if len(self._away) == len(self.partitions):
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise EngineAway(next(iter(self._away.values())))

    async def wait(self, look: Look, until: float, reason: str) -> Consumed:
        """Wait until loop time `until` for the first messages; `reason`: why there are none now.

        Raises:
            EngineAway: some partitions could not be used until the end, and the others had nothing; or none can be used.
        """
        loop = asyncio.get_running_loop()
        mine = asyncio.Event()
        self._waiters.append(mine)
        empty = Consumed([], reason, None, False)
        try:
            while True:
                now = loop.time()
                for partition in [one for one, due in self._due.items() if due <= now]:
                    del self._due[partition]
                    self._signs[partition] = None
                if self._signs and self._waiters[0] is mine and now < until:
                    mine.clear()
                    found = await self._look(list(self._signs), look, waits=True)
                    if found.messages:
                        return found
                    empty = found
                    if found.empty_reason == CLOSED:
                        self._sign(next(iter(self.partitions)))
                        return empty
                    continue
                self._require_some()
                if now >= until:
                    if self._away:
                        self._refuse()
                    return empty
                wake_at = min([until, *self._due.values()]) if self._waiters[0] is mine else until
                try:
                    async with asyncio.timeout_at(wake_at):
                        await mine.wait()
                    mine.clear()
                except TimeoutError:
                    pass
        finally:
            self._waiters.remove(mine)
            if self._waiters:
                # It may have become the first one, and has other times to wait for.
                self._waiters[0].set()


def _reason(reasons: list[str]) -> str:
    """The reason for the whole topic: that of the partition that has most to wait for."""
    for reason in ("key_blocked", "delayed", "all_in_flight"):
        if reason in reasons:
            return reason
    return "no_messages"
