"""Backing store `redis`: one Redis or Valkey for all nodes, or a Cluster of them (see `redis_servers`).

A key is a hash `<prefix><key>` with the fields `version` and `value` (JSON, so that people can read it, or bytes after a zero byte). A
deleted key stays for a while as a version without a value, so that a late write of an older version cannot restore it. A hash of a later
format will have a field `format`, which is read first: this release refuses the key, and does not overwrite it.

Calls are pipelined, and every answer counts for its own key: if Redis has something else under a key's name (another type, or a hash
without a number as its version), that key is refused and left as it is. In a Cluster, the keys of a primary that is away are refused,
and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha1

from redis.exceptions import NoScriptError, ResponseError

from dss_api import redis_url
from dss_api.errors import Refused
from dss_cache.backing_store import BatchedReads, KeyRefused, Stored
from dss_cache.redis_cluster import ClusterServers
from dss_cache.redis_servers import FAILURES, Command, OneServer, Servers

TIMEOUT_S = 1.0
CONNECTIONS_MAX = 50
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
#: How servers name the script once they have it.
_SHA = sha1(_WRITE_IF_NEWER.encode(), usedforsecurity=False).hexdigest()


class RedisStore(BatchedReads):
    """See the module's docstring. It connects on first use and reconnects when the connection is lost.

    Args:
        url: as `dss_api.redis_url` describes it.
        prefix: prefix of every key.
        timeout_s: of a connection attempt and of an answer.
        connections_max: at a time, to each server.
    """

    name = "redis"
    is_shared = True

    def __init__(self, url: str, prefix: str, timeout_s: float = TIMEOUT_S, connections_max: int = CONNECTIONS_MAX) -> None:
        super().__init__()
        self._prefix = prefix
        self._servers = _servers(redis_url.parse(url), timeout_s, connections_max)

    async def check(self) -> None:
        try:
            await self._servers.check()
        except FAILURES as error:
            raise _unavailable(error) from None

    def _parts(self, keys: list[str]) -> list[list[str]]:
        names = [self._prefix + key for key in keys]
        return [[keys[place] for place in places] for places in self._servers.parts(names)]

    async def _read_batch(self, keys: list[str]) -> dict[str, Stored | Refused]:
        answers = await self._servers.send([self._command(key, "HMGET", "format", "version", "value") for key in keys])
        found: dict[str, Stored | Refused] = {}
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, Exception):
                found[key] = self._refused(key, answer)
                continue
            of_format, version, value = answer
            if of_format is not None:
                newer = f"{WRONG_TYPE} format {of_format.decode(errors='replace')}, written by a newer release"
                found[key] = self._refused(key, ResponseError(newer))
            elif version is not None and version.isdigit():
                found[key] = Stored(key, int(version), value)
            elif version is not None:
                found[key] = self._refused(key, ResponseError(f"{WRONG_TYPE} the field `version` is not a number"))
        return found

    async def write(self, items: Sequence[Stored]) -> dict[str, Refused]:
        answers = await self._run_script(items, "EVALSHA", _SHA)
        # A server that has not had the script since its start, such as a replica that has just taken over.
        without = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if without:
            again = await self._run_script([items[place] for place in without], "EVAL", _WRITE_IF_NEWER)
            for place, answer in zip(without, again, strict=True):
                answers[place] = answer
        failed = [(item.key, answer) for item, answer in zip(items, answers, strict=True) if isinstance(answer, Exception)]
        refused = {key: self._refused(key, error) for key, error in failed}
        away = [refusal for refusal in refused.values() if not isinstance(refusal, KeyRefused)]
        if away and len(away) == len(items):
            raise away[0]
        return refused

    async def _run_script(self, items: Sequence[Stored], command: str, script: str) -> list[object]:
        commands = []
        for item in items:
            name = self._prefix + item.key
            values: tuple[int | bytes, ...] = (item.version,) if item.value is None else (item.version, item.value)
            commands.append(Command(name, (command, script, 1, name, *values)))
        return await self._servers.send(commands)

    def _command(self, key: str, name: str, *arguments: str) -> Command:
        return Command(self._prefix + key, (name, self._prefix + key, *arguments))

    def _refused(self, key: str, error: Exception) -> Refused:
        """What an error in place of an answer means: something about this key, or that its server cannot be used (no connection, no
        memory, a replica, no permission).
        """
        if WRONG_TYPE not in str(error):
            return _unavailable(error)
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
        await self._servers.close()


def _servers(url: redis_url.RedisUrl, timeout_s: float, connections_max: int) -> Servers:
    """What the address names. No connection is opened yet."""
    given = url.options.get("max_connections")
    connections_max = given if isinstance(given, int) else connections_max
    kind = ClusterServers if url.kind == "cluster" else OneServer
    return kind(url, timeout_s, connections_max)


def _unavailable(error: BaseException) -> Refused:
    return Refused("memory_unavailable", f"Redis: {str(error) or type(error).__name__}")
