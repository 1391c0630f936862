"""The consumes of this process that wait for the same group: first come, first served, one look at a partition for each sign."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from dss_queue.redis_engine.errors import EngineAway
from dss_queue.redis_engine.keys import channel, group_keys
from dss_queue.redis_engine.messages import CLOSED, Consumed
from dss_queue.redis_engine.wakeups import Listener, Wakeups

#: A look that was refused within this time cost nothing, so the others follow.
QUICK_S = 0.1

#: Takes messages of one partition.
Look = Callable[[int], Awaitable[Consumed]]


class Polls:
    """The waiting consumes of one group of a topic, and which partitions may have something for them."""

    def __init__(self, topic: str, group: str, partitions: int) -> None:
        self.partitions = range(partitions)
        self._topic = topic
        self._group = group
        self._waiters: deque[asyncio.Event] = deque()
        #: partitions that may have something ready
        self._signs: dict[int, None] = {}
        #: partition -> loop time at which something becomes ready by itself
        self._due: dict[int, float] = {}
        #: partitions of a topic that has left the engine, without anything of the group
        self._closed: set[int] = set()
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
            if not text or text == payload:
                self._sign(partition)

        return heard

    def _sign(self, partition: int) -> None:
        self._signs[partition] = None
        if self._waiters:
            self._waiters[0].set()

    async def look_at_all(self, look: Look, first: int | None = None, *, shares: bool = True) -> Consumed:
        """The first partition that has something, from `first` on or in turns; otherwise why none has.

        Args:
            shares: where another consume has looked since this one began, and found nothing, there is nothing. False for a repeat of a
                consume, which may find what the first one got.
        """
        if first is None:
            self._first += 1
            first = self._first
        count = len(self.partitions)
        return await self._look([(first + place) % count for place in range(count)], look, self._looks if shares else None)

    async def _look(self, order: list[int], look: Look, since: int | None = None) -> Consumed:
        """
        Args:
            since: number of looks that had begun by then; None: all looks are its own.
        """
        loop = asyncio.get_running_loop()
        reasons: list[str] = []
        away: EngineAway | None = None
        for partition in order:
            if since is not None and partition in self._empty and self._empty[partition][0] >= since:
                reasons.append(self._empty[partition][1])
                continue
            began = self._looks
            self._looks += 1
            self._signs.pop(partition, None)
            began_s = loop.time()
            try:
                found = await look(partition)
                while not found.messages and found.more:
                    found = await look(partition)
            except EngineAway as error:
                self._sign(partition)
                if loop.time() - began_s > QUICK_S:
                    raise
                # The partitions on other servers go on.
                away = error
                continue
            except BaseException:
                self._sign(partition)
                raise
            if found.next_in_ms is None:
                self._due.pop(partition, None)
            else:
                self._due[partition] = loop.time() + found.next_in_ms / 1000
            if found.empty_reason == CLOSED:
                self._closed.add(partition)
            else:
                self._closed.discard(partition)
            if found.messages:
                if found.more:
                    self._sign(partition)
                return found
            self._empty[partition] = (began, found.empty_reason)
            reasons.append(found.empty_reason)
        if away is not None:
            raise away
        reason = CLOSED if len(self._closed) == len(self.partitions) else _reason(reasons)
        return Consumed([], reason, None, False)

    async def wait(self, look: Look, until: float, reason: str) -> Consumed:
        """Wait until loop time `until` for the first messages; `reason`: why there are none now."""
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
                if self._signs and self._waiters[0] is mine:
                    mine.clear()
                    found = await self._look(list(self._signs), look)
                    if found.messages:
                        return found
                    empty = found
                    if found.empty_reason == CLOSED:
                        self._sign(next(iter(self.partitions)))
                        return empty
                    continue
                if now >= until:
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
