"""A rate limit for asyncio: a token bucket that all processes share.

The bucket is one value in the cache: the moment at which it will be full again, if no one takes any more (the generic cell rate
algorithm). To take tokens is to move that moment on, by compare-and-set, so two processes never take the same token. A caller that has to
wait takes its tokens first and then sleeps, so the order is that of the compare-and-sets.

Time is the cluster's, not that of the client's clock. The client asks a node for it now and then, and counts on with its own steady clock.
The error is at most half of the time that the answer took.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import EllipsisType

from dss_client.cache import AsyncCache
from dss_client.clock import now
from dss_client.core import Core, Repeat
from dss_client.errors import NotSupportedYet, RateLimited, VersionConflict, WrongUse

PREFIX = "rate-limit/"
#: how long to count on without asking for the cluster's time
SYNCHRONIZE_S = 30.0
#: how long a full bucket stays in the cache
KEEP_S = 60.0
CONFLICT_S_MAX = 0.02


class ClusterClock:
    """The cluster's time, in microseconds since 1970."""

    def __init__(self) -> None:
        self._core: Core | None = None
        self._ahead_s = 0.0
        self._until = 0.0

    async def now_us(self, core: Core) -> int:
        """
        Raises:
            NotSupportedYet: the node is of a release that does not tell the time.
        """
        if core is not self._core or now() >= self._until:
            sent = now()
            answer = await core.call("ready", {}, Repeat.READ, is_traced=False)
            if "now_ms" not in answer:
                raise NotSupportedYet("rate limits need nodes that tell the cluster's time: upgrade them")
            received = now()
            self._core, self._until = core, received + SYNCHRONIZE_S
            self._ahead_s = answer["now_ms"] / 1000 - (sent + received) / 2
        return round((now() + self._ahead_s) * 1e6)


class RateSpec:
    """What a rate limit is made with."""

    def __init__(self, name: str, rate: float, *, per: float, burst: int | None, wait: float | None) -> None:
        if not rate > 0 or not per > 0:
            raise WrongUse(f"`rate` tokens in `per` seconds are both more than 0, not {rate!r} and {per!r}")
        self.burst = max(1, int(rate)) if burst is None else burst
        if self.burst < 1:
            raise WrongUse(f"`burst` is at least 1, not {burst!r}")
        self.key = PREFIX + name
        self.wait = wait
        self.token_us = per / rate * 1e6

    def check(self, tokens: int) -> None:
        if not 1 <= tokens <= self.burst:
            raise WrongUse(f"1 to {self.burst} tokens (`burst`) can be taken in one step, not {tokens!r}")


class AsyncRateLimit:
    """A rate limit. Any number of tasks may share the object."""

    def __init__(self, core: Callable[[], Core], cache: AsyncCache, clock: ClusterClock, spec: RateSpec) -> None:
        self._core = core
        self._cache = cache
        self._clock = clock
        self._spec = spec
        self._taking = asyncio.Lock()

    async def acquire(self, tokens: int = 1, wait: float | EllipsisType | None = ...) -> None:
        """Take tokens, and wait until they are due.

        Args:
            tokens: at most `burst`.
            wait: for how many seconds at most, instead of what the limit was made with; None: without a limit.

        Raises:
            RateLimited: they would be due later. Nothing was taken. `retry_after` has the seconds.
        """
        delay_s = await self.take(tokens, self._spec.wait if isinstance(wait, EllipsisType) else wait)
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    async def try_acquire(self, tokens: int = 1) -> bool:
        """Take tokens if they are due now."""
        try:
            await self.take(tokens, 0)
        except RateLimited:
            return False
        return True

    async def take(self, tokens: int, wait: float | None) -> float:
        """Take tokens that are due within `wait` seconds. Returns in how many seconds they are."""
        spec = self._spec
        spec.check(tokens)
        # The tasks of one process would only be in each other's way.
        async with self._taking:
            while True:
                entry = await self._cache.entry(spec.key)
                now_us = await self._clock.now_us(self._core())
                full_us = max(now_us, entry.value if isinstance(entry.value, int) else 0) + tokens * spec.token_us
                delay_s = max(0.0, (full_us - spec.burst * spec.token_us - now_us) / 1e6)
                if wait is not None and delay_s > wait:
                    raise RateLimited(spec.key[len(PREFIX) :], delay_s)
                try:
                    await self._cache.cas(spec.key, round(full_us), entry.version, ttl=(full_us - now_us) / 1e6 + KEEP_S)
                    return delay_s
                except VersionConflict:
                    await asyncio.sleep(random.uniform(0.0, CONFLICT_S_MAX))
