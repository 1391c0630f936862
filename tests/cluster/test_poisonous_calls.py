"""Ordinary calls that once ended every node of the cluster: each costs an answer, and no more."""

from __future__ import annotations

import threading
import time

import pytest

pytestmark = pytest.mark.cluster

EDGES = [2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**40, -(2**63 - 1), -(2**63), -(2**63) - 1, -(10**40)]
LARGEST = 2**63 - 1
#: minimum number of writes while leadership changes repeatedly, and minimum time
WRITES, SECONDS_MIN = 40, 8.0
PATIENCE_S = 120.0
#: Between two calls of a client. If the node had no limit, each call would begin a term: ten times as many as allowed.
PAUSE_S = 0.05
WRITE_PAUSE_S = 0.02


@pytest.fixture(scope="module")
def nodes(shared_cluster):
    return shared_cluster.nodes


@pytest.mark.parametrize("is_at_rest", [False, True])
def test_incr_of_any_integer(nodes, wait_until, is_at_rest):
    """A value at rest is read from the backing store, so the node computes a field of the command itself."""
    keys = {value: f"edge-{is_at_rest}-{value}" for value in EDGES}
    for value, key in keys.items():
        assert nodes[0].call("POST", "/cache/put", {"key": key, "value": value}).status == 200
    if is_at_rest:
        wait_until(
            lambda: nodes[1].call("GET", "/cache/stats").json["dirty"] == 0,
            lambda: "the values are not written back",
        )
    for value, key in keys.items():
        for node in nodes:
            for delta in (1, -1, LARGEST, -LARGEST):
                reply = node.call("POST", "/cache/incr", {"key": key, "delta": delta})
                if reply.status == 200:
                    assert abs(reply.json["value"]) <= LARGEST
                    node.call("POST", "/cache/put", {"key": key, "value": value})
                    if is_at_rest:
                        break
                else:
                    assert (reply.status, reply.json["code"]) == (400, "invalid"), (value, delta, reply.json)
    assert all(node.is_running for node in nodes)
    wait_until(lambda: all(node.is_ready() for node in nodes), lambda: "a node is not ready")


@pytest.mark.parametrize(
    ("path", "body"), [("/raft/start_election", {"force": True}), ("/raft/transfer", {"to": ""})], ids=["elections", "transfers"]
)
def test_changes_of_leadership_in_a_loop_leave_room_for_writes(nodes, path, body):
    """On every node at the same time: a leader has no reason to campaign, so a single node soon does nothing more."""
    first_term = nodes[0].status()["term"]
    is_over = threading.Event()
    statuses: list[int] = []

    def change(node) -> None:
        while not is_over.wait(PAUSE_S):
            statuses.append(node.call("POST", path, body).status)

    threads = [threading.Thread(target=change, args=[node]) for node in nodes]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    written = 0
    try:
        # Without room for them, there are no writes at all. How many there are in a second depends on the machine.
        while written < WRITES or time.monotonic() < began + SECONDS_MIN:
            assert time.monotonic() < began + PATIENCE_S, f"only {written} writes"
            reply = nodes[written % 3].call("POST", "/cache/put", {"key": f"k{written}", "value": 1})
            assert reply.status in (200, 503)
            written += reply.status == 200
            time.sleep(WRITE_PAUSE_S)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    terms = nodes[0].status()["term"] - first_term
    seconds = time.monotonic() - began
    print(f"{terms} terms, {written} writes, {len(statuses)} changes asked for, {statuses.count(429)} refused")
    assert {200, 429} <= set(statuses) <= {200, 429, 503}
    assert terms <= 2 * 3 * (seconds + 1), "each change can be followed by one that it made necessary"
