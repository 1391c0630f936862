"""A member comes back with an empty disk, or with an older copy of its disk. Nothing that was answered is lost or repeated."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from dss_dev.local_cluster import LocalCluster, LocalNode, manage
from dss_dev.rounds import ROUNDS

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _tokens_grow(cluster: LocalCluster) -> Iterator[None]:
    """In rounds, nodes are killed while a lock changes hands. No token is given twice, and none is smaller than an earlier one."""
    if ROUNDS == 1:
        yield
        return
    tokens: list[int] = []
    ended = threading.Event()

    def load() -> None:
        number = 0
        while not ended.wait(0.005):
            number += 1
            node = cluster.nodes[number % len(cluster.nodes)]
            body = {"key": "rounds", "client": f"load-{number}", "ttl_ms": 1000}
            with suppress(OSError, HTTPException):
                answer = node.call("POST", "/lock/acquire", body, timeout_s=2)
                if answer.status == 200:
                    tokens.append(answer.json["fencing_token"])
                    node.call("POST", "/lock/release", body, timeout_s=2)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert tokens == sorted(set(tokens))
    assert tokens


def directory(node: LocalNode) -> Path:
    return Path(node.environment["DSS_DATA_DIR"])


def member(asked: LocalNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    return manage("member", "--url", asked.url, *arguments)


def acquire(node: LocalNode, client: str, key: str = "k") -> int:
    return node.call("POST", "/lock/acquire", {"key": key, "client": client, "ttl_ms": 0}).status


@pytest.mark.rounds(kills=True)
def test_an_empty_disk_has_no_vote_until_it_is_replaced(cluster: LocalCluster, wait_until):
    one, two, three = cluster.nodes
    three.stop()
    cluster.wait_ready(nodes=[one, two])
    assert acquire(one, "alice") == 200
    two.stop()
    one.stop()
    shutil.rmtree(directory(two))
    two.start()
    three.start()
    two.wait_alive(60)
    three.wait_alive(60)
    wait_until(
        lambda: "member replace node-2" in two.call("GET", "/ready").json["detail"],
        lambda: f"node-2: {two.call('GET', '/ready').json}",
    )
    assert three.call("GET", "/ready").status == 503, "it would need the vote of an empty disk"

    one.start()
    cluster.wait_ready(nodes=[one, three])
    assert acquire(three, "bob") == 423, "alice still has the lock"
    assert two.call("GET", "/ready").status == 503
    replaced = member(one, "replace", "node-2")
    assert replaced.returncode == 0, replaced.stderr
    assert replaced.stdout.splitlines()[-1] == "node-2 is a voter again"
    cluster.wait_ready()
    assert acquire(two, "bob") == 423
    assert acquire(two, "bob", "other") == 200, "its session is accepted"
    assert "Traceback" not in two.log_path.read_text()


@pytest.mark.rounds(kills=True)
def test_a_node_whose_older_disk_was_put_back_catches_up_and_repeats_no_number(cluster: LocalCluster, wait_until, tmp_path):
    one, _two, three = cluster.nodes
    if cluster.leader() is three:
        one.call("POST", "/raft/transfer", {"to": "node-1"})
    three.stop()
    shutil.copytree(directory(three), tmp_path / "copy")
    three.start()
    cluster.wait_ready()
    for number in range(8):
        assert three.call("POST", "/cache/put", {"key": "k", "value": number}).status == 200
    assert acquire(one, "holder", "L") == 200
    waiting = {"key": "L", "client": "alice", "wait_ms": 20000, "ttl_ms": 600000}
    alice = threading.Thread(target=lambda: _quietly(three, waiting))
    alice.start()
    wait_until(lambda: one.call("GET", "/lock/status?key=L").json["waiters"], lambda: "alice does not wait")
    three.kill()
    alice.join()
    shutil.rmtree(directory(three))
    shutil.copytree(tmp_path / "copy", directory(three))
    three.start()
    cluster.wait_ready()
    assert acquire(three, "bob", "bob") == 200
    assert [holder["client"] for holder in one.call("GET", "/lock/status?key=bob").json["holders"]] == ["bob"]
    one.call("POST", "/lock/release", {"key": "L", "client": "holder"})
    assert one.call("GET", "/lock/status?key=L").json["holders"] == [], "alice's call ended with her node"
    wait_until(lambda: "raft.outdated" in three.log_path.read_text(), lambda: "node-3 was not told that its disk is outdated")
    for node in cluster.nodes:
        wait_until(lambda node=node: _outdated(node) == ["node-3"], lambda node=node: f"{node.id} names {_outdated(node)}")
    assert "raft_outdated 1.0" in three.call("GET", "/metrics").body.decode()
    assert "raft_outdated 0.0" in one.call("GET", "/metrics").body.decode()


@pytest.mark.rounds(kills=True)
def test_a_removed_member_comes_back_empty_under_its_id(cluster: LocalCluster):
    one, _, three = cluster.nodes
    three.stop()
    three.start()
    cluster.wait_ready()
    three.stop()
    removed = member(one, "remove", "node-3")
    assert removed.returncode == 0, removed.stderr
    shutil.rmtree(directory(three))
    three.environment["DSS_JOIN"] = "true"
    three.start()
    three.wait_alive(60)
    added = member(one, "add", "node-3", three.url)
    assert added.returncode == 0, added.stderr
    cluster.wait_ready()
    for number in range(3):
        assert three.call("POST", "/cache/put", {"key": "k", "value": number}).status == 200


def _outdated(node: LocalNode) -> list[str]:
    return [member["id"] for member in node.call("GET", "/raft/status").json["members"] if member["outdated"]]


def _quietly(node: LocalNode, body: dict[str, object]) -> None:
    with suppress(OSError):  # the node is killed while it waits
        node.call("POST", "/lock/acquire", body)
