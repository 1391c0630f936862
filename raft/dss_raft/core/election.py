"""Elections: pre-votes (thesis 9.6), votes (paper 5.2, 5.4.1), and their results."""

from __future__ import annotations

from dss_raft.core import leader
from dss_raft.core.errors import InvariantViolation
from dss_raft.core.messages import PreVote, PreVoteReply, RequestVote, VoteReply
from dss_raft.core.quorum import Tally, tally
from dss_raft.core.state import CoreState, Role


def campaign(core: CoreState, *, force: bool = False) -> None:
    """Try to become leader. `force` skips the pre-vote and tells voters to ignore a live leader (transfer, operator)."""
    if core.role is Role.LEADER or not core.may_campaign:
        return
    if force:
        _become_candidate(core, transfer=True)
        return
    core.role = Role.CANDIDATE
    core.is_pre_candidate = True
    core.set_leader("")
    core.reset_election_timer()
    core.votes = {core.node_id: True}
    if tally(core.membership.voters, core.votes) is Tally.WON:
        _become_candidate(core, transfer=False)
        return
    for voter in core.membership.voters:
        if voter != core.node_id:
            core.send(
                PreVote(
                    sender=core.node_id,
                    to=voter,
                    term=core.term + 1,
                    last_index=core.log.last_index,
                    last_term=core.log.last_term,
                )
            )


def _become_candidate(core: CoreState, *, transfer: bool) -> None:
    """Raise the term and request votes. This node's own vote, too, counts only when it is durable."""
    if core.role is Role.LEADER:
        raise InvariantViolation("a leader cannot become a candidate")
    core.set_term(core.term + 1)
    core.role = Role.CANDIDATE
    core.is_pre_candidate = False
    core.set_leader("")
    core.set_vote(core.node_id)
    core.votes = {}
    core.reset_election_timer()
    for voter in core.membership.voters:
        if voter == core.node_id:
            core.send_after_persist(VoteReply(sender=voter, to=voter, term=core.term, granted=True))
        else:
            core.send_after_persist(
                RequestVote(
                    sender=core.node_id,
                    to=voter,
                    term=core.term,
                    last_index=core.log.last_index,
                    last_term=core.log.last_term,
                    transfer=transfer,
                )
            )


def handle_pre_vote(core: CoreState, message: PreVote) -> None:
    """Grant if a real vote would be granted and no live leader is known. It is no promise, so nothing has to be durable."""
    would_vote = core.may_vote and core.is_up_to_date(message.last_index, message.last_term)
    granted = message.term > core.term and not core.in_lease and would_vote
    core.send(
        PreVoteReply(
            sender=core.node_id,
            to=message.sender,
            term=message.term if granted else core.term,
            granted=granted,
        )
    )


def handle_pre_vote_reply(core: CoreState, message: PreVoteReply) -> None:
    if core.role is not Role.CANDIDATE or not core.is_pre_candidate:
        return
    if message.granted and message.term != core.term + 1:
        return
    core.votes.setdefault(message.sender, message.granted)
    outcome = tally(core.membership.voters, core.votes)
    if outcome is Tally.WON:
        _become_candidate(core, transfer=False)
    elif outcome is Tally.LOST:
        core.become_follower(core.term, "")


def handle_request_vote(core: CoreState, message: RequestVote) -> None:
    """One vote per term, first come, first served, and only for a log that is at least as up to date (paper 5.2, 5.4.1)."""
    free = core.vote == message.sender or (core.vote == "" and core.leader_id == "")
    granted = free and core.may_vote and core.is_up_to_date(message.last_index, message.last_term)
    reply = VoteReply(sender=core.node_id, to=message.sender, term=core.term, granted=granted)
    if not granted:
        core.send(reply)
        return
    core.set_vote(message.sender)
    core.election_elapsed = 0
    core.send_after_persist(reply)


def handle_vote_reply(core: CoreState, message: VoteReply) -> None:
    if core.role is not Role.CANDIDATE or core.is_pre_candidate:
        return
    core.votes.setdefault(message.sender, message.granted)
    if message.granted:
        core.note_promise(message.sender, 0)
    outcome = tally(core.membership.voters, core.votes)
    if outcome is Tally.WON:
        leader.become_leader(core)
    elif outcome is Tally.LOST:
        core.become_follower(core.term, "")
