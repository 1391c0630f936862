"""The codec of frames: frames arrive once, in order and unchanged; anything else ends the connection, with a reason."""

from __future__ import annotations

import struct
import tracemalloc
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dss_raft.core.messages import (
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    InstallSnapshot,
    Member,
    PreVote,
    SnapshotMeta,
    TimeoutNow,
)
from dss_raft.net.wire import (
    FRAME_BYTES_MAX,
    AppFrame,
    AuthenticatedStream,
    ForwardFrame,
    PingFrame,
    RaftFrame,
    Reason,
    WireError,
)

numbers = st.integers(0, 2**63 - 1)
ids = st.text(max_size=8)
head = {"sender": ids, "to": ids, "term": numbers}
entries = st.builds(Entry, index=numbers, term=numbers, kind=st.integers(0, 2), data=st.binary(max_size=50))
metas = st.builds(
    SnapshotMeta,
    index=numbers,
    term=numbers,
    configuration=st.builds(
        Configuration, st.lists(st.builds(Member, id=ids, url=ids, learner=st.booleans()), max_size=3).map(tuple)
    ),
    size=numbers,
    crc=numbers,
)
messages = st.one_of(
    st.builds(PreVote, **head, last_index=numbers, last_term=numbers),
    st.builds(
        AppendEntries, **head, prev_index=numbers, prev_term=numbers, entries=st.lists(entries, max_size=4), commit=numbers
    ),
    st.builds(AppendReply, **head, ok=st.booleans(), match=numbers, prev_index=numbers, hint_index=numbers),
    st.builds(InstallSnapshot, **head, meta=metas, offset=numbers, data=st.binary(max_size=50), crc=numbers, done=st.booleans()),
    st.builds(TimeoutNow, **head),
)
frames = st.one_of(
    st.builds(RaftFrame, st.lists(messages, max_size=4)),
    st.builds(ForwardFrame, st.binary(max_size=100)),
    st.builds(AppFrame, channel=ids, data=st.binary(max_size=100)),
    st.just(PingFrame()),
)


nonsense = st.recursive(numbers | ids | st.none(), st.lists, max_leaves=10)


def feed(stream: AuthenticatedStream, data: bytes) -> list:
    return list(stream.feed(data))


def refused(stream: AuthenticatedStream, data: bytes) -> Reason | None:
    """The reason for which `data` ends the connection; None when more bytes are needed."""
    try:
        assert feed(stream, data) == []
    except WireError as error:
        return error.reason
    return None


@pytest.fixture(scope="module")
def streams(ends):
    """A function that makes a new connection: (stream of the dialer, stream of the acceptor)."""
    return ends.streams


