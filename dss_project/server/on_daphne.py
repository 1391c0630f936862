"""Daphne, the default server. Import it after the loop policy is set: the import creates Twisted's reactor."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from autobahn.exception import Disconnected
from daphne.server import Server, reactor
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.web.http import HTTPChannel
from zope.interface import alsoProvides, implementer

from dss_api.http_limits import HttpLimits
from dss_api.http_listener import Client
from dss_api.tls_transport import TlsTransport
from dss_project.config import NodeConfig
from dss_project.server import taken_over
from dss_project.server.held import HeldMessages
from dss_project.server.twisted_tls import TwistedTls

log = structlog.get_logger("node")

#: opcodes of frames
TEXT, BINARY = 1, 2


@implementer(IPushProducer)
class WritableWebSocket(taken_over.ServedWebSocket, WebSocketProtocol):  # type: ignore[misc]
    """Daphne's WebSocket, with flow control: Twisted pauses it while the client does not read."""

    message_data: list[bytes]
    frame_data: list[bytes]

    def connectionMade(self) -> None:
        self.held = HeldMessages()
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self.arrived(data)

    def parse(self, data: bytes) -> None:
        super().dataReceived(data)

    def onMessageFrameData(self, payload: bytes) -> None:
        self.held.add_piece(len(payload))
        super().onMessageFrameData(payload)

    def onMessageEnd(self) -> None:
        """Take the message. autobahn also tells listeners of its own about it: there are none, and it costs more than the rest."""
        if not self.failedByMe:
            self.onMessage(b"".join(self.message_data), self.message_is_binary)
        self.message_data = []

    def sendMessage(self, payload: bytes, isBinary: bool = False) -> None:
        """Send one frame. autobahn's own method refuses what is longer than a client's message may be."""
        if self.state != self.STATE_OPEN:
            raise Disconnected("the connection is closed")
        self.sendFrame(BINARY if isBinary else TEXT, payload)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Write. autobahn also formats a line for its log, whether it is shown or not, which costs more than the write."""
        self.transport.write(data)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Queue the message as bytes: as `str` it can be four times as long. Autobahn has checked its encoding."""
        self.last_ping = time.time()
        if self.muted:
            self.held.forget_unfinished()
            return
        self.held.complete()
        self.application_queue.put_nowait({"type": "websocket.receive", "bytes": payload, "is_text": not isBinary})

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self.forget_input()

    def abandon(self) -> None:
        super().abandon()
        queue = getattr(self, "application_queue", None)
        while queue is not None and not queue.empty():
            queue.get_nowait()

    def forget_input(self) -> None:
        """Free what has arrived of a message. The objects refer to each other: garbage collection would come late."""
        self._has_ended = True
        self.held.forget_unfinished()
        self.data = b""
        self.message_data = []
        self.frame_data = []

    def bytes_kept(self) -> int:
        return len(self.data) + _unsent_bytes(self.transport)

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
        self.recount()

    def stopProducing(self) -> None:
        self._can_write.set()

    def send_now(self, data: bytes, is_text: bool) -> bool:
        """See `Line`."""
        if self.state != self.STATE_OPEN or not self._can_write.is_set():
            return False
        self.sendMessage(data, not is_text)
        return True

    def ping(self) -> None:
        """See `Line`."""
        self.sendPing()

    async def writable(self) -> None:
        """Wait until the client has read enough for more to be written."""
        if hasattr(self, "_can_write"):
            await self._can_write.wait()

    def serverClose(self, code: int | None = None) -> None:
        # autobahn's sendClose refuses codes such as 1001 and 1008, which RFC 6455 defines for servers.
        self.sendCloseFrame(code=1000 if code is None else code)


class TakenOver(taken_over.TakenOver):
    """A connection that Daphne has taken over."""

    def __init__(self, transport: Any, client: Client) -> None:
        super().__init__(client)
        self._transport = transport

    @property
    def _websocket(self) -> WritableWebSocket | None:
        # Twisted deletes the attribute when the connection is lost.
        protocol = getattr(self._transport, "protocol", None)
        return protocol if isinstance(protocol, WritableWebSocket) else None

    @property
    def is_closed(self) -> bool:
        return not self._transport.connected

    def close(self) -> None:
        self._transport.loseConnection()

    def _abort(self) -> None:
        self._transport.abortConnection()
        _forget_output(self._transport)

    def _unsent_bytes(self) -> int:
        return _unsent_bytes(self._transport)

    def pause_input(self) -> None:
        self._transport.pauseProducing()

    def resume_input(self) -> None:
        if self._transport.connected and not self._transport.disconnecting:
            self._transport.resumeProducing()


def _unsent_bytes(transport: Any) -> int:
    """What Twisted keeps because the client has not read it."""
    if isinstance(transport, TwistedTls):
        return transport.unsent_bytes
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def _forget_output(transport: Any) -> None:
    """The connection is aborted: free what would have been sent."""
    if isinstance(transport, TwistedTls):
        return
    transport.dataBuffer, transport.offset = b"", 0
    transport._tempDataBuffer, transport._tempDataLen = [], 0


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

    def take_over(self, transport: asyncio.Transport, data: bytes, client: Client) -> TakenOver:
        """Serve this connection from now on; `data` is the first input. Without TLS, Twisted gets a descriptor of its own."""
        if isinstance(transport, TlsTransport):
            secure = TwistedTls(transport)
            secure.start(self.http_factory.buildProtocol(secure.getPeer()))
            _answer_half_closed(secure)
            secure.protocol.dataReceived(data)
            return TakenOver(secure, client)
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
        return TakenOver(adopted, client)

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
