"""Locks for asyncio: the object with the names of redis-py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import EllipsisType, TracebackType

from dss_client.acquiring import acquire
from dss_client.core import Core, Repeat
from dss_client.errors import LockNotHeld, LockTimeout, WrongUse
from dss_client.held import AsyncHeld, leave
from dss_client.lock_owners import Owners
from dss_client.lock_spec import LockSpec


class AsyncLock:
    """A lock that can be acquired and released, again and again. It holds one grant at a time.

    The names are those of redis-py. `async with` raises `LockTimeout` where `acquire` returns False.
    """

    def __init__(self, core: Callable[[], Core], owners: Callable[[], Owners], spec: LockSpec) -> None:
        self._core = core
        self._owners = owners
        self._spec = spec
        self.held: AsyncHeld | None = None

    @property
    def token(self) -> int | None:
        """The fencing token; None while it is not held."""
        return self.held.token if self.held is not None else None

    async def acquire(self, blocking: bool = True, wait: float | EllipsisType | None = ...) -> bool:
        """Acquire the lock. False: another client holds it.

        Args:
            blocking: False: do not wait.
            wait: seconds, instead of those that the lock was made with.
        """
        try:
            await self._acquire(wait_of(self._spec, blocking, wait))
        except LockTimeout:
            return False
        return True

    async def release(self) -> None:
        """See `AsyncHeld.release`."""
        held = self._require()
        self.held = None
        await held.release()

    async def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """See `AsyncHeld.extend`."""
        return await self._require().extend(additional_time, replace_ttl)

    async def reacquire(self) -> bool:
        """See `AsyncHeld.reacquire`."""
        return await self._require().reacquire()

    async def owned(self) -> bool:
        """Whether this object holds the lock, as the cluster knows it."""
        return self.held is not None and await self.held.owned()

    async def locked(self) -> bool:
        """Whether any client holds the lock (one of the locks)."""
        return await locked(self._core(), self._spec.keys)

    async def __aenter__(self) -> AsyncHeld:
        return await self._acquire(self._spec.wait)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        held, self.held = self.held, None
        if held is not None:
            await leave(held.release, held, error)

    async def _acquire(self, wait: float | None) -> AsyncHeld:
        if self.held is not None:
            if not self.held.is_over:
                raise WrongUse("this object holds the lock already; make another one with `lock()` for each task")
            self.held = None
        owners = self._owners()
        self.held = await acquire(self._core(), owners, owners.of_task(), self._spec, wait)
        return self.held

    def _require(self) -> AsyncHeld:
        if self.held is None:
            raise LockNotHeld(f"the lock {', '.join(self._spec.keys)} is not held by this object")
        return self.held


def wait_of(spec: LockSpec, blocking: bool, wait: float | EllipsisType | None) -> float | None:
    if not blocking:
        return 0.0
    return spec.wait if isinstance(wait, EllipsisType) else wait


async def locked(core: Core, keys: Iterable[str]) -> bool:
    for key in keys:
        answer = await core.call("locks.status", {"key": key}, Repeat.READ)
        if answer["locked"]:
            return True
    return False
