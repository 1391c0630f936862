"""What a lock is made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dss_client.errors import WrongUse


class LockSpec:
    """What a lock is made with."""

    def __init__(
        self,
        keys: Iterable[str],
        *,
        is_multiple: bool,
        ttl: float | None,
        wait: float | None,
        shared: bool,
        renew: bool,
        lock_delay: float,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        self.keys = tuple(dict.fromkeys(keys))
        if not self.keys or not all(isinstance(key, str) for key in self.keys):
            raise WrongUse("a lock has one or more keys, which are strings")
        if ttl is not None and not ttl > 0:
            raise WrongUse(f"`ttl` is in seconds and more than 0, or None, not {ttl!r}")
        if wait is not None and not wait >= 0:
            raise WrongUse(f"`wait` is in seconds, or None, not {wait!r}")
        self._is_multiple = is_multiple
        self.ttl_ms = 0 if ttl is None else max(1, round(ttl * 1000))
        self.wait = wait
        self.shared = shared
        self.renew = renew
        self._lock_delay_ms = round(lock_delay * 1000)
        self._meta = meta

    def named(self, client: str) -> dict[str, Any]:
        return {"keys": list(self.keys), "client": client} if self._is_multiple else {"key": self.keys[0], "client": client}

    def request(self, client: str) -> dict[str, Any]:
        request = {**self.named(client), "ttl_ms": self.ttl_ms}
        if self.shared:
            request["mode"] = "shared"
        if self._lock_delay_ms:
            request["lock_delay_ms"] = self._lock_delay_ms
        if self._meta is not None:
            request["meta"] = self._meta
        return request
