"""Locks while nodes are killed, paused and cut off, and while clients pause past their leases.

Every client increments two counters that a lock protects: it reads, pauses, and writes. One counter is fenced: it refuses a token
that is older than one it has seen. The other is not.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from dss_dev.local_cluster import POLL_S, LocalCluster, NotReady

pytestmark = pytest.mark.cluster

KEYS = ("a", "b", "c")
CLIENTS = 8
TTL_MS = 600
WAIT_MS = 1500
#: a pause of a node that is longer than an election and a lease
PAUSE_S = 1.5
SEED = 7
#: how often each fault comes
ROUNDS = int(os.environ.get("DSS_CHAOS_ROUNDS", "1"))


@dataclass(frozen=True)
class Grant:
    """A lock that was granted to a client, in seconds of the client's clock."""

    key: str
    client: str
    mode: str
    token: int
    asked_s: float
    answered_s: float
    #: end of the lease, counted from the request, or the release: until then the client may believe that it holds the lock
    safe_until_s: float


def overlaps(grants: list[Grant]) -> list[tuple[Grant, Grant]]:
    """Pairs of conflicting grants of a key whose clients could both believe that they held it at the same time."""
    found = []
    for key in {grant.key for grant in grants}:
        of_key = sorted((grant for grant in grants if grant.key == key), key=lambda grant: grant.answered_s)
        for first, second in itertools.combinations(of_key, 2):
            # An answer that came after its own lease gave its client nothing to believe.
            both_until_s = min(first.safe_until_s, second.safe_until_s)
            if second.answered_s < both_until_s and "exclusive" in (first.mode, second.mode):
                found.append((first, second))
    return found


def disorders(grants: list[Grant]) -> list[tuple[Grant, Grant]]:
    """Pairs of exclusive grants of a key: the later one was requested after the answer to the other, but has no larger token."""
    found = []
    exclusive = [grant for grant in grants if grant.mode == "exclusive"]
    for first, second in itertools.permutations(exclusive, 2):
        if first.key == second.key and first.answered_s < second.asked_s and first.token >= second.token:
            found.append((first, second))
    return found


class Counter:
    """A counter that a lock protects.

    Args:
        fenced: whether it refuses tokens older than one it has seen.
    """

    def __init__(self, fenced: bool) -> None:
        self.value = 0
        self.writes = 0
        self.refused = 0
        self._fenced = fenced
        self._highest = 0
        self._mutex = threading.Lock()

    def read(self, token: int) -> int | None:
        with self._mutex:
            return self.value if self._lets_in(token) else None

    def write(self, token: int, value: int) -> bool:
        with self._mutex:
            if not self._lets_in(token):
                return False
            self.value = value
            self.writes += 1
            return True

    def _lets_in(self, token: int) -> bool:
        if self._fenced and token < self._highest:
            self.refused += 1
            return False
        self._highest = max(self._highest, token)
        return True

    @property
    def lost_updates(self) -> int:
        return self.writes - self.value


