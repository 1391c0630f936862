"""One TCP connection to a peer: the handshake, then frames. The links decide what becomes of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol, cast

import structlog

from dss_raft import metrics
from dss_raft.net.handshake import Handshake
from dss_raft.net.tls import TlsStream
from dss_raft.net.tls_handshake import Acceptance, TlsHandshake
from dss_raft.net.wire import AnyFrame, AuthenticatedStream, PingFrame, RaftFrame, Reason, WireError
from dss_raft.versions import Announced

log = structlog.get_logger("raft.links")

#: Above this limit, frames to a peer are dropped: it does not keep up, or has disappeared unnoticed.
WRITE_BUFFER_BYTES_MAX = 64 * 1024 * 1024
#: An authenticated connection is closed after so many ticks without data, one that is not authenticated after so many in all.
IDLE_TICKS = 20

AnyHandshake = Handshake | TlsHandshake | Acceptance


class Links(Protocol):
    """The node's links, as a connection needs them; see `links.PeerLinks`."""

    on_frame: Callable[[str, AnyFrame], None]

    def configure(self, sock: socket.socket) -> None: ...

    def opened(self, connection: PeerConnection) -> AnyHandshake: ...

    def authenticated(self, connection: PeerConnection) -> None: ...

    def refused(self, connection: PeerConnection, error: WireError) -> None: ...

    def lost(self, connection: PeerConnection) -> None: ...


class PeerConnection(asyncio.Protocol):
    """One TCP connection to a peer."""

    def __init__(self, links: Links, dials: str | None = None, with_tls: bool = True) -> None:
        self.dials = dials
        #: used for dialing only
        self.with_tls = with_tls
        #: the peer does not know TLS: dial it without
        self.is_without_tls = False
        self.stream: AuthenticatedStream | TlsStream | None = None
        self.peer_id = ""
        self.address = ""
        self.ticks = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._links = links
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._handshake: AnyHandshake
        self._queued: list[bytes] = []
        self._queued_bytes = 0
        self.ticks_without_data = 0
        self._has_sent = False
        self._has_logged_too_large = False

    # -- called by the event loop ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        self.address = f"{peername[0]}:{peername[1]}" if peername else "unknown"
        self._links.configure(transport.get_extra_info("socket"))
        self._handshake = self._links.opened(self)
        if not isinstance(self._handshake, Acceptance) and self.dials is not None:
            self._transport.write(self._handshake.greeting())

    def data_received(self, data: bytes) -> None:
        self.ticks_without_data = 0
        try:
            if self.stream is None:
                data = self._continue_handshake(data)
            if self.stream is not None:
                self._deliver(self.stream, data)
        except WireError as error:
            self.refuse(error)

    def connection_lost(self, error: Exception | None) -> None:
        try:
            self._links.lost(self)
        finally:  # a listener that fails must not stop the dialer
            if not self.closed.done():
                self.closed.set_result(None)

    # -- called by the links -----------------------------------------------------------------------------------------------------

    def send(self, frame: AnyFrame) -> bool:
        if self.stream is None:
            return False
        if self._transport.get_write_buffer_size() + self._queued_bytes > WRITE_BUFFER_BYTES_MAX:
            metrics.frame_in_backlog()
            return False
        try:
            data = self.stream.encode(frame)
        except ValueError as error:
            if isinstance(frame, RaftFrame) and len(frame.messages) > 1:
                half = len(frame.messages) // 2
                is_sent = self.send(RaftFrame(frame.messages[:half]))
                return self.send(RaftFrame(frame.messages[half:])) and is_sent
            self._drop_too_large(frame, str(error))
            return False
        if not self._queued:
            self._loop.call_soon(self._flush)
        self._queued.append(data)
        self._queued_bytes += len(data)
        return True

    def _drop_too_large(self, frame: AnyFrame, error: str) -> None:
        metrics.frame_too_large()
        if not self._has_logged_too_large:  # the sender may repeat it forever
            self._has_logged_too_large = True
            log.error("frame_too_large", peer=self.peer_id, frame=type(frame).__name__, error=error)

    @property
    def is_authenticated(self) -> bool:
        """False: the peer has only claimed its id."""
        return self._handshake.is_proven

    @property
    def versions(self) -> Announced | None:
        """What the peer announces."""
        return self._handshake.peer_versions

    def tick(self) -> None:
        """Called `IDLE_TICKS` times per `idle_seconds`."""
        self.ticks += 1
        self.ticks_without_data += 1
        if self.stream is None:
            if self.ticks > IDLE_TICKS:
                self.refuse(WireError(Reason.TIMEOUT, "not authenticated in time"))
            return
        if self.ticks_without_data > IDLE_TICKS:
            log.warning("peer_silent", peer=self.peer_id)
            self.abort()
        elif not self._has_sent:
            self.send(PingFrame())
        self._has_sent = False

    def refuse(self, error: WireError) -> None:
        self.peer_id = self._handshake.peer_id
        self._links.refused(self, error)
        if error.reply:
            self._transport.write(error.reply)
        self._transport.close()
        self._links.lost(self)

    def close(self) -> None:
        """Close after sending what is queued."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # -- details -----------------------------------------------------------------------------------------------------------------

    def _continue_handshake(self, data: bytes) -> bytes:
        """Handle bytes of the handshake. Returns the bytes that follow it."""
        reply = self._handshake.feed(data)
        if reply:
            self._transport.write(reply)
        if self._handshake.stream is None:
            return b""
        self.stream, self.peer_id = self._handshake.stream, self._handshake.peer_id
        self._links.authenticated(self)
        return self._handshake.rest

    def _deliver(self, stream: AuthenticatedStream | TlsStream, data: bytes) -> None:
        on_frame, peer_id = self._links.on_frame, self.peer_id
        for frame in stream.feed(data):
            if self._transport.is_closing():
                return
            if not isinstance(frame, PingFrame):
                on_frame(peer_id, frame)

    def _flush(self) -> None:
        if self._queued:
            data = self._queued[0] if len(self._queued) == 1 else b"".join(self._queued)
            self._queued.clear()
            self._queued_bytes = 0
            self._has_sent = True
            if self.stream is not None and not self._transport.is_closing():
                self._transport.write(self.stream.seal(data))
