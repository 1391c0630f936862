"""uvicorn, the faster of the two servers for pages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from dss_api.asgi import state_of
from dss_api.http_listener import Client
from dss_project.config import NodeConfig
from dss_project.server.taken_over import PageConnection


class PatientHttp(HttpToolsProtocol):
    """uvicorn's HTTP connection. A client that has closed its sending side still gets the answer that is due."""

    _has_request = False

    def data_received(self, data: bytes) -> None:
        """Take the request that the listener hands over. Its answer closes the connection, so what follows is not read."""
        if not self._has_request:
            self._has_request = True
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.app_state["connection"].closed()

    def eof_received(self) -> bool:  # type: ignore[override]
        """True: the connection stays open until the answer has been sent."""
        return self.cycle is not None and not self.cycle.response_complete


class UvicornServer:
    """Runs uvicorn's protocol on connections that the listener hands over."""

    def __init__(self, application: Any) -> None:
        self._config = uvicorn.Config(
            application,
            http=PatientHttp,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
        )
        self._config.load()
        self._state = ServerState()

    def take_over(self, transport: asyncio.Transport, data: bytes, client: Client) -> PageConnection:
        """Serve this connection from now on; `data` is the request."""
        page = PageConnection(transport, client)
        protocol = PatientHttp(self._config, self._state, state_of(page))
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)
        transport.resume_reading()
        return page


def run(application: Any, config: NodeConfig, main: Callable[[Any], Awaitable[int]]) -> int:
    """Run `main(server)` in a loop of its own and return its result."""

    async def run_main() -> int:
        return await main(UvicornServer(application))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_main())
