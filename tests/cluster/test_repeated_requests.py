"""Clients repeat requests at other nodes, while nodes are killed and answers are lost: each takes effect once."""

from __future__ import annotations

import http.client
import itertools
import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from dss_dev.local_cluster import LocalCluster, LocalNode

pytestmark = pytest.mark.cluster

CLIENTS = 6
#: so short that some calls are answered in time and some are not
HANGS_UP_AFTER_S = 0.004
#: the answers that say that the call had no effect, or may have had one
TRY_AGAIN = ("unknown_outcome", "no_leader", "no_quorum", "not_ready", "stopping")


class Client(threading.Thread):
    """Makes one request after the other. It repeats each, at any node, until it has an answer."""

    def __init__(self, cluster: LocalCluster, number: int, stop: threading.Event, rounds: threading.Semaphore) -> None:
        super().__init__(daemon=True)
        self.name = f"client-{number}"
        self.nodes = cluster.nodes
        self.dice = random.Random(number)
        self.stop = stop
        self.rounds = rounds
        self.numbers = itertools.count(1)
        self.session = ""
        self.repeats = 0
        self.tokens: list[int] = []
        self.sums: list[int] = []
        self.published: list[str] = []
        self.consumed: list[str] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            # A new cluster has its latest version when all members are linked, a moment after it is ready.
            opening = {"ttl_ms": 600_000}
            self.session = self.until_answered("/request/session", opening, 0, (*TRY_AGAIN, "not_supported_yet"))["session"]
            while not self.stop.is_set():
                self.round()
                self.rounds.release()
        except BaseException as error:
            self.failure = error

    def round(self) -> None:
        lock = {"key": "k", "client": self.name}
        while (acquired := self.request("/lock/acquire", **lock, ttl_ms=0, wait_ms=20_000)).get("code") == "wait_timeout":
            pass  # the others are slow
        self.tokens.append(acquired["fencing_token"])
        self.sums.append(self.request("/cache/incr", key="sum")["value"])
        assert self.request("/lock/release", **lock)["released"] is True, (
            "it was released by an earlier attempt of another request"
        )
        name = f"{self.name}/{len(self.published)}"
        self.request("/queue/publish", topic="t", value=name)
        self.published.append(name)
        message = self.request("/queue/consume", topic="t", group="g", timeout_ms=2000, visibility_ms=600_000)
        if message["msg_id"] is not None:
            ack = {"topic": "t", "group": "g", "msg_id": message["msg_id"], "receipt": message["receipt"]}
            assert self.request("/queue/ack", **ack)["acked"] is True
            self.consumed.append(message["value"])

    def request(self, path: str, **fields: Any) -> dict[str, Any]:
        number = next(self.numbers)
        return self.until_answered(path, {**fields, "request_id": f"{self.session}:{number}:{number - 1}"}, 0.5)

    def until_answered(
        self, path: str, body: dict[str, Any], hangs_up: float, again: Sequence[str] = TRY_AGAIN
    ) -> dict[str, Any]:
        while True:
            node = self.dice.choice(self.nodes)
            timeout_s = HANGS_UP_AFTER_S if self.dice.random() < hangs_up else 30.0
            try:
                reply = node.call("POST", path, body, timeout_s=timeout_s)
            except (OSError, http.client.HTTPException):
                self.repeats += 1
                self.stop.wait(0.01)
                continue
            if reply.status == 200 or reply.json["code"] == "wait_timeout":
                return reply.json  # type: ignore[no-any-return]
            assert reply.json["code"] in again, reply.json
            self.repeats += 1
            self.stop.wait(0.05)


def rest(node: LocalNode) -> list[str]:
    """The messages that no client has consumed."""
    values: list[str] = []
    while True:
        call = {"topic": "t", "group": "g", "timeout_ms": 300, "max_messages": 100}
        messages = node.call("POST", "/queue/consume", call).json["messages"]
        if not messages:
            return values
        values += [message["value"] for message in messages]


def test_each_request_takes_effect_once_while_nodes_are_killed(make_cluster) -> None:
    cluster = make_cluster(DSS_SNAPSHOT_ENTRIES="150")
    stop, rounds = threading.Event(), threading.Semaphore(0)
    clients = [Client(cluster, number, stop, rounds) for number in range(CLIENTS)]
    for client in clients:
        client.start()

    def wait_for(count: int) -> None:
        for _ in range(count):
            if not rounds.acquire(timeout=60):
                raise AssertionError(f"no progress: {[client.failure for client in clients]}")

    wait_for(10)
    for victim in (cluster.leader, lambda: cluster.followers()[0]):
        node = victim()
        node.kill()
        wait_for(15)
        node.start()
        cluster.wait_ready(nodes=[node])
        wait_for(5)
    stop.set()
    for client in clients:
        client.join(120)
        assert not client.is_alive(), client.name
    assert [client.failure for client in clients if client.failure] == []

    rounds_made = [len(client.sums) for client in clients]
    sums = sorted(value for client in clients for value in client.sums)
    assert sums == list(range(1, sum(rounds_made) + 1)), "an incr took effect twice, or an answer belongs to another request"
    tokens = [token for client in clients for token in client.tokens]
    assert len(set(tokens)) == len(tokens)
    assert all(client.tokens == sorted(client.tokens) for client in clients)
    consumed = [value for client in clients for value in client.consumed]
    assert Counter([*consumed, *rest(cluster.nodes[0])]) == Counter(value for client in clients for value in client.published)
    assert sum(client.repeats for client in clients) > sum(rounds_made), "hardly anything was repeated"
    usage = cluster.nodes[1].call("GET", "/raft/limits").json["usage"]
    assert usage["request_answers"] < CLIENTS * 10_000, "the answers that the clients have are forgotten"
