"""A semaphore for asyncio: at most N holders at a time, in all processes together.

Each of the N permits is an exclusive lock, `semaphore/NAME/1` to `semaphore/NAME/N`. That alone makes it safe: there are never more
than N holders, a holder that crashes loses its permit with its lease, and each permit has fencing tokens of its own.

A further lock, `semaphore/NAME/queue`, makes it fair. A client that finds no free permit waits for it, in the order of arrival. Its
holder is the first in line: it watches the permits, takes the first one that becomes free, and gives the queue's lock to the next. If the
first in line crashes, the queue's lock ends with its lease.

The first in line waits for no lock, so no cycle of waiting clients leads through a semaphore, and the cluster cannot mistake a wait for any
of N permits for a wait for all of them. In turn, it cannot find a deadlock in which a semaphore takes part.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from types import EllipsisType, TracebackType
from typing import Any

from dss_client.acquiring import acquire
from dss_client.clock import now
from dss_client.core import Core, Repeat
from dss_client.errors import Deadlock, DssError, LockHeld, LockTimeout, WrongUse
from dss_client.held import AsyncHeld, leave
from dss_client.lock_owners import Owners
from dss_client.lock_spec import LockSpec
from dss_client.watch import LockWatch

PREFIX = "semaphore/"
PERMITS_MAX = 1000
#: so many permits are tried before the cluster is asked which are free
DIRECT_MAX = 3


class SemaphoreSpec:
    """What a semaphore is made with."""

    def __init__(self, name: str, permits: int, *, ttl: float, wait: float | None) -> None:
        if not 1 <= permits <= PERMITS_MAX:
            raise WrongUse(f"a semaphore has 1 to {PERMITS_MAX} permits, not {permits!r}")
        self.prefix = f"{PREFIX}{name}/"
        self.permits = [f"{self.prefix}{number}" for number in range(1, permits + 1)]
        self.wait = wait
        self._ttl = ttl
        self.queue = self.lock(f"{self.prefix}queue")

    def lock(self, key: str) -> LockSpec:
        return LockSpec([key], is_multiple=False, ttl=self._ttl, wait=None, shared=False, renew=True, lock_delay=0)

    def wait_of(self, wait: float | EllipsisType | None) -> float | None:
        return self.wait if isinstance(wait, EllipsisType) else wait


async def acquire_permit(core: Core, owners: Owners, owner: str, spec: SemaphoreSpec, wait: float | None) -> AsyncHeld:
    """Acquire a permit for a thread or a task.

    Args:
        wait: seconds; None: without a limit.

    Raises:
        LockTimeout: all permits are held.
        Deadlock: this thread or task holds all of them.
        DssError
    """
    if wait is not None and not wait >= 0:
        raise WrongUse(f"`wait` is in seconds, or None, not {wait!r}")
    return await _Attempt(core, owners, owner, spec, wait).run()


class _Attempt:
    """One wait for a permit."""

    def __init__(self, core: Core, owners: Owners, owner: str, spec: SemaphoreSpec, wait: float | None) -> None:
        self._core = core
        self._owners = owners
        self._owner = owner
        self._spec = spec
        self._wait = wait
        self._until = None if wait is None else now() + wait

    @property
    def _left_s(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - now())

    async def run(self) -> AsyncHeld:
        queue = await self._core.call("locks.status", {"key": self._spec.queue.keys[0]}, Repeat.READ)
        if not queue["locked"]:
            for key in self._likely_free()[:DIRECT_MAX]:
                permit = await self._take(key)
                if permit is not None:
                    return permit
        if self._wait == 0:
            return await self._take_without_waiting(queue)
        self._refuse_to_wait_for_itself()
        while True:
            try:
                first = await acquire(self._core, self._owners, self._owner, self._spec.queue, self._left_s)
            except LockTimeout:
                async with LockWatch(self._core, self._spec.prefix) as watch:
                    raise self._timeout(LockTimeout, watch) from None
            try:
                return await self._wait_as_first(first)
            except _NoLongerFirst:
                continue
            finally:
                self._core.spawn(_end(first))

    async def _take_without_waiting(self, queue: dict[str, Any]) -> AsyncHeld:
        async with LockWatch(self._core, self._spec.prefix) as watch:
            if queue["locked"] and not watch.holders.keys() >= set(self._spec.permits):
                raise LockHeld("other clients wait for a permit", status=423, fields={"holders": queue["holders"]})
            permit = await self._take_free(watch)
            if permit is None:
                raise self._timeout(LockHeld, watch)
            return permit

    async def _wait_as_first(self, first: AsyncHeld) -> AsyncHeld:
        async with LockWatch(self._core, self._spec.prefix) as watch:
            while True:
                permit = await self._take_free(watch)
                if permit is not None:
                    return permit
                if first.is_lost:
                    raise _NoLongerFirst
                left_s = self._left_s
                if left_s == 0:
                    raise self._timeout(LockTimeout, watch)
                # The lease of the queue's lock may end without an event, if this process was paused.
                await watch.changed(first.ttl_s if left_s is None else min(left_s, first.ttl_s))

    def _likely_free(self) -> list[str]:
        """The permits in the order in which to try them without knowing who holds them."""
        used = {key for _, key in self._owners.used}
        return sorted(self._spec.permits, key=lambda key: (key in used, random.random()))

    async def _take_free(self, watch: LockWatch) -> AsyncHeld | None:
        free = [key for key in self._spec.permits if key not in watch.holders]
        random.shuffle(free)
        for key in free:
            permit = await self._take(key)
            if permit is not None:
                return permit
        return None

    async def _take(self, key: str) -> AsyncHeld | None:
        try:
            return await acquire(self._core, self._owners, self._owner, self._spec.lock(key), 0)
        except LockTimeout:
            return None

    def _refuse_to_wait_for_itself(self) -> None:
        held = self._owners.held
        mine = [one for key in self._spec.permits for one in held.get(key, ()) if one.owner == self._owner and not one.is_over]
        if len(mine) == len(self._spec.permits):
            steps = [{"client": self._owner, "waits_for": one.keys[0], "held_by": one.name, "because": "holds"} for one in mine]
            raise Deadlock(
                f"this thread or task holds all permits of {self._spec.prefix[:-1]!r} itself",
                status=409,
                fields={"deadlock": True, "cycle": steps[:1]},
            )

    def _timeout(self, kind: type[LockTimeout], watch: LockWatch) -> LockTimeout:
        holders = [
            {"key": key, "client": client, "mode": "exclusive", "fencing_token": token}
            for key in self._spec.permits
            for client, token in watch.holders.get(key, {}).items()
        ]
        text = f"all {len(self._spec.permits)} permits of {self._spec.prefix[:-1]!r} are held"
        return kind(text, status=423, fields={"holders": holders})


class _NoLongerFirst(Exception):
    """The lease of the queue's lock is over."""


