"""Complete nodes in one loop, with real sockets and stores, for the tests of this folder."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest

from dss_dev.local_cluster import free_ports
from dss_dev.patience import PATIENCE_S
from dss_dev.sum_machine import Sum
from dss_raft.node import Node
from dss_raft.replication.clocks import wall_clock_ms
from dss_raft.versions import LATEST

IDS = ("a", "b", "c")


class Cluster:
    """Nodes that can be stopped, and started again with their data."""

    def __init__(self, directory, machines, **settings) -> None:
        self.directory = directory
        self.machines = machines
        self.settings = settings
        self.ports = dict(zip((*IDS, "d"), free_ports(4), strict=True))
        self.nodes: dict[str, Node] = {}
        self.failures: dict[str, BaseException] = {}
        #: node -> how far its wall clock is ahead; changes take effect immediately
        self.clock_off_ms = dict.fromkeys((*IDS, "d"), 0)

    def url(self, node_id: str) -> str:
        return f"http://127.0.0.1:{self.ports[node_id]}"

    def config(self, node_id: str) -> SimpleNamespace:
        peers = [
            SimpleNamespace(id=peer, url=self.url(peer), host="127.0.0.1", peer_port=self.ports[peer])
            for peer in IDS
            if peer != node_id
        ]
        defaults = {
            "node_id": node_id,
            "url": self.url(node_id),
            "cluster_id": "test",
            "cluster_secret": "secret",
            "cluster_secret_previous": "",
            "peer_tls": True,
            "peer_certificate_file": "",
            "data_dir": self.directory / node_id,
            "peer_host": "127.0.0.1",
            "peer_port": self.ports[node_id],
            "peers": peers,
            "raft_heartbeat_ms": 50,
            "raft_election_min_ms": 250,
            "raft_election_max_ms": 500,
            "pending_commands_max": 10_000,
            "submit_timeout_ms": 5000,
            "snapshot_entries": 1_000_000,
            "snapshot_bytes": 1 << 30,
            "state_hash_interval_s": 0,
            "peer_port_offset": 0,
            "cluster_version_max": LATEST,
            "join": node_id not in IDS,
        }
        return SimpleNamespace(**{**defaults, **self.settings})

    async def start(self, *node_ids: str) -> None:
        for node_id in node_ids or IDS:
            node = self.nodes[node_id] = self.create(node_id)
            await node.start()

    def create(self, node_id: str) -> Node:
        on_failure = partial(self.failures.__setitem__, node_id)
        return Node(self.config(node_id), self.machines(), on_failure, lambda: wall_clock_ms() + self.clock_off_ms[node_id])

    async def stop(self, *node_ids: str) -> None:
        for node_id in node_ids or tuple(self.nodes):
            await self.nodes.pop(node_id).stop()

    async def until(self, condition) -> None:
        """Wait until the condition is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  (what is awaited shows in the state of several nodes, not in one event)
                await asyncio.sleep(0.005)

    async def leader(self) -> Node:
        await self.until(lambda: any(n.is_leader and n.is_ready for n in self.nodes.values()))
        return next(n for n in self.nodes.values() if n.is_leader)

    async def leader_at_all(self) -> Node:
        """The leader, ready or not."""
        await self.until(lambda: any(n.is_leader for n in self.nodes.values()))
        return next(n for n in self.nodes.values() if n.is_leader)

    async def follower(self) -> Node:
        leader = await self.leader()
        followers = [n for n in self.nodes.values() if not n.is_leader]
        await self.until(lambda: all(n.leader_id == leader.node_id for n in followers))
        return followers[0]


@pytest.fixture
async def make_cluster(tmp_path):
    """`make_cluster(setting=value, …)`: nodes that have not been started yet."""
    made: list[Cluster] = []

    def make(machine=Sum, machines=None, **settings) -> Cluster:
        made.append(Cluster(tmp_path, machines or (lambda: [machine()]), **settings))
        return made[-1]

    yield make
    for cluster in made:
        await cluster.stop()


@pytest.fixture
async def cluster(make_cluster):
    return make_cluster()