class Client(threading.Thread):
    """Acquires one lock after the other, on any node, until it is stopped."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(daemon=True)
        self.run_ = run
        self.name = f"client-{number}"
        self.random = random.Random(SEED * 1000 + number)
        self.grants: list[Grant] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for turn in itertools.count():
                if self.run_.is_over.is_set():
                    return
                self.take_a_lock(f"{self.name}.{turn}")
        except BaseException as error:
            self.failure = error

    def take_a_lock(self, client: str) -> None:
        chance = self.random
        node, key = chance.choice(self.run_.cluster.nodes), chance.choice(KEYS)
        mode = "shared" if chance.random() < 0.2 else "exclusive"
        body = {"key": key, "client": client, "mode": mode, "ttl_ms": TTL_MS, "wait_ms": WAIT_MS}
        asked_s = time.monotonic()
        try:
            reply = node.call("POST", "/lock/acquire", body, timeout_s=10)
        except (OSError, http.client.HTTPException):
            self.run_.is_over.wait(POLL_S)
            return
        if reply.status != 200:
            self.run_.is_over.wait(POLL_S)
            return
        token = reply.json["fencing_token"]
        grant = Grant(key, client, mode, token, asked_s, time.monotonic(), asked_s + TTL_MS / 1000)
        if mode == "exclusive" and not self.count_one_more(key, token):
            # It paused past its lease, which must have ended by now.
            self.grants.append(grant)
        else:
            self.grants.append(replace(grant, safe_until_s=min(grant.safe_until_s, time.monotonic())))
            with contextlib.suppress(OSError, http.client.HTTPException):
                node.call("POST", "/lock/release", {"key": key, "client": client}, timeout_s=10)
        self.run_.granted.release()

    def count_one_more(self, key: str, token: int) -> bool:
        """Read, pause and write both counters. False: the client was paused past its lease."""
        counters = self.run_.counters[key]
        values = [counter.read(token) for counter in counters]
        paused = self.random.random() < 0.15
        time.sleep(3 * TTL_MS / 1000 if paused else self.random.random() * 0.005)
        for counter, value in zip(counters, values, strict=True):
            if value is not None:
                counter.write(token, value + 1)
        return not paused


class Run:
    """Clients at work while the block runs."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.is_over = threading.Event()
        self.granted = threading.Semaphore(0)
        self.counters = {key: (Counter(fenced=True), Counter(fenced=False)) for key in KEYS}
        self.clients = [Client(self, number) for number in range(CLIENTS)]

    def __enter__(self) -> Run:
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        for client in self.clients:
            client.join()

    def wait_for_grants(self, count: int) -> None:
        for _ in range(count):
            if not self.granted.acquire(timeout=60):
                raise NotReady("no lock was granted for 60 s")

    def verify(self) -> None:
        for client in self.clients:
            if client.failure is not None:
                raise client.failure
        grants = [grant for client in self.clients for grant in client.grants]
        fenced = [pair[0] for pair in self.counters.values()]
        unfenced = [pair[1] for pair in self.counters.values()]
        refused, lost = sum(counter.refused for counter in fenced), sum(counter.lost_updates for counter in unfenced)
        print(
            f"{len(grants)} grants, {sum(c.writes for c in fenced)} fenced writes, {refused} refused, {lost} lost without fencing"
        )
        assert not overlaps(grants)
        assert not disorders(grants)
        assert sum(counter.lost_updates for counter in fenced) == 0
        assert refused > 0, "no client wrote after its lease: the run proves nothing"
        assert lost > 0, "nothing was lost without fencing either: the run proves nothing"


def kill_and_pause(cluster: LocalCluster, run: Run) -> None:
    leader = cluster.leader()
    leader.kill()
    run.wait_for_grants(20)
    leader.start()
    cluster.wait_ready()
    leader = cluster.leader()
    leader.pause()
    time.sleep(PAUSE_S)
    leader.resume()
    run.wait_for_grants(20)
    follower = cluster.followers()[0]
    follower.pause()
    time.sleep(PAUSE_S)
    follower.resume()
    run.wait_for_grants(20)
    for node in cluster.nodes:
        node.kill()
    cluster.start()
    cluster.wait_ready()
    run.wait_for_grants(20)


def test_kill_and_pause(cluster):
    with Run(cluster) as run:
        run.wait_for_grants(20)
        for _ in range(ROUNDS):
            kill_and_pause(cluster, run)
    run.verify()


def test_partition(partitioned_cluster):
    """The leader is cut off, then a follower; then the leader can receive but not send."""
    cluster = partitioned_cluster
    with Run(cluster) as run:
        for cut in (
            lambda: cluster.isolate(cluster.leader()),
            lambda: cluster.isolate(cluster.followers()[0]),
            lambda: [cluster.cut(leader, node) for leader in (cluster.leader(),) for node in cluster.nodes if node is not leader],
        ) * ROUNDS:
            run.wait_for_grants(20)
            cut()
            time.sleep(2 * PAUSE_S)
            run.wait_for_grants(20)
            cluster.heal()
            cluster.wait_ready()
    run.verify()


FIRST = Grant("k", "x", "exclusive", 5, asked_s=1.0, answered_s=1.1, safe_until_s=2.0)


@pytest.mark.parametrize(
    ("check", "second", "found"),
    [
        (overlaps, replace(FIRST, answered_s=1.9), 1),
        (overlaps, replace(FIRST, answered_s=1.9, mode="shared"), 1),
        (overlaps, replace(FIRST, answered_s=1.9, key="other"), 0),
        (overlaps, replace(FIRST, answered_s=2.0), 0),
        (overlaps, replace(FIRST, answered_s=1.9, safe_until_s=1.5), 0),
        (disorders, replace(FIRST, asked_s=1.2, token=5), 1),
        (disorders, replace(FIRST, asked_s=1.2, token=4), 1),
        (disorders, replace(FIRST, asked_s=1.2, token=6), 0),
        (disorders, replace(FIRST, asked_s=1.05, token=4), 0),
    ],
)
def test_each_check_finds_its_violation(check: Callable[[list[Grant]], list[object]], second: Grant, found: int) -> None:
    assert len(check([FIRST, replace(second, client="y")])) == found
    shared = replace(FIRST, mode="shared")
    assert not overlaps([shared, replace(shared, client="y", answered_s=1.5)])
