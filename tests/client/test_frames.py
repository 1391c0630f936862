"""Frames are those of the library `websockets`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol, State

from dss_client.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, FrameWriter, ProtocolError

PAYLOADS = st.binary(max_size=300) | st.integers(60_000, 70_000).map(bytes)
CONTROL = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))
MESSAGES = st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), PAYLOADS) | CONTROL, max_size=6)


def as_sent(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A frame of a server."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=False)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES)
def test_the_library_reads_our_frames(messages: list[tuple[int, bytes]]) -> None:
    writer, server = FrameWriter(), Protocol(SERVER, state=State.OPEN, max_size=None)
    server.receive_data(b"".join(writer.frame(*message) for message in messages))
    frames: list[Any] = server.events_received()
    assert [(frame.opcode, bytes(frame.data)) for frame in frames] == messages


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.integers(1, 40) | st.just(50_000), st.booleans())
def test_we_read_frames_of_the_library(messages: list[tuple[int, bytes]], size: int, in_parts: bool) -> None:
    sent = b""
    for opcode, payload in messages:
        if in_parts and opcode in (TEXT, BINARY):
            cut = len(payload) // 3
            sent += as_sent(opcode, payload[:cut], fin=False) + as_sent(0, payload[cut:])
        else:
            sent += as_sent(opcode, payload)
    size = max(size, len(sent) // 1000)
    reader, received = FrameReader(10**6), []
    for position in range(0, len(sent), size):
        received += list(reader.feed(sent[position : position + size]))
    assert received == messages


def test_a_ping_between_the_parts_of_a_message() -> None:
    sent = as_sent(TEXT, b"a", fin=False) + as_sent(PING, b"!") + as_sent(0, b"b")
    assert list(FrameReader(100).feed(sent)) == [(PING, b"!"), (TEXT, b"ab")]


@pytest.mark.parametrize(
    "sent",
    [
        b"\xc1\x00",
        b"\x81\x80",
        as_sent(0, b"a"),
        as_sent(TEXT, b"a", fin=False) + as_sent(TEXT, b"b"),
        b"\x08\x00",
        as_sent(TEXT, bytes(101)),
        as_sent(TEXT, bytes(60), fin=False) + as_sent(0, bytes(60)),
        b"\x81\xff" + bytes(8),
        b"\x81\x7f\xff" + bytes(7),
    ],
    ids=["reserved bit", "masked", "no beginning", "within another", "half a close", "large", "large parts", "masked 64", "huge"],
)
def test_what_is_no_frame(sent: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameReader(100).feed(sent))


def test_a_close() -> None:
    assert list(FrameReader(100).feed(as_sent(CLOSE, b"\x03\xe8"))) == [(CLOSE, b"\x03\xe8")]
