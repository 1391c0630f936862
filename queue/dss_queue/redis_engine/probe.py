"""Questions about a server, on a connection of their own: calls that take long do not hold them up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

from dss_queue.redis_engine.lane import was_closed

#: For a question and its answer.
TIMEOUT_S = 2.0


class Probe:
    """See the module.

    Args:
        connect: makes a connection that is not open yet.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def ask(self, command: list[bytes]) -> Any:
        """The answer to a command.

        Raises:
            ResponseError: the server's.
            RedisError, OSError, TimeoutError, ValueError: there is none that can be read.
        """
        async with asyncio.timeout(TIMEOUT_S), self._turn:
            if self._connection is not None and was_closed(self._connection):
                await self._end()
            if self._connection is None:
                self._connection = self._connect()
            try:
                await self._connection.connect()
                await self._connection.send_packed_command([b"".join(command)], check_health=False)
                return await self._connection.read_response(disconnect_on_error=True)
            except ResponseError:
                raise
            except BaseException:
                await self._end()
                raise

    async def renew(self) -> None:
        """The next question opens a connection, as a call may have to: the password or the address may have changed."""
        async with self._turn:
            await self._end()

    async def close(self) -> None:
        await self._end()

    async def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
