"""How a leader sends: the three states of a peer's progress, the inflight limits, and late answers."""

from __future__ import annotations

import pytest
from raft_harness import append, entry

from dss_raft.core import AddLearner, InvariantViolation, Role, leader
from dss_raft.core.messages import AppendEntries, AppendReply, InstallSnapshot, SnapshotMeta, SnapshotReply
from dss_raft.core.progress import ProgressState


def refusal(core, sender: str, prev_index: int) -> AppendReply:
    return AppendReply(sender=sender, to="a", term=core.term, ok=False, match=0, prev_index=prev_index, hint_index=0, hint_term=0)


def test_a_peer_that_has_accepted_entries_is_sent_more_without_waiting(cluster):
    leader = cluster.elect("a").core
    cluster.propose("a", b"1")
    peer = leader.progress["b"]
    assert peer.state is ProgressState.REPLICATE
    for number in range(3):
        leader.propose(b"x")
        entries = [m for m in leader.take_ready().messages if m.to == "b" and m.entries]
        assert len(entries) == 1, number
    assert len(peer.inflight) == 3
    leader.step(AppendReply(sender="b", to="a", term=leader.term, ok=True, match=leader.last_index, prev_index=leader.last_index))
    assert (peer.state, peer.next) == (ProgressState.REPLICATE, leader.last_index + 1)
    assert (len(peer.inflight), peer.inflight_bytes) == (0, 0)


def test_sending_stops_at_the_inflight_limit_in_bytes(make_cluster):
    cluster = make_cluster("abc", inflight_bytes_max=200)
    leader = cluster.elect("a").core
    sent = 0
    for _ in range(5):
        leader.propose(b"x" * 100)
        ready = leader.take_ready()
        sent += sum(1 for m in (ready.messages if ready else ()) if m.to == "b" and m.entries)
    assert sent == 2


def test_heartbeats_continue_when_the_inflight_limit_is_reached(make_cluster):
    cluster = make_cluster("abc", inflight_messages_max=1)
    leader = cluster.elect("a").core
    cluster.cut("b")
    leader.propose(b"1")
    cluster.settle()
    leader.propose(b"2")
    cluster.sent.clear()
    cluster.tick(2, "a")
    assert [m.entries for m in cluster.sent if isinstance(m, AppendEntries) and m.to == "b"] == [[]]


def test_a_late_refusal_of_acknowledged_entries_is_ignored(cluster):
    leader = cluster.elect("a").core
    cluster.propose("a", b"1", b"2")
    peer = leader.progress["b"]
    leader.step(refusal(leader, "b", prev_index=peer.match))
    assert (peer.state, peer.next) == (ProgressState.REPLICATE, leader.last_index + 1)


def test_a_refusal_of_an_older_probe_is_ignored(cluster):
    leader = cluster.elect("a").core
    cluster.cut("c")
    cluster.propose("a", b"1", b"2", b"3")
    peer = leader.progress["c"]
    leader.step(refusal(leader, "c", prev_index=peer.next - 1))
    assert peer.state is ProgressState.PROBE
    probing = peer.next
    leader.step(refusal(leader, "c", prev_index=probing + 1))
    assert peer.next == probing


def test_a_refusal_sends_a_pipelining_peer_back_to_probing(cluster):
    leader = cluster.elect("a").core
    cluster.cut("c")
    cluster.propose("a", b"1", b"2", b"3")
    peer = leader.progress["c"]
    assert peer.state is ProgressState.REPLICATE
    leader.step(refusal(leader, "c", prev_index=peer.next - 1))
    assert (peer.state, len(peer.inflight)) == (ProgressState.PROBE, 0)


def compacted(cluster, node_id: str = "a"):
    """A leader whose log is compacted, and whose peer c has missed the entries."""
    node = cluster[node_id]
    core = node.core
    meta = SnapshotMeta(core.applied_index, core.term, cluster.configuration, 40, 1)
    node.store.snapshot = meta
    core.compact(meta, keep_entries=0)
    return meta


def test_a_refusal_does_not_interrupt_a_snapshot(cluster):
    leader = cluster.elect("a").core
    cluster.cut("c")
    cluster.propose("a", b"1")
    compacted(cluster)
    peer = leader.progress["c"]
    leader.step(refusal(leader, "c", prev_index=peer.next - 1))
    cluster.settle()
    assert peer.state is ProgressState.SNAPSHOT
    leader.step(refusal(leader, "c", prev_index=peer.next - 1))
    assert peer.state is ProgressState.SNAPSHOT


