"""Sessions in the simulated world: the real Replica with a counting state machine, and a client on each node that sends again.

The machine records what it was given, independently of the session table, so that it notices a repeat, a gap or a late command
of an earlier incarnation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from sim_check import Checker, Violation
from sim_clocks import SimClocks
from sim_versions import LINKED_US, AddTwice

if TYPE_CHECKING:
    from sim_node import SimNode

from dss_api.errors import Refused
from dss_api.result import Result
from dss_raft.core import Role
from dss_raft.core.messages import Entry
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import encode_command, encode_group
from dss_raft.replication.clocks import AppliedClock, MemberClocks, StampClock
from dss_raft.replication.commands import Command, OpenSession
from dss_raft.replication.machine import Event, Origin
from dss_raft.replication.proposals import Proposals
from dss_raft.replication.replica import ApplyFailed, Replica
from dss_raft.versions import Supported

#: The values of clients' requests begin here; those of the nodes' own commands are below.
FIRST_REQUEST = 10**9
#: Answers to requests, in bytes: so few that some are dropped.
REQUEST_BYTES_MAX = 12_000
#: The real one would outlast most simulated worlds.
FIRST_STAMP_WAIT_S = 0.1


class Add(Command, tag="sim.add"):
    """The command of all releases. Its effect shows in every later answer."""

    value: int


class Forward(msgspec.Struct, frozen=True):
    """Groups of a node's commands that are sent to the leader. Any of them may be lost, late or repeated."""

    sender: str
    to: str
    groups: list[bytes]


class ClockTold(msgspec.Struct, frozen=True):
    """What a node's wall clock shows. It may be lost or late."""

    sender: str
    to: str
    wall_ms: int
    #: the cluster versions that the node supports: in the handshake of a real link
    supported: Supported


class CheckedCore:
    """A node's core, as a leader's proposals see it."""

    def __init__(self, node: SimNode, check: Checker) -> None:
        self._node = node
        self._check = check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node.core, name)

    def propose(self, data: bytes) -> int:
        index = self._node.core.propose(data)
        self._check.proposed(self._node, index, data)
        return index


class Counter:
    """A machine whose answers depend on all earlier commands."""

    name = "counter"
    format_version = 1
    commands: tuple[type[Command], ...] = (Add, AddTwice)

    def __init__(self, check: Checker) -> None:
        self.check = check
        self.total = 0
        #: node -> [incarnation, last seq] given to `apply`
        self.given: dict[str, list[int]] = {}
        #: incarnations that are over
        self.over: list[int] = []

    def apply(self, command: Any, at_ms: int, index: int, origin: Origin) -> Result | None:
        incarnation, last = self.given.get(origin.node, [0, 0])
        if origin.incarnation != incarnation:
            # the first command opens the session, and does not reach the machines
            self.over.append(incarnation)
            incarnation, last = origin.incarnation, 1
        # Repeats of clients' requests do not reach the machine.
        missing = (seq for seq in range(last + 1, origin.seq) if (origin.node, incarnation, seq) not in self.check.apart)
        if origin.incarnation in self.over or origin.seq <= last or next(missing, 0):
            raise Violation("exactly_once", f"entry {index} gives {origin} to the machine after {incarnation}.{last}")
        self.given[origin.node] = [origin.incarnation, origin.seq]
        if command.value >= FIRST_REQUEST:
            self.check.request_carried_out(command.value, index)
        times = 2 if isinstance(command, AddTwice) else 1
        self.total = zlib.crc32(
            b"%d:%d:%d" % (self.total, command.value, times) if times > 1 else b"%d:%d" % (self.total, command.value)
        )
        return Result({"total": self.total})

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None: ...

    def expire(self, at_ms: int, index: int) -> None: ...

    def next_deadline_ms(self) -> int | None:
        return None

    def rearm(self, at_ms: int, index: int) -> None: ...

    def node_restarted(self, node: str, at_ms: int, index: int) -> None: ...

    def node_removed(self, node: str, at_ms: int, index: int) -> None: ...

    def take_events(self) -> list[Event]:
        return []

    def snapshot(self) -> Any:
        return {"total": self.total, "given": self.given, "over": self.over}

    def restore(self, state: Any) -> None:
        self.total, self.given, self.over = state["total"], state["given"], state["over"]


