"""Backing store `redis`: one Redis or Valkey for all nodes.

A key is a hash `<prefix><key>` with the fields `version` and `value` (JSON, so that people can read it, or bytes after a zero byte). A
deleted key stays for a while as a version without a value, so that a late write of an older version cannot restore it. A hash of a later
format will have a field `format`, which is read first: this release refuses the key, and does not overwrite it.

Calls are pipelined, and every answer counts for its own key: if Redis has something else under a key's name (another type, or a hash
without a number as its version), that key is refused and left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from dss_api.errors import Refused
from dss_cache.backing_store import BatchedReads, KeyRefused, Stored

TIMEOUT_S = 1.0
#: Longer than any write-back can be late, but short enough that deleted keys do not accumulate.
TOMBSTONE_MS = 3600 * 1000

#: of the hashes. Format 1 has no field `format`.
FORMAT = 1
#: How Redis begins the error for a key of another type.
WRONG_TYPE = "WRONGTYPE"

# Versions are below 2^53, so Lua's numbers hold them exactly.
_WRITE_IF_NEWER = """
local stored = redis.call('HMGET', KEYS[1], 'format', 'version')
if stored[1] then return redis.error_reply('WRONGTYPE format ' .. stored[1] .. ', written by a newer release') end
local current = tonumber(stored[2] or '0')
if not current then return redis.error_reply('WRONGTYPE the field `version` is not a number') end
if current >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1])
if #ARGV == 2 then
  redis.call('HSET', KEYS[1], 'value', ARGV[2])
  redis.call('PERSIST', KEYS[1])
else
  redis.call('HDEL', KEYS[1], 'value')
  redis.call('PEXPIRE', KEYS[1], TOMBSTONE_MS)
end
return 1
""".replace("TOMBSTONE_MS", str(TOMBSTONE_MS))


class RedisStore(BatchedReads):
    """See the module's docstring. It connects on first use and reconnects when the connection is lost.

    Args:
        url: `redis://host:port/db`.
        prefix: prefix of every key.
    """

    name = "redis"
    is_shared = True

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._client: Any = redis.asyncio.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, protocol=2, retry=None
        )
        self._write_if_newer = self._client.register_script(_WRITE_IF_NEWER)

    async def check(self) -> None:
        try:
            await self._client.ping()
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable(error) from None

    async def _read_batch(self, keys: list[str]) -> dict[str, Stored | KeyRefused]:
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hmget(self._prefix + key, "format", "version", "value")
                answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable(error) from None
        found: dict[str, Stored | KeyRefused] = {}
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, Exception):
                found[key] = self._key_refused(key, answer)
                continue
            of_format, version, value = answer
            if of_format is not None:
                newer = f"{WRONG_TYPE} format {of_format.decode(errors='replace')}, written by a newer release"
                found[key] = self._key_refused(key, ResponseError(newer))
            elif version is not None and version.isdigit():
                found[key] = Stored(key, int(version), value)
            elif version is not None:
                found[key] = self._key_refused(key, ResponseError(f"{WRONG_TYPE} the field `version` is not a number"))
        return found

    async def write(self, items: Sequence[Stored]) -> dict[str, KeyRefused]:
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for item in items:
                    args: list[int | bytes] = [item.version] if item.value is None else [item.version, item.value]
                    await self._write_if_newer(keys=[self._prefix + item.key], args=args, client=pipeline)
                answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable(error) from None
        failed = [(item.key, answer) for item, answer in zip(items, answers, strict=True) if isinstance(answer, Exception)]
        return {key: self._key_refused(key, error) for key, error in failed}

    def _key_refused(self, key: str, error: Exception) -> KeyRefused:
        """What an error in a pipeline's answers means for its key.

        Raises:
            Refused: it is not the key's fault (no memory, a replica, no permission).
        """
        if WRONG_TYPE not in str(error):
            raise _unavailable(error)
        return KeyRefused(
            f"Redis has something else under the name `{self._prefix}{key}` ({error}); delete it there, or set CACHE_BACKING_PREFIX"
        )

    def keep(self, item: Stored) -> None:
        """Nothing to do: the owner of a dirty value writes it for all nodes."""

    async def flush(self) -> None:
        """Nothing is buffered here."""

    async def dump(self) -> Iterable[bytes]:
        return []

    async def load(self, data: memoryview) -> None:
        """Nothing to do: every node uses the same Redis."""

    async def close(self) -> None:
        await self._client.aclose()


def _unavailable(error: BaseException) -> Refused:
    return Refused("memory_unavailable", f"Redis: {error or type(error).__name__}")
