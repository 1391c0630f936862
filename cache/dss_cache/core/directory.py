"""The directory: the current version of each key, the nodes that may hold a line for it, and its value while that is dirty.

Theory of operation. Every node applies the same commands in the same order and so has the same directory. It holds one record
for each key that has a value. A record contains

- the *version*: the directory's stamp at the write;
- the *value*, while it is dirty, that is, not yet known to be in the backing store. A dirty value is replicated, so no crash can
  lose it;
- the *sharers*: nodes that may hold a line of this version, each with the stamp at which it registered (by a fetch or by
  writing);
- the *pending invalidations*: nodes that may still hold a line of an older version, each with the stamp of the write that
  invalidated it. The new version may not be shown before each of them has dropped its line. A node drops its line when it
  applies that write. So a node is no longer pending when it has applied the log up to that stamp, or when it can no longer hold
  a line because its process has ended or because its coherence lease has expired and a `Revoke` was committed.

The directory does not know which node has applied what; `leases.Acknowledgements` counts that on every node.

A *stamp* is the directory's logical time. It grows with every command that changes who may read what, also within one log
entry. It never falls behind the applied time in microseconds, so a new cluster on an old backing store does not take old
values for newer ones.

The writer is among the pending invalidations, too, if it held a line: it learns of its own write only by applying it, and reads
the old line until then.

A node is never a sharer of a key without a value: absence is not cached. So reads of unknown keys leave no trace here, and the
record of a deleted key (a tombstone) can be removed when the backing store has the deletion and every node has dropped its
line.

Voiding. `Revoke(node)` and a restart of the node void all its registrations in one step, by comparing stamps: registrations of
the node up to `voided[node]` do not count.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import msgspec

from dss_api.result import Result
from dss_cache.core.commands import (
    INTEGER_MAX,
    Add,
    AgreeClientLease,
    AgreeLease,
    Delete,
    Fetch,
    Incr,
    IncrExisting,
    Lost,
    Put,
    Revoke,
    Touch,
    WrittenBack,
)
from dss_cache.core.events import Cleaned, Fetched, LeaseAgreed, Stamps, Voided, Written
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import MIB, StateLimit, StateLimits, text_bytes
from dss_raft.replication.machine import Event, Origin

#: of the state in a snapshot
FORMAT = 1
#: Key of the pending invalidations in a result's body. Results are stored with the client sessions, so its value does not change.
PENDING_KEY = "must"

_decode_integer = msgspec.json.Decoder(int).decode
_encode = msgspec.json.Encoder().encode


#: The account (see `dss_raft/replication/limits.py`). What a record takes without its key, its value and its nodes, also as a
#: tombstone, dirty and with a time to live: so a deletion never needs room.
RECORD_BYTES = 720
#: What one node can take of a record: a sharer and a pending invalidation. Every record pays for every node that the directory
#: knows, so a read, which registers a sharer, never needs room.
NODE_BYTES = 170

KEYS_MAX = "cache_keys_max"
DIRTY_BYTES_MAX = "cache_dirty_bytes_max"
BYTES_MAX = "cache_bytes_max"


#: A new cluster that begins with a copy of the directory raises its stamp by this for each index. The stamp follows applied time,
#: so this also covers a clock that was months ahead. All versions stay below 2^53, because the index stays below 10^12.
STAMPS_PER_INDEX = 1000

#: The pending invalidations of most records: one object for all of them, which nothing changes.
_NONE_PENDING: Stamps = {}


class Record(msgspec.Struct, array_like=True, gc=False):
    """What the directory knows about one key."""

    version: int = 0
    #: see `values`; None: clean (the backing store has it), or absent
    value: bytes | None = None
    #: deleted or expired (a tombstone)
    absent: bool = True
    #: the backing store is not known to have this version
    dirty: bool = False
    #: the node that writes a dirty value back: the writer
    owner: str = ""
    expires_at_ms: int = 0
    sharers: Stamps = {}
    pending_invalidations: Stamps = {}


class FetchRow(msgspec.Struct, array_like=True, frozen=True):
    """The result of a fetch for one key."""

    version: int
    absent: bool
    #: None: clean (read it from the backing store), or absent
    value: bytes | None
    #: state of the line that the node may install: "M", "E", "S"; "I" for an absent key
    state: str
    #: the stamp at which the node registered
    stamp: int
    pending_invalidations: Stamps
    expires_at_ms: int


class Directory:
    """The state machine. See the module's docstring."""

    name = "cache"
    format_version = FORMAT
    commands: tuple[type[Command], ...] = (
        Put,
        Add,
        Incr,
        IncrExisting,
        Touch,
        Delete,
        Fetch,
        WrittenBack,
        Lost,
        Revoke,
        AgreeLease,
        AgreeClientLease,
    )

    def __init__(self, limits: StateLimits | None = None) -> None:
        self.limits = limits or StateLimits()
        self.limits.declare(
            StateLimit(KEYS_MAX, 5_000_000, "count", lambda: len(self.records)),
            # The values that are not in the backing store yet.
            StateLimit(DIRTY_BYTES_MAX, 512 * MIB, "bytes", lambda: self.dirty_bytes),
            StateLimit(BYTES_MAX, 2048 * MIB, "bytes", self.used_bytes),
        )
        self.records: dict[str, Record] = {}
        #: keys with a dirty record, oldest write first (a dict used as an ordered set)
        self.dirty: dict[str, None] = {}
        self.dirty_bytes = 0
        #: of all keys, as encoded
        self.key_bytes = 0
        self.stamp = 0
        self.voided: Stamps = {}
        #: for each node, the latest stamp at which it became pending in some record
        self.awaited: Stamps = {}
        #: the longest coherence lease; 0: no leader has agreed on one yet
        self.lease_ms = 0
        #: term of the leader that agreed on it
        self.lease_term = 0
        #: for each node, the longest lease of its near clients; nodes without near clients are not in it
        self.client_lease_ms: dict[str, int] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._events: list[Event] = []
        self._apply: dict[type, Callable[[Any, int, Origin], Result]] = {
            Put: self._put,
            Add: self._add,
            Incr: self._incr,
            IncrExisting: self._incr,
            Touch: self._touch,
            Delete: self._delete,
            Fetch: self._fetch,
            WrittenBack: self._written_back,
            Lost: self._lost,
            Revoke: self._revoke,
            AgreeLease: self._agree_lease,
            AgreeClientLease: self._agree_client_lease,
        }

    # ------------------------------------------------------- the machine's contract

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """Apply one command. Nothing waits here: the caller waits for the pending invalidations."""
        return self._apply[type(command)](command, at_ms, origin)

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """Nothing to do: no command waits, and a write stays even if its caller has gone."""

    def expire(self, at_ms: int, index: int) -> None:
        """Delete values whose time to live has ended."""
        while self._deadlines and self._deadlines[0][0] <= at_ms:
            deadline, key = heapq.heappop(self._deadlines)
            record = self.records.get(key)
            if record is not None and record.expires_at_ms == deadline:
                self._write(key, None, at_ms, 0, Origin(record.owner, 0, 0), "expired")

    def next_deadline_ms(self) -> int | None:
        """The earliest expiry."""
        deadlines = self._deadlines
        while deadlines:
            deadline, key = deadlines[0]
            record = self.records.get(key)
            if record is not None and record.expires_at_ms == deadline:
                return deadline
            heapq.heappop(deadlines)
        return None

    def rearm(self, at_ms: int, index: int) -> None:
        """Nothing to do: clients do not renew a time to live, so a change of leader does not extend it."""

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """The node's old process has ended, and its lines are gone."""
        self._void(node, at_ms, "restarted", 0)

    def raise_numbers(self, at_ms: int, indexes: int) -> None:
        """See `GivesOutNumbers`. No node has a line. Dirty values get new versions: a backing store may have newer ones than theirs,
        and would not take them.
        """
        self.stamp = max(self.stamp, at_ms * 1000) + indexes * STAMPS_PER_INDEX
        self.awaited = {}
        for record in self.records.values():
            record.sharers, record.pending_invalidations = {}, {}
        for key in self.dirty:
            self.records[key].version = self._next_stamp(at_ms)

    def node_removed(self, node: str, at_ms: int, index: int) -> None:
        """Its process may still answer from its lines until its lease is over. Then the leader revokes it. The leases of its clients
        end before its own, and it is added again only after that.
        """
        self.client_lease_ms.pop(node, None)

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def snapshot(self) -> Any:
        return {
            "records": self.records,
            "dirty": list(self.dirty),
            "stamp": self.stamp,
            "voided": self.voided,
            "awaited": self.awaited,
            "lease_ms": self.lease_ms,
            "lease_term": self.lease_term,
            # Absent in the form of older cluster versions, in which no node has near clients.
            **({"client_lease_ms": self.client_lease_ms} if self.client_lease_ms else {}),
        }

    def restore(self, state: Any) -> None:
        self.records = msgspec.convert(state["records"], dict[str, Record])
        self.dirty = dict.fromkeys(state["dirty"])
        self.dirty_bytes = sum(_size(self.records[key]) for key in self.dirty)
        self.key_bytes = sum(map(text_bytes, self.records))
        self.stamp = state["stamp"]
        self.voided = state["voided"]
        self.awaited = state["awaited"]
        # Older snapshots do not have these.
        self.lease_ms = state.get("lease_ms", 0)
        self.lease_term = state.get("lease_term", 0)
        self.client_lease_ms = state.get("client_lease_ms", {})
        self._rebuild_deadlines()
        self._events = []

    def used_bytes(self) -> int:
        """The account of the whole directory."""
        return len(self.records) * self._record_bytes() + self.key_bytes + self.dirty_bytes

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        count = len(self.records)
        return {
            "cache_records": count * RECORD_BYTES + self.key_bytes,
            "cache_sharers": count * NODE_BYTES * len(self.voided),
            "cache_dirty_values": self.dirty_bytes,
        }

    def _record_bytes(self) -> int:
        # Every node is in `voided` from its first session on.
        return RECORD_BYTES + NODE_BYTES * len(self.voided)

    # ------------------------------------------------------------------ reading

    def live_sharers(self, record: Record) -> list[str]:
        """Nodes whose registration has not been voided."""
        voided = self.voided
        return [node for node, stamp in record.sharers.items() if stamp > voided.get(node, 0)]

    def state_of(self, record: Record, node: str) -> str:
        """The strongest line that `node` may hold: "M", "E", "S", or "I"."""
        sharers = self.live_sharers(record)
        if node not in sharers:
            return "I"
        if len(sharers) > 1:
            return "S"
        return "M" if record.dirty and record.owner == node else "E"

    # ------------------------------------------------------------------ commands

    def _put(self, command: Put, at_ms: int, origin: Origin) -> Result:
        refusal = self._unwanted_version(command.key, command.if_version) or self._no_room(command.key, len(command.value))
        if refusal is not None:
            return refusal
        return self._write(command.key, command.value, at_ms, _expiry(at_ms, command.ttl_ms), origin, "put")

    def _add(self, command: Add, at_ms: int, origin: Origin) -> Result:
        record = self.records.get(command.key)
        if record is not None and not record.absent:
            return Result({"version": record.version, PENDING_KEY: record.pending_invalidations}, "exists")
        refusal = self._no_room(command.key, len(command.value))
        if refusal is not None:
            return refusal
        return self._write(command.key, command.value, at_ms, _expiry(at_ms, command.ttl_ms), origin, "put")

    def _incr(self, command: Incr, at_ms: int, origin: Origin) -> Result:
        """If the directory does not have the value, the answer is `wanted`: the version whose value must come with the command."""
        record = self.records.get(command.key)
        expires_at_ms = _expiry(at_ms, command.ttl_ms)
        if record is None or record.absent:
            if isinstance(command, IncrExisting):
                pending = record.pending_invalidations if record is not None else {}
                return Result({"detail": "the key has no value", PENDING_KEY: pending}, "not_found")
            base = 0
        else:
            expires_at_ms = expires_at_ms or record.expires_at_ms
            if record.value is not None:
                try:
                    base = _decode_integer(record.value)
                except msgspec.DecodeError:
                    return _not_summed("key", "the value is not an integer", record)
            elif command.base_version == record.version:
                base = command.base
            else:
                return Result({"wanted": record.version})
        value = base + command.delta
        if abs(value) > INTEGER_MAX:
            return _not_summed("delta", "the sum is outside 64 bits", record)
        encoded = _encode(value)
        refusal = self._no_room(command.key, len(encoded))
        if refusal is not None:
            return refusal
        result = self._write(command.key, encoded, at_ms, expires_at_ms, origin, "put")
        result.body["value"] = value
        return result

    def _delete(self, command: Delete, at_ms: int, origin: Origin) -> Result:
        refusal = self._unwanted_version(command.key, command.if_version)
        if refusal is not None:
            return refusal
        record = self.records.get(command.key)
        if record is None or record.absent:
            return _absent(record, "deleted")
        result = self._write(command.key, None, at_ms, 0, origin, "delete")
        result.body["deleted"] = True
        return result

    def _touch(self, command: Touch, at_ms: int, origin: Origin) -> Result:
        """The version stays, because the value does: no node has to drop its line."""
        record = self.records.get(command.key)
        if record is None or record.absent:
            return _absent(record, "touched")
        record.expires_at_ms = _expiry(at_ms, command.ttl_ms)
        if record.expires_at_ms:
            self._add_deadline(record.expires_at_ms, command.key)
        return Result({"touched": True, "version": record.version, PENDING_KEY: record.pending_invalidations})

    def _fetch(self, command: Fetch, at_ms: int, origin: Origin) -> Result:
        return Result({"rows": [self._fetch_one(key, at_ms, origin) for key in command.keys]})

    def _fetch_one(self, key: str, at_ms: int, origin: Origin) -> FetchRow:
        record = self.records.get(key)
        if record is None:
            return FetchRow(0, True, None, "I", self.stamp, {}, 0)
        if record.absent:
            return FetchRow(record.version, True, None, "I", self.stamp, record.pending_invalidations, 0)
        stamp = self._next_stamp(at_ms)
        record.sharers = {node: record.sharers[node] for node in self.live_sharers(record)}
        record.sharers[origin.node] = stamp
        self._events.append(Fetched(key, origin.node, origin.incarnation, stamp))
        state = self.state_of(record, origin.node)
        return FetchRow(record.version, False, record.value, state, stamp, record.pending_invalidations, record.expires_at_ms)

    def _written_back(self, command: WrittenBack, at_ms: int, origin: Origin) -> Result:
        cleaned = []
        for key, version in command.items:
            record = self.records.get(key)
            if record is None or record.version != version or not record.dirty:
                continue
            self._drop_value(key, record)
            if record.absent:
                del self.records[key]
                self.key_bytes -= text_bytes(key)
            cleaned.append((key, version))
        if cleaned:
            self._events.append(Cleaned(cleaned))
        return Result({"cleaned": len(cleaned)})

    def _lost(self, command: Lost, at_ms: int, origin: Origin) -> Result:
        record = self.records.get(command.key)
        if record is None or record.version != command.version or record.dirty or record.absent:
            return Result({"lost": False})
        self.stamp = max(self.stamp, command.found_version)
        result = self._write(command.key, None, at_ms, 0, origin, "lost")
        result.body["lost"] = True
        return result

    def _revoke(self, command: Revoke, at_ms: int, origin: Origin) -> Result:
        self._void(command.node, at_ms, "revoked", command.term)
        return Result()

    def _agree_lease(self, command: AgreeLease, at_ms: int, origin: Origin) -> Result:
        if command.term < self.lease_term:
            return Result()
        if command.longer_are_over:
            # Unless another leader has agreed on its own in the meantime.
            if command.term == self.lease_term:
                self.lease_ms = command.lease_ms
        else:
            self.lease_ms = max(self.lease_ms, command.lease_ms)
            self.lease_term = command.term
        self._events.append(LeaseAgreed(command.term, self.lease_ms))
        return Result()

    def _agree_client_lease(self, command: AgreeClientLease, at_ms: int, origin: Origin) -> Result:
        self.client_lease_ms[origin.node] = command.lease_ms
        return Result()

    # ------------------------------------------------------------------ changes

    def _write(self, key: str, value: bytes | None, at_ms: int, expires_at_ms: int, origin: Origin, why: str) -> Result:
        """Give a key a new version; there is no other way. All holders of an older line become pending, the writer too."""
        record = self.records.get(key)
        if record is None:
            record = self.records[key] = Record()
            self.key_bytes += text_bytes(key)
        self._drop_value(key, record)
        stamp = self._next_stamp(at_ms)
        pending = {node: since for node, since in record.pending_invalidations.items() if since > self.voided.get(node, 0)}
        for node in self.live_sharers(record):
            pending[node] = self.awaited[node] = stamp
        record.version = stamp
        record.value = value
        record.absent = value is None
        record.dirty = True
        record.owner = origin.node
        record.expires_at_ms = expires_at_ms
        pending = pending or _NONE_PENDING
        record.sharers = {} if value is None or not origin.incarnation else {origin.node: stamp}
        record.pending_invalidations = pending
        self.dirty[key] = None
        self.dirty_bytes += _size(record)
        if expires_at_ms:
            self._add_deadline(expires_at_ms, key)
        self._events.append(Written(key, stamp, value, origin.node, origin.incarnation, why, pending))
        return Result({"version": stamp, PENDING_KEY: pending})

    def _drop_value(self, key: str, record: Record) -> None:
        """Make the record clean."""
        if record.dirty:
            del self.dirty[key]
            self.dirty_bytes -= _size(record)
            record.dirty = False
            record.value = None

    def _void(self, node: str, at_ms: int, why: str, term: int) -> None:
        stamp = self.voided[node] = self._next_stamp(at_ms)
        self._events.append(Voided(node, stamp, why, term))

    def _next_stamp(self, at_ms: int) -> int:
        self.stamp = max(self.stamp + 1, at_ms * 1000)
        return self.stamp

    # ------------------------------------------------------------------ refusals

    def _unwanted_version(self, key: str, if_version: int | None) -> Result | None:
        if if_version is None:
            return None
        record = self.records.get(key)
        if record is None:
            version, is_wanted, pending = 0, if_version == 0, {}
        else:
            version, pending = record.version, record.pending_invalidations
            is_wanted = if_version == version or (record.absent and if_version == 0)
        return None if is_wanted else Result({"version": version, PENDING_KEY: pending}, "version_conflict")

    def _no_room(self, key: str, value_bytes: int) -> Result | None:
        """The refusal if a value of this size cannot be stored. A value that is not larger than the dirty one it replaces always can."""
        record, maxima = self.records.get(key), self.limits.maxima
        if record is None:
            growth, more = value_bytes, self._record_bytes() + text_bytes(key)
            if len(self.records) >= maxima[KEYS_MAX]:
                return self.limits.over_limit(KEYS_MAX)
        else:
            growth, more = value_bytes - _size(record), 0
            if growth <= 0:
                return None
        if self.dirty_bytes + growth > (maximum := maxima[DIRTY_BYTES_MAX]):
            detail = "too many values wait to be written to the backing store; is it reachable?"
            return Result({"limit": DIRTY_BYTES_MAX, "maximum": maximum, "detail": detail}, "over_limit")
        return self.limits.over_limit(BYTES_MAX) if self.used_bytes() + growth + more > maxima[BYTES_MAX] else None

    # ------------------------------------------------------------------ deadlines

    def _add_deadline(self, deadline_ms: int, key: str) -> None:
        heapq.heappush(self._deadlines, (deadline_ms, key))
        # A key that is written again leaves its old deadline behind: rebuild before most of them are old.
        if len(self._deadlines) > 2 * len(self.records) + 1000:
            self._rebuild_deadlines()

    def _rebuild_deadlines(self) -> None:
        self._deadlines = [(record.expires_at_ms, key) for key, record in self.records.items() if record.expires_at_ms]
        heapq.heapify(self._deadlines)


def _expiry(at_ms: int, ttl_ms: int) -> int:
    return at_ms + ttl_ms if ttl_ms else 0


def _absent(record: Record | None, done: str) -> Result:
    """The result if there is no value with which this can be done."""
    version, pending = (0, {}) if record is None else (record.version, record.pending_invalidations)
    return Result({done: False, "version": version, PENDING_KEY: pending})


def _not_summed(field: str, detail: str, record: Record | None) -> Result:
    """The refusal of an `incr`."""
    pending = record.pending_invalidations if record is not None else {}
    return Result({"field": field, "detail": detail, PENDING_KEY: pending}, "invalid")


def _size(record: Record) -> int:
    return len(record.value) if record.value is not None else 0
