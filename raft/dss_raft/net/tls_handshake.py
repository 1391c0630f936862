"""How two members link with mutual TLS: certificates first, then who they are. No I/O.

    dialer                                           acceptor
    TLS: ClientHello                                 ──>
                                                     <── TLS: ServerHello, certificate, request for a certificate
    TLS: certificate, Finished
    hello  (cluster, id, the acceptor's id, versions) ──>
                                                     <── hello (cluster, id, the dialer's id, versions), or a refusal

Both certificates are verified before anything else is said, and each names its member: a hello counts only if the certificate has the names
of the cluster and the node in it (see `certificates`). So everything that the other side says is authenticated, and a stranger learns
nothing except the acceptor's certificate. That is the nature of TLS: the acceptor shows its certificate first. A certificate of the cluster
secret has no readable name.

A process that is not authenticated can make this node buffer `UNVERIFIED_BYTES_MAX` at most. It can put no words of its own into the log.

Each message of the hello phase begins with a magic number and the version, as in `handshake`, and is encrypted like all that follows.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

import msgspec

from dss_raft.net.certificates import Credentials
from dss_raft.net.handshake import MAGIC, MESSAGE_BYTES_MAX, PREFIX, Handshake, Name, Refusal
from dss_raft.net.tls import (
    ANSWER_BYTES,
    FIRST_BYTE,
    TlsPipe,
    TlsStream,
    alert,
    explain,
    has_no_certificate,
    is_foreign,
)
from dss_raft.net.wire import AuthenticatedStream, FrameBuffer, Reason, WireError, with_length
from dss_raft.versions import FIRST_ANNOUNCED, Announced, conflict

#: Version of the hello and of the frames inside TLS. As with `handshake.VERSION`, append fields instead of changing it.
VERSION = 12
#: What a peer may send before its certificate is verified. A ClientHello and a chain of certificates take 2 to 8 KiB.
UNVERIFIED_BYTES_MAX = 32 * 1024


class TlsHello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    cluster: Name
    node: Name
    to: Name
    versions: Announced


class TlsRefusal(msgspec.Struct, frozen=True, array_like=True, tag=2):
    reason: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(TlsHello | TlsRefusal).decode
_PREFIX = MAGIC + bytes([VERSION])
_REASONS = frozenset(map(str, Reason))


class TlsHandshake:
    """One side of a handshake. Feed it the bytes that arrive and send what it returns, until `stream` is set. See `Handshake`."""

    def __init__(
        self,
        *,
        node_id: str,
        cluster_id: str,
        credentials: Credentials,
        dials: str | None = None,
        versions: Announced = FIRST_ANNOUNCED,
        refuses: Callable[[str], Reason | None] = lambda peer_id: None,
    ) -> None:
        self.stream: TlsStream | None = None
        #: the other side has the certificate of `peer_id`
        self.is_proven = False
        #: the peer's id: only claimed until `is_proven`
        self.peer_id = dials or ""
        #: what the peer announces; not to be believed until `is_proven`
        self.peer_versions: Announced | None = None
        self.rest = b""
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._credentials = credentials
        self._dials = dials is not None
        self._versions = versions
        self._refuses = refuses
        self._pipe = TlsPipe(credentials.dialing if self._dials else credentials.accepting, is_server=not self._dials)
        self._is_encrypted = False
        self._was_refused = False
        self._received_bytes = 0
        self._buffer = FrameBuffer(MESSAGE_BYTES_MAX)

    def greeting(self) -> bytes:
        """The first message of the dialer."""
        self._pipe.shake(b"")
        return self._pipe.to_send()

    def feed(self, data: bytes) -> bytes:
        """Handle received bytes, and return the bytes to send. After a WireError, send its `reply`, then close."""
        try:
            reply = self._take(data)
        except WireError as error:
            error.reply = self._answer_to(error)
            raise
        except ssl.SSLError as failure:
            refused = self._failed(failure)
            refused.reply = self._pipe.to_send()  # an alert at most: after a failure, TLS encrypts nothing more
            raise refused from None
        return self._pipe.to_send() + reply

    def _take(self, data: bytes) -> bytes:
        if self._is_encrypted:
            return self._take_plain(self._pipe.decrypt(data))
        if self._dials and not self._received_bytes and data[0] not in ANSWER_BYTES:
            raise WireError(Reason.NO_TLS, f"the process at the address of {self.peer_id!r} does not speak TLS")
        self._received_bytes += len(data)
        if self._received_bytes > UNVERIFIED_BYTES_MAX:
            raise WireError(Reason.TOO_LARGE, f"more than {UNVERIFIED_BYTES_MAX} bytes before its certificate was verified")
        self._is_encrypted = self._pipe.shake(data)
        if not self._is_encrypted:
            return b""
        if self._credentials.is_revoked(self._pipe.verified_chain()):
            raise WireError(Reason.CERTIFICATE, "its certificate is revoked, or that of an authority between")
        flight = self._pipe.to_send()
        reply = flight + self._say(self._hello()) if self._dials else flight
        return reply + self._take_plain(self._pipe.decrypt(b""))

    def _take_plain(self, data: bytes) -> bytes:
        self._buffer.push(data)
        body = self._buffer.pop()
        if body is None:
            return b""
        message = _parse(body)
        if isinstance(message, TlsRefusal):
            raise self._refused(message)
        self._check(message)
        self.stream = TlsStream(self._pipe, self._buffer.rest())
        return b"" if self._dials else self._say(self._hello())

    def _check(self, hello: TlsHello) -> None:
        if hello.cluster != self._cluster_id:
            raise WireError(Reason.WRONG_CLUSTER, f"the peer {hello.node!r} belongs to cluster {hello.cluster!r}")
        if hello.to != self._node_id:
            raise WireError(Reason.WRONG_NODE, f"the peer {hello.node!r} expects node {hello.to!r} at this address")
        if self._dials and hello.node != self.peer_id:
            raise WireError(Reason.WRONG_NODE, f"node {hello.node!r} answers at the address of {self.peer_id!r}")
        self.peer_id, self.peer_versions = hello.node, hello.versions
        self._check_certificate()
        self.is_proven = True
        reason = None if self._dials else self._refuses(self.peer_id)
        if reason is not None:
            raise WireError(reason, f"node {self.peer_id!r} is not a member that may connect here")
        problem = conflict(self._versions, hello.versions)
        if problem:
            raise WireError(Reason.VERSION, f"{self.peer_id!r}: {problem}")

    def _check_certificate(self) -> None:
        if not self._credentials.names(self._pipe.peer_certificate(), self._cluster_id, self.peer_id):
            wanted = self._credentials.wanted_name(self._cluster_id, self.peer_id)
            raise WireError(Reason.CERTIFICATE, f"the certificate is not that of node {self.peer_id!r}{wanted}")

    def _refused(self, refusal: TlsRefusal) -> WireError:
        """The error for a refusal by the other side. Only the dialed member can say that this node is not a member."""
        self._was_refused = True
        if not self._dials:
            return WireError(Reason.MALFORMED, "a dialer cannot refuse")
        reason = refusal.reason if refusal.reason in _REASONS else "unknown"
        if not self._credentials.names(self._pipe.peer_certificate(), self._cluster_id, self.peer_id):
            return WireError(Reason.REFUSED_BY_PEER, f"a process that has not proved to be {self.peer_id!r} says: {reason}")
        self.is_proven = True
        if reason == Reason.NO_MEMBER:
            return WireError(Reason.NO_MEMBER, f"{self.peer_id!r} says that this node is not a member of the cluster")
        return WireError(Reason.REFUSED_BY_PEER, f"{self.peer_id!r} refused this node: {reason}")

    def _failed(self, error: ssl.SSLError) -> WireError:
        """What the failure of TLS's handshake means for an operator."""
        said = alert(error)
        if said:
            self._was_refused = True
            return WireError(
                Reason.REFUSED_BY_PEER, f"a process that has not proved to be a member says: {said}{self._credentials.hint(said)}"
            )
        if is_foreign(error):
            return WireError(self._credentials.foreign_reason, self._credentials.foreign_detail)
        if has_no_certificate(error):
            return WireError(Reason.CERTIFICATE, "it has no certificate")
        if isinstance(error, ssl.SSLCertVerificationError):
            return WireError(Reason.CERTIFICATE, f"its certificate cannot be used: {explain(error)}")
        return WireError(Reason.MALFORMED, f"not a TLS handshake of a member: {explain(error)}")

    def _hello(self) -> TlsHello:
        return TlsHello(self._cluster_id, self._node_id, self.peer_id, self._versions)

    def _answer_to(self, error: WireError) -> bytes:
        """What to send to a peer that is refused: TLS's alert, or what the acceptor has to say."""
        if not self._is_encrypted:
            return self._pipe.to_send()
        if self._dials or self._was_refused:
            return b""
        if error.reason is Reason.VERSION and self.is_proven:
            return self._say(self._hello())  # the dialer finds the conflict itself
        return self._say(TlsRefusal(error.reason))

    def _say(self, message: TlsHello | TlsRefusal) -> bytes:
        return self._pipe.encrypt(with_length(_PREFIX + _encode(message)))


