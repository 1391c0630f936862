"""A fourth node is added to a running cluster, becomes its leader and is removed, with the commands that people use."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports, manage, ports_in_use
from dss_dev.piped_command import PipedCommand
from dss_dev.prepared_pages import prepare_directory

pytestmark = pytest.mark.cluster

#: `make join` takes one of 8104 to 8109
JOINING = 8109
PATIENCE_S = 60.0


def member(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return manage("member", "--url", cluster.nodes[1].url, *arguments)


@pytest.fixture
def make_newcomer(cluster, tmp_path):
    """Start nodes that do not belong to a cluster yet."""
    made: list[LocalNode] = []

    def make(node_id: str) -> LocalNode:
        port = free_ports(1)[0]
        environment = {
            **cluster.nodes[0].environment,
            "NODE_ID": node_id,
            "RPC_PORT": str(port),
            "DSS_DATA_DIR": str(tmp_path / node_id),
            "DSS_JOIN": "true",
        }
        node = LocalNode(node_id, port, environment, tmp_path / "logs" / f"{node_id}.log")
        made.append(node)
        prepare_directory(tmp_path / node_id)
        node.start()
        node.wait_alive(PATIENCE_S)
        return node

    yield make
    for node in made:
        node.stop()


def test_a_fourth_node_joins_leads_and_leaves(cluster, make_newcomer):
    newcomer = make_newcomer("node-4")
    token = cluster.nodes[0].call("POST", "/lock/acquire", {"key": "a", "client": "c", "ttl_ms": 0}).json["fencing_token"]
    assert newcomer.call("GET", "/ready").status == 503, "it belongs to no cluster yet"

    added = member(cluster, "add", "node-4", newcomer.url)
    assert added.returncode == 0, added.stderr
    assert f"node-4  {newcomer.url}" in added.stdout
    cluster.wait_ready(nodes=[newcomer])
    holder = newcomer.call("GET", "/lock/status?key=a").json["holders"][0]
    assert holder["fencing_token"] == token, "it has everything that was answered before it was added"

    until_voters(newcomer, 4)
    moved = member(cluster, "transfer", "node-4")
    assert moved.stdout.strip() == "node-4 leads", moved.stderr
    removed = member(cluster, "remove", "node-4")
    assert removed.returncode == 0, removed.stderr
    assert "node-4" not in removed.stdout
    cluster.wait_ready()
    assert newcomer.process.wait(PATIENCE_S) == 1, "a removed node stops"
    newcomer.start()
    assert newcomer.process.wait(PATIENCE_S) == 1, "and does not start again with its old data"
    log = newcomer.log_path.read_text()
    assert log.count("node-4 was removed from the cluster") == 2
    assert "Traceback" not in log
    assert cluster.nodes[2].call("POST", "/lock/release", {"key": "a", "client": "c"}).json["released"]


@contextmanager
def make_join(cluster: LocalCluster, directory: Path) -> Iterator[PipedCommand]:
    """`manage.py join`, until the node belongs to the cluster."""
    if ports_in_use([JOINING]):
        pytest.skip(f"port {JOINING} or its peer port is taken on this machine")
    prepare_directory(directory / "joined" / "node-9")
    joining = PipedCommand(
        *("join", "--number", str(JOINING - 8100), "--url", cluster.nodes[0].url, "--directory", str(directory)),
        environment={"DSS_CLUSTER_SECRET": cluster.nodes[0].environment["DSS_CLUSTER_SECRET"]},
    )
    try:
        said = joining.until("To remove it")
        assert f"node-9 at http://127.0.0.1:{JOINING} belongs to the cluster" in said
        assert "node-9" in [one["id"] for one in cluster.nodes[2].status()["members"]]
        yield joining
    finally:
        joining.process.terminate()
        joining.rest(PATIENCE_S)
        joining.output.close()


def test_make_join_adds_a_node_and_says_when_it_was_removed(cluster, tmp_path):
    with make_join(cluster, tmp_path) as joining:
        assert member(cluster, "remove", "node-9").returncode == 0
        said = joining.rest(PATIENCE_S)
        assert joining.process.returncode == 1, "it was not told to stop"
    assert "node-9 was removed from the cluster" in said
    assert "Traceback" not in said


def test_a_removed_node_may_be_added_again_with_its_data(cluster, tmp_path):
    """Its log lags, or ends with entries that were never committed. The leader's log replaces it."""
    with make_join(cluster, tmp_path) as joining:
        cluster.nodes[0].call("POST", "/cache/put", {"key": "k", "value": "old"})
        assert member(cluster, "remove", "node-9").returncode == 0
        joining.rest(PATIENCE_S)
    cluster.nodes[0].call("POST", "/cache/put", {"key": "k", "value": "new"})
    with make_join(cluster, tmp_path):
        answer = urlopen(f"http://127.0.0.1:{JOINING}/cache/get?key=k", timeout=30).read()
        assert json.loads(answer)["value"] == "new"
        until_voters(cluster.nodes[0], 4)
        assert member(cluster, "transfer", "node-9").stdout.strip() == "node-9 leads"
        assert member(cluster, "remove", "node-9").returncode == 0


def test_five_nodes_outlive_two(cluster, make_newcomer):
    """With a fourth and a fifth member, any two may fail."""
    newcomers = [make_newcomer("node-4"), make_newcomer("node-5")]
    for node in newcomers:
        added = member(cluster, "add", node.id, node.url)
        assert added.returncode == 0, added.stderr
        cluster.wait_ready(nodes=[node])
    until_voters(newcomers[1], 5)
    for node in cluster.nodes[:2]:
        node.kill()
    cluster.wait_ready(nodes=[cluster.nodes[2], *newcomers])
    answer = newcomers[0].call("POST", "/lock/acquire", {"key": "b", "client": "c", "ttl_ms": 0})
    assert answer.status == 200, answer.json


def until_voters(node: LocalNode, count: int) -> None:
    """A learner gets its vote when it has caught up."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := [member["learner"] for member in node.status()["members"]]) != [False] * count:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_an_invalid_change_is_refused_in_one_line(cluster):
    for arguments in (["remove", "node-9"], ["add", "node-9", "nonsense"], ["transfer", "node-9"]):
        done = member(cluster, *arguments)
        assert done.returncode != 0
        assert "invalid" in done.stderr
        assert "Traceback" not in done.stderr
