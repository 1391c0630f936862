"""Both sides show a certificate of the cluster that names them, before anything else is said."""

from __future__ import annotations

import ssl
import struct
from contextlib import suppress

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dss_raft.net import handshake as handshake_module
from dss_raft.net import tls_handshake
from dss_raft.net.certificates import SecretCredentials
from dss_raft.net.tls import context
from dss_raft.net.tls_handshake import UNVERIFIED_BYTES_MAX, Acceptance
from dss_raft.net.wire import PingFrame, Reason, WireError, with_length
from dss_raft.versions import Announced, Supported


def refusal(side, data: bytes) -> WireError:
    with pytest.raises(WireError) as caught:
        side.feed(data)
    assert side.stream is None
    return caught.value


class Anonymous:
    """A TLS client without a certificate, which accepts every server."""

    def __init__(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.minimum_version = client.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self.incoming, self.outgoing)
        self.learned = b""

    def greeting(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def take(self, data: bytes) -> bytes:
        """Receive bytes; collects everything that a client can read of them."""
        self.incoming.write(data)
        try:
            self.tls.do_handshake()
            self.learned += self.tls.getpeercert(binary_form=True)
            while piece := self.tls.read(65536):
                self.learned += piece
        except ssl.SSLError:
            pass
        return self.outgoing.read()


def test_both_sides_end_with_a_stream_and_the_id_of_the_other(ends):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    sent = ends.shake(dialer, acceptor)
    assert [bool(step) for step in sent] == [True, True, True, True, False], "as many steps as the handshake before TLS"
    assert (dialer.peer_id, acceptor.peer_id, dialer.is_proven, acceptor.is_proven) == ("b", "a", True, True)
    assert list(acceptor.stream.feed(dialer.stream.seal(dialer.stream.encode(PingFrame())))) == [PingFrame()]
    assert list(dialer.stream.feed(acceptor.stream.seal(acceptor.stream.encode(PingFrame())))) == [PingFrame()]


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 200), min_size=1, max_size=10))
def test_the_bytes_may_arrive_in_any_pieces_and_frames_may_follow_immediately(ends, cuts):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")

    def feed(side, data: bytes) -> bytes:
        reply, position = b"", 0
        while position < len(data):
            for cut in cuts:
                piece, position = data[position : position + cut], position + cut
                if side.stream is not None:
                    frames.extend(side.stream.feed(piece))
                elif piece:
                    reply += side.feed(piece)
                    if side.stream is not None:
                        frames.extend(side.stream.feed(b""))
        return reply

    frames: list = []
    answer = feed(acceptor, feed(dialer, feed(acceptor, dialer.greeting())))
    feed(dialer, answer + acceptor.stream.seal(acceptor.stream.encode(PingFrame()) * 2))
    assert frames == [PingFrame(), PingFrame()]


def test_a_client_without_a_certificate_learns_no_name_and_no_version(ends):
    stranger, acceptor = Anonymous(), ends.tls("node-bravo", cluster_id="cluster-alpha")
    error = refusal(acceptor, stranger.take(acceptor.feed(stranger.greeting())))
    assert (error.reason, error.detail, acceptor.is_proven) == (Reason.CERTIFICATE, "it has no certificate", False)
    stranger.take(error.reply)
    assert stranger.learned, "the certificate"
    assert not [word for word in (b"bravo", b"alpha", b"DSSP") if word in stranger.learned]


def test_only_tls_1_3_is_spoken(ends):
    acceptor = ends.tls("b")
    error = refusal(acceptor, Anonymous(ssl.TLSVersion.TLSv1_2).greeting())
    assert (error.reason, error.detail) == (Reason.MALFORMED, "not a TLS handshake of a member: unsupported protocol")


def test_a_node_with_another_secret_is_told_apart_by_both_sides(ends):
    other = SecretCredentials("guess", "c", "a")
    dialer, acceptor = ends.tls("a", dials="b", credentials=other), ends.tls("b")
    error = refusal(dialer, acceptor.feed(dialer.greeting()))
    assert error.reason is Reason.WRONG_SECRET
    assert "does not know the cluster secret" in error.detail
    told = refusal(acceptor, error.reply)
    assert told.reason is Reason.REFUSED_BY_PEER
    assert "DSS_CLUSTER_SECRET" in told.detail