def test_a_snapshot_transfer_without_progress_restarts_with_a_newer_snapshot(cluster):
    leader = cluster.elect("a").core
    cluster.cut("c")
    cluster.propose("a", b"1")
    old = compacted(cluster)
    peer = leader.progress["c"]
    leader.step(refusal(leader, "c", prev_index=peer.next - 1))
    cluster.settle()
    leader.step(SnapshotReply(sender="c", to="a", term=leader.term, index=old.index, next_offset=20, done=False))
    cluster.propose("a", b"2")
    new = compacted(cluster)
    cluster.sent.clear()
    cluster.tick(25, "a", "b")
    chunks = [(m.meta.index, m.offset) for m in cluster.sent if isinstance(m, InstallSnapshot)]
    assert chunks[-1] == (new.index, 0)


def test_an_answer_about_another_snapshot_has_no_effect(cluster):
    leader = cluster.elect("a").core
    cluster.cut("c")
    cluster.propose("a", b"1")
    meta = compacted(cluster)
    peer = leader.progress["c"]
    leader.step(refusal(leader, "c", prev_index=peer.next - 1))
    cluster.settle()
    leader.step(SnapshotReply(sender="c", to="a", term=leader.term, index=meta.index - 1, next_offset=20, done=False))
    assert (peer.offset, peer.chunk_due) == (0, False)


def test_an_acknowledgement_ends_a_snapshot_that_is_no_longer_needed(cluster):
    """The peer may have received the entries from another leader, or this leader's information was wrong."""
    leader = cluster.elect("a").core
    cluster.cut("c")
    cluster.propose("a", b"1")
    meta = compacted(cluster)
    peer = leader.progress["c"]
    leader.step(refusal(leader, "c", prev_index=peer.next - 1))
    cluster.settle()
    assert peer.state is ProgressState.SNAPSHOT
    leader.step(AppendReply(sender="c", to="a", term=leader.term, ok=True, match=meta.index, prev_index=meta.index))
    assert (peer.state, peer.next) == (ProgressState.PROBE, meta.index + 1)


def test_a_follower_that_has_caught_up_meanwhile_says_so_when_a_chunk_is_stored(cluster):
    cluster.elect("a")
    cluster.propose("a", b"1")
    follower = cluster["b"].core
    cluster.collect(cluster["b"])
    follower.chunk_stored(SnapshotMeta(1, 1, cluster.configuration, 40, 1), 40, complete=True)
    (answer,) = follower.take_ready().messages
    assert (answer.ok, answer.match) == (True, follower.last_index)


def test_an_append_that_begins_before_the_commit_index_counts_to_its_end(lone):
    lone.say(append("a", 1, (0, 0), [entry(1, 1), entry(2, 1)], commit=2, sender="b"))
    (answer,) = [m for m in lone.say(append("a", 1, (1, 1), [entry(2, 1), entry(3, 1)], commit=3, sender="b")) if m.match == 3]
    assert answer.ok
    assert lone.core.commit_index == 3


def test_a_new_node_learns_its_membership_from_a_snapshot(cluster):
    leader = cluster.elect("a").core
    cluster.propose("a", b"1")
    leader.change(AddLearner("d", "http://d"))
    cluster.settle()
    meta = leader.meta_at(leader.applied_index)
    meta = SnapshotMeta(meta.index, meta.term, meta.configuration, 40, 1)
    cluster["a"].store.snapshot = meta
    leader.compact(meta, keep_entries=0)
    new = cluster.add("d")
    cluster.tick(2, "a")
    assert new.restored == [meta]
    assert new.role is Role.LEARNER
    cluster.tick(4, "a")
    assert new.core.is_voter


def test_only_a_candidate_becomes_leader(cluster):
    with pytest.raises(InvariantViolation):
        leader.become_leader(cluster["a"].core)
    cluster["a"].core.campaign()
    with pytest.raises(InvariantViolation):
        leader.become_leader(cluster["a"].core)


def test_the_commit_index_is_sent_once(cluster):
    """An empty message is sent for news, and not repeated. The follower does not answer a message without news."""
    cluster.elect("a")
    cluster.sent.clear()
    cluster.propose("a", b"1")
    to_b = [m for m in cluster.sent if m.to == "b"]
    from_b = [m for m in cluster.sent if m.sender == "b"]
    assert [(len(m.entries), m.commit) for m in to_b] == [(1, 1), (0, 2)]
    assert [m.match for m in from_b] == [2]
