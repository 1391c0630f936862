"""Barriers for asyncio: processes that wait for each other.

Theory of operation
-------------------
1. A party that waits holds the lock `barrier/NAME/ID`, with an id of its own. A party that crashes disappears with its lease.
2. Who has met is decided by compare-and-set on the value `barrier/NAME` in the cache. As soon as a party sees that enough parties wait,
   it tries to add them to `met`. The parties that find themselves there go on. Later ones wait for the next meeting, so a barrier can be
   used again and again.
3. A party that gives up adds itself to `left` in the same way. If the decision comes first, it includes this party, which then goes on. If
   it comes later, it counts without it.
4. An id is removed from the value when its lock is gone. A watch may lag behind, so the lock counts as gone only if the watch has seen the
   index at which it was granted.
5. What was decided stays decided. A party that crashes after it has begun to wait, and before its lease is over, may be counted.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from types import EllipsisType, TracebackType
from typing import Any

from dss_client.acquiring import acquire
from dss_client.cache import AsyncCache
from dss_client.clock import now
from dss_client.core import Core
from dss_client.entry import Entry
from dss_client.errors import BarrierTimeout, DssError, VersionConflict, WrongUse
from dss_client.held import AsyncHeld, leave
from dss_client.lock_owners import Owners
from dss_client.lock_spec import LockSpec
from dss_client.watch import LockWatch

PREFIX = "barrier/"
#: for how long the value of a barrier that is no longer used stays in the cache
KEEP_S = 86_400.0
PARTIES_MAX = 1000


class BarrierSpec:
    """What a barrier is made with."""

    def __init__(self, name: str, parties: int, *, ttl: float, wait: float | None) -> None:
        if not 1 <= parties <= PARTIES_MAX:
            raise WrongUse(f"a barrier has 1 to {PARTIES_MAX} parties, not {parties!r}")
        self.name = name
        self.parties = parties
        self.value_key = f"{PREFIX}{name}"
        self.prefix = f"{PREFIX}{name}/"
        self.wait = wait
        self._ttl = ttl

    def lock(self, id: str) -> LockSpec:
        return LockSpec([self.prefix + id], is_multiple=False, ttl=self._ttl, wait=0, shared=False, renew=True, lock_delay=0)


class Party:
    """One party at a barrier.

    Attributes:
        held: its lock.
        number: its place in the meeting, from 0.
        others: the ids of all parties of the meeting.
    """

    def __init__(self, core: Core, cache: AsyncCache, owners: Owners, spec: BarrierSpec) -> None:
        self._core = core
        self._cache = cache
        self._owners = owners
        self._spec = spec
        self.id = uuid.uuid4().hex[:16]
        self.held: AsyncHeld | None = None
        self.number = 0
        self.others: set[str] = set()

    async def enter(self, wait: float | None) -> None:
        """Wait for the others.

        Raises:
            BarrierTimeout: too few came.
            LockLost: this process was paused or cut off for too long.
        """
        until = None if wait is None else now() + wait
        self.held = held = await acquire(self._core, self._owners, self._owners.make(), self._spec.lock(self.id), 0)
        try:
            async with LockWatch(self._core, self._spec.prefix) as watch:
                while not await self._has_met(watch, held, until):
                    pass
        except BaseException:
            await self._go(suppress=True)
            raise

    async def leave(self, wait: float | None) -> None:
        """Wait until all parties of the meeting have left, or are gone.

        Raises:
            BarrierTimeout: some are still there.
            LockLost: this party was lost before.
        """
        until = None if wait is None else now() + wait
        await self._go()
        async with LockWatch(self._core, self._spec.prefix) as watch:
            while True:
                present = self.others & self._present(watch).keys()
                if not present:
                    return
                left_s = None if until is None else until - now()
                if left_s is not None and left_s <= 0:
                    raise BarrierTimeout(f"{len(present)} parties are still at the barrier {self._spec.name!r}", len(present))
                await watch.changed(left_s)

    async def end(self) -> None:
        """Do not wait for the others to leave."""
        await self._go()

    async def _has_met(self, watch: LockWatch, held: AsyncHeld, until: float | None) -> bool:
        """One look at the barrier. False: look again."""
        entry = await self._cache.entry(self._spec.value_key)
        value: dict[str, Any] = entry.value or {"met": {}, "left": {}, "meetings": 0}
        mine = value["met"].get(self.id)
        if mine is not None:
            meeting, self.number, _ = mine
            self.others = {id for id, (number, *_) in value["met"].items() if number == meeting}
            return True
        held.require()
        present = self._present(watch)
        waiting = [id for id in present if id not in value["met"] and id not in value["left"]]
        if len(waiting) >= self._spec.parties:
            met = {id: [value["meetings"] + 1, number, present[id]] for number, id in enumerate(waiting[: self._spec.parties])}
            await self._decide(entry, watch, met, {}, value["meetings"] + 1)
            return False
        left_s = None if until is None else until - now()
        if left_s is not None and left_s <= 0:
            if await self._decide(entry, watch, {}, {self.id: held.token}, value["meetings"]):
                raise BarrierTimeout(
                    f"{len(waiting)} of {self._spec.parties} parties came to the barrier {self._spec.name!r}", len(waiting)
                )
            return False
        await watch.changed(held.ttl_s if left_s is None else min(left_s, held.ttl_s))
        return False

    def _present(self, watch: LockWatch) -> dict[str, int]:
        """The ids that hold a lock, and its token, in order of arrival."""
        start = len(self._spec.prefix)
        tokens = {key[start:]: max(holders.values()) for key, holders in watch.holders.items() if "/" not in key[start:]}
        return dict(sorted(tokens.items(), key=lambda item: (item[1], item[0])))

    async def _decide(self, entry: Entry, watch: LockWatch, met: dict[str, Any], left: dict[str, int], meetings: int) -> bool:
        """Add to the value. False: another party has changed it in the meantime."""
        present, value = self._present(watch), entry.value or {"met": {}, "left": {}}

        def is_needed(id: str, token: int) -> bool:
            return id in present or token > watch.index

        stored = {
            "met": {**{id: row for id, row in value["met"].items() if is_needed(id, row[2])}, **met},
            "left": {**{id: token for id, token in value["left"].items() if is_needed(id, token)}, **left},
            "meetings": meetings,
        }
        try:
            await self._cache.cas(self._spec.value_key, stored, entry.version, ttl=KEEP_S)
        except VersionConflict:
            return False
        return True

    async def _go(self, suppress: bool = False) -> None:
        held = self.held
        if held is None or held.was_released:
            return
        with contextlib.suppress(*([DssError] if suppress else [])):
            await held.release()


class AsyncBarrier:
    """A barrier. Any number of tasks may share the object: each that waits is a party."""

    def __init__(self, core: Callable[[], Core], cache: AsyncCache, owners: Callable[[], Owners], spec: BarrierSpec) -> None:
        self._core = core
        self._cache = cache
        self._owners = owners
        self._spec = spec

    @property
    def parties(self) -> int:
        """How many have to come."""
        return self._spec.parties

    async def wait(self, wait: float | EllipsisType | None = ...) -> int:
        """Wait until as many parties as the barrier has are here. Returns a number from 0, another one for each of them.

        Args:
            wait: seconds, instead of those that the barrier was made with; None: without a limit.

        Raises:
            BarrierTimeout: too few came.
            LockLost: this process was paused or cut off for too long.
        """
        party = self.party()
        await party.enter(self.seconds(wait))
        with contextlib.suppress(DssError):
            # It has met the others. What happens to its lock now changes nothing.
            await party.end()
        return party.number

    def party(self) -> Party:
        """For this library."""
        return Party(self._core(), self._cache, self._owners(), self._spec)

    def seconds(self, wait: float | EllipsisType | None) -> float | None:
        """For this library."""
        return self._spec.wait if isinstance(wait, EllipsisType) else wait


class AsyncDoubleBarrier:
    """A barrier at the beginning and at the end of a block: `async with` waits for all parties, and its end waits for them again.

    A party that crashes in the block has left. The object is for one task at a time.
    """

    def __init__(self, barrier: AsyncBarrier) -> None:
        self._barrier = barrier
        self._party: Party | None = None

    async def enter(self, wait: float | EllipsisType | None = ...) -> int:
        """Wait until all parties are here; see `AsyncBarrier.wait`."""
        if self._party is not None:
            raise WrongUse("this object has entered the barrier already; make another one for each task")
        party = self._barrier.party()
        await party.enter(self._barrier.seconds(wait))
        self._party = party
        return party.number

    async def leave(self, wait: float | EllipsisType | None = ...) -> None:
        """Wait until all parties have left.

        Raises:
            BarrierTimeout: some are still there.
            LockLost: this party was lost before, and the others may not have waited for it.
        """
        await self._take().leave(self._barrier.seconds(wait))

    async def __aenter__(self) -> AsyncHeld:
        await self.enter()
        assert self._party is not None
        assert self._party.held is not None
        return self._party.held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        party = self._take()
        assert party.held is not None
        if error is not None:
            # The block has failed: the others need not wait for this party, and it not for them.
            await leave(party.end, party.held, error)
        else:
            await party.leave(self._barrier.seconds(...))

    def _take(self) -> Party:
        party, self._party = self._party, None
        if party is None:
            raise WrongUse("this object has not entered the barrier")
        return party
