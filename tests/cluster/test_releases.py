"""A node starts with the data directory of an earlier release, and no longer with that of a later one."""

from __future__ import annotations

import json
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dss_dev.fake_clock import FakeClock
from dss_dev.local_cluster import LocalNode, free_ports
from dss_raft.disk.rows import SCHEMA_VERSION

pytestmark = pytest.mark.cluster

ARCHIVE = Path(__file__).parents[1] / "raft/releases/662b62d-snapshot.tar.xz"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LocalNode]:
    """A single node, not started, with the data of 662b62d."""
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path / "data", filter="data")
    # A value of the archive lives for a day, so the node begins a minute after the archive was made.
    made_s = (tmp_path / "data/said.json").stat().st_mtime
    clock = FakeClock(tmp_path / "clock", round((made_s + 60 - time.time()) * 1000))
    (port,) = free_ports(1)
    environment = {
        **clock.environment,
        "NODE_ID": "node-1",
        "RPC_PORT": str(port),
        "DSS_DATA_DIR": str(tmp_path / "data"),
        "DSS_LOG_FORMAT": "json",
        "DSS_ADMIN_PASSWORD": "test",
    }
    one = LocalNode("node-1", port, environment, tmp_path / "log")
    yield one
    one.kill()


def test_a_node_starts_with_the_data_of_662b62d(node: LocalNode, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    said = json.loads((tmp_path / "data/said.json").read_text())
    for _ in range(2):
        node.start()
        wait_until(node.is_ready, node.log_tail)
        held = node.call("POST", "/lock/acquire", {"key": "held", "client": "alice", "ttl_ms": 0}).json
        assert (held["fencing_token"], held["reentrant"]) == (said["held"]["fencing_token"], True)
        for key, value in (("clean", {"x": [1, 2]}), ("counter", 41), ("dirty", "not written back")):
            assert node.call("POST", "/cache/get", {"key": key}).json["value"] == value
        dead = node.call("GET", "/queue/peek?topic=orders&group=strict&dead=true").json["messages"]
        assert [message["msg_id"] for message in dead] == [said["dead"]["msg_id"]]
        assert node.stop() == 0
    assert "Traceback" not in node.log_path.read_text()


def set_schema(directory: Path) -> None:
    with sqlite3.connect(directory / "raft/raft.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


def add_migration(directory: Path) -> None:
    with sqlite3.connect(directory / "django.sqlite3") as connection:
        connection.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('dss_cache', '0999_later', '2030-01-01')")
    connection.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_schema, f"the log has format {SCHEMA_VERSION + 1}, and this release reads formats up to {SCHEMA_VERSION}"),
        (add_migration, "its database has tables of a newer release (dss_cache.0999_later)"),
    ],
)
def test_a_node_refuses_the_data_of_a_later_release_in_one_line(
    node: LocalNode, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    change(tmp_path / "data")
    node.start()
    assert node.process is not None
    assert node.process.wait(60) == 1
    log = node.log_path.read_text()
    assert words in log.splitlines()[-1]
    assert "start the release that wrote it, or a newer one" in log
    assert "Traceback" not in log
