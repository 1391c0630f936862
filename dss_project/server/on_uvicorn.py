"""uvicorn, the faster server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
import uvloop


class UvicornServer(uvicorn.Server):
    """uvicorn in a loop and with signals that are not its own."""

    def __init__(self, application: Any) -> None:
        config = uvicorn.Config(
            application,
            http="httptools",
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # Longer than any client's pool keeps a connection: else a call now and then meets one that is just being closed.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def accept(self, listening: socket.socket) -> None:
        self._task = asyncio.create_task(self.serve(sockets=[listening]))
        while not self.started:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0)

    def stop_accepting(self) -> None:
        for server in self.servers:
            server.close()

    async def close(self) -> None:
        # A call whose body never came is still waiting for it: to it this is a client that hung up.
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()
        self.should_exit = True
        if self._task is not None:
            await self._task


def run(application: Any, main: Callable[[Any], Awaitable[int]]) -> int:
    """Run `main(server)` in a loop of its own and return its result."""

    async def run_main() -> int:
        return await main(UvicornServer(application))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_main())
