"""The HTTP listener: accepts connections, counts them, and decides what answers a request: an operation or the web server.

It is in front of the web server (Daphne or uvicorn), with the same limits for both. See `http_connection`.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
from prometheus_client import Gauge

from dss_api import heap, negotiation
from dss_api.caller import Caller
from dss_api.client_memory import TAKEN_OVER_BYTES, Account
from dss_api.codec import EncodedAnswer, encode_refusal
from dss_api.errors import Refused
from dss_api.host_check import WRONG_HOST, HostCheck
from dss_api.http_answers import header_lines
from dss_api.http_connection import HttpConnection, Listener
from dss_api.http_limits import HttpLimits
from dss_api.http_request import HttpRequest
from dss_api.in_progress import InProgress
from dss_api.json_fast_path import JsonFastPath
from dss_api.other_port import OtherPort, PortProtocol
from dss_api.proxies import NO_PROXIES, TrustedProxies
from dss_api.routes import not_allowed
from dss_api.security_headers import Header
from dss_api.tls import ServerTls
from dss_api.tls_transport import TlsTransport
from dss_api.turns import InputTurns

log = structlog.get_logger("api")

#: How often deadlines are checked.
SWEEP_S = 1.0
#: When clients use this much less than before, the heap is trimmed.
TRIM_BYTES = 8 * 1024 * 1024
#: How long a page may take, from its request to the end of its answer. Longer than any call waits, and as long as a slow client needs.
PAGE_TIMEOUT_S = 120.0
#: How often it is checked whether output has been sent, before a connection is handed over and when the node stops.
FLUSH_POLL_S = 0.01
CONNECTIONS = Gauge("dss_http_connections", "Open HTTP and WebSocket connections")


class HandedOver(Protocol):
    """A page or a WebSocket."""

    def recount(self) -> None:
        """Measure what the server keeps for the client."""

    def close(self) -> None:
        """End the connection after all output has been sent."""

    def abort(self) -> None:
        """End the connection immediately."""


@dataclass(frozen=True)
class Client:
    """The client of a connection that is handed over.

    Args:
        account: where the web server counts what it keeps for the client.
        input_turns: decides when the web server takes what the client sends on a WebSocket.
    """

    address: str
    account: Account
    input_turns: InputTurns
    #: to be called when the connection is lost
    closed: Callable[[], None]


CheckPage = Callable[[str, str, Sequence[tuple[bytes, bytes]], str], EncodedAnswer | None]
#: Takes a connection over: its transport, the first input, its client.
TakeOver = Callable[[asyncio.Transport, bytes, Client], HandedOver]


class HttpListener:
    """See the module.

    Args:
        json: the operations and their access checks.
        page_prefixes: paths below which the web server answers every request.
        take_over: hands a connection to the web server.
        open_websocket: lets a connection become a WebSocket.
        check_page: refuses a request for the web server before its body is read: method, path and headers.
        proxies: whose headers say where requests come from.
        https_headers: headers for answers over HTTPS, to this node or to a trusted proxy.
        tls: the port speaks HTTPS.
    """

    def __init__(
        self,
        json: JsonFastPath,
        is_host_allowed: HostCheck,
        in_progress: InProgress,
        page_prefixes: tuple[str, ...],
        limits: HttpLimits,
        take_over: TakeOver,
        open_websocket: TakeOver,
        check_page: CheckPage = lambda method, path, headers, address: None,
        proxies: TrustedProxies = NO_PROXIES,
        https_headers: tuple[Header, ...] = (),
        tls: ServerTls | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.find_node = json.find_node
        self.turns = in_progress.turns
        self.input_turns = in_progress.input_turns
        self.memory = in_progress.memory
        self.is_stopping = False
        self._json = json
        self.is_host_allowed = is_host_allowed
        self.call_begins = in_progress.call_begins
        self.call_ended = in_progress.call_ended
        self._page_prefixes = page_prefixes
        self._take_over = take_over
        self._open_websocket = open_websocket
        self._check_page = check_page
        self.proxies = proxies
        self.https_headers = header_lines(https_headers)
        self.tls = tls
        self._servers: list[asyncio.Server] = []
        #: sockets of further ports, and what their connections see of this listener
        self._other_ports: list[tuple[socket.socket, OtherPort]] = []
        self._connections: set[HttpConnection] = set()
        self._handed_over: dict[HttpConnection, HandedOver] = {}
        self._per_address: Counter[str] = Counter()
        self._sweeper: asyncio.TimerHandle | None = None
        #: the most memory that clients have used at any sweep since the heap was trimmed
        self._most_bytes = 0

    async def accept(self, listening: socket.socket) -> None:
        """Accept connections from this socket."""
        self._json.guard.watch(self._tokens_changed)
        await self._serve(listening, self)
        for other, port in self._other_ports:
            await self._serve(other, port)
        self._sweep()

    def add_port(self, listening: socket.socket, protocol: PortProtocol) -> None:
        """Also accept connections from this socket, when `accept` is called. Their requests are of another protocol."""
        self._other_ports.append((listening, OtherPort(self, protocol)))

    async def _serve(self, listening: socket.socket, port: Listener) -> None:
        tls = self.tls
        if tls is None:
            server = await self.loop.create_server(lambda: HttpConnection(port), sock=listening)
        else:
            server = await self.loop.create_server(lambda: TlsTransport(HttpConnection(port), self, tls), sock=listening)
        self._servers.append(server)

    def stop_accepting(self) -> None:
        """Close the listening socket. Connections stay, and close after the call in progress."""
        self.is_stopping = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close_when_idle()

    async def close(self, timeout_s: float) -> None:
        """Close every connection that is left. After `timeout_s`, those of clients that do not read are aborted."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for one in self._open():
            one.close()
        deadline = self.loop.time() + timeout_s
        # Polled, but only during a stop.
        while self._open() and self.loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(FLUSH_POLL_S)
        for one in self._open():
            one.abort()

    def _open(self) -> list[HandedOver | HttpConnection]:
        return [*self._handed_over.values(), *self._connections]

    # ---------------------------------------------- what a connection reports

    encode_refusal = staticmethod(encode_refusal)

    def opened(self, connection: HttpConnection) -> Refused | None:
        """Count the connection, or refuse it."""
        address = connection.address
        refusal = self._refusal(address)
        self._connections.add(connection)
        self._per_address[address] += 1
        CONNECTIONS.inc()
        return refusal

    def _refusal(self, address: str) -> Refused | None:
        limits = self.limits
        if len(self._connections) + len(self._handed_over) >= limits.connections_max:
            return Refused("overloaded", f"this node already has {limits.connections_max} connections (DSS_CONNECTIONS_MAX)")
        if self._per_address[address] >= limits.connections_per_address_max and not self.proxies.trusts(address):
            return Refused(
                "overloaded",
                f"{address} already has {limits.connections_per_address_max} connections (DSS_CONNECTIONS_PER_ADDRESS_MAX)",
            )
        return None

    def closed(self, connection: HttpConnection) -> None:
        """Count a connection as closed or handed over."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._forget(connection)

    def caller_of(self, request: HttpRequest) -> Caller:
        """Who makes the call now.

        Raises:
            Refused: `unauthenticated`.
        """
        assert request.route is not None
        return self._json.authenticate(request.route, request.authorization)

    def _tokens_changed(self) -> None:
        for connection in list(self._connections):
            connection.tokens_changed()

    def check_head(self, request: HttpRequest) -> EncodedAnswer | None:
        """Find out what answers the request, and check its headers before its body is read."""
        head = request.read_head(self.proxies, self.https_headers)
        if head.host and not self.is_host_allowed(head.host):
            return encode_refusal(WRONG_HOST)
        if head.length > self.limits.body_bytes_max:
            return encode_refusal(self.limits.too_large)
        path = request.path
        method = request.method.decode("latin-1")
        if request.is_upgrade or negotiation.is_page(path, head.accept, head.from_form, self._page_prefixes):
            refusal = self._check_page(method, path, head.headers, request.address)
            if refusal is not None and request.is_upgrade:
                # Clients of WebSockets read the status of a refusal, and not all of them its body.
                return EncodedAnswer(refusal.status, b"", refusal.headers[1:])
            return refusal
        methods, request.parameter = self._json.routes.find(path)
        route = methods.get("GET" if method == "HEAD" else method) if methods else None
        if methods is None:
            return encode_refusal(Refused("not_found", f"there is nothing at {path}"))
        if route is None:
            return not_allowed(method, methods)
        try:
            self._json.check(route, request.authorization, head.origin, head.host, request.address)
        except Refused as refusal:
            return encode_refusal(refusal)
        request.route = route
        return None

    def hand_over(self, connection: HttpConnection, transport: asyncio.Transport, data: bytes, is_websocket: bool) -> None:
        """Let the web server serve this connection, after earlier answers have been sent."""
        if transport.is_closing():
            return
        if transport.get_write_buffer_size():
            self.loop.call_later(FLUSH_POLL_S, self.hand_over, connection, transport, data, is_websocket)
            return
        self._connections.discard(connection)
        rest = self.input_turns.forget(connection)
        # Set before the first transport is closed: the account then belongs to the connection of the web server.
        connection.abort_handed_over = transport.abort
        connection.account.take(TAKEN_OVER_BYTES)
        take_over = self._open_websocket if is_websocket else self._take_over
        client = Client(connection.address, connection.account, self.input_turns, partial(self._lost, connection))
        try:
            # Nothing that follows the request for a page is read.
            handed_over = take_over(transport, data + rest if is_websocket else data, client)
        except Exception:
            log.exception("api.hand_over_failed")
            self._forget(connection)
            transport.abort()
            return
        connection.abort_handed_over = handed_over.abort
        connection.handed_over_until = math.inf if is_websocket else self.loop.time() + PAGE_TIMEOUT_S
        self._handed_over[connection] = handed_over

    def _lost(self, connection: HttpConnection) -> None:
        if self._handed_over.pop(connection, None) is not None:
            self._forget(connection)

    # ----------------------------------------------------------------- sweep

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)
        now = self.loop.time()
        for connection in [one for one in self._connections if 0.0 < one.deadline <= now]:
            connection.time_out()
        if self.tls is not None:
            self.tls.check()
        self._trim()
        for connection, handed_over in list(self._handed_over.items()):
            handed_over.recount()
            if connection.handed_over_until <= now:
                handed_over.abort()

    def _trim(self) -> None:
        """Give free memory back to the system after a burst."""
        memory = self.memory
        self._most_bytes = max(self._most_bytes, memory.bytes)
        if memory.was_relieved or self._most_bytes - memory.bytes > TRIM_BYTES:
            memory.was_relieved = False
            self._most_bytes = memory.bytes
            heap.trim()

    def _forget(self, connection: HttpConnection) -> None:
        address = connection.address
        connection.account.close()
        CONNECTIONS.dec()
        self._per_address[address] -= 1
        if not self._per_address[address]:
            del self._per_address[address]
