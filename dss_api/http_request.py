"""One HTTP/1.1 request while it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import unquote

from dss_api.codec import EncodedAnswer
from dss_api.proxies import TrustedProxies, with_host
from dss_api.routes import Route

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"expect", b"proxy-connection", b"upgrade")
)


_UPGRADE = frozenset((b"upgrade",))


class Head(NamedTuple):
    """The headers that decide what answers a request, and whether anything does."""

    headers: Sequence[tuple[bytes, bytes]]
    host: bytes
    accept: bytes
    origin: bytes
    #: the declared length of the body
    length: int
    #: sent by the form of the browsable API
    from_form: bool


class HttpRequest:
    """Filled in by the parser's callbacks."""

    __slots__ = (
        "address",
        "answer",
        "authorization",
        "body",
        "body_bytes",
        "content_type",
        "expects_continue",
        "has_head",
        "head_bytes",
        "headers",
        "held_bytes",
        "ignores_upgrade",
        "is_http_1_0",
        "is_upgrade",
        "keep_alive",
        "method",
        "more_headers",
        "parameter",
        "path",
        "query",
        "route",
        "started",
        "target",
    )

    def __init__(self) -> None:
        self.started = perf_counter()
        #: of the client: its connection's, or the one that a trusted proxy forwards
        self.address = ""
        self.method = b""
        self.target = b""
        self.path = ""
        self.query = b""
        #: names in lower case
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.head_bytes = 0
        self.keep_alive = True
        self.is_http_1_0 = False
        self.is_upgrade = False
        #: it asks for an upgrade to anything but a WebSocket (`curl --http2`), and is answered without one
        self.ignores_upgrade = False
        self.expects_continue = False
        self.body: bytes | bytearray = b""
        self.body_bytes = 0
        #: what it counts in its connection's account
        self.held_bytes = 0
        self.content_type = b""
        self.authorization = b""
        #: lines of headers that its answer has besides its own
        self.more_headers = b""
        #: the operation; None: the web server answers
        self.route: Route | None = None
        #: value of the path's parameter
        self.parameter = ""
        #: an answer that was decided before the request had fully arrived
        self.answer: EncodedAnswer | None = None

    def complete_head(self, method: bytes, version: str, keep_alive: bool, asks_for_upgrade: bool) -> None:
        """The request line and the headers are there."""
        self.has_head = True
        self.method = method
        self.is_http_1_0 = version == "1.0"
        self.keep_alive = keep_alive
        can_upgrade = asks_for_upgrade and method == b"GET" and version == "1.1"
        self.is_upgrade = can_upgrade and (b"upgrade", b"websocket") in ((name, value.lower()) for name, value in self.headers)
        self.ignores_upgrade = asks_for_upgrade and not self.is_upgrade and method != b"CONNECT"
        self.path, self.query = split_target(self.target)

    def read_head(self, proxies: TrustedProxies, https_headers: bytes) -> Head:
        """Read the headers once. A trusted proxy says where the request comes from."""
        headers: Sequence[tuple[bytes, bytes]] = self.headers
        if proxies.trusts(self.address):
            forwarded = proxies.origin(self.address, headers)
            self.address, headers = forwarded.address, with_host(headers, forwarded.host)
            if forwarded.scheme == "https":
                self.more_headers = https_headers
        host = accept = origin = b""
        length, from_form = 0, False
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"accept":
                accept = value
            elif name == b"content-type":
                self.content_type = value
            elif name == b"content-length":
                length = int(value) if value.isdigit() else 0
            elif name == b"authorization":
                self.authorization = value
            elif name == b"origin":
                origin = value
            elif name == b"expect":
                self.expects_continue = value.lower() == b"100-continue"
            elif name == b"x-requested-with":
                from_form = value == b"XMLHttpRequest"
        return Head(headers, host, accept, origin, length, from_form)

    def add_body(self, data: bytes) -> None:
        """A part of the body has arrived. Most bodies are one part; many small ones must not be as many objects."""
        if not self.body:
            self.body = data
            return
        if isinstance(self.body, bytes):
            self.body = bytearray(self.body)
        self.body += data

    def decode(self) -> Any:
        """The request of the operation. The body is not kept.

        Raises:
            Refused: `invalid`, `unsupported_media_type`.
        """
        route = self.route
        assert route is not None
        decoder = route.decoder
        if decoder.reads_query:
            return decoder.query(self.query, {route.path_parameter: self.parameter} if self.parameter else None)
        body, self.body = bytes(self.body), b""
        return decoder.typed_body(self.content_type, body)

    def replayed(self) -> bytes:
        """The complete request as bytes for another parser, in HTTP/1.1 with a known length.

        Unless it is an upgrade, it asks for the connection to be closed after the answer.
        """
        lines = self._head_without(frozenset() if self.is_upgrade else _HOP_BY_HOP)
        if not self.is_upgrade:
            lines.append(b"connection: close")
            if self.body_bytes or self.method not in (b"GET", b"HEAD", b"OPTIONS"):
                lines.append(b"content-length: %d" % self.body_bytes)
        return b"\r\n".join((*lines, b"", bytes(self.body)))

    def head_without_upgrade(self) -> bytes:
        """The head for another parser, which then reads the body."""
        return b"\r\n".join((*self._head_without(_UPGRADE), b"", b""))

    def _head_without(self, names: frozenset[bytes]) -> list[bytes]:
        first = b"%b %b HTTP/1.%d" % (self.method, self.target, 0 if self.is_http_1_0 else 1)
        return [first, *(b"%b: %b" % header for header in self.headers if header[0] not in names)]


def split_target(target: bytes) -> tuple[str, bytes]:
    """Path and query string of a request target in origin form or absolute form (RFC 9112, section 3.2)."""
    if not target.startswith(b"/"):
        _, scheme, rest = target.partition(b"://")
        if scheme:
            slash = rest.find(b"/")
            target = rest[slash:] if slash >= 0 else b"/"
    path, _, query = target.partition(b"?")
    text = path.decode("latin-1")
    return (unquote(text) if "%" in text else text), query
