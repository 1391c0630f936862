"""A node whose wall clock is wrong by eight days leads: delays, visibility, retention, dedup windows, TTLs and leases hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dss_dev.local_cluster import POLL_S, ROOT, LocalCluster, LocalNode

Wait = Callable[..., None]

pytestmark = pytest.mark.cluster

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def post(node: LocalNode, path: str, **body: Any) -> dict[str, Any]:
    return node.call("POST", path, body).json


def transfer(cluster: LocalCluster, to: LocalNode) -> None:
    cluster.wait_ready()
    while cluster.leader() is not to:
        if to.call("POST", "/raft/transfer", {"to": to.id}).status != 200:
            time.sleep(POLL_S)  # an election timeout must pass between two transfers


def begin(node: LocalNode) -> None:
    """Something of each kind that ends at a time that is far away."""
    for topic in ("precious", "later", "handed-out"):
        settings = {"topic": topic, "retention_ms": 7 * DAY_MS, "dedup_window_ms": HOUR_MS}
        assert node.call("PUT", "/queue/topic", settings).status == 200
        assert post(node, "/queue/consume", topic=topic, group="g", timeout_ms=0)["msg_id"] is None
    assert post(node, "/queue/publish", topic="precious", value="new", dedup_id="a")["duplicate"] is False
    post(node, "/queue/publish", topic="later", value="delayed", delay_ms=HOUR_MS)
    post(node, "/queue/publish", topic="handed-out", value=1)
    assert post(node, "/queue/consume", topic="handed-out", group="g", visibility_ms=HOUR_MS)["msg_id"]
    assert post(node, "/cache/put", key="kept", value=1, ttl_ms=12 * HOUR_MS)["ok"]
    assert post(node, "/lock/acquire", key="held", client="alice", ttl_ms=HOUR_MS)["ok"]


def assert_nothing_has_ended(node: LocalNode) -> None:
    stats = {topic: node.call("GET", f"/queue/stats?topic={topic}").json for topic in ("precious", "later", "handed-out")}
    groups = {topic: stat["groups"][0] for topic, stat in stats.items()}
    assert (groups["precious"]["ready"], groups["precious"]["dead"]) == (1, 0), groups
    assert (groups["later"]["delayed"], groups["later"]["ready"]) == (1, 0), groups
    assert groups["handed-out"]["in_flight"] == 1, groups
    assert post(node, "/queue/publish", topic="precious", value="new", dedup_id="a")["duplicate"] is True
    assert post(node, "/cache/get", key="kept")["found"]
    assert node.call("POST", "/lock/acquire", {"key": "held", "client": "bob"}).status == 423


def assert_short_times_end(node: LocalNode) -> None:
    """Time passes: what ends soon ends soon."""
    assert post(node, "/cache/put", key="short", value=1, ttl_ms=200)["ok"]
    assert post(node, "/lock/acquire", key="short", client="alice", ttl_ms=200)["ok"]
    post(node, "/queue/publish", topic="soon", value="soon", delay_ms=200)
    got = post(node, "/queue/consume", topic="soon", group="g", timeout_ms=10_000, visibility_ms=200)
    assert (got["value"], got["attempt"]) == ("soon", 1)
    again = post(node, "/queue/consume", topic="soon", group="g", timeout_ms=10_000)
    assert (again["msg_id"], again["attempt"]) == (got["msg_id"], 2)
    assert abs(again["published_ms"] - time.time() * 1000) < 60_000, "applied time is right"
    post(node, "/queue/ack", topic="soon", group="g", msg_id=again["msg_id"])
    assert post(node, "/lock/acquire", key="short", client="bob", wait_ms=10_000)["ok"]
    post(node, "/lock/release", key="short", client="bob")
    assert not post(node, "/cache/get", key="short")["found"]


@pytest.mark.rounds
@pytest.mark.parametrize("wrong_ms", [8 * DAY_MS, -8 * DAY_MS], ids=["ahead", "behind"])
def test_a_leader_whose_clock_is_wrong_by_days(clock_cluster: Any, wrong_ms: int, wait_until: Wait) -> None:
    cluster = clock_cluster(0, 0, wrong_ms)
    right, other, wrong = cluster.nodes
    transfer(cluster, right)
    begin(right)
    transfer(cluster, wrong)
    assert_nothing_has_ended(right)
    assert_short_times_end(other)
    # On a busy machine, the others' clocks are not known for a moment.
    wait_until(lambda: wrong.status()["clock"]["agreeing"] == [right.id, other.id], lambda: str(wrong.status()["clock"]))
    clock = wrong.status()["clock"]
    assert clock["is_wrong"]
    assert abs(clock["off_by_ms"] - wrong_ms) < 60_000
    assert "raft.clock_wrong" in wrong.log_path.read_text()

    # all are stopped and started; at first only the wrong node and one other, which do not agree
    assert cluster.stop() == []
    for node in (right, wrong):
        node.start()
    cluster.wait_ready(nodes=[right, wrong])
    assert_nothing_has_ended(right)
    assert_short_times_end(wrong)
    other.start()
    transfer(cluster, wrong)
    assert_nothing_has_ended(other)
    transfer(cluster, right)
    assert_nothing_has_ended(wrong)
    assert_short_times_end(wrong)


def test_a_day_without_a_leader_has_passed_when_it_is_back(clock_cluster: Any, wait_until: Wait) -> None:
    """One clock is wrong all the time. The others show that a day has passed: all that was due in it ends, except leases."""
    cluster = clock_cluster(0, 0, -8 * DAY_MS)
    right, other, wrong = cluster.nodes
    begin(right)
    assert cluster.stop() == []
    for node, ahead_ms in ((right, DAY_MS), (other, DAY_MS), (wrong, -7 * DAY_MS)):
        cluster.set_clock(node, ahead_ms)
    cluster.start()
    cluster.wait_ready()
    wait_until(lambda: post(right, "/queue/consume", topic="later", group="g", timeout_ms=100)["msg_id"], right.log_tail)
    assert not post(right, "/cache/get", key="kept")["found"]
    assert post(right, "/queue/publish", topic="precious", value="new", dedup_id="a")["duplicate"] is False
    assert right.call("POST", "/lock/acquire", {"key": "held", "client": "bob"}).status == 423, "alice has her full lease again"
    handed_out = right.call("GET", "/queue/stats?topic=handed-out").json["groups"][0]
    assert (handed_out["in_flight"], handed_out["ready"]) == (1, 0)
    for node in cluster.nodes:
        wait_until(lambda node=node: "raft.time_advanced" in node.log_path.read_text(), node.log_tail)


# ---- the runbook

GUIDE = (ROOT / "docs/how-to/wrong-clock.md").read_text()


def run_block(cluster: LocalCluster, number: int) -> str:
    """Run a block of the guide as it is printed, with the ports of this cluster. Returns its output."""
    block = re.findall(r"^ *```sh\n(.*?)^ *```$", GUIDE, flags=re.MULTILINE | re.DOTALL)[number]
    for port, node in zip((8101, 8102, 8103), cluster.nodes, strict=True):
        block = block.replace(str(port), str(node.port))
    block = block.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    return subprocess.run(["bash", "-e"], input=block, capture_output=True, text=True, timeout=60, check=False).stdout


def is_behind(node: LocalNode, expected: bool) -> bool:
    """Whether the node shows that applied time is a day behind; False while it knows no majority."""
    off_by_ms = node.call("GET", "/raft/status").json["clock"]["applied_off_by_ms"]
    return off_by_ms is not None and (off_by_ms < -DAY_MS / 2) == expected


@pytest.mark.skipif(
    not all(map(shutil.which, ("curl", "jq"))), reason="the guide was not tested: this machine does not have both curl and jq"
)
def test_the_guide_for_a_wrong_clock(clock_cluster: Any, wait_until: Wait) -> None:
    cluster = clock_cluster(0, 0, -8 * DAY_MS)
    right, other, wrong = cluster.nodes
    wait_until(lambda: wrong.call("GET", "/raft/status").json["clock"]["is_wrong"], wrong.log_tail)
    shown = [json.loads(line) for line in run_block(cluster, 0).splitlines()]
    assert [line["id"] for line in shown] == [node.id for node in cluster.nodes]
    assert [line["clock"]["is_wrong"] for line in shown] == [False, False, True]

    def metrics() -> dict[str, str]:
        return dict(line.split() for line in run_block(cluster, 1).splitlines())

    wait_until(lambda: float(metrics()["raft_clock_agreeing"]) == 2, lambda: str(metrics()))
    assert float(metrics()["raft_clock_off_seconds"]) == pytest.approx(-8 * DAY_MS / 1000, abs=60)

    cluster.set_clock(wrong, 0)
    wait_until(lambda: run_block(cluster, 2) == "false\n", wrong.log_tail)
    assert "raft.clock_right" in wrong.log_path.read_text()

    transfer(cluster, other)
    for node in cluster.nodes:
        cluster.set_clock(node, DAY_MS)
    wait_until(lambda: all(is_behind(node, True) for node in cluster.nodes), other.log_tail)
    wait_until(lambda: run_block(cluster, 3) == "node-1 leads\n", right.log_tail)
    wait_until(lambda: all(is_behind(node, False) for node in cluster.nodes), right.log_tail)
    assert "raft.time_advanced" in wrong.log_path.read_text()
