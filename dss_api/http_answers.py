"""Answers as the bytes of HTTP/1.1."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus

from dss_api.codec import EncodedAnswer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_CLOSE = b"connection: close\r\n"
#: HTTP/1.0 clients expect the connection to be closed unless the answer says otherwise.
_KEEP_ALIVE = b"connection: keep-alive\r\n"


@cache
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


@cache
def header_lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def encode_answer(answer: EncodedAnswer, is_head: bool, keeps_alive: bool, is_http_1_0: bool, more: bytes = b"") -> bytes:
    """The complete answer. `is_head` omits the body. `more` is lines of headers."""
    body = answer.payload
    connection = _CLOSE if not keeps_alive else _KEEP_ALIVE if is_http_1_0 else b""
    return b"%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
        _status_line(answer.status),
        header_lines(answer.headers),
        connection,
        more,
        len(body),
        b"" if is_head else body,
    )
