"""uvicorn, the faster of the two servers for pages and WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from dss_project.config import NodeConfig


class WatchedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which also tells when something arrives."""

    #: called with the number of bytes whenever something arrives
    on_data: Callable[[int], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.on_data is not None:
            self.on_data(len(data))
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.forget_input()

    def forget_input(self) -> None:
        """Free what has arrived of a message. The objects refer to each other: garbage collection would come late."""
        self.frames = []
        self.conn.reader.buffer.clear()

    def ping(self) -> None:
        """Send a ping frame."""
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.conn.send_ping(b"")
            self.transport.write(b"".join(self.conn.data_to_send()))


class PatientHttp(HttpToolsProtocol):
    """uvicorn's HTTP connection. A client that has closed its sending side still gets the answer that is due."""

    def eof_received(self) -> bool:  # type: ignore[override]
        """True: the connection stays open until the answer has been sent."""
        return self.cycle is not None and not self.cycle.response_complete


class TakenOver:
    """A connection that uvicorn has taken over."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing() and not self._transport.get_write_buffer_size()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
        if (websocket := self._websocket) is not None:
            websocket.forget_input()

    def ping(self) -> None:
        if (websocket := self._websocket) is not None:
            websocket.ping()

    def watch(self, on_data: Callable[[int], None]) -> None:
        if (websocket := self._websocket) is not None:
            websocket.on_data = on_data

    @property
    def _websocket(self) -> WatchedWebSocket | None:
        """None before the connection is a WebSocket, and after it was lost."""
        protocol = self._transport.get_protocol()
        return protocol if isinstance(protocol, WatchedWebSocket) else None


class UvicornServer:
    """Runs uvicorn's protocols on connections that the listener hands over."""

    def __init__(self, application: Any, config: NodeConfig) -> None:
        self._config = uvicorn.Config(
            application,
            http=PatientHttp,
            ws=WatchedWebSocket,
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

    def take_over(self, transport: asyncio.Transport, data: bytes) -> TakenOver:
        """Serve this connection from now on; `data` is the first input."""
        protocol = PatientHttp(self._config, self._state, {})
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)
        return TakenOver(transport)


def run(application: Any, config: NodeConfig, main: Callable[[Any], Awaitable[int]]) -> int:
    """Run `main(server)` in a loop of its own and return its result."""

    async def run_main() -> int:
        return await main(UvicornServer(application, config))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_main())
