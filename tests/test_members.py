"""A running cluster takes in a fourth node, hands leadership to it, and lets it go: with the commands that people use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dss_project.local_cluster import ROOT, LocalCluster, LocalNode, free_ports

pytestmark = pytest.mark.cluster


def member(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", "member", "--url", cluster.nodes[1].url, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def newcomer(cluster, tmp_path):
    """A fourth node that runs and belongs to nobody yet."""
    first = cluster.nodes[0]
    port = free_ports(1)[0]
    environment = {
        **first.environment,
        "NODE_ID": "node-4",
        "RPC_PORT": str(port),
        "DSS_DATA_DIR": str(tmp_path / "node-4"),
        "DSS_JOIN": "true",
    }
    node = LocalNode("node-4", port, environment, tmp_path / "logs" / "node-4.log")
    node.start()
    node.wait_alive(60)
    yield node
    node.stop()


def test_a_fourth_node_joins_leads_and_leaves(cluster, newcomer):
    token = cluster.nodes[0].call("POST", "/lock/acquire", {"key": "a", "client": "c", "ttl_ms": 0}).json["fencing_token"]
    assert newcomer.call("GET", "/ready").status == 503, "it belongs to no cluster yet"

    added = member(cluster, "add", "node-4", newcomer.url)
    assert added.returncode == 0, added.stderr
    assert f"node-4  {newcomer.url}" in added.stdout
    cluster.wait_ready(nodes=[newcomer])
    holder = newcomer.call("GET", "/lock/status?key=a").json["holders"][0]
    assert holder["fencing_token"] == token, "it has everything that was answered before it came"

    assert member(cluster, "transfer", "node-4").stdout.strip() == "node-4 leads"
    removed = member(cluster, "remove", "node-4")
    assert removed.returncode == 0, removed.stderr
    assert "node-4" not in removed.stdout
    cluster.wait_ready()
    assert cluster.nodes[2].call("POST", "/lock/release", {"key": "a", "client": "c"}).json["released"]


def test_what_makes_no_sense_is_refused_in_a_line(cluster):
    for arguments in (["remove", "node-9"], ["add", "node-9", "nonsense"], ["transfer", "node-9"]):
        done = member(cluster, *arguments)
        assert done.returncode != 0
        assert "invalid" in done.stderr
        assert "Traceback" not in done.stderr
