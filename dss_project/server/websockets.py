"""The WebSockets of a node, under both web servers: uvicorn's protocol over the `websockets` library, which parses without I/O.

It writes the messages of one turn of the loop together, counts what it keeps for the client, and takes its input in turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame

from dss_api.asgi import state_of
from dss_api.client_memory import Share
from dss_api.http_listener import Client
from dss_project.config import NodeConfig
from dss_project.server.held import HeldMessages

#: Messages that are sent in one turn of the loop leave together, in writes of about this length at most.
GATHERED_BYTES = 64 * 1024


class NodeWebSocket(WebSocketsSansIOProtocol):
    """One WebSocket: `HandedOver` to the listener, `Line` to the application.

    A system call for each message would be half of what a quick call costs. Until the end of the turn, messages are in the output of the
    parser (`conn`), to which pongs, pings and the close frame are added. So the order of frames is that in which they were sent.
    """

    #: bytes of messages that are not written yet, in this turn of the loop
    _gathered = 0
    #: nothing that arrives is parsed any more
    _has_ended = False

    def __init__(self, config: uvicorn.Config, state: ServerState, client: Client) -> None:
        super().__init__(config, state, state_of(self))
        self.address = client.address
        self.account = client.account
        self._closed = client.closed
        self._input_turns = client.input_turns
        self._share = Share(client.account)
        self._held = HeldMessages()
        self._on_data: Callable[[], None] = lambda: None

    # ----------------------------------------------------------------- output

    async def send(self, message: Any) -> None:
        """Send a message of the application. See the class."""
        await self.writable.wait()
        text = message.get("text")
        data = message.get("bytes", b"") if text is None else text.encode()
        if message["type"] != "websocket.send" or not self.send_now(data, text is not None):
            await super().send(message)

    def send_now(self, data: bytes, is_text: bool) -> bool:
        """See `Line`."""
        if not self.writable.is_set() or not self.handshake_complete or self.close_sent or self.disconnected:
            return False
        try:
            (self.conn.send_text if is_text else self.conn.send_binary)(data)
        except InvalidState:
            return False
        if not self._gathered:
            self.loop.call_soon(self._write_gathered)
        self._gathered += len(data) + 1
        if self._gathered > GATHERED_BYTES:
            self._write_gathered()
        return True

    def _write_gathered(self) -> None:
        self._gathered = 0
        output = self.conn.data_to_send()
        if output and not self.transport.is_closing():
            self.transport.write(b"".join(output))
        self.recount()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.recount()

    def ping(self) -> None:
        """See `Line`."""
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.conn.send_ping(b"")
            self.transport.write(b"".join(self.conn.data_to_send()))

    # ------------------------------------------------------------------ input

    def watch(self, on_data: Callable[[], None]) -> None:
        """See `Line`."""
        self._on_data = on_data

    def data_received(self, data: bytes) -> None:
        self._on_data()
        self._input_turns.deliver(self, data)

    def take_input(self, data: bytes) -> None:
        """Parse this input."""
        if not self._has_ended:
            super().data_received(data)
            self.recount()

    def handle_text(self, event: Frame) -> None:
        self._add(event, super().handle_text)

    def handle_bytes(self, event: Frame) -> None:
        self._add(event, super().handle_bytes)

    def handle_cont(self, event: Frame) -> None:
        self._add(event, super().handle_cont)

    def _add(self, event: Frame, handle: Callable[[Frame], None]) -> None:
        self._held.add_piece(len(event.data))
        handle(event)
        # The parser keeps the frame until it has read the next one.
        event.data = b""

    def send_receive_event_to_app(self) -> None:
        """Queue the message as bytes: as `str` it can be four times as long."""
        data = b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            self._held.forget_unfinished()
            return
        is_text = self.curr_msg_data_type == "text"
        if is_text and not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                self.conn.send_close(CloseCode.INVALID_DATA)
                self.handle_parser_exception()
                return
        self._held.complete()
        message: Any = {"type": "websocket.receive", "bytes": data, "is_text": is_text}
        self.queue.put_nowait(message)
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def pause_input(self) -> None:
        """Stop reading until `resume_input`."""
        self.transport.pause_reading()

    def resume_input(self) -> None:
        """Read again. A message that the application has not received keeps the input paused."""
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def message_taken(self) -> None:
        """See `Line`."""
        self._held.take()
        self.recount()

    # ---------------------------------------------------------------- the end

    def recount(self) -> None:
        """Measure what is kept for the client: input, messages that are not received yet, and unread output."""
        kept = len(self.conn.reader.buffer) + self._gathered + self.transport.get_write_buffer_size()
        self._share.set(self._held.bytes + kept)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._input_turns.forget(self)
        self._forget_input()
        self._closed()

    def _forget_input(self) -> None:
        """Free what has arrived. The objects refer to each other: garbage collection would come late."""
        self._has_ended = True
        self.frames = []
        self._held.forget_unfinished()
        self.conn.reader.buffer.clear()
        self.conn.parser.close()

    def close(self) -> None:
        """End the connection after all output has been sent."""
        self.transport.close()

    def abort(self) -> None:
        """End the connection immediately. The application learns of it when the connection is lost."""
        self._input_turns.forget(self)
        self.transport.abort()
        self._forget_input()
        self._held.clear()
        while not self.queue.empty():
            self.queue.get_nowait()


class WebSockets:
    """Lets connections of the listener become WebSockets."""

    def __init__(self, application: Any, config: NodeConfig) -> None:
        self._config = uvicorn.Config(
            application,
            ws=NodeWebSocket,
            ws_max_size=config.body_bytes_max,
            # A few compressed kilobytes could become megabytes that no account has counted.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
        )
        self._config.load()
        self._state = ServerState()

    def open(self, transport: asyncio.Transport, data: bytes, client: Client) -> NodeWebSocket:
        """Serve this connection from now on; `data` is its handshake."""
        websocket = NodeWebSocket(self._config, self._state, client)
        transport.set_protocol(websocket)
        websocket.connection_made(transport)
        websocket.take_input(data)
        if websocket.handshake_initiated:
            transport.resume_reading()
        else:
            # The library has limits of its own for a head, and answers nothing when they are exceeded.
            transport.close()
        return websocket
