"""A lock of tooz: a lock of the cluster, renewed in the background while it is held."""

from __future__ import annotations

import threading
from typing import Any

from tooz import locking
from tooz.utils import convert_blocking

from dss_client.acquiring import acquire
from dss_client.errors import LockLost, LockTimeout
from dss_client.held import AsyncHeld
from dss_client.lock_spec import LockSpec
from dss_tooz.link import Link, translated

REASON = "break_() of tooz"


class DssLock(locking.Lock):
    """Exclusive or shared. Each acquisition has an owner of its own: another one waits, also in the same thread."""

    def __init__(self, link: Link, name: bytes, key: str, ttl_s: float) -> None:
        super().__init__(name)
        self._link = link
        self._key = key
        self._ttl_s = ttl_s
        self._guard = threading.Lock()
        self._held: list[AsyncHeld] = []

    @property
    def acquired(self) -> bool:
        return self._newest() is not None

    def _newest(self, take: bool = False) -> AsyncHeld | None:
        """The newest acquisition that is not over. `take`: it is being released."""
        with self._guard:
            self._held = [held for held in self._held if not held.is_over]
            if not self._held:
                return None
            return self._held.pop() if take else self._held[-1]

    @translated
    def acquire(self, blocking: Any = True, shared: bool = False, timeout: float | None = None) -> bool:
        blocking, timeout = convert_blocking(blocking, timeout)
        wait = timeout if blocking else 0.0
        spec = LockSpec([self._key], is_multiple=False, ttl=self._ttl_s, wait=wait, shared=shared, renew=True, lock_delay=0.0)
        try:
            held = self._link.run(self._acquire(spec))
        except LockTimeout:
            return False
        with self._guard:
            self._held = [*(one for one in self._held if not one.is_over), held]
        return True

    async def _acquire(self, spec: LockSpec) -> AsyncHeld:
        client = self._link.client
        return await acquire(client._running(), client._owners, client._owners.make(), spec, spec.wait)

    @translated
    def release(self) -> bool:
        held = self._newest(take=True)
        if held is None:
            return False
        try:
            self._link.run(held.release())
        except LockLost:
            return False
        return True

    @translated
    def is_still_owner(self) -> bool:
        held = self._newest()
        return held is not None and self._link.run(held.owned())

    @translated
    def break_(self) -> bool:
        """Needs a token with the scope `operate`."""
        answer = self._link.run(self._link.client.call("locks.force_release", key=self._key, reason=REASON))
        return bool(answer["released"])
