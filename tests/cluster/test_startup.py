"""Starting and stopping: an error is reported in one line, and a stop leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from dss_dev.local_cluster import HOST, LocalNode, free_ports, manage, ports_in_use
from dss_dev.piped_command import PipedCommand
from dss_dev.prepared_pages import prepare_directory

pytestmark = pytest.mark.cluster

PATIENCE_S = 120.0


def run_node(tmp_path, **environment):
    """Run a node that is expected to end by itself. Returns its exit code and its log."""
    settings = {"NODE_ID": "node-1", "RPC_PORT": str(free_ports(1)[0]), "DSS_DATA_DIR": str(tmp_path / "node-1"), **environment}
    node = LocalNode("node-1", int(settings["RPC_PORT"]), settings, tmp_path / "log")
    node.start()
    assert node.process is not None
    try:
        return node.process.wait(60), node.log_tail(100)
    finally:
        node.kill()


def test_a_port_in_use_is_a_clear_message(tmp_path):
    port = free_ports(1)[0]
    with socket.create_server((HOST, port)):
        code, said = run_node(tmp_path, RPC_PORT=str(port))
    assert code != 0
    assert f"port {port}" in said
    assert "in use" in said
    assert "Traceback" not in said


def test_a_peer_port_in_use_is_a_clear_message(tmp_path):
    port = free_ports(1)[0]
    with socket.create_server((HOST, port + 1000)):
        code, said = run_node(tmp_path, RPC_PORT=str(port))
    assert code != 0
    assert str(port + 1000) in said
    assert "Traceback" not in said


def test_listening_beyond_loopback_needs_a_cluster_secret(tmp_path):
    code, said = run_node(tmp_path, RPC_HOST="0.0.0.0")
    assert code != 0
    assert "DSS_CLUSTER_SECRET" in said
    assert "Traceback" not in said


def test_the_data_of_another_node_are_refused(make_cluster, tmp_path):
    cluster = make_cluster(nodes=1)
    node = cluster.nodes[0]
    assert node.stop() == 0
    node.environment["NODE_ID"] = "node-9"
    node.start()
    assert node.process.wait(60) != 0
    assert "node-1" in node.log_tail(5)
    assert "Traceback" not in node.log_tail(50)


def test_a_node_stops_cleanly_and_finds_its_data_again(make_cluster):
    cluster = make_cluster(nodes=1)
    node = cluster.nodes[0]
    token = node.call("POST", "/lock/acquire", {"key": "a", "client": "c", "ttl_ms": 0}).json["fencing_token"]
    assert node.stop() == 0
    node.start()
    cluster.wait_ready()
    holder = node.call("GET", "/lock/status?key=a").json["holders"][0]
    assert (holder["client"], holder["fencing_token"]) == ("c", token)


def test_a_leader_that_stops_hands_over_first(make_cluster):
    # A transfer is given up after an election timeout, which a busy machine needs.
    cluster = make_cluster(RAFT_ELECTION_MIN_MS="4000", RAFT_ELECTION_MAX_MS="5000", DSS_SUBMIT_TIMEOUT_MS="60000")
    leader = cluster.leader()
    assert leader.stop() == 0
    assert "raft.transfer_failed" not in leader.log_tail(50)
    others = [node for node in cluster.nodes if node is not leader]
    cluster.wait_ready(nodes=others)
    assert others[0].call("POST", "/lock/acquire", {"key": "a", "client": "c"}).status == 200


@pytest.fixture
def prepared(tmp_path):
    """The database of the node of `make_run`: making it takes longer than the rest of its start."""
    prepare_directory(tmp_path / "cluster-of-1" / "node-1")


@pytest.fixture
def make_run(tmp_path):
    """`make run NODES=1` until it follows the logs: the command, and what it has printed."""
    run = PipedCommand("cluster", "--nodes", "1", "--directory", str(tmp_path))
    said = run.until("Ctrl-C")
    if "in use" in said:
        run.rest(PATIENCE_S)
        pytest.skip(f"port 8201 of this machine is taken: {said}")
    yield run, said
    run.process.terminate()
    run.process.wait(PATIENCE_S)
    run.output.close()


def test_make_run_prints_what_a_person_needs_and_stops_on_ctrl_c(make_run, tmp_path):
    run, said = make_run
    password = (tmp_path / "admin-password").read_text().strip()
    for expected in ("node-1", "leader", "http://127.0.0.1:8201/api/docs", "/admin/", "/metrics", f"admin / {password}"):
        assert expected in said
    run.process.send_signal(signal.SIGINT)
    rest = run.rest(PATIENCE_S)
    assert run.process.returncode == 0
    assert "Stopped" in rest


@pytest.mark.usefixtures("prepared")
def test_make_run_leaves_no_node_behind_when_its_terminal_is_closed(make_run):
    run, _ = make_run
    run.output.close()
    run.process.send_signal(signal.SIGHUP)
    run.process.wait(PATIENCE_S)
    assert ports_in_use([8201]) == []


@pytest.mark.usefixtures("prepared")
def test_make_run_twice_is_a_clear_message(make_run, tmp_path):
    second = manage("cluster", "--nodes", "1", "--directory", str(tmp_path))
    assert second.returncode != 0
    assert "Nothing was started: port 8201, port 9201 already in use" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.usefixtures("prepared")
def test_make_run_survives_its_last_node_and_starts_it_again(make_run, tmp_path):
    run, said = make_run
    (row,) = (line for line in said.splitlines() if line.startswith("node-1"))
    os.kill(int(row.split()[1]), signal.SIGKILL)
    said = run.until("has ended")
    assert "(exit code -9). No node is running. `make restart NODE=1` starts it again" in said
    done = manage("restart", "1", "--directory", str(tmp_path))
    assert done.stdout.startswith("node-1 is ready at http://127.0.0.1:8201"), done.stderr
    run.process.send_signal(signal.SIGINT)
    rest = run.rest(PATIENCE_S)
    assert run.process.returncode == 0
    assert "node-1 │ is started again" in rest
