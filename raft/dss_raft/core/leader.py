"""The leader: replicate, commit by majority in its own term (paper 5.3, 5.4.2), confirm reads, transfer leadership."""

from __future__ import annotations

from dss_raft.core import membership, quorum, reachable
from dss_raft.core.errors import InvariantViolation, QuorumAtRisk
from dss_raft.core.messages import (
    AppendEntries,
    AppendReply,
    Entry,
    EntryKind,
    ReadIndexReply,
    ReadIndexRequest,
    SnapshotReply,
    TimeoutNow,
)
from dss_raft.core.progress import Progress, ProgressState
from dss_raft.core.reads import LeaderReads
from dss_raft.core.ready import ReadState, SnapshotChunkWanted
from dss_raft.core.state import CoreState, Role


def become_leader(core: CoreState) -> None:
    """After a won election: append a no-op. It commits the entries of earlier terms (paper 8) and enables reads and changes."""
    if core.role is not Role.CANDIDATE or core.is_pre_candidate:
        raise InvariantViolation(f"only a candidate becomes leader, not a {core.role.name}")
    core.role = Role.LEADER
    core.set_leader(core.node_id)
    core.votes.clear()
    core.round = 0
    core.reads = LeaderReads()
    core.transferee = ""
    core.heartbeat_elapsed = 0
    core.progress = {}
    core.members_changed()
    append(core, EntryKind.NOOP, b"")


def append(core: CoreState, kind: EntryKind, data: bytes) -> int:
    """Append one entry of the current term. A leader never changes its own log otherwise (paper 5.3)."""
    index = core.log.last_index + 1
    core.append([Entry(index, core.term, int(kind), data)])
    return index


def term_committed(core: CoreState) -> bool:
    """True when an entry of the current term is committed. Then the commit index is known to be up to date (paper 8)."""
    return core.log.term(core.log.committed) == core.term


# ---- time


def tick(core: CoreState) -> None:
    """Send heartbeats, step down when the disk stalls or the majority is lost, abort a transfer that makes no progress."""
    config = core.config
    # A single voter has no other node to step down for.
    if core.voting_peers and core.outstanding is not None and core.ticks - core.outstanding_tick >= config.election_ticks_max:
        core.become_follower(core.term, "")
        return
    if core.transferee and core.ticks - core.transfer_tick >= config.election_ticks_max:
        core.transferee = ""
    for peer in core.peers:
        if peer.state is ProgressState.SNAPSHOT and core.ticks - peer.chunk_tick >= config.election_ticks_max:
            peer.chunk_due = True
    core.heartbeat_elapsed += 1
    if core.heartbeat_elapsed < config.heartbeat_ticks:
        return
    core.heartbeat_elapsed = 0
    if not _quorum_is_active(core):
        core.become_follower(core.term, "")
        return
    begin_round(core)
    if not _bind_a_store(core) and core.membership.learners and config.promote_lag_max >= 0:
        _promote_a_learner(core)


def _quorum_is_active(core: CoreState) -> bool:
    """True when a majority has answered within an election timeout (thesis 6.2). Otherwise another leader may exist."""
    heard = [peer.contact_tick for peer in core.voting_peers]
    if core.is_voter:
        heard.append(core.ticks)
    return core.ticks - quorum.reached(heard) <= core.config.election_ticks_max


def _bind_a_store(core: CoreState) -> bool:
    """Write the store of a member into the log when it is not there. True if a member waits for that."""
    stores = {**core.peer_stores, core.node_id: core.config.store_id}
    for member in core.configuration.members:
        store = "" if member.store else stores.get(member.id, "")
        if store and store not in core.outdated_stores:
            if not core.transferee and can_change(core):
                change(core, membership.Bind(member.id, store))
            return True
    return False


def _promote_a_learner(core: CoreState) -> None:
    if core.transferee or not can_change(core):
        return
    lately = core.ticks - core.config.election_ticks_min
    for peer in core.peers:
        if not peer.learner or peer.contact_tick < lately or not core.has_vote(peer.id):
            continue
        # Until its log names it, a node belongs to no cluster and refuses the vote that its promotion could make necessary.
        if peer.match < max(1, core.membership.index):
            continue
        promotion = membership.Promote(peer.id)
        if peer.match + core.config.promote_lag_max >= core.log.last_index and _keeps_quorum(core, promotion):
            change(core, promotion)
            return


def _keeps_quorum(core: CoreState, requested: membership.Change) -> bool:
    try:
        reachable.require_quorum(core, membership.changed(core.configuration, requested))
    except QuorumAtRisk:
        return False
    return True


