"""A cluster is saved under load and restored as a new one, and the survivor of a lost majority becomes a new cluster."""

from __future__ import annotations

import http.client
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports
from dss_dev.local_cluster import manage as run_manage

pytestmark = pytest.mark.cluster

NEW_NAME = {"DSS_CLUSTER_ID": "dss-2"}


def manage(node: LocalNode, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command with the settings of `node`."""
    return run_manage(*arguments, environment={**node.environment, **environment})


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stderr + run.stdout
    assert "Traceback" not in run.stderr
    return run.stdout


def refusal(run: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a command refuses."""
    assert run.returncode == 1, run.stdout
    (line,) = run.stderr.strip().splitlines()
    return line


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., LocalNode]]:
    """`make_node("node-1", peers, **environment)`: a node of the new cluster, not started yet, with a directory of its own."""
    made: list[LocalNode] = []

    def make(like: LocalNode, directory: str = "", **environment: str) -> LocalNode:
        settings = {**like.environment, **NEW_NAME, **environment}
        if directory:
            settings["DSS_DATA_DIR"] = str(tmp_path / directory)
        node = LocalNode(like.id, like.port, settings, tmp_path / "logs" / f"new-{like.id}.log")
        made.append(node)
        return node

    yield make
    for node in made:
        node.stop()


class Numbers:
    """Fencing tokens, message ids and versions that clients were given."""

    def __init__(self) -> None:
        self.tokens: set[int] = set()
        self.messages: set[int] = set()
        self.receipts: set[str] = set()
        self.versions: set[int] = set()
        self._drawn = threading.Condition()

    def wait_for_more(self, count: int) -> None:
        """Wait until `count` more have been given out."""
        with self._drawn:
            wanted = len(self.versions) + count
            assert self._drawn.wait_for(lambda: len(self.versions) >= wanted, 60)

    def draw(self, node: LocalNode, name: str) -> None:
        """Some of each."""

        def call(path: str, **body: Any) -> dict[str, Any]:
            reply = node.call("POST", path, body)
            assert reply.status == 200, reply.body
            return reply.json

        self.tokens.add(call("/lock/acquire", key=name, client=name, ttl_ms=0)["fencing_token"])
        index, _, _ = call("/queue/publish", topic="t", value=name)["msg_id"].partition("-")
        self.messages.add(int(index))
        for message in call("/queue/consume", topic="t", group="g", max_messages=1, visibility_ms=600_000)["messages"]:
            self.receipts.add(message["receipt"])
        version = call("/cache/put", key=name, value=name)["version"]
        with self._drawn:
            self.versions.add(version)
            self._drawn.notify_all()


def draw_until(stop: threading.Event, node: LocalNode, numbers: Numbers, name: str) -> threading.Thread:
    def run() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            try:
                numbers.draw(node, f"{name}-{count}")
            except (OSError, http.client.HTTPException):
                return

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def fill(node: LocalNode) -> None:
    """State of each kind."""
    assert node.call("POST", "/lock/acquire", {"key": "held", "client": "alice", "ttl_ms": 600_000}).status == 200
    for number in range(20):
        assert node.call("POST", "/queue/publish", {"topic": "orders", "value": number}).status == 200
        assert node.call("POST", "/cache/put", {"key": f"k{number}", "value": {"n": number}}).status == 200


def state(node: LocalNode) -> dict[str, Any]:
    """What a node has of it."""
    values = node.call("POST", "/cache/mget", {"keys": [f"k{number}" for number in range(20)]})
    assert values.status == 200, values.body
    return {
        "holders": [
            (one["client"], one["fencing_token"])
            for one in node.call("GET", "/lock/status?key=held&consistency=local").json["holders"]
        ],
        "messages": [
            (one["msg_id"], one["value"]) for one in node.call("GET", "/queue/peek?topic=orders&limit=100").json["messages"]
        ],
        "values": [(one["key"], one["value"]) for one in values.json["items"]],
    }


def require_new_numbers(node: LocalNode, old: Numbers) -> None:
    """The node gives out numbers that are greater than all of these."""
    new = Numbers()
    new.draw(node, "new")
    assert min(new.tokens) > max(old.tokens)
    assert min(new.messages) > max(old.messages)
    assert min(new.versions) > max(old.versions)
    assert not new.receipts & old.receipts


def grow(first: LocalNode, others: list[LocalNode]) -> None:
    for node in others:
        node.start()
        node.wait_alive(60)
        done(manage(first, "member", "--url", first.url, "add", node.id, node.url))
        LocalCluster.wait_ready(None, 60, [node])  # type: ignore[arg-type]


def test_saved_under_load_and_restored(cluster: LocalCluster, make_node: Callable[..., LocalNode], tmp_path: Path) -> None:
    nodes, numbers, stop = cluster.nodes, Numbers(), threading.Event()
    fill(nodes[0])
    before = state(nodes[0])
    loads = [draw_until(stop, node, numbers, node.id) for node in nodes[:2]]
    file = tmp_path / "dss.backup"
    try:
        saved = done(manage(nodes[2], "snapshot", "save", str(file), "--url", nodes[2].url))
        numbers.wait_for_more(5)  # which the file does not know
    finally:
        stop.set()
        for load in loads:
            load.join()
    assert f"{file}: cluster dss at index " in saved
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    info = done(manage(nodes[0], "snapshot", "info", str(file)))
    assert f"member    node-3  {nodes[2].url}" in info
    assert "(correct)" in info
    cluster.stop()

    first = make_node(nodes[0], "restored-1")
    assert "DSS_CLUSTER_ID" in refusal(manage(first, "snapshot", "restore", str(file), "--new-cluster", DSS_CLUSTER_ID="dss"))
    assert "new cluster dss-2" in done(manage(first, "snapshot", "restore", str(file), "--new-cluster"))
    first.start()
    LocalCluster.wait_ready(cluster, 60, [first])
    assert state(first) == before
    require_new_numbers(first, numbers)

    others = [make_node(node, f"restored-{node.id}", DSS_JOIN="true") for node in nodes[1:]]
    grow(first, others)
    assert [state(node) for node in others] == [before, before]
    assert first.call("POST", "/lock/release", {"key": "held", "client": "alice"}).json["released"]