class Sessions:
    """One node's replica and its own commands in flight. All of it is in memory: a restart begins a new incarnation."""

    def __init__(self, node: SimNode, incarnation: int, opening: OpenSession, check: Checker, clocks: SimClocks) -> None:
        node_id = node.id
        self.node = node
        self.node_id = node_id
        self.incarnation = incarnation
        self.opening = opening
        self.check = check
        self.counter = Counter(check)
        self.replica = Replica(node_id, [self.counter], node.supported)
        self.replica.limits.maxima["request_bytes_max"] = REQUEST_BYTES_MAX
        #: peer -> (when, what it supports)
        self.announced: dict[str, tuple[int, Supported]] = {}
        self.admission = Admission(self.replica.command_types, lambda: self.replica.cluster_version)
        self.member_clocks = MemberClocks(node_id, clocks.wall_ms, clocks.steady_s)
        self.applied_clock = AppliedClock(clocks.wall_ms, clocks.steady_s)
        stamps = StampClock(self.member_clocks, self.applied_clock, clocks.steady_s, FIRST_STAMP_WAIT_S)
        self.proposals = Proposals(CheckedCore(node, check), self.replica, self.admission, stamps)  # type: ignore[arg-type]
        #: the term in which this node has stamped as the leader
        self.stamped_term = 0
        #: the first command opens the session
        self.next_seq = 2
        self.in_flight: dict[int, bytes] = {1: b""}
        #: for the clients' commands: what takes the answer
        self.callers: dict[int, Callable[[Result], None]] = {}
        self.answered: list[int] = []
        #: (term, leader) that in-flight commands were last sent to
        self.sent_to = (0, "")

    # ---- replicated state

    def apply(self, entry: Entry) -> int:
        """Apply, answer this node's commands, and return a hash of the whole state."""
        before_ms = self.replica.at_ms
        try:
            self.replica.apply(entry)
        except ApplyFailed as failure:
            raise failure.cause from None  # what the checking machine has found
        self.applied_clock.applied(self.replica.at_ms)
        is_advanced = any(fault.kind == "advanced" for fault in self.replica.take_faults())
        self.check.version_applied(self.node, entry)
        self.check.time_applied(entry, before_ms, self.replica.at_ms, is_advanced)
        for incarnation, seq, result in self.replica.take_outcomes():
            if incarnation == self.incarnation:
                self._settle(seq, result)
        return self.face()

    def face(self) -> int:
        given = self.counter.given
        version, requests = self.replica.cluster_version, self.replica.requests
        parts = (self.counter.total, self.replica.at_ms, sorted(given.items()), version)
        if requests.sessions:
            parts = (*parts, requests.answer_bytes, list(requests.sessions), requests.next_deadline_ms())  # type: ignore[assignment]
        return zlib.crc32(repr(parts).encode())

    def dump(self) -> bytes:
        return self.replica.snapshot()

    def load(self, data: bytes) -> int:
        """A snapshot has replaced the state: answer the commands whose results are in its session table."""
        self.replica.restore(data)
        self.check.version_restored(self.node, self.replica.applied_index)
        self.applied_clock.applied(self.replica.at_ms)
        session = self.replica.sessions.get(self.node_id)
        if session is not None and session.incarnation == self.incarnation:
            for seq in [seq for seq in self.in_flight if seq <= session.last_seq]:
                if seq not in session.results:
                    raise Violation("exactly_once", f"{self.node_id}'s command {seq} was applied, but its result is forgotten")
                self._settle(seq, session.results[seq])
        return self.replica.applied_index

    def _settle(self, seq: int, result: Result) -> None:
        self.in_flight.pop(seq, None)
        self.answered.append(seq)
        if (self.node_id, self.incarnation, seq) in self.check.apart:
            if seq in self.callers:
                self.callers.pop(seq)(result)
        elif seq > 1:
            self.check.session_answered(self.node_id, self.incarnation, seq, result.index, result.body["total"])

    # ---- the node as a client of Raft

    def submit(self, value: int) -> bytes:
        """A new command, as the group that carries it."""
        seq = self.next_seq
        self.next_seq += 1
        self.in_flight[seq] = self._encode(value)
        return self.again()[0] if 1 in self.in_flight else self._group(seq, [self.in_flight[seq]])

    def submit_apart(self, encoded: bytes, answered: Callable[[Result], None] | None = None) -> bytes:
        """A command of a client, as the group that carries it. It may not reach the machine."""
        seq = self.next_seq
        self.next_seq += 1
        self.in_flight[seq] = encoded
        self.check.apart.add((self.node_id, self.incarnation, seq))
        if answered is not None:
            self.callers[seq] = answered
        return self.again()[0] if 1 in self.in_flight else self._group(seq, [encoded])

    def _encode(self, value: int) -> bytes:
        if self.node.releases.wants_newer_command():
            try:
                encoded = self.admission.encode(AddTwice(value=value))
                self.node.releases.happened["newer command"] += 1
                return encoded
            except Refused:
                self.node.releases.happened["newer command refused"] += 1
        return encode_command(Add(value=value))

    def again(self) -> list[bytes]:
        """Everything in flight again, with the same numbers."""
        if not self.in_flight:
            return []
        if 1 in self.in_flight:
            session = self.replica.sessions.get(self.node_id)
            replaces = 0 if session is None else session.incarnation
            self.in_flight[1] = encode_command(msgspec.structs.replace(self.opening, replaces=replaces))
        return [self._group(next(iter(self.in_flight)), list(self.in_flight.values()))]

    def _group(self, first_seq: int, commands: list[bytes]) -> bytes:
        answered, self.answered = self.answered, []
        return encode_group(self.node_id, self.incarnation, first_seq, answered, commands)

    # ---- the node as the leader

    def propose(self, groups: list[bytes]) -> None:
        """Propose these groups, with what was gathered before."""
        self.proposals.add_groups(groups)
        self.proposals.propose()

    def propose_empty(self) -> int:
        """Propose an entry without commands. Returns its index, 0 if it could not be proposed yet."""
        last_index = self.node.core.last_index
        self.proposals.stamp()
        self.proposals.propose()
        return self.node.core.last_index if self.node.core.last_index > last_index else 0

    def ticked(self) -> None:
        """A tick has passed."""
        if self.node.core.role is not Role.LEADER:
            return
        if self.stamped_term != self.node.core.term:
            self.stamped_term = self.node.core.term
            self.proposals.stamp()
        self.proposals.catch_up()
        if self.node.releases.must_rise:
            self.proposals.raise_version(self._supported_by)
        self.proposals.propose()

    def _supported_by(self, peer: str) -> Supported | None:
        at_us, supported = self.announced.get(peer, (-LINKED_US, None))
        return supported if self.node.releases.now_us() - at_us < LINKED_US else None

    def look(self) -> None:
        """Compare the wall clocks."""
        self.member_clocks.look(self.node.core.membership.voters)

    def heard(self, told: ClockTold) -> None:
        self.announced[told.sender] = (self.node.releases.now_us(), told.supported)
        self.check.announced[self.node_id, told.sender] = told.supported
        self.member_clocks.heard(told.sender, told.wall_ms)
        self.look()
