"""One HTTP/1.1 request while it arrives."""

from __future__ import annotations

from time import perf_counter
from typing import Any
from urllib.parse import unquote

from dss_api.codec import EncodedAnswer
from dss_api.routes import Route

_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"expect", b"proxy-connection"))


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

    def complete_head(self, method: bytes, version: str, keep_alive: bool, is_upgrade: bool) -> None:
        """The request line and the headers are there."""
        self.has_head = True
        self.method = method
        self.is_http_1_0 = version == "1.0"
        self.keep_alive = keep_alive
        self.is_upgrade = is_upgrade
        self.path, self.query = split_target(self.target)

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
        lines = [b"%b %b HTTP/1.%d" % (self.method, self.target, 0 if self.is_http_1_0 else 1)]
        if self.is_upgrade:
            lines += [b"%b: %b" % header for header in self.headers]
        else:
            lines += [b"%b: %b" % header for header in self.headers if header[0] not in _HOP_BY_HOP]
            lines.append(b"connection: close")
            if self.body_bytes or self.method not in (b"GET", b"HEAD", b"OPTIONS"):
                lines.append(b"content-length: %d" % self.body_bytes)
        return b"\r\n".join((*lines, b"", bytes(self.body)))


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
