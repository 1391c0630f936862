"""The whole core: elections, replication, reads, leadership transfer, membership changes, snapshots."""

from __future__ import annotations

import pytest

from dss_raft.core import AddLearner, Busy, ChangeRefused, InvariantViolation, NotLeader, Remove, Role
from dss_raft.core.messages import AppendEntries, EntryKind, InstallSnapshot


def test_time_alone_elects_a_leader(cluster):
    cluster.tick(60)
    leader = cluster.leader()
    assert {node.core.leader_id for node in cluster.nodes.values()} == {leader.id}
    assert leader.core.commit_index == 1


def test_a_single_node_elects_itself_at_its_first_tick_and_commits_by_its_own_disk(make_cluster):
    cluster = make_cluster("a")
    alone = cluster["a"]
    cluster.tick(1)
    assert alone.role is Role.LEADER
    alone.hold_writes = True
    index = alone.core.propose(b"x")
    cluster.settle()
    assert alone.core.commit_index < index
    alone.flush()
    cluster.settle()
    assert alone.core.commit_index == index
    assert alone.applied == [b"x"]


def test_commands_reach_every_node_in_order(cluster):
    cluster.elect("a")
    cluster.propose("a", b"1", b"2", b"3")
    assert [node.applied for node in cluster.nodes.values()] == [[b"1", b"2", b"3"]] * 3


def test_only_the_leader_accepts_proposals_and_others_name_it(cluster):
    cluster.elect("a")
    with pytest.raises(NotLeader) as refused:
        cluster["b"].core.propose(b"x")
    assert refused.value.hint == "a"


def test_too_much_uncommitted_is_refused(make_cluster):
    cluster = make_cluster("abc", uncommitted_bytes_max=100)
    leader = cluster.elect("a").core
    cluster.cut("b", "c")
    leader.propose(b"x" * 100)
    with pytest.raises(Busy):
        leader.propose(b"x")
    cluster.heal()
    cluster.tick(3)
    leader.propose(b"x")


def test_entries_are_sent_immediately_but_the_leader_counts_itself_only_when_they_are_durable(cluster):
    leader = cluster.elect("a")
    leader.hold_writes = True
    cluster.cut("c")
    index = leader.core.propose(b"x")
    cluster.settle()
    assert cluster["b"].core.last_index == index
    assert leader.core.commit_index < index
    leader.flush()
    cluster.settle()
    assert leader.core.commit_index == index


def test_one_message_per_peer_carries_everything_proposed_in_a_turn(cluster):
    leader = cluster.elect("a").core
    for _ in range(100):
        leader.propose(b"x")
    ready = leader.take_ready()
    assert [len(message.entries) for message in ready.messages] == [100, 100]
    assert len(ready.persist.entries) == 100


def test_pipelining_stops_at_the_inflight_limit(make_cluster):
    cluster = make_cluster("abc", inflight_messages_max=2)
    leader = cluster.elect("a").core
    sent = 0
    for _ in range(5):
        leader.propose(b"x")
        ready = leader.take_ready()
        if ready is None:
            continue
        sent += sum(1 for m in ready.messages if m.to == "b" and m.entries)
    assert sent == 2


def test_a_big_backlog_goes_out_in_batches_of_limited_size(make_cluster):
    cluster = make_cluster("abc", append_bytes_max=1000, append_entries_max=4)
    cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", *[b"x" * 300] * 20)
    cluster.sent.clear()
    cluster.heal()
    cluster.tick(4)
    sizes = [len(m.entries) for m in cluster.sent if isinstance(m, AppendEntries) and m.to == "c" and m.entries]
    assert max(sizes) == 3
    assert cluster["c"].applied == cluster["a"].applied


@pytest.mark.parametrize("reader", ["a", "b"])
def test_a_read_on_any_node_is_confirmed_by_a_quorum(cluster, reader):
    cluster.elect("a")
    index = cluster.propose("a", b"x")
    cluster[reader].core.read_index(7)
    cluster.settle()
    assert cluster[reader].reads == {7: (index, True)}


def test_a_read_is_not_answered_by_a_leader_that_is_cut_off(cluster):
    leader = cluster.elect("a")
    cluster.cut("a")
    leader.core.read_index(7)
    cluster.settle()
    assert leader.reads == {}
    cluster.tick(40, "a")
    assert leader.reads == {7: (0, False)}


def test_leadership_is_transferred(cluster):
    cluster.elect("a")
    cluster["a"].core.transfer("c")
    with pytest.raises(Busy):
        cluster["a"].core.propose(b"x")
    cluster.settle()
    assert cluster.leader().id == "c"


def test_a_transfer_without_progress_is_aborted(cluster):
    leader = cluster.elect("a")
    cluster.cut("c")
    leader.core.transfer("c")
    cluster.tick(25)
    assert leader.role is Role.LEADER
    cluster.propose("a", b"x")


