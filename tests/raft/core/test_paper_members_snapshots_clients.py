"""The Raft paper, sentence by sentence: members, snapshots, clients (sections 6 to 8)."""

from __future__ import annotations

import pytest
from raft_harness import append, entry, request

from dss_raft.core import AddLearner, Busy, Promote, Remove, Role
from dss_raft.core.messages import (
    AppendReply,
    EntryKind,
    InstallSnapshot,
    SnapshotMeta,
    VoteReply,
)

# ---- 6 Cluster membership changes (single-step, thesis 4)


def test_6_a_configuration_is_used_as_soon_as_it_is_in_the_log(cluster):
    """6: "a server always uses the latest configuration in its log, regardless of whether the entry is committed"."""
    leader = cluster.elect("a").core
    cluster.cut("b", "c")
    leader.change(AddLearner("d", ""))
    assert leader.membership.learners == ("d",)
    assert leader.commit_index < leader.last_index


def test_6_a_configuration_that_is_removed_from_the_log_is_no_longer_in_force(cluster):
    """6 and thesis 4.1: "a server must be prepared to fall back to the previous configuration"."""
    cluster.elect("a")
    cluster.cut("a")
    cluster["a"].core.change(Remove("c"))
    cluster.settle()
    assert cluster["a"].core.membership.voters == ("a", "b")
    cluster.tick(60, "b", "c")
    cluster.heal()
    cluster.tick(6)
    assert cluster["a"].core.membership.voters == ("a", "b", "c")


def test_6_only_one_change_at_a_time(cluster):
    """Thesis 4.1: a change is appended only when the previous one is committed."""
    leader = cluster.elect("a").core
    cluster.cut("b", "c")
    leader.change(AddLearner("d", ""))
    with pytest.raises(Busy):
        leader.change(AddLearner("e", ""))


def test_6_no_change_before_an_entry_of_the_leaders_term_is_committed(cluster):
    """Ongaro, 10 July 2015, "bug in single-server membership changes": committed entry of the current term first."""
    cluster.elect("a")
    cluster.cut("b", "c")
    core = cluster["a"].core
    core.become_follower(core.term, "")
    core.campaign(force=True)
    cluster.settle()
    core.step(VoteReply(sender="b", to="a", term=core.term, granted=True))
    assert core.role is Role.LEADER
    with pytest.raises(Busy):
        core.change(AddLearner("d", ""))


def test_6_new_servers_join_as_non_voting_members(make_cluster):
    """6: "the new servers join the cluster as non-voting members (the leader replicates log entries to them, but ...)"."""
    cluster = make_cluster("abc", learners="de", promote_lag_max=-1)
    leader = cluster.elect("a").core
    cluster.cut("b", "c")
    index = cluster.propose("a", b"x")
    assert cluster["d"].core.last_index == cluster["e"].core.last_index == index
    assert leader.commit_index < index
    cluster["d"].core.campaign(force=True)
    assert cluster["d"].role is Role.LEARNER


def test_6_a_learner_that_has_caught_up_becomes_a_full_member(cluster):
    """6: "Once the new servers have caught up with the rest of the cluster, the reconfiguration can proceed"."""
    leader = cluster.elect("a").core
    cluster.add("d")
    leader.change(AddLearner("d", ""))
    cluster.settle()
    leader.change(Promote("d"))
    cluster.settle()
    assert cluster["d"].core.is_voter


def test_6_a_learner_is_promoted_only_when_its_log_names_it(cluster):
    """Otherwise it belongs to no cluster, and would refuse a vote without which the new configuration has no leader."""
    leader = cluster.elect("a").core
    leader.change(AddLearner("d", ""))
    cluster.settle()
    peer = leader.progress["d"]
    peer.match, peer.contact_tick = leader.membership.index - 1, leader.ticks
    cluster.tick(leader.config.heartbeat_ticks, "a")
    assert "d" in leader.membership.learners
    peer.match = leader.membership.index
    cluster.tick(leader.config.heartbeat_ticks, "a")
    assert "d" in leader.membership.voters


