"""What clients of the cache may ask, and what nodes tell the directory: field names, limits and defaults, defined here and nowhere else.

A value is JSON to the client and encoded bytes to the log: the types that end in `Request` are what the doors decode, and the
command of the same name is what the log holds.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from dss_api.fields import DurationMs, Fields, Index, Name, PositiveDurationMs, check_name
from dss_raft.replication.commands import Command

KEYS_PER_CALL_MAX = 1000
#: Counters stay inside 64 bits, so that every client can read them.
INTEGER_MAX = 2**63 - 1

Version = Index
Integer = Annotated[int, msgspec.Meta(ge=-INTEGER_MAX, le=INTEGER_MAX)]
Keys = Annotated[list[Name], msgspec.Meta(min_length=1, max_length=KEYS_PER_CALL_MAX)]
RowCount = Annotated[int, msgspec.Meta(ge=1, le=1000)]


# ------------------------------------------------------------------ writing


class KeyFields(Fields, kw_only=True):
    """Names one key."""

    key: Name

    def __post_init__(self) -> None:
        check_name("key", self.key)


class AddFields(KeyFields, kw_only=True):
    """Store a value for a key that has none."""

    #: the value is gone after so long; 0: it stays
    ttl_ms: DurationMs = 0


class AddRequest(AddFields, kw_only=True):
    value: msgspec.Raw


class Add(AddFields, Command, tag="cache.add", kw_only=True):
    #: JSON
    value: bytes


class PutFields(AddFields, kw_only=True):
    """Store a value."""

    #: only if this is the key's version (compare-and-set); 0: only if the key has no value
    if_version: Version | None = None


class PutRequest(PutFields, kw_only=True):
    value: msgspec.Raw


class Put(PutFields, Command, tag="cache.put", kw_only=True):
    #: JSON
    value: bytes


class PutManyRequest(Fields):
    """Store several values, each on its own account."""

    items: Annotated[list[PutRequest], msgspec.Meta(min_length=1, max_length=KEYS_PER_CALL_MAX)]


class Delete(KeyFields, Command, tag="cache.delete", kw_only=True):
    """Take a key's value away."""

    #: only if this is the key's version
    if_version: Version | None = None


class IncrFields(KeyFields, kw_only=True):
    """Add to an integer; a key without a value counts as 0."""

    delta: Integer = 1
    #: the value is gone after so long; 0: whatever was said before stays
    ttl_ms: DurationMs = 0


class IncrRequest(IncrFields, kw_only=True):
    pass


class Incr(IncrFields, Command, tag="cache.incr", kw_only=True):
    """Where the directory has only the version, the value at rest comes with the command: `base` as of `base_version`."""

    base: Integer = 0
    base_version: Version = 0


# ------------------------------------------------------------------ reading


class GetRequest(KeyFields, kw_only=True):
    """Read a key."""


class GetManyRequest(Fields):
    """Read several keys, each on its own account."""

    keys: Keys

    def __post_init__(self) -> None:
        for key in self.keys:
            check_name("keys", key)


class EvictRequest(KeyFields, kw_only=True):
    """Give up this node's line."""


class LinesQuery(Fields):
    """This node's lines; with `key`, every node's line for it."""

    key: Name | None = None
    limit: RowCount = 100


class TraceQuery(Fields):
    """The last transitions of a key's lines, on every node."""

    key: Name
    limit: RowCount = 100


class StatsQuery(Fields):
    """What this node's cache has done since it started."""


# ------------------------------------------- what nodes say to the directory


class Fetch(Command, tag="cache.fetch", kw_only=True):
    """A miss: register this node as a sharer of the keys, and say which version it must read."""

    keys: Keys


class WrittenBack(Command, tag="cache.written_back", kw_only=True):
    """These versions are at rest in the memory: the directory need not keep their values.

    For a key without a value it is proposed only when every node has dropped its line, because the record goes with it.
    """

    items: list[tuple[Name, Version]]


class Lost(Command, tag="cache.lost", kw_only=True):
    """The memory no longer has this version: the key has no value any more."""

    key: Name
    version: Version
    #: what the memory had in its place, of another life of this cluster; 0: nothing
    found_version: Version = 0


class Revoke(Command, tag="cache.revoke", kw_only=True):
    """By the leader: the coherence lease of `node` has run out while a write waits for it. Its registrations are void."""

    node: Name
    #: of the leader: it waits for its own revocation, not for another one
    term: int = 0


class AgreeLease(Command, tag="cache.agree_lease", kw_only=True):
    """By the leader of `term`, before it grants any lease: mine are so long. Settings may differ; the next leader learns it here."""

    lease_ms: PositiveDurationMs
    term: int
    #: whatever was granted for longer is over
    longer_are_over: bool = False
