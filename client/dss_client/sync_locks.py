"""Locks for programs without asyncio."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from types import EllipsisType, TracebackType
from typing import Any

from dss_client.acquiring import acquire
from dss_client.background import Background
from dss_client.errors import LockNotHeld, LockTimeout, WrongUse
from dss_client.held import AsyncHeld, leave_with
from dss_client.lock_spec import LockSpec
from dss_client.locks import locked, wait_of


class Lost:
    """Set when the lock is lost, like a `threading.Event`."""

    def __init__(self, held: AsyncHeld) -> None:
        self._held = held
        self._event = threading.Event()
        held.on_lost = self._event.set

    def is_set(self) -> bool:
        """Whether the lock is lost. It looks at the clock, so it is right immediately after the process was paused."""
        return self._held.is_lost

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the lock is lost. False: it was not, within `timeout` seconds."""
        return self._held.is_lost or self._event.wait(timeout) or self._held.is_lost


class Held:
    """A lock that this thread holds. `Lock` gives it to `with`.

    Attributes:
        lost: an event; other threads may look at it, too.
    """

    def __init__(self, client: Background, held: AsyncHeld, thread_local: bool) -> None:
        self._client = client
        self._held = held
        self._thread = threading.get_ident() if thread_local else None
        self._pid = os.getpid()
        self.lost = Lost(held)

    def __repr__(self) -> str:
        return repr(self._held)

    @property
    def keys(self) -> tuple[str, ...]:
        return self._held.keys

    @property
    def token(self) -> int:
        """The fencing token. Give it to the resource that the lock protects, and let it refuse smaller ones."""
        return self._held.token

    @property
    def tokens(self) -> Mapping[str, int]:
        """The fencing token of each key."""
        return self._held.tokens

    @property
    def name(self) -> str:
        """The owner, as the cluster shows it."""
        return self._held.name

    @property
    def remaining(self) -> float | None:
        """How many seconds the lease still lasts by this client's clock. None: the lock is held until it is released."""
        return self._held.remaining

    def release(self) -> None:
        """Give the lock back.

        Raises:
            LockNotHeld: it was released already, or another thread or process holds it.
            LockLost: it was lost before.
            DssError: no node answered. The lock ends with its lease.
        """
        self._check()
        self._client._run(self._held.release())

    def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """Make the lease longer by `additional_time` seconds, or exactly that long. Later renewals keep the length."""
        self._check()
        return self._client._run(self._held.extend(additional_time, replace_ttl))

    def reacquire(self) -> bool:
        """Start the lease again with the length that the lock was made with."""
        self._check()
        return self._client._run(self._held.reacquire())

    def owned(self) -> bool:
        """Ask the cluster whether the fencing token is still the holder's."""
        if self._held.is_over:
            return False
        return self._client._run(self._held.owned())

    def for_ack(self) -> list[dict[str, Any]]:
        """For `Message.ack`."""
        self._check()
        return self._held.for_ack()

    def released(self) -> None:
        """For `Message.ack`."""
        self._held.released()

    def _check(self) -> None:
        label = ", ".join(repr(key) for key in self.keys)
        if self._pid != os.getpid():
            raise LockNotHeld(f"the lock {label} is held by the process {self._pid}, from which this one was forked")
        if self._thread is not None and self._thread != threading.get_ident():
            raise LockNotHeld(f"the lock {label} is held by another thread; see `thread_local`")


class Lock:
    """A lock that can be acquired and released, again and again. With `thread_local`, each thread has its own grant.

    The names are those of redis-py. `with` raises `LockTimeout` where `acquire` returns False.
    """

    def __init__(self, client: Background, spec: LockSpec, thread_local: bool) -> None:
        self._client = client
        self._spec = spec
        self._thread_local = thread_local
        self._mine: Any = threading.local() if thread_local else _Shared()

    def __repr__(self) -> str:
        return f"<lock {', '.join(self._spec.keys)}>"

    @property
    def held(self) -> Held | None:
        """What this thread holds."""
        held: Held | None = getattr(self._mine, "held", None)
        return held

    @property
    def token(self) -> int | None:
        """The fencing token; None while it is not held."""
        return self.held.token if self.held is not None else None

    def acquire(self, blocking: bool = True, wait: float | EllipsisType | None = ...) -> bool:
        """Acquire the lock. False: another client holds it.

        Args:
            blocking: False: do not wait.
            wait: seconds, instead of those that the lock was made with.
        """
        try:
            self._acquire(wait_of(self._spec, blocking, wait))
        except LockTimeout:
            return False
        return True

    def release(self) -> None:
        """See `Held.release`."""
        held = self._require()
        self._mine.held = None
        held.release()

    def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """See `Held.extend`."""
        return self._require().extend(additional_time, replace_ttl)

    def reacquire(self) -> bool:
        """See `Held.reacquire`."""
        return self._require().reacquire()

    def owned(self) -> bool:
        """Whether this thread holds the lock, as the cluster knows it."""
        return self.held is not None and self.held.owned()

    def locked(self) -> bool:
        """Whether any client holds the lock (one of the locks)."""
        client = self._client
        return client._run(_locked(client, self._spec.keys))

    def __enter__(self) -> Held:
        return self._acquire(self._spec.wait)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        held, self._mine.held = self.held, None
        if held is not None:
            leave_with(held.release, held._held, error)

    def _acquire(self, wait: float | None) -> Held:
        if self.held is not None and not self.held._held.is_over:
            raise WrongUse(f"this thread holds {self!r} already through this object; make another one with `lock()`")
        owner = self._client._owner()
        held = self._client._run(_acquire(self._client, owner, self._spec, wait))
        self._mine.held = mine = Held(self._client, held, self._thread_local)
        return mine

    def _require(self) -> Held:
        if self.held is None:
            raise LockNotHeld(f"{self!r} is not held by this thread: it was never acquired here, or was released")
        return self.held


class _Shared:
    """What all threads see, in place of `threading.local`."""


async def _acquire(client: Background, owner: str, spec: LockSpec, wait: float | None) -> AsyncHeld:
    return await acquire(client._client._running(), client._client._owners, owner, spec, wait)


async def _locked(client: Background, keys: Iterable[str]) -> bool:
    return await locked(client._client._running(), keys)