# ---- sending


def begin_round(core: CoreState) -> None:
    """Send a message to every peer, whose answers confirm this leader. The gathered reads belong to this round."""
    core.round += 1
    for peer in core.peers:
        peer.due = True
    if core.reads.pending and term_committed(core):
        core.reads.start(core.round, core.log.committed)


def collect(core: CoreState) -> None:
    """Queue the messages to the peers."""
    if core.term != core.hard_durable.term:
        raise InvariantViolation(f"leader of term {core.term}, but only term {core.hard_durable.term} is durable")
    if core.reads.pending and not core.reads.batches and term_committed(core):
        begin_round(core)
    if core.reads.batches:
        _answer_reads(core)
    for peer in core.peers:
        if peer.state is not ProgressState.SNAPSHOT and peer.next < core.log.first_index:
            peer.become_snapshot(core.snapshot)
        if peer.state is ProgressState.SNAPSHOT:
            _send_snapshot(core, peer)
        else:
            _send_entries(core, peer)
    if not core.is_voter and core.membership.index <= core.log.committed:
        abdicate(core)


def _send_entries(core: CoreState, peer: Progress) -> None:
    """Send as many entries as the limits allow, or an empty message as a heartbeat or for a new commit index."""
    log, config = core.log, core.config
    probing = peer.state is ProgressState.PROBE
    while True:
        prev_index = peer.next - 1
        again = probing and peer.paused
        entries: list[Entry] = []
        last = prev_index
        # A probe without an answer is repeated without entries: the peer may be down.
        if prev_index < log.last_index and not again and not peer.full(config.inflight_messages_max, config.inflight_bytes_max):
            last = log.batch_end(peer.next, config.append_entries_max, config.append_bytes_max)
            entries = log.slice(peer.next, last)
        commit = min(log.committed, last)
        if not (entries or peer.due or (not again and (probing or commit > peer.commit_sent))):
            return
        _send_append(core, peer, prev_index, log.known_term(prev_index), entries, log.committed)
        peer.due = False
        peer.commit_sent = commit
        if probing:
            peer.paused = True
            return
        if not entries:
            return
        peer.sent(last, log.size(prev_index, last))
        if last == log.last_index:
            return


def _send_append(core: CoreState, peer: Progress, prev_index: int, prev_term: int, entries: list[Entry], commit: int) -> None:
    core.messages.append(
        AppendEntries(
            sender=core.node_id,
            to=peer.id,
            term=core.term,
            prev_index=prev_index,
            prev_term=prev_term,
            entries=entries,
            commit=commit,
            round=core.round,
        )
    )


def _send_snapshot(core: CoreState, peer: Progress) -> None:
    """Send one chunk at a time. Heartbeats that match any log keep the peer from starting an election meanwhile."""
    if peer.due:
        peer.due = False
        _send_append(core, peer, 0, 0, [], 0)
    if not peer.chunk_due or peer.snapshot is None:
        return
    if core.ticks - peer.chunk_tick >= core.config.election_ticks_max and peer.snapshot.index < core.snapshot.index:
        # The transfer makes no progress and there is a newer snapshot. The file of the older one may be gone.
        peer.become_snapshot(core.snapshot)
    peer.chunk_due = False
    peer.chunk_tick = core.ticks
    core.chunks_wanted.append(SnapshotChunkWanted(peer.id, core.term, peer.snapshot or core.snapshot, peer.offset))


# ---- answers


def handle_append_reply(core: CoreState, message: AppendReply) -> None:
    peer = core.progress.get(message.sender)
    if peer is None:
        return
    peer.contact_tick = core.ticks
    if message.round > peer.round:
        peer.round = message.round
    if not message.ok:
        _step_back(core, peer, message)
        return
    if message.match > core.log.last_index:
        raise InvariantViolation(f"{peer.id} acknowledges {message.match}, but the log ends at {core.log.last_index}")
    news = peer.acknowledged(message.match)
    if peer.state is ProgressState.PROBE:
        if message.prev_index >= peer.next - 1 or message.match >= peer.next - 1:
            peer.become_replicate(min(max(message.prev_index, message.match), core.log.last_index) + 1)
    elif peer.state is ProgressState.SNAPSHOT and peer.match >= core.log.base_index:
        peer.become_probe(peer.match + 1)
    if news:
        advance_commit(core)
        _continue_transfer(core, peer)
    peer.check(core.log.last_index, core.config.inflight_messages_max)


