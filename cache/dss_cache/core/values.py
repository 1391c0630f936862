"""Values as they are stored: JSON, or bytes behind a mark that no JSON begins with."""

from __future__ import annotations

import base64
import binascii

import msgspec

_MARK = b"\x00"
_decode_text = msgspec.json.Decoder(str).decode

BASE64 = "base64"


def is_binary(value: bytes) -> bool:
    return value[:1] == _MARK


def from_base64(text: bytes) -> bytes:
    """The stored form of bytes that a request carries as a JSON string in Base64.

    Raises:
        ValueError: it is not one.
    """
    try:
        return _MARK + base64.b64decode(_decode_text(text), validate=True)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError):
        raise ValueError("the value is not a string in Base64") from None


def as_json(value: bytes) -> bytes:
    """The value as JSON; bytes as a string in Base64."""
    return b'"%b"' % base64.b64encode(value[1:]) if is_binary(value) else value


def as_text(value: bytes, length_max: int) -> str:
    """The beginning of the value, for people."""
    if is_binary(value):
        return f"{len(value) - 1:,} bytes: {value[1 : 1 + length_max // 2].hex()}"
    return value[:length_max].decode(errors="replace")