def _parse(body: bytes) -> TlsHello | TlsRefusal:
    if body[:4] != MAGIC or len(body) < len(_PREFIX):
        raise WireError(Reason.MALFORMED, "not a peer of this system")
    if body[4] != VERSION:
        raise WireError(Reason.VERSION, f"the peer uses version {body[4]} of the protocol, this node uses version {VERSION}")
    try:
        message: TlsHello | TlsRefusal = _decode(body[5:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(Reason.MALFORMED, f"not a handshake message: {error}") from None
    return message


class Acceptance:
    """The accepting side of a connection. The dialer's first byte shows which handshake it uses.

    Args:
        tls: makes the side for a dialer that uses TLS.
        secret: makes the side for one that uses the handshake of an older release; None: that is refused.
    """

    def __init__(self, tls: Callable[[], TlsHandshake], secret: Callable[[], Handshake] | None) -> None:
        self._tls = tls
        self._secret = secret
        self._chosen: Handshake | TlsHandshake | None = None

    def feed(self, data: bytes) -> bytes:
        """As `Handshake.feed`."""
        if self._chosen is None:
            if data[0] == FIRST_BYTE:
                self._chosen = self._tls()
            elif self._secret is not None:
                self._chosen = self._secret()
            else:
                detail = "the peer does not use TLS: is it a release before mutual TLS?"
                raise WireError(Reason.NO_TLS, detail, with_length(PREFIX + _encode(Refusal(Reason.NO_TLS))))
        return self._chosen.feed(data)

    @property
    def stream(self) -> AuthenticatedStream | TlsStream | None:
        return self._chosen.stream if self._chosen else None

    @property
    def is_proven(self) -> bool:
        return self._chosen is not None and self._chosen.is_proven

    @property
    def peer_id(self) -> str:
        return self._chosen.peer_id if self._chosen else ""

    @property
    def peer_versions(self) -> Announced | None:
        return self._chosen.peer_versions if self._chosen else None

    @property
    def rest(self) -> bytes:
        return self._chosen.rest if self._chosen else b""
