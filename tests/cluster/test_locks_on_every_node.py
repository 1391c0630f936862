"""Every lock call of the contract, at each of three real nodes, through each entry point.

tests/locks/test_contract.py checks the answers in detail. Here, the calls of one story go to the nodes in turn.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from dss_dev.local_cluster import LocalCluster, LocalNode
from dss_dev.websocket import connect
from dss_locks.operations import OPERATIONS

pytestmark = pytest.mark.cluster

PATIENCE_S = 60
PATHS = {operation.name: (operation.method, operation.path) for operation in OPERATIONS}
PAGE = {"Accept": "text/html"}

Answer = tuple[int, dict[str, Any]]


def http(node: LocalNode, name: str, fields: dict[str, Any], headers: dict[str, str]) -> tuple[int, bytes]:
    method, path = PATHS[name]
    query = "&".join(f"{field}={value}" for field, value in fields.items())
    reply = (
        node.call("GET", f"{path}?{query}", headers=headers)
        if method == "GET"
        else node.call("POST", path, fields, headers=headers)
    )
    return reply.status, reply.body


def json_fast_path(node: LocalNode, name: str, fields: dict[str, Any]) -> Answer:
    status, body = http(node, name, fields, {})
    return status, json.loads(body)


def page(node: LocalNode, name: str, fields: dict[str, Any]) -> Answer:
    """A call as a browser makes it: the page of DRF contains the answer."""
    status, body = http(node, name, fields, PAGE)
    shown = re.search(r"response-info.*?</span>(\{.*?)</pre>", body.decode(), re.DOTALL)
    assert shown is not None
    return status, json.loads(html.unescape(re.sub(r"<[^>]*>", "", shown.group(1))))


def socket(node: LocalNode, name: str, fields: dict[str, Any]) -> Answer:
    with connect(node.websocket_url, ssl=node.tls) as connection:
        connection.send(json.dumps({"id": 1, "op": name, "request": fields}))
        answer = json.loads(connection.recv(timeout=PATIENCE_S))
    assert answer.pop("id") == 1
    return answer.pop("status", 200), answer


class Round:
    """Calls to the nodes in turn, through one entry point."""

    def __init__(
        self, cluster: LocalCluster, entry_point: Callable[..., Answer], first: int, threads: ThreadPoolExecutor
    ) -> None:
        self.nodes = cluster.nodes[first:] + cluster.nodes[:first]
        self.entry_point = entry_point
        self.called: set[tuple[str, str]] = set()
        self.indexes = [0]
        self._threads = threads
        self._turn = 0

    def call(self, name: str, **fields: Any) -> Answer:
        node = self.nodes[self._turn % len(self.nodes)]
        self._turn += 1
        self.called.add((node.id, name))
        status, answer = self.entry_point(node, name, fields)
        assert answer["ok"] == (status == 200)
        return status, answer

    def ok(self, name: str, **fields: Any) -> dict[str, Any]:
        """A call that succeeds. Each change has a later index than the change before it, at another node."""
        status, answer = self.call(name, **fields)
        assert status == 200, answer
        if PATHS[name][0] == "POST" and name != "locks.check":
            assert answer["index"] > self.indexes[-1]
            self.indexes.append(answer["index"])
        return answer

    def refused(self, name: str, **fields: Any) -> tuple[int, str]:
        status, answer = self.call(name, **fields)
        return status, answer["code"]

    def later(self, name: str, **fields: Any) -> Future[Answer]:
        """Start a call that waits. Returns when its request is in the queue."""
        node = self.nodes[self._turn % len(self.nodes)]
        self._turn += 1
        waiting = self._threads.submit(self.entry_point, node, name, fields)
        key = fields.get("key") or fields["keys"][0]
        # Polling does not advance the turn, so that each step of the story reaches each node.
        while fields["client"] not in [
            waiter["client"] for waiter in self.entry_point(node, "locks.status", {"key": key})[1]["waiters"]
        ]:
            assert not waiting.done(), waiting.result()
        return waiting


def story(do: Round, k: str) -> None:
    """Everything in the contract about locks, as a client sees it."""
    a = do.ok("locks.acquire", key=f"{k}1", client="a")
    assert (a["fencing_token"], a["expires_in_ms"], a["reentrant"]) == (a["index"], 30_000, False)
    again = do.ok("locks.acquire", key=f"{k}1", client="a", ttl_ms="600000")
    assert (again["fencing_token"], again["expires_in_ms"], again["reentrant"]) == (a["index"], 600_000, True)
    status, held = do.call("locks.acquire", key=f"{k}1", client="b", mode="shared")
    assert (status, held["code"], held["holders"][0]["client"], held["position"]) == (423, "held", "a", 1)
    assert do.refused("locks.acquire", key=f"{k}1", client="b", wait_ms=1) == (423, "wait_timeout")

    # All of several keys or none, a queue, a deadlock with its cycle, and why a client waits.
    both = do.ok("locks.acquire", keys=[f"{k}2", f"{k}3"], client="b", ttl_ms=0)
    assert (both["expires_in_ms"], set(both["fencing_tokens"].values())) == (None, {both["index"]})
    waiting = do.later("locks.acquire", key=f"{k}3", client="a", wait_ms=20_000)
    status, deadlock = do.call("locks.acquire", key=f"{k}1", client="b", wait_ms=20_000)
    assert (status, deadlock["code"], deadlock["deadlock"]) == (409, "deadlock", True)
    cycle = [(step["client"], step["waits_for"], step["held_by"]) for step in deadlock["cycle"]]
    assert cycle == [("b", f"{k}1", "a"), ("a", f"{k}3", "b")]
    for _ in do.nodes:
        edges = do.ok("locks.graph")["edges"]
        assert [(edge["from"], edge["to"], edge["key"]) for edge in edges] == [("a", "b", f"{k}3")]
    why = do.ok("locks.status", key=f"{k}3", client="a")["why"]
    assert (why["position"], [step["held_by"] for step in why["chain"]]) == (1, ["b"])

    # Releases: harmless when repeated, refused with a token that is out of date.
    assert do.ok("locks.release", keys=[f"{k}2", f"{k}3"], client="b")["released_keys"] == [f"{k}2", f"{k}3"]
    status, granted = waiting.result(PATIENCE_S)
    assert (status, granted["fencing_token"]) == (200, do.indexes[-1])
    assert do.ok("locks.release", key=f"{k}3", client="b")["released"] is False
    assert do.refused("locks.release", key=f"{k}3", client="b", fencing_token=both["index"]) == (409, "not_holder")
    for _ in do.nodes:
        old, new = both["index"], granted["fencing_token"]
        assert do.ok("locks.check", key=f"{k}3", fencing_token=old)["valid"] is False
        assert do.ok("locks.check", key=f"{k}3", fencing_token=new) == {"ok": True, "valid": True, "current": new}

    # Renewal, upgrade, forced release, and the audit list. The lock is released at the end of the story.
    assert do.ok("locks.renew", key=f"{k}3", client="a", fencing_token=new, ttl_ms=500_000)["expires_in_ms"] == 500_000
    assert do.refused("locks.renew", key=f"{k}3", client="b") == (409, "lock_lost")
    shared = do.ok("locks.acquire", key=f"{k}4", client="a", mode="shared")
    upgraded = do.ok("locks.acquire", key=f"{k}4", client="a")
    assert upgraded["fencing_token"] > shared["fencing_token"]
    assert do.ok("locks.force_release", key=f"{k}4", reason=f"told {k}", by="alice")["released"]
    for _ in do.nodes:
        assert do.ok("locks.audit")["forced"][0]["reason"] == f"told {k}"

    # A session: one keepalive for its locks, which end together.
    session = do.ok("locks.session_start", client="c", ttl_ms=200_000)["session"]
    assert 30_000 < do.ok("locks.acquire", key=f"{k}5", client="c", session=session)["expires_in_ms"] <= 200_000
    for _ in do.nodes:
        assert do.ok("locks.session_renew", session=session)["keys_held"] == 1
    assert do.ok("locks.session_close", session=session)["released_keys"] == [f"{k}5"]
    assert do.refused("locks.session_renew", session=session) == (409, "session_lost")
    assert do.ok("locks.session_close", session=session)["closed"] is False

    # A lease expires, then the lock delay ends. On a busy machine, both may have ended before the second client asks.
    waited_ms = 0
    for attempt in range(20):
        key = f"{k}6/{attempt}"
        do.ok("locks.acquire", key=key, client="d", ttl_ms=300, lock_delay_ms=300)
        waited_ms = do.ok("locks.acquire", key=key, client="e", wait_ms=20_000)["waited_ms"]
        assert do.ok("locks.release", key=key, client="e")["released"]
        if waited_ms >= 100:
            break
    assert waited_ms >= 100
    for key in ("1", "3"):
        assert do.ok("locks.release", key=f"{k}{key}", client="a")["released"]


@pytest.mark.parametrize("entry_point", [json_fast_path, page, socket], ids=["json", "drf", "websocket"])
def test_the_whole_contract_at_every_node(shared_cluster: LocalCluster, entry_point: Callable[..., Answer]) -> None:
    called: set[tuple[str, str]] = set()
    with ThreadPoolExecutor() as threads:
        for first in range(len(shared_cluster.nodes)):
            do = Round(shared_cluster, entry_point, first, threads)
            story(do, f"{entry_point.__name__}-{first}-")
            called |= do.called
    assert called == {(node.id, name) for node in shared_cluster.nodes for name in PATHS}
