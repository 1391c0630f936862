"""A Cluster as the backing store of the cache: primaries are killed while nodes write values back."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from redis.crc import key_slot

from dss_dev.local_cluster import HOST, LocalCluster, LocalNode
from dss_dev.valkey_cluster import ValkeyCluster

pytestmark = pytest.mark.cluster

KEYS = [f"k{number}" for number in range(200)]


@pytest.fixture
def valkey(tmp_path) -> Iterator[ValkeyCluster]:
    # One primary that is away must not take the others away.
    with ValkeyCluster(tmp_path / "valkey", settings={"cluster-require-full-coverage": "no"}) as cluster:
        yield cluster


@pytest.fixture
def with_cluster(make_cluster, valkey: ValkeyCluster) -> LocalCluster:
    return make_cluster(REDIS_URL=valkey.url, DSS_CACHE_WRITE_BACK_MS="20")


def stats(node: LocalNode) -> dict:
    return node.call("GET", "/cache/stats").json


def metric(node: LocalNode, name: str) -> float:
    lines = node.call("GET", "/metrics").body.decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


class Writer(threading.Thread):
    """Puts values of its own keys, one after another, until it is stopped."""

    def __init__(self, node: LocalNode, keys: list[str]) -> None:
        super().__init__()
        self._node = node
        self._keys = keys
        self._over = threading.Event()
        self.newest: dict[str, int] = {}
        self.refused: list[object] = []
        self.count = 0

    def run(self) -> None:
        while not self._over.is_set():
            key = self._keys[self.count % len(self._keys)]
            reply = self._node.call("POST", "/cache/put", {"key": key, "value": self.count})
            self.count += 1
            if reply.status == 200:
                self.newest[key] = reply.json["version"]
            else:
                self.refused.append(reply.json)

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_primaries_are_killed_in_the_middle_of_write_backs(with_cluster, valkey, wait_until) -> None:
    """No put is refused, every value reaches the Cluster, and a value that a lagging replica did not have is not found, never older."""
    writers = [Writer(with_cluster.nodes[number % 3], KEYS[number::6]) for number in range(6)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(3):
            killed = valkey.primaries[0]
            valkey.kill(killed)
            valkey.wait_ok()
            valkey.start(killed)
            valkey.wait_ok()
            source, target, *_ = valkey.primaries
            valkey.move_slots(source, target, 20)
    finally:
        for writer in writers:
            writer.stop()
    assert [writer.refused for writer in writers] == [[]] * len(writers)
    newest = {key: version for writer in writers for key, version in writer.newest.items()}
    assert len(newest) == len(KEYS)
    first = with_cluster.nodes[0]
    wait_until(lambda: stats(first)["dirty"] == 0, lambda: f"not written back: {stats(first)}")
    for node in with_cluster.nodes:
        wait_until(lambda node=node: not stats(node)["memory_trouble"], lambda node=node: stats(node)["memory_trouble"])
        for key in KEYS:
            assert node.call("POST", "/cache/evict", {"key": key}).status == 200
    lost = 0
    for key in KEYS:
        found = first.call("GET", f"/cache/get?key={key}").json
        if found["found"]:
            assert found["version"] == newest[key]
        else:
            lost += 1
    puts = sum(writer.count for writer in writers)
    print(f"{puts} puts, 3 primaries killed, {lost} of {len(KEYS)} values lost by the Cluster")
    assert metric(first, "cache_memory_lost_total") == lost


def test_a_shard_is_away(with_cluster, valkey, wait_until) -> None:
    """Nodes say so, serve all other keys, and write the values back when it is there again."""
    first, second, third = with_cluster.nodes
    for key in KEYS:
        assert first.call("POST", "/cache/put", {"key": key, "value": 1}).status == 200
    wait_until(lambda: stats(first)["dirty"] == 0, lambda: f"not written back: {stats(first)}")
    gone = valkey.primaries[0]
    away = next(key for key in KEYS if valkey.owner(key_slot(f"kv:{key}".encode())) == gone)
    here = next(key for key in KEYS if valkey.owner(key_slot(f"kv:{key}".encode())) != gone)
    for key in (away, here):
        assert first.call("POST", "/cache/evict", {"key": key}).status == 200
    (replica,) = valkey.replicas_of(gone)
    valkey.kill(replica)
    valkey.kill(gone)

    reply = second.call("GET", f"/cache/get?key={away}")
    assert (reply.status, reply.json["code"]) == (503, "memory_unavailable")
    assert f"{HOST}:{gone}" in reply.json["detail"]
    assert second.call("GET", f"/cache/get?key={here}").json["value"] == 1
    assert stats(second)["memory_trouble"]
    assert metric(second, "cache_memory_up") == 0
    assert second.call("GET", "/ready").status == 200
    for key in (away, here):
        assert third.call("POST", "/cache/put", {"key": key, "value": 2}).status == 200
    wait_until(lambda: stats(third)["dirty"] == 1, lambda: f"the value of the other shard was not written back: {stats(third)}")
    assert second.call("GET", f"/cache/get?key={away}").json["value"] == 2, "the directory has it"

    valkey.start(gone)
    valkey.wait_ok()
    wait_until(lambda: stats(third)["dirty"] == 0, lambda: f"not written back: {stats(third)}")
    for node in with_cluster.nodes:
        wait_until(lambda node=node: not stats(node)["memory_trouble"], lambda node=node: stats(node)["memory_trouble"])
    assert metric(second, "cache_memory_up") == 1


def test_a_replica_without_the_newest_values_takes_over(with_cluster, valkey, wait_until) -> None:
    """What the Cluster loses is not found and counted. The older versions that it has are never answered."""
    first, second, _ = with_cluster.nodes
    gone = valkey.primaries[0]
    (replica,) = valkey.replicas_of(gone)
    lost = {key for key in KEYS if valkey.owner(key_slot(f"kv:{key}".encode())) == gone}

    def put_all(value: int) -> None:
        items = [{"key": key, "value": value} for key in KEYS]
        assert first.call("POST", "/cache/mput", {"items": items}).status == 200
        wait_until(lambda: stats(first)["dirty"] == 0, lambda: f"not written back: {stats(first)}")

    put_all(1)
    wait_until(lambda: valkey.server(gone).client.wait(1, 1000) == 1, lambda: "the replica has not received the first values")
    valkey.kill(replica)
    put_all(2)
    valkey.kill(gone)
    valkey.start(replica)
    valkey.wait_ok()
    assert replica in valkey.primaries
    assert valkey.server(replica).client.hget(f"kv:{min(lost)}", "value") == "1"
    for key in KEYS:
        assert first.call("POST", "/cache/evict", {"key": key}).status == 200
    for node in with_cluster.nodes:
        wait_until(lambda node=node: not stats(node)["memory_trouble"], lambda node=node: stats(node)["memory_trouble"])
    for key in KEYS:
        found = second.call("GET", f"/cache/get?key={key}").json
        assert found["found"] == (key not in lost)
        assert found["value"] == (None if key in lost else 2)
    assert metric(second, "cache_memory_lost_total") == len(lost) > 0
