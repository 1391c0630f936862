"""The coherent cache for asyncio: a `get` that starts after a `put` was answered never returns an older value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dss_client.connection import ATTACHED, Bytes
from dss_client.core import Core, Repeat
from dss_client.entry import Entry, found_value
from dss_client.errors import WrongUse, refusal
from dss_client.near_client import Near


class AsyncCache:
    """The calls of the cache. A value is JSON, or bytes. `ttl` is in seconds; None: the value stays."""

    def __init__(self, core: Callable[[], Core], near: Near | None = None) -> None:
        self._core = core
        self._near = near

    async def put(self, key: str, value: Any, ttl: float | None = None) -> int:
        """Store a value. Returns its version."""
        return await self._change("cache.put", {"key": key, **_value(value), **_ttl(ttl)})

    async def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` if there is none."""
        if self._near is not None and (copy := self._near.read(key)) is not None:
            return copy.load()
        entry = await self.entry(key)
        return entry.value if entry.found else default

    async def entry(self, key: str) -> Entry:
        """The value with its version."""
        if self._near is not None:
            entry = (await self._near.entries(self._core(), (key,))).get(key)
            if entry is not None:
                return entry
        return _entry(key, await self._core().call("cache.get", {"key": key}, Repeat.READ))

    async def cas(self, key: str, value: Any, version: int, ttl: float | None = None) -> int:
        """Store a value only if the key still has this version; 0: only if it has no value. Returns the new version.

        Raises:
            VersionConflict: it has another `version`.
        """
        return await self._change("cache.put", {"key": key, **_value(value), "if_version": version, **_ttl(ttl)})

    async def add(self, key: str, value: Any, ttl: float | None = None) -> int:
        """Store a value only if the key has none. Returns its version.

        Raises:
            Exists: it has one.
        """
        return await self._change("cache.add", {"key": key, **_value(value), **_ttl(ttl)})

    async def incr(self, key: str, delta: int = 1, ttl: float | None = None, must_exist: bool = False) -> int:
        """Add to an integer; a key without a value counts as 0. Returns the sum. With `ttl` None, an earlier one stays.

        Raises:
            NotFound: the key has no value, with `must_exist`.
        """
        fields: dict[str, Any] = {"key": key, "delta": delta, **_ttl(ttl)}
        if must_exist:
            fields["must_exist"] = True
        return int((await self._core().call("cache.incr", fields, Repeat.NUMBERED))["value"])

    async def touch(self, key: str, ttl: float | None = None) -> bool:
        """Let the value expire `ttl` from now; None: it stays. False: there is none."""
        return bool((await self._core().call("cache.touch", {"key": key, **_ttl(ttl)}, Repeat.NUMBERED))["touched"])

    async def delete(self, key: str, version: int | None = None) -> bool:
        """Delete the value, or only this version of it. False: there was none.

        Raises:
            VersionConflict: it has another `version`.
        """
        fields = {"key": key} if version is None else {"key": key, "if_version": version}
        return bool((await self._core().call("cache.delete", fields, Repeat.NUMBERED))["deleted"])

    async def mdelete(self, keys: Iterable[str]) -> int:
        """Delete values, each independently. Returns how many there were.

        Raises:
            Refused: the first refusal; the other values may be deleted.
        """
        answer = await self._core().call("cache.mdelete", {"keys": list(keys)}, Repeat.NUMBERED)
        for item in answer["items"]:
            if not item["ok"]:
                raise refusal(409, item)
        return sum(item["deleted"] for item in answer["items"])

    async def clear(self, prefix: str) -> int:
        """Delete the values of all keys that begin with `prefix`; "": all. Returns how many there were.

        A value that is stored after the call began stays.
        """
        fields: dict[str, Any] = {"prefix": prefix}
        deleted = 0
        while True:
            answer = await self._core().call("cache.clear", fields, Repeat.HARMLESS)
            deleted += answer["deleted"]
            if not answer["remaining"]:
                return int(deleted)
            fields["up_to_version"] = answer["up_to_version"]

    async def mget(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that have one."""
        near: dict[str, Entry] = {}
        keys = list(keys)
        if self._near is not None:
            near = await self._near.entries(self._core(), keys)
        values = {key: entry.value for key, entry in near.items() if entry.found}
        keys = [key for key in keys if key not in near]
        if keys or not near:
            answer = await self._core().call("cache.mget", {"keys": keys}, Repeat.READ)
            values |= {item["key"]: found_value(item) for item in answer["items"] if item["found"]}
        return values

    async def mput(self, values: Mapping[str, Any], ttl: float | None = None) -> dict[str, int]:
        """Store values, each independently. Returns their versions.

        Raises:
            Refused: the first refusal; the other values may be stored.
        """
        items = [{"key": key, **_value(value), **_ttl(ttl)} for key, value in values.items()]
        answer = await self._core().call("cache.mput", {"items": items}, Repeat.NUMBERED)
        for item in answer["items"]:
            if not item["ok"]:
                raise refusal(429 if item.get("code") == "over_limit" else 409, item)
        return {item["key"]: item["version"] for item in answer["items"]}

    async def trace(self, key: str, limit: int = 100) -> list[dict[str, Any]]:
        """The last transitions of the key's lines on every node, latest first."""
        answer = await self._core().call("cache.trace", {"key": key, "limit": limit}, Repeat.READ)
        return list(answer["transitions"])

    async def _change(self, operation: str, fields: dict[str, Any]) -> int:
        return int((await self._core().call(operation, fields, Repeat.NUMBERED))["version"])


def _ttl(ttl: float | None) -> dict[str, int]:
    if ttl is None:
        return {}
    if not ttl > 0:
        raise WrongUse(f"`ttl` is in seconds and more than 0, or None, not {ttl!r}")
    return {"ttl_ms": max(1, round(ttl * 1000))}


def _value(value: Any) -> dict[str, Any]:
    """JSON, or bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"value": Bytes(value), "encoding": ATTACHED}
    return {"value": value}


def _entry(key: str, answer: dict[str, Any]) -> Entry:
    return Entry(key, found_value(answer), answer["found"], answer.get("version") or 0, answer["hit"], answer.get("state") or "I")
