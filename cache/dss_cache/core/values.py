"""Values as they are stored: JSON, or bytes behind a mark that no JSON begins with."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from dss_api.attached import Bytes

#: what the stored form of bytes begins with
MARK = b"\x00"
_decode_text = msgspec.json.Decoder(str).decode


def is_binary(value: bytes) -> bool:
    return value[:1] == MARK


def from_base64(text: bytes) -> bytes:
    """The stored form of bytes that a request carries as a JSON string in Base64.

    Raises:
        ValueError: it is not one.
    """
    try:
        return MARK + base64.b64decode(_decode_text(text), validate=True)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError):
        raise ValueError("the value is not a string in Base64") from None


def to_answer(value: bytes) -> Any:
    """The value as a field of an answer."""
    return Bytes(memoryview(value)[1:]) if is_binary(value) else msgspec.Raw(value)


def as_text(value: bytes, length_max: int) -> str:
    """The beginning of the value, for people."""
    if is_binary(value):
        return f"{len(value) - 1:,} bytes: {value[1 : 1 + length_max // 2].hex()}"
    return value[:length_max].decode(errors="replace")
