"""The cache backend: `CACHES = {"default": {"BACKEND": "dss_django.cache.DSSCache", "LOCATION": ["http://127.0.0.1:8101"]}}`.

A `get` that starts after a `set` was answered, in any process, returns that value or a newer one. Nevertheless most reads are answered from
this process, by the client's near cache. Integers are stored as such, so that `incr` is atomic. Everything else is pickled, so a program
that can write to the cache can run code in the processes that read it, as with Django's other backends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import pickle
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, MEMCACHE_MAX_KEY_LENGTH, BaseCache
from django.core.exceptions import ImproperlyConfigured

from dss_client import (
    BackingStoreUnavailable,
    Client,
    Entry,
    Exists,
    Invalid,
    LockLost,
    LockNotHeld,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from dss_django.clients import OPTIONS, client_for

T = TypeVar("T")
log = logging.getLogger("dss_django.cache")

KEYS_PER_CALL = 1000
INTEGER_MAX = 2**63 - 1
#: What a cluster that cannot be used raises.
TROUBLE = (Unavailable, UnknownOutcome, BackingStoreUnavailable)
FILL_LEASE_S = 30.0

_BYTES_PER_NAME_MAX = 512
_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f]")
_MISSING = object()


class DSSCache(BaseCache):
    """See the module's docstring.

    Args:
        location: URLs of nodes, as for `dss_client.Client`.
        params: the settings. OPTIONS may have those of the client (`token`, `name`, `timeout`, `transport`, `traces`, and
            `near_cache`: True by default, False, or a dictionary with `max_items`, `max_bytes` and `lease_ms`) and:

            namespace: the beginning of all names in the cluster's cache; "django" by default.
            on_trouble: "raise" (the default), or "miss": while the cluster cannot be used, reads find nothing, and writes are
                dropped; each is logged, and `statistics` counts them. A value that was to be replaced may then be read later.
            pickle_protocol: the highest by default.
            single_flight: for how many seconds `get_or_set` waits for another process that computes the same value; 10 by default,
                0: it computes the value itself.

    Raises:
        ImproperlyConfigured
    """

    def __init__(self, location: str | Iterable[str], params: dict[str, Any]) -> None:
        super().__init__(params)
        options = dict(params.get("OPTIONS") or {})
        self._space = f"{options.pop('namespace', 'django')}/{quote(self.key_prefix, safe='')}/"
        # Django's options for caches that throw entries away by themselves.
        for name in ("MAX_ENTRIES", "CULL_FREQUENCY"):
            options.pop(name, None)
        self._on_trouble = options.pop("on_trouble", "raise")
        self._protocol = options.pop("pickle_protocol", pickle.HIGHEST_PROTOCOL)
        self._single_flight_s = options.pop("single_flight", 10.0)
        if self._on_trouble not in ("raise", "miss"):
            raise ImproperlyConfigured(f'`on_trouble` is "raise" or "miss", not {self._on_trouble!r}')
        if unknown := options.keys() - OPTIONS:
            raise ImproperlyConfigured(f"OPTIONS of DSSCache has no {', '.join(sorted(unknown))}")
        self._is_plain = self._plain_keys()
        self._client: Client = client_for(location or None, options)
        self._calls = self._client._client.cache
        self._near = self._client.near_cache
        self._missed_count = 0

    # --------------------------------------------------------- one key

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._run(self._add(self._name(key, version), self._stored(value, key), self._ttl(timeout)), False)

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return await self._await(self._add(self._name(key, version), self._stored(value, key), self._ttl(timeout)), False)

    async def _add(self, name: str, stored: int | bytes, ttl: float | None) -> bool:
        if ttl is not None and ttl <= 0:
            return not (await self._calls.entry(name)).found
        try:
            await self._calls.add(name, stored, ttl)
        except Exists:
            return False
        return True

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        name = self._name(key, version)
        # Without leaving this thread.
        if self._near is not None and (copy := self._near.read(name)) is not None:
            return _unpickled(copy.load())
        return _loaded(self._run(self._calls.entry(name), None), default)

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        name = self._name(key, version)
        if self._near is not None and (copy := self._near.read(name)) is not None:
            return _unpickled(copy.load())
        return _loaded(await self._await(self._calls.entry(name), None), default)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self._run(self._set(self._name(key, version), self._stored(value, key), self._ttl(timeout)), None)

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        await self._await(self._set(self._name(key, version), self._stored(value, key), self._ttl(timeout)), None)

    async def _set(self, name: str, stored: int | bytes, ttl: float | None) -> None:
        if ttl is not None and ttl <= 0:
            await self._calls.delete(name)
        else:
            await self._calls.put(name, stored, ttl)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._run(self._touch(self._name(key, version), self._ttl(timeout)), False)

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return await self._await(self._touch(self._name(key, version), self._ttl(timeout)), False)

    async def _touch(self, name: str, ttl: float | None) -> bool:
        if ttl is not None and ttl <= 0:
            return await self._calls.delete(name)
        return await self._calls.touch(name, ttl)

    def delete(self, key: Any, version: int | None = None) -> bool:
        return self._run(self._calls.delete(self._name(key, version)), False)

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        return await self._await(self._calls.delete(self._name(key, version)), False)

    def has_key(self, key: Any, version: int | None = None) -> bool:
        name = self._name(key, version)
        if self._near is not None and self._near.read(name) is not None:
            return True
        return self._run(self._has(name), False)

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        return await self._await(self._has(self._name(key, version)), False)

    async def _has(self, name: str) -> bool:
        return (await self._calls.entry(name)).found

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self._number(key, self._run(self._incr(self._name(key, version), delta), None))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return self._number(key, await self._await(self._incr(self._name(key, version), delta), None))

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await self.aincr(key, -delta, version)

    async def _incr(self, name: str, delta: int) -> int | None:
        try:
            return await self._calls.incr(name, delta, must_exist=True)
        except NotFound:
            return None
        except Invalid as error:
            raise TypeError(f"the value cannot be incremented: {error}") from None

    @staticmethod
    def _number(key: Any, value: int | None) -> int:
        if value is None:
            raise ValueError(f"Key '{key}' not found")
        return value

    # ------------------------------------------------------ several keys

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self._name(key, version): key for key in keys}
        found = self._read_near(names)
        if len(found) < len(names):
            found |= self._run(self._get_many([name for name in names if name not in found]), {})
        return {names[name]: _unpickled(stored) for name, stored in found.items()}

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self._name(key, version): key for key in keys}
        found = self._read_near(names)
        if len(found) < len(names):
            found |= await self._await(self._get_many([name for name in names if name not in found]), {})
        return {names[name]: _unpickled(stored) for name, stored in found.items()}

    def _read_near(self, names: Iterable[str]) -> dict[str, Any]:
        if self._near is None:
            return {}
        return {name: copy.load() for name in names if (copy := self._near.read(name)) is not None}

    async def _get_many(self, names: list[str]) -> dict[str, Any]:
        found = await asyncio.gather(*(self._calls.mget(part) for part in _parts(names)))
        return {name: stored for part in found for name, stored in part.items()}

    def set_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        return self._run(self._set_many(self._all_stored(data, version), self._ttl(timeout)), list(data))

    async def aset_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> list[Any]:
        return await self._await(self._set_many(self._all_stored(data, version), self._ttl(timeout)), list(data))

    async def _set_many(self, values: dict[str, int | bytes], ttl: float | None) -> list[Any]:
        if ttl is not None and ttl <= 0:
            await self._delete_many(list(values))
        else:
            await asyncio.gather(*(self._calls.mput(dict(part), ttl) for part in _parts(list(values.items()))))
        return []

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        self._run(self._delete_many([self._name(key, version) for key in keys]), None)

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await self._await(self._delete_many([self._name(key, version) for key in keys]), None)

    async def _delete_many(self, names: list[str]) -> None:
        await asyncio.gather(*(self._calls.mdelete(part) for part in _parts(names)))

    def clear(self) -> None:
        """Delete what has this cache's namespace and KEY_PREFIX, in all versions."""
        self._run(self._calls.clear(self._space), 0)

    async def aclear(self) -> None:
        await self._await(self._calls.clear(self._space), 0)

    # --------------------------------------------------------- get_or_set

    def get_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        """As Django's. If `default` is callable, one process computes it while the others wait for its value."""
        value = self.get(key, _MISSING, version)
        if value is not _MISSING:
            return value
        if not callable(default) or not self._single_flight_s:
            return super().get_or_set(key, default, timeout, version)
        lock = self._client.lock(self._name(key, version), ttl=FILL_LEASE_S, wait=self._single_flight_s)
        try:
            is_alone = lock.acquire()
        except TROUBLE as trouble:
            is_alone = self._missed(trouble, False)
        try:
            value = self.get(key, _MISSING, version)
            if value is _MISSING:
                value = default()
                if not self.add(key, value, timeout, version):
                    return self.get(key, value, version)
            return value
        finally:
            if is_alone:
                with contextlib.suppress(LockNotHeld, LockLost, *TROUBLE):
                    lock.release()

    async def aget_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> Any:
        value = await self.aget(key, _MISSING, version)
        if value is not _MISSING:
            return value
        return await sync_to_async(self.get_or_set, thread_sensitive=True)(key, default, timeout, version)

    # --------------------------------------------------------- statistics

    def statistics(self) -> dict[str, int]:
        """What the near cache of this process did (see `NearStatistics`), and `trouble`: calls that counted as a miss because the cluster
        could not be used. Caches with the same nodes and options share a near cache.
        """
        near = {} if self._near is None else msgspec.structs.asdict(self._near.statistics())
        return {**near, "trouble": self._missed_count}

    # ------------------------------------------------------------ helpers

    def _name(self, key: Any, version: int | None) -> str:
        """The name in the cluster's cache. A key that cannot be a name is hashed.

        Raises:
            ValueError: the key has a character that no UTF-8 has.
        """
        plain = self.make_key(key, version)
        if self._is_plain(plain):
            return self._space + plain
        name = self._space + self.make_and_validate_key(key, version)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the cache key {key!r} cannot be encoded: {error}") from None
        if _CONTROL_CHARACTER.search(name) or len(name.encode()) > _BYTES_PER_NAME_MAX:
            return f"{self._space}#{hashlib.sha256(name.encode()).hexdigest()}"
        return name

    def _plain_keys(self) -> Callable[[str], Any]:
        """What tells whether a key can be a name, and Django has nothing to say about it. Most keys are such keys."""
        if type(self).validate_key is not BaseCache.validate_key:
            return lambda key: False
        if type(self).make_and_validate_key is not BaseCache.make_and_validate_key or _CONTROL_CHARACTER.search(self._space):
            return lambda key: False
        length_max = min(MEMCACHE_MAX_KEY_LENGTH, _BYTES_PER_NAME_MAX - len(self._space.encode()))
        return re.compile(f"[!-~]{{1,{length_max}}}").fullmatch if length_max > 0 else lambda key: False

    def _ttl(self, timeout: Any) -> float | None:
        """In seconds; None: the value stays; 0 and less: it is over already."""
        if timeout == DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else float(timeout)

    def _all_stored(self, data: Mapping[Any, Any], version: int | None) -> dict[str, int | bytes]:
        return {self._name(key, version): self._stored(value, key) for key, value in data.items()}

    # Values are pickled in the caller's thread: pickling a model can read from the database, which the event loop must not.

    def _stored(self, value: Any, key: Any) -> int | bytes:
        if type(value) is int and abs(value) <= INTEGER_MAX:
            return value
        try:
            return pickle.dumps(value, self._protocol)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise pickle.PicklingError(f"the value of the cache key {key!r} cannot be pickled: {error}") from error

    def _run(self, work: Coroutine[Any, Any, T], missed: T) -> T:
        try:
            return self._client._run(work)
        except TROUBLE as trouble:
            return self._missed(trouble, missed)

    async def _await(self, work: Coroutine[Any, Any, T], missed: T) -> T:
        try:
            return await self._client._await(work)
        except TROUBLE as trouble:
            return self._missed(trouble, missed)

    def _missed(self, trouble: Exception, missed: T) -> T:
        if self._on_trouble == "raise":
            raise trouble
        self._missed_count += 1
        log.warning("the cache cannot be used: %s", trouble)
        return missed


def _parts(whole: list[T]) -> Iterator[list[T]]:
    return (whole[start : start + KEYS_PER_CALL] for start in range(0, len(whole), KEYS_PER_CALL))


def _loaded(entry: Entry | None, default: Any) -> Any:
    return default if entry is None or not entry.found else _unpickled(entry.value)


def _unpickled(stored: Any) -> Any:
    return pickle.loads(stored) if isinstance(stored, bytes) else stored
