"""The promise in the running service: which calls wait, what leases prevent, and failures of nodes, leaders and backing stores."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from dss_api.errors import Refused
from dss_cache import operations as ops
from dss_cache.answers import PutManyAnswer
from dss_cache.core.commands import ClearRequest, Delete, GetManyRequest, GetRequest, PutManyRequest, PutRequest, StatsQuery
from dss_cache.writeback import BATCH_KEYS


class Client:
    """Calls on the nodes of a cluster."""

    def __init__(self, cluster):
        self.cluster = cluster

    async def put(self, node, key, value, **fields):
        request = PutRequest(key=key, value=msgspec.Raw(msgspec.json.encode(value)), **fields)
        return (await ops.put(self.cluster.nodes[node], request)).body["version"]

    async def get(self, node, key):
        answer = await ops.get(self.cluster.nodes[node], GetRequest(key=key))
        return {**msgspec.structs.asdict(answer), "value": msgspec.json.decode(answer.value)}

    async def value(self, node, key):
        return (await self.get(node, key))["value"]

    async def warm(self, node, key):
        """Read until the node answers from its line."""
        for _ in range(5):
            if (await self.get(node, key))["hit"]:
                return
            await self.cluster.settle()
        raise AssertionError("no hit")


@pytest.fixture
def client(cluster):
    return Client(cluster)


async def begin(cluster, coroutine):
    task = asyncio.create_task(coroutine)
    await cluster.settle()
    return task


async def until(condition):
    while not condition():  # noqa: ASYNC110  (there is no event for every condition)
        await asyncio.sleep(0.001)


def record(cluster, key, node="n1"):
    return cluster.nodes[node].directory.records.get(key)


async def write_back(cluster, node):
    await cluster.caches[node].write_back._write_due()
    await cluster.settle()


# -------------------------------------------------------- sharers and leases


async def test_a_put_waits_until_a_sharer_has_dropped_its_line(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.nodes["n3"].is_held = True
    put = await begin(cluster, client.put("n1", "k", 2))
    assert not put.done()
    assert await client.value("n3", "k") == 1, "its lease is valid, and no client has seen the new value"
    reader = await begin(cluster, client.value("n2", "k"))
    assert not reader.done(), "the new value is not shown while n3 may show the old one"
    writer = await begin(cluster, client.value("n1", "k"))
    assert not writer.done(), "not even the writer"
    cluster.nodes["n3"].is_held = False
    cluster.apply_all()
    await put
    assert await reader == await writer == 2
    assert await client.value("n3", "k") == 2


@pytest.mark.parametrize("value", [None, 2])
async def test_a_clear_waits_for_what_other_calls_have_changed(cluster, client, value):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.nodes["n3"].is_held = True
    up_to = cluster.caches["n2"].directory.stamp
    change = ops.delete(cluster.nodes["n1"], Delete(key="k")) if value is None else client.put("n1", "k", value)
    changed = await begin(cluster, change)
    clear = await begin(cluster, ops.clear(cluster.nodes["n2"], ClearRequest(prefix="", up_to_version=up_to)))
    assert await client.value("n3", "k") == 1
    assert not clear.done(), "a read after it must not find the value that it was to delete"
    cluster.nodes["n3"].is_held = False
    cluster.apply_all()
    await changed
    assert (await clear).deleted == 0
    assert await client.value("n3", "k") == value


async def test_a_put_without_sharers_does_not_wait(cluster, client):
    cluster.cut("n2", "n3")
    await client.put("n1", "k", 1)
    await client.put("n1", "k", 2)


async def test_a_sharer_that_is_cut_off_delays_a_put_by_its_lease_once(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.cut("n3")
    put = await begin(cluster, client.put("n1", "k", 2))
    cluster.tick()
    cluster.now += 0.9
    cluster.tick()
    await cluster.settle()
    assert not put.done(), "its lease may still be valid"
    assert await client.value("n3", "k") == 1
    cluster.now += 0.2
    cluster.tick()
    await cluster.settle()
    await put
    async with asyncio.timeout(60):
        await client.put("n1", "k", 3)
    assert cluster.caches["n3"].near.hit("k", cluster.now) is None, "without a lease no line answers"
    cluster.heal()
    await cluster.settle()
    assert await client.value("n3", "k") == 3


async def test_a_paused_sharer_reads_the_new_value_when_it_resumes(cluster, client):
    """It resumes with a line, an expired lease, and entries that it has not applied yet."""
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.cut("n3")
    put = await begin(cluster, client.put("n1", "k", 2))
    cluster.tick()
    cluster.now += 1.5
    cluster.tick()
    await put
    cluster._cut.clear()  # the links are up, nothing has been applied
    reader = await begin(cluster, client.value("n3", "k"))
    assert not reader.done()
    cluster.heal()
    assert await reader == 2


async def test_an_idle_sharer_keeps_its_other_lines(cluster, client):
    """Its lease has expired because no client read; it acknowledges the write in time."""
    await client.put("n1", "k", 1)
    await client.put("n1", "other", 1)
    await client.warm("n3", "k")
    await client.warm("n3", "other")
    cluster.now += 10
    cluster.nodes["n3"].is_held = True
    put = await begin(cluster, client.put("n1", "k", 2))
    cluster.nodes["n1"].tick()
    cluster.nodes["n3"].is_held = False
    cluster.apply_all()
    await put
    cluster.now += 0.5
    cluster.tick()
    await cluster.settle()
    assert cluster.caches["n3"].lines.get("other") is not None


async def test_the_next_read_renews_an_expired_lease_and_uses_the_line(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.now += 10
    entries = len(cluster.log)
    assert (await client.get("n3", "k"))["hit"]
    assert len(cluster.log) == entries, "no fetch was needed"


async def test_no_lease_without_a_leader(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n1", "k")
    cluster.leader = ""
    cluster.refusal = Refused("no_leader")
    assert (await client.get("n1", "k"))["hit"], "until the lease ends"
    cluster.now += 2
    with pytest.raises(Refused, match="no_leader"):
        await client.get("n1", "k")


async def test_leases_are_renewed_only_while_the_node_is_in_use(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n2", "k")
    for _ in range(20):
        cluster.now += 0.2
        cluster.tick()
        await cluster.settle()
        assert cluster.caches["n2"].near.hit("k", cluster.now) is not None, "renewed in the background"
    for _ in range(20):
        cluster.now += 0.2
        cluster.tick()
        await cluster.settle()
    assert cluster.caches["n2"].near.lease.valid_until < cluster.now, "an idle node does not renew"


async def test_nodes_with_different_settings_agree_on_the_length_of_leases(make_cluster):
    """n1 leads and grants n3 a lease of 5 s. Then n2 leads, which grants leases of 1 s."""
    cluster = make_cluster()
    client = Client(cluster)
    cluster.caches["n1"].peers.granted.lease_s = 5.0
    cluster.elect("n1")
    cluster.tick()
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.cut("n3")
    cluster.elect("n2")
    put = await begin(cluster, client.put("n1", "k", 2))
    for _ in range(23):
        cluster.now += 0.2
        cluster.tick()
        await cluster.settle()
    assert cluster.caches["n3"].near.hit("k", cluster.now) is not None
    assert not put.done()
    for _ in range(3):
        cluster.now += 0.2
        cluster.tick()
        await cluster.settle()
    assert cluster.caches["n3"].near.hit("k", cluster.now) is None
    await put
    assert cluster.nodes["n2"].directory.lease_ms == 1000, "from now on leases are shorter"


async def test_a_new_leader_waits_for_leases_it_did_not_grant(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.cut("n3")
    cluster.elect("n2")
    put = await begin(cluster, client.put("n1", "k", 2))
    cluster.tick()
    await cluster.settle()
    cluster.now += 0.9
    cluster.tick()
    await cluster.settle()
    assert not put.done()
    cluster.now += 0.2
    cluster.tick()
    await put


async def test_a_lost_acknowledgement_is_requested_again(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster._cut.add(frozenset(("n1", "n3")))  # the leader n1 is connected to n3 only through n2
    put = await begin(cluster, client.put("n2", "k", 2))
    await put
    put = await begin(cluster, client.put("n1", "k", 3))
    await client.warm("n3", "k")
    put = await begin(cluster, client.put("n1", "k", 4))
    async with asyncio.timeout(60):
        assert await put


# -------------------------------------------------------------------- fetches


async def test_concurrent_misses_share_one_fetch(cluster, client):
    await client.put("n1", "k", 1)
    entries = len(cluster.log)
    answers = await asyncio.gather(*(client.value("n2", "k") for _ in range(20)))
    assert answers == [1] * 20
    assert len(cluster.log) == entries + 1


async def test_an_overtaken_fetch_is_used_once_and_not_installed(cluster, client):
    await client.put("n1", "k", 1)
    await write_back(cluster, "n1")
    cluster.store.open.clear()
    early = await begin(cluster, client.value("n2", "k"))
    assert cluster.store.reads == 1
    await client.put("n1", "k", 2)
    late = await begin(cluster, client.value("n2", "k"))
    cluster.store.open.set()
    assert await early == 1, "it overlaps with the write"
    assert await late == 2, "it began after the write was answered"
    assert await client.value("n2", "k") == 2
    assert cluster.caches["n2"].lines.get("k").value == b"2"


async def test_a_cancelled_reader_does_not_break_the_fetch_of_others(cluster, client):
    await client.put("n1", "k", 1)
    await write_back(cluster, "n1")
    cluster.store.open.clear()
    first = await begin(cluster, client.value("n2", "k"))
    second = await begin(cluster, client.value("n2", "k"))
    first.cancel()
    await cluster.settle()
    cluster.store.open.set()
    assert await second == 1


async def test_a_store_that_is_ahead_leads_to_another_fetch(cluster, client):
    """Another node has written back a newer version before this node has applied that write."""
    await client.put("n1", "k", 1)
    await write_back(cluster, "n1")
    cluster.store.open.clear()
    reader = await begin(cluster, client.get("n2", "k"))
    cluster.nodes["n2"].is_held = True
    put = await begin(cluster, client.put("n1", "k", 2))
    await write_back(cluster, "n1")
    cluster.store.open.set()
    await cluster.settle()
    assert not reader.done()
    cluster.nodes["n2"].is_held = False
    cluster.apply_all()
    assert (await reader)["value"] == 2
    await put


# -------------------------------------------------------------- backing store


async def test_write_back_changes_m_to_e_and_drops_the_value_from_the_directory(cluster, client):
    version = await client.put("n1", "k", 1)
    assert cluster.caches["n1"].lines.get("k").state == "M"
    await write_back(cluster, "n1")
    assert cluster.caches["n1"].lines.get("k").state == "E"
    assert (record(cluster, "k").value, record(cluster, "k").dirty) == (None, False)
    assert cluster.store.items["k"] == ("k", version, b"1")
    assert await client.value("n3", "k") == 1


async def test_only_the_owner_writes_back(cluster, client):
    await client.put("n1", "k", 1)
    await write_back(cluster, "n2")
    assert not cluster.store.items
    await write_back(cluster, "n1")
    assert cluster.store.items


async def test_nothing_is_written_back_while_the_directory_may_be_half_changed(cluster, client):
    await client.put("n1", "k", 1)
    cluster.nodes["n1"].unusable_reason = "an entry cannot be applied"
    with pytest.raises(Refused, match="not_ready"):
        await write_back(cluster, "n1")
    assert not cluster.store.items
    cluster.nodes["n1"].unusable_reason = ""
    await write_back(cluster, "n1")
    assert cluster.store.items


async def test_a_write_back_that_a_write_overtook_cleans_nothing(cluster, client):
    await client.put("n1", "k", 1)
    newer = await client.put("n2", "k", 2)
    await write_back(cluster, "n1")
    assert record(cluster, "k").dirty
    await write_back(cluster, "n2")
    assert cluster.store.items["k"].version == newer


async def test_the_leader_writes_back_for_a_dead_owner(cluster, client):
    await client.put("n3", "k", 1)
    cluster.cut("n3")
    for _ in range(3):
        cluster.now += 10
        cluster.tick()
    await write_back(cluster, "n1")
    assert cluster.store.items["k"].value == b"1"
    assert await client.value("n2", "k") == 1


async def test_a_deleted_key_leaves_the_directory_when_the_store_has_the_deletion(cluster, client):
    await client.put("n1", "k", 1)
    await write_back(cluster, "n1")
    await ops.delete(cluster.nodes["n1"], Delete(key="k"))
    assert record(cluster, "k").absent
    await write_back(cluster, "n1")
    assert record(cluster, "k") is None
    assert cluster.store.items["k"].value is None


async def test_a_deletion_is_kept_while_a_node_may_hold_the_line(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    cluster.nodes["n3"].is_held = True
    deletion = await begin(cluster, ops.delete(cluster.nodes["n1"], Delete(key="k")))
    await write_back(cluster, "n1")
    assert record(cluster, "k") is not None
    cluster.nodes["n3"].is_held = False
    cluster.apply_all()
    await deletion
    await write_back(cluster, "n1")
    assert record(cluster, "k") is None


async def test_a_lost_value_is_not_found_and_never_old(cluster, client):
    await client.put("n1", "k", 1)
    await write_back(cluster, "n1")
    old = cluster.store.items["k"]
    version = await client.put("n1", "k", 2)
    await write_back(cluster, "n1")
    cluster.store.items["k"] = old  # a failover to a replica that lagged
    lost = await client.get("n2", "k")
    assert (lost["found"], lost["value"]) == (False, None)
    assert lost["version"] > version
    assert cluster.caches["n2"].reader.lost == 1
    assert (await ops.add(cluster.nodes["n3"], PutRequest(key="k", value=msgspec.Raw(b"3")))).code == ""
    assert await client.value("n1", "k") == 3


async def test_a_value_of_an_earlier_cluster_is_not_used(cluster, client):
    await client.put("n1", "k", 1)
    await write_back(cluster, "n1")
    cluster.store.items["k"] = cluster.store.items["k"]._replace(version=10**17, value=b"666")
    assert not (await client.get("n2", "k"))["found"]
    await client.put("n2", "k", 2)
    await write_back(cluster, "n2")
    cluster.caches["n1"].lines.flush("test")
    assert await client.value("n1", "k") == 2, "the new version is above the one that was found"


async def test_without_the_store_lines_and_dirty_values_are_served_and_misses_refused(cluster, client):
    await client.put("n1", "clean", 1)
    await write_back(cluster, "n1")
    await client.warm("n1", "clean")
    cluster.store.is_down = True
    await client.put("n1", "dirty", 2)
    assert await client.value("n1", "clean") == 1
    assert await client.value("n2", "dirty") == 2
    with pytest.raises(Refused, match="memory_unavailable"):
        await client.get("n2", "clean")
    got = asyncio.create_task(ops.mget(cluster.nodes["n2"], GetManyRequest(keys=["clean", "dirty"])))
    with pytest.raises(Refused, match="memory_unavailable"):
        await got
    cluster.store.is_down = False
    assert await client.value("n2", "clean") == 1


async def test_write_back_continues_when_the_store_is_back(make_cluster):
    cluster = make_cluster(cache_write_back_ms=1)
    client = Client(cluster)
    cache = cluster.caches["n1"]
    cluster.store.is_down = True
    await cache.start()
    await client.put("n1", "k", 1)
    await until(lambda: cache.write_back.trouble)
    cluster.store.is_down = False
    await until(lambda: not record(cluster, "k").dirty)
    assert cluster.store.items["k"].value == b"1"
    await until(lambda: cache.write_back.trouble == "")


async def test_keys_whose_part_of_the_store_is_away_stay_dirty_and_delay_no_other(make_cluster):
    cluster = make_cluster(cache_write_back_ms=1)
    client, cache = Client(cluster), cluster.caches["n1"]
    gone = {f"gone{number}" for number in range(2 * BATCH_KEYS)}
    cluster.store.is_down = True
    await cache.start()
    for key in ("before", *sorted(gone), "after"):
        await client.put("n1", key, 1)
    cluster.store.is_down, cluster.store.away = False, gone
    await until(lambda: not record(cluster, "before").dirty and not record(cluster, "after").dirty)
    assert cache.write_back.trouble == "a part of it is away"
    assert cache.write_back.due.keys() | cache.write_back.away.keys() == gone
    assert await client.value("n2", "gone0") == 1, "the directory has it"
    await client.put("n1", "meanwhile", 1)
    await until(lambda: not record(cluster, "meanwhile").dirty)
    with pytest.raises(Refused, match="memory_unavailable"):
        await cache.write_back.write_now("gone0")
    cluster.store.away = set()
    await until(lambda: not cache.write_back.due and not cache.write_back.away and cache.write_back.trouble == "")
    assert gone <= cluster.store.items.keys()


async def test_a_part_of_the_store_that_stays_away_does_not_change_when_other_keys_are_written(make_cluster, monkeypatch):
    delay_s, now, loop = 1.0, 1000.0, asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: now)
    cluster = make_cluster(cache_write_back_ms=int(delay_s * 1000))
    client, cache, store = Client(cluster), cluster.caches["n1"], cluster.store
    store.away = {"a"}
    await cache.start()
    await client.put("n1", "a", 1)
    while store.attempts["a"] < 6:
        now += 0.1
        await cluster.settle()
    await client.put("n1", "b", 1)
    now += 0.9 * delay_s
    await cluster.settle()
    assert "b" not in store.items
    now += 0.2 * delay_s
    await cluster.settle()
    assert "b" in store.items
    await client.put("n1", "c", 1)
    cache.write_back.write_soon()
    await cluster.settle()
    assert "c" in store.items
    await client.put("n1", "a", 2)
    now += 1.1 * delay_s
    await cluster.settle()
    assert store.attempts["a"] == 6, "its pause goes on"
    assert cache.write_back.trouble == "a part of it is away"
    store.away = set()
    now += 5
    await cluster.settle()
    now += 1.1 * delay_s
    await cluster.settle()
    assert store.items["a"].value == b"2"
    assert cache.write_back.trouble == ""


async def test_what_works_does_not_hide_that_a_part_of_the_store_is_away(make_cluster):
    cluster = make_cluster(cache_write_back_ms=1)
    client, cache = Client(cluster), cluster.caches["n1"]
    await client.put("n2", "gone", 1)
    await write_back(cluster, "n2")
    cluster.caches["n2"].lines.flush("test")
    cluster.store.away = {"gone"}
    with pytest.raises(Refused, match="memory_unavailable"):
        await client.get("n1", "gone")
    await client.put("n1", "here", 1)
    await cache.write_back.write_now("here")
    assert not record(cluster, "here").dirty
    assert cache.write_back.trouble == "a part of it is away"
    await cache.start()
    cluster.store.away = set()
    await until(lambda: cache.write_back.trouble == "")


async def test_a_store_that_is_down_at_start_is_reported_until_it_is_back(make_cluster):
    cluster = make_cluster(cache_write_back_ms=1)
    cache = cluster.caches["n1"]
    cluster.store.is_down = True
    await cache.start()
    await until(lambda: cache.write_back.trouble == "it is down")
    cluster.store.is_down = False
    await until(lambda: cache.write_back.trouble == "")


async def test_a_miss_without_a_store_is_reported_until_the_store_is_back(make_cluster):
    cluster = make_cluster(cache_write_back_ms=1)
    client, cache = Client(cluster), cluster.caches["n2"]
    await client.put("n1", "k", 1)
    await write_back(cluster, "n1")
    await cache.start()
    cluster.store.is_down = True
    with pytest.raises(Refused, match="memory_unavailable"):
        await client.get("n2", "k")
    assert cache.write_back.trouble == "it is down"
    cluster.store.is_down = False
    await until(lambda: cache.write_back.trouble == "")


async def test_a_missing_leader_is_not_reported_as_a_failure_of_the_store(make_cluster):
    cluster = make_cluster(cache_write_back_ms=1)
    await Client(cluster).put("n1", "k", 1)
    cache = cluster.caches["n1"]
    cluster.refusal = Refused("no_leader")
    await cache.start()
    await until(lambda: cluster.store.items)
    await cluster.settle()
    assert cache.write_back.trouble == ""


async def test_a_setting_limits_the_bytes_of_lines(make_cluster):
    cluster = make_cluster(cache_max_bytes=10_000)
    client = Client(cluster)
    for number in range(30):
        await client.put("n1", f"k{number}", "x" * 500)
        await client.value("n2", f"k{number}")
    lines = cluster.caches["n2"].lines
    assert (len(lines), lines.bytes <= 10_000) == (11, True)


async def test_dirty_values_are_limited(make_cluster):
    cluster = make_cluster()
    client = Client(cluster)
    for node in cluster.nodes.values():
        node.directory.limits.maxima |= {"cache_keys_max": 3, "cache_dirty_bytes_max": 10}
    await client.put("n1", "a", "12345")
    result = await ops.put(cluster.nodes["n1"], PutRequest(key="b", value=msgspec.Raw(b'"12345"')))
    assert (result.code, result.body["limit"]) == ("over_limit", "cache_dirty_bytes_max")
    many = await ops.mput(cluster.nodes["n1"], PutManyRequest(items=[PutRequest(key="b", value=msgspec.Raw(b'"12345"'))]))
    (item,) = msgspec.convert(many.body, PutManyAnswer).items
    assert (item.code, item.limit, item.maximum) == ("over_limit", "cache_dirty_bytes_max", 10)


async def test_stop_writes_back(cluster, client):
    await client.put("n1", "k", 1)
    await cluster.caches["n1"].stop()
    assert cluster.store.items["k"].value == b"1"


# ------------------------------------------------------------------ snapshots


async def test_a_node_that_restored_a_snapshot_trusts_no_line(cluster, client):
    await client.put("n1", "k", 1)
    await client.warm("n3", "k")
    held = cluster.nodes["n3"]
    held.is_held = True
    put = await begin(cluster, client.put("n1", "k", 2))
    assert not put.done()
    source = cluster.nodes["n1"]
    held.part.before_restore()
    held.directory.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(source.directory.snapshot())))
    held.applied_index = source.applied_index
    await held.part.load(memoryview(b""))
    held.is_held = False
    await put
    assert await client.value("n3", "k") == 2


# ----------------------------------------------- keys that the store refuses


async def test_a_key_that_the_store_refuses_is_written_back_later_and_delays_no_other(make_cluster):
    cluster = make_cluster(cache_write_back_ms=1)
    client, service = Client(cluster), cluster.caches["n1"]
    await service.start()
    cluster.store.refused.add("bad")
    for key in ("bad", "good"):
        await client.put("n1", key, 1)
    await until(lambda: not record(cluster, "good").dirty and "bad" not in service.write_back.due)
    assert record(cluster, "bad").dirty
    assert await client.value("n2", "bad") == 1, "the directory has it"
    assert not service.write_back.trouble
    assert "`bad`" in (await ops.stats(cluster.nodes["n1"], StatsQuery())).memory_trouble
    with pytest.raises(Refused, match="memory_unavailable"):
        await service.write_back.write_now("bad")
    cluster.store.refused.clear()
    await until(lambda: not record(cluster, "bad").dirty)
    assert (await ops.stats(cluster.nodes["n1"], StatsQuery())).memory_trouble == ""


async def test_a_key_that_the_store_refuses_fails_its_own_reads_only(cluster, client):
    for key in ("bad", "good"):
        await client.put("n1", key, 1)
    await write_back(cluster, "n1")
    cluster.store.refused.add("bad")
    with pytest.raises(Refused, match="memory_unavailable"):
        await client.value("n2", "bad")
    assert await client.value("n2", "good") == 1
    assert not cluster.caches["n2"].write_back.trouble, "the store works"


async def test_write_back_goes_on_after_a_fault_of_this_program(make_cluster, monkeypatch):
    monkeypatch.setattr("dss_api.supervised.PAUSE_S_MIN", 0.0)
    cluster = make_cluster(cache_write_back_ms=1)
    client, service = Client(cluster), cluster.caches["n1"]
    write = cluster.store.write

    async def fail_once(items):
        cluster.store.write = write
        raise ValueError("a fault")

    cluster.store.write = fail_once
    await service.start()
    await client.put("n1", "k", 1)
    await until(lambda: not record(cluster, "k").dirty)