def test_a_dialer_with_another_secret_that_accepts_everybody_is_refused(ends):
    other = SecretCredentials("guess", "c", "a")
    other.dialing.verify_mode = ssl.CERT_NONE
    dialer, acceptor = ends.tls("a", dials="b", credentials=other), ends.tls("b")
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert (error.reason, acceptor.is_proven) == (Reason.WRONG_SECRET, False)
    told = refusal(dialer, error.reply)
    assert told.reason is Reason.REFUSED_BY_PEER
    assert not dialer.is_proven


def test_another_cluster_with_the_same_secret_is_refused(ends):
    dialer, acceptor = ends.tls("a", dials="b", cluster_id="other"), ends.tls("b")
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert error.reason is Reason.WRONG_CLUSTER
    told = refusal(dialer, error.reply)
    assert (told.reason, dialer.is_proven) == (Reason.REFUSED_BY_PEER, False)


def test_a_node_other_than_the_dialed_one_is_refused(ends):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("c")
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert error.reason is Reason.WRONG_NODE
    told = refusal(dialer, error.reply)
    assert (told.reason, dialer.is_proven) == (Reason.REFUSED_BY_PEER, False)
    assert "has not proved to be 'b'" in told.detail


@pytest.mark.parametrize("who", ["dialer", "acceptor"])
def test_a_node_cannot_use_the_certificate_of_another_one(ends, who):
    thief = ends.credentials("c")
    dialer = ends.tls("a", dials="b", credentials=thief if who == "dialer" else None)
    acceptor = ends.tls("b", credentials=thief if who == "acceptor" else None)
    flight = dialer.feed(acceptor.feed(dialer.greeting()))
    error = refusal(acceptor, flight) if who == "dialer" else refusal(dialer, acceptor.feed(flight))
    assert error.reason is Reason.CERTIFICATE
    assert not (acceptor if who == "dialer" else dialer).is_proven


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_PEER, Reason.NO_MEMBER])
def test_only_the_dialed_member_can_say_that_this_node_is_not_a_member(ends, reason):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b", refuses=lambda peer_id: reason)
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert error.reason is reason
    told = refusal(dialer, error.reply)
    assert told.reason is (reason if reason is Reason.NO_MEMBER else Reason.REFUSED_BY_PEER)
    assert (dialer.is_proven, told.reply) == (True, b"")

    dialer = ends.tls("a", dials="b")
    other = ends.tls("b", credentials=ends.credentials("c"), refuses=lambda peer_id: reason)
    told = refusal(dialer, refusal(other, dialer.feed(other.feed(dialer.greeting()))).reply)
    assert (told.reason, dialer.is_proven) == (Reason.REFUSED_BY_PEER, False)


def say(side, message: object) -> bytes:
    """A message of the hello phase, encrypted as this side would."""
    return side._pipe.encrypt(with_length(tls_handshake._PREFIX + msgspec.msgpack.encode(message)))


def test_what_a_refusal_says_is_a_known_word_and_a_dialer_cannot_refuse(ends):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    flight = dialer.feed(acceptor.feed(dialer.greeting()))
    acceptor.feed(flight)
    acceptor._pipe.to_send()
    told = refusal(dialer, say(acceptor, tls_handshake.TlsRefusal("delete all data")))
    assert "delete" not in told.detail

    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    dialer._hello = lambda: tls_handshake.TlsRefusal(Reason.NO_MEMBER)
    assert refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting()))).reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "hello", [[1, "c", "a: delete all data", "b", [[1, 1], 1]], [9], b"x", [1, "c", "a", "b", "no versions"]]
)
def test_a_member_that_says_hello_in_another_way_is_malformed(ends, hello):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    dialer._hello = lambda: hello
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert error.reason is Reason.MALFORMED
    assert "delete" not in error.detail


def test_fields_of_a_newer_hello_are_ignored_and_another_version_is_reported(ends, monkeypatch):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    dialer._hello = lambda: [1, "c", "a", "b", [[1, 4], 1, 7], "a new field"]
    acceptor.feed(dialer.feed(acceptor.feed(dialer.greeting())))
    assert acceptor.peer_versions == Announced(Supported(1, 4), 1)

    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    monkeypatch.setattr(tls_handshake, "_PREFIX", b"DSSP" + bytes([tls_handshake.VERSION + 1]))
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert error.reason is Reason.VERSION


