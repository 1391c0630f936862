"""One test per normative sentence of the Raft paper (Ongaro and Ousterhout, extended version): sections 5.1 and 5.2.

Sections 5.3 to 5.6 are in test_paper_log, 6 to 8 in test_paper_members_snapshots_clients. Each docstring quotes or closely
follows its sentence. What the paper calls RPCs are messages here.
"""

from __future__ import annotations

import pytest
from raft_harness import append, entry, request

from dss_raft.core import Role
from dss_raft.core.messages import (
    AppendEntries,
    PreVote,
    RequestVote,
    VoteReply,
)

# ---- 5.1 Raft basics


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_5_1_at_most_one_leader_can_be_elected_in_a_given_term(make_cluster, size):
    """5.1: "each term begins with an election"; "Raft ensures that there is at most one leader in a given term"."""
    cluster = make_cluster("abcde"[:size])
    leaders = {}
    for _ in range(100):
        cluster.tick(1)
        for node in cluster.nodes.values():
            if node.role is Role.LEADER:
                assert leaders.setdefault(node.core.term, node.id) == node.id
    assert leaders


def test_5_1_an_election_may_end_without_a_winner_and_a_new_term_begins(lone):
    """5.1: "In some situations an election will result in a split vote. In this case the term will end with no leader"."""
    lone.core.campaign(force=True)
    first = lone.core.term
    lone.say(
        VoteReply(sender="b", to="a", term=first, granted=False),
        VoteReply(sender="c", to="a", term=first, granted=False),
    )
    assert lone.core.role is Role.FOLLOWER
    lone.core.campaign(force=True)
    assert lone.core.term == first + 1


def test_5_1_each_server_stores_a_current_term_which_increases_monotonically(lone):
    """5.1: "Each server stores a current term number, which increases monotonically over time"."""
    lone.say(append("a", 5, (0, 0), sender="b"))
    lone.say(append("a", 3, (0, 0), sender="c"))
    assert lone.core.term == 5
    lone.restart()
    assert lone.core.term == 5


def test_5_1_terms_are_exchanged_whenever_servers_communicate(cluster):
    """5.1: "Current terms are exchanged whenever servers communicate": no message without one."""
    cluster.tick(60)
    assert cluster.sent
    assert all(message.term > 0 for message in cluster.sent)


def test_5_1_if_one_servers_current_term_is_smaller_it_updates_to_the_larger(lone):
    """5.1: "if one server's current term is smaller than the other's, then it updates its current term to the larger value"."""
    lone.say(append("a", 7, (0, 0), sender="b"))
    assert (lone.core.term, lone.core.leader_id) == (7, "b")


@pytest.mark.parametrize("role", [Role.CANDIDATE, Role.LEADER])
def test_5_1_a_candidate_or_leader_that_finds_its_term_out_of_date_reverts_to_follower(lone, role):
    """5.1: "If a candidate or leader discovers that its term is out of date, it immediately reverts to follower state"."""
    lone.core.campaign(force=True)
    lone.say()
    if role is Role.LEADER:
        lone.say(VoteReply(sender="b", to="a", term=lone.core.term, granted=True))
    assert lone.core.role is role
    lone.say(VoteReply(sender="c", to="a", term=lone.core.term + 1, granted=False))
    assert lone.core.role is Role.FOLLOWER
    assert lone.core.term == 2


@pytest.mark.parametrize(
    "stale",
    [
        append("a", 2, (0, 0), [entry(1, 2)], sender="c"),
        request("a", 2, (9, 9), sender="c"),
        PreVote(sender="c", to="a", term=2, last_index=9, last_term=9),
    ],
)
def test_5_1_a_request_with_a_stale_term_is_rejected(lone, stale):
    """5.1: "If a server receives a request with a stale term number, it rejects the request": and says its own term."""
    lone.say(append("a", 3, (0, 0), sender="b"))
    (answer,) = lone.say(stale)
    assert answer.term == 3
    assert not getattr(answer, "granted", False)
    assert not getattr(answer, "ok", False)
    assert lone.log() == []


# ---- 5.2 Leader election


def test_5_2_servers_begin_as_followers(cluster):
    """5.2: "When servers start up, they begin as followers"."""
    assert {node.role for node in cluster.nodes.values()} == {Role.FOLLOWER}


def test_5_2_a_server_remains_follower_as_long_as_it_hears_a_leader(cluster):
    """5.2: "A server remains in follower state as long as it receives valid RPCs from a leader or candidate"."""
    cluster.elect("a")
    term = cluster["a"].core.term
    cluster.tick(200)
    assert cluster.leader().id == "a"
    assert cluster["b"].core.term == term


def test_5_2_leaders_send_periodic_heartbeats_to_all(cluster):
    """5.2: "Leaders send periodic heartbeats (AppendEntries RPCs that carry no log entries) to all followers"."""
    cluster.elect("a")
    cluster.sent.clear()
    cluster.tick(2, "a")
    beats = [message for message in cluster.sent if isinstance(message, AppendEntries)]
    assert sorted(message.to for message in beats) == ["b", "c"]
    assert all(message.entries == [] for message in beats)


def test_5_2_a_follower_that_hears_nothing_begins_an_election(lone):
    """5.2: "If a follower receives no communication over a period of time called the election timeout ... begins an election"."""
    said = lone.tick(lone.core.election_timeout)
    assert {type(message) for message in said} == {PreVote}
    assert lone.core.role is Role.CANDIDATE


