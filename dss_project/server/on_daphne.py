"""Daphne, the default server. Import it after the loop policy is set: the import creates Twisted's reactor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from daphne.server import Server, reactor
from twisted.web.http import HTTPChannel

from dss_api.asgi import state_of
from dss_api.http_limits import HttpLimits
from dss_api.http_listener import Client
from dss_project.config import NodeConfig
from dss_project.server.taken_over import PageConnection
from dss_project.server.twisted_transport import TwistedTransport

log = structlog.get_logger("node")


class DaphneServer(Server):  # type: ignore[misc]
    """Daphne without endpoints: the listener hands it connections."""

    def __init__(self, application: Any, main: Callable[[DaphneServer], Awaitable[int]]) -> None:
        super().__init__(
            application,
            # Daphne refuses to run without one; none is opened.
            endpoints=["none"],
            signal_handlers=False,
            verbosity=0,
            server_name="",
        )
        self.endpoints: list[str] = []
        self.ready_callable = self._begin
        self.exit_code = 1
        self._main = main
        self._loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self._task: asyncio.Task[None] | None = None

    def take_over(self, transport: asyncio.Transport, data: bytes, client: Client) -> PageConnection:
        """Serve this connection from now on; `data` is the request."""
        page = PageConnection(transport, client)
        twisted = TwistedTransport(transport, page)
        twisted.start(self.http_factory.buildProtocol(twisted.getPeer()))
        twisted.protocol.dataReceived(data)
        return page

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Any:
        """Do what Daphne does, and give the application access to the connection."""
        return super().create_application(protocol, {**scope, "state": state_of(protocol.channel.transport.page)})

    def kill_all_applications(self) -> None:
        """Do nothing: calls have ended by then, and Daphne's own method fails for connections without an application."""

    def _begin(self) -> None:
        # The listener has checked the head. Twisted's own limits are lower, and it closes the connection without an answer.
        HTTPChannel.MAX_LENGTH = HTTPChannel.totalHeadersSize = HTTPChannel.maxHeaders = HttpLimits.head_bytes_max
        self._task = self._loop.create_task(self._run_main())

    async def _run_main(self) -> None:
        try:
            self.exit_code = await self._main(self)
        except Exception:
            log.exception("node.failed")
        finally:
            reactor.callLater(0, reactor.stop)


def run(application: Any, config: NodeConfig, main: Callable[[Any], Awaitable[int]]) -> int:
    """Run `main(server)` in the reactor's loop and return its result."""
    server = DaphneServer(application, main)
    server.run()
    return server.exit_code