@given(sent=st.lists(frames, max_size=6), cuts=st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_frames_arrive_in_order_whatever_pieces_the_bytes_come_in(streams, sent, cuts):
    a, b = streams()
    stream, arrived, position = b"".join(a.encode(frame) for frame in sent), [], 0
    while position < len(stream):
        for cut in cuts:
            arrived += feed(b, stream[position : position + cut])
            position += cut
    assert arrived == sent


def test_both_directions_have_keys_of_their_own(streams):
    a, b = streams()
    assert feed(a, b.encode(PingFrame())) == [PingFrame()]
    assert refused(a, a.encode(PingFrame())) is Reason.BAD_MAC


@given(data=st.binary(min_size=1, max_size=200))
def test_random_bytes_are_never_a_frame(streams, data):
    _, b = streams()
    assert refused(b, data) in {None, Reason.TOO_LARGE, Reason.MALFORMED, Reason.BAD_MAC}


@given(frame=frames, data=st.data())
def test_one_flipped_bit_anywhere_is_refused(streams, frame, data):
    a, b = streams()
    stream = bytearray(a.encode(frame))
    bit = data.draw(st.integers(0, len(stream) * 8 - 1))
    stream[bit // 8] ^= 1 << bit % 8
    # A longer length waits for bytes that never come; the frame after it then runs into the wrong MAC.
    reason = refused(b, bytes(stream))
    assert reason in ({None, Reason.TOO_LARGE, Reason.BAD_MAC, Reason.MALFORMED} if bit < 32 else {Reason.BAD_MAC})


@given(frame=frames, data=st.data())
def test_an_incomplete_frame_is_waited_for(streams, frame, data):
    a, b = streams()
    stream = a.encode(frame)
    assert refused(b, stream[: data.draw(st.integers(0, len(stream) - 1))]) is None


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_a_huge_length_is_refused_before_anything_is_buffered(streams, length):
    _, b = streams()
    assert refused(b, struct.pack(">I", length)) is Reason.TOO_LARGE


def test_a_frame_that_never_ends_takes_no_more_memory_than_the_limit(streams):
    _, b = streams()
    piece = bytes(64 * 1024)
    tracemalloc.start()
    try:
        assert refused(b, struct.pack(">I", FRAME_BYTES_MAX)) is None
        for _ in range(FRAME_BYTES_MAX // len(piece) - 1):
            assert refused(b, piece) is None
        assert refused(b, piece) is Reason.BAD_MAC
        assert tracemalloc.get_traced_memory()[1] < 4 * FRAME_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_the_memory_of_a_large_frame_is_given_back(streams):
    a, b = streams()
    stream = a.encode(ForwardFrame(bytes(8 * 1024 * 1024)))
    tracemalloc.start()
    try:
        assert len(feed(b, stream[:1000]) + feed(b, stream[1000:])) == 1
        assert tracemalloc.get_traced_memory()[0] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_the_largest_frame_fits_and_one_byte_more_does_not(streams):
    a, b = streams()
    overhead = len(a.encode(ForwardFrame(bytes(100_000)))) - 100_000 - 4
    a, b = streams()
    largest = ForwardFrame(bytes(FRAME_BYTES_MAX - overhead))
    assert feed(b, a.encode(largest)) == [largest]
    with pytest.raises(ValueError, match="the limit is"):
        a.encode(ForwardFrame(bytes(FRAME_BYTES_MAX - overhead + 1)))
    assert feed(b, a.encode(PingFrame())) == [PingFrame()], "a frame that was not sent leaves no gap"


def test_a_repeated_frame_is_a_replay(streams):
    a, b = streams()
    first = a.encode(ForwardFrame(b"once"))
    assert feed(b, first) == [ForwardFrame(b"once")]
    assert refused(b, first) is Reason.REPLAY


def test_a_missing_frame_is_noticed(streams):
    a, b = streams()
    a.encode(ForwardFrame(b"lost"))
    assert refused(b, a.encode(ForwardFrame(b"next"))) is Reason.REPLAY


@given(frame=frames)
def test_a_frame_of_another_connection_is_refused(streams, frame):
    earlier, _ = streams()
    _, b = streams()
    assert refused(b, earlier.encode(frame)) is Reason.BAD_MAC


def test_good_frames_before_a_bad_one_are_still_delivered(streams):
    a, b = streams()
    arriving = b.feed(a.encode(ForwardFrame(b"good")) + struct.pack(">I", 50) + bytes(50))
    assert next(arriving) == ForwardFrame(b"good")
    with pytest.raises(WireError):
        next(arriving)


@given(payload=st.binary(max_size=60) | nonsense.map(msgspec.msgpack.encode))
def test_an_authenticated_peer_that_sends_nonsense_is_refused_too(streams, payload):
    a, b = streams()
    try:
        msgspec.msgpack.decode(payload, type=RaftFrame | ForwardFrame | AppFrame | PingFrame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    else:
        assume(False)
    a._encoder = Raw(payload)
    assert refused(b, a.encode(PingFrame())) is Reason.MALFORMED


def test_a_list_that_claims_to_be_huge_costs_no_memory(streams):
    a, b = streams()
    a._encoder = Raw(b"\x92\x01\xdd\xff\xff\xff\xff")  # RaftFrame of 2**32 - 1 messages
    tracemalloc.start()
    try:
        assert refused(b, a.encode(PingFrame())) is Reason.MALFORMED
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


class Raw:
    """Replaces the encoder, to send what no encoder produces."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def encode(self, frame: object) -> bytes:
        return self.payload


def _newer(frame, streams, change):
    """What the acceptor makes of a frame that a newer release has encoded, as `change(parts)` makes it from the parts of this one."""
    dialer, acceptor = streams()
    parts = change(msgspec.msgpack.decode(msgspec.msgpack.encode(frame)))
    dialer._encoder = SimpleNamespace(encode=lambda _: msgspec.msgpack.encode(parts))
    return feed(acceptor, dialer.encode(frame))


APPEND = AppendEntries(sender="a", to="b", term=3, prev_index=1, prev_term=2, entries=[Entry(2, 3, 0, b"x")], commit=1)


def _append_to_message(parts):
    return [parts[0], [[*message, "new", 7] for message in parts[1]]]


def _append_to_entries(parts):
    message = parts[1][0]
    position = message.index([[2, 3, 0, b"x"]])
    return [parts[0], [[*message[:position], [[2, 3, 0, b"x", "new"]], *message[position + 1 :]]]]


@pytest.mark.parametrize("frame", [RaftFrame([APPEND]), ForwardFrame(b"x"), AppFrame("c", b"x"), PingFrame()])
def test_a_field_that_a_newer_release_has_appended_to_a_frame_is_ignored(streams, frame):
    assert _newer(frame, streams, lambda parts: [*(parts if isinstance(parts, list) else [parts]), {"new": 1}]) == [frame]


def test_a_field_that_a_newer_release_has_appended_to_a_message_is_ignored(streams):
    frame = RaftFrame([APPEND])
    assert _newer(frame, streams, _append_to_message) == [frame]


def test_an_unknown_field_of_what_is_stored_is_refused(streams):
    """It would be lost on this node only."""
    with pytest.raises(WireError) as caught:
        _newer(RaftFrame([APPEND]), streams, _append_to_entries)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize("change", [lambda parts: [99, *parts[1:]], lambda parts: [parts[0], [[99, *parts[1][0][1:]]]]])
def test_an_unknown_kind_of_frame_or_message_is_refused(streams, change):
    """A newer release sends it only from the cluster version on that knows it."""
    with pytest.raises(WireError) as caught:
        _newer(RaftFrame([APPEND]), streams, change)
    assert caught.value.reason is Reason.MALFORMED
