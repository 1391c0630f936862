"""Rules from the thesis and from bug reports, not from the paper: pre-vote, check-quorum, rejoining, leadership transfer."""

from __future__ import annotations

import pytest
from raft_harness import Cluster, append, entry, request

from dss_raft.core import ChangeRefused, Role
from dss_raft.core.messages import AppendEntries, PreVote, PreVoteReply, RequestVote, TimeoutNow


def test_a_node_that_was_cut_off_comes_back_without_an_election(cluster):
    """Thesis 9.6, etcd 8499, 9333: it could not win, so it must not raise its term, or depose the leader when it is back."""
    cluster.elect("a")
    term = cluster["a"].core.term
    cluster.cut("c")
    cluster.tick(100)
    assert cluster["c"].role is Role.CANDIDATE
    cluster.heal()
    # it asks at the moment it is back, before the leader's next heartbeat
    cluster["c"].core.campaign()
    cluster.settle()
    cluster.tick(4)
    assert cluster.leader().id == "a"
    assert {node.core.term for node in cluster.nodes.values()} == {term}


def test_a_node_with_a_higher_term_is_not_locked_out(cluster):
    """etcd 8243: the others must learn its higher term, so that a new election includes all nodes."""
    cluster.elect("a")
    cluster.cut("c")
    for _ in range(5):
        cluster["c"].core.campaign(force=True)
        cluster.settle()
    cluster.heal()
    cluster.tick(60)
    leader = cluster.leader()
    assert leader.core.term > 5
    cluster.propose(leader.id, b"x")
    assert all(node.applied == [b"x"] for node in cluster.nodes.values())


def test_a_pre_vote_changes_nothing_on_the_node_that_is_asked(lone):
    (answer,) = lone.say(PreVote(sender="b", to="a", term=9, last_index=0, last_term=0))
    assert (answer.granted, answer.term) == (True, 9)
    assert (lone.core.term, lone.core.vote) == (0, "")
    assert lone.node.store.hard_state.term == 0


def test_a_late_pre_vote_does_not_count(lone):
    lone.core.campaign()
    lone.say(PreVoteReply(sender="b", to="a", term=7, granted=True))
    assert lone.core.term == 0


def test_a_refused_pre_vote_with_a_higher_term_brings_this_node_up_to_it(lone):
    lone.core.campaign()
    lone.say(PreVoteReply(sender="b", to="a", term=7, granted=False))
    assert (lone.core.term, lone.core.role) == (7, Role.FOLLOWER)


def test_a_forced_campaign_deposes_a_live_leader(cluster):
    cluster.elect("a")
    cluster["b"].core.campaign(force=True)
    cluster.settle()
    assert cluster.leader().id == "b"


def test_a_campaign_without_force_respects_a_live_leader(cluster):
    cluster.elect("a")
    cluster["b"].core.campaign()
    cluster.settle()
    cluster.tick(4)
    assert cluster.leader().id == "a"


def test_stepping_down_in_the_same_term_keeps_the_vote(lone):
    """microsoft/CCF PR 8094: forgetting it allows two leaders in one term."""
    lone.say(request("a", 2, sender="b"))
    lone.core.become_follower(2, "")
    (answer,) = lone.say(request("a", 2, sender="c"))
    assert not answer.granted


def test_a_transfer_brings_the_target_up_to_date_first(cluster):
    cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", b"x")
    cluster["a"].core.transfer("c")
    cluster.settle()
    assert not any(isinstance(m, TimeoutNow) for m in cluster.sent)
    cluster.heal()
    cluster.tick(3)
    assert cluster.leader().id == "c"
    assert cluster["c"].applied == [b"x"]


def test_the_timeout_of_a_transfer_starts_with_the_transfer(cluster):
    cluster.elect("a")
    cluster.tick(100)
    cluster.cut("c")
    cluster.propose("a", b"x")
    cluster["a"].core.transfer("c")
    cluster.tick(2)
    cluster.heal()
    cluster.tick(3)
    assert cluster.leader().id == "c"


def test_a_transfer_without_a_target_goes_to_the_most_up_to_date_voter(make_cluster):
    cluster = make_cluster("abc", learners="d")
    cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", b"x")
    cluster["a"].core.transfer()
    cluster.settle()
    assert cluster["b"].role is Role.LEADER


@pytest.mark.parametrize("to", ["d", "x"])
def test_a_transfer_to_a_learner_or_a_stranger_is_refused(make_cluster, to):
    cluster: Cluster = make_cluster("abc", learners="d", promote_lag_max=-1)
    cluster.elect("a")
    with pytest.raises(ChangeRefused):
        cluster["a"].core.transfer(to)


def test_a_timeout_now_from_a_node_other_than_the_leader_is_ignored(cluster):
    cluster.elect("a")
    core = cluster["b"].core
    core.step(TimeoutNow(sender="c", to="b", term=core.term))
    assert core.role is Role.FOLLOWER


def test_messages_for_others_and_answers_of_strangers_are_ignored(cluster):
    leader = cluster.elect("a").core
    before = leader.status()
    leader.step(append("b", 99, (0, 0), sender="c"))
    leader.step(PreVoteReply(sender="stranger", to="a", term=99, granted=False))
    assert leader.status() == before


def test_an_append_with_a_gap_in_its_entries_is_ignored(lone):
    lone.say(append("a", 1, (0, 0), [entry(1, 1), entry(3, 1)], sender="b"))
    lone.say(append("a", 1, (0, 0), [entry(1, 1), entry(2, 0)], sender="b"))
    assert lone.log() == []


def test_a_learner_never_campaigns(make_cluster):
    cluster = make_cluster("abc", learners="d", promote_lag_max=-1)
    cluster.tick(100, "d")
    assert cluster["d"].role is Role.LEARNER
    assert not any(isinstance(m, (PreVote, RequestVote)) and m.sender == "d" for m in cluster.sent)


def test_a_learner_whose_leader_is_silent_follows_none(make_cluster):
    """It then accepts a leader that it does not know yet, and asks whether it was removed."""
    cluster = make_cluster("abc", learners="d", promote_lag_max=-1)
    cluster.elect("a")
    cluster.tick(1)
    assert cluster["d"].core.leader_id == "a"
    cluster.cut("a")
    cluster.tick(100, "d")
    assert cluster["d"].core.leader_id == ""


def test_a_node_without_a_configuration_waits_to_be_contacted(cluster):
    new = cluster.add("d")
    cluster.tick(100, "d")
    assert new.role is Role.FOLLOWER
    assert not [m for m in cluster.sent if m.sender == "d"]


def test_a_silent_peer_is_not_sent_the_same_entries_again_and_again(cluster):
    leader = cluster.elect("a").core
    cluster.cut("c")
    leader.propose(b"x" * 1000)
    cluster.settle()
    cluster.tick(6, "a", "b")
    cluster.sent.clear()
    cluster.tick(30, "a", "b")
    assert not any(m.entries for m in cluster.sent if isinstance(m, AppendEntries) and m.to == "c")
