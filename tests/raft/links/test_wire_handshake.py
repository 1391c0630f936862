"""Each side proves to the other that it knows the secret, for this connection only."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_raft.net import handshake as handshake_module
from dss_raft.net.wire import PingFrame, Reason, WireError, with_length
from dss_raft.versions import FIRST_ANNOUNCED, Announced, Supported


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
    hello = msgspec.msgpack.encode(
        handshake_module.Hello(cluster="c", node="d", to="a", nonce=bytes(32), versions=FIRST_ANNOUNCED)
    )
    assert refusal(dialer, with_length(handshake_module.PREFIX + hello)).reason is Reason.WRONG_NODE


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_PEER, Reason.NO_MEMBER])
def test_a_node_that_is_not_a_member_is_refused_once_both_know_the_secret(ends, reason):
    """Only the refusal that says for certain that it is not a member has an effect on the dialer."""
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b", refuses=lambda peer_id: reason)
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert error.reason is reason
    told = refusal(dialer, error.reply)
    assert told.reason is (reason if reason is Reason.NO_MEMBER else Reason.REFUSED_BY_PEER)
    assert str(reason) in str(told)
    assert (dialer.is_proven, told.reply) == (True, b"")


def refused(reason: str, mac: bytes = b"") -> bytes:
    return with_length(handshake_module.PREFIX + msgspec.msgpack.encode(handshake_module.Refusal(reason, mac)))


@pytest.mark.parametrize("reason", [*Reason, "delete all data of this node"])
@pytest.mark.parametrize("mac", [b"", bytes(32)])
@pytest.mark.parametrize("moment", ["first", "after hello"])
def test_a_refusal_without_the_secret_is_not_believed_and_says_only_known_words(ends, reason, mac, moment):
    dialer = ends.handshake("a", dials="b")
    if moment == "after hello":
        dialer.feed(ends.handshake("b", secret=b"guess").feed(dialer.greeting()))
    told = refusal(dialer, refused(reason, mac))
    assert (told.reason, dialer.is_proven) == (Reason.REFUSED_BY_PEER, False)
    assert "not proved" in told.detail
    assert "delete" not in told.detail


def test_a_refusal_counts_for_its_own_connection_its_own_reason_and_the_dialer(ends):
    dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b", refuses=lambda peer_id: Reason.NO_MEMBER)
    hello = acceptor.feed(dialer.greeting())
    recorded = refusal(acceptor, dialer.feed(hello)).reply
    again = ends.handshake("a", dials="b")
    again.feed(ends.handshake("b").feed(again.greeting()))
    assert refusal(again, recorded).reason is Reason.REFUSED_BY_PEER, "recorded on another connection"

    dialer = ends.handshake("a", dials="b")
    acceptor = ends.handshake("b", refuses=lambda peer_id: Reason.UNKNOWN_PEER)
    mac = handshake_module._decode(refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting()))).reply[4 + 5 :]).mac
    assert refusal(dialer, refused(Reason.NO_MEMBER, mac)).reason is Reason.REFUSED_BY_PEER, "another reason"
    acceptor = ends.handshake("b")
    acceptor.feed(ends.handshake("a", dials="b").greeting())
    assert refusal(acceptor, refused(Reason.NO_MEMBER, mac)).reason is Reason.REFUSED_BY_PEER, "a dialer cannot refuse"


@pytest.mark.parametrize("field", ["cluster", "node", "to"])
def test_a_name_that_no_node_can_have_is_malformed(ends, field):
    """Nothing that a stranger writes reaches the log as it is."""
    names = {"cluster": "c", "node": "a", "to": "b", field: "b: delete all data"}
    hello = msgspec.msgpack.encode(handshake_module.Hello(**names, nonce=bytes(32), versions=FIRST_ANNOUNCED))
    error = refusal(ends.handshake("b"), with_length(handshake_module.PREFIX + hello))
    assert error.reason is Reason.MALFORMED
    assert "delete" not in error.detail


def test_another_version_is_reported_whatever_its_messages_look_like(ends):
    other = handshake_module.VERSION + 1
    error = refusal(ends.handshake("b"), with_length(b"DSSP" + bytes([other]) + b"anything else"))
    assert error.reason is Reason.VERSION
    assert f"version {other}" in error.detail


OLDER, NEWER = Announced(Supported(1, 1), 1), Announced(Supported(1, 2), 1)


@pytest.mark.parametrize(("dials", "accepts"), [(OLDER, NEWER), (NEWER, OLDER)])
def test_nodes_of_two_releases_link_and_know_what_the_other_supports(ends, dials, accepts):
    dialer, acceptor = ends.handshake("a", dials="b", versions=dials), ends.handshake("b", versions=accepts)
    ends.shake(dialer, acceptor)
    assert (dialer.peer_versions, acceptor.peer_versions) == (accepts, dials)
    assert list(acceptor.stream.feed(dialer.stream.encode(PingFrame()))) == [PingFrame()]


@pytest.mark.parametrize("is_dialer_old", [True, False])
def test_an_older_release_is_refused_once_both_know_the_secret_and_both_say_why(ends, is_dialer_old):
    old, new = OLDER, Announced(Supported(1, 2), 2)
    dialer = ends.handshake("a", dials="b", versions=old if is_dialer_old else new)
    acceptor = ends.handshake("b", versions=new if is_dialer_old else old)
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    told = refusal(dialer, error.reply)
    assert (error.reason, told.reason) == (Reason.VERSION, Reason.VERSION)
    assert (acceptor.is_proven, dialer.is_proven) == (True, True)
    assert "the cluster's version is 2" in error.detail
    assert "the cluster's version is 2" in told.detail


def test_an_acceptor_that_does_not_check_versions_is_refused_by_the_dialer(ends, monkeypatch):
    dialer = ends.handshake("a", dials="b", versions=OLDER)
    acceptor = ends.handshake("b", versions=Announced(Supported(1, 2), 2))
    monkeypatch.setattr(acceptor, "_check_versions", lambda: None)
    assert refusal(dialer, acceptor.feed(dialer.feed(acceptor.feed(dialer.greeting())))).reason is Reason.VERSION


@pytest.mark.parametrize("changed_by", ["dialer to acceptor", "acceptor to dialer"])
def test_nobody_in_between_can_change_the_versions(ends, changed_by):
    dialer, acceptor = ends.handshake("a", dials="b", versions=NEWER), ends.handshake("b", versions=NEWER)
    greeting = dialer.greeting()
    answer = acceptor.feed(_with_versions(greeting, OLDER) if changed_by == "dialer to acceptor" else greeting)
    proof = dialer.feed(_with_versions(answer, OLDER) if changed_by == "acceptor to dialer" else answer)
    assert refusal(acceptor, proof).reason is Reason.WRONG_SECRET


def _with_versions(sent: bytes, versions: Announced) -> bytes:
    hello = handshake_module._decode(sent[4 + 5 :])
    return with_length(handshake_module.PREFIX + msgspec.msgpack.encode(msgspec.structs.replace(hello, versions=versions)))


def test_fields_of_a_newer_hello_are_ignored_and_cannot_be_removed(ends):
    """A later release appends a field to its hello, and one to the versions in it."""

    def shake(keeps_field: bool):
        dialer, acceptor = ends.handshake("a", dials="b"), ends.handshake("b")
        parts = [*msgspec.msgpack.decode(dialer.greeting()[4 + 5 :]), "a new field"]
        parts[5] = [*parts[5], 7]
        newer = handshake_module.PREFIX + msgspec.msgpack.encode(parts)
        dialer._own_hello = newer
        answer = acceptor.feed(with_length(newer) if keeps_field else dialer.greeting())
        dialer._own_hello = newer
        return acceptor, dialer.feed(answer)

    acceptor, proof = shake(keeps_field=True)
    assert acceptor.feed(proof)
    assert acceptor.stream is not None
    acceptor, proof = shake(keeps_field=False)
    assert refusal(acceptor, proof).reason is Reason.WRONG_SECRET


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
        data = handshake_module.PREFIX + data
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
    proof = with_length(handshake_module.PREFIX + msgspec.msgpack.encode(handshake_module.Proof(bytes(32))))
    assert refusal(ends.handshake("b"), proof).reason is Reason.MALFORMED
    acceptor.feed(dialer.greeting())
    assert refusal(acceptor, dialer.greeting()).reason is Reason.MALFORMED
