"""Followers and learners: accept the leader's log, acknowledge what is durable, receive snapshots, forward reads.

Acknowledgements are state, not a queue. `verified` is the index up to which this log equals the leader's, `log.durable` the index
up to which it is durable. When their minimum grows, or the leader asks, one AppendReply reports it. So several appends during
one fsync cost one answer.
"""

from __future__ import annotations

from dss_raft.core import election
from dss_raft.core.errors import InvariantViolation
from dss_raft.core.log import well_formed
from dss_raft.core.membership import Membership
from dss_raft.core.messages import (
    AppendEntries,
    AppendReply,
    Entry,
    InstallSnapshot,
    ReadIndexReply,
    ReadIndexRequest,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
)
from dss_raft.core.ready import ReadState
from dss_raft.core.state import CoreState, Role


def tick(core: CoreState) -> None:
    """When the leader is silent, start an election (paper 5.2), or know no leader; and give up reads that got no answer."""
    core.election_elapsed += 1
    if core.election_elapsed >= core.election_timeout or _is_alone(core):
        if core.may_campaign:
            election.campaign(core)
        else:
            core.set_leader("")
    if core.forwarded.sent:
        for context in core.forwarded.expired(core.ticks - core.config.election_ticks_min):
            core.read_states.append(ReadState(context, 0, False))


def _is_alone(core: CoreState) -> bool:
    """The only voter does not wait for an election timeout. Once it is a candidate, it waits for its own disk."""
    return core.role is Role.FOLLOWER and core.is_voter and len(core.membership.voters) == 1


def collect(core: CoreState) -> None:
    """Send an acknowledgement if there is news and the term is durable. Send the gathered reads to the leader."""
    if not core.leader_id or core.term != core.hard_durable.term:
        return
    match = min(core.verified, core.log.durable)
    if core.ack_due or match > core.acked_match:
        core.ack_due = False
        core.acked_match = match
        core.send(
            AppendReply(
                sender=core.node_id,
                to=core.leader_id,
                term=core.term,
                ok=True,
                match=match,
                prev_index=core.verified,
                round=core.seen_round,
            )
        )
    if core.forwarded.waiting:
        nonce = core.forwarded.send(core.ticks)
        core.send(ReadIndexRequest(sender=core.node_id, to=core.leader_id, term=core.term, context=nonce))


def _hear_leader(core: CoreState, sender: str) -> None:
    """Only the leader of this term can have sent this message."""
    if core.leader_id == sender and core.role is not Role.CANDIDATE:
        core.election_elapsed = 0
        return
    if core.role is Role.LEADER or core.leader_id not in ("", sender):
        raise InvariantViolation(f"two leaders in term {core.term}: {core.leader_id} and {sender}")
    core.become_follower(core.term, sender)


def handle_append(core: CoreState, message: AppendEntries) -> None:
    """Paper 5.3: accept entries that follow a point where the logs agree; otherwise answer where they may agree."""
    entries = message.entries
    if not well_formed(message.prev_index, message.prev_term, entries):
        return
    _hear_leader(core, message.sender)
    core.leader_commit = max(core.leader_commit, message.commit)
    log = core.log
    prev_index = message.prev_index
    last = prev_index + len(entries)
    if prev_index < log.committed:
        entries = _after_committed(core, message)
        last = max(last, log.committed)
    elif log.term(prev_index) != message.prev_term:
        _refuse(core, message)
        return
    if message.round > core.seen_round:
        core.seen_round = message.round
        core.ack_due = True
    if entries:
        held = log.conflict(entries)
        if held < len(entries):
            first = entries[held].index
            if first <= log.last_index:
                core.truncate(first)
            core.append(entries[held:] if held else entries)
    if message.entries or last > core.verified or core.answer_next:
        # News is answered once it is durable. A repeat is durable already and is answered again: the first answer may be lost.
        core.ack_due = core.ack_due or core.answer_next or last <= log.durable
        core.answer_next = False
        core.verified = max(core.verified, last)
    commit = min(message.commit, last)
    if commit > log.committed:
        log.commit_to(commit)


