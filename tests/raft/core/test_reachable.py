"""Changes of members keep a quorum: which are made, which must be forced, which are always refused."""

from __future__ import annotations

import pytest

from dss_raft.core import AddLearner, ChangeRefused, QuorumAtRisk, Remove, Role

#: longer than an election timeout
LONG = 21


def stop(cluster, *ids):
    """Stop these nodes; the leader notices."""
    cluster.cut(*ids)
    cluster.tick(LONG, *(node for node in cluster.nodes if node not in ids))


@pytest.mark.parametrize("force", [False, True])
def test_a_live_voter_is_not_removed_when_too_few_would_remain_reachable(cluster, force):
    leader = cluster.elect("a").core
    stop(cluster, "c")
    with pytest.raises(QuorumAtRisk) as refusal:
        leader.change(Remove("b"), force=force)
    rule = "2 of the 2 voters of the new configuration must be reachable"
    assert str(refusal.value) == f"{rule}, but only 1 is: a"
    assert not refusal.value.may_force
    assert leader.membership.voters == ("a", "b", "c")


def test_a_leader_is_not_removed_when_too_few_would_remain_reachable(cluster):
    leader = cluster.elect("a").core
    stop(cluster, "c")
    with pytest.raises(QuorumAtRisk) as refusal:
        leader.change(Remove("a"))
    assert refusal.value.reachable == ["b"]


def test_a_voter_that_does_not_answer_is_removed_without_force(make_cluster):
    cluster = make_cluster("abcde")
    leader = cluster.elect("a").core
    stop(cluster, "d", "e")
    leader.change(Remove("d"))
    cluster.settle()
    assert cluster["b"].core.membership.voters == ("a", "b", "c", "e")
    leader.change(Remove("e"))


def test_all_members_reachable_is_enough_without_a_spare_one(cluster):
    leader = cluster.elect("a").core
    leader.change(Remove("c"))
    cluster.settle()
    leader.change(Remove("b"))
    cluster.settle()
    assert leader.membership.voters == ("a",)


def test_the_last_spare_voter_is_removed_only_by_force(make_cluster):
    cluster = make_cluster("abcd")
    leader = cluster.elect("a").core
    stop(cluster, "d")
    with pytest.raises(QuorumAtRisk) as refusal:
        leader.change(Remove("c"))
    assert refusal.value.may_force
    assert (refusal.value.needed, refusal.value.reachable) == (2, ["a", "b"])
    assert "Bring d back or remove it first" in str(refusal.value)
    leader.change(Remove("c"), force=True)
    cluster.settle()
    assert cluster["b"].core.membership.voters == ("a", "b", "d")


def test_a_learner_comes_and_goes_while_voters_are_missing(cluster):
    """It brings lost redundancy back."""
    leader = cluster.elect("a").core
    stop(cluster, "c")
    leader.change(AddLearner("d", ""))
    cluster.settle()
    leader.change(Remove("d"))
    cluster.settle()
    assert cluster["b"].core.configuration.members == cluster.configuration.members


def test_a_new_leader_counts_no_voter_that_has_not_answered_it(cluster):
    """The election is not an answer: "c" has been down for longer."""
    cluster.elect("a")
    stop(cluster, "c")
    cluster["b"].core.campaign(force=True)
    cluster.settle()
    leader = cluster["b"].core
    assert leader.role is Role.LEADER
    with pytest.raises(QuorumAtRisk):
        leader.change(Remove("a"))


def test_a_voter_that_has_just_stopped_is_not_reachable_after_a_question(cluster):
    leader = cluster.elect("a").core
    cluster.cut("c")
    since = leader.ask_members()
    cluster.settle()
    with pytest.raises(QuorumAtRisk) as refusal:
        leader.change(Remove("b"), since=since)
    assert refusal.value.reachable == ["a"]


def test_an_answer_to_an_earlier_message_does_not_count(cluster):
    leader = cluster.elect("a").core
    since = leader.ask_members()
    with pytest.raises(QuorumAtRisk):
        leader.change(Remove("b"), since=since)
    cluster.settle()
    leader.change(Remove("b"), since=since)


