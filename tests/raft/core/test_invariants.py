"""The run-time invariants: each test breaks one by hand, and the core raises instead of continuing in a wrong state.

The invariants of the log (never truncate what is committed, no gap, no decreasing term, commit only forwards) are in test_log.
"""

from __future__ import annotations

import pytest
from raft_harness import append, entry

from dss_raft.core import CoreConfig, InvariantViolation, Role
from dss_raft.core.messages import AppendReply, Entry, EntryKind, SnapshotMeta, VoteReply


def test_1_the_term_never_decreases(lone):
    lone.say(append("a", 5, (0, 0), sender="b"))
    with pytest.raises(InvariantViolation):
        lone.core.set_term(5)


def test_1_the_vote_changes_only_with_the_term(lone):
    lone.core.set_vote("b")
    with pytest.raises(InvariantViolation):
        lone.core.set_vote("c")
    lone.core.set_term(1)
    lone.core.set_vote("c")


@pytest.mark.parametrize("index", [0, 9])
def test_2_applied_never_goes_back_or_beyond_what_was_handed_out(cluster, index):
    cluster.elect("a")
    cluster.propose("a", b"x")
    with pytest.raises(InvariantViolation):
        cluster["a"].core.applied(index)


def test_2_a_snapshot_never_covers_what_is_not_applied(cluster):
    core = cluster.elect("a").core
    with pytest.raises(InvariantViolation):
        core.compact(SnapshotMeta(core.applied_index + 1, core.term, cluster.configuration), keep_entries=0)


@pytest.mark.parametrize("conflict", [append("a", 2, (0, 0), [entry(1, 2)], sender="c"), append("a", 2, (1, 2), [], sender="c")])
def test_3_a_conflict_with_what_is_committed_is_fatal(lone, conflict):
    lone.say(append("a", 1, (0, 0), [entry(1, 1)], commit=1, sender="b"))
    with pytest.raises(InvariantViolation):
        lone.core.step(conflict)


def test_4_a_leader_does_not_rewrite_what_it_has_sent(lone):
    lone.say(append("a", 2, (0, 0), [entry(1, 1), entry(2, 1)], sender="b"))
    with pytest.raises(InvariantViolation):
        lone.core.step(append("a", 2, (1, 1), [entry(2, 2)], sender="b"))


def test_4_a_leader_appends_only_in_its_own_term(cluster):
    leader = cluster.elect("a").core
    leader.propose(b"x")
    assert leader.log.slice(1, leader.last_index)[-1].term == leader.term


@pytest.mark.parametrize("sender", ["b", "c"])
def test_5_a_peer_cannot_acknowledge_entries_that_never_existed(cluster, sender):
    leader = cluster.elect("a").core
    beyond = leader.last_index + 1
    with pytest.raises(InvariantViolation):
        leader.step(AppendReply(sender=sender, to="a", term=leader.term, ok=True, match=beyond, prev_index=beyond))


def test_6_votes_of_learners_and_strangers_do_not_count(make_cluster):
    cluster = make_cluster("abc", learners="d", promote_lag_max=-1)
    cluster.cut("b", "c")
    core = cluster["a"].core
    core.campaign(force=True)
    cluster.settle()
    for sender in ("d", "stranger"):
        core.step(VoteReply(sender=sender, to="a", term=core.term, granted=True))
    assert core.role is Role.CANDIDATE


def test_7_next_stays_ahead_of_match(cluster):
    leader = cluster.elect("a").core
    peer = leader.progress["b"]
    peer.next = peer.match
    with pytest.raises(InvariantViolation):
        peer.check(leader.last_index, messages_max=8)


def test_8_a_leader_does_not_become_a_candidate(cluster):
    leader = cluster.elect("a").core
    term = leader.term
    leader.campaign(force=True)
    assert (leader.role, leader.term) == (Role.LEADER, term)


def test_9_only_durable_promises_are_released(lone):
    promise = VoteReply(sender="a", to="b", term=1, granted=True)
    with pytest.raises(InvariantViolation):
        lone.core._release([promise])


def test_9_a_leader_of_a_term_that_is_not_durable_sends_nothing(cluster):
    leader = cluster.elect("a").core
    leader.hard_durable = type(leader.hard_durable)()
    with pytest.raises(InvariantViolation):
        leader.take_ready()


def test_10_no_read_is_answered_at_an_index_of_an_earlier_term(cluster):
    cluster.elect("a")
    cluster.elect("b")
    leader = cluster["b"].core
    leader.reads.pending.append(("", 7))
    leader.reads.start(leader.round, leader.last_index - 1)
    with pytest.raises(InvariantViolation):
        leader.take_ready()


def test_a_log_that_ends_in_a_later_term_than_the_stored_one_is_not_started_from(cluster):
    node = cluster["a"]
    node.store.entries = [entry(1, 7)]
    with pytest.raises(InvariantViolation):
        node.start()


def test_a_configuration_that_cannot_be_read_stops_the_node(lone):
    broken = Entry(1, 1, EntryKind.CONFIGURATION, b"\xff")
    with pytest.raises(InvariantViolation):
        lone.core.step(append("a", 1, (0, 0), [broken], sender="b"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"node_id": ""}, "node_id"),
        ({"heartbeat_ticks": 10}, "heartbeat_ticks"),
        ({"heartbeat_ticks": 0}, "heartbeat_ticks"),
        ({"election_ticks_max": 9}, "election_ticks_max"),
        ({"append_entries_max": 0}, "append_entries_max"),
        ({"inflight_messages_max": 0}, "inflight_messages_max"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, field):
    settings = {"node_id": "a", "election_ticks_min": 10, "election_ticks_max": 20, "heartbeat_ticks": 2}
    with pytest.raises(ValueError, match=field):
        CoreConfig(**(settings | change))
