"""Bytes attached to JSON: in such a message, values that are bytes travel as they are, without Base64.

Such a message is a zero byte, the length of its JSON document (4 bytes, big-endian), the document, and then the bytes of all values, one
after the other. In the document, a value that is bytes has `encoding: "attached"`, and is the number of its bytes; values follow in the
order in which the document has them. No JSON begins with a zero byte, so a message says by itself what it is.

It is one form for all entry points: the body of a request with `Content-Type: application/vnd.dss.attached`, the body of an answer to a
client that accepts this type, and a binary frame of a WebSocket.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

MEDIA_TYPE = b"application/vnd.dss.attached"
#: `encoding` of a value that is bytes
BASE64 = "base64"
ATTACHED = "attached"

_MARK = b"\x00"
_HEAD_BYTES = 5


class Bytes:
    """A value of an answer or event that is bytes. `ENCODING` is its `encoding`. See `encode`."""

    __slots__ = ("_text", "data")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self._text: str | None = None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def text(self) -> str:
        """In Base64. It is made once: a line's answer is sent many times."""
        if self._text is None:
            self._text = base64.b64encode(self.data).decode()
        return self._text


class _Encoding:
    """Stands for the `encoding` that bytes have in the message that is being made."""


ENCODING: Any = _Encoding()


def _as_text(value: Any) -> Any:
    if type(value) is Bytes:
        return value.text
    if type(value) is _Encoding:
        return BASE64
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


encode_text = msgspec.json.Encoder(enc_hook=_as_text).encode


def encode(document: Any) -> tuple[bytes, list[memoryview]]:
    """The document, and its values that are bytes, which are to be attached."""
    parts: list[memoryview] = []

    def attach(value: Any) -> Any:
        if type(value) is Bytes:
            parts.append(value.data)
            return len(value.data)
        if type(value) is _Encoding:
            return ATTACHED
        raise TypeError(f"a value of type {type(value).__name__} has no JSON form")

    return msgspec.json.Encoder(enc_hook=attach).encode(document), parts


def message(document: bytes, parts: Iterable[memoryview]) -> bytes:
    """A whole message."""
    return b"".join((_MARK, len(document).to_bytes(4), document, *parts))


def is_attached(data: bytes) -> bool:
    return data[:1] == _MARK


class Parts:
    """The bytes that follow a document, to be taken in order."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position

    def take(self, length: bytes, before: bytes = b"") -> bytes:
        """The next value, behind `before`.

        Args:
            length: the number of its bytes, in JSON.

        Raises:
            ValueError: there are fewer, or this is no number.
        """
        if not length.isdigit() or len(length) > 10 or (end := self._position + int(length)) > len(self._data):
            raise ValueError("`value` must be the number of bytes that are attached for it")
        start, self._position = self._position, end
        return b"".join((before, memoryview(self._data)[start:end]))

    @property
    def left(self) -> int:
        return len(self._data) - self._position


def split(data: bytes) -> tuple[bytes, Parts]:
    """The document of a message, and what is attached.

    Raises:
        ValueError: it is shorter than it says.
    """
    length = int.from_bytes(data[1:_HEAD_BYTES])
    end = _HEAD_BYTES + length
    if len(data) < _HEAD_BYTES or end > len(data):
        raise ValueError("the message ends within its JSON document")
    return data[_HEAD_BYTES:end], Parts(data, end)


def accepts(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the Accept header names the type."""
    return any(MEDIA_TYPE in value for name, value in headers if name == b"accept")
