"""The replicated state of one node: sessions and state machines. Only committed entries change it.

The order inside an entry is the same on every node:

1. Applied time advances to the stamp of the entry; it never goes back.
2. With the first batch of a new term, every lease is re-armed, because clients could not renew it while there was no leader.
3. Everything that is due by then expires.
4. The leader's own commands are applied: an `AdvanceTime` repeats steps 2 and 3 with a later time. Then the commands of each
   session are applied, each only if it is the next one of its session.

No entry stops all nodes for good. A command that cannot be decoded is refused: its session advances and nothing else changes. A
batch that cannot be decoded has no effect. When a machine raises, `apply` raises `ApplyFailed` and the state cannot be used any
longer: it may be half-changed. A leader can then commit a `Skip`: each replica restores an earlier state and applies the log
again, without that entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from dss_api.result import Result
from dss_raft.core import membership
from dss_raft.core.messages import Configuration, Entry, EntryKind
from dss_raft.formats import Format, WrongFormat, array_version
from dss_raft.replication.batch import Batch, BatchDecoder, Undecodable, require_format
from dss_raft.replication.client_requests import ANY_NODE, ClientRequests, Unknown
from dss_raft.replication.commands import (
    AdvanceTime,
    Cancel,
    Command,
    HashState,
    Nothing,
    Once,
    OpenSession,
    SetClusterVersion,
    Skip,
)
from dss_raft.replication.limits import HasUsage, LimitsMachine, StateLimits
from dss_raft.replication.machine import (
    Event,
    GivesOutNumbers,
    Origin,
    Resolved,
    RestoresInSlices,
    Restoring,
    StateMachine,
    all_at_once,
)
from dss_raft.replication.sessions import FORMAT as SESSIONS_FORMAT
from dss_raft.replication.sessions import ClientSession, SessionTable
from dss_raft.versions import MIN, RELEASE, Supported, UnsupportedVersion, require_supported

_ACCEPTED = Result()
_UNDECODABLE = Result({"detail": "the command in the log cannot be decoded; it had no effect"}, "invalid")
_SKIPPED = Result({"detail": "the entry of this call was skipped by an operator; the call had no effect"}, "skipped")


class ApplyFailed(Exception):
    """A machine raised while entry `index` was applied; the cause says what. The state may be half-changed."""

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(f"entry {index}: {type(cause).__name__}: {cause}")
        self.index = index
        self.cause = cause


class AppliedBeforeSkip(Exception):
    """A `Skip` names an entry that has had its effect here: the state must be built again without that entry."""

    def __init__(self, entry: int) -> None:
        super().__init__(f"entry {entry} was applied here before it was skipped")
        self.entry = entry


class Fault(msgspec.Struct, frozen=True):
    """Something in an applied entry that people should know."""

    index: int
    kind: Literal["undecodable", "skipped", "advanced"]
    detail: str


class _Part(msgspec.Struct, array_like=True):
    """The state of one machine, or of the sessions."""

    #: version of its format, which is read first. 0: a release up to 662b62d wrote it
    version: int
    state: msgspec.Raw


class _State(msgspec.Struct, array_like=True):
    """The whole state. Its large parts are decoded in slices."""

    #: of the format; it is read first
    version: int
    applied_index: int
    at_ms: int
    batch_term: int
    cluster_version: int
    skipped: dict[int, int]
    sessions: _Part
    machines: dict[str, _Part]


class _StateV0(msgspec.Struct):
    """The whole state as releases up to 662b62d wrote it: a map."""

    applied_index: int
    at_ms: int
    batch_term: int
    sessions: msgspec.Raw
    machines: dict[str, msgspec.Raw]
    skipped: dict[int, int] = {}


FORMAT = Format("this snapshot's state", 1, oldest=0)
_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(_State).decode
_decode_state_v0 = msgspec.msgpack.Decoder(_StateV0).decode
#: the state of a machine that an older release does not have
_EMPTY_PART = _Part(0, msgspec.Raw(_encode({})))
_decode_view = msgspec.msgpack.Decoder(memoryview).decode
#: how a binary begins in msgpack
_BINARIES = b"\xc4\xc5\xc6"
#: every entry with this command contains these bytes
SET_VERSION_TAG = b"raft.set_cluster_version"
#: where a leader's own commands come from
_LEADER = Origin("", 0, 0)


class Replica:
    """Applies entries, and collects the results for this node's callers and the events.

    Args:
        node_id: this node, whose callers wait for `take_outcomes`.
        machines: the state machines, in the same order on every node. The table of client requests is added to them.
        supported: the cluster versions that this node supports.
    """

    def __init__(self, node_id: str, machines: Sequence[StateMachine], supported: Supported = RELEASE) -> None:
        self.node_id = node_id
        #: shared with the machines when one of them is a `LimitsMachine`
        self.limits = next((machine.limits for machine in machines if isinstance(machine, LimitsMachine)), StateLimits())
        self.requests = ClientRequests(self.limits, self._cancel_in_machines)
        machines = (*machines, self.requests)
        self.machines = {machine.name: machine for machine in machines}
        self.sessions = SessionTable(self.limits)
        self.applied_index = 0
        #: applied time: the highest stamp seen, ms since 1970
        self.at_ms = 0
        #: term of the last batch applied: a higher one means a new leader
        self.batch_term = 0
        self.supported = supported
        #: incarnation and store of this process; not a part of the replicated state
        self.own = (0, "")
        #: the last entry that an earlier process with this store must have applied, according to the log
        self.applied_before = 0
        #: never goes down, except while the state is built again; see `versions`
        self.cluster_version = MIN
        #: the highest one that this process has had; not a part of the replicated state
        self.highest_version = MIN
        self._machines = machines
        #: the commands of the machines that the present version has
        self._apply: dict[type, Callable[[Any, int, int, Origin], Result | None]] = {}
        self._use_version(MIN)
        #: of all state machines
        self.command_types = tuple(t for machine in machines for t in machine.commands)
        #: entries that had no effect -> index of the `Skip` that names them, 0 before it is applied; part of the state
        self.skipped: dict[int, int] = {}
        #: entries that will have no effect when they are applied: a committed `Skip` names them
        self._to_skip: set[int] = set()
        self._decoder = BatchDecoder(self.command_types, supported.max)
        self._outcomes: list[tuple[int, int, Result]] = []
        #: each with the stamp of its entry
        self._events: list[tuple[Event, int]] = []
        self._gap = False
        #: the last entry asks for a hash of the state after it; the node hashes it, and sets this to False
        self.must_hash = False
        self.faults: list[Fault] = []
        #: the state before the first entry
        self.first_state = self.snapshot()

    def apply(self, entry: Entry) -> None:
        """Apply one committed entry. Its index must be the next one.

        Raises:
            ApplyFailed: a machine raised. Nothing more can be applied before `restore`.
            WrongFormat, UnsupportedVersion: another release wrote the entry, and this node must stop. The entry had no effect.
        """
        if entry.index != self.applied_index + 1:
            raise ValueError(f"entry {entry.index} does not follow {self.applied_index}")
        if entry.kind == EntryKind.COMMANDS:
            outcomes, events = len(self._outcomes), len(self._events)
            try:
                if entry.index in self._to_skip:
                    self._skip_batch(entry)
                else:
                    self._apply_batch(entry)
            except (UnsupportedVersion, WrongFormat):
                raise
            except Exception as error:
                del self._outcomes[outcomes:], self._events[events:]
                raise ApplyFailed(entry.index, error) from error
        elif entry.kind == EntryKind.CONFIGURATION:
            self._apply_configuration(membership.decode(entry), entry.index)
        self.applied_index = entry.index

    def skip(self, index: int) -> None:
        """Give the entry at `index` no effect when it is applied. To be called before the state is restored to an earlier one."""
        self._to_skip.add(index)

    def skips(self, entry: Entry) -> list[int]:
        """The entries that the `Skip` commands in this one name."""
        if entry.kind != EntryKind.COMMANDS:
            return []
        try:
            batch = self._decoder.decode(entry.data)
        except WrongFormat:
            return []  # the node stops when it comes to apply the entry
        return [] if isinstance(batch, Undecodable) else [one.entry for one in batch.own if type(one) is Skip]

    def require_supported(self, entries: Iterable[Entry]) -> None:
        """Check entries that may never be applied, such as the log at a start.

        Raises:
            WrongFormat: a newer release wrote one of them.
            UnsupportedVersion: one of them sets a cluster version that this node does not support.
        """
        for entry in entries:
            if entry.kind == EntryKind.COMMANDS:
                require_format(entry.data, f"entry {entry.index} of the log")
                for version in self._versions_set(entry):
                    require_supported(max(version, self.cluster_version), self.supported)

    def version_in(self, entries: Iterable[Entry]) -> int:
        """The highest cluster version that one of these entries sets; 0: none."""
        return max((version for entry in entries for version in self._versions_set(entry)), default=0)

    def _versions_set(self, entry: Entry) -> list[int]:
        if entry.kind != EntryKind.COMMANDS or SET_VERSION_TAG not in entry.data:
            return []
        batch = self._decoder.decode(entry.data)
        return [] if isinstance(batch, Undecodable) else [one.version for one in batch.own if type(one) is SetClusterVersion]

    def next_deadline_ms(self) -> int | None:
        """The earliest stamp at which something would expire; None when nothing is pending."""
        deadlines = [d for machine in self._machines if (d := machine.next_deadline_ms()) is not None]
        return min(deadlines) if deadlines else None

    def take_outcomes(self) -> list[tuple[int, int, Result]]:
        """(incarnation, seq, result) for this node's own commands, since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def take_events(self) -> list[tuple[Event, int]]:
        """The events of the machines since the last call, except the answers to waiters. Each with the applied time of its entry, in ms."""
        events, self._events = self._events, []
        return events

    def take_gap(self) -> bool:
        """True when commands of this node were skipped since the last call because earlier ones are missing."""
        gap, self._gap = self._gap, False
        return gap

    def usage(self) -> dict[str, int]:
        """The account of the whole state: kind -> bytes. See `limits.py`."""
        usage = self.sessions.usage()
        for machine in self._machines:
            if isinstance(machine, HasUsage):
                usage |= machine.usage()
        return usage

    def take_faults(self) -> list[Fault]:
        """What went wrong in the entries since the last call."""
        faults, self.faults = self.faults, []
        return faults

    def snapshot(self) -> bytes:
        """The whole state, encoded."""
        return _encode(
            (
                FORMAT.version,
                self.applied_index,
                self.at_ms,
                self.batch_term,
                self.cluster_version,
                self.skipped,
                (SESSIONS_FORMAT.version, self.sessions.snapshot()),
                {name: (machine.format_version, machine.snapshot()) for name, machine in self.machines.items()},
            )
        )

    def restore(self, data: bytes | memoryview) -> None:
        """Replace the state by an encoded one.

        Raises:
            WrongFormat, UnsupportedVersion: another release wrote it, and this node must stop. The state is as it was.
        """
        all_at_once(self.restoring(data))

    def restoring(self, data: bytes | memoryview) -> Restoring:
        """Like `restore`, in slices. The state changes in the last step only."""
        state = _read_state(data)
        require_supported(state.cluster_version, self.supported)
        SESSIONS_FORMAT.require(state.sessions.version)
        parts = [(machine, state.machines.get(name, _EMPTY_PART)) for name, machine in self.machines.items()]
        for machine, part in parts:
            Format(f"the state of `{machine.name}` in this snapshot", machine.format_version, oldest=0).require(part.version)
        sessions = msgspec.msgpack.decode(state.sessions.state)
        yield
        installs: list[Callable[[], None]] = []
        for machine, part in parts:
            if machine is self.requests and machine.name not in state.machines:
                installs.append((yield from self.requests.restoring(b"")))
            elif isinstance(machine, RestoresInSlices):
                installs.append((yield from machine.restoring(_binary(machine.name, part))))
            else:
                installs.append(partial(machine.restore, msgspec.msgpack.decode(part.state)))
            yield

        def install() -> None:
            self.applied_index, self.at_ms, self.batch_term = state.applied_index, state.at_ms, state.batch_term
            self.skipped = state.skipped
            self._use_version(state.cluster_version)
            self.sessions.restore(sessions)
            for machine_install in installs:
                machine_install()
            self._outcomes, self._events, self._gap, self.must_hash = [], [], False, False

        return install

    def begin_new_cluster(self, raise_index_by: int) -> None:
        """Make this the first state of a new cluster: its index is higher, and no node of the old cluster has a session or waits.

        What belongs to clients stays: locks, messages, values. Their leases get their full length from the first leader (`rearm`).
        """
        index, at_ms = self.applied_index + raise_index_by, self.at_ms
        for node, session in self.sessions.sessions.items():
            # Before any node ends: what a waiter gives up must not be granted to a caller that is gone, too.
            for seq in session.waiting:
                self._cancel_in_machines(Origin(node, session.incarnation, seq), at_ms, index)
        for node in self.sessions.sessions:
            for machine in self._machines:
                machine.node_restarted(node, at_ms, index)
        self.sessions.restore({})
        for machine in self._machines:
            if isinstance(machine, GivesOutNumbers):
                machine.raise_numbers(at_ms, raise_index_by)
            machine.take_events()
        self._outcomes, self._events = [], []
        self.applied_index = index

    def _apply_batch(self, entry: Entry) -> None:
        batch = self._decoder.decode(entry.data)
        index = entry.index
        if isinstance(batch, Undecodable):
            self.faults.append(Fault(index, "undecodable", f"the whole entry: {batch.reason}"))
            return
        self._check_versions(batch)
        self.at_ms = max(self.at_ms, batch.at_ms)
        if entry.term > self.batch_term:
            self.batch_term = entry.term
            self._rearm(index)
        self._expire(index)
        for command in batch.own:
            if type(command) is Skip:
                self._note_skip(command, index)
            elif type(command) is AdvanceTime:
                self._advance_time(command, index)
            elif type(command) is SetClusterVersion:
                self._use_version(max(command.version, self.cluster_version))
            elif type(command) is HashState and command.since <= self.cluster_version:
                self.must_hash = True
            else:
                self._apply_one(command, self.at_ms, index, _LEADER)
        for group in batch.groups:
            self._apply_group(group, self.at_ms, index)
        self._collect(index)

    def _rearm(self, index: int) -> None:
        for machine in self._machines:
            machine.rearm(self.at_ms, index)

    def _expire(self, index: int) -> None:
        at_ms = self.at_ms
        for machine in self._machines:
            deadline = machine.next_deadline_ms()
            if deadline is not None and deadline <= at_ms:
                machine.expire(at_ms, index)

    def _advance_time(self, command: AdvanceTime, index: int) -> None:
        by_ms = command.to_ms - self.at_ms
        if by_ms > 0:
            self.at_ms = command.to_ms
            self._rearm(index)
            self._expire(index)
            self.faults.append(Fault(index, "advanced", f"by {by_ms} ms; the clocks of {', '.join(command.nodes)} agree"))

    def _check_versions(self, batch: Batch[Any]) -> None:
        for command in batch.own:
            if type(command) is SetClusterVersion:
                require_supported(max(command.version, self.cluster_version), self.supported)

    def _use_version(self, version: int) -> None:
        self.cluster_version = self.limits.cluster_version = version
        self.highest_version = max(self.highest_version, version)
        self._apply = {t: machine.apply for machine in self._machines for t in machine.commands if t.since <= version}

    def _apply_configuration(self, configuration: Configuration, index: int) -> None:
        """End the sessions of nodes that are no longer members. Releases that did not write stores into the log left them open."""
        if not any(member.store for member in configuration.members):
            return
        members = {member.id for member in configuration.members}
        for node in [node for node, one in self.sessions.sessions.items() if node not in members and not one.is_over]:
            self.sessions.end(node)
            for machine in self._machines:
                machine.node_removed(node, self.at_ms, index)
        self._collect(index)

    def _apply_group(self, group: Any, at_ms: int, index: int) -> None:
        session = self.sessions.get(group.node)
        if session is None or session.incarnation != group.incarnation:
            session = self._open_session(group, at_ms, index)
        if session is None or session.is_over:
            return
        is_ours = group.node == self.node_id
        if is_ours and group.answered:
            self._note_applied_before(session, group.answered)
        self.sessions.forget(session, group.answered)
        seq = group.first_seq
        if seq > session.last_seq + 1:
            self._gap = self._gap or is_ours
            return
        for command in group.commands:
            if seq == session.last_seq + 1:
                session.last_seq = seq
                result = self._apply_one(command, at_ms, index, Origin(group.node, group.incarnation, seq))
                if result is None:
                    session.waiting[seq] = None
                else:
                    # The answer to a repeated request has an index already.
                    self._answer(session, seq, Result(result.body, result.code, result.index or index), is_ours)
            seq += 1

    def _note_applied_before(self, session: ClientSession, answered: Sequence[int]) -> None:
        """An earlier process of this node has confirmed results, so its store held the entries with those results."""
        incarnation, store = self.own
        if session.incarnation != incarnation and session.store == store:
            indexes = [session.results[seq].index for seq in answered if seq in session.results]
            self.applied_before = max(self.applied_before, *indexes, 0)

    def _open_session(self, group: Any, at_ms: int, index: int) -> ClientSession | None:
        """The session that the first command of the group opens; None if it opens none: the group has no effect."""
        opening = group.commands[0] if group.first_seq == 1 and group.commands else None
        session = None
        if type(opening) is OpenSession:
            session = self.sessions.open(group.node, group.incarnation, opening)
        if session is None:
            self._gap = self._gap or group.node == self.node_id
            return None
        for machine in self._machines:
            machine.node_restarted(group.node, at_ms, index)
        return session

    def _note_skip(self, command: Skip, index: int) -> None:
        if command.entry >= index:
            return
        if command.entry not in self.skipped:
            raise AppliedBeforeSkip(command.entry)
        self.skipped[command.entry] = self.skipped[command.entry] or index
        self.faults.append(Fault(index, "skipped", f"entry {command.entry}, asked at {command.by}: {command.reason}"))

    def _skip_batch(self, entry: Entry) -> None:
        """Refuse the commands of the entry, and touch no machine. A session that would begin here begins when it sends again."""
        batch = self._decoder.decode(entry.data)
        for group in () if isinstance(batch, Undecodable) else batch.groups:
            session = self.sessions.get(group.node)
            if session is None or session.incarnation != group.incarnation:
                continue
            self.sessions.forget(session, group.answered)
            for seq, _ in enumerate(group.commands, group.first_seq):
                if seq == session.last_seq + 1:
                    session.last_seq = seq
                    result = Result(_SKIPPED.body, _SKIPPED.code, entry.index)
                    self._answer(session, seq, result, group.node == self.node_id)
        self.skipped[entry.index] = 0

    def _apply_one(self, command: Command | Undecodable, at_ms: int, index: int, origin: Origin) -> Result | None:
        apply = self._apply.get(type(command))
        if apply is not None:
            return apply(command, at_ms, index, origin)
        if isinstance(command, Cancel):
            self._cancel(Origin(origin.node, origin.incarnation, command.seq), at_ms, index)
        elif isinstance(command, Undecodable):
            self.faults.append(Fault(index, "undecodable", f"command {origin.seq} of {origin.node!r}: {command.reason}"))
            return _UNDECODABLE
        elif command.since > self.cluster_version:
            # The same as on a node that does not know it: see `versions`.
            self.faults.append(Fault(index, "undecodable", f"command {origin.seq} of {origin.node!r} is newer than the cluster"))
            return _UNDECODABLE
        elif isinstance(command, Once):
            return self._apply_once(command, at_ms, index, origin)
        elif not isinstance(command, Nothing | OpenSession | HashState):
            raise TypeError(f"no machine applies {type(command).__name__}")
        return _ACCEPTED

    def _apply_once(self, once: Once, at_ms: int, index: int, origin: Origin) -> Result | None:
        """Apply the command of a client's request, unless that was done before."""
        requests = self.requests
        found = requests.find(once, at_ms, origin)
        if not isinstance(found, Unknown):
            return found
        command = self._decoder.command(once.command)
        if type(command) not in self._apply or type(command) in requests.commands:
            reason = command.reason if isinstance(command, Undecodable) else f"{type(command).__name__} cannot be repeated"
            return self._apply_one(Undecodable(reason), at_ms, index, origin)
        if not command.is_undone_by_cancel:  # type: ignore[union-attr]
            result = self._apply_one(command, at_ms, index, origin)
            assert result is not None, f"{type(command).__name__} waits, but a cancel does not undo it"
            if not command.is_answer(result):  # type: ignore[union-attr]
                return result
            return requests.answered(once, found.session, Result(result.body, result.code, index))
        refusal = requests.refusal_to_wait(found.session)
        if refusal is not None:
            return refusal
        # The client may repeat it at another node, so it does not belong to the node of this caller.
        waiter = requests.begin(once, found.session, origin)
        result = self._apply_one(command, at_ms, index, waiter)
        if result is not None:
            requests.resolve(waiter, Result(result.body, result.code, index))
        return result

    def _cancel_in_machines(self, waiter: Origin, at_ms: int, index: int) -> None:
        for machine in self._machines:
            machine.cancel(waiter, at_ms, index)

    def _cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        session = self.sessions.get(waiter.node)
        if session is not None:
            session.waiting.pop(waiter.seq, None)
            self.sessions.forget(session, [waiter.seq])
        self._cancel_in_machines(waiter, at_ms, index)

    def _answer(self, session: ClientSession, seq: int, result: Result, is_ours: bool) -> None:
        self.sessions.keep(session, seq, result)
        if is_ours:
            self._outcomes.append((session.incarnation, seq, result))

    def _collect(self, index: int) -> None:
        """Answer the waiters that have a result now, and collect the other events."""
        for machine in self._machines:
            for event in machine.take_events():
                if not isinstance(event, Resolved):
                    self._events.append((event, self.at_ms))
                    continue
                result = Result(event.result.body, event.result.code, index)
                if event.waiter.node == ANY_NODE:
                    for caller in self.requests.resolve(event.waiter, result):
                        self._resolved(caller, result)
                else:
                    self._resolved(event.waiter, result)

    def _resolved(self, waiter: Origin, result: Result) -> None:
        """A command that waited has its result."""
        session = self.sessions.get(waiter.node)
        if session is not None and session.incarnation == waiter.incarnation and waiter.seq in session.waiting:
            del session.waiting[waiter.seq]
            self._answer(session, waiter.seq, result, waiter.node == self.node_id)


def _read_state(data: bytes | memoryview) -> _State:
    """An encoded state, in the present form. Its version is read first.

    Raises:
        WrongFormat: a release of another format wrote it.
    """
    version = array_version(data)
    if version is not None:
        FORMAT.require(version)
        return _decode_state(data)
    old = _decode_state_v0(data)
    machines = {name: _Part(0, state) for name, state in old.machines.items()}
    sessions = _Part(0, old.sessions)
    return _State(0, old.applied_index, old.at_ms, old.batch_term, MIN, old.skipped, sessions, machines)


def _binary(name: str, part: _Part) -> memoryview:
    """The state of a machine that is stored as one binary."""
    data = memoryview(part.state)
    if data[0] not in _BINARIES:
        Format(f"the state of `{name}` in this snapshot", 1).require(0)
    return _decode_view(data)
