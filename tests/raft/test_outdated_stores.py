"""A data directory that was put back to an earlier state is found out, with any leader, whether entries or a snapshot are sent."""

from __future__ import annotations

import shutil

import pytest

from dss_dev.sum_machine import Add
from dss_raft import identity
from dss_raft.core.messages import AppendEntries, PreVote, RequestVote
from dss_raft.identity import Identities
from dss_raft.net.wire import RaftFrame


async def submit(cluster, count):
    leader = await cluster.leader()
    for _ in range(count):
        await leader.submit(Add(amount=1))
    index = leader.applied_index
    await cluster.until(lambda: all(node.applied_index >= index for node in cluster.nodes.values() if node.is_running))
    return leader


def copy(cluster, node_id):
    """Also while the node runs: nothing is being written."""
    shutil.copytree(cluster.directory / node_id, cluster.directory / "copy")


async def put_back(cluster, node_id):
    shutil.rmtree(cluster.directory / node_id)
    shutil.copytree(cluster.directory / "copy", cluster.directory / node_id)
    await cluster.start(node_id)


async def is_found_out(cluster, node_id):
    node = cluster.nodes[node_id]
    await cluster.until(lambda: node.core.is_outdated)
    store = node.core.config.store_id
    await cluster.until(lambda: all(store in other.core.outdated_stores for other in cluster.nodes.values() if other is not node))
    leader = await cluster.leader()
    assert leader is not node
    assert not leader.core.has_vote(node_id)
    await leader.submit(Add(amount=1))
    await cluster.until(lambda: node.applied_index >= leader.core.commit_index)
    assert not cluster.failures


async def test_a_copy_of_a_running_node_is_found_although_the_leader_sends_a_snapshot(make_cluster):
    cluster = make_cluster(snapshot_entries=20)
    await cluster.start()
    leader = await submit(cluster, 5)
    old = (await cluster.follower()).node_id
    copy(cluster, old)
    await submit(cluster, 30)
    await cluster.stop(old)
    await submit(cluster, 60)
    assert leader.core.log.first_index > leader.core.progress[old].match, "the entries that it lacks are gone"
    await put_back(cluster, old)
    await is_found_out(cluster, old)


async def test_a_copy_of_a_running_node_is_found_by_the_leader_that_was(cluster):
    await cluster.start()
    first = await submit(cluster, 5)
    old = (await cluster.follower()).node_id
    copy(cluster, old)
    await submit(cluster, 5)
    await cluster.stop(old)
    await first.transfer()
    await cluster.until(lambda: not first.is_leader and bool(first.leader_id))
    await put_back(cluster, old)
    await is_found_out(cluster, old)


async def test_a_node_finds_out_by_itself_that_its_store_had_later_starts(cluster, monkeypatch):
    """The other members do not tell it. The log does."""
    monkeypatch.setattr(Identities, "tell_outdated", lambda *arguments: None)
    await cluster.start()
    await submit(cluster, 1)
    old = (await cluster.follower()).node_id
    await cluster.stop(old)
    copy(cluster, old)
    for _ in range(2):
        await cluster.start(old)
        await cluster.until(lambda: cluster.nodes[old].is_ready)
        await cluster.stop(old)
    await put_back(cluster, old)
    await is_found_out(cluster, old)
    await cluster.stop(old)
    await cluster.start(old)
    assert cluster.nodes[old].core.is_outdated, "it remembers it"


async def test_a_node_finds_out_by_itself_that_it_had_applied_more(cluster):
    """The others do not remember what it had promised, because they were restarted. But the log has commands of the node itself."""
    await cluster.start()
    await submit(cluster, 1)
    old = await cluster.follower()
    copy(cluster, old.node_id)
    for _ in range(3):
        await old.submit(Add(amount=1))
    others = [node_id for node_id in cluster.nodes if node_id != old.node_id]
    await cluster.stop()
    await cluster.start(*others)
    await cluster.leader()
    await put_back(cluster, old.node_id)
    await is_found_out(cluster, old.node_id)


async def test_an_empty_store_is_not_taken_for_an_older_one(cluster):
    """It applies the whole log, with the commands of the store that it replaces."""
    await cluster.start()
    await submit(cluster, 1)
    lost = await cluster.follower()
    for _ in range(3):
        await lost.submit(Add(amount=1))
    await cluster.stop(lost.node_id)
    leader = await cluster.leader()
    await leader.remove_member(lost.node_id)
    shutil.rmtree(cluster.directory / lost.node_id)
    await cluster.start(lost.node_id)
    await (await cluster.leader()).add_member(lost.node_id, cluster.url(lost.node_id))
    new = cluster.nodes[lost.node_id]
    await cluster.until(lambda: new.node_id in new.core.membership.voters and new.is_ready)
    assert not new.core.is_outdated
    assert new.replica.applied_before == 0


async def test_a_new_process_waits_for_what_the_others_tell_it_before_it_promises_anything(cluster, monkeypatch):
    monkeypatch.setattr(identity, "SETTLED_AFTER_S", 0.0)
    await cluster.start("a", "b")
    node = cluster.nodes["b"]
    request = RequestVote(sender="a", to="b", term=9, last_index=9, last_term=8)
    entries = AppendEntries(sender="a", to="b", term=9, prev_index=0, prev_term=0, entries=[], commit=0)
    pre_vote = PreVote(sender="a", to="b", term=9, last_index=9, last_term=8)
    frames = [RaftFrame([message]) for message in (request, pre_vote, entries)]
    await cluster.until(lambda: node._identities.store_of("a"))
    monkeypatch.setattr(node._identities, "_settles_at_s", float("inf"))
    assert all(node._identities.is_refused("a", frame) for frame in frames)
    monkeypatch.setattr(node._identities, "_settles_at_s", 1.0)
    node._identities.is_refused("a", frames[0])
    assert node._identities._settles_at_s == 0.0


@pytest.mark.parametrize("starts", [1, 2])
async def test_a_node_that_is_started_again_with_its_own_directory_keeps_its_vote(cluster, starts):
    await cluster.start()
    await submit(cluster, 5)
    for _ in range(starts):
        for node_id in ("a", "b", "c"):
            await cluster.stop(node_id)
            await cluster.start(node_id)
            await cluster.until(lambda: all(node.is_ready for node in cluster.nodes.values()))
    assert not any(node.core.is_outdated for node in cluster.nodes.values())
