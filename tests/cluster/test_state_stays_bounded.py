"""What calls leave in the replicated state: it has limits, it can be deleted, and nothing stays that is not needed.

The sizes of files are what a test can see of another checkout's state (see CONTRIBUTING.md).
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from dss_dev.local_cluster import LocalNode
from dss_dev.websocket import connect

pytestmark = pytest.mark.cluster

PATIENCE_S = 120.0
KIB = 1024
MIB = 1024 * KIB


def bytes_on_disk(node: LocalNode, pattern: str = "*") -> int:
    """The sum of the sizes of a node's files. A file may vanish meanwhile."""
    total = 0
    for path in Path(node.environment["DSS_DATA_DIR"]).rglob(pattern):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def pipelined(node: LocalNode, name: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to many calls on one connection, in the order of the requests."""
    answers: dict[int, dict[str, Any]] = {}
    with connect(node.websocket_url, ssl=node.tls, max_size=None, ping_interval=None) as client:
        for start in range(0, len(requests), 500):
            part = requests[start : start + 500]
            for number, request in enumerate(part, start):
                client.send(json.dumps({"id": number, "op": name, "request": request}))
            for _ in part:
                answer = json.loads(client.recv(PATIENCE_S))
                answers[answer["id"]] = answer
    return [answers[number] for number in range(len(requests))]


def test_metadata_of_several_keys_is_stored_once(make_cluster):
    """150 calls with 64 keys and 8 KiB of metadata each: 75 MiB, if every key had a copy."""
    (node,) = make_cluster(nodes=1, DSS_SNAPSHOT_ENTRIES="50").nodes
    for number in range(150):
        meta = {f"{member:x}": f"{number:04}" + "m" * 496 for member in range(16)}
        body = {"keys": [f"{number}/{key}" for key in range(64)], "client": "a", "meta": meta, "ttl_ms": 600_000}
        assert node.call("POST", "/lock/acquire", body).status == 200
    assert node.stop() == 0
    assert bytes_on_disk(node) < 20 * MIB
    node.start()
    node.wait_alive(PATIENCE_S)


def test_topics_made_by_typing_errors_can_be_deleted(make_cluster):
    (node,) = make_cluster(nodes=1).nodes
    typos = [{"topic": f"ordesr-{number}", "group": "g", "timeout_ms": 0} for number in range(10_000)]
    assert all(answer["ok"] for answer in pipelined(node, "queue.consume", typos))
    assert node.call("POST", "/queue/publish", {"topic": "orders", "value": 1}).json["code"] == "over_limit"
    assert node.call("DELETE", "/queue/topic?topic=ordesr-7").status == 200
    assert node.call("POST", "/queue/publish", {"topic": "orders", "value": 1}).status == 200


@pytest.mark.parametrize(
    ("limit", "maximum", "path", "grow", "shrink"),
    [
        ("cache_bytes_max", MIB, "/cache/put", {"key": "{}", "value": "x" * 50_000}, ("/cache/delete", {"key": "{}"})),
        ("cache_keys_max", 20, "/cache/put", {"key": "{}", "value": 1}, None),
        (
            "lock_bytes_max",
            MIB,
            "/lock/acquire",
            {"keys": [f"{{}}/{key}" for key in range(64)], "client": "a", "ttl_ms": 600_000},
            ("/lock/release", {"keys": [f"{{}}/{key}" for key in range(64)], "client": "a"}),
        ),
        (
            "queue_bytes_max",
            MIB,
            "/queue/publish",
            {"topic": "t", "messages": [{"value": 1, "dedup_id": f"{{}}/{number}/{'d' * 400}"} for number in range(100)]},
            None,
        ),
    ],
    ids=["cache bytes", "cache keys", "locks", "dedup ids"],
)
def test_state_over_its_limit_is_refused_and_can_shrink(make_cluster, limit, maximum, path, grow, shrink):
    (node,) = make_cluster(nodes=1, DSS_CACHE_WRITE_BACK_MS="60000").nodes
    assert node.call("PUT", "/raft/limits", {"limits": {limit: maximum}}).status == 200
    replies = [node.call("POST", path, filled(grow, number)) for number in range(60)]
    assert replies[0].status == 200
    refused = replies[-1]
    assert (refused.status, refused.json["code"], refused.json["limit"]) == (429, "over_limit", limit)
    if shrink is not None:
        for number in range(60):
            assert node.call("POST", shrink[0], filled(shrink[1], number)).status in (200, 409)


def filled(body: dict[str, Any], number: int) -> dict[str, Any]:
    """The body, with the number in its names."""
    return json.loads(json.dumps(body).replace("{}", str(number)))  # type: ignore[no-any-return]


def test_results_are_forgotten_although_a_leader_took_their_acknowledgement_with_it(make_cluster, wait_until):
    """A node confirms a result of 3 MiB to a leader that dies. Then no snapshot may have that result any more."""
    cluster = make_cluster(DSS_SNAPSHOT_ENTRIES="20")
    leader = cluster.leader()
    caller, other = cluster.followers()
    messages = [{"value": "x" * 100_000} for _ in range(30)]
    assert leader.call("POST", "/queue/publish", {"topic": "t", "messages": messages}).status == 200
    taken = {"topic": "t", "group": "g", "max_messages": 30, "visibility_ms": 600_000}
    got = caller.call("POST", "/queue/consume", taken).json["messages"]
    assert len(got) == 30
    ids, receipts = [one["msg_id"] for one in got], [one["receipt"] for one in got]
    acked = {"topic": "t", "group": "g", "msg_ids": ids, "receipts": receipts}
    assert other.call("POST", "/queue/ack", acked).status == 200

    leader.pause()
    sent = threading.Thread(target=caller.call, args=("POST", "/cache/put", {"key": "k", "value": 0}))
    sent.start()  # with the acknowledgement of the result, to a leader that does not read it
    wait_until(lambda: leads_in_eyes_of(caller) not in ("", leader.id), lambda: "no other node leads")
    leader.kill()
    sent.join()
    start = max(node.status()["snapshot_index"] for node in (caller, other))
    for number in range(80):
        node = (caller, other)[number % 2]
        assert node.call("POST", "/cache/put", {"key": "k", "value": number}).status == 200
    for node in (caller, other):
        wait_until(lambda node=node: node.status()["snapshot_index"] > start + 20, lambda: "no snapshot was taken")
        assert node.stop() == 0
        assert newest_snapshot_bytes(node) < MIB


def leads_in_eyes_of(node: LocalNode) -> str:
    status = node.status()
    return status["leader_id"] if status is not None else ""


def newest_snapshot_bytes(node: LocalNode) -> int:
    snapshots = Path(node.environment["DSS_DATA_DIR"]).rglob("*.snap")
    return max((int(path.name.split("-")[0]), path.stat().st_size) for path in snapshots)[1]