def test_5_2_to_begin_an_election_a_follower_increments_its_term_votes_for_itself_and_asks_all(lone):
    """5.2: "increments its current term and transitions to candidate state. It then votes for itself and issues RequestVote"."""
    before = lone.core.term
    lone.core.campaign(force=True)
    asked = lone.say()
    assert lone.core.term == before + 1
    assert lone.core.vote == "a"
    assert [(type(message), message.to) for message in asked] == [(RequestVote, "b"), (RequestVote, "c")]


def test_5_2_a_candidate_wins_with_votes_from_a_majority_of_the_full_cluster(make_cluster):
    """5.2: "A candidate wins an election if it receives votes from a majority of the servers in the full cluster"."""
    cluster = make_cluster("abcde")
    core = cluster["a"].core
    cluster.cut("b", "c", "d", "e")
    core.campaign(force=True)
    cluster.settle()
    core.step(VoteReply(sender="b", to="a", term=1, granted=True))
    core.step(VoteReply(sender="b", to="a", term=1, granted=True))
    assert core.role is Role.CANDIDATE
    core.step(VoteReply(sender="c", to="a", term=1, granted=True))
    assert core.role is Role.LEADER


def test_5_2_votes_of_another_term_do_not_count(lone):
    """5.2: votes must be "for the same term"."""
    lone.core.campaign(force=True)
    lone.say()
    lone.core.campaign(force=True)
    lone.say(VoteReply(sender="b", to="a", term=1, granted=True), VoteReply(sender="c", to="a", term=1, granted=True))
    assert lone.core.role is Role.CANDIDATE


def test_5_2_each_server_votes_for_at_most_one_candidate_per_term_first_come_first_served(lone):
    """5.2: "Each server will vote for at most one candidate in a given term, on a first-come-first-served basis"."""
    answers = lone.say(request("a", 2, sender="b"), request("a", 2, sender="c"), request("a", 2, sender="b"))
    assert sorted((answer.to, answer.granted) for answer in answers) == [("b", True), ("b", True), ("c", False)]


def test_5_2_the_vote_survives_a_restart(lone):
    """5.2 with figure 2: votedFor is persistent state, "updated on stable storage before responding to RPCs"."""
    lone.say(request("a", 2, sender="b"))
    lone.restart()
    answers = lone.say(request("a", 2, sender="c"), request("a", 2, sender="b"))
    assert sorted((answer.to, answer.granted) for answer in answers) == [("b", True), ("c", False)]


def test_5_2_no_vote_is_sent_before_it_is_on_stable_storage(lone):
    """Figure 2: "Persistent state on all servers: (Updated on stable storage before responding to RPCs)"."""
    lone.node.hold_writes = True
    assert lone.say(request("a", 2, sender="b")) == []
    lone.node.flush()
    (answer,) = lone.say()
    assert answer.granted


def test_5_2_the_own_vote_counts_only_when_it_is_on_stable_storage(make_cluster):
    """Figure 2, for the candidate's vote for itself: a cluster of one is not elected by memory."""
    cluster = make_cluster("a")
    cluster["a"].hold_writes = True
    cluster.tick(3)
    assert cluster["a"].role is Role.CANDIDATE
    cluster["a"].flush()
    assert cluster["a"].role is Role.LEADER


def test_5_2_once_elected_a_leader_sends_heartbeats_to_all_immediately(lone):
    """5.2: "Once a candidate wins an election ... It then sends heartbeat messages to all of the other servers"."""
    lone.core.campaign(force=True)
    lone.say()
    said = lone.say(VoteReply(sender="b", to="a", term=1, granted=True))
    assert [(type(message), message.to) for message in said] == [(AppendEntries, "b"), (AppendEntries, "c")]


def test_5_2_a_candidate_recognizes_a_leader_of_at_least_its_term(lone):
    """5.2: "If the leader's term is at least as large as the candidate's ..., the candidate recognizes the leader"."""
    lone.core.campaign(force=True)
    lone.say(append("a", lone.core.term, (0, 0), sender="c"))
    assert (lone.core.role, lone.core.leader_id) == (Role.FOLLOWER, "c")


def test_5_2_a_candidate_ignores_a_leader_of_an_older_term(lone):
    """5.2: "If the term in the RPC is smaller ... the candidate rejects the RPC and continues in candidate state"."""
    lone.say(append("a", 3, (0, 0), sender="b"))
    lone.core.campaign(force=True)
    lone.say(append("a", 3, (0, 0), sender="c"))
    assert lone.core.role is Role.CANDIDATE


def test_5_2_each_candidate_times_out_and_starts_a_new_election(lone):
    """5.2: "each candidate will time out and start a new election"; with pre-vote it asks again, without raising its term."""
    term = lone.core.term
    said = lone.tick(100)
    assert len([message for message in said if isinstance(message, PreVote)]) >= 8
    assert lone.core.term == term


def test_5_2_election_timeouts_are_randomized_from_a_fixed_interval(lone):
    """5.2: "election timeouts are chosen randomly from a fixed interval"."""
    drawn = set()
    for _ in range(300):
        lone.core.reset_election_timer()
        drawn.add(lone.core.election_timeout)
    assert drawn == set(range(10, 21))
