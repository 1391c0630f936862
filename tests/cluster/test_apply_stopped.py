"""Three real nodes with a planted bug: the log cannot be applied any further, and an operator skips the entry."""

from __future__ import annotations

import json
import subprocess

import pytest

from dss_dev import local_cluster
from dss_dev.local_cluster import ROOT

pytestmark = pytest.mark.cluster

#: Python runs this before the node's own code. The bug bites on the nodes in BROKEN, and leaves a half-changed state.
BUG = """
import os
from dss_locks.core.table import LockTable

_apply = LockTable.apply

def apply(self, command, at_ms, index, origin):
    result = _apply(self, command, at_ms, index, origin)
    if getattr(command, "key", "") == "poison" and os.environ["NODE_ID"] in os.environ.get("BROKEN", ""):
        raise ZeroDivisionError("a planted bug")
    return result

LockTable.apply = apply
"""


@pytest.fixture(scope="module")
def planted_bug(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "sitecustomize.py").write_text(BUG)
    return {"PYTHONPATH": f"{folder}:{ROOT}:{':'.join(str(ROOT / part) for part in ('raft', 'locks', 'queue', 'cache'))}"}


def acquire(node, key: str) -> tuple[int, dict]:
    reply = node.call("POST", "/lock/acquire", {"key": key, "client": "a", "ttl_ms": 60_000})
    return reply.status, reply.json


def manage(node, *arguments: str) -> subprocess.CompletedProcess:
    return local_cluster.manage(*arguments, environment={"DSS_URL": node.url, **node.environment})


def stopped_at(node) -> int:
    status = node.status()
    return status["apply_stopped"]["index"] if status and status["apply_stopped"] else 0


def lock_state(node) -> str:
    reply = node.call("GET", "/lock/status?key=good&consistency=local")
    return json.dumps([(h["client"], h["fencing_token"]) for h in reply.json["holders"]])


def test_a_planted_bug_on_every_node(make_cluster, planted_bug, wait_until):
    cluster = make_cluster(BROKEN="node-1 node-2 node-3", **planted_bug)
    first, second, third = cluster.nodes
    assert acquire(first, "good")[0] == 200
    status, problem = acquire(first, "poison")
    assert (status, problem["code"]) == (503, "unknown_outcome")
    wait_until(lambda: all(map(stopped_at, cluster.nodes)), lambda: "not every node has stopped applying")
    index = stopped_at(first)

    for node in cluster.nodes:
        assert node.is_running
        ready = node.call("GET", "/ready")
        assert ready.status == 503
        assert f"entry {index}" in ready.json["detail"]
        assert node.call("GET", "/health").status == 200
        for path in ("/lock/status?key=good&consistency=local", "/lock/status?key=good", "/queue/stats?topic=a"):
            reply = node.call("GET", path)
            assert (reply.status, reply.json["code"]) == (503, "not_ready"), path
        assert acquire(node, "another")[0] == 503
        assert "raft_apply_stopped 1.0" in node.call("GET", "/metrics").body.decode()

    shown = manage(second, "log", "show", str(index))
    assert shown.returncode == 0, shown.stderr
    assert "locks.acquire" in shown.stdout
    assert "poison" in shown.stdout

    for node in cluster.nodes:
        node.kill()
        node.start()
    wait_until(lambda: all(map(stopped_at, cluster.nodes)), lambda: "a restart does not mend a bug")

    third.kill()

    def refusal() -> str:
        refused = manage(second, "log", "skip", str(index), "--reason", "a planted bug")
        assert refused.returncode == 1
        return refused.stderr

    # The member that was killed may have led; until another leads, the refusal names that.
    said: list[str] = []

    def names_it() -> bool:
        said.append(refusal())
        return "not_skippable" in said[-1] and "node-3" in said[-1]

    wait_until(names_it, lambda: f"a member that does not answer is no reason to refuse: {said[-1]}")
    offline = manage(third, "log", "show", str(index), "--offline")
    assert offline.returncode == 0, offline.stderr
    assert "poison" in offline.stdout
    third.start()
    wait_until(lambda: stopped_at(third), lambda: "node-3 has not come back")

    def skip() -> bool:
        skipped = manage(second, "log", "skip", str(index), "--reason", "a planted bug")
        return skipped.returncode == 0 or "not_skippable" not in skipped.stderr

    wait_until(skip, lambda: "the entry cannot be skipped")
    cluster.wait_ready()
    assert acquire(second, "after")[0] == 200
    assert acquire(first, "good")[0] == 200, "its client holds it still"
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        node.start()
    cluster.wait_ready()
    assert first.call("GET", "/lock/status?key=poison").json["holders"] == []
    assert len({lock_state(node) for node in cluster.nodes}) == 1


def test_a_planted_bug_on_the_leader(make_cluster, planted_bug, wait_until):
    cluster = make_cluster(**planted_bug)
    leader = cluster.leader()
    broken = cluster.followers()[0]
    broken.kill()
    broken.environment["BROKEN"] = broken.id
    broken.start()
    cluster.wait_ready()
    wait_until(
        lambda: leader.call("POST", "/raft/transfer", {"to": broken.id}).status == 200, lambda: f"{broken.id} does not take over"
    )
    others = [node for node in cluster.nodes if node is not broken]
    acquire(broken, "poison")
    wait_until(lambda: stopped_at(broken), lambda: "the bug does not bite")
    wait_until(lambda: cluster.leader() is not broken, lambda: "leadership stays where nothing is applied")
    wait_until(lambda: acquire(others[0], "good")[0] == 200, lambda: "the others do not go on")
    refused = manage(broken, "log", "skip", str(stopped_at(broken)), "--reason", "why not")
    assert refused.returncode == 1
    assert "restart" in refused.stderr
    broken.kill()
    broken.environment["BROKEN"] = ""
    broken.start()
    cluster.wait_ready()
    assert len({lock_state(node) for node in cluster.nodes}) == 1
