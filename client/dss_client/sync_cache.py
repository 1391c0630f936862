"""The cache for programs without asyncio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dss_client.background import Background
from dss_client.cache import AsyncCache
from dss_client.entry import Entry


class Cache:
    """The calls of the cache. A value is JSON, or bytes. `ttl` is in seconds; None: the value stays."""

    def __init__(self, client: Background, cache: AsyncCache) -> None:
        self._client = client
        self._cache = cache
        self._near = cache._near

    def put(self, key: str, value: Any, ttl: float | None = None) -> int:
        """Store a value. Returns its version."""
        return self._client._run(self._cache.put(key, value, ttl))

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` if there is none."""
        if self._near is not None and (copy := self._near.read(key)) is not None:
            return copy.load()
        return self._client._run(self._cache.get(key, default))

    def entry(self, key: str) -> Entry:
        """The value with its version."""
        if self._near is not None and (copy := self._near.read(key)) is not None:
            return Entry(key, copy.load(), True, copy.version, True, "S")
        return self._client._run(self._cache.entry(key))

    def cas(self, key: str, value: Any, version: int, ttl: float | None = None) -> int:
        """Store a value only if the key still has this version; 0: only if it has no value. Returns the new version.

        Raises:
            VersionConflict: it has another `version`.
        """
        return self._client._run(self._cache.cas(key, value, version, ttl))

    def add(self, key: str, value: Any, ttl: float | None = None) -> int:
        """Store a value only if the key has none. Returns its version.

        Raises:
            Exists: it has one.
        """
        return self._client._run(self._cache.add(key, value, ttl))

    def incr(self, key: str, delta: int = 1, ttl: float | None = None, must_exist: bool = False) -> int:
        """Add to an integer; a key without a value counts as 0. Returns the sum. With `ttl` None, an earlier one stays.

        Raises:
            NotFound: the key has no value, with `must_exist`.
        """
        return self._client._run(self._cache.incr(key, delta, ttl, must_exist))

    def touch(self, key: str, ttl: float | None = None) -> bool:
        """Let the value expire `ttl` from now; None: it stays. False: there is none."""
        return self._client._run(self._cache.touch(key, ttl))

    def delete(self, key: str, version: int | None = None) -> bool:
        """Delete the value, or only this version of it. False: there was none.

        Raises:
            VersionConflict: it has another `version`.
        """
        return self._client._run(self._cache.delete(key, version))

    def mdelete(self, keys: Iterable[str]) -> int:
        """Delete values, each independently. Returns how many there were.

        Raises:
            Refused: the first refusal; the other values may be deleted.
        """
        return self._client._run(self._cache.mdelete(keys))

    def clear(self, prefix: str) -> int:
        """Delete the values of all keys that begin with `prefix`; "": all. Returns how many there were.

        A value that is stored after the call began stays.
        """
        return self._client._run(self._cache.clear(prefix))

    def mget(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that have one."""
        return self._client._run(self._cache.mget(keys))

    def mput(self, values: Mapping[str, Any], ttl: float | None = None) -> dict[str, int]:
        """Store values, each independently. Returns their versions.

        Raises:
            Refused: the first refusal; the other values may be stored.
        """
        return self._client._run(self._cache.mput(values, ttl))

    def trace(self, key: str, limit: int = 100) -> list[dict[str, Any]]:
        """The last transitions of the key's lines on every node, latest first."""
        return self._client._run(self._cache.trace(key, limit))
