"""The audit trail: what operators did, as replicated state that no caller can write to or change.

Theory of operation
-------------------
1. A record says who made a call (as the node has authenticated them), through which entry point, from which address, which call it was with
   which fields, and the reason if the call has one. Applied time says when, and its index says where in the log.
2. The node that takes the call proposes the record *before* it carries the call out. So no call has an effect without a record. A record
   without an effect is possible: the call may be refused after it, or the node may stop in between.
3. Calls that must work without a majority (elections, members, a log that cannot be applied) do not wait for their record. Their node
   proposes it again until it is committed (`dss_raft.audit_log`).
4. The trail keeps `audit_records_max` records with at most `audit_bytes_max` bytes. To make room, it drops the oldest record of the caller
   that has the most, and counts it. So a caller that makes many calls loses its own records, and cannot hide what others did. Before
   cluster version 5, it drops the oldest record of all, as older members do.

The machine is empty below the cluster version that has its command.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, ClassVar

import msgspec

from dss_api.fields import OptionalName
from dss_api.result import Result
from dss_raft.replication.access_tokens import SINCE
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import MIB, StateLimit, StateLimits, text_bytes
from dss_raft.replication.machine import Origin, WithoutWaiters

RECORDS_LIMIT = "audit_records_max"
BYTES_LIMIT = "audit_bytes_max"
RECORDS_MAX_DEFAULT = 10_000
BYTES_MAX_DEFAULT = 16 * MIB
#: From this cluster version on, the caller that has the most records makes room.
FAIR_SINCE = 5
#: A record makes room for itself and shortens a trail whose limits were lowered, in steps that stop no node.
DROPS_PER_RECORD_MAX = 100
#: Characters of a call's fields in a record; the rest is cut.
REQUEST_LENGTH_MAX = 2048
REASON_LENGTH_MAX = 512
#: What a record costs in the account besides its texts, with the objects around it.
RECORD_BYTES = 512

Text = Annotated[str, msgspec.Meta(max_length=600)]


class RecordCall(Command, tag="audit.record", kw_only=True):
    """A call of an operator is about to be carried out."""

    since: ClassVar[int] = SINCE

    #: who, as authenticated
    by: Text
    #: the entry point: "http", "websocket", "page", "admin"
    via: Text
    #: of the caller, or of the proxy in front of the node
    address: Text
    #: the node that took the call
    node: OptionalName
    #: "locks.force_release"
    operation: Text
    #: the call's fields as JSON, perhaps cut
    request: Annotated[str, msgspec.Meta(max_length=REQUEST_LENGTH_MAX + 1)]
    #: why, if the call says so
    reason: Annotated[str, msgspec.Meta(max_length=REASON_LENGTH_MAX)] = ""


class Record(msgspec.Struct, array_like=True):
    """One call of an operator."""

    index: int
    at_ms: int
    by: str
    via: str
    address: str
    node: str
    operation: str
    request: str
    reason: str

    @property
    def bytes(self) -> int:
        texts = (self.by, self.via, self.address, self.node, self.operation, self.request, self.reason)
        return RECORD_BYTES + sum(map(text_bytes, texts))


class _Stored(msgspec.Struct, array_like=True):
    dropped: int = 0
    records: list[Record] = []


class _Caller:
    """What the trail keeps of one caller."""

    __slots__ = ("bytes", "numbers")

    def __init__(self) -> None:
        self.bytes = 0
        #: of its records, oldest first
        self.numbers: deque[int] = deque()


class AuditTrail(WithoutWaiters):
    """The state machine `audit`. See the module."""

    name = "audit"
    format_version = 1
    commands: tuple[type[Command], ...] = (RecordCall,)

    def __init__(self, limits: StateLimits | None = None) -> None:
        self._limits = limits = limits or StateLimits()
        #: number of a record in this trail -> the record, oldest first
        self._records: dict[int, Record] = {}
        self._last = 0
        self._callers: dict[str, _Caller] = {}
        #: older records that are gone
        self.dropped = 0
        self.bytes = 0
        limits.declare(
            StateLimit(RECORDS_LIMIT, RECORDS_MAX_DEFAULT, "count", lambda: len(self._records), SINCE),
            StateLimit(BYTES_LIMIT, BYTES_MAX_DEFAULT, "bytes", lambda: self.bytes, SINCE),
        )

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """See `StateMachine.apply`. A record is never refused: others make room."""
        assert isinstance(command, RecordCall)
        record = Record(
            index,
            at_ms,
            command.by,
            command.via,
            command.address,
            command.node,
            command.operation,
            command.request,
            command.reason,
        )
        self._append(record)
        maxima = self._limits.maxima
        is_fair = self._limits.cluster_version >= FAIR_SINCE
        dropped = 0
        while self._records and (len(self._records) > maxima[RECORDS_LIMIT] or self.bytes > maxima[BYTES_LIMIT]):
            if is_fair and dropped == DROPS_PER_RECORD_MAX:
                break
            by_bytes = self.bytes > maxima[BYTES_LIMIT]
            self._drop_of(self._with_most(by_bytes) if is_fair else next(iter(self._records.values())).by)
            dropped += 1
        return Result()

    def _append(self, record: Record) -> None:
        self._last += 1
        self._records[self._last] = record
        caller = self._callers.setdefault(record.by, _Caller())
        caller.numbers.append(self._last)
        caller.bytes += record.bytes
        self.bytes += record.bytes

    def _with_most(self, by_bytes: bool) -> str:
        """The caller that has the most; of two that have as much, the one whose record is older."""
        return max(
            self._callers,
            key=lambda name: (
                self._callers[name].bytes if by_bytes else len(self._callers[name].numbers),
                -self._callers[name].numbers[0],
            ),
        )

    def _drop_of(self, by: str) -> None:
        """Drop the oldest record of a caller."""
        caller = self._callers[by]
        record = self._records.pop(caller.numbers.popleft())
        caller.bytes -= record.bytes
        self.bytes -= record.bytes
        self.dropped += 1
        if not caller.numbers:
            del self._callers[by]

    @property
    def records(self) -> list[Record]:
        """All records, oldest first."""
        return list(self._records.values())

    def after(self, index: int, count: int) -> list[Record]:
        """The first `count` records behind this index, oldest first, and the others of the last one's log entry.

        So a caller that reads on behind the index of the last record misses none: calls made at the same time share an entry.
        """
        found: list[Record] = []
        for record in self._records.values():
            if record.index > index:
                if len(found) >= count and record.index != found[-1].index:
                    break
                found.append(record)
        return found

    def latest(self, count: int) -> Iterator[Record]:
        """The last records, latest first."""
        return islice(reversed(self._records.values()), count)

    # -- the rest of the interface of a state machine ------------------------------------------------------------------------------

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        return {"audit": self.bytes}

    def snapshot(self) -> Any:
        """See `StateMachine.snapshot`."""
        return _Stored(self.dropped, self.records)

    def restore(self, state: Any) -> None:
        """See `StateMachine.restore`. An empty state is that of a release without an audit trail."""
        stored = msgspec.convert(state, _Stored) if state else _Stored()
        self.dropped, self.bytes, self._last = stored.dropped, 0, 0
        self._records, self._callers = {}, {}
        for record in stored.records:
            self._append(record)
