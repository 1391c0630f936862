"""Elections, semaphores, barriers and rate limits for programs without asyncio."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from types import EllipsisType, TracebackType

from dss_client.acquiring import acquire
from dss_client.background import Background
from dss_client.barrier import AsyncBarrier, AsyncDoubleBarrier
from dss_client.election import AsyncElection, Leader
from dss_client.errors import LockNotHeld, LockTimeout, WrongUse
from dss_client.held import AsyncHeld, leave_with
from dss_client.rate_limit import AsyncRateLimit
from dss_client.semaphore import SemaphoreSpec, acquire_permit, permit_holders
from dss_client.sync_locks import Held


class Election:
    """An election. `with` waits until this candidate is elected, and gives its term (a `Held`).

    All threads share the term: the one that watches `lost` need not be the one that was elected.
    """

    def __init__(self, client: Background, election: AsyncElection) -> None:
        self._client = client
        self._election = election
        self._term: Held | None = None

    @property
    def term(self) -> Held | None:
        """The term of this candidate; None: it is not elected."""
        return self._term

    def campaign(self, wait: float | EllipsisType | None = ...) -> bool:
        """Wait until this candidate is elected. False: it was not, within `wait` seconds.

        Args:
            wait: seconds, instead of those that the election was made with; None: without a limit.
        """
        try:
            self._elect(self._election.spec.wait if isinstance(wait, EllipsisType) else wait)
        except LockTimeout:
            return False
        return True

    def resign(self) -> None:
        """End the term. The next candidate is elected immediately.

        Raises:
            LockNotHeld: this candidate is not elected.
            LockLost: the term was lost before.
        """
        term, self._term = self._term, None
        if term is None:
            raise LockNotHeld("this candidate is not elected")
        term.release()

    def leader(self) -> Leader | None:
        """Who leads now."""
        return self._client._run(self._election.leader())

    def candidates(self) -> list[str]:
        """Those that wait, in order, by the names that the cluster shows (the first 100 or so)."""
        return self._client._run(self._election.candidates())

    def observe(self) -> Iterator[Leader | None]:
        """The present leader, then each later one; None while there is none. Terms that end quickly may be left out."""
        leaders = self._election.observe()
        try:
            while True:
                yield self._client._run(_next(leaders))
        finally:
            self._client._run(_close(leaders))

    def __enter__(self) -> Held:
        return self._elect(self._election.spec.wait)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        term, self._term = self._term, None
        if term is not None:
            leave_with(term.release, term._held, error)

    def _elect(self, wait: float | None) -> Held:
        if self._term is not None and not self._term._held.is_over:
            raise WrongUse("this candidate is elected already; make another one with `election()`")
        client, spec = self._client, self._election.spec
        owner = client._owner()

        async def elect() -> AsyncHeld:
            return await acquire(client._client._running(), client._client._owners, owner, spec, wait)

        self._term = term = Held(client, client._run(elect()), thread_local=False)
        return term


class Semaphore:
    """A semaphore. `with` acquires a permit (a `Held`). Any number of threads may share the object."""

    def __init__(self, client: Background, spec: SemaphoreSpec) -> None:
        self._client = client
        self._spec = spec
        self._local = threading.local()

    def acquire(self, wait: float | EllipsisType | None = ...) -> Held:
        """Acquire a permit. Its `release` gives it back, in any thread.

        Args:
            wait: seconds, instead of those that the semaphore was made with; None: without a limit; 0: do not wait.

        Raises:
            LockTimeout: all permits are held. `holders` has them.
        """
        client, spec, owner = self._client, self._spec, self._client._owner()

        async def acquire() -> AsyncHeld:
            inner = client._client
            return await acquire_permit(inner._running(), inner._owners, owner, spec, spec.wait_of(wait))

        return Held(client, client._run(acquire()), thread_local=False)

    def holders(self) -> dict[str, str]:
        """The permits that are held, and by whom."""
        client, spec = self._client, self._spec

        async def read() -> dict[str, str]:
            return await permit_holders(client._client._running(), spec)

        return client._run(read())

    def __enter__(self) -> Held:
        permit = self.acquire()
        self._entered.append(permit)
        return permit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        permit = self._entered.pop()
        leave_with(permit.release, permit._held, error)

    @property
    def _entered(self) -> list[Held]:
        """Of this thread; the last one is left first."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.pid = os.getpid()
            self._local.entered = []
        entered: list[Held] = self._local.entered
        return entered


class Barrier:
    """A barrier. Any number of threads may share the object: each that waits is a party."""

    def __init__(self, client: Background, barrier: AsyncBarrier) -> None:
        self._client = client
        self._barrier = barrier

    @property
    def parties(self) -> int:
        """How many have to come."""
        return self._barrier.parties

    def wait(self, wait: float | EllipsisType | None = ...) -> int:
        """Wait until as many parties as the barrier has are here. Returns a number from 0, another one for each of them.

        Args:
            wait: seconds, instead of those that the barrier was made with; None: without a limit.

        Raises:
            BarrierTimeout: too few came.
            LockLost: this process was paused or cut off for too long.
        """
        return self._client._run(self._barrier.wait(wait))


class DoubleBarrier:
    """A barrier at the beginning and at the end of a block: `with` waits for all parties, and its end waits for them again.

    A party that crashes in the block has left. The object is for one thread at a time.
    """

    def __init__(self, client: Background, barrier: AsyncDoubleBarrier) -> None:
        self._client = client
        self._barrier = barrier

    def enter(self, wait: float | EllipsisType | None = ...) -> int:
        """Wait until all parties are here; see `Barrier.wait`."""
        return self._client._run(self._barrier.enter(wait))

    def leave(self, wait: float | EllipsisType | None = ...) -> None:
        """Wait until all parties have left.

        Raises:
            BarrierTimeout: some are still there.
            LockLost: this party was lost before, and the others may not have waited for it.
        """
        self._client._run(self._barrier.leave(wait))

    def __enter__(self) -> Held:
        return Held(self._client, self._client._run(self._barrier.__aenter__()), thread_local=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._client._run(self._barrier.__aexit__(kind, error, traceback))


class RateLimit:
    """A rate limit. Any number of threads may share the object."""

    def __init__(self, client: Background, limit: AsyncRateLimit) -> None:
        self._client = client
        self._limit = limit

    def acquire(self, tokens: int = 1, wait: float | EllipsisType | None = ...) -> None:
        """Take tokens, and wait until they are due.

        Args:
            tokens: at most `burst`.
            wait: for how many seconds at most, instead of what the limit was made with; None: without a limit.

        Raises:
            RateLimited: they would be due later. Nothing was taken. `retry_after` has the seconds.
        """
        self._client._run(self._limit.acquire(tokens, wait))

    def try_acquire(self, tokens: int = 1) -> bool:
        """Take tokens if they are due now."""
        return self._client._run(self._limit.try_acquire(tokens))


async def _next(leaders: AsyncIterator[Leader | None]) -> Leader | None:
    return await anext(leaders)


async def _close(leaders: AsyncIterator[Leader | None]) -> None:
    close = getattr(leaders, "aclose", None)
    if close is not None:
        await close()
