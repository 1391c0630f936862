"""Each side proves to the other that it knows the secret, for this connection only."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_raft.net import handshake as handshake_module
from dss_raft.net.wire import PingFrame, Reason, WireError, with_length


def refusal(side, data: bytes) -> WireError:
    with pytest.raises(WireError) as caught:
        side.feed(data)
    assert side.stream is None
    return caught.value


def test_both_sides_end_with_a_stream_and_the_id_of_the_other(ends):
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b")
    sent = ends.shake(dialer, acceptor)
    assert [bool(step) for step in sent] == [True, True, True, True, False]
    assert (dialer.peer_id, acceptor.peer_id) == ("b", "a")
    assert list(acceptor.stream.feed(dialer.stream.encode(PingFrame()))) == [PingFrame()]


@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=10))
def test_the_bytes_may_arrive_in_any_pieces_and_frames_may_follow_immediately(ends, cuts):
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b")
    proof = dialer.feed(acceptor.feed(dialer.greeting()))
    answer = acceptor.feed(proof) + acceptor.stream.encode(PingFrame())
    position, frames = 0, []
    while position < len(answer):
        for cut in cuts:
            piece, position = answer[position : position + cut], position + cut
            if dialer.stream is None:
                dialer.feed(piece)
                piece = dialer.rest
            if dialer.stream is not None:
                frames += dialer.stream.feed(piece)
    assert frames == [PingFrame()]


def test_the_acceptor_refuses_a_wrong_secret_without_sending_its_own_proof(ends):
    dialer, acceptor = ends.handshake("a", dials="b", secret=b"guess"), ends.handshake("b")
    proof = dialer.feed(acceptor.feed(dialer.greeting()))
    error = refusal(acceptor, proof)
    assert error.reason is Reason.WRONG_SECRET
    told = refusal(dialer, error.reply)
    assert told.reason is Reason.REFUSED_BY_PEER
    assert "wrong_secret" in told.detail


def test_an_acceptor_without_the_secret_is_refused(ends):
    dialer, impostor = ends.handshake("a", dials="b"), ends.handshake("b", secret=b"guess")
    dialer.feed(impostor.feed(dialer.greeting()))
    assert refusal(dialer, impostor._proof()).reason is Reason.WRONG_SECRET


def test_another_cluster_is_refused(ends):
    dialer, acceptor = ends.handshake("a", dials="b", cluster_id="other"), ends.handshake("b")
    assert refusal(acceptor, dialer.greeting()).reason is Reason.WRONG_CLUSTER


def test_a_node_other_than_the_dialed_one_is_refused_by_both_sides(ends):
    acceptor = ends.handshake("c")
    assert refusal(acceptor, ends.handshake("a", dials="b").greeting()).reason is Reason.WRONG_NODE
    dialer = ends.handshake("a", dials="b")
    hello = msgspec.msgpack.encode(handshake_module.Hello(cluster="c", node="d", to="a", nonce=bytes(32)))
    assert refusal(dialer, with_length(handshake_module._PREFIX + hello)).reason is Reason.WRONG_NODE


def test_a_node_that_is_not_a_member_is_refused(ends):
    acceptor = ends.handshake("b", accepts=lambda peer_id: peer_id != "a")
    assert refusal(acceptor, ends.handshake("a", dials="b").greeting()).reason is Reason.UNKNOWN_PEER


def test_another_version_is_reported_whatever_its_messages_look_like(ends):
    error = refusal(ends.handshake("b"), with_length(b"DSSP\x09anything else"))
    assert error.reason is Reason.VERSION
    assert "version 9" in error.detail


def test_a_recorded_handshake_is_useless_on_another_connection(ends):
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b")
    recorded = ends.shake(dialer, acceptor)
    fresh = ends.handshake("b")
    fresh.feed(recorded[0])
    assert refusal(fresh, recorded[2]).reason is Reason.WRONG_SECRET


def test_a_proof_cannot_be_reflected_to_its_sender(ends):
    dialer = ends.handshake("a", dials="b")
    assert refusal(dialer, dialer.greeting()).reason is Reason.WRONG_NODE
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b")
    proof = dialer.feed(acceptor.feed(dialer.greeting()))
    assert refusal(dialer, proof).reason is Reason.WRONG_SECRET


@pytest.mark.parametrize("length", [1025, 65_536, 2**32 - 1])
def test_a_stranger_cannot_make_this_node_buffer_more_than_a_kibibyte(ends, length):
    assert refusal(ends.handshake("b"), struct.pack(">I", length)).reason is Reason.TOO_LARGE


@given(data=st.binary(max_size=300), framed=st.booleans(), prefixed=st.booleans())
def test_random_bytes_are_refused_or_incomplete(ends, data, framed, prefixed):
    acceptor = ends.handshake("b")
    if prefixed:
        data = handshake_module._PREFIX + data
    reply, reason = b"", None
    try:
        reply = acceptor.feed(with_length(data) if framed else data)
    except WireError as error:
        reason = error.reason
    assert reply == b""
    assert reason in {None, Reason.MALFORMED, Reason.TOO_LARGE, Reason.VERSION, Reason.REFUSED_BY_PEER, Reason.WRONG_CLUSTER}
    assert acceptor.stream is None


@given(step=st.integers(0, 3), data=st.data())
def test_one_flipped_bit_in_any_step_prevents_authentication(ends, step, data):
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b")
    sides = [acceptor, dialer, acceptor, dialer]
    message = dialer.greeting()
    for number, side in enumerate(sides[: step + 1]):
        if number == step:
            changed = bytearray(message)
            bit = data.draw(st.integers(0, len(changed) * 8 - 1))
            changed[bit // 8] ^= 1 << bit % 8
            message = bytes(changed)
        try:
            message = side.feed(message)
        except WireError:
            return
    # Some changes are not noticed immediately (a nonce, a longer length): then the proofs do not match.
    for side in sides[step + 1 :]:
        try:
            message = side.feed(message)
        except WireError:
            return
    assert sides[step].stream is None or sides[step - 1].stream is None


def test_messages_in_the_wrong_order_are_refused(ends):
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b")
    proof = with_length(handshake_module._PREFIX + msgspec.msgpack.encode(handshake_module.Proof(bytes(32))))
    assert refusal(ends.handshake("b"), proof).reason is Reason.MALFORMED
    acceptor.feed(dialer.greeting())
    assert refusal(acceptor, dialer.greeting()).reason is Reason.MALFORMED