OLDER, NEWER = Announced(Supported(1, 1), 1), Announced(Supported(1, 2), 2)


@pytest.mark.parametrize("is_dialer_old", [True, False])
def test_versions_that_do_not_work_together_are_reported_on_both_sides(ends, is_dialer_old):
    dialer = ends.tls("a", dials="b", versions=OLDER if is_dialer_old else NEWER)
    acceptor = ends.tls("b", versions=NEWER if is_dialer_old else OLDER)
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    told = refusal(dialer, error.reply)
    assert (error.reason, told.reason) == (Reason.VERSION, Reason.VERSION)
    assert (acceptor.is_proven, dialer.is_proven) == (True, True)
    assert "the cluster's version is 2" in error.detail
    assert "the cluster's version is 2" in told.detail
    assert (acceptor.peer_versions, dialer.peer_versions) == ((OLDER, NEWER) if is_dialer_old else (NEWER, OLDER))


@pytest.mark.parametrize("data", [b"\x17\x03\x03\x00\x40" + bytes(64), b"\x16\x03\x01\x00\x40" + bytes(64)])
def test_a_broken_record_instead_of_the_hello_is_refused(ends, data):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    dialer._say = lambda message: b""
    dialer._hello = lambda: None
    acceptor.feed(dialer.feed(acceptor.feed(dialer.greeting())))
    assert acceptor._is_encrypted
    error = refusal(acceptor, data)
    assert error.reason is Reason.MALFORMED
    assert len(error.reply) < 32, "an alert"
    assert refusal(dialer, data).reason is Reason.MALFORMED


def test_a_recorded_handshake_is_useless_on_another_connection(ends):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    recorded = ends.shake(dialer, acceptor)
    fresh = ends.tls("b")
    fresh.feed(recorded[0])
    assert refusal(fresh, recorded[2]).reason is Reason.MALFORMED


def test_a_stranger_cannot_make_this_node_buffer_more_than_the_limit(ends):
    """OpenSSL itself would wait for a message of 128 KiB."""
    acceptor = ends.tls("b")
    record = b"\x16\x03\x01\x40\x00"  # a record of 16 KiB
    body = b"\x01\x01\xff\xff" + bytes(0x4000 - 4)  # a ClientHello of 128 KiB
    assert acceptor.feed(record + body) == b""
    assert refusal(acceptor, record + bytes(0x4000)).reason is Reason.TOO_LARGE
    assert UNVERIFIED_BYTES_MAX == 32 * 1024


@given(data=st.binary(min_size=1, max_size=300), is_record=st.booleans())
def test_random_bytes_are_refused_or_incomplete(ends, data, is_record):
    acceptor = ends.tls("b")
    if is_record:
        data = b"\x16\x03\x01" + struct.pack(">H", len(data)) + data
    reason, reply = None, b""
    try:
        assert acceptor.feed(data) == b""
    except WireError as error:
        reason, reply = error.reason, error.reply
    assert len(reply) <= 7, "an alert at most"
    assert reason in {None, Reason.MALFORMED, Reason.REFUSED_BY_PEER}
    assert acceptor.stream is None


def ignored_bytes(message: bytes) -> set[int]:
    """The version in the heads of records that are not encrypted means nothing in TLS 1.3."""
    found, start = set(), 0
    while start < len(message):
        if message[start] in (0x14, 0x16):
            found |= {start + 1, start + 2}
        start += 5 + int.from_bytes(message[start + 3 : start + 5], "big")
    return found


