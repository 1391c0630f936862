"""The servers behind `REDIS_URL`: commands for single keys go to the server that has the key, in pipelines.

An address names one server, or the primary that Sentinels know (`OneServer`), or a Cluster (`redis_cluster.ClusterServers`). All three
give an answer for each command; where there is none, an exception is in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import redis.asyncio
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import MovedError, RedisClusterException, RedisError

from dss_api.redis_url import RedisUrl

#: What redis-py raises when servers cannot be used. RedisClusterException is no RedisError.
FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)


class Command(NamedTuple):
    """A command that concerns one key."""

    key: str
    arguments: tuple[str | int | bytes, ...]


class Servers(Protocol):
    """Where commands go."""

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, in the order of the commands; an exception in place of each answer that is missing.

        A command may be carried out twice: repeating it must change nothing.
        """

    async def check(self) -> None:
        """Check that every key could be read and written.

        Raises:
            one of FAILURES: not all, or none.
        """

    async def close(self) -> None:
        """Close the connections."""


def connection_options(url: RedisUrl, timeout_s: float) -> dict[str, Any]:
    """Arguments that all clients of redis-py take. What the address says goes before the settings."""
    options = dict(url.options)
    options.pop("max_connections", None)
    options.setdefault("socket_timeout", timeout_s)
    options.setdefault("socket_connect_timeout", timeout_s)
    return {
        **options,
        "username": url.username or None,
        "password": url.password or None,
        "ssl": url.is_tls,
        "protocol": 2,
        "retry": redis.asyncio.retry.Retry(NoBackoff(), 0),
    }


class OneServer:
    """One server, or the primary that Sentinels name. It connects on first use and reconnects when the connection is lost.

    Args:
        timeout_s: of a connection attempt and of an answer.
        connections_max: at a time; further calls wait.
    """

    def __init__(self, url: RedisUrl, timeout_s: float, connections_max: int) -> None:
        self._free = asyncio.Semaphore(connections_max)
        self._service = url.service
        self._sentinel: Sentinel | None = None
        options = connection_options(url, timeout_s)
        if url.kind == "sentinel":
            # The Sentinels have users and passwords of their own. Timeouts and TLS are the same.
            shared = ("socket_", "ssl")
            sentinel_options = {name: value for name, value in options.items() if name.startswith(shared)}
            sentinel_options |= {"username": url.sentinel_username or None, "password": url.sentinel_password or None}
            sentinel_options |= {"protocol": 2, "retry": options["retry"]}
            self._sentinel = Sentinel(url.hosts, sentinel_kwargs=sentinel_options)
            self._client: Any = self._sentinel.master_for(url.service, db=url.database, **options)
        elif url.path:
            options.pop("ssl")
            self._client = redis.asyncio.Redis(unix_socket_path=url.path, db=url.database, **options)
        else:
            ((host, port),) = url.hosts
            self._client = redis.asyncio.Redis(host=host, port=port, db=url.database, **options)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        async with self._free:
            try:
                async with self._client.pipeline(transaction=False) as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command.arguments)
                    answers: list[Any] = await pipeline.execute(raise_on_error=False)
            except FAILURES as error:
                return [self._explained(error)] * len(commands)
        return [self._explained(answer) if isinstance(answer, MovedError) else answer for answer in answers]

    async def check(self) -> None:
        async with self._free:
            try:
                await self._client.ping()
            except MasterNotFoundError as error:
                raise self._explained(error) from None

    async def close(self) -> None:
        await self._client.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    def _explained(self, error: Exception) -> Exception:
        """The error, in words that say what to do where those of redis-py do not."""
        if isinstance(error, MasterNotFoundError):
            return RedisError(f"no Sentinel of REDIS_URL can be reached and knows a primary with the name {self._service}")
        if isinstance(error, MovedError):
            return RedisError("the server belongs to a Cluster: REDIS_URL must begin with redis+cluster:// or rediss+cluster://")
        return error