async def _end(first: AsyncHeld) -> None:
    # If it cannot be released, it ends with its lease.
    with contextlib.suppress(DssError):
        await first.release()


class AsyncSemaphore:
    """A semaphore. `async with` acquires a permit (an `AsyncHeld`). Any number of tasks may share the object."""

    def __init__(self, core: Callable[[], Core], owners: Callable[[], Owners], spec: SemaphoreSpec) -> None:
        self._core = core
        self._owners = owners
        self._spec = spec
        #: by task; the last one is left first
        self._entered: dict[asyncio.Task[Any] | None, list[AsyncHeld]] = {}

    async def acquire(self, wait: float | EllipsisType | None = ...) -> AsyncHeld:
        """Acquire a permit. Its `release` gives it back.

        Args:
            wait: seconds, instead of those that the semaphore was made with; None: without a limit; 0: do not wait.

        Raises:
            LockTimeout: all permits are held. `holders` has them.
        """
        owners = self._owners()
        return await acquire_permit(self._core(), owners, owners.of_task(), self._spec, self._spec.wait_of(wait))

    async def holders(self) -> dict[str, str]:
        """The permits that are held, and by whom."""
        return await permit_holders(self._core(), self._spec)

    async def __aenter__(self) -> AsyncHeld:
        permit = await self.acquire()
        self._entered.setdefault(asyncio.current_task(), []).append(permit)
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        mine = self._entered[task]
        permit = mine.pop()
        if not mine:
            del self._entered[task]
        await leave(permit.release, permit, error)


async def permit_holders(core: Core, spec: SemaphoreSpec) -> dict[str, str]:
    async with LockWatch(core, spec.prefix) as watch:
        return {key: client for key in spec.permits for client in watch.holders.get(key, {})}
