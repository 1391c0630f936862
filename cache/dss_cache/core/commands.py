"""Requests of clients and commands of the log: the only definition of field names, limits and defaults.

A value is JSON for the client, or bytes (as Base64 or attached), and encoded bytes in the log (see `values`). Types that end in `Request`
are decoded by the entry points; the command of the same name is stored in the log.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from dss_api.attached import ATTACHED, Parts
from dss_api.fields import DurationMs, Fields, Index, Name, OptionalName, PositiveDurationMs, check_name
from dss_api.result import Result
from dss_cache.core.values import MARK
from dss_raft.replication.commands import Command

KEYS_PER_CALL_MAX = 1000
#: A `clear` deletes at most this many values. Its caller repeats it until none remain.
KEYS_PER_CLEAR_MAX = 100_000
#: Keys that a near client names in one fetch as no longer held.
EVICTED_PER_FETCH_MAX = 10_000
#: Counters stay within 64 bits, so that every client can read them.
INTEGER_MAX = 2**63 - 1

Version = Index
Integer = Annotated[int, msgspec.Meta(ge=-INTEGER_MAX, le=INTEGER_MAX)]
Keys = Annotated[list[Name], msgspec.Meta(min_length=1, max_length=KEYS_PER_CALL_MAX)]
#: how a request or an answer carries a value: as it is, or bytes as a string in Base64 or attached to the JSON
Encoding = Literal["json", "base64", "attached"]
RowCount = Annotated[int, msgspec.Meta(ge=1, le=1000)]


# ------------------------------------------------------------------ writing


class KeyFields(Fields, kw_only=True):
    """Names one key."""

    key: Name

    def __post_init__(self) -> None:
        check_name("key", self.key)


class AddFields(KeyFields, kw_only=True):
    """Store a value for a key that has none."""

    #: time to live of the value; 0: unlimited
    ttl_ms: DurationMs = 0


class AddRequest(AddFields, kw_only=True):
    value: msgspec.Raw
    #: "base64": `value` is a string that stands for bytes; "attached": it is the number of bytes that are attached to the request
    encoding: Encoding = "json"

    def attach(self, parts: Parts) -> None:
        """Take the value, in its stored form, from what is attached to the request."""
        _attach(self, parts)


class Add(AddFields, Command, tag="cache.add", kw_only=True):
    #: see `values`
    value: bytes


class PutFields(AddFields, kw_only=True):
    """Store a value."""

    #: only if this is the key's version (compare-and-set); 0: only if the key has no value
    if_version: Version | None = None


class PutRequest(PutFields, kw_only=True):
    value: msgspec.Raw
    #: as of `AddRequest`
    encoding: Encoding = "json"

    def attach(self, parts: Parts) -> None:
        """As `AddRequest`'s."""
        _attach(self, parts)


def _attach(request: AddRequest | PutRequest, parts: Parts) -> None:
    if request.encoding == ATTACHED:
        request.value = msgspec.Raw(parts.take(bytes(request.value), MARK))


class Put(PutFields, Command, tag="cache.put", kw_only=True):
    #: see `values`
    value: bytes


class PutManyRequest(Fields):
    """Store several values, each independently of the others."""

    items: Annotated[list[PutRequest], msgspec.Meta(min_length=1, max_length=KEYS_PER_CALL_MAX)]

    def attach(self, parts: Parts) -> None:
        """Take the values that are attached to the request."""
        for item in self.items:
            item.attach(parts)


class Delete(KeyFields, Command, tag="cache.delete", kw_only=True):
    """Delete a key's value."""

    #: only if this is the key's version
    if_version: Version | None = None


class IncrFields(KeyFields, kw_only=True):
    """Add to an integer; a key without a value counts as 0."""

    delta: Integer = 1
    #: time to live of the value; 0: keeps the one set before
    ttl_ms: DurationMs = 0


class IncrRequest(IncrFields, kw_only=True):
    #: only if the key has a value
    must_exist: bool = False


class Incr(IncrFields, Command, tag="cache.incr", kw_only=True):
    """If the directory does not have the value, the command brings it: `base` is the value of `base_version`."""

    base: Integer = 0
    base_version: Version = 0

    @staticmethod
    def is_answer(result: Result) -> bool:
        """False while the directory wants the value; the command had no effect then."""
        return "wanted" not in result.body