def test_a_new_node_catches_up_and_becomes_a_voter(cluster):
    cluster.elect("a")
    cluster.propose("a", b"1", b"2")
    new = cluster.add("d")
    cluster["a"].core.change(AddLearner("d", "http://d"))
    cluster.settle()
    assert new.role is Role.LEARNER
    assert new.applied == [b"1", b"2"]
    cluster.tick(10)
    assert new.role is Role.FOLLOWER
    assert cluster["b"].core.membership.voters == ("a", "b", "c", "d")


def test_a_removed_leader_commits_its_removal_and_hands_over(cluster):
    cluster.elect("a")
    cluster["a"].core.change(Remove("a"))
    cluster.settle()
    assert cluster["a"].role is Role.FOLLOWER
    assert cluster.leader().core.membership.voters == ("b", "c")


def test_a_leader_that_can_no_longer_write_has_the_best_successor_campaign(cluster):
    """No node waits for an election timeout, and what a majority has is committed although this node never wrote it."""
    cluster.elect("a")
    cluster.propose("a", b"x")
    leader = cluster["a"].core
    term = leader.term
    leader.propose(b"y")  # its own disk does not take it
    leader.abdicate()
    assert (leader.role, leader.leader_id) == (Role.FOLLOWER, "")
    cluster.settle()
    assert (cluster.leader().core.node_id in ("b", "c"), cluster.leader().core.term) == (True, term + 1)
    follower = next(node.core for node in (cluster["b"], cluster["c"]) if node.role is not Role.LEADER)
    follower.abdicate()
    assert not follower.messages, "nothing to hand over"


@pytest.mark.parametrize("change", [AddLearner("b", ""), Remove("x")])
def test_an_impossible_change_is_refused(cluster, change):
    cluster.elect("a")
    with pytest.raises(ChangeRefused):
        cluster["a"].core.change(change)


def test_a_second_change_waits_for_the_first(cluster):
    cluster.elect("a")
    cluster.cut("b", "c")
    cluster["a"].core.change(Remove("c"))
    with pytest.raises(Busy):
        cluster["a"].core.change(AddLearner("d", ""))


def _compact(node, size=35):
    meta = node.core.meta_at(node.core.applied_index)
    meta = type(meta)(meta.index, meta.term, meta.configuration, size, 1)
    node.store.snapshot = meta
    node.core.compact(meta, keep_entries=0)
    return meta


def test_a_node_too_far_behind_gets_a_snapshot_in_chunks_and_then_entries(cluster):
    leader = cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", b"1", b"2", b"3")
    meta = _compact(leader)
    cluster.heal()
    cluster.tick(2)
    chunks = [m for m in cluster.sent if isinstance(m, InstallSnapshot)]
    assert [chunk.offset for chunk in chunks] == [0, 10, 20, 30]
    assert cluster["c"].restored == [meta]
    cluster.propose("a", b"4")
    assert cluster["c"].applied == [b"4"]
    assert cluster["c"].store.snapshot == meta


def test_a_lost_chunk_is_sent_again_and_the_transfer_continues(cluster):
    leader = cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", b"1")
    meta = _compact(leader)
    lost = []

    def lose_once(message):
        if isinstance(message, InstallSnapshot) and message.offset == 20 and not lost:
            lost.append(message)
            return True
        return False

    cluster.drop = lose_once
    cluster.tick(25)
    assert [m.offset for m in cluster.sent if isinstance(m, InstallSnapshot)] == [0, 10, 20, 20, 30]
    assert cluster["c"].restored == [meta]


def test_a_snapshot_of_entries_that_are_there_already_is_not_transferred(cluster):
    leader = cluster.elect("a")
    cluster.propose("a", b"1")
    meta = _compact(leader)
    cluster["c"].core.step(
        InstallSnapshot(sender="a", to="c", term=leader.core.term, meta=meta, offset=0, data=b"s" * 10, crc=0, done=False)
    )
    assert cluster["c"].core.take_ready().chunks_received == []


def test_a_restarted_node_continues_from_its_store(cluster):
    cluster.elect("a")
    cluster.propose("a", b"1", b"2")
    cluster["b"].start()
    assert cluster["b"].log() == cluster["a"].log()
    cluster.tick(3)
    assert cluster["b"].applied == [b"1", b"2"]


def test_a_committed_entry_is_never_truncated(cluster):
    cluster.elect("a")
    cluster.propose("a", b"1")
    core = cluster["b"].core
    with pytest.raises(InvariantViolation):
        core.log.truncate(core.commit_index)


def test_a_report_of_an_unknown_write_stops_the_node(cluster):
    with pytest.raises(InvariantViolation):
        cluster["a"].core.persisted(99)


def test_status_shows_the_peers(cluster):
    leader = cluster.elect("a")
    cluster.propose("a", b"1")
    cluster.cut("c")
    cluster.tick(22)
    status = leader.core.status()
    assert {peer.id: peer.match for peer in status.peers} == {"b": 2, "c": 2}
    assert {peer.id: peer.suspected for peer in status.peers} == {"b": False, "c": True}
    assert status.leader_contact_ticks == 0
    assert cluster["c"].core.status().leader_contact_ticks > 0


def test_the_new_leader_appends_a_no_op(cluster):
    leader = cluster.elect("a")
    assert leader.core.log.slice(1, 1)[0].kind == EntryKind.NOOP
