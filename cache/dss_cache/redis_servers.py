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
from redis.exceptions import ConnectionError as NotConnected
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

    def parts(self, keys: Sequence[str]) -> list[list[int]]:
        """The places of keys that the same server has. None has to wait for a server of others."""

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


class AllInUse(NotConnected):
    """No connection was free in time. It says nothing about the server."""


class Permits:
    """Connections to one server that may be in use at a time.

    Args:
        count: of them.
        timeout_s: how long a call waits for one that is free.
    """

    def __init__(self, count: int, timeout_s: float) -> None:
        self._count = count
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(count)

    async def __aenter__(self) -> None:
        """
        Raises:
            AllInUse: none became free in time.
        """
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise AllInUse(f"all {self._count} connections are in use (DSS_CACHE_REDIS_CONNECTIONS_MAX)") from None

    async def __aexit__(self, *_: object) -> None:
        self._free.release()


class OneServer:
    """One server, or the primary that Sentinels name. It connects on first use and reconnects when the connection is lost.

    Args:
        timeout_s: of a connection attempt and of an answer.
        connections_max: at a time; further calls wait, for `timeout_s` at most.
    """

    def __init__(self, url: RedisUrl, timeout_s: float, connections_max: int) -> None:
        self._permits = Permits(connections_max, timeout_s)
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
        try:
            async with self._permits, self._client.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command.arguments)
                answers: list[Any] = await pipeline.execute(raise_on_error=False)
        except FAILURES as error:
            return [self._explained(error)] * len(commands)
        return [self._explained(answer) if isinstance(answer, MovedError) else answer for answer in answers]

    async def check(self) -> None:
        async with self._permits:
            try:
                await self._client.ping()
            except MasterNotFoundError as error:
                raise self._explained(error) from None

    def parts(self, keys: Sequence[str]) -> list[list[int]]:
        return [list(range(len(keys)))]

    async def close(self) -> None:
        await self._client.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    def _explained(self, error: Exception) -> Exception:
        """The error, in words that say what to do where those of redis-py do not."""
        if isinstance(error, MasterNotFoundError):
            return RedisError(f"none of the Sentinels in REDIS_URL answers and knows a primary named {self._service}")
        if isinstance(error, MovedError):
            return RedisError("the server is part of a Cluster: REDIS_URL must begin with redis+cluster:// or rediss+cluster://")
        return error