@settings(max_examples=60)
@given(step=st.integers(0, 3), bit=st.integers(0, 16_383))
def test_one_flipped_bit_in_any_step_prevents_authentication(ends, step, bit):
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    sides = [acceptor, dialer, acceptor, dialer]
    message = dialer.greeting()
    for number, side in enumerate(sides):
        if number == step:
            changed = bytearray(message)
            bit %= len(changed) * 8  # the length of a signature is not always the same
            assume(bit // 8 not in ignored_bytes(message))
            changed[bit // 8] ^= 1 << bit % 8
            message = bytes(changed)
        try:
            message = side.feed(message)
        except WireError:
            break
        if not message:
            break
    assert dialer.stream is None or acceptor.stream is None or message == b""
    assert sides[step].stream is None or sides[step - 1].stream is None


@pytest.mark.parametrize("is_refused", [True, False])
def test_the_first_byte_shows_which_handshake_a_dialer_uses(ends, is_refused):
    def accept() -> Acceptance:
        return Acceptance(lambda: ends.tls("b"), None if is_refused else lambda: ends.handshake("b", can_tls=True))

    acceptor = accept()
    assert (acceptor.peer_id, acceptor.is_proven, acceptor.peer_versions, acceptor.rest) == ("", False, None, b"")
    ends.shake(ends.tls("a", dials="b"), acceptor)
    assert (acceptor.peer_id, acceptor.is_proven) == ("a", True)

    acceptor, old = accept(), ends.handshake("a", dials="b")
    if not is_refused:
        ends.shake(old, acceptor)
        assert (acceptor.peer_id, old.stream is not None) == ("a", True)
        return
    error = refusal(acceptor, old.greeting())
    assert error.reason is Reason.NO_TLS
    told = refusal(old, error.reply)
    assert (told.reason, old.is_proven) == (Reason.REFUSED_BY_PEER, False)
    assert len(error.reply) == len(b"\0\0\0\x0eDSSP\x0b\x93\x03\xa6no_tls\xc4\0"), "no name, no version of the cluster"


def test_a_process_that_does_not_speak_tls_is_recognized(ends):
    dialer, old = ends.tls("a", dials="b"), ends.handshake("b")
    error = refusal(dialer, refusal(old, dialer.greeting()).reply)
    assert (error.reason, error.reply) == (Reason.NO_TLS, b"")


def test_two_nodes_that_know_tls_refuse_the_older_handshake_whatever_somebody_in_between_does(ends):
    dialer, acceptor = ends.handshake("a", dials="b", can_tls=True), ends.handshake("b", can_tls=True)
    error = refusal(acceptor, dialer.feed(acceptor.feed(dialer.greeting())))
    assert (error.reason, acceptor.is_proven) == (Reason.NO_TLS, True)
    assert "no_tls" in refusal(dialer, error.reply).detail

    dialer, acceptor = ends.handshake("a", dials="b", can_tls=True), ends.handshake("b", can_tls=True)
    hello = handshake_module._decode(dialer.greeting()[4 + 5 :])
    changed = handshake_module.PREFIX + msgspec.msgpack.encode(msgspec.structs.replace(hello, can_tls=False))
    assert refusal(acceptor, dialer.feed(acceptor.feed(with_length(changed)))).reason is Reason.WRONG_SECRET


@pytest.mark.parametrize(("dials", "accepts"), [(True, False), (False, True), (False, False)])
def test_a_node_that_does_not_know_tls_is_linked_with_the_older_handshake(ends, dials, accepts):
    dialer, acceptor = ends.handshake("a", dials="b", can_tls=dials), ends.handshake("b", can_tls=accepts)
    ends.shake(dialer, acceptor)
    assert dialer.stream is not None
    assert acceptor.stream is not None


@pytest.mark.parametrize("has_more", [False, True])
def test_a_dialer_that_closes_tls_before_its_hello_is_refused(ends, has_more):
    """With its Finished, or afterwards."""
    dialer, acceptor = ends.tls("a", dials="b"), ends.tls("b")
    dialer._pipe.shake(acceptor.feed(dialer.greeting()))
    if has_more:
        assert acceptor.feed(dialer._pipe.to_send()) == b""
    with suppress(ssl.SSLError):
        dialer._pipe._tls.unwrap()
    error = refusal(acceptor, dialer._pipe.to_send())
    assert error.reason is Reason.MALFORMED
    assert "closed by the other side" in error.detail
    assert not acceptor.is_proven


def test_contexts_speak_tls_1_3_only_and_issue_no_tickets():
    for is_server in (True, False):
        made = context(is_server)
        assert (made.minimum_version, made.maximum_version) == (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
        assert made.verify_mode is ssl.CERT_REQUIRED
    assert context(is_server=True).num_tickets == 0