def test_6_a_leader_that_is_not_part_of_the_new_configuration_steps_down_once_it_is_committed(cluster):
    """6: "the leader steps down (returns to follower state) once it has committed the Cnew log entry"; not before."""
    leader = cluster.elect("a")
    cluster.cut("b", "c")
    leader.core.change(Remove("a"))
    cluster.settle()
    assert leader.role is Role.LEADER
    cluster.heal()
    cluster.tick(4)
    assert leader.role is Role.FOLLOWER


def test_6_while_it_manages_its_own_removal_a_leader_does_not_count_itself(make_cluster):
    """6: "it replicates log entries but does not count itself in majorities"."""
    cluster = make_cluster("abc")
    leader = cluster.elect("a").core
    cluster.cut("c")
    index = leader.change(Remove("a"))
    cluster.settle()
    assert leader.commit_index < index


def test_6_servers_disregard_vote_requests_while_they_believe_a_leader_exists(cluster):
    """6: "servers disregard RequestVote RPCs when they believe a current leader exists": term and vote stay as they are."""
    cluster.elect("a")
    for node_id in "ab":
        core = cluster[node_id].core
        term = core.term
        core.step(request(node_id, term + 5, (99, 99), sender="z"))
        assert (core.term, core.leader_id) == (term, "a")


def test_6_a_removed_server_cannot_disrupt_the_cluster(cluster):
    """6: "removed servers ... will then start new elections"; the others ignore them and keep their term."""
    cluster.elect("a")
    cluster["a"].core.change(Remove("c"))
    cluster.settle()
    term = cluster["a"].core.term
    cluster.tick(100)
    assert cluster.leader().id == "a"
    assert cluster["a"].core.term == term


# ---- 7 Log compaction


def _snapshot(index, term, cluster):
    return SnapshotMeta(index, term, cluster.configuration, 10, 1)


def test_7_the_last_included_index_and_term_support_the_consistency_check(cluster):
    """7: "the snapshot includes ... last included index and term ... to support the AppendEntries consistency check"."""
    leader = cluster.elect("a")
    cluster.propose("a", b"1")
    meta = leader.core.meta_at(leader.core.applied_index)
    leader.core.compact(meta, keep_entries=0)
    assert len(leader.core.log) == 0
    cluster.propose("a", b"2")
    assert cluster["b"].applied == [b"1", b"2"]


def test_7_the_snapshot_includes_the_latest_configuration(cluster):
    """7: "the snapshot also includes the latest configuration in the log as of last included index"."""
    leader = cluster.elect("a").core
    before = leader.last_index
    leader.change(Remove("c"))
    cluster.settle()
    assert [m.id for m in leader.meta_at(before).configuration.members] == ["a", "b", "c"]
    assert [m.id for m in leader.meta_at(leader.last_index).configuration.members] == ["a", "b"]


def test_7_the_leader_sends_a_snapshot_when_it_has_discarded_the_next_entry(cluster):
    """7: "This happens when the leader has already discarded the next log entry that it needs to send to a follower"."""
    leader = cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", b"1", b"2")
    leader.core.compact(_snapshot(leader.core.applied_index, leader.core.term, cluster), keep_entries=0)
    cluster.heal()
    cluster.tick(4)
    assert [m.to for m in cluster.sent if isinstance(m, InstallSnapshot)] == ["c"]
    assert cluster["c"].core.commit_index == leader.core.commit_index


def test_7_a_snapshot_with_new_information_supersedes_the_whole_log(lone, make_cluster):
    """7: "the follower discards its entire log; it is all superseded by the snapshot"."""
    cluster = make_cluster("abc")
    lone.say(append("a", 1, (0, 0), [entry(1, 1), entry(2, 1), entry(3, 1)], sender="b"))
    meta = _snapshot(2, 2, cluster)
    lone.say(InstallSnapshot(sender="c", to="a", term=2, meta=meta, offset=0, data=b"s" * 10, crc=0, done=True))
    assert lone.log() == []
    assert lone.node.store.entries == []
    assert (lone.core.last_index, lone.core.commit_index) == (2, 2)
    assert lone.node.restored == [meta]


