"""kill -9 under load: every answered publish, lock and put is still there, and no call took effect twice."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from typing import Any

import pytest

from dss_dev.local_cluster import POLL_S, LocalCluster, LocalNode, NotReady

pytestmark = pytest.mark.cluster

CLIENTS_OF_A_KIND = 3
PATIENCE_S = 60.0


class Client(threading.Thread):
    """Makes one call after the other, on the next node if one does not answer, and records the answers."""

    def __init__(
        self, cluster: LocalCluster, kind: str, number: int, stop: threading.Event, answers: threading.Semaphore
    ) -> None:
        super().__init__(daemon=True)
        self.name = f"{kind}-{number}"
        self.cluster = cluster
        self.kind = kind
        self.number = number
        self.stop = stop
        self.answers = answers
        self.answered: dict[str, dict[str, Any]] = {}
        self.attempted: set[str] = set()

    def request(self, name: str, seq: int) -> tuple[str, dict[str, Any]]:
        if self.kind == "publish":
            return "/queue/publish", {"topic": "t", "value": name, "key": self.name if self.number else ""}
        if self.kind == "lock":
            return "/lock/acquire", {"key": name, "client": self.name, "ttl_ms": 0}
        return "/cache/put", {"key": f"{self.name}-{seq % 10}", "value": seq}

    def run(self) -> None:
        nodes = self.cluster.nodes
        seq = self.number
        while not self.stop.is_set():
            seq += 1
            name = f"{self.name}:{seq}"
            path, body = self.request(name, seq)
            self.attempted.add(name)
            try:
                reply = nodes[seq % len(nodes)].call("POST", path, body)
            except (OSError, http.client.HTTPException):
                self.stop.wait(POLL_S)
                continue
            if reply.status == 200:
                self.answered[name] = {**reply.json, **body}
                self.answers.release()
            else:
                self.stop.wait(POLL_S)


class Load:
    """Clients of every kind, while the block runs."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.stop = threading.Event()
        self.answers = threading.Semaphore(0)
        self.clients = [
            Client(cluster, kind, number, self.stop, self.answers)
            for kind in ("publish", "lock", "put")
            for number in range(CLIENTS_OF_A_KIND)
        ]

    def __enter__(self) -> Load:
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for client in self.clients:
            client.join()

    def wait_for(self, answers: int) -> None:
        """Wait until this many more calls were answered."""
        for _ in range(answers):
            assert self.answers.acquire(timeout=PATIENCE_S), "the cluster has stopped answering"

    def answered(self, kind: str) -> dict[str, dict[str, Any]]:
        return {name: answer for client in self.clients if client.kind == kind for name, answer in client.answered.items()}

    def attempted(self, kind: str) -> set[str]:
        return {name for client in self.clients if client.kind == kind for name in client.attempted}


def drained(node: LocalNode, group: str) -> list[str]:
    """Every message of topic `t`, consumed and acknowledged."""
    values: list[str] = []
    while True:
        reply = node.call("POST", "/queue/consume", {"topic": "t", "group": group, "timeout_ms": 300, "max_messages": 100}).json
        if not reply["messages"]:
            return values
        values += [message["value"] for message in reply["messages"]]
        ids = [message["msg_id"] for message in reply["messages"]]
        node.call("POST", "/queue/ack", {"topic": "t", "group": group, "msg_ids": ids})


def check_everything(load: Load, nodes: list[LocalNode]) -> None:
    """Check that every answered call is still in effect, on each node."""
    published = Counter(drained(nodes[0], "check"))
    assert set(load.answered("publish")) <= set(published), "an answered publish is gone"
    assert set(published) <= load.attempted("publish"), "a message that was never published"
    assert max(published.values()) == 1, "a publish took effect twice"
    for number, (name, answer) in enumerate(load.answered("lock").items()):
        status = nodes[number % len(nodes)].call("GET", f"/lock/status?key={name}").json
        assert [(h["client"], h["fencing_token"]) for h in status["holders"]] == [(answer["client"], answer["fencing_token"])]
    newest: dict[str, int] = {}
    for answer in load.answered("put").values():
        newest[answer["key"]] = max(newest.get(answer["key"], 0), answer["version"])
    for key, version in newest.items():
        for node in nodes:
            got = node.call("GET", f"/cache/get?key={key}").json
            assert got["version"] >= version, f"{node.id} answers an older value of {key}"


def check_order_of_keys(load: Load, node: LocalNode) -> None:
    """Messages with one routing key arrive in the order they were published."""
    by_publisher: dict[str, list[int]] = {}
    for value in drained(node, "order"):
        publisher, seq = value.split(":")
        by_publisher.setdefault(publisher, []).append(int(seq))
    for publisher, seqs in by_publisher.items():
        if publisher != "publish-0":
            assert seqs == sorted(seqs), f"messages of {publisher} are out of order"


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_kill_9_of_a_node_under_load_loses_nothing(cluster: LocalCluster, victim: str) -> None:
    with Load(cluster) as load:
        load.wait_for(200)
        node = cluster.leader() if victim == "leader" else cluster.followers()[0]
        node.kill()
        load.wait_for(200)
        node.start()
        load.wait_for(200)
    cluster.wait_ready()
    check_everything(load, cluster.nodes)
    check_order_of_keys(load, cluster.nodes[1])


def test_kill_9_of_all_nodes_at_once_loses_nothing(cluster: LocalCluster) -> None:
    with Load(cluster) as load:
        load.wait_for(300)
        for node in cluster.nodes:
            node.kill()
    cluster.start()
    cluster.wait_ready()
    check_everything(load, cluster.nodes)
    check_order_of_keys(load, cluster.nodes[2])


def test_kill_9_again_and_again_with_snapshots_in_between(make_cluster) -> None:
    cluster = make_cluster(DSS_SNAPSHOT_ENTRIES="100")
    with Load(cluster) as load:
        for round_number in range(3):
            load.wait_for(150)
            victim = cluster.nodes[round_number]
            victim.kill()
            load.wait_for(150)
            victim.start()
            cluster.wait_ready(nodes=[victim])
    cluster.wait_ready()
    assert all(status["snapshot_index"] > 0 for node in cluster.nodes if (status := node.status()))
    check_everything(load, cluster.nodes)


def test_a_paused_leader_is_replaced_and_does_no_harm_when_it_is_back(cluster: LocalCluster) -> None:
    with Load(cluster) as load:
        load.wait_for(150)
        leader = cluster.leader()
        leader.pause()
        others = [node for node in cluster.nodes if node is not leader]
        try:
            new_leader = _leader_among(others)
            assert new_leader is not leader
        finally:
            leader.resume()
        load.wait_for(150)
    cluster.wait_ready()
    check_everything(load, cluster.nodes)


def _leader_among(nodes: list[LocalNode]) -> LocalNode:
    """Wait for the new leader. The paused node is not asked, because its `/raft/status` would time out."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for node in nodes:
            status = node.status()
            if status is not None and status["state"]["name"] == "LEADER":
                return node
    raise NotReady("no node has taken over from the paused leader")
