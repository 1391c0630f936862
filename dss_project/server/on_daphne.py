"""Daphne, the default server. Import it after the loop policy is set: the import creates Twisted's reactor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from daphne.server import Server, reactor
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.web.http import HTTPChannel
from zope.interface import alsoProvides, implementer

from dss_api.http_limits import HttpLimits
from dss_project.config import NodeConfig

log = structlog.get_logger("node")


@implementer(IPushProducer)
class WritableWebSocket(WebSocketProtocol):  # type: ignore[misc]
    """Daphne's WebSocket, with flow control: Twisted pauses it while the client does not read."""

    #: called with the number of bytes whenever something arrives
    on_data: Callable[[int], None] | None = None

    def dataReceived(self, data: bytes) -> None:
        if self.on_data is not None:
            self.on_data(len(data))
        super().dataReceived(data)

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self.forget_input()

    def forget_input(self) -> None:
        """Free what has arrived of a message. The objects refer to each other: garbage collection would come late."""
        self.data = b""
        self.message_data: list[bytes] = []
        self.frame_data: list[bytes] = []

    def onOpen(self) -> None:
        self._can_write = asyncio.Event()
        self._can_write.set()
        # The HTTP channel, which had the connection before, would be paused in place of this protocol.
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)
        super().onOpen()

    def onClose(self, was_clean: bool, code: int, reason: str) -> None:
        self._can_write.set() if hasattr(self, "_can_write") else None
        super().onClose(was_clean, code, reason)

    def pauseProducing(self) -> None:
        self._can_write.clear()

    def resumeProducing(self) -> None:
        self._can_write.set()

    def stopProducing(self) -> None:
        self._can_write.set()

    async def writable(self) -> None:
        """Wait until the client has read enough for more to be written."""
        if hasattr(self, "_can_write"):
            await self._can_write.wait()

    def serverClose(self, code: int | None = None) -> None:
        # autobahn's sendClose refuses codes such as 1001 and 1008, which RFC 6455 defines for servers.
        self.sendCloseFrame(code=1000 if code is None else code)


class TakenOver:
    """A connection that Daphne has taken over."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @property
    def is_closed(self) -> bool:
        return not self._transport.connected

    def close(self) -> None:
        self._transport.loseConnection()

    def abort(self) -> None:
        self._transport.abortConnection()
        if (websocket := self._websocket) is not None:
            websocket.forget_input()

    def ping(self) -> None:
        if (websocket := self._websocket) is not None:
            websocket.sendPing()

    def watch(self, on_data: Callable[[int], None]) -> None:
        if (websocket := self._websocket) is not None:
            websocket.on_data = on_data

    @property
    def _websocket(self) -> WritableWebSocket | None:
        """None before the connection is a WebSocket, and after it was lost: then Twisted's transport has no protocol at all."""
        protocol = getattr(self._transport, "protocol", None)
        return protocol if isinstance(protocol, WritableWebSocket) else None


def _answer_half_closed(adopted: Any) -> None:
    """A client that has closed its sending side still gets the page that is due. Twisted would take it for a lost connection."""
    protocol = adopted.protocol

    def read_connection_lost() -> None:
        if not protocol._channel.requests:
            adopted.loseConnection()

    protocol.readConnectionLost = read_connection_lost
    protocol.writeConnectionLost = adopted.loseConnection
    alsoProvides(protocol, IHalfCloseableProtocol)


class DaphneServer(Server):  # type: ignore[misc]
    """Daphne without endpoints: the listener hands it connections."""

    def __init__(self, application: Any, config: NodeConfig, main: Callable[[DaphneServer], Awaitable[int]]) -> None:
        super().__init__(
            application,
            # Daphne refuses to run without one; none is opened.
            endpoints=["none"],
            signal_handlers=False,
            verbosity=0,
            server_name="",
            websocket_timeout=-1,
            websocket_max_message_size=config.body_bytes_max,
            websocket_max_frame_size=config.body_bytes_max,
        )
        self.endpoints: list[str] = []
        self.ready_callable = self._begin
        self.exit_code = 1
        self._main = main
        self._loop: asyncio.AbstractEventLoop = reactor._asyncioEventloop
        self._task: asyncio.Task[None] | None = None

    def take_over(self, transport: asyncio.Transport, data: bytes) -> TakenOver:
        """Serve this connection from now on; `data` is the first input. Twisted gets a descriptor of its own."""
        transport.pause_reading()
        connection = transport.get_extra_info("socket")
        descriptor = os.dup(connection.fileno())
        try:
            os.set_blocking(descriptor, False)
            family = connection.family
            adopted = reactor.adoptStreamConnection(descriptor, socket.AddressFamily(family), self.http_factory)
        finally:
            os.close(descriptor)
        transport.abort()
        _answer_half_closed(adopted)
        adopted.protocol.dataReceived(data)
        return TakenOver(adopted)

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Do what Daphne does, then wait until the client of a WebSocket reads."""
        await super().handle_reply(protocol, message)
        if message["type"] == "websocket.send":
            await protocol.writable()

    def kill_all_applications(self) -> None:
        """Do nothing: calls have ended by then, and Daphne's own method fails for connections without an application."""

    def _begin(self) -> None:
        self.ws_factory.protocol = WritableWebSocket
        # A frame over the limit ends the connection with 1009, as under uvicorn, instead of dropping it.
        self.ws_factory.setProtocolOptions(failByDrop=False)
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
    server = DaphneServer(application, config, main)
    server.run()
    return server.exit_code
