"""The handshake of releases before mutual TLS: each side proves that it knows the cluster secret, and both derive keys. No I/O.

Members of this release use it with members of such a release, until the cluster's version is `MUTUAL_TLS`, and with `DSS_PEER_TLS=false` on
loopback. Otherwise see `tls_handshake`.

    dialer                                           acceptor
    hello  (cluster, id, the acceptor's id, nonce, versions) ──>
                                                             <── hello (cluster, id, the dialer's id, nonce, versions)
    proof  HMAC(key, "dialer")                               ──>
                                                             <── proof HMAC(key, "acceptor")

`key` is HMAC-SHA256(secret, version, both hellos as they were sent). The nonces are fresh, so a recording of an earlier
connection is useless. The roles are part of the proofs, so a proof cannot be reflected. The keys for the frames of each
direction are derived from `key`. The acceptor sends its proof only after it has checked the dialer's.

An unauthenticated peer can make this node buffer 1 KiB at most. A refused peer gets the reason in one word, because it is
usually a misconfigured member whose operator reads the log.

Nothing that the other side says has an effect before it has proved that it knows the secret: it is only logged and counted, and it
can put nothing but a known word or a well-formed name into the log. So the acceptor checks membership and versions last. Instead of its
proof it sends a refusal with a MAC, which the dialer can believe.

Each message begins with a magic number and the version of the handshake, which is read first. The hellos say which cluster versions both
sides support (see `dss_raft.versions`), so that nodes of different releases can link. The whole hellos are part of the key, even fields
that one side does not know, so an attacker in between cannot make the nodes believe in other versions. Nor can it make two nodes that both
know TLS use this handshake: each says in its hello whether it does, and they refuse each other then.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Annotated

import msgspec

from dss_raft.net.wire import AuthenticatedStream, FrameBuffer, Reason, WireError, with_length
from dss_raft.versions import FIRST_ANNOUNCED, Announced, conflict

#: Version of the handshake and the frames. Do not change it: nodes with different ones refuse each other. Append new fields instead, and
#: send a new kind of message only from the cluster version on that has it. See `dss_raft.net.wire`.
VERSION = 11
MAGIC = b"DSSP"
NONCE_BYTES = 32
#: limit of a message before the peer is authenticated
MESSAGE_BYTES_MAX = 1024

Name = Annotated[str, msgspec.Meta(max_length=64, pattern="^[A-Za-z0-9._-]*$")]
_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    cluster: Name
    node: Name
    to: Name
    nonce: _Bytes32
    versions: Announced
    #: whether the node uses TLS with nodes that do; releases before it do not send this
    can_tls: bool = False


class Proof(msgspec.Struct, frozen=True, array_like=True, tag=2):
    mac: _Bytes32


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=3):
    reason: Annotated[str, msgspec.Meta(max_length=64)]
    #: proves that the acceptor knows the secret, for this connection; empty before the dialer has proved the same
    mac: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Hello | Proof | Refusal).decode
PREFIX = MAGIC + bytes([VERSION])
_REASONS = frozenset(map(str, Reason))


class Handshake:
    """One side of a handshake. Feed it the bytes that arrive and send what it returns, until `stream` is set.

    Args:
        nonce: 32 fresh random bytes.
        dials: the peer this side dials; None for the side that accepts.
        versions: of this node.
        refuses: why a peer with this id may not connect; None if it may (used on the accepting side only).
        can_tls: this node uses TLS with nodes that do.
    """

    def __init__(
        self,
        *,
        node_id: str,
        cluster_id: str,
        secret: bytes,
        nonce: bytes,
        dials: str | None = None,
        versions: Announced = FIRST_ANNOUNCED,
        refuses: Callable[[str], Reason | None] = lambda peer_id: None,
        can_tls: bool = False,
    ) -> None:
        self.stream: AuthenticatedStream | None = None
        #: the other side has proved that it knows the secret
        self.is_proven = False
        #: the peer's id: only claimed until `is_proven`
        self.peer_id = dials or ""
        #: what the peer announces; not to be believed until `is_proven`
        self.peer_versions: Announced | None = None
        #: bytes that came after the last message of the handshake; they belong to the stream
        self.rest = b""
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._secret = secret
        self._nonce = nonce
        self._dials = dials is not None
        self._versions = versions
        self._refuses = refuses
        self._can_tls = can_tls
        self._peer_can_tls = False
        #: the body of this side's hello, once it is sent
        self._own_hello = b""
        self._key = b""
        self._was_refused = False
        self._buffer = FrameBuffer(MESSAGE_BYTES_MAX)

    def greeting(self) -> bytes:
        """The first message of the dialer."""
        return self._hello()

    def feed(self, data: bytes) -> bytes:
        """Handle received bytes, and return the bytes to send. After a WireError, send its `reply`, then close."""
        reply = b""
        try:
            self._buffer.push(data)
            while self.stream is None and (body := self._buffer.pop()) is not None:
                reply += self._take(_parse(body), body)
        except WireError as error:
            error.reply = b"" if self._was_refused else reply + self._refusal(error.reason)
            raise
        if self.stream is not None:
            self.rest = self._buffer.rest()
        return reply

    def _take(self, message: Hello | Proof | Refusal, body: bytes) -> bytes:
        if isinstance(message, Refusal):
            raise self._refused(message)
        if isinstance(message, Hello) and not self._key:
            self._check(message)
            self.peer_id, self.peer_versions, self._peer_can_tls = message.node, message.versions, message.can_tls
            reply = b"" if self._dials else self._hello()
            self._key = self._derive(body)
            return self._proof() if self._dials else reply
        if isinstance(message, Proof) and self._key:
            if not hmac.compare_digest(message.mac, self._mac(self._other_role)):
                raise WireError(Reason.WRONG_SECRET, "the peer does not know the cluster secret")
            self.is_proven = True
            reason = None if self._dials else self._refuses(self.peer_id)
            if reason is not None:
                raise WireError(reason, f"node {self.peer_id!r} is not a member that may connect here")
            self._check_versions()
            if self._can_tls and self._peer_can_tls:
                raise WireError(Reason.NO_TLS, f"{self.peer_id!r} knows TLS, and this connection does not use it")
            self.stream = AuthenticatedStream(self._mac(f"frames of {self._role}"), self._mac(f"frames of {self._other_role}"))
            return b"" if self._dials else self._proof()
        raise WireError(Reason.MALFORMED, f"unexpected {type(message).__name__}")

    def _check(self, hello: Hello) -> None:
        if hello.cluster != self._cluster_id:
            raise WireError(Reason.WRONG_CLUSTER, f"the peer {hello.node!r} belongs to cluster {hello.cluster!r}")
        if hello.to != self._node_id:
            raise WireError(Reason.WRONG_NODE, f"the peer {hello.node!r} expects node {hello.to!r} at this address")
        if self._dials and hello.node != self.peer_id:
            raise WireError(Reason.WRONG_NODE, f"node {hello.node!r} answers at the address of {self.peer_id!r}")

    def _check_versions(self) -> None:
        assert self.peer_versions is not None
        problem = conflict(self._versions, self.peer_versions)
        if problem:
            raise WireError(Reason.VERSION, f"{self.peer_id!r}: {problem}")

    def _refused(self, refusal: Refusal) -> WireError:
        """The error for a refusal by the other side. Only an authenticated one can say that this node is not a member."""
        self._was_refused = True
        reason = refusal.reason if refusal.reason in _REASONS else "unknown"
        if not self._dials or not self._key or not hmac.compare_digest(refusal.mac, self._refusal_mac(refusal.reason)):
            return WireError(Reason.REFUSED_BY_PEER, f"a process that has not proved to know the secret says: {reason}")
        self.is_proven = True
        if reason == Reason.NO_MEMBER:
            return WireError(Reason.NO_MEMBER, f"{self.peer_id!r} says that this node is not a member of the cluster")
        if reason == Reason.VERSION:
            assert self.peer_versions is not None
            return WireError(Reason.VERSION, f"{self.peer_id!r}: {conflict(self._versions, self.peer_versions)}")
        return WireError(Reason.REFUSED_BY_PEER, f"{self.peer_id!r} refused this node: {reason}")

    def _refusal(self, reason: Reason) -> bytes:
        mac = self._refusal_mac(reason) if self.is_proven and not self._dials else b""
        return with_length(PREFIX + _encode(Refusal(reason, mac)))

    def _refusal_mac(self, reason: str) -> bytes:
        return self._mac(f"refused by acceptor: {reason}")

    def _derive(self, hello: bytes) -> bytes:
        dialer, acceptor = (self._own_hello, hello) if self._dials else (hello, self._own_hello)
        return hmac.digest(self._secret, _encode((VERSION, dialer, acceptor)), "sha256")

    def _hello(self) -> bytes:
        hello = Hello(self._cluster_id, self._node_id, self.peer_id, self._nonce, self._versions, self._can_tls)
        self._own_hello = PREFIX + _encode(hello)
        return with_length(self._own_hello)

    def _proof(self) -> bytes:
        return with_length(PREFIX + _encode(Proof(self._mac(self._role))))

    def _mac(self, label: str) -> bytes:
        return hmac.digest(self._key, label.encode(), "sha256")

    @property
    def _role(self) -> str:
        return "dialer" if self._dials else "acceptor"

    @property
    def _other_role(self) -> str:
        return "acceptor" if self._dials else "dialer"


def _parse(body: bytes) -> Hello | Proof | Refusal:
    if body[:4] != MAGIC or len(body) < len(PREFIX):
        raise WireError(Reason.MALFORMED, "not a peer of this system")
    if body[4] != VERSION:
        raise WireError(Reason.VERSION, f"the peer uses version {body[4]} of the protocol, this node uses version {VERSION}")
    try:
        message: Hello | Proof | Refusal = _decode(body[5:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(Reason.MALFORMED, f"not a handshake message: {error}") from None
    return message