def _step_back(core: CoreState, peer: Progress, message: AppendReply) -> None:
    """The logs differ at `prev_index`: continue where they may agree. An answer to an older request is ignored."""
    if peer.state is ProgressState.SNAPSHOT or message.prev_index <= peer.match:
        return
    if 0 < message.prev_index <= peer.acknowledged_before:
        core.found_outdated.append(peer.id)
        peer.acknowledged_before = 0
    if peer.state is ProgressState.PROBE and message.prev_index != peer.next - 1:
        return
    hint = core.log.last_with_term_at_most(min(message.hint_index, message.prev_index - 1), message.hint_term)
    peer.become_probe(hint + 1)


def handle_snapshot_reply(core: CoreState, message: SnapshotReply) -> None:
    peer = core.progress.get(message.sender)
    if peer is None:
        return
    peer.contact_tick = core.ticks
    if message.done:
        if message.index <= core.log.last_index and peer.acknowledged(message.index):
            advance_commit(core)
        if peer.state is ProgressState.SNAPSHOT and peer.match >= core.log.base_index:
            peer.become_probe(peer.match + 1)
    elif peer.snapshot is not None and peer.snapshot.index == message.index:
        peer.offset = min(message.next_offset, peer.snapshot.size)
        peer.chunk_due = True


def advance_commit(core: CoreState) -> None:
    """Commit what is durable on a majority, if it is of this term (paper 5.4.2). The leader counts its own disk (etcd#14370)."""
    log = core.log
    matches = [peer.match for peer in core.voting_peers]
    if core.is_voter:
        matches.append(log.durable)
    index = quorum.reached(matches)
    if index > log.committed and log.term(index) == core.term:
        log.commit_to(index)


# ---- reads


def _answer_reads(core: CoreState) -> None:
    rounds = [peer.round for peer in core.voting_peers]
    if core.is_voter:
        rounds.append(core.round)
    for origin, context, index in core.reads.confirmed(quorum.reached(rounds)):
        if core.log.term(index) not in (core.term, None):  # None: compacted in the meantime
            raise InvariantViolation(f"a read at {index} would be answered before an entry of term {core.term} is committed")
        if origin:
            core.send(ReadIndexReply(sender=core.node_id, to=origin, term=core.term, context=context, index=index, ok=True))
        else:
            core.read_states.append(ReadState(context, index, True))


def handle_read_request(core: CoreState, message: ReadIndexRequest) -> None:
    if core.role is Role.LEADER:
        core.reads.pending.append((message.sender, message.context))
        return
    core.send(ReadIndexReply(sender=core.node_id, to=message.sender, term=core.term, context=message.context, index=0, ok=False))


# ---- leadership transfer and membership changes


def transfer(core: CoreState, to: str) -> None:
    """Bring `to` up to date, then tell it to campaign (thesis 3.10)."""
    core.transferee = to
    core.transfer_tick = core.ticks
    peer = core.progress[to]
    peer.due = True
    _continue_transfer(core, peer)


def _continue_transfer(core: CoreState, peer: Progress) -> None:
    if peer.id == core.transferee and peer.match == core.log.last_index:
        core.send(TimeoutNow(sender=core.node_id, to=peer.id, term=core.term))


def best_successor(core: CoreState) -> Progress | None:
    """The voter with the most complete log among those that have answered recently."""
    lately = core.ticks - core.config.election_ticks_max
    candidates = [peer for peer in core.voting_peers if peer.contact_tick >= lately and core.has_vote(peer.id)]
    return max(candidates, key=lambda peer: (peer.match, peer.id), default=None)


def abdicate(core: CoreState) -> None:
    """Step down, and have the best successor campaign immediately.

    For a leader whose removal is committed, not earlier (thesis 4.2.2), and for one that can no longer write: nothing here waits for
    the disk.
    """
    successor = best_successor(core)
    if successor is not None:
        core.send(TimeoutNow(sender=core.node_id, to=successor.id, term=core.term))
    core.become_follower(core.term, "")


def can_change(core: CoreState) -> bool:
    """True when every earlier change and an entry of this term are committed (thesis 4.1; Ongaro's correction of 2015)."""
    return core.membership.index <= core.log.committed and term_committed(core)


def change(core: CoreState, requested: membership.Change) -> int:
    """Append the configuration that results from the change. It is in force from now on."""
    if not can_change(core):
        raise InvariantViolation("a second membership change before the first is committed")
    return append(core, EntryKind.CONFIGURATION, membership.encode(membership.changed(core.configuration, requested)))
