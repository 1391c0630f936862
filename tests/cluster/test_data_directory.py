"""A data directory that cannot be used is mended or refused in one line, at the start and while the node runs."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from dss_dev.local_cluster import LocalNode, free_ports
from dss_dev.prepared_pages import prepare_directory

pytestmark = pytest.mark.cluster

NOBODY = "nobody"
MIB = 1024 * 1024


@pytest.fixture
def make_node(tmp_path) -> Iterator[Callable[..., LocalNode]]:
    """`make_node(directory, prefix=…)`: a cluster of one that has not been started."""
    made: list[LocalNode] = []

    def make(directory: Path, prefix: tuple[str, ...] = ()) -> LocalNode:
        port = free_ports(1)[0]
        environment = {
            "NODE_ID": "node-1",
            "RPC_PORT": str(port),
            "DSS_DATA_DIR": str(directory),
            "DSS_LOG_FORMAT": "json",
            "DSS_ADMIN_PASSWORD": "test",
        }
        made.append(LocalNode("node-1", port, environment, tmp_path / "log", prefix=prefix))
        return made[-1]

    yield make
    for node in made:
        node.kill()


@pytest.fixture
def make_disk(tmp_path) -> Iterator[Callable[[str, int], Path]]:
    """`make_disk(name, bytes)`: a small file system. Skipped where the test may not mount one."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a full or read-only disk needs a mount, which needs root")
    mounted: list[Path] = []

    def make(name: str, size: int) -> Path:
        path = tmp_path / name
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine cannot mount a tmpfs: {done.stderr.decode().strip()}")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def refusal(node: LocalNode) -> str:
    """The one line with which a start ends."""
    node.log_path.unlink(missing_ok=True)
    node.start()
    assert node.process is not None
    assert node.process.wait(60) == 1
    (line,) = node.log_path.read_text().splitlines()
    return line


def ready(node: LocalNode, wait_until) -> None:
    node.start()
    wait_until(lambda: node.is_ready() or not node.is_running, node.log_tail)
    assert node.is_running, node.log_tail()


def test_wrong_permissions_are_mended(make_node, tmp_path, wait_until):
    data = tmp_path / "data"
    node = make_node(data)
    ready(node, wait_until)
    assert node.stop() == 0
    assert not [path for path in (data, *data.rglob("*")) if path.stat().st_mode & 0o077], "only this user may use them"
    wrong = {
        data: 0o755,
        data / "secret-key": 0o644,
        data / "django.sqlite3": 0o644,
        data / "raft": 0o500,
        data / "raft" / "raft.sqlite3": 0o400,
    }
    for path, mode in wrong.items():
        path.chmod(mode)
    key = (data / "secret-key").read_text()
    ready(node, wait_until)
    assert node.stop() == 0
    mended = [stat.S_IMODE(path.stat().st_mode) for path in wrong]
    assert mended == [0o700, 0o600, 0o600, 0o700, 0o600]
    assert (data / "secret-key").read_text() == key
    log = node.log_path.read_text()
    assert log.count("node.permissions_mended") == len(wrong)
    assert "Traceback" not in log


def test_a_directory_of_another_user_is_refused(make_node, tmp_path):
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("starting a node as another user needs root and setpriv")
    uid = pwd.getpwnam(NOBODY).pw_uid
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(parent.stat().st_mode | 0o055)
    as_nobody = ("setpriv", f"--reuid={uid}", "--clear-groups", "--")
    line = refusal(make_node(data, as_nobody))
    assert line.startswith(f"Cannot use DSS_DATA_DIR={data}: the user {NOBODY} may not use {data}, which belongs to root")
    assert f"chown -R {uid} {data}" in line


def test_a_directory_that_is_a_file_is_refused(make_node, tmp_path):
    (tmp_path / "data").write_text("")
    assert refusal(make_node(tmp_path / "data")).endswith("it is a file. Choose another directory")


def test_a_full_disk_at_the_start_is_refused(make_disk, make_node, wait_until):
    disk = make_disk("disk", MIB)
    assert "its disk is full" in refusal(make_node(disk / "data"))
    subprocess.run(["mount", "-o", f"remount,size={64 * MIB}", disk], check=True)
    ready(make_node(disk / "data"), wait_until)


