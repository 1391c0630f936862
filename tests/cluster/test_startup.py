"""Starting and stopping: an error is reported in one line, and a stop leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from dss_dev.local_cluster import HOST, ROOT, LocalNode, free_ports, ports_in_use

pytestmark = pytest.mark.cluster


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
def make_run(tmp_path):
    """`make run NODES=1` until it follows the logs: the process, and what it has printed."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "cluster", "--nodes", "1", "--directory", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    while "Ctrl-C" not in said and (line := process.stdout.readline()):
        said += line
    if "in use" in said:
        process.wait()
        pytest.skip(f"port 8201 of this machine is taken: {said}")
    yield process, said
    process.terminate()
    process.wait()


def test_make_run_prints_what_a_person_needs_and_stops_on_ctrl_c(make_run, tmp_path):
    process, said = make_run
    password = (tmp_path / "admin-password").read_text().strip()
    for expected in ("node-1", "leader", "http://127.0.0.1:8201/api/docs", "/admin/", "/metrics", f"admin / {password}"):
        assert expected in said
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == 0
    assert "Stopped" in rest


def test_make_run_leaves_no_node_behind_when_its_terminal_is_closed(make_run):
    process, _ = make_run
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    process.wait()
    assert ports_in_use([8201]) == []


def test_make_run_twice_is_a_clear_message(make_run, tmp_path):
    command = [sys.executable, "manage.py", "cluster", "--nodes", "1", "--directory", str(tmp_path)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "Nothing was started: port 8201, port 9201 already in use" in second.stderr
    assert "Traceback" not in second.stderr


def test_make_run_survives_its_last_node_and_starts_it_again(make_run, tmp_path):
    process, said = make_run
    (row,) = (line for line in said.splitlines() if line.startswith("node-1"))
    os.kill(int(row.split()[1]), signal.SIGKILL)
    while "has ended" not in (line := process.stdout.readline()):
        assert line, "make run has ended"
    assert "(exit code -9). No node is running. `make restart NODE=1` starts it again" in line
    command = [sys.executable, "manage.py", "restart", "1", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("node-1 is ready at http://127.0.0.1:8201"), done.stderr
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate()
    assert process.returncode == 0
    assert "node-1 │ is started again" in rest
