"""TLS 1.3 between two members, as bytes in and bytes out: Python's `ssl` on memory buffers, no I/O.

Inside TLS a frame is its length in 4 bytes, big-endian, and msgpack of a `Frame`. TLS refuses bytes that were changed, repeated, dropped or
sent by others, so frames have no MAC and no sequence number of their own.

What the node sends in one turn of the event loop is encrypted in one step. Sessions are never resumed: every connection checks both
certificates again.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from dss_raft.net.wire import AnyFrame, FrameBuffer, Reason, WireError
from dss_raft.size_limits import FRAME_BYTES_MAX

#: the first byte of a TLS connection: a record with a handshake message
FIRST_BYTE = 0x16
#: what a server may answer first: a handshake message or an alert
ANSWER_BYTES = (FIRST_BYTE, 0x15)
#: `SSL_read` returns at most one record.
_RECORD_BYTES = 16 * 1024
#: Encrypted in one step. The buffer of `ssl` keeps the size that it once had, so a large frame goes through it in pieces.
_PIECE_BYTES = 256 * 1024
#: `_ssl.ENCODING_DER`
_DER = 2
_LENGTH = struct.Struct(">I")
#: OpenSSL's codes for a chain that does not end at a certificate that this node trusts
_FOREIGN_CODES = frozenset((2, 7, 18, 19, 20, 21, 24, 30))


class TlsClosed(ssl.SSLZeroReturnError):
    """The other side has closed TLS, but may still send bytes. Members close the connection instead."""

    reason = "CLOSED_BY_THE_OTHER_SIDE"


def context(is_server: bool) -> ssl.SSLContext:
    """For TLS 1.3 with certificates on both sides; it trusts no authority yet."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # the certificate names a member, not a host
    made.verify_mode = ssl.CERT_REQUIRED
    if is_server:
        made.num_tickets = 0
    return made


class TlsPipe:
    """One side of a TLS connection."""

    def __init__(self, with_context: ssl.SSLContext, is_server: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = with_context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)

    def shake(self, data: bytes) -> bool:
        """Continue TLS's handshake with received bytes. True: it is complete, and the other side's certificate was verified.

        Raises:
            ssl.SSLError: it failed. `to_send` has an alert for the other side.
        """
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def to_send(self) -> bytes:
        return self._outgoing.read()

    def peer_certificate(self) -> dict[str, Any]:
        """As `SSLSocket.getpeercert` describes it."""
        return self._tls.getpeercert() or {}

    def verified_chain(self) -> list[bytes]:
        """The other side's certificate, and those that led to one that this node trusts, which is the last."""
        public = getattr(self._tls, "get_verified_chain", None)  # since Python 3.13
        if public is not None:
            return list(public())
        return [each.public_bytes(_DER) for each in self._tls._sslobj.get_verified_chain()]  # type: ignore[attr-defined]

    def encrypt(self, data: bytes) -> bytes:
        """The bytes to send for `data`."""
        if len(data) <= _PIECE_BYTES:
            self._tls.write(data)
            return self._outgoing.read()
        pieces, view = [], memoryview(data)
        for start in range(0, len(data), _PIECE_BYTES):
            self._tls.write(view[start : start + _PIECE_BYTES])
            pieces.append(self._outgoing.read())
        return b"".join(pieces)

    def decrypt(self, data: bytes) -> bytes:
        """The plain bytes of the records that are complete.

        Raises:
            ssl.SSLError: the other side has closed TLS or sent another alert, or has not sent these bytes.
        """
        self._incoming.write(data)
        pieces = []
        try:
            while self._incoming.pending:
                piece = self._tls.read(_RECORD_BYTES)
                if not piece:
                    raise TlsClosed
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class TlsStream:
    """Both directions of an authenticated connection, inside TLS."""

    def __init__(self, pipe: TlsPipe, early: bytes) -> None:
        self._pipe = pipe
        self._buffer = FrameBuffer(FRAME_BYTES_MAX)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(AnyFrame)
        #: plain bytes that arrived with the end of the handshake
        self._early = early

    def encode(self, frame: AnyFrame) -> bytes:
        """The bytes of a frame, for `seal`. Raises ValueError for a frame over the limit."""
        payload = self._encoder.encode(frame)
        if len(payload) > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {len(payload)} bytes; the limit is {FRAME_BYTES_MAX}")
        return _LENGTH.pack(len(payload)) + payload

    def seal(self, frames: bytes) -> bytes:
        """What to send for these encoded frames."""
        return self._pipe.encrypt(frames)

    def feed(self, data: bytes) -> Iterator[AnyFrame]:
        """Add received bytes, and yield each complete frame. After a WireError the connection must be closed."""
        if self._early:
            self._buffer.push(self._early)
            self._early = b""
            yield from self._frames()
        try:
            self._buffer.push(self._pipe.decrypt(data))
        except ssl.SSLError as error:
            raise WireError(Reason.BAD_MAC, f"a TLS record was refused: {explain(error)}") from None
        yield from self._frames()

    def _frames(self) -> Iterator[AnyFrame]:
        while (body := self._buffer.pop()) is not None:
            try:
                frame: AnyFrame = self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise WireError(Reason.MALFORMED, f"not a frame: {error}") from None
            yield frame


def is_foreign(error: ssl.SSLError) -> bool:
    """Whether the other side's certificate was signed by an authority that this node does not trust."""
    return isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _FOREIGN_CODES


def has_no_certificate(error: ssl.SSLError) -> bool:
    return error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


def alert(error: ssl.SSLError) -> str:
    """What the other side says is wrong, in OpenSSL's words; "" if it says nothing."""
    _, found, words = (error.reason or "").partition("_ALERT_")
    return words.replace("_", " ").lower() if found else ""


def explain(error: ssl.SSLError) -> str:
    """The error in a few words; none of them are the other side's."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or type(error).__name__).replace("_", " ").lower()