def test_7_a_snapshot_of_a_prefix_retains_what_follows(lone, make_cluster):
    """7: "if ... the snapshot describes a prefix of its log ... entries following the snapshot are still valid and retained"."""
    cluster = make_cluster("abc")
    lone.say(append("a", 1, (0, 0), [entry(1, 1), entry(2, 1), entry(3, 1)], sender="b"))
    meta = _snapshot(2, 1, cluster)
    lone.say(InstallSnapshot(sender="b", to="a", term=1, meta=meta, offset=0, data=b"s" * 10, crc=0, done=True))
    assert lone.log()[-1] == (3, 1)
    assert lone.core.commit_index == 2


def test_7_heartbeats_continue_while_a_snapshot_is_sent(cluster):
    """7: chunks reset the follower's election timer like heartbeats; here both are sent, so a big snapshot deposes no leader."""
    leader = cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", b"1", b"2")
    leader.core.compact(_snapshot(leader.core.applied_index, leader.core.term, cluster), keep_entries=0)
    cluster.drop = lambda m: isinstance(m, InstallSnapshot)
    cluster.tick(60)
    assert cluster.leader().id == "a"
    assert cluster["c"].core.leader_id == "a"


def test_7_a_snapshot_is_acknowledged_only_when_it_is_durable(lone, make_cluster):
    """7 with figure 13: step 6 saves the snapshot before the reply."""
    cluster = make_cluster("abc")
    lone.say(append("a", 1, (0, 0), sender="b"))
    lone.node.hold_writes = True
    chunk = InstallSnapshot(sender="b", to="a", term=1, meta=_snapshot(9, 1, cluster), offset=0, data=b"s" * 10, crc=0, done=True)
    said = lone.say(chunk)
    assert not any(getattr(m, "done", False) or getattr(m, "match", 0) == 9 for m in said)
    assert lone.node.restored == []
    lone.node.flush()
    assert any(getattr(m, "done", False) for m in lone.say())
    assert len(lone.node.restored) == 1


# ---- 8 Client interaction


def test_8_a_leader_commits_a_blank_no_op_at_the_start_of_its_term(cluster):
    """8: "each leader commit a blank no-op entry into the log at the start of its term"."""
    leader = cluster.elect("a").core
    first = leader.log.slice(1, 1)[0]
    assert (first.kind, first.data, first.term) == (EntryKind.NOOP, b"", leader.term)
    assert leader.commit_index == 1


def test_8_a_read_only_request_waits_for_the_no_op_to_commit(cluster):
    """8: "at the start of its term, it may not know which entries those are": which are committed."""
    cluster.elect("a")
    cluster.propose("a", b"x")
    cluster.drop = lambda m: isinstance(m, AppendReply) and m.to == "b" and m.match > 2
    cluster["b"].core.campaign(force=True)
    cluster.settle()
    assert cluster["b"].role is Role.LEADER
    cluster["b"].core.read_index(1)
    cluster.tick(3, "b")
    assert cluster["b"].reads == {}
    cluster.heal()
    cluster.tick(3, "b")
    assert cluster["b"].reads == {1: (3, True)}


def test_8_a_leader_checks_whether_it_has_been_deposed_before_it_answers_a_read(cluster):
    """8: "the leader exchange heartbeat messages with a majority of the cluster before responding to read-only requests"."""
    leader = cluster.elect("a")
    cluster.cut("a")
    cluster.tick(60, "b", "c")
    leader.core.read_index(1)
    cluster.settle()
    assert leader.reads == {}
    cluster.heal()
    cluster.tick(4)
    assert leader.reads == {1: (0, False)}


def test_8_an_answer_to_an_earlier_round_confirms_no_later_read(cluster):
    """8 and etcd 20418: the exchange must have begun after the request."""
    leader = cluster.elect("a").core
    cluster.cut("b", "c")
    earlier = leader.round
    leader.read_index(1)
    cluster.collect(cluster["a"])
    for peer in "bc":
        leader.step(
            AppendReply(sender=peer, to="a", term=leader.term, ok=True, match=leader.last_index, prev_index=1, round=earlier)
        )
    cluster.collect(cluster["a"])
    assert cluster["a"].reads == {}
