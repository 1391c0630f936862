"""Frames inside TLS arrive once, in order and unchanged; anything else ends the connection, with a reason."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dss_raft.net.tls import TlsStream
from dss_raft.net.wire import FRAME_BYTES_MAX, AppFrame, ForwardFrame, PingFrame, RaftFrame, Reason, WireError

frames = st.one_of(
    st.builds(ForwardFrame, st.binary(max_size=100)),
    st.builds(AppFrame, channel=st.text(max_size=8), data=st.binary(max_size=100)),
    st.builds(RaftFrame, st.just([])),
    st.just(PingFrame()),
)


@pytest.fixture
def streams(ends):
    """A new connection: (stream of the dialer, stream of the acceptor)."""
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    ends.shake(dialer, acceptor)
    return dialer.stream, acceptor.stream


@pytest.fixture(scope="module")
def connection(ends):
    """One connection for all examples, which leave it as it was."""
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    ends.shake(dialer, acceptor)
    return dialer.stream, acceptor.stream


def sealed(stream: TlsStream, *sent) -> bytes:
    return stream.seal(b"".join(stream.encode(frame) for frame in sent))


def refused(stream: TlsStream, data: bytes) -> Reason | None:
    try:
        assert list(stream.feed(data)) == []
    except WireError as error:
        return error.reason
    return None


@given(sent=st.lists(frames, max_size=6), cuts=st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_frames_arrive_in_order_whatever_pieces_the_bytes_come_in(connection, sent, cuts):
    a, b = connection
    stream, arrived, position = b"".join(sealed(a, frame) for frame in sent), [], 0
    while position < len(stream):
        for cut in cuts:
            arrived += b.feed(stream[position : position + cut])
            position += cut
    assert arrived == sent


def test_bytes_that_were_changed_dropped_repeated_reordered_or_reflected_end_the_connection(ends):
    def attempt(change) -> None:
        dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
        ends.shake(dialer, acceptor)
        one, two = sealed(dialer.stream, ForwardFrame(b"one")), sealed(dialer.stream, ForwardFrame(b"two"))
        with pytest.raises(WireError) as caught:
            list(acceptor.stream.feed(change(one, two, sealed(acceptor.stream, ForwardFrame(b"own")))))
        assert caught.value.reason is Reason.BAD_MAC

    attempt(lambda one, two, own: one[:-1] + bytes([one[-1] ^ 1]) + two)
    attempt(lambda one, two, own: two)
    attempt(lambda one, two, own: one + one)
    attempt(lambda one, two, own: two + one)
    attempt(lambda one, two, own: own)
    attempt(lambda one, two, own: b"\x17\x03\x03\x00\x40" + bytes(64))
    attempt(lambda one, two, own: b"\x16\x03\x01\x00\x40" + bytes(64))


@settings(max_examples=40)
@given(bit=st.integers(0, 2**14))
def test_one_flipped_bit_anywhere_is_refused(ends, bit):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    ends.shake(dialer, acceptor)
    stream = bytearray(sealed(dialer.stream, ForwardFrame(b"once")))
    bit %= len(stream) * 8
    stream[bit // 8] ^= 1 << bit % 8
    # A longer record waits for bytes that never come.
    assert refused(acceptor.stream, bytes(stream)) in ({None, Reason.BAD_MAC} if bit < 40 else {Reason.BAD_MAC})


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_a_huge_length_is_refused_before_anything_is_buffered(streams, length):
    a, b = streams
    assert refused(b, a.seal(struct.pack(">I", length))) is Reason.TOO_LARGE


def test_the_largest_frame_fits_one_byte_more_does_not_and_its_memory_is_given_back(streams):
    a, b = streams
    overhead = len(a.encode(ForwardFrame(bytes(100_000)))) - 100_000 - 4
    largest = ForwardFrame(bytes(FRAME_BYTES_MAX - overhead))
    tracemalloc.start()
    try:
        assert list(b.feed(sealed(a, largest))) == [largest]
        assert tracemalloc.get_traced_memory()[0] < 1024 * 1024
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="the limit is"):
        a.encode(ForwardFrame(bytes(FRAME_BYTES_MAX - overhead + 1)))
    assert list(b.feed(sealed(a, PingFrame()))) == [PingFrame()]


nonsense = st.recursive(st.integers(0, 2**63 - 1) | st.text(max_size=8) | st.none(), st.lists, max_leaves=10)


@settings(max_examples=60)
@given(payload=st.binary(max_size=60) | nonsense.map(msgspec.msgpack.encode))
def test_a_member_that_sends_nonsense_is_refused_too(connection, payload):
    a, b = connection
    try:
        msgspec.msgpack.decode(payload, type=RaftFrame | ForwardFrame | AppFrame | PingFrame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    else:
        assume(False)
    assert refused(b, a.seal(struct.pack(">I", len(payload)) + payload)) is Reason.MALFORMED


def test_a_field_that_a_newer_release_has_appended_is_ignored(streams):
    a, b = streams
    payload = msgspec.msgpack.encode([2, b"x", {"new": 1}])
    assert list(b.feed(a.seal(struct.pack(">I", len(payload)) + payload))) == [ForwardFrame(b"x")]


def test_a_member_that_closes_tls_is_refused(streams):
    """What follows would never be decrypted, and be kept."""
    a, b = streams
    with suppress(OSError):
        a._pipe._tls.unwrap()
    with pytest.raises(WireError, match="closed by the other side") as caught:
        list(b.feed(a._pipe.to_send()))
    assert caught.value.reason is Reason.BAD_MAC