class IncrExisting(Incr, tag="cache.incr_existing", kw_only=True):
    """Like `Incr`, for a key with a value."""

    since: ClassVar[int] = 5


class Touch(KeyFields, Command, tag="cache.touch", kw_only=True):
    """Give a value a new time to live."""

    since: ClassVar[int] = 5

    #: from now on; 0: unlimited
    ttl_ms: DurationMs = 0


class DeleteManyRequest(Fields):
    """Delete the values of several keys, each independently of the others."""

    keys: Keys

    def __post_init__(self) -> None:
        for key in self.keys:
            check_name("keys", key)


class ClearRequest(Fields):
    """Delete the values of all keys that begin with a prefix."""

    #: "": all keys
    prefix: OptionalName
    #: only values up to this version; by default those that exist when the call begins
    up_to_version: Version | None = None

    def __post_init__(self) -> None:
        check_name("prefix", self.prefix)


# ------------------------------------------------------------------ reading


class GetRequest(KeyFields, kw_only=True):
    """Read a key."""


class GetManyRequest(Fields):
    """Read several keys, each independently of the others."""

    keys: Keys

    def __post_init__(self) -> None:
        for key in self.keys:
            check_name("keys", key)


class EvictRequest(KeyFields, kw_only=True):
    """Drop this node's line."""


class LinesQuery(Fields):
    """This node's lines; with `key`, every node's line for it."""

    key: Name | None = None
    limit: RowCount = 100


class TraceQuery(Fields):
    """The last transitions of a key's lines, on every node."""

    key: Name
    limit: RowCount = 100


class StatsQuery(Fields):
    """Statistics of this node's cache since it started."""


# ------------------------------------------------------- commands of nodes


class Fetch(Command, tag="cache.fetch", kw_only=True):
    """A miss: registers this node as a sharer of the keys and returns the current versions."""

    keys: Keys


class WrittenBack(Command, tag="cache.written_back", kw_only=True):
    """The backing store has these versions: the directory need not keep their values.

    For a deleted key it is proposed only when every node has dropped its line, because it removes the record.
    """

    items: list[tuple[Name, Version]]


class Lost(Command, tag="cache.lost", kw_only=True):
    """The backing store no longer has this version: the key no longer has a value."""

    key: Name
    version: Version
    #: the version that the backing store has instead, from an earlier cluster; 0: none
    found_version: Version = 0


class Revoke(Command, tag="cache.revoke", kw_only=True):
    """By the leader: the coherence lease of `node` has expired while a write waits for it. Its registrations are void."""

    node: Name
    #: term of the leader, which waits for its own revocation only
    term: int = 0


class AgreeLease(Command, tag="cache.agree_lease", kw_only=True):
    """By the leader of `term`, before its first grant: the length of its leases. Settings may differ; later leaders read it here."""

    lease_ms: PositiveDurationMs
    term: int
    #: all leases that were granted for longer are over
    longer_are_over: bool = False


class AgreeClientLease(Command, tag="cache.agree_client_lease", kw_only=True):
    """By a node, before its first grant to a near client: the longest lease of its clients. The next process of the node waits for it."""

    since: ClassVar[int] = 5

    lease_ms: PositiveDurationMs


# -------------------------------------------------------------- near clients


class NearRequest(Fields):
    """Keep values in the client's process, and be told when they change."""

    #: the longest lease that the client wants; 0: the node's `DSS_CACHE_CLIENT_LEASE_MS`, which is also the maximum
    lease_ms: DurationMs = 0


#: The client's number for a fetch or a renewal; its answer names it.
Token = Index


class NearRenew(Fields):
    """A client asks for a lease, counted from now on its own clock. It has carried out everything up to message `seq`."""

    #: id of the subscription
    call: int | str
    token: Token
    seq: Index = 0


class NearConfirm(Fields):
    """The client has carried out everything up to message `seq`."""

    #: id of the subscription
    call: int | str
    seq: Index


class NearFetch(Fields):
    """A client reads keys that it does not have."""

    #: id of the subscription
    call: int | str
    token: Token
    keys: Keys
    #: keys that the client has dropped on its own. No fetch of one of them may be in progress
    evicted: Annotated[list[Name], msgspec.Meta(max_length=EVICTED_PER_FETCH_MAX)] = []

    def __post_init__(self) -> None:
        for key in self.keys:
            check_name("keys", key)
