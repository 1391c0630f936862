"""Linearizable reads on any node: batched on the leader, forwarded by others, and always answered or refused."""

from __future__ import annotations

from dss_raft.core import Role
from dss_raft.core.messages import AppendEntries, ReadIndexReply, ReadIndexRequest


def test_many_reads_share_one_round(cluster):
    leader = cluster.elect("a").core
    cluster.sent.clear()
    for context in range(100):
        leader.read_index(context)
    cluster.settle()
    assert len(cluster["a"].reads) == 100
    assert len([m for m in cluster.sent if isinstance(m, AppendEntries)]) == 2


def test_reads_that_come_during_a_round_wait_for_the_next_one(cluster):
    leader = cluster.elect("a").core
    leader.read_index(1)
    cluster.collect(cluster["a"])
    first = leader.round
    leader.read_index(2)
    cluster.collect(cluster["a"])
    assert leader.round == first
    cluster.settle()
    assert sorted(cluster["a"].reads) == [1, 2]
    assert leader.round == first + 1


def test_many_reads_of_a_follower_share_one_request(cluster):
    cluster.elect("a")
    cluster.sent.clear()
    for context in range(100):
        cluster["b"].core.read_index(context)
    cluster.settle()
    assert len(cluster["b"].reads) == 100
    assert len([m for m in cluster.sent if isinstance(m, ReadIndexRequest)]) == 1


def test_a_single_node_answers_itself(make_cluster):
    cluster = make_cluster("a")
    cluster.tick(1)
    cluster["a"].core.read_index(1)
    cluster.settle()
    assert cluster["a"].reads == {1: (1, True)}


def test_a_learner_reads_too(make_cluster):
    cluster = make_cluster("abc", learners="d", promote_lag_max=-1)
    cluster.elect("a")
    cluster["d"].core.read_index(1)
    cluster.settle()
    assert cluster["d"].reads == {1: (1, True)}


def test_a_read_without_a_leader_is_refused_immediately(cluster):
    cluster["b"].core.read_index(1)
    cluster.settle()
    assert cluster["b"].reads == {1: (0, False)}


def test_a_read_whose_request_was_lost_is_refused_after_a_timeout(cluster):
    cluster.elect("a")
    cluster.drop = lambda m: isinstance(m, (ReadIndexRequest, ReadIndexReply))
    cluster["b"].core.read_index(1)
    cluster.tick(20)
    assert cluster["b"].reads == {1: (0, False)}


def test_a_change_of_leader_refuses_open_reads(cluster):
    cluster.elect("a")
    cluster.drop = lambda m: isinstance(m, ReadIndexReply)
    cluster["b"].core.read_index(1)
    cluster.settle()
    cluster["c"].core.campaign(force=True)
    cluster.settle()
    assert cluster["c"].role is Role.LEADER
    assert cluster["b"].reads == {1: (0, False)}


def test_a_late_answer_is_not_taken_for_a_later_request(cluster):
    """etcd 20418: contexts were reused, and an old answer was taken for a new one."""
    cluster.elect("a")
    cluster.drop = lambda m: isinstance(m, ReadIndexReply)
    core = cluster["b"].core
    core.read_index(1)
    cluster.settle()
    late = next(m for m in cluster.sent if isinstance(m, ReadIndexReply))
    cluster["b"].start()
    cluster.tick(3, "a")
    cluster["b"].core.read_index(1)
    cluster.collect(cluster["b"])
    cluster["b"].core.step(late)
    cluster.collect(cluster["b"])
    assert cluster["b"].reads == {}


def test_a_deposed_leader_refuses_the_reads_of_others_too(cluster):
    leader = cluster.elect("a").core
    cluster.cut("a")
    leader.step(ReadIndexRequest(sender="b", to="a", term=leader.term, context=5))
    cluster.settle()
    cluster.sent.clear()
    cluster.tick(25, "a")
    assert [(m.to, m.context, m.ok) for m in cluster.sent if isinstance(m, ReadIndexReply)] == [("b", 5, False)]
