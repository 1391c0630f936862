"""The peer link's codec: bytes in, frames out, no I/O.

A frame on the wire is

    4 bytes   length of what follows, big-endian
    16 bytes  keyed BLAKE2b over the rest; the key belongs to this connection and this direction (see `handshake`)
    8 bytes   sequence number of the frame in its direction, from 0
    payload   msgpack of a `Frame`

So a byte that was changed, a frame that was left out, repeated or taken from another connection, and a stranger's bytes are all
refused, before anything is decoded. Peers are authenticated, not encrypted: keep the peer port on a private network.

Memory is bounded: at most one frame is buffered, and a length over the limit is refused when its four bytes have arrived.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from dss_raft.core.messages import AnyMessage

FRAME_BYTES_MAX = 16 * 1024 * 1024
MAC_BYTES = 16
_LENGTH = struct.Struct(">I")
_SEQUENCE = struct.Struct(">Q")
_HEAD_BYTES = MAC_BYTES + _SEQUENCE.size


class Reason(StrEnum):
    """Why a peer, or what it sent, was refused: labels of `raft_peer_refused_total`."""

    #: the MAC is wrong: changed on the way, or of another connection
    BAD_MAC = "bad_mac"
    #: a length over the limit
    TOO_LARGE = "too_large"
    #: another cluster's node
    WRONG_CLUSTER = "wrong_cluster"
    #: it does not know the cluster secret
    WRONG_SECRET = "wrong_secret"
    #: not this protocol, or not a message of it
    MALFORMED = "malformed"
    #: a good frame out of its turn
    REPLAY = "replay"
    #: another version of the protocol
    VERSION = "version"
    #: it wants another node than this, or is another than the one dialled
    WRONG_NODE = "wrong_node"
    #: not a member this node knows of
    UNKNOWN_PEER = "unknown_peer"
    #: no proof in time
    TIMEOUT = "timeout"
    #: too many connections without a proof
    TOO_MANY = "too_many"
    #: the other side refused this node
    REFUSED_BY_PEER = "refused_by_peer"
    #: the other side says that this node is no member
    NO_MEMBER = "no_member"


class WireError(Exception):
    """The remote broke the protocol's rules; the connection is over.

    Args:
        reason: for the counter.
        detail: for the log.
        reply: bytes to send before closing, so that the other side's log says why.
    """

    def __init__(self, reason: Reason, detail: str, reply: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.reply = reply


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What peers send each other."""


class RaftFrame(Frame, frozen=True, tag=1):
    messages: list[AnyMessage]


class ForwardFrame(Frame, frozen=True, tag=2):
    """Commands on their way to the leader; opaque here."""

    group: bytes


class AppFrame(Frame, frozen=True, tag=3):
    """What a subsystem's nodes say to each other; opaque here."""

    channel: str
    data: bytes


class PingFrame(Frame, frozen=True, tag=4):
    """Says only that the sender is alive; the links send and swallow it."""


AnyFrame = RaftFrame | ForwardFrame | AppFrame | PingFrame


class FrameBuffer:
    """Cuts a stream of bytes into what stands behind each length."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._stream: bytes | bytearray = b""
        self._start = 0

    def push(self, data: bytes) -> None:
        """Add what arrived; then `pop` until there is nothing more."""
        if self._start >= len(self._stream):
            self._stream, self._start = data, 0
            return
        if self._start or isinstance(self._stream, bytes):
            self._stream, self._start = bytearray(memoryview(self._stream)[self._start :]), 0
        self._stream += data  # in place: the pieces of a large frame are not copied again for each other

    def pop(self) -> bytes | None:
        """The next whole body; None when more must arrive. Raises WireError(TOO_LARGE) when a length is over the limit."""
        body_start = self._start + _LENGTH.size
        if len(self._stream) < body_start:
            return None
        (length,) = _LENGTH.unpack_from(self._stream, self._start)
        if length > self._limit_bytes:
            raise WireError(Reason.TOO_LARGE, f"a frame of {length} bytes, at most {self._limit_bytes} are taken")
        if len(self._stream) < body_start + length:
            return None
        body = bytes(memoryview(self._stream)[body_start : body_start + length])
        self._start = body_start + length
        if self._start == len(self._stream):
            self._stream, self._start = b"", 0  # the memory of a large frame is not kept
        return body

    def rest(self) -> bytes:
        """What has been pushed and not popped."""
        return bytes(self._stream[self._start :])


class Session:
    """Both directions of an authenticated connection. Keys are of 32 bytes."""

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        self._send_hash = hashlib.blake2b(key=send_key, digest_size=MAC_BYTES)
        self._receive_hash = hashlib.blake2b(key=receive_key, digest_size=MAC_BYTES)
        self._sent = 0
        self._received = 0
        self._buffer = FrameBuffer(FRAME_BYTES_MAX)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(AnyFrame)

    def encode(self, frame: AnyFrame) -> bytes:
        """The next frame to send. Raises ValueError when it is over the limit; then it has not used up a sequence number."""
        payload = self._encoder.encode(frame)
        length = _HEAD_BYTES + len(payload)
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes, at most {FRAME_BYTES_MAX} can be sent")
        sequence = _SEQUENCE.pack(self._sent)
        self._sent += 1
        mac = self._send_hash.copy()
        mac.update(sequence)
        mac.update(payload)
        return b"".join((_LENGTH.pack(length), mac.digest(), sequence, payload))

    def feed(self, data: bytes) -> Iterator[AnyFrame]:
        """Yield each frame that is complete now. Raises WireError; the connection must then be closed."""
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
            raise WireError(Reason.REPLAY, f"frame {sequence} came where frame {self._received} belongs")
        self._received += 1
        try:
            frame: AnyFrame = self._decoder.decode(view[_HEAD_BYTES:])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(Reason.MALFORMED, f"not a frame: {error}") from None
        return frame


def with_length(body: bytes) -> bytes:
    """`body` behind its length, as `FrameBuffer` reads it."""
    return _LENGTH.pack(len(body)) + body
