"""The lock manager on three complete nodes in one event loop, with real sockets and stores."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from dss_console.live.reports import Reporter
from dss_dev.local_cluster import free_ports
from dss_locks import operations
from dss_locks.core.commands import Acquire, CheckToken, Release, StatusQuery
from dss_locks.core.table import LockTable
from dss_raft.node import Node
from dss_raft.versions import LATEST

IDS = ("a", "b", "c")


class Cluster:
    """Three nodes that run only the lock table."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.ports = dict(zip(IDS, free_ports(len(IDS)), strict=True))
        self.nodes: dict[str, Node] = {}

    def config(self, node_id):
        peers = [
            SimpleNamespace(id=peer, url=f"http://127.0.0.1:{port}", host="127.0.0.1", peer_port=port)
            for peer, port in self.ports.items()
            if peer != node_id
        ]
        return SimpleNamespace(
            node_id=node_id,
            url=f"http://127.0.0.1:{self.ports[node_id]}",
            cluster_id="test",
            cluster_secret="secret",
            cluster_secret_previous="",
            peer_tls=True,
            peer_certificate_file="",
            data_dir=self.directory / node_id,
            peer_host="127.0.0.1",
            peer_port=self.ports[node_id],
            peers=peers,
            raft_heartbeat_ms=50,
            raft_election_min_ms=250,
            raft_election_max_ms=500,
            pending_commands_max=10_000,
            submit_timeout_ms=5000,
            snapshot_entries=1_000_000,
            snapshot_bytes=1 << 30,
            state_hash_interval_s=0,
            peer_port_offset=0,
            cluster_version_max=LATEST,
            join=False,
        )

    async def start(self, *node_ids):
        for node_id in node_ids or IDS:
            node = self.nodes[node_id] = Node(self.config(node_id), [LockTable()])
            await node.start()

    async def stop(self, *node_ids):
        for node_id in node_ids or tuple(self.nodes):
            await self.nodes.pop(node_id).stop()

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110  (the condition concerns several nodes, there is no single event for it)
                await asyncio.sleep(0.005)

    async def leader_and_others(self):
        def leaders():
            return [n for n in self.nodes.values() if n.is_leader and n.is_ready]

        await self.until(lambda: leaders() and all(n.leader_id == leaders()[0].node_id for n in self.nodes.values()))
        leader = leaders()[0]
        return leader, *(n for n in self.nodes.values() if n is not leader)

    def waiting(self):
        return [len(node.machine("locks").waiters.by_origin) for node in self.nodes.values()]


@pytest.fixture
async def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    await cluster.start()
    yield cluster
    await cluster.stop()


async def test_a_lock_changes_hands_across_three_nodes(cluster):
    leader, first, second = await cluster.leader_and_others()
    held = await operations.acquire(first, Acquire(key="k", client="a"))
    waiting = asyncio.create_task(operations.acquire(second, Acquire(key="k", client="b", wait_ms=20_000)))
    await cluster.until(lambda: all(cluster.waiting()))
    status = await operations.status(leader, StatusQuery(key="k"))
    assert [w["client"] for w in status.body["waiters"]] == ["b"]
    await operations.release(leader, Release(key="k", client="a"))
    granted = await waiting
    assert granted.body["fencing_token"] == granted.index > held.index == held.body["fencing_token"]
    for node in cluster.nodes.values():
        check = await operations.check(node, CheckToken(key="k", fencing_token=held.index))
        assert check.body == {"valid": False, "current": granted.index}


async def test_a_lease_ends_without_further_calls(cluster):
    _, first, second = await cluster.leader_and_others()
    await operations.acquire(first, Acquire(key="k", client="a", ttl_ms=100))
    granted = await operations.acquire(second, Acquire(key="k", client="b", wait_ms=20_000))
    assert granted.code == ""


