"""The state of one Raft member, and the primitives of all roles. The rules of the roles are in election, follower and leader.

Rules of this file: all changes of the term, the vote, the role, the log and the membership go through a method here, and all
messages are queued here, so that no message is sent before the write it depends on.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import msgspec

from dss_raft.core import membership
from dss_raft.core.errors import InvariantViolation
from dss_raft.core.log import RaftLog
from dss_raft.core.membership import Membership
from dss_raft.core.messages import (
    AnyMessage,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    ReadIndexReply,
    SnapshotMeta,
)
from dss_raft.core.progress import Progress
from dss_raft.core.reads import ForwardedReads, LeaderReads
from dss_raft.core.ready import BootState, Persist, ReadState, SnapshotChunkWanted
from dss_raft.size_limits import APPEND_ENTRIES_MAX, APPEND_FILL_BYTES


class Rng(Protocol):
    """The only randomness of the core: election timeouts, and the first nonce for reads."""

    def randint(self, a: int, b: int, /) -> int: ...


class Role(IntEnum):
    """A pre-candidate (see `is_pre_candidate`) is a CANDIDATE, too."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    LEARNER = 3


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and times. Times are in ticks; the driver decides how long a tick is.

    Raises:
        ValueError: the combination cannot work; the text names the field.
    """

    node_id: str
    election_ticks_min: int
    election_ticks_max: int
    heartbeat_ticks: int
    #: limits of one AppendEntries (a single larger entry is still sent, alone)
    append_bytes_max: int = APPEND_FILL_BYTES
    append_entries_max: int = APPEND_ENTRIES_MAX
    #: limits of the unacknowledged AppendEntries with entries per peer; deep pipelines increase commit latency
    inflight_messages_max: int = 8
    inflight_bytes_max: int = 4 << 20
    #: proposals are refused (`Busy`) while at least this many bytes are uncommitted
    uncommitted_bytes_max: int = 64 << 20
    #: the leader promotes a learner that is at most this many entries behind; -1: never automatically
    promote_lag_max: int = 64
    #: this node's store; "": stores are not checked
    store_id: str = ""

    def __post_init__(self) -> None:
        if not self.node_id:
            raise ValueError("`node_id` is empty")
        if not 0 < self.heartbeat_ticks < self.election_ticks_min:
            raise ValueError("`heartbeat_ticks` must be at least 1 and less than `election_ticks_min`")
        if self.election_ticks_max < self.election_ticks_min:
            raise ValueError("`election_ticks_max` is less than `election_ticks_min`")
        for field in (
            "append_bytes_max",
            "append_entries_max",
            "inflight_messages_max",
            "inflight_bytes_max",
            "uncommitted_bytes_max",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1")


class CoreState:
    """The fields are public to the modules of the core. The driver calls the methods of `RaftCore` and reads plain attributes."""

    def __init__(self, config: CoreConfig, boot: BootState, rng: Rng) -> None:
        snapshot = boot.snapshot
        self.config = config
        self.node_id = config.node_id
        self.rng = rng
        #: never decreases
        self.term = boot.hard_state.term
        #: the node it voted for in `term`; changes only from "" or together with the term
        self.vote = boot.hard_state.vote
        self.role = Role.FOLLOWER
        #: CANDIDATE only: true while it asks for pre-votes; the term is not raised yet
        self.is_pre_candidate = False
        #: "" when unknown; at most one value per term
        self.leader_id = ""
        #: the newest snapshot of this node; the log may reach back further than its index
        self.snapshot = snapshot
        self.log = RaftLog(snapshot.index, snapshot.term, boot.entries)
        if self.log.last_term > self.term:
            raise InvariantViolation(f"the log ends in term {self.log.last_term}, but the stored term is {self.term}")
        self.membership = Membership(snapshot.index, snapshot.configuration)
        self.applied_index = snapshot.index
        #: the highest commit index that a leader has named; this log may not reach it yet
        self.leader_commit = snapshot.index
        #: last entry handed out in `Ready.committed`, or covered by `Ready.restore`
        self.delivered = snapshot.index
        # ---- time, in ticks
        self.ticks = 0
        self.election_elapsed = 0
        self.election_timeout = 0
        self.heartbeat_elapsed = 0
        # ---- candidate: sender -> granted; the first answer of each sender counts
        self.votes: dict[str, bool] = {}
        # ---- leader
        self.progress: dict[str, Progress] = {}
        self.peers: list[Progress] = []
        self.voting_peers: list[Progress] = []
        self.is_voter = False
        #: this store was put back to an earlier state: it may have voted, or acknowledged entries, and not know it
        self.is_outdated = boot.is_outdated
        #: number of the last confirmation round of this term
        self.round = 0
        self.reads = LeaderReads()
        self.transferee = ""
        self.transfer_tick = 0
        # ---- follower
        #: up to this index, this log equals the log of the leader of `term`
        self.verified = self.log.committed
        self.acked_match = self.log.committed
        self.seen_round = 0
        self.ack_due = False
        #: after a refusal, the next append is a probe and is answered even if it brings nothing new
        self.answer_next = False
        self.forwarded = ForwardedReads(rng.randint(0, 1 << 48))
        # ---- the store
        self.hard_durable = boot.hard_state
        self.hard_handed = boot.hard_state
        self.persist_number = 0
        self.outstanding: Persist | None = None
        self.outstanding_tick = 0
        #: a snapshot that has replaced the log in memory and must replace it in the store next
        self.installing: SnapshotMeta | None = None
        #: the same snapshot until it is durable and may replace the state of the state machines
        self.restoring: SnapshotMeta | None = None
        # ---- messages to send: now; after the next Persist; after the outstanding one
        self.messages: list[AnyMessage] = []
        self.deferred: list[AnyMessage] = []
        self.awaiting_persist: list[AnyMessage] = []
        self.read_states: list[ReadState] = []
        self.chunks_wanted: list[SnapshotChunkWanted] = []
        self.chunks_received: list[InstallSnapshot] = []
        self.restore: SnapshotMeta | None = None
        #: member id -> its store, as its messages said
        self.peer_stores: dict[str, str] = {}
        #: peers whose store has lost entries that it had acknowledged to this leader
        self.found_outdated: list[str] = []
        #: stores that are known to be outdated: their nodes receive the log, but have no vote
        self.outdated_stores: set[str] = set()
        #: store -> the latest (term, index) that it has promised this node: a vote in that term, or entries up to that index
        self.promised: dict[str, tuple[int, int]] = {}

        for entry in boot.entries:
            if entry.kind == EntryKind.CONFIGURATION:
                self.membership.append(entry.index, membership.decode(entry))
        self.members_changed()
        self.reset_election_timer()

    # ---- plain views

    @property
    def commit_index(self) -> int:
        return self.log.committed

    @property
    def known_committed(self) -> int:
        """The highest index that this node knows to be committed, whether its log reaches it or not."""
        return max(self.leader_commit, self.log.committed)

    @property
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def configuration(self) -> Configuration:
        """The members in force: the last configuration in the log, committed or not."""
        return self.membership.configuration

    @property
    def in_lease(self) -> bool:
        """True when a live leader is known, so that there is no reason for an election (thesis 4.2.3, 6.2)."""
        return self.role is Role.LEADER or (self.leader_id != "" and self.election_elapsed < self.config.election_ticks_min)

    @property
    def may_vote(self) -> bool:
        """False while a vote of this store could break a promise: it belongs to no cluster yet, to another one, or is outdated."""
        members = self.membership
        return bool(members.ids) and not self.is_outdated and not members.is_other_store(self.node_id, self.config.store_id)

    @property
    def may_campaign(self) -> bool:
        """A voter may, and also a node that an uncommitted change has removed: only its log may have that change (thesis 4.2.2).

        Without it, no node could win: its vote is needed, but the other logs are shorter. Its own vote does not count.
        """
        members = self.membership
        return self.is_voter or (members.index > self.log.committed and members.was_voter(self.node_id) and self.may_vote)

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log with this end is at least as up to date as this one (paper 5.4.1)."""
        log = self.log
        return last_term > log.last_term or (last_term == log.last_term and last_index >= log.last_index)

    # ---- the stores of the other members

    def store_of(self, peer_id: str) -> str:
        """The member's store; "" when it is not known."""
        return self.membership.stores.get(peer_id) or self.peer_stores.get(peer_id, "")

    def has_vote(self, peer_id: str) -> bool:
        """False if the member's store is known to be outdated."""
        return self.store_of(peer_id) not in self.outdated_stores

    def note_promise(self, peer_id: str, index: int) -> None:
        """The peer has voted for this node in this term, or has acknowledged entries up to `index` in this term."""
        store = self.store_of(peer_id)
        if store:
            self.promised[store] = max(self.promised.get(store, (0, 0)), (self.term, index))

    # ---- term, role, timers

    def reset_election_timer(self) -> None:
        """Choose a new random timeout, so that split votes are rare and do not repeat (paper 5.2)."""
        self.election_elapsed = 0
        self.election_timeout = self.rng.randint(self.config.election_ticks_min, self.config.election_ticks_max)

    def set_term(self, term: int) -> None:
        """Enter a newer term. This node has not voted in it, and knows only the committed part of the leader's log."""
        if term <= self.term:
            raise InvariantViolation(f"term {self.term} cannot become {term}")
        self.term = term
        self.vote = ""
        self.verified = self.acked_match = self.log.committed
        self.seen_round = 0
        self.ack_due = self.answer_next = False

    def set_vote(self, candidate: str) -> None:
        """Vote for a candidate, once per term (paper 5.2)."""
        if self.vote not in ("", candidate):
            raise InvariantViolation(f"already voted for {self.vote} in term {self.term}, cannot vote for {candidate}")
        self.vote = candidate

    def set_leader(self, leader_id: str) -> None:
        """Note the leader, or that there is none. Reads that were sent to the previous leader are refused."""
        if leader_id == self.leader_id:
            return
        self.leader_id = leader_id
        for context in self.forwarded.take_all():
            self.read_states.append(ReadState(context, 0, False))

    def become_follower(self, term: int, leader_id: str) -> None:
        """Follow `leader_id` ("" while unknown) in `term`. In the same term, the vote is kept (microsoft/CCF PR 8094)."""
        was_leader = self.role is Role.LEADER
        for peer in self.peers if was_leader else ():
            if peer.held:
                self.note_promise(peer.id, peer.held)
        if term != self.term:
            self.set_term(term)
        self.role = Role.LEARNER if self.node_id in self.membership.learners else Role.FOLLOWER
        self.is_pre_candidate = False
        self.votes.clear()
        self.reset_election_timer()
        self.set_leader(leader_id)
        if was_leader:
            self.progress = {}
            self.peers = []
            self.voting_peers = []
            self.transferee = ""
            self._refuse_reads()

    def _refuse_reads(self) -> None:
        for origin, context in self.reads.take_all():
            if origin:
                self.send(ReadIndexReply(sender=self.node_id, to=origin, term=self.term, context=context, index=0, ok=False))
            else:
                self.read_states.append(ReadState(context, 0, False))

    # ---- log and membership

    def append(self, entries: list[Entry]) -> None:
        """Add entries to the log. A configuration among them is in force immediately (thesis 4.1)."""
        self.log.append(entries)
        for entry in entries:
            if entry.kind == EntryKind.CONFIGURATION:
                self.membership.append(entry.index, membership.decode(entry))
                self.members_changed()

    def truncate(self, first: int) -> None:
        """Remove the entries from `first` on, and the configurations among them."""
        if self.role is Role.LEADER:
            raise InvariantViolation("a leader must not remove entries from its own log")
        if first <= self.verified:
            raise InvariantViolation(
                f"the leader of term {self.term} contradicts itself at {first}: verified up to {self.verified}"
            )
        self.log.truncate(first)
        if self.membership.truncate(first):
            self.members_changed()

    def members_changed(self) -> None:
        """Adapt role and progress to the configuration in force."""
        members = self.membership
        self.is_voter = self.node_id in members.voters and self.may_vote
        if self.role is not Role.LEADER:
            if self.role is not Role.CANDIDATE:
                self.role = Role.LEARNER if self.node_id in members.learners else Role.FOLLOWER
            return
        self.peer_stores = {peer: store for peer, store in self.peer_stores.items() if peer in members.ids}
        progress: dict[str, Progress] = {}
        for member in self.configuration.members:
            if member.id != self.node_id:
                known = self.progress.get(member.id) or Progress(member.id, member.learner, self.log.last_index + 1, self.ticks)
                known.learner = member.learner
                progress[member.id] = known
        self.progress = progress
        self.peers = list(progress.values())
        self.voting_peers = [peer for peer in self.peers if not peer.learner]

    # ---- sending

    def send(self, message: AnyMessage) -> None:
        """Send now if this node's term is durable, otherwise after the next write."""
        if self.term == self.hard_durable.term:
            self.messages.append(message)
        else:
            self.deferred.append(message)

    def send_after_persist(self, message: AnyMessage) -> None:
        """Send once everything that is in memory now is durable: for votes and requests for votes."""
        self.deferred.append(message)
