"""The only entry point of the core: `RaftCore` takes all input, and returns all work for the driver as a `Ready`.

Theory of operation. `step` compares terms first, for every message alike (paper 5.1): a newer term makes this node a follower,
and an older one is answered with the newer term. Then the message goes to the rules for elections, followers or the leader.
`take_ready` collects the work. Memory runs ahead of the disk: a leader sends entries while its own disk still writes them
(thesis 10.2.1). But votes, acknowledgements and new terms are sent only after their write is done, and only then do they count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dss_raft.core import election, follower, leader, membership, reachable
from dss_raft.core.errors import Busy, ChangeRefused, InvariantViolation, NotLeader
from dss_raft.core.membership import Change, Membership
from dss_raft.core.messages import (
    AnyMessage,
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    PreVote,
    PreVoteReply,
    ReadIndexReply,
    ReadIndexRequest,
    RequestVote,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
)
from dss_raft.core.progress import ProgressState
from dss_raft.core.ready import HardState, Persist, ReadState, Ready
from dss_raft.core.state import CoreState, Role

#: Handlers for messages of the current term. AppendReply and SnapshotReply have no effect unless this node leads.
_HANDLERS: dict[type, Callable[[CoreState, Any], None]] = {
    AppendEntries: follower.handle_append,
    AppendReply: leader.handle_append_reply,
    PreVote: election.handle_pre_vote,
    PreVoteReply: election.handle_pre_vote_reply,
    RequestVote: election.handle_request_vote,
    VoteReply: election.handle_vote_reply,
    InstallSnapshot: follower.handle_snapshot,
    SnapshotReply: leader.handle_snapshot_reply,
    ReadIndexRequest: leader.handle_read_request,
    ReadIndexReply: follower.handle_read_reply,
    TimeoutNow: follower.handle_timeout_now,
}
#: Answers count only from members and their stores. Requests are accepted from any, because its configuration may be newer
#: (thesis 4.1).
_ANSWERS = (AppendReply, PreVoteReply, VoteReply, SnapshotReply)


class PeerStatus(msgspec.Struct, frozen=True):
    """What the leader knows about one peer."""

    id: str
    learner: bool
    match: int
    next: int
    state: str
    inflight: int
    #: since it last answered
    contact_ticks: int
    #: silent for longer than an election timeout
    suspected: bool


class CoreStatus(msgspec.Struct, frozen=True):
    """A copy of the core's state, for people and metrics."""

    node_id: str
    term: int
    role: Role
    leader_id: str
    commit_index: int
    applied_index: int
    last_index: int
    durable_index: int
    first_index: int
    snapshot_index: int
    log_len: int
    members: list[dict[str, Any]]
    transferee: str
    #: since the leader was last heard; 0 on the leader
    leader_contact_ticks: int
    peers: list[PeerStatus]