async def test_a_deadlock_over_two_nodes(cluster):
    _, first, second = await cluster.leader_and_others()
    await operations.acquire(first, Acquire(key="k1", client="a"))
    await operations.acquire(second, Acquire(key="k2", client="b"))
    waiting = asyncio.create_task(operations.acquire(first, Acquire(key="k2", client="a", wait_ms=20_000)))
    await cluster.until(lambda: all(cluster.waiting()))
    refused = await operations.acquire(second, Acquire(key="k1", client="b", wait_ms=20_000))
    assert refused.code == "deadlock"
    await operations.release(second, Release(key="k2", client="b"))
    assert (await waiting).code == ""


async def test_a_client_that_disconnects_does_not_block_others(cluster):
    leader, first, _ = await cluster.leader_and_others()
    await operations.acquire(leader, Acquire(key="k", client="a"))
    waiting = asyncio.create_task(operations.acquire(first, Acquire(key="k", client="b", wait_ms=20_000)))
    await cluster.until(lambda: all(cluster.waiting()))
    waiting.cancel()
    await cluster.until(lambda: not any(cluster.waiting()))
    await operations.release(leader, Release(key="k", client="a"))
    assert (await operations.acquire(leader, Acquire(key="k", client="c"))).code == ""


async def test_a_deferred_grant_is_made_immediately(cluster):
    """Three calls in one entry: the third has to wait for the next entry, but no longer."""
    _, first, _ = await cluster.leader_and_others()
    calls = [
        operations.acquire(first, Acquire(key="k", client="a")),
        operations.release(first, Release(key="k", client="a")),
        operations.acquire(first, Acquire(key="k", client="b", wait_ms=0)),
    ]
    before, _, after = await asyncio.gather(*calls)
    assert after.code == ""
    assert after.body["fencing_token"] > before.body["fencing_token"]


async def test_locks_and_waiters_survive_the_leader(cluster):
    leader, first, second = await cluster.leader_and_others()
    held = await operations.acquire(leader, Acquire(key="k", client="a", ttl_ms=0))
    waiting = asyncio.create_task(operations.acquire(first, Acquire(key="k", client="b", wait_ms=20_000)))
    await cluster.until(lambda: all(cluster.waiting()))
    await cluster.stop(leader.node_id)
    assert (await operations.acquire(second, Acquire(key="k", client="c"))).code == "held"
    await operations.release(second, Release(key="k", client="a", fencing_token=held.index))
    assert (await waiting).body["fencing_token"] > held.index


async def test_locks_survive_the_restart_of_all_nodes(cluster):
    leader, *_ = await cluster.leader_and_others()
    held = await operations.acquire(leader, Acquire(key="k", client="a", ttl_ms=0, meta={"pid": 1}))
    await cluster.stop()
    await cluster.start()
    leader, *_ = await cluster.leader_and_others()
    (holder,) = (await operations.status(leader, StatusQuery(key="k"))).body["holders"]
    assert (holder["client"], holder["fencing_token"], holder["meta"]) == ("a", held.index, {"pid": 1})


async def test_a_node_that_starts_again_tells_old_events_with_their_time(cluster):
    """It applies its log again, many entries in one turn."""
    _, first, second = await cluster.leader_and_others()
    await operations.acquire(first, Acquire(key="k1", client="a"))
    await operations.acquire(second, Acquire(key="k2", client="b"))
    waiting = asyncio.create_task(operations.acquire(first, Acquire(key="k2", client="a", wait_ms=20_000)))
    await cluster.until(lambda: all(cluster.waiting()))
    for _ in range(3):
        assert (await operations.acquire(second, Acquire(key="k1", client="b", wait_ms=20_000))).code == "deadlock"
        await operations.acquire(second, Acquire(key="other", client="b", ttl_ms=1))
    await operations.release(second, Release(key="k2", client="b"))
    assert (await waiting).code == ""
    stamps = [one.at_ms for one in first.machine("locks").scheduler.refused_deadlocks]
    await cluster.stop("c")
    node = cluster.nodes["c"] = Node(cluster.config("c"), [LockTable()])
    recorder = Reporter(node, None).recorder
    await node.start()
    await cluster.until(lambda: node.is_ready)
    assert [event.at_ms for event in recorder.since(0) if event.kind == "deadlock"] == stamps
    assert stamps[-1] < recorder.since(0)[0].at_ms, "the start"
