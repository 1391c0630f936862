"""uvicorn, the faster of the two servers for pages and WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame

from dss_api.http_listener import Client
from dss_project.config import NodeConfig
from dss_project.server import taken_over
from dss_project.server.held import HeldMessages

#: Messages that are sent in one turn of the loop leave together, in writes of about this length at most.
GATHERED_BYTES = 64 * 1024


class CountedWebSocket(taken_over.ServedWebSocket, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket.

    It writes the messages of one turn of the loop together: a system call for each would be half of what a quick call costs. Until
    then they are in the output of the parser (`conn`), to which pongs, pings and the close frame are added. So the order of frames is
    that in which they were sent.
    """

    #: bytes of messages that are not written yet, in this turn of the loop
    _gathered = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held = HeldMessages()

    async def send(self, message: Any) -> None:
        """Send a message of the application. See the class."""
        await self.writable.wait()
        if message["type"] != "websocket.send" or not self._is_open:
            await super().send(message)
            return
        text = message.get("text")
        try:
            self._gather(message["bytes"] if text is None else text.encode(), text is not None)
        except InvalidState:
            raise ClientDisconnected from None

    def send_now(self, data: bytes, is_text: bool) -> bool:
        """See `Line`."""
        if not self.writable.is_set() or not self._is_open:
            return False
        try:
            self._gather(data, is_text)
        except InvalidState:
            return False
        return True

    @property
    def _is_open(self) -> bool:
        return self.handshake_complete and not self.close_sent and not self.disconnected and self.initial_response is None

    def _gather(self, data: bytes, is_text: bool) -> None:
        (self.conn.send_text if is_text else self.conn.send_binary)(data)
        if not self._gathered:
            self.loop.call_soon(self._write_gathered)
        self._gathered += len(data) + 1
        if self._gathered > GATHERED_BYTES:
            self._write_gathered()

    def _write_gathered(self) -> None:
        self._gathered = 0
        output = self.conn.data_to_send()
        if output and not self.transport.is_closing():
            self.transport.write(b"".join(output))
        self.recount()

    def data_received(self, data: bytes) -> None:
        self.arrived(data)

    def parse(self, data: bytes) -> None:
        super().data_received(data)

    def handle_text(self, event: Frame) -> None:
        self._add(event, super().handle_text)

    def handle_bytes(self, event: Frame) -> None:
        self._add(event, super().handle_bytes)

    def handle_cont(self, event: Frame) -> None:
        self._add(event, super().handle_cont)

    def _add(self, event: Frame, handle: Callable[[Frame], None]) -> None:
        self.held.add_piece(len(event.data))
        handle(event)
        # The parser keeps the frame until it has read the next one.
        event.data = b""

    def send_receive_event_to_app(self) -> None:
        """Queue the message as bytes: as `str` it can be four times as long."""
        data = b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            self.held.forget_unfinished()
            return
        is_text = self.curr_msg_data_type == "text"
        if is_text and not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                self.conn.send_close(CloseCode.INVALID_DATA)
                self.handle_parser_exception()
                return
        self.held.complete()
        message: Any = {"type": "websocket.receive", "bytes": data, "is_text": is_text}
        self.queue.put_nowait(message)
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.recount()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.forget_input()

    def abandon(self) -> None:
        super().abandon()
        while not self.queue.empty():
            self.queue.get_nowait()

    def forget_input(self) -> None:
        """Free what has arrived of a message. The objects refer to each other: garbage collection would come late."""
        self._has_ended = True
        self.frames = []
        self.held.forget_unfinished()
        self.conn.reader.buffer.clear()
        self.conn.parser.close()

    def bytes_kept(self) -> int:
        return len(self.conn.reader.buffer) + self._gathered + self.transport.get_write_buffer_size()

    def resume_input(self) -> None:
        """Read again. A message that the application has not received keeps the input paused."""
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def ping(self) -> None:
        """Send a ping frame."""
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.conn.send_ping(b"")
            self.transport.write(b"".join(self.conn.data_to_send()))


class PatientHttp(HttpToolsProtocol):
    """uvicorn's HTTP connection. A client that has closed its sending side still gets the answer that is due."""

    _has_request = False

    def data_received(self, data: bytes) -> None:
        """Take the request that the listener hands over. Its answer closes the connection, so what follows is not read."""
        if not self._has_request:
            self._has_request = True
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """True: the connection stays open until the answer has been sent."""
        return self.cycle is not None and not self.cycle.response_complete


class TakenOver(taken_over.TakenOver):
    """A connection that uvicorn has taken over."""

    def __init__(self, transport: asyncio.Transport, client: Client) -> None:
        super().__init__(client)
        self._transport = transport
        self._found: CountedWebSocket | None = None

    @property
    def _websocket(self) -> CountedWebSocket | None:
        if self._found is None:
            # A transport that was closed has no protocol.
            protocol = self._transport.get_protocol()
            self._found = protocol if isinstance(protocol, CountedWebSocket) else None
        return self._found

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing() and not self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._transport.close()

    def _abort(self) -> None:
        self._transport.abort()

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def pause_input(self) -> None:
        self._transport.pause_reading()

    def resume_input(self) -> None:
        if self._websocket is not None:
            self._websocket.resume_input()
        elif not self._transport.is_closing():
            self._transport.resume_reading()


class UvicornServer:
    """Runs uvicorn's protocols on connections that the listener hands over."""

    def __init__(self, application: Any, config: NodeConfig) -> None:
        self._config = uvicorn.Config(
            application,
            http=PatientHttp,
            ws=CountedWebSocket,
            ws_max_size=config.body_bytes_max,
            # As under Daphne. A few compressed kilobytes could become megabytes that no account has counted.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
        )
        self._config.load()
        self._state = ServerState()

    def take_over(self, transport: asyncio.Transport, data: bytes, client: Client) -> TakenOver:
        """Serve this connection from now on; `data` is the first input."""
        protocol = PatientHttp(self._config, self._state, {})
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)
        transport.resume_reading()
        return TakenOver(transport, client)


def run(application: Any, config: NodeConfig, main: Callable[[Any], Awaitable[int]]) -> int:
    """Run `main(server)` in a loop of its own and return its result."""

    async def run_main() -> int:
        return await main(UvicornServer(application, config))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_main())
