"""Daphne, the default server. Import it after the loop policy is set: Twisted's reactor is made at import."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from daphne.server import Server, reactor

from dss_project.server.quick_request import Inbox, QuickFactory

log = structlog.get_logger("node")


class DaphneServer(Server):  # type: ignore[misc]
    """Daphne on a socket that is open already, without Daphne's own ideas of how to stop."""

    def __init__(self, application: Any, main: Callable[[DaphneServer], Awaitable[int]]) -> None:
        super().__init__(application, endpoints=["none yet"], signal_handlers=False, verbosity=0, server_name="")
        self.endpoints: list[str] = []
        self.ready_callable = self._begin
        self.exit_code = 1
        self._main = main
        self._loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self._port: Any = None
        self._task: asyncio.Task[None] | None = None

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._run_main())

    async def _run_main(self) -> None:
        try:
            self.exit_code = await self._main(self)
        finally:
            reactor.callLater(0, reactor.stop)

    async def accept(self, listening: socket.socket) -> None:
        self._port = reactor.adoptStreamPort(listening.fileno(), listening.family, QuickFactory(self))
        # The reactor has a duplicate of its own.
        listening.close()

    def stop_accepting(self) -> None:
        self._port.stopListening()

    async def close(self) -> None:
        """The reactor closes the connections when it stops."""

    def create_application(self, protocol: Any, scope: dict[str, Any]) -> Inbox:
        """As Daphne's, but a call is forgotten when it ends: Daphne looks for those once a second, and that is thousands."""
        inbox = Inbox()
        scope.setdefault("asgi", {"version": "3.0"})
        send = partial(self.handle_reply, protocol)
        call = self._loop.create_task(self.application(scope=scope, receive=inbox.get, send=send))
        self.connections[protocol]["application_instance"] = call
        call.add_done_callback(partial(self._ended, protocol))
        return inbox

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        details = self.connections.get(protocol)
        if details is None or "disconnected" in details:
            return
        if message["type"] == "websocket.close" and protocol.state != protocol.STATE_CONNECTING:
            # Daphne's own way refuses codes such as 1001 and 1007.
            protocol.sendCloseFrame(code=message.get("code", 1000))
        else:
            protocol.handle_reply(message)

    def _ended(self, protocol: Any, call: asyncio.Task[None]) -> None:
        details = self.connections.get(protocol)
        if details is None:
            return
        del details["application_instance"]
        error = None if call.cancelled() else call.exception()
        if error is not None:
            log.error("http.failed", exc_info=error)
            if "disconnected" not in details:
                protocol.handle_exception(error)
        if "disconnected" in details:
            del self.connections[protocol]

    def protocol_disconnected(self, protocol: Any) -> None:
        details = self.connections.get(protocol)
        if details is None:
            return
        details.setdefault("disconnected", time.time())
        if "application_instance" not in details:
            del self.connections[protocol]

    def kill_all_applications(self) -> None:
        """Calls have been waited for and ended by then; Daphne's own way trips over a half-sent request."""


def run(application: Any, main: Callable[[Any], Awaitable[int]]) -> int:
    """Run `main(server)` in the reactor's loop and return its result."""
    server = DaphneServer(application, main)
    server.run()
    return server.exit_code