@pytest.mark.rounds
def test_a_read_only_disk_is_refused(make_disk, make_node, wait_until):
    disk = make_disk("disk", 64 * MIB)
    prepare_directory(disk / "data")
    node = make_node(disk / "data")
    ready(node, wait_until)
    assert node.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "is on a read-only file system. Mount it read-write" in refusal(node)
    assert "read-only file system" in refusal(make_node(disk / "other")).lower()


def test_a_limit_of_the_file_size_is_refused(make_node, tmp_path):
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit (util-linux) is not installed")
    line = refusal(make_node(tmp_path / "data", ("prlimit", "--fsize=1000000")))
    assert line.endswith("this process may not write large files (ulimit -f). Raise that limit")


@pytest.mark.rounds
def test_a_missing_high_water_mark_is_refused(make_node, tmp_path, wait_until):
    data = tmp_path / "data"
    prepare_directory(data)
    node = make_node(data)
    ready(node, wait_until)
    assert node.stop() == 0
    (data / "raft" / "raft.acknowledged").unlink()
    line = json.loads(refusal(node))
    assert line["event"] == "node.cannot_start"
    assert "raft.acknowledged is missing" in line["why"]
    (data / "raft" / "raft.acknowledged").touch()
    ready(node, wait_until)


@pytest.mark.rounds
def test_a_start_from_a_snapshot(make_cluster):
    cluster = make_cluster(DSS_SNAPSHOT_ENTRIES="10")
    for number in range(40):
        assert cluster.nodes[0].call("POST", "/cache/put", {"key": f"k{number}", "value": number}).status == 200
    assert cluster.stop() == []
    assert cluster.nodes[0].log_path.read_text().count("raft.snapshot")
    cluster.start()
    cluster.wait_ready()
    assert cluster.nodes[1].call("GET", "/cache/get?key=k39").json["value"] == 39
    for node in cluster.nodes:
        assert "Traceback" not in node.log_path.read_text()


def limit_file_size(node: LocalNode) -> None:
    """The log may not grow any further."""
    wal = Path(node.environment["DSS_DATA_DIR"]) / "raft" / "raft.sqlite3-wal"
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, resource.RLIM_INFINITY))


def fill_disk(node: LocalNode) -> None:
    """The cluster's data is on one small disk each."""
    with (Path(node.environment["DSS_DATA_DIR"]).parent / "filler").open("wb", buffering=0) as file:
        size = MIB
        while size:
            try:
                if not file.write(bytes(size)):
                    size = 0
            except OSError:
                size //= 2


@pytest.mark.rounds
@pytest.mark.parametrize("how", [limit_file_size, fill_disk])
def test_a_leader_whose_disk_becomes_full_hands_over_and_ends(cluster, request, how, wait_until):
    if how is fill_disk:
        make_disk = request.getfixturevalue("make_disk")
        assert cluster.stop() == []
        for node in cluster.nodes:
            node.environment["DSS_DATA_DIR"] = str(make_disk(f"disk-{node.id}", 32 * MIB) / "data")
        cluster.start()
        cluster.wait_ready()
    leader = cluster.leader()
    others = [node for node in cluster.nodes if node is not leader]
    statuses: list[int] = []

    def write(number: int) -> None:
        """Until the node ends. Each call that it has accepted is answered."""
        while True:
            try:
                body = {"key": f"k{number}", "value": "v" * 1000}
                statuses.append(leader.call("POST", "/cache/put", body).status)
            except ConnectionRefusedError:
                return
            except (OSError, HTTPException):
                statuses.append(0)

    writing = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for one in writing:
        one.start()
    how(leader)
    assert leader.process is not None
    assert leader.process.wait(60) == 1
    for one in writing:
        one.join()
    lines = [json.loads(line) for line in leader.log_path.read_text().splitlines()]
    (failed,) = [line for line in lines if line["level"] in ("error", "critical")]
    assert failed["event"] == "raft.failed"
    assert "then start the node again" in failed["error"]
    assert "Traceback" not in leader.log_path.read_text()
    assert 503 in statuses
    assert set(statuses) <= {200, 503, 0}
    cluster.wait_ready(nodes=others)
    assert others[0].call("POST", "/cache/put", {"key": "k", "value": 1}).status == 200
    last_role = [line["role"] for line in lines if line["event"] == "raft.role"][-1]
    handed_over_to = [peer for line in lines if line["event"] == "raft.abdicated" for peer in line["to"]]
    assert len(handed_over_to) == (last_role == "LEADER"), "no node has to notice its silence"
