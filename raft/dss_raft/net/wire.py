"""What members send each other, and the codec of links without TLS: bytes in, frames out, no I/O. For links with TLS, see `tls`.

Without TLS a frame on the wire is

    4 bytes   length of the rest, big-endian
    16 bytes  keyed BLAKE2b over the rest; each connection and direction has its own key (see `handshake`)
    8 bytes   sequence number of the frame in this direction, from 0
    payload   msgpack of a `Frame`

So changed bytes, frames that are missing, repeated or from another connection, and bytes of a stranger are all refused before
anything is decoded. They are authenticated, not encrypted.

Nodes of different releases exchange frames. A new field of a frame or message has a default and is appended; a node ignores fields that
it does not know. A new kind of frame or message, or a field that must not be ignored, is sent only from the cluster version on that
has it (`dss_raft.versions`). An `AppFrame` on an unknown channel is ignored.

Memory is bounded: at most one frame is buffered, and a length over the limit is refused as soon as its four bytes have arrived.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from dss_raft.core.messages import AnyMessage
from dss_raft.size_limits import FRAME_BYTES_MAX

MAC_BYTES = 16
_LENGTH = struct.Struct(">I")
_SEQUENCE = struct.Struct(">Q")
_HEAD_BYTES = MAC_BYTES + _SEQUENCE.size


class Reason(StrEnum):
    """Why a peer or its bytes were refused: the labels of `raft_peer_refused_total`."""

    #: the MAC of a frame or of a TLS record is wrong: it was changed, or is from another connection
    BAD_MAC = "bad_mac"
    #: a length over the limit
    TOO_LARGE = "too_large"
    #: a node of another cluster
    WRONG_CLUSTER = "wrong_cluster"
    #: it does not know the cluster secret
    WRONG_SECRET = "wrong_secret"
    #: its certificate is missing, foreign, expired or revoked
    CERTIFICATE = "certificate"
    #: it does not use TLS
    NO_TLS = "no_tls"
    #: not a message of this protocol
    MALFORMED = "malformed"
    #: a valid frame with the wrong sequence number
    REPLAY = "replay"
    #: another version of the handshake, or cluster versions that do not work together
    VERSION = "version"
    #: it expects another node, or is not the node that was dialed
    WRONG_NODE = "wrong_node"
    #: not a member known to this node
    UNKNOWN_PEER = "unknown_peer"
    #: a member's id with another store than the member's
    OTHER_STORE = "other_store"
    #: not authenticated in time
    TIMEOUT = "timeout"
    #: too many unauthenticated connections
    TOO_MANY = "too_many"
    #: the other side refused this node
    REFUSED_BY_PEER = "refused_by_peer"
    #: the committed configuration says that the dialer is not a member; believed only with a MAC
    NO_MEMBER = "no_member"


class WireError(Exception):
    """The other side broke the protocol. The connection must be closed.

    Args:
        reason: for the counter.
        detail: for the log.
        reply: bytes to send before closing, so that the log of the other side says why.
    """

    def __init__(self, reason: Reason, detail: str, reply: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.reply = reply


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """The base of everything that peers send each other."""


class RaftFrame(Frame, frozen=True, tag=1):
    messages: list[AnyMessage]


class ForwardFrame(Frame, frozen=True, tag=2):
    """Commands that are forwarded to the leader; opaque here."""

    group: bytes


class AppFrame(Frame, frozen=True, tag=3):
    """A payload between the nodes of a subsystem; opaque here."""

    channel: str
    data: bytes


class PingFrame(Frame, frozen=True, tag=4):
    """Says that the sender is alive. Only the links send and receive it."""


AnyFrame = RaftFrame | ForwardFrame | AppFrame | PingFrame


class FrameBuffer:
    """Cuts a stream of bytes into length-prefixed bodies."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._stream: bytes | bytearray = b""
        self._start = 0

    def push(self, data: bytes) -> None:
        """Add received bytes; then call `pop` until it returns None."""
        if self._start >= len(self._stream):
            self._stream, self._start = data, 0
            return
        if self._start or isinstance(self._stream, bytes):
            self._stream, self._start = bytearray(memoryview(self._stream)[self._start :]), 0
        self._stream += data  # in place: a large frame is not copied again for each piece

    def pop(self) -> bytes | None:
        """The next complete body; None when more bytes are needed. Raises WireError(TOO_LARGE) for a length over the limit."""
        body_start = self._start + _LENGTH.size
        if len(self._stream) < body_start:
            return None
        (length,) = _LENGTH.unpack_from(self._stream, self._start)
        if length > self._limit_bytes:
            raise WireError(Reason.TOO_LARGE, f"a frame of {length} bytes; the limit is {self._limit_bytes}")
        if len(self._stream) < body_start + length:
            return None
        body = bytes(memoryview(self._stream)[body_start : body_start + length])
        self._start = body_start + length
        if self._start == len(self._stream):
            self._stream, self._start = b"", 0  # the memory of a large frame is not kept
        return body

    def rest(self) -> bytes:
        """The bytes that have been pushed and not popped."""
        return bytes(self._stream[self._start :])


class AuthenticatedStream:
    """Both directions of an authenticated connection: frames with a MAC and a sequence number. Keys have 32 bytes."""

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._send_hash = hashlib.blake2b(key=send_key, digest_size=MAC_BYTES)
        self._receive_hash = hashlib.blake2b(key=receive_key, digest_size=MAC_BYTES)
        self._sent = 0
        self._received = 0
        self._buffer = FrameBuffer(FRAME_BYTES_MAX)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(AnyFrame)

    def encode(self, frame: AnyFrame) -> bytes:
        """The bytes of the next frame to send. Raises ValueError for a frame over the limit, which uses no sequence number."""
        payload = self._encoder.encode(frame)
        length = _HEAD_BYTES + len(payload)
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes; the limit is {FRAME_BYTES_MAX}")
        sequence = _SEQUENCE.pack(self._sent)
        self._sent += 1
        mac = self._send_hash.copy()
        mac.update(sequence)
        mac.update(payload)
        return b"".join((_LENGTH.pack(length), mac.digest(), sequence, payload))

    def seal(self, frames: bytes) -> bytes:
        """What to send for these encoded frames."""
        return frames

    def feed(self, data: bytes) -> Iterator[AnyFrame]:
        """Add received bytes, and yield each complete frame. After a WireError the connection must be closed."""
        self._buffer.push(data)
        while (body := self._buffer.pop()) is not None:
            yield self._open(body)

    def _open(self, body: bytes) -> AnyFrame:
        if len(body) < _HEAD_BYTES:
            raise WireError(Reason.MALFORMED, f"a frame of {len(body)} bytes has no room for its MAC")
        view = memoryview(body)
        mac = self._receive_hash.copy()
        mac.update(view[MAC_BYTES:])
        if not hmac.compare_digest(mac.digest(), view[:MAC_BYTES]):
            raise WireError(Reason.BAD_MAC, "a frame's MAC is wrong")
        (sequence,) = _SEQUENCE.unpack_from(body, MAC_BYTES)
        if sequence != self._received:
            raise WireError(Reason.REPLAY, f"received frame {sequence} instead of frame {self._received}")
        self._received += 1
        try:
            frame: AnyFrame = self._decoder.decode(view[_HEAD_BYTES:])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(Reason.MALFORMED, f"not a frame: {error}") from None
        return frame


def with_length(body: bytes) -> bytes:
    """`body` with its length in front, as `FrameBuffer` reads it."""
    return _LENGTH.pack(len(body)) + body