def test_a_set_of_members_is_restored(
    make_cluster: Callable[..., LocalCluster], make_node: Callable[..., LocalNode], tmp_path
) -> None:
    cluster = make_cluster(1)
    fill(cluster.nodes[0])
    before = state(cluster.nodes[0])
    file = tmp_path / "dss.backup"
    done(manage(cluster.nodes[0], "snapshot", "save", str(file), "--url", cluster.nodes[0].url))
    cluster.stop()
    three = LocalCluster(tmp_path / "new", free_ports(3), {**cluster.nodes[0].environment, **NEW_NAME})
    members = [text for node in three.nodes for text in ("--member", f"{node.id}={node.url}")]
    command = ["snapshot", "restore", str(file), "--new-cluster", *members]
    begins = {
        done(manage(node, *command, "--raise-index-by", "20000000000")).splitlines()[1].rpartition(" ")[2] for node in three.nodes
    }
    assert len(begins) == 1, "all begin at the same index"
    try:
        three.start()
        three.wait_ready()
        assert [state(node) for node in three.nodes] == [before] * 3
    finally:
        three.stop()


def test_the_survivor_of_a_lost_majority(cluster: LocalCluster, make_node: Callable[..., LocalNode], tmp_path: Path) -> None:
    nodes, numbers, stop = cluster.nodes, Numbers(), threading.Event()
    fill(nodes[0])
    load = draw_until(stop, nodes[0], numbers, "load")
    before = state(nodes[1])
    numbers.wait_for_more(10)
    survivor = nodes[1]
    for node in nodes:
        node.kill()
    stop.set()
    load.join()
    kept = tmp_path / "old-node-3"
    shutil.copytree(nodes[2].environment["DSS_DATA_DIR"], kept)
    for node in (nodes[0], nodes[2]):
        shutil.rmtree(node.environment["DSS_DATA_DIR"])

    recover = ("recover", "--force-new-cluster")
    assert "confirm with --yes dss" in refusal(manage(survivor, *recover, **NEW_NAME))
    said = done(manage(survivor, *recover, "--yes", "dss", **NEW_NAME))
    assert "last index " in said
    assert "Lost: everything that the other members answered after index" in said
    first = make_node(survivor)
    first.start()
    LocalCluster.wait_ready(cluster, 60, [first])
    assert state(first) == before
    require_new_numbers(first, numbers)

    # An old member, as it was: it belongs to another cluster, and cannot talk to this one.
    shutil.copytree(kept, nodes[2].environment["DSS_DATA_DIR"])
    nodes[2].start()
    nodes[2].wait_alive(60)
    others = [make_node(nodes[0], "new-node-1", DSS_JOIN="true")]
    grow(first, others)
    assert nodes[2].call("GET", "/ready").status == 503
    assert first.call("GET", "/metrics").body.count(b'raft_peer_refused_total{reason="wrong_cluster"}') == 1
    nodes[2].stop()
    again = make_node(nodes[2], "", DSS_JOIN="true")
    again.start()
    assert again.process is not None
    assert again.process.wait(60) != 0
    assert "it belongs to cluster 'dss', not to 'dss-2'" in again.log_tail()


def test_a_redis_that_is_newer_is_noticed_and_not_believed(
    make_cluster: Callable[..., LocalCluster],
    make_node: Callable[..., LocalNode],
    redis_server,
    redis_client,
    wait_until,
    tmp_path,
) -> None:
    cluster = make_cluster(1, REDIS_URL=redis_server.connection_url, DSS_CACHE_WRITE_BACK_MS="50")
    (node,) = cluster.nodes

    def put(node: LocalNode, key: str, value: str) -> int:
        version = node.call("POST", "/cache/put", {"key": key, "value": value}).json["version"]
        wait_until(lambda: redis_client.hget(f"kv:{key}", "version") == str(version).encode(), lambda: f"{key} is not in Redis")
        return version

    put(node, "overwritten", "saved")
    put(node, "same", "saved")
    file = tmp_path / "dss.backup"
    done(manage(node, "snapshot", "save", str(file), "--url", node.url))
    later = put(node, "overwritten", "later")
    put(node, "new", "later")
    cluster.stop()

    restored = make_node(node, "restored")
    done(manage(restored, "snapshot", "restore", str(file), "--new-cluster"))
    restored.start()
    cluster.wait_ready(nodes=[restored])
    assert restored.call("GET", "/cache/get?key=same").json["value"] == "saved"
    assert restored.call("GET", "/cache/get?key=overwritten").json["found"] is False
    assert restored.call("GET", "/cache/get?key=new").json["found"] is False
    assert "cache_memory_newer_total 1.0" in restored.call("GET", "/metrics").body.decode()
    assert "cache.backing_store_is_newer" in restored.log_path.read_text()
    assert put(restored, "overwritten", "again") > later
    assert restored.call("GET", "/cache/get?key=overwritten").json["value"] == "again"