def test_a_leader_whose_removal_only_its_own_log_has_can_finish_it(make_cluster):
    """Thesis 4.2.2: "a server that is not part of its own latest configuration should still start new elections". "d" is lost."""
    cluster = make_cluster("abcd")
    cluster.elect("a")
    stop(cluster, "d")
    cluster.cut("a", "d")
    cluster["a"].core.change(Remove("a"), force=True)
    cluster.settle()
    cluster.tick(60, "a", "b", "c")
    assert cluster["a"].role is not Role.LEADER
    cluster.cut("d")
    cluster.tick(200, "a", "b", "c")
    assert cluster.leader().core.membership.voters == ("b", "c", "d")
    assert cluster["a"].role is Role.FOLLOWER


def put_back(cluster, node_id):
    """The disk of this node was put back to an earlier state. Every member knows it."""
    for node in cluster.nodes.values():
        node.core.peer_stores[node_id] = f"{node_id}0"
        node.core.peer_outdated(f"{node_id}0")
    cluster[node_id].core.outdated()


def test_a_voter_whose_disk_was_put_back_is_none_of_those_that_are_needed(cluster):
    """It acknowledges entries, but could not elect the next leader."""
    leader = cluster.elect("a").core
    put_back(cluster, "c")
    stop(cluster, "b")
    for force in (False, True):
        with pytest.raises(QuorumAtRisk) as refusal:
            leader.change(Remove("b"), force=force)
        assert (refusal.value.reachable, refusal.value.outdated) == (["a"], ["c"])
    rule = "2 of the 2 voters of the new configuration must be reachable, but only 1 is: a"
    why = "c can be reached, but cannot vote: its disk was put back to an earlier state"
    assert str(refusal.value) == f"{rule}. {why}. Replace c (manage.py member replace c) first"


def test_a_voter_whose_disk_was_put_back_can_be_replaced(cluster):
    leader = cluster.elect("a").core
    put_back(cluster, "c")
    leader.change(Remove("c"))
    cluster.settle()
    assert leader.membership.voters == ("a", "b")


def test_a_voter_whose_disk_was_put_back_is_removed_without_force_although_others_are_missing(make_cluster):
    """The cluster loses nothing by it: before, three votes of four were needed."""
    cluster = make_cluster("abcd")
    leader = cluster.elect("a").core
    put_back(cluster, "d")
    stop(cluster, "c")
    leader.change(Remove("d"))


def test_what_to_do_about_a_disk_that_was_put_back_while_no_voter_is_to_spare(make_cluster):
    cluster = make_cluster("abcd")
    leader = cluster.elect("a").core
    put_back(cluster, "d")
    with pytest.raises(QuorumAtRisk) as refusal:
        leader.change(Remove("c"))
    assert refusal.value.may_force
    assert "Replace d (manage.py member replace d) first, or repeat the request with `force`" in str(refusal.value)


def test_a_new_leader_knows_whose_disk_was_put_back(cluster):
    cluster.elect("a")
    put_back(cluster, "c")
    cluster["b"].core.campaign(force=True)
    cluster.settle()
    leader = cluster["b"].core
    assert leader.role is Role.LEADER
    cluster.cut("a")
    cluster.tick(LONG, "b", "c")
    with pytest.raises(QuorumAtRisk) as refusal:
        leader.change(Remove("a"))
    assert refusal.value.outdated == ["c"]


def test_a_member_whose_disk_was_put_back_gets_neither_a_vote_nor_the_lead(cluster):
    leader = cluster.elect("a").core
    leader.change(AddLearner("d", ""))
    cluster.add("d")
    put_back(cluster, "d")
    cluster.tick(LONG)
    assert leader.membership.learners == ("d",)
    assert "d" not in leader.membership.stores, "its next disk gets its place"
    put_back(cluster, "c")
    with pytest.raises(ChangeRefused, match=r"manage\.py member replace c"):
        leader.transfer("c")
    leader.transfer()
    assert leader.transferee == "b"
