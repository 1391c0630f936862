"""Backing store `redis`: one Redis or Valkey for all nodes.

A key is a hash `<prefix><key>` with the fields `version` and `value` (JSON), so that people can read it. A deleted key stays
for a while as a version without a value, so that a late write of an older version cannot restore it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from dss_api.errors import Refused
from dss_cache.backing_store import BatchedReads, Stored

TIMEOUT_S = 1.0
#: Longer than any write-back can be late, but short enough that deleted keys do not accumulate.
TOMBSTONE_MS = 3600 * 1000

# Versions are below 2^53, so Lua's numbers hold them exactly.
_WRITE_IF_NEWER = """
local current = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
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

    async def _read_batch(self, keys: list[str]) -> dict[str, Stored]:
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hmget(self._prefix + key, "version", "value")
                answers = await pipeline.execute()
            return {
                key: Stored(key, int(version), value)
                for key, (version, value) in zip(keys, answers, strict=True)
                if version is not None
            }
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            raise _unavailable(error) from None

    async def write(self, items: Sequence[Stored]) -> None:
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                for item in items:
                    args: list[int | bytes] = [item.version] if item.value is None else [item.version, item.value]
                    await self._write_if_newer(keys=[self._prefix + item.key], args=args, client=pipeline)
                await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise _unavailable(error) from None

    def keep(self, item: Stored) -> None:
        """Nothing to do: the owner of a dirty value writes it for all nodes."""

    async def flush(self) -> None:
        """Nothing is buffered here."""

    async def dump(self) -> list[bytes]:
        return []

    async def load(self, data: memoryview) -> None:
        """Nothing to do: every node uses the same Redis."""

    async def close(self) -> None:
        await self._client.aclose()


def _unavailable(error: BaseException) -> Refused:
    return Refused("memory_unavailable", f"Redis: {error or type(error).__name__}")
