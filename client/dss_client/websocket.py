"""One WebSocket to one node, with many calls in progress.

Calls are written once for each turn of the event loop, so that many callers share a system call. Answers are matched by the id of
the call. A connection on which nothing arrives although calls are in progress is pinged; without any sign of life it is closed, and its
calls end with `NoAnswer`. That finds a node that has stopped, and a network that drops packets, long before TCP does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.protocol import State
from websockets.uri import parse_uri

from dss_client.config import Config, Node
from dss_client.connection import (
    ATTACHED_TYPE,
    Answer,
    CannotConnect,
    Handle,
    NoAnswer,
    NotSent,
    decode,
    encode,
    encode_attached,
    with_attached,
)
from dss_client.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, FrameWriter, ProtocolError
from dss_client.tls import trouble_of

PATH = "/ws"
#: a node takes 1000 calls at a time on a connection
CALLS_MAX = 960
ANSWER_BYTES_MAX = 256 * 1024 * 1024
HEAD_BYTES_MAX = 65536
#: the close code of a client that is done
NORMAL = (1000).to_bytes(2)
#: statuses with which a node refuses the connection itself
REFUSED = (401, 403)


class ConnectionRefused(Exception):
    """The node refuses this client. An HTTP call gives the reason."""


class WebSocketConnection(asyncio.Protocol):
    """See the module. Made by `connect`."""

    def __init__(self, node: Node, config: Config, sock: socket.socket) -> None:
        self.url = node.url
        self._is_secure = node.is_secure
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        scheme = "wss" if node.is_secure else "ws"
        #: makes the handshake; None after it
        self._handshake: ClientProtocol | None = ClientProtocol(parse_uri(f"{scheme}{node.url[node.url.index(':') :]}{PATH}"))
        self._head = b""
        self._reader = FrameReader(ANSWER_BYTES_MAX)
        self._writer = FrameWriter()
        self._unsent: list[bytes] = []
        self._token = config.token
        self._tracing = config.tracing
        self._check_s = config.check_s
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        #: When the time of each call is over, by the loop's clock. One timer for the first of them serves all calls.
        self._until: dict[int, float] = {}
        #: those calls that are subscriptions
        self._on_event: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._last_id = 0
        self._is_open = False
        self._is_retired = False
        self._flush_planned = False
        self._may_send = True
        #: calls that wait for room, and how many of them have been let in but have not begun
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._coming = 0
        self._checker: asyncio.TimerHandle | None = None
        self._has_heard = True
        self._silent_checks = 0

    @classmethod
    async def connect(cls, node: Node, config: Config) -> WebSocketConnection:
        """Open a connection.

        Raises:
            CannotConnect, ConnectionRefused.
        """
        try:
            async with asyncio.timeout(config.connect_timeout_s):
                sock = await _open_socket(node)
                try:
                    connection = cls(node, config, sock)
                    await connection._loop.create_connection(
                        lambda: connection,
                        sock=sock,
                        ssl=config.tls if node.is_secure else None,
                        server_hostname=node.host if node.is_secure else None,
                    )
                except BaseException:
                    sock.close()
                    raise
                try:
                    await connection._opened
                except BaseException:
                    connection.close()
                    raise
                return connection
        except TimeoutError:
            raise CannotConnect(f"no answer within {config.connect_timeout_s:g} s") from None
        except OSError as error:
            raise CannotConnect(trouble_of(error), is_wrong=isinstance(error, ssl.SSLCertVerificationError)) from error

    # ------------------------------------------------------------- calls

    @property
    def is_open(self) -> bool:
        return self._is_open and not self._is_retired

    async def call(self, operation: str, fields: Mapping[str, Any], timeout_s: float, handle: Handle | None) -> Answer:
        request, parts = encode_attached(fields)
        if len(self._calls) + self._coming >= CALLS_MAX or not self._may_send:
            await self._wait_for_room(timeout_s)
        if not self._is_open:
            raise NotSent
        self._last_id = id = self._last_id + 1
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._calls[id] = answered
        parent = self._tracing.context().get("traceparent") if self._tracing is not None else None
        trace = b',"traceparent":"%b"' % parent.encode() if parent else b""
        frame = b'{"id":%d,"op":"%b","request":%b%b}' % (id, operation.encode(), request, trace)
        self._send(BINARY, with_attached(frame, parts)) if parts else self._send(TEXT, frame)
        if self._checker is None:
            self._has_heard = True
            self._checker = self._loop.call_later(self._check_s, self._check)
        if handle is not None:
            handle.sent(self, id)
            if handle.on_event is not None:
                self._on_event[id] = handle.on_event
        self._until[id] = until = self._loop.time() + timeout_s
        if until < self._timer_at:
            self._set_timer(until)
        try:
            return await answered
        except asyncio.CancelledError:
            self.cancel(id)
            raise
        finally:
            del self._calls[id], self._until[id]
            if self._waiting:
                self._let_in()
            if handle is not None:
                handle.sent(None, 0)
                self._on_event.pop(id, None)
            if self._is_retired and not self._calls:
                self.close()

    def post(self, operation: str, fields: Mapping[str, Any]) -> None:
        """Send a call whose answer, if there is one, does not matter. It is lost with the connection."""
        if self._is_open:
            self._last_id += 1
            self._send(TEXT, b'{"id":%d,"op":"%b","request":%b}' % (self._last_id, operation.encode(), encode(fields)))

    def cancel(self, id: int) -> None:
        if self._is_open and id in self._calls:
            self._last_id += 1
            self._send(TEXT, b'{"id":%d,"op":"cancel","request":{"call":%d}}' % (self._last_id, id))

    def retire(self) -> None:
        self._is_retired = True
        for id in self._on_event:
            # It would never end by itself. The node must not wait for a subscription that is no longer read.
            if not self._calls[id].done():
                self.cancel(id)
                self._calls[id].set_exception(NoAnswer("the client goes to another node"))
        if not self._calls:
            self.close()

    def close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if self._is_open:
                self._send(CLOSE, NORMAL)
                self._flush()
            self._transport.close()
        self._end("the connection was closed")

    def drop(self) -> None:
        self._is_open = False
        with contextlib.suppress(OSError):
            os.close(self._sock.detach())

    async def _wait_for_room(self, timeout_s: float) -> None:
        """Wait until the connection takes another call, in order of arrival."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError:
            raise NotSent("too many calls are in progress") from None
        finally:
            self._coming -= turn.done() and not turn.cancelled()

    def _let_in(self) -> None:
        while self._waiting and (not self._is_open or (self._has_room and self._may_send)):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._coming += 1

    @property
    def _has_room(self) -> bool:
        return len(self._calls) + self._coming < CALLS_MAX

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(at, self._time_is_over), at

    def _time_is_over(self) -> None:
        self._timer, self._timer_at = None, math.inf
        time = self._loop.time()
        for id, until in self._until.items():
            answered = self._calls[id]
            if not answered.done():
                if until <= time:
                    self.cancel(id)
                    answered.set_exception(NoAnswer("no answer in time"))
                else:
                    self._timer_at = min(self._timer_at, until)
        if self._timer_at < math.inf:
            self._set_timer(self._timer_at)

    def _send(self, opcode: int, payload: bytes) -> None:
        self._unsent.append(self._writer.frame(opcode, payload))
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(unsent) if len(unsent) > 1 else unsent[0])

    def _check(self) -> None:
        self._checker = None
        if not self._calls or not self._is_open:
            return
        if self._has_heard:
            self._silent_checks = 0
        else:
            self._silent_checks += 1
            if self._silent_checks == 1:
                self._send(PING, b"")
            elif self._silent_checks == 3:
                self._end(f"nothing received for {4 * self._check_s:g} s")
                if self._transport is not None:
                    self._transport.abort()
                return
        self._has_heard = False
        # By checks, not by the clock: after this process was paused, the node has its time to answer.
        self._checker = self._loop.call_later(self._check_s, self._check)

    # ------------------------------------------------- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # That of uvloop is no subclass of it.
        self._transport = stream = cast(asyncio.Transport, transport)
        handshake = self._handshake
        assert handshake is not None
        request = handshake.connect()
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        request.headers["User-Agent"] = "dss-client"
        request.headers["Accept"] = ATTACHED_TYPE
        handshake.send_request(request)
        stream.write(b"".join(handshake.data_to_send()))

    def data_received(self, data: bytes) -> None:
        self._has_heard = True
        if self._handshake is not None:
            data = self._shake_hands(self._handshake, data)
        try:
            for opcode, payload in self._reader.feed(data):
                if opcode in (TEXT, BINARY):
                    self._answered(payload)
                elif opcode == PING:
                    self._send(PONG, payload)
                elif opcode == CLOSE:
                    self._is_open = False
                    self._send(CLOSE, payload[:2])
                    self._flush()
                    if self._transport is not None:
                        self._transport.close()
        except (ProtocolError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            self._end(f"the node sent what is no answer: {error}")
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        why = trouble_of(exc) if isinstance(exc, ssl.SSLError) else exc
        self._end(f"the connection ended: {why}" if exc else "the node closed the connection")

    def pause_writing(self) -> None:
        self._may_send = False

    def resume_writing(self) -> None:
        self._may_send = True
        self._let_in()

    def _shake_hands(self, handshake: ClientProtocol, data: bytes) -> bytes:
        """Read the answer to the handshake. Returns what follows it."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0 and len(self._head) < HEAD_BYTES_MAX:
            return b""
        rest = self._head[end + 4 :]
        handshake.receive_data(self._head[: end + 4])
        self._handshake = None
        if handshake.state is State.OPEN:
            self._is_open = True
            if not self._opened.done():
                self._opened.set_result(None)
            return rest
        # The library waits for the body of a refusal, but the status is enough.
        if handshake.handshake_exc is None:
            handshake.receive_eof()
        if not self._opened.done():
            self._handshake_failed(handshake.handshake_exc or EOFError("no answer to the handshake"))
        return b""

    def _handshake_failed(self, error: Exception) -> None:
        if isinstance(error, InvalidStatus) and error.response.status_code in REFUSED:
            self._opened.set_exception(ConnectionRefused())
        elif isinstance(error, InvalidStatus) and error.response.status_code in (429, 503):
            self._opened.set_exception(CannotConnect(f"the node answers with {error.response.status_code}"))
        elif isinstance(error, InvalidHandshake | EOFError | ValueError):
            hint = "" if self._is_secure else ". If it speaks HTTPS, write https://"
            self._opened.set_exception(CannotConnect(f"this is no node: {error}{hint}", is_wrong=True))
        else:
            self._opened.set_exception(CannotConnect(str(error)))

    def _answered(self, data: bytes) -> None:
        answer = decode(data)
        if self._on_event and "event" in answer:
            on_event = self._on_event.get(answer["id"])
            if on_event is not None:
                on_event(answer["event"])
            return
        answered = self._calls.get(answer.pop("id"))
        if answered is not None and not answered.done():
            answered.set_result(answer)

    def _end(self, why: str) -> None:
        self._is_open = False
        self._let_in()
        for timer in (self._checker, self._timer):
            if timer is not None:
                timer.cancel()
        self._checker = self._timer = None
        if not self._opened.done():
            self._opened.set_exception(CannotConnect(why))
        for answered in self._calls.values():
            if not answered.done():
                answered.set_exception(NoAnswer(why))


async def _open_socket(node: Node) -> socket.socket:
    """A connected socket. It is opened here so that the child of a fork can close its copy."""
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except RuntimeError as error:
        # The program ends, and has no threads for this.
        raise OSError(str(error)) from None
    trouble: OSError = OSError(f"{node.host} has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            trouble = error
        except BaseException:
            sock.close()
            raise
    raise trouble
