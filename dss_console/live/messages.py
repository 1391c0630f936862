"""What nodes send each other for the live view, on a channel of the peer links. Best effort: every message may be lost.

A payload begins with the version of the format, 1 byte. Structs grow at their end only: a node ignores fields that it does not know.
"""

from __future__ import annotations

import msgspec

from dss_raft.formats import Format

CHANNEL = "live"
#: Cache keys whose lines a lease asks for.
KEYS_PER_LEASE_MAX = 32
FORMAT = Format("a message of the live view", 1)


class LiveMessage(msgspec.Struct, array_like=True, frozen=True):
    """Base of the messages on the channel."""


class Lease(LiveMessage, frozen=True, tag=1):
    """Send reports for this long. Renewed once a second."""

    #: 0: send one report, and change no lease; below 0: end the lease
    ms: int
    #: the last event that the viewer has from the receiver
    since: int
    #: cache keys whose lines the report should have
    keys: list[str]
    #: the one among them whose transitions it should have; "" for none
    traced: str


class LineState(msgspec.Struct, array_like=True, frozen=True):
    """A cache line of one node."""

    state: str
    version: int
    readable: bool
    bytes: int
    age_ms: int


class Change(msgspec.Struct, array_like=True, frozen=True):
    """A transition of a cache line."""

    at_ms: int
    old: str
    new: str
    why: str
    version: int


class Told(msgspec.Struct, array_like=True, frozen=True):
    """An event; see `recorder.Recorded`."""

    seq: int
    at_ms: int
    kind: str
    subject: str
    object: str
    detail: str
    term: int


class Report(LiveMessage, frozen=True, tag=2):
    """What one node says about itself."""

    node: str
    incarnation: int
    at_ms: int
    release: str
    term: int
    role: int
    leader: str
    commit: int
    applied: int
    last_index: int
    snapshot_index: int
    #: why it should get no calls; "" if it should
    not_ready: str
    #: commands that are not applied yet, and calls that wait
    pending: int
    waiting: int
    #: 99 % of the recent durable writes took at most this long; 0 without any
    fsync_ms: float
    rss_bytes: int
    #: of the cache
    lines: int
    hits: int
    misses: int
    #: why its backing store cannot be used; "" if it can
    store_trouble: str
    #: member -> ms since something arrived from it
    silent_ms: dict[str, int]
    #: events of this node after the lease's `since`
    events: list[Told]
    #: requested keys that have a line here
    line_states: dict[str, LineState]
    #: the latest transitions of the traced key, latest first
    changes: list[Change]
    #: why it cannot use the engine `redis` of topics; "" if it can
    engine_trouble: str = ""
    #: it has no such engine
    is_without_engine: bool = False


_decode = msgspec.msgpack.Decoder(Lease | Report).decode
_START = bytes([FORMAT.version])
_encode = msgspec.msgpack.Encoder().encode


def encode(message: LiveMessage) -> bytes:
    return _START + _encode(message)


def decode(data: bytes) -> Lease | Report:
    """Raises:
    WrongFormat: a newer release sent it.
    msgspec.DecodeError: it is not a message.
    """
    FORMAT.of_binary(data)
    return _decode(memoryview(data)[1:])
