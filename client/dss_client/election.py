"""Leader election for asyncio.

An election is an exclusive lock, `election/NAME`. The leader holds it, and the candidates wait in its queue. So everything that is true
of a lock is true of a term: its fencing token is larger than that of any earlier term, and it is lost here before another candidate
can be elected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import EllipsisType, TracebackType

import msgspec

from dss_client.core import Core, Repeat
from dss_client.held import AsyncHeld
from dss_client.lock_owners import Owners
from dss_client.lock_spec import LockSpec
from dss_client.locks import AsyncLock
from dss_client.watch import LockWatch

PREFIX = "election/"
VALUE = "value"


class Leader(msgspec.Struct, frozen=True):
    """Who leads."""

    #: the owner of the lock: machine, process and thread
    name: str
    #: what the leader gave as `value`
    value: str
    #: the fencing token of its term
    token: int


def election_spec(name: str, *, ttl: float, wait: float | None, value: str) -> LockSpec:
    """The lock of an election."""
    meta = {VALUE: value} if value else None
    return LockSpec([PREFIX + name], is_multiple=False, ttl=ttl, wait=wait, shared=False, renew=True, lock_delay=0, meta=meta)


class AsyncElection:
    """An election. `async with` waits until this candidate is elected, and gives its term (an `AsyncHeld`)."""

    def __init__(self, core: Callable[[], Core], owners: Callable[[], Owners], spec: LockSpec) -> None:
        self.spec = spec
        self._core = core
        self._key = spec.keys[0]
        self._lock = AsyncLock(core, owners, spec)

    @property
    def term(self) -> AsyncHeld | None:
        """The term of this candidate; None: it is not elected."""
        return self._lock.held

    async def campaign(self, wait: float | EllipsisType | None = ...) -> bool:
        """Wait until this candidate is elected. False: it was not, within `wait` seconds.

        Args:
            wait: seconds, instead of those that the election was made with; None: without a limit.
        """
        return await self._lock.acquire(wait=wait)

    async def resign(self) -> None:
        """End the term. The next candidate is elected immediately.

        Raises:
            LockNotHeld: this candidate is not elected.
            LockLost: the term was lost before.
        """
        await self._lock.release()

    async def leader(self) -> Leader | None:
        """Who leads now."""
        return await read_leader(self._core(), self._key)

    async def candidates(self) -> list[str]:
        """Those that wait, in order, by the names that the cluster shows (the first 100 or so)."""
        answer = await self._core().call("locks.status", {"key": self._key}, Repeat.READ)
        return [waiter["client"] for waiter in answer["waiters"]]

    async def observe(self) -> AsyncIterator[Leader | None]:
        """The present leader, then each later one; None while there is none. Terms that end quickly may be left out."""
        async for leader in observe(self._core(), self._key):
            yield leader

    async def __aenter__(self) -> AsyncHeld:
        return await self._lock.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._lock.__aexit__(kind, error, traceback)


async def read_leader(core: Core, key: str) -> Leader | None:
    answer = await core.call("locks.status", {"key": key}, Repeat.READ)
    for holder in answer["holders"]:
        return Leader(holder["client"], str((holder["meta"] or {}).get(VALUE, "")), holder["fencing_token"])
    return None


async def observe(core: Core, key: str) -> AsyncIterator[Leader | None]:
    async with LockWatch(core, key) as watch:
        seen: Leader | None = None
        is_first = True
        while True:
            leader = await read_leader(core, key)
            if is_first or leader != seen:
                is_first, seen = False, leader
                yield leader
            await watch.changed()
