"""The frames of WebSocket (RFC 6455), as far as a client of this API needs them.

The library `websockets` makes the handshake. Its frames are objects that go through generators, which takes longer than everything else
that happens to a call here, so the frames are read and written in this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from websockets.frames import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_FIN = 0x80
_MASKED = 0x80
_RANDOM_BYTES = 4096


class ProtocolError(Exception):
    """The node sent something that is no frame for a client."""


class FrameWriter:
    """Makes frames of a client."""

    def __init__(self) -> None:
        self._random = b""
        self._used = 0

    def frame(self, opcode: int, payload: bytes) -> bytes:
        """One whole, masked frame."""
        if self._used >= len(self._random):
            self._random, self._used = os.urandom(_RANDOM_BYTES), 0
        mask = self._random[self._used : self._used + 4]
        self._used += 4
        size = len(payload)
        if size < 126:
            return b"%c%c%b%b" % (_FIN | opcode, _MASKED | size, mask, apply_mask(payload, mask))
        if size < 65536:
            return b"%c\xfe%b%b%b" % (_FIN | opcode, size.to_bytes(2), mask, apply_mask(payload, mask))
        return b"%c\xff%b%b%b" % (_FIN | opcode, size.to_bytes(8), mask, apply_mask(payload, mask))


class FrameReader:
    """Reads frames of a node.

    Args:
        bytes_max: of a message.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._rest = b""
        #: the parts of a message in several frames, and its opcode
        self._parts: list[bytes] = []
        self._size = 0
        self._opcode = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The messages that are complete now: opcode and payload. Read it to its end.

        Raises:
            ProtocolError
        """
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        while True:
            start = position + 2
            if start > end:
                break
            first, size = data[position], data[position + 1]
            if first & 0x70 or size & _MASKED:
                raise ProtocolError("a frame has bits that it must not have")
            if size >= 126:
                width = 2 if size == 126 else 8
                start += width
                if start > end:
                    break
                size = int.from_bytes(data[start - width : start])
            if size + self._size > self._bytes_max:
                raise ProtocolError("a message is too large")
            position_after = start + size
            if position_after > end:
                break
            position = position_after
            opcode, payload = first & 0x0F, data[start:position_after]
            if first & _FIN and opcode:
                if opcode in (TEXT, BINARY) and self._parts:
                    raise ProtocolError("a message begins within another")
                yield opcode, payload
            elif opcode >= CLOSE or (opcode == CONTINUATION) != bool(self._parts):
                raise ProtocolError("a frame is out of place")
            else:
                self._opcode = opcode or self._opcode
                self._parts.append(payload)
                self._size += size
                if first & _FIN:
                    whole = b"".join(self._parts)
                    self._parts.clear()
                    self._size = 0
                    yield self._opcode, whole
        self._rest = data[position:]
