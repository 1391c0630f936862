"""The cache while nodes are killed, paused and cut off: no read is stale, reads are monotonic, no answered write is lost.

Clients read and write a few keys on every node as fast as they can. Every answer contains a version, so the whole history of each key
can be checked: together, the checks below say that it is linearizable, with versions as the order. `make chaos` runs 200,000 operations.
On nodes that do not check their lease, the same clients must find stale reads.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dss_dev.cache_history import (
    CHECKS,
    History,
    Operation,
    ambiguous,
    invented,
    lost,
    out_of_order,
    stale,
)
from dss_dev.local_cluster import LocalCluster, LocalNode, NotReady
from dss_dev.local_partitions import PartitionedCluster

pytestmark = pytest.mark.cluster

#: in all three clusters together
OPERATIONS = int(os.environ.get("DSS_CHAOS_OPERATIONS", "9000"))
KEYS = ("a", "b", "c", "d")
CLIENTS_PER_NODE = 3
WRITE_SHARE = 0.05
#: operations that every node answers between two faults
BETWEEN_FAULTS = max(60, OPERATIONS // 200)
LEASE_S = 1.0
#: longer than a lease and an election
FAULT_S = 1.5 * LEASE_S
CALL_TIMEOUT_S = 10.0
PATIENCE_S = 60.0
SEED = 5
SMALL = {"DSS_CACHE_WRITE_BACK_MS": "50", "DSS_SNAPSHOT_ENTRIES": "2000"}


class Run:
    """Clients at work while the block runs, each on its own node."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.history = History()
        self.is_over = threading.Event()
        self.answered = dict.fromkeys((node.id for node in cluster.nodes), 0)
        self.threads = [
            threading.Thread(target=self._client, args=(node, number), daemon=True)
            for node in cluster.nodes
            for number in range(CLIENTS_PER_NODE)
        ]

    def __enter__(self) -> Run:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def _client(self, node: LocalNode, number: int) -> None:
        chance = random.Random(f"{SEED} {node.id} {number}")
        connection: http.client.HTTPConnection | None = None
        for turn in itertools.count():
            if self.is_over.is_set():
                return
            try:
                if connection is None:
                    connection = node.connection(CALL_TIMEOUT_S)
                value = f"{node.id}.{number}.{turn}" if chance.random() < WRITE_SHARE else None
                self._call(connection, node, chance.choice(KEYS), value)
            except (OSError, http.client.HTTPException, ValueError):
                connection = None
                self.is_over.wait(0.02)

    def _call(self, connection: http.client.HTTPConnection, node: LocalNode, key: str, value: str | None) -> None:
        """A put of the value, or a get. It is not recorded if it is refused or not answered."""
        asked_s = time.monotonic()
        if value is None:
            connection.request("GET", f"/cache/get?key={key}")
        else:
            self.history.attempted[value] = asked_s
            body = json.dumps({"key": key, "value": value})
            connection.request("POST", "/cache/put", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        answered_s = time.monotonic()
        if response.status != 200:
            return
        read = answer["value"] if value is None else value
        is_hit = value is None and answer["hit"]
        one = Operation(key, node.id, value is not None, answer["version"], read, asked_s, answered_s, is_hit)
        self.history.operations.append(one)
        self.answered[node.id] += 1  # three threads increment it without a lock: a lost increment only makes the run longer

    def let_work(self) -> None:
        """Wait until every node has answered more operations."""
        goals = {node_id: count + BETWEEN_FAULTS for node_id, count in self.answered.items()}
        deadline = time.monotonic() + PATIENCE_S
        while any(self.answered[node_id] < goal for node_id, goal in goals.items()):
            if time.monotonic() > deadline:
                raise NotReady(f"too few answers in {PATIENCE_S:.0f} s: {self.answered}, wanted {goals}")
            time.sleep(0.01)

    def play(self, faults: list[Callable[[], None]]) -> None:
        """Cause each fault at least once, one after the other, until there were enough operations."""
        for number, fault in enumerate(itertools.cycle(faults)):
            self.let_work()
            if number >= len(faults) and len(self.history.operations) >= OPERATIONS // 3:
                return
            fault()

    def verify(self) -> None:
        reads = [one for one in self.history.operations if not one.is_write]
        hits = sum(one.is_hit for one in reads)
        print(f"{len(self.history.operations)} operations: {len(reads)} reads, {hits} of them hits")
        for check in CHECKS:
            assert not check(self.history)[:5], check.__doc__
        assert hits > 0.2 * len(reads), "too few hits: the run shows nothing"


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """A fault begins in the block, lasts for a while, and is then undone."""
    yield
    time.sleep(FAULT_S)
    undo()


def pause(node: LocalNode) -> None:
    with undone(node.resume):
        node.pause()


def kills_and_pauses(cluster: LocalCluster) -> list[Callable[[], None]]:
    def kill(node: LocalNode) -> None:
        def restart() -> None:
            node.start()
            cluster.wait_ready(nodes=[node])

        with undone(restart):
            node.kill()

    def kill_all() -> None:
        for node in cluster.nodes:
            node.kill()
        cluster.start()
        cluster.wait_ready()

    return [
        lambda: pause(cluster.followers()[0]),
        lambda: kill(cluster.leader()),
        lambda: pause(cluster.leader()),
        lambda: kill(cluster.followers()[0]),
        kill_all,
    ]


def cuts(cluster: PartitionedCluster) -> list[Callable[[], None]]:
    def heal() -> None:
        cluster.heal()
        cluster.wait_ready()

    def isolate(node: LocalNode) -> None:
        with undone(heal):
            cluster.isolate(node)

    def mute(node: LocalNode) -> None:
        """Drop everything that the node sends; it still receives."""
        with undone(heal):
            for other in cluster.nodes:
                if other is not node:
                    cluster.cut(node, other)

    return [
        lambda: isolate(cluster.followers()[0]),
        lambda: isolate(cluster.leader()),
        lambda: mute(cluster.followers()[0]),
        lambda: mute(cluster.leader()),
    ]


@pytest.mark.parametrize("memory", ["django", "redis"])
def test_kill_and_pause(make_cluster, request, memory: str) -> None:
    redis = {"REDIS_URL": request.getfixturevalue("redis_server").connection_url} if memory == "redis" else {}
    cluster = make_cluster(**SMALL, **redis)
    with Run(cluster) as run:
        run.play(kills_and_pauses(cluster))
    run.verify()


def test_partition(make_partitioned_cluster) -> None:
    cluster = make_partitioned_cluster(**SMALL)
    with Run(cluster) as run:
        run.play(cuts(cluster))
    run.verify()


def test_without_the_lease_check_reads_are_stale(make_cluster, no_lease_check: dict[str, str]) -> None:
    """The same clients and checks, on nodes that answer from their lines without end."""
    cluster = make_cluster(**SMALL, **no_lease_check)
    with Run(cluster) as run:
        for _ in range(10):
            run.let_work()
            pause(cluster.followers()[0])
            run.let_work()
            if stale(run.history):
                return
    pytest.fail("nothing was found")


def put(version: int, at_s: float, value: str | None = None) -> Operation:
    return Operation("k", "n1", True, version, value or f"v{version}", at_s, at_s + 0.1)


def get(version: int, at_s: float, value: str | None = "") -> Operation:
    return Operation("k", "n2", False, version, f"v{version}" if value == "" else value, at_s, at_s + 0.1)


GOOD = [put(1, 1), get(1, 1.05), put(2, 2), get(2, 2.05), get(2, 3)]


@pytest.mark.parametrize(
    ("check", "more"),
    [
        (stale, get(1, 2.2)),
        (stale, get(1, 2.16)),
        (out_of_order, put(2, 4)),
        (ambiguous, get(2, 4, "v1")),
        (invented, get(2, 4, "never written")),
        (invented, get(3, 0.5)),
        (lost, get(3, 4, None)),
        (None, get(1, 2.01)),
        (None, get(0, 0.5, None)),
    ],
)
def test_each_check_finds_its_violation(check: Callable[[History], list[Any]] | None, more: Operation) -> None:
    attempted = {"v1": 1.0, "v2": 2.0, "v3": 3.0}
    assert not any(one(History(GOOD, attempted)) for one in CHECKS)
    history = History([*GOOD, more], attempted)
    assert bool(check(history) if check else any(one(history) for one in CHECKS)) == (check is not None)
