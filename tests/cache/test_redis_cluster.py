"""The backing store on a Cluster of real processes: slots that move, primaries that fail over or are away."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import redis.exceptions
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis.exceptions import ClusterDownError

from dss_api.errors import Refused
from dss_cache import redis_cluster
from dss_cache.backing_store import KeyRefused, Stored
from dss_cache.redis_servers import Permits
from dss_cache.redis_store import RedisStore
from dss_dev.local_cluster import HOST, free_ports
from dss_dev.valkey_cluster import ValkeyCluster
from dss_dev.valkey_server import make_valkey, wait_until

KEYS = [f"k{number}" for number in range(300)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    settings = {"cluster-require-full-coverage": "no"}
    with ValkeyCluster(tmp_path_factory.mktemp("valkey"), settings=settings) as cluster:
        yield cluster


@pytest.fixture
async def store(cluster):
    for port in cluster.ports:
        if port not in cluster.running:
            cluster.start(port)
    cluster.wait_ok()
    for port in cluster.primaries:
        cluster.server(port).client.flushall()
    store = RedisStore(cluster.url, "kv:")
    yield store
    await store.close()


def items(version: int, keys: list[str] = KEYS) -> list[Stored]:
    return [Stored(key, version, b"%d" % version) for key in keys]


async def versions(store: RedisStore, keys: list[str] = KEYS) -> list[object]:
    """What a read of each key says, all at once."""
    found = await asyncio.gather(*(store.read(key) for key in keys), return_exceptions=True)
    return [one.version if isinstance(one, Stored) else one for one in found]


def slot_of(key: str) -> int:
    return key_slot(f"kv:{key}".encode())


def keys_of(cluster: ValkeyCluster, port: int) -> list[str]:
    return [key for key in KEYS if cluster.owner(slot_of(key)) == port]


async def test_keys_are_spread_and_written_in_one_pipeline_for_each_primary(cluster, store):
    assert await store.write(items(5)) == {}
    assert await versions(store) == [5] * len(KEYS)
    sizes = [cluster.server(port).client.dbsize() for port in cluster.primaries]
    assert sum(sizes) == len(KEYS)
    assert min(sizes) > 50
    clients = [len(cluster.server(port).client.client_list(_type="normal")) for port in cluster.primaries]
    assert max(clients) <= 1 + 2, "this test's own, and one of the store for each of the two batches at most"


async def test_versions_only_grow(store):
    await store.write(items(6))
    await store.write(items(5))
    assert await versions(store) == [6] * len(KEYS)


async def test_slots_that_have_moved(cluster, store):
    await store.write(items(5))
    source, target, *_ = cluster.primaries
    moved = await asyncio.to_thread(cluster.move_slots, source, target, 250)
    assert any(slot_of(key) in moved for key in KEYS)
    assert await versions(store) == [5] * len(KEYS)
    assert await store.write(items(6)) == {}
    assert await versions(store) == [6] * len(KEYS)


async def test_a_slot_in_the_middle_of_its_move(cluster, store):
    """Its source answers ASK for keys that have moved. Several connections to the target are open."""
    source, target, *_ = cluster.primaries
    await store.write(items(5))
    await asyncio.gather(*(store._servers.check() for _ in range(4)))
    key = keys_of(cluster, source)[0]
    cluster.open_slots(source, target, [slot_of(key)])
    assert await versions(store, [key]) == [5], "it has not moved yet"
    cluster.move_keys(source, target, [slot_of(key)])
    for version in range(6, 12):
        assert await store.write(items(version, [key])) == {}
        assert await versions(store) == [version if one == key else 5 for one in KEYS]
    cluster.close_slots(source, target, [slot_of(key)])
    cluster.wait_ok()
    assert await store.write(items(12)) == {}
    assert await versions(store) == [12] * len(KEYS)


async def test_a_failover_in_agreement_loses_nothing(cluster, store):
    await store.write(items(5))
    for port in cluster.primaries:
        await asyncio.to_thread(cluster.failover, port)
        assert await versions(store) == [5] * len(KEYS)
    assert await store.write(items(6)) == {}, "new primaries do not have the script yet"
    assert await versions(store) == [6] * len(KEYS)


async def test_a_primary_that_is_away_takes_its_own_keys_away_only(cluster, store):
    await store.write(items(5))
    gone = cluster.primaries[0]
    its_keys = keys_of(cluster, gone)
    cluster.kill(cluster.replicas_of(gone)[0])
    cluster.kill(gone)
    refused = await store.write(items(6))
    assert sorted(refused) == sorted(its_keys)
    assert {refusal.code for refusal in refused.values()} == {"memory_unavailable"}
    assert not any(isinstance(refusal, KeyRefused) for refusal in refused.values())
    for key, answer in zip(KEYS, await versions(store), strict=True):
        assert isinstance(answer, Refused) if key in its_keys else answer == 6
    with pytest.raises(Refused, match="memory_unavailable") as caught:
        await store.check()
    assert f"{HOST}:{gone}" in caught.value.detail or "CLUSTERDOWN" in caught.value.detail
    cluster.start(gone)
    await asyncio.to_thread(cluster.wait_ok)
    assert await store.write(items(6)) == {}
    assert await versions(store) == [6] * len(KEYS)
    await store.check()


async def test_only_keys_of_a_stuck_primary_wait_for_it(cluster, store, monkeypatch):
    await store.write(items(5))
    stuck = cluster.primaries[0]
    its_keys = keys_of(cluster, stuck)
    others = [key for key in KEYS if key not in its_keys]
    cluster.kill(cluster.replicas_of(stuck)[0])
    cluster.server(stuck).pause()
    monkeypatch.setattr(redis_cluster, "AWAY_PAUSE_S", math.inf)
    asked = Counter()
    send = ClusterNode.execute_pipeline

    async def counted(node, commands):
        asked[node.port] += 1
        return await send(node, commands)

    monkeypatch.setattr(ClusterNode, "execute_pipeline", counted)
    try:
        reads = {key: asyncio.create_task(store.read(key)) for key in KEYS}
        assert {(await reads[key]).version for key in others} == {5}
        assert not any(reads[key].done() for key in its_keys)
        assert all(
            isinstance(one, Refused) for one in await asyncio.gather(*(reads[key] for key in its_keys), return_exceptions=True)
        )
        asked.clear()
        for version in (6, 7, 8):
            assert sorted(await store.write(items(version))) == sorted(its_keys)
        assert asked[stuck] == 0, "it is not asked again at once"
        assert await versions(store, others) == [8] * len(others)
    finally:
        cluster.server(stuck).resume()
    await asyncio.to_thread(cluster.wait_ok)
    await store.check()
    assert await store.write(items(9)) == {}, "the check has found it again"


async def test_calls_that_wait_for_a_cluster_that_is_away_get_one_answer(tmp_path, monkeypatch):
    (port,) = free_ports(1)
    attempts = Counter()
    read = NodesManager.initialize

    async def counted(manager, **options):
        attempts["all"] += 1
        await read(manager, **options)

    monkeypatch.setattr(NodesManager, "initialize", counted)
    monkeypatch.setattr(redis_cluster, "OPEN_PAUSE_S", math.inf)
    store = RedisStore(f"redis+cluster://{HOST}:{port}", "kv:")
    answers = await asyncio.gather(*(store.write(items(5)) for _ in range(20)), return_exceptions=True)
    assert all(isinstance(answer, Refused) for answer in answers)
    assert attempts["all"] == 1
    await store.close()


async def test_a_call_does_not_wait_for_a_connection_forever():
    permits = Permits(1, 0.01)
    async with permits:
        with pytest.raises(redis.exceptions.ConnectionError, match="DSS_CACHE_REDIS_CONNECTIONS_MAX"):
            async with permits:
                pass
    async with permits:
        pass


async def test_a_cluster_that_refuses_everything_is_used_again_later(cluster, store):
    """By default, all nodes refuse all keys when some slots have no primary."""
    await store.write(items(5))
    for port in cluster.running:
        cluster.server(port).client.config_set("cluster-require-full-coverage", "yes")
    gone = cluster.primaries[0]
    cluster.kill(cluster.replicas_of(gone)[0])
    cluster.kill(gone)

    def is_down() -> bool:
        return all(
            cluster.server(port).client.execute_command("CLUSTER INFO")["cluster_state"] == "fail" for port in cluster.running
        )

    await asyncio.to_thread(wait_until, is_down, 60, lambda: "the Cluster is not down")
    with pytest.raises(Refused, match="memory_unavailable"):
        await store.write(items(6))
    for port in cluster.running:
        cluster.server(port).client.config_set("cluster-require-full-coverage", "no")
    cluster.start(gone)
    await asyncio.to_thread(cluster.wait_ok)
    await store.check()
    assert await store.write(items(6)) == {}


async def test_a_replica_takes_over_from_a_primary_that_was_killed(cluster, store):
    await store.write(items(5))
    cluster.kill(cluster.primaries[0])
    await asyncio.to_thread(cluster.wait_ok)
    assert await store.write(items(6)) == {}, "the first call finds the new primary"
    assert await versions(store) == [6] * len(KEYS)
    await store.check()


async def test_a_primary_that_was_cut_off_leads_to_the_new_one(cluster, store, monkeypatch):
    """A node that does not see the others says CLUSTERDOWN, also while one of them has its slots."""
    await store.write(items(5))
    old = cluster.primaries[0]
    await asyncio.to_thread(cluster.failover, old)
    send = ClusterNode.execute_pipeline

    async def cut_off(node, commands):
        if node.port != old:
            return await send(node, commands)
        for command in commands:
            command.result = ClusterDownError("The cluster is down")
        return True

    monkeypatch.setattr(ClusterNode, "execute_pipeline", cut_off)
    assert await store.write(items(6)) == {}
    assert await versions(store) == [6] * len(KEYS)


async def test_write_backs_in_the_middle_of_failovers_and_moves(cluster, store):
    """What was written stays, a later version replaces it, and no older one is ever read after a newer one."""
    chance = random.Random(7)
    over = asyncio.Event()
    newest = dict.fromkeys(KEYS, 0)

    async def write() -> None:
        version = 0
        while not over.is_set():
            version += 1
            batch = chance.sample(KEYS, 50)
            refused = await store.write(items(version, batch))
            newest.update({key: version for key in batch if key not in refused})

    async def read() -> None:
        seen = dict.fromkeys(KEYS, 0)
        while not over.is_set():
            for key, answer in zip(KEYS, await versions(store), strict=True):
                if isinstance(answer, int):
                    assert answer >= seen[key], "an older version after a newer one"
                    seen[key] = answer

    tasks = [asyncio.create_task(write()), asyncio.create_task(read())]
    for _ in range(3):
        source, target, *_ = chance.sample(cluster.primaries, 3)
        await asyncio.to_thread(cluster.move_slots, source, target, 60)
        await asyncio.to_thread(cluster.failover, chance.choice(cluster.primaries))
    over.set()
    await asyncio.gather(*tasks)
    for key, answer in zip(KEYS, await versions(store), strict=True):
        assert isinstance(answer, int) or newest[key] == 0
        assert answer is None or answer >= newest[key]


async def test_nodes_that_were_all_away_are_found_again(tmp_path):
    """The store begins again with the nodes of its address."""
    with ValkeyCluster(tmp_path / "a", replicas=0) as cluster:
        store = RedisStore(cluster.url, "kv:")
        await store.write(items(5, ["a"]))
        for port in cluster.ports:
            cluster.kill(port)
        with pytest.raises(Refused, match="memory_unavailable"):
            await store.write(items(6, ["a"]))
        for port in cluster.ports:
            cluster.start(port)
        await asyncio.to_thread(cluster.wait_ok)
        assert await store.write(items(6, ["a"])) == {}
        await store.close()


async def test_few_connections_are_enough_for_many_reads(cluster, store):
    await store.write(items(5))
    narrow = RedisStore(f"{cluster.url}?max_connections=1", "kv:", timeout_s=60)
    reads = []
    for key in KEYS:
        reads.append(asyncio.create_task(narrow.read(key)))
        await asyncio.sleep(0)
    assert {found.version for found in await asyncio.gather(*reads)} == {5}
    await narrow.close()


async def test_an_address_of_the_other_kind_says_what_to_write(cluster):
    with make_valkey() as single:
        store = RedisStore(f"redis+cluster://{HOST}:{single.port}", "kv:")
        with pytest.raises(Refused, match=r"not part of a Cluster: REDIS_URL must begin with redis://"):
            await store.check()
        await store.close()
    store = RedisStore(f"redis://{HOST}:{cluster.primaries[0]}", "kv:")
    refused = await store.write(items(5))
    assert "REDIS_URL must begin with redis+cluster://" in next(iter(refused.values())).detail
    await store.close()
    nowhere = RedisStore(f"redis+cluster://:geheim@{HOST}:{free_ports(1)[0]}", "kv:")
    with pytest.raises(Refused, match="memory_unavailable") as caught:
        await nowhere.check()
    assert "geheim" not in str(caught.value)
    await nowhere.close()