def _after_committed(core: CoreState, message: AppendEntries) -> list[Entry]:
    """Every later leader has what is committed here (paper 5.4), so only the entries after it matter."""
    committed = core.log.committed
    skip = committed - message.prev_index
    entries = message.entries
    if len(entries) >= skip and entries[skip - 1].term != core.log.known_term(committed):
        raise InvariantViolation(
            f"{message.sender}'s entry {committed} has term {entries[skip - 1].term}; another one is committed here"
        )
    return entries[skip:]


def _refuse(core: CoreState, message: AppendEntries) -> None:
    """The hint skips whole terms: the last place where the two logs can agree (paper 5.3)."""
    committed = core.log.committed
    if message.prev_index <= committed:
        raise InvariantViolation(
            f"{message.sender}'s log differs at {message.prev_index}, but everything up to {committed} is committed here"
        )
    hint_index = max(core.log.last_with_term_at_most(message.prev_index, message.prev_term), committed)
    core.send(
        AppendReply(
            sender=core.node_id,
            to=message.sender,
            term=core.term,
            ok=False,
            match=0,
            prev_index=message.prev_index,
            hint_index=hint_index,
            hint_term=core.log.known_term(hint_index),
            round=message.round,
        )
    )
    core.answer_next = True


def handle_snapshot(core: CoreState, message: InstallSnapshot) -> None:
    """One chunk of a snapshot (paper 7). If this log already holds what is in it, only its commit index is used."""
    _hear_leader(core, message.sender)
    core.leader_commit = max(core.leader_commit, message.meta.index)
    if not _is_news(core, message.meta):
        core.ack_due = True
        return
    core.chunks_received.append(message)


def _is_news(core: CoreState, meta: SnapshotMeta) -> bool:
    """False when this log holds everything up to the end of the snapshot, which is then known to be committed."""
    log = core.log
    if meta.index > log.committed:
        if log.term(meta.index) != meta.term:
            return True
        log.commit_to(meta.index)
    core.verified = max(core.verified, meta.index)
    return False


def chunk_stored(core: CoreState, meta: SnapshotMeta, next_offset: int, complete: bool) -> None:
    """The driver has stored a chunk. `complete`: it has all bytes, and size and CRC are right."""
    if core.role not in (Role.FOLLOWER, Role.LEARNER):
        return
    if not _is_news(core, meta):
        core.ack_due = True
    elif complete:
        install(core, meta)
    else:
        reply_to_chunk(core, meta, next_offset, done=False)


def install(core: CoreState, meta: SnapshotMeta) -> None:
    """Replace the log in memory by the snapshot. The store follows with the next Persist, and then the state machines."""
    core.log.restore(meta.index, meta.term)
    core.verified = meta.index
    core.snapshot = meta
    core.installing = core.restoring = meta
    core.membership = Membership(meta.index, meta.configuration)
    core.members_changed()


def reply_to_chunk(core: CoreState, meta: SnapshotMeta, next_offset: int, *, done: bool) -> None:
    if core.leader_id:
        core.send(
            SnapshotReply(
                sender=core.node_id,
                to=core.leader_id,
                term=core.term,
                index=meta.index,
                next_offset=next_offset,
                done=done,
            )
        )


def handle_timeout_now(core: CoreState, message: TimeoutNow) -> None:
    """The leader transfers its role: campaign immediately (thesis 3.10)."""
    if core.role is Role.FOLLOWER and core.leader_id in ("", message.sender):
        election.campaign(core, force=True)


def handle_read_reply(core: CoreState, message: ReadIndexReply) -> None:
    """An answer of this term. One that comes too late finds no open request."""
    for context in core.forwarded.answered(message.context):
        core.read_states.append(ReadState(context, message.index, message.ok))