class RaftCore(CoreState):
    """One member of a Raft cluster, without I/O of its own."""

    # ---- time and messages

    def tick(self) -> None:
        """One tick has passed."""
        self.ticks += 1
        if self.role is Role.LEADER:
            leader.tick(self)
        else:
            follower.tick(self)

    def step(self, message: AnyMessage, store: str = "") -> None:
        """Handle a message from a peer. Messages to other nodes, and answers from nodes or stores that are not members, are ignored.

        Args:
            store: the sender's store, authenticated; "" when it is not known.
        """
        if message.to != self.node_id or message.sender == self.node_id:
            return
        kind = type(message)
        if kind in _ANSWERS and not self._counts(message.sender, store):
            return
        if message.term > self.term:
            if not self._enter_newer_term(message):
                return
        elif message.term < self.term:
            self._answer_older_term(message)
            return
        _HANDLERS[kind](self, message)

    def _counts(self, sender: str, store: str) -> bool:
        """True if answers of this store count: it is the one of a member, or the first one of a member whose store is not known."""
        members = self.membership
        if sender not in members.ids:
            return False
        if store and self.peer_stores.get(sender) != store:
            if members.is_other_store(sender, store):
                return False
            if sender in self.peer_stores and sender in self.progress:
                self.progress[sender].acknowledged_before = 0  # by another store, which the log does not name yet
            self.peer_stores[sender] = store
        return True

    def _enter_newer_term(self, message: AnyMessage) -> bool:
        """Enter the newer term (paper 5.1), unless the message only asks about it. False: ignore the message."""
        if isinstance(message, PreVote) or (isinstance(message, PreVoteReply) and message.granted):
            return True
        if isinstance(message, RequestVote) and self.in_lease and not message.transfer:
            return False
        from_leader = isinstance(message, (AppendEntries, InstallSnapshot, TimeoutNow))
        self.become_follower(message.term, message.sender if from_leader else "")
        return True

    def _answer_older_term(self, message: AnyMessage) -> None:
        """Answer requests with the newer term, so that no node stays in an old one (etcd#8243)."""
        reply: AnyMessage
        to, term, sender = message.sender, self.term, self.node_id
        if isinstance(message, (AppendEntries, InstallSnapshot)):
            reply = AppendReply(sender=sender, to=to, term=term, ok=False, match=0, prev_index=0)
        elif isinstance(message, RequestVote):
            reply = VoteReply(sender=sender, to=to, term=term, granted=False)
        elif isinstance(message, PreVote):
            reply = PreVoteReply(sender=sender, to=to, term=term, granted=False)
        elif isinstance(message, ReadIndexRequest):
            reply = ReadIndexReply(sender=sender, to=to, term=term, context=message.context, index=0, ok=False)
        else:
            return
        self.send(reply)

    # ---- stores

    def form(self, configuration: Configuration) -> None:
        """The cluster of this empty store is known now: `configuration` is durable as its first snapshot.

        Raises:
            InvariantViolation: the store belongs to a cluster already.
        """
        if self.membership.ids or self.log.last_index:
            raise InvariantViolation("this store belongs to a cluster already")
        self.snapshot = SnapshotMeta(0, 0, configuration)
        self.membership = Membership(0, configuration)
        self.members_changed()
        self.reset_election_timer()

    def outdated(self, term: int = 0) -> None:
        """This store was put back to an earlier state, and that is durable: from now on this node has no vote.

        It may have forgotten a vote, or entries that it acknowledged. It still receives the log, and its new acknowledgements are
        true: elections without its vote are won by a majority of all voters, which has every committed entry. It must not help a
        leader of an earlier term than the one in which it had voted.

        Args:
            term: of the member that knows what this store had promised, so the promise was not made in a later one.
        """
        self.is_outdated = True
        self.members_changed()
        if term > self.term or self.role in (Role.LEADER, Role.CANDIDATE):
            self.become_follower(max(term, self.term), "")

    def peer_outdated(self, store: str) -> None:
        """This store was put back to an earlier state, so its node has no vote. It does not count for a majority that elects."""
        self.outdated_stores.add(store)

    def knows_newer(self, peer_id: str, store: str, term: int, last_index: int) -> bool:
        """True if a new process of the peer has started with less in this store than the store had promised to this node.

        A promise in a term is durable together with that term. So a store with a later term is newer than the promise. A store with
        the same term must still have all entries that it acknowledged in that term.
        """
        promised = self.promised.get(store, (0, 0))
        peer = self.progress.get(peer_id)
        if peer is not None and self.store_of(peer_id) == store:
            promised = max(promised, (self.term, peer.held) if peer.held else (0, 0))
        return (term, last_index) < promised

    def peer_restarted(self, peer_id: str) -> None:
        """A new process of this peer is linked: learn again what it holds, beginning with what it had acknowledged."""
        peer = self.progress.get(peer_id)
        if peer is not None:
            peer.restarted()

    # ---- requests

    def propose(self, data: bytes) -> int:
        """Append a COMMANDS entry. Returns the index it will have if it is committed in this term.

        Raises:
            NotLeader: with the leader to ask.
            Busy: too much is uncommitted, or leadership is being transferred.
        """
        self._require_leader()
        if self.transferee:
            raise Busy(f"leadership is being transferred to {self.transferee}")
        if self.log.size(self.log.committed, self.log.last_index) >= self.config.uncommitted_bytes_max:
            raise Busy(f"more than {self.config.uncommitted_bytes_max} bytes are not committed yet")
        return leader.append(self, EntryKind.COMMANDS, data)

    def _require_leader(self) -> None:
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader_id)

    def read_index(self, context: int) -> None:
        """Request the index that a linearizable read must wait for. The answer is a `ReadState` with this context."""
        if self.role is Role.LEADER:
            self.reads.pending.append(("", context))
        elif self.leader_id:
            self.forwarded.waiting.append(context)
        else:
            self.read_states.append(ReadState(context, 0, False))

    def campaign(self, force: bool = False) -> None:
        """Start an election; `force` deposes a live leader. It has no effect on a leader or on a node without a vote."""
        election.campaign(self, force=force)

    def transfer(self, to: str = "") -> None:
        """Transfer leadership to a voter; "" for the best one. The transfer is aborted after an election timeout.

        Raises:
            NotLeader: with the leader to ask.
            ChangeRefused: `to` is not another voter, or there is none.
        """
        self._require_leader()
        if not to:
            successor = leader.best_successor(self)
            if successor is None:
                raise ChangeRefused("there is no other voter that answers")
            to = successor.id
        if to == self.node_id:
            return
        peer = self.progress.get(to)
        if peer is None or peer.learner:
            raise ChangeRefused(f"{to} has no vote in this cluster")
        if not self.has_vote(to):
            raise ChangeRefused(f"{to} has no vote: its disk was put back to an earlier state (manage.py member replace {to})")
        leader.transfer(self, to)

    def abdicate(self) -> None:
        """This node can no longer write: if it leads, step down and have the best successor campaign. Its messages are ready to send."""
        if self.role is Role.LEADER:
            leader.abdicate(self)

    def ask_members(self) -> int:
        """Send a message to every member. Returns the number of this round, for `change`.

        Raises:
            NotLeader: with the leader to ask.
        """
        self._require_leader()
        leader.begin_round(self)
        return self.round

    def change(self, change: Change, *, force: bool = False, since: int = 0) -> int:
        """Change the members by one step; returns the index of the entry that holds the new configuration.

        Args:
            force: make the change although it leaves no spare voter (see `reachable`).
            since: the round that the voters must have answered; 0: they must have answered within an election timeout.

        Raises:
            NotLeader: with the leader to ask.
            Busy: another change or a transfer is in progress, or nothing of this term is committed yet.
            QuorumAtRisk: too few voters of the new configuration are reachable.
            ChangeRefused: the change is not possible.
        """
        self._require_leader()
        if self.transferee:
            raise Busy(f"leadership is being transferred to {self.transferee}")
        if not leader.can_change(self):
            raise Busy("another membership change is not committed yet, or nothing of this term is committed")
        after = membership.changed(self.configuration, change)
        reachable.require_quorum(self, after, force=force, since=since)
        return leader.change(self, change)

    # ---- work for the driver

    def take_ready(self) -> Ready | None:
        """The work that has come up; None when there is none. Call it until it returns None."""
        if self.role is Role.LEADER:
            leader.collect(self)
        else:
            follower.collect(self)
        persist = None
        if self.outstanding is None:
            persist = self._next_persist()
            if persist is None and self.deferred:
                deferred, self.deferred = self.deferred, []
                self._release(deferred)
        committed = []
        end = min(self.log.committed, self.log.durable)
        if end > self.delivered and self.restoring is None:
            committed = self.log.slice(self.delivered + 1, end)
            self.delivered = end
        if not (
            persist
            or self.messages
            or committed
            or self.read_states
            or self.chunks_wanted
            or self.chunks_received
            or self.restore
        ):
            return None
        ready = Ready(persist, self.messages, committed, self.read_states, self.chunks_wanted, self.chunks_received, self.restore)
        self.messages = []
        self.read_states = []
        self.chunks_wanted = []
        self.chunks_received = []
        self.restore = None
        return ready

    def _next_persist(self) -> Persist | None:
        log = self.log
        hard = self.hard_handed
        if self.term != hard.term or self.vote != hard.vote:
            hard = HardState(self.term, self.vote)
        elif log.handed == log.last_index and not log.truncated_from and self.installing is None:
            return None
        self.persist_number += 1
        truncate_from, entries = log.hand_over()
        persist = Persist(self.persist_number, hard, truncate_from, entries, self.installing)
        self.hard_handed = hard
        self.installing = None
        self.outstanding = persist
        self.outstanding_tick = self.ticks
        self.awaiting_persist, self.deferred = self.deferred, []
        return persist

    def persisted(self, number: int) -> None:
        """The Persist with this number is durable: send the messages that waited for it, and count what it says.

        Raises:
            InvariantViolation: it is not the outstanding one.
        """
        persist = self.outstanding
        if persist is None or persist.number != number:
            raise InvariantViolation(f"write {number} is reported durable, but it is not the outstanding one")
        self.outstanding = None
        self.hard_durable = persist.hard_state
        self.log.written()
        if persist.snapshot is not None:
            self._snapshot_installed(persist.snapshot)
        released, self.awaiting_persist = self.awaiting_persist, []
        self._release(released)
        if self.role is Role.LEADER:
            leader.advance_commit(self)

    def _snapshot_installed(self, meta: SnapshotMeta) -> None:
        if self.restoring is meta:
            self.restoring = None
        self.restore = meta
        self.delivered = meta.index
        if self.role is not Role.LEADER:
            follower.reply_to_chunk(self, meta, meta.size, done=True)

    def _release(self, messages: list[AnyMessage]) -> None:
        """Send what waited for a write. Invariant 9: no message promises more than is durable."""
        durable = self.hard_durable
        for message in messages:
            if isinstance(message, VoteReply) and message.granted:
                if message.term > durable.term or (message.term == durable.term and durable.vote != message.to):
                    raise InvariantViolation(f"a vote for {message.to} in term {message.term} would be sent before it is durable")
                if message.to == self.node_id:
                    if message.term == self.term:
                        election.handle_vote_reply(self, message)
                    continue
            elif message.term > durable.term and not isinstance(message, (PreVote, PreVoteReply)):
                raise InvariantViolation(f"term {message.term} would be sent before it is durable")
            self.messages.append(message)

    def applied(self, index: int) -> None:
        """The state machines have applied everything up to `index`.

        Raises:
            InvariantViolation: the index goes back, or beyond what was handed out.
        """
        if not self.applied_index <= index <= self.delivered:
            raise InvariantViolation(f"applied index {self.applied_index} cannot become {index}: {self.delivered} was handed out")
        self.applied_index = index

    def rewind(self, index: int) -> list[Entry]:
        """The state machines go back to the state at `index`: everything committed after it, to be applied again.

        Raises:
            InvariantViolation: the log does not reach back that far.
        """
        if not self.log.base_index <= index <= self.applied_index:
            raise InvariantViolation(
                f"cannot go back from {self.applied_index} to {index}: the log begins at {self.log.first_index}"
            )
        self.applied_index = index
        return self.log.slice(index + 1, self.delivered)

    # ---- snapshots

    def meta_at(self, index: int) -> SnapshotMeta:
        """The metadata of a snapshot of the state machines at `index`. The driver fills in size and CRC."""
        return SnapshotMeta(index, self.log.known_term(index), self.membership.at(index))

    def compact(self, meta: SnapshotMeta, keep_entries: int) -> None:
        """A snapshot at `meta.index` is durable: drop the log before it, except the last `keep_entries` (for slow followers).

        Raises:
            InvariantViolation: not all of it has been applied.
        """
        if meta.index <= self.snapshot.index:
            return
        if meta.index > self.applied_index:
            raise InvariantViolation(f"a snapshot at {meta.index}, but only {self.applied_index} is applied")
        self.snapshot = meta
        self.membership.compact(meta.index)
        self.log.compact(meta.index - keep_entries)

    def chunk_stored(self, meta: SnapshotMeta, next_offset: int, complete: bool) -> None:
        """The driver has stored a received chunk. `complete`: all bytes are stored, and size and CRC are right."""
        follower.chunk_stored(self, meta, next_offset, complete)

    # ---- status

    def status(self) -> CoreStatus:
        """A consistent copy of the present state."""
        peers = [
            PeerStatus(
                id=peer.id,
                learner=peer.learner,
                match=peer.match,
                next=peer.next,
                state=ProgressState(peer.state).name,
                inflight=len(peer.inflight),
                contact_ticks=self.ticks - peer.contact_tick,
                suspected=self.ticks - peer.contact_tick > self.config.election_ticks_max,
            )
            for peer in self.peers
        ]
        log = self.log
        return CoreStatus(
            node_id=self.node_id,
            term=self.term,
            role=self.role,
            leader_id=self.leader_id,
            commit_index=log.committed,
            applied_index=self.applied_index,
            last_index=log.last_index,
            durable_index=log.durable,
            first_index=log.first_index,
            snapshot_index=self.snapshot.index,
            log_len=len(log),
            members=[{"id": member.id, "url": member.url, "learner": member.learner} for member in self.configuration.members],
            transferee=self.transferee,
            leader_contact_ticks=0 if self.role is Role.LEADER else self.election_elapsed,
            peers=peers,
        )
