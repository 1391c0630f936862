"""The operations: put, get, delete, add, incr, several keys in one call, and diagnostics."""

from __future__ import annotations

import asyncio
import base64

import msgspec
import pytest

from dss_api import attached
from dss_api.errors import Refused
from dss_cache import clearing
from dss_cache import operations as ops
from dss_cache.core.commands import (
    AddRequest,
    ClearRequest,
    Delete,
    DeleteManyRequest,
    GetManyRequest,
    GetRequest,
    IncrRequest,
    LinesQuery,
    PutManyRequest,
    PutRequest,
    StatsQuery,
    Touch,
    TraceQuery,
)


class Client:
    """Calls operations on one node."""

    def __init__(self, cluster, name):
        self.cluster, self.name, self.node = cluster, name, cluster.nodes[name]

    async def put(self, key, value, **fields):
        return await ops.put(self.node, PutRequest(key=key, value=msgspec.Raw(msgspec.json.encode(value)), **fields))

    async def add(self, key, value, **fields):
        return await ops.add(self.node, AddRequest(key=key, value=msgspec.Raw(msgspec.json.encode(value)), **fields))

    async def get(self, key):
        answer = await ops.get(self.node, GetRequest(key=key))
        return {**msgspec.structs.asdict(answer), **msgspec.json.decode(attached.encode_text(answer))}

    async def delete(self, key, **fields):
        return await ops.delete(self.node, Delete(key=key, **fields))

    async def incr(self, key, delta=1, **fields):
        return await ops.incr(self.node, IncrRequest(key=key, delta=delta, **fields))

    async def touch(self, key, ttl_ms=0):
        return (await ops.touch(self.node, Touch(key=key, ttl_ms=ttl_ms))).body

    async def clear(self, prefix, **fields):
        answer = await ops.clear(self.node, ClearRequest(prefix=prefix, **fields))
        return answer.deleted, answer.remaining


@pytest.fixture
def one(cluster):
    return Client(cluster, "n1")


@pytest.fixture
def two(cluster):
    return Client(cluster, "n2")


@pytest.fixture
def three(cluster):
    return Client(cluster, "n3")


async def written_back(cluster):
    for cache in cluster.caches.values():
        await cache.write_back._write_due()
    await cluster.settle()


async def test_a_put_is_read_everywhere(one, two):
    put = await one.put("k", {"a": 1})
    assert (put.body["state"], put.code) == ("M", "")
    assert put.index > 0
    there = await two.get("k")
    assert (there["value"], there["found"], there["hit"], there["state"], there["node"]) == ({"a": 1}, True, False, "S", "n2")
    assert there["version"] == put.body["version"]


async def test_the_second_read_is_a_hit(one, two):
    await one.put("k", 1)
    await two.get("k")
    await two.get("k")
    again = await two.get("k")
    assert (again["hit"], again["value"]) == (True, 1)


async def test_the_writer_hits_its_own_line(one, cluster):
    await one.put("k", 1)
    first = await one.get("k")
    assert (first["hit"], first["state"]) == (True, "M")


async def test_a_key_without_a_value(one, cluster):
    nothing = await one.get("nobody")
    assert (nothing["value"], nothing["found"], nothing["version"], nothing["state"]) == (None, False, 0, "I")
    assert not cluster.nodes["n1"].directory.records, "a read of an unknown key leaves no record"


async def test_versions_grow_through_a_delete(one, two):
    versions = [(await one.put("k", 1)).body["version"], (await two.put("k", 2)).body["version"]]
    deleted = await one.delete("k")
    assert deleted.body["deleted"] is True
    versions.append(deleted.body["version"])
    assert (await two.get("k"))["found"] is False
    versions.append((await two.put("k", 3)).body["version"])
    assert versions == sorted(set(versions))


async def test_deleting_nothing(one):
    assert (await one.delete("k")).body["deleted"] is False


async def test_compare_and_set(one, two):
    version = (await one.put("k", 1)).body["version"]
    newer = (await two.put("k", 2, if_version=version)).body["version"]
    late = await one.put("k", 3, if_version=version)
    assert (late.code, late.body) == ("version_conflict", {"version": newer})
    assert (await one.get("k"))["value"] == 2


async def test_compare_and_set_of_a_key_that_was_never_written(one):
    assert (await one.put("k", 1, if_version=7)).code == "version_conflict"
    assert (await one.put("k", 1, if_version=0)).code == ""
    assert (await one.put("k", 1, if_version=0)).code == "version_conflict"
    await one.delete("k")
    assert (await one.put("k", 1, if_version=0)).code == "", "0: the key has no value"


async def test_delete_if_version(one):
    version = (await one.put("k", 1)).body["version"]
    assert (await one.delete("k", if_version=version + 1)).code == "version_conflict"
    assert (await one.delete("k", if_version=version)).body["deleted"] is True


async def test_add(one, two):
    assert (await one.add("k", 1)).code == ""
    refused = await two.add("k", 2)
    assert refused.code == "exists"
    await one.delete("k")
    assert (await two.add("k", 3)).code == ""


async def test_concurrent_incr_from_several_nodes(cluster):
    clients = [Client(cluster, name) for name in cluster.nodes]
    answers = await asyncio.gather(*(clients[i % 3].incr("n", 2) for i in range(30)))
    assert sorted(answer.body["value"] for answer in answers) == list(range(2, 61, 2))
    assert (await clients[0].get("n"))["value"] == 60


async def test_incr_of_a_clean_value(one, two, cluster):
    await one.put("n", 40)
    await written_back(cluster)
    assert cluster.nodes["n1"].directory.records["n"].value is None
    cluster.caches["n2"].lines.flush("test")
    assert (await two.incr("n", 2)).body["value"] == 42


async def test_incr_of_a_value_that_is_not_an_integer(one, cluster):
    await one.put("n", "text")
    refused = await one.incr("n")
    assert (refused.code, refused.body["field"]) == ("invalid", "key")
    await written_back(cluster)
    with pytest.raises(Refused, match="not an integer") as at_rest:
        await one.incr("n")
    assert at_rest.value.extra == {"field": "key"}


async def test_incr_stays_within_64_bits(one):
    await one.put("n", 2**63 - 1)
    refused = await one.incr("n")
    assert (refused.code, refused.body["field"]) == ("invalid", "delta")
    assert (await one.get("n"))["value"] == 2**63 - 1


async def test_time_to_live(one, two, cluster):
    await one.put("k", 1, ttl_ms=500)
    await two.get("k")
    cluster.pass_s(0.4)
    await cluster.settle()
    assert (await two.get("k"))["found"]
    cluster.pass_s(0.2)
    await cluster.settle()
    assert not (await two.get("k"))["found"]
    assert not (await one.get("k"))["found"]


async def test_a_put_without_ttl_removes_the_old_ttl(one, cluster):
    await one.put("k", 1, ttl_ms=500)
    await one.put("k", 2)
    cluster.pass_s(1)
    await cluster.settle()
    assert (await one.get("k"))["value"] == 2


async def test_touch_changes_the_time_to_live_and_nothing_else(one, two, cluster):
    version = (await one.put("k", 1, ttl_ms=500)).body["version"]
    assert (await two.get("k"))["hit"] is False
    assert await two.touch("k", 5000) == {"touched": True, "version": version}
    assert (await one.get("k"))["hit"] is (await two.get("k"))["hit"] is True, "the lines stay"
    cluster.pass_s(1)
    await cluster.settle()
    assert (await two.get("k"))["value"] == 1
    assert (await one.touch("k"))["touched"]
    cluster.pass_s(10)
    await cluster.settle()
    assert (await two.get("k"))["value"] == 1, "without a limit"
    await one.touch("k", 100)
    cluster.pass_s(1)
    await cluster.settle()
    assert (await two.get("k"))["found"] is False
    assert (await one.touch("k", 5000))["touched"] is False
    assert await one.touch("unknown") == {"touched": False, "version": 0}


async def test_incr_of_a_key_that_must_exist(one, two, cluster):
    refused = await one.incr("n", must_exist=True)
    assert (refused.code, refused.body) == ("not_found", {"detail": "the key has no value"})
    assert (await one.get("n"))["found"] is False
    await one.put("n", 40)
    assert (await two.incr("n", must_exist=True)).body["value"] == 41
    await cluster.settle()
    assert (await two.incr("n", must_exist=True)).body["value"] == 42, "a clean value"
    await one.delete("n")
    assert (await two.incr("n", must_exist=True)).code == "not_found"


async def test_a_value_of_bytes(one, two, cluster):
    data = bytes(range(256))
    text = base64.b64encode(data).decode()
    for rest in (lambda: None, cluster.settle):
        assert not (await one.put("k", text, encoding="base64")).code
        first, second = await two.get("k"), await two.get("k")
        assert (first["value"], first["encoding"], second["value"], second["hit"]) == (text, "base64", text, True)
        (item,) = (await ops.mget(one.node, GetManyRequest(keys=["k"]))).items
        shown = msgspec.json.decode(attached.encode_text(item))
        assert (shown["value"], shown["encoding"]) == (text, "base64")
        assert (await one.incr("k")).code == "invalid"
        if waiting := rest():
            await waiting
    await one.put("k", text)
    assert (await two.get("k"))["encoding"] is msgspec.UNSET, "a string that happens to be Base64"
    assert not (await one.add("empty", "", encoding="base64")).code
    assert (await two.get("empty"))["value"] == ""


@pytest.mark.parametrize("value", ["not Base64", "YQ", "YQ==\n", 7, None, "\u00e9"])
async def test_what_is_not_base64_is_refused(one, value):
    with pytest.raises(Refused) as refusal:
        await one.put("k", value, encoding="base64")
    assert (refusal.value.code, refusal.value.extra["field"]) == ("invalid", "value")


async def test_bytes_need_members_that_know_them(one, monkeypatch):
    monkeypatch.setattr(one.node.replica, "cluster_version", 4)
    with pytest.raises(Refused) as refusal:
        await one.put("k", "YQ==", encoding="base64")
    assert refusal.value.code == "not_supported_yet"


async def test_bytes_that_should_be_attached_and_are_not(one):
    with pytest.raises(Refused) as refusal:
        await one.put("k", 4, encoding="attached")
    assert (refusal.value.code, refusal.value.extra["field"]) == ("invalid", "value")


async def test_mdelete(one, two):
    for key in ("a", "b"):
        await one.put(key, key)
    assert (await two.get("b"))["found"]
    result = await ops.mdelete(one.node, DeleteManyRequest(keys=["a", "b", "c"]))
    assert [(item["key"], item["ok"], item["deleted"]) for item in result.body["items"]] == [
        ("a", True, True),
        ("b", True, True),
        ("c", True, False),
    ]
    assert (await two.get("b"))["found"] is False


async def test_clear_deletes_what_begins_with_the_prefix(one, two):
    for key in ("user/1", "user/2", "user", "users"):
        await one.put(key, key)
    assert (await two.get("user/1"))["found"]
    assert await two.clear("user/") == (2, 0)
    assert [(await one.get(key))["found"] for key in ("user/1", "user/2", "user", "users")] == [False, False, True, True]
    assert await two.clear("user/") == (0, 0)
    assert await two.clear("") == (2, 0)


async def test_a_clear_in_parts_spares_newer_values(one, monkeypatch):
    monkeypatch.setattr(clearing, "KEYS_PER_CLEAR_MAX", 2)
    monkeypatch.setattr(clearing, "KEYS_PER_TURN", 1)
    for key in "abc":
        await one.put(key, key)
    answer = await ops.clear(one.node, ClearRequest(prefix=""))
    assert (answer.deleted, answer.remaining) == (2, 1)
    await one.put("a", "new")
    assert await one.clear("", up_to_version=answer.up_to_version) == (1, 0)
    assert (await one.get("a"))["value"] == "new"


async def test_incr_keeps_the_time_to_live(one, cluster):
    await one.incr("n", ttl_ms=500)
    await one.incr("n")
    cluster.pass_s(1)
    await cluster.settle()
    assert (await one.incr("n")).body["value"] == 1


async def test_several_keys_in_one_call(cluster, one, two):
    items = [PutRequest(key=f"k{i}", value=msgspec.Raw(b"%d" % i)) for i in range(5)]
    items.append(PutRequest(key="k0", value=msgspec.Raw(b"9"), if_version=1))
    result = await ops.mput(one.node, PutManyRequest(items=items))
    assert [item["ok"] for item in result.body["items"]] == [True] * 5 + [False]
    assert result.body["items"][5]["code"] == "version_conflict"
    entries = len(cluster.log)
    got = await ops.mget(two.node, GetManyRequest(keys=["k3", "k1", "none", "k3"]))
    assert [(i.key, bytes(i.value), i.found) for i in got.items] == [
        ("k3", b"3", True),
        ("k1", b"1", True),
        ("none", b"null", False),
        ("k3", b"3", True),
    ]
    assert len(cluster.log) == entries + 1, "one fetch for all"


async def test_a_value_too_large(one):
    with pytest.raises(Refused, match="too_large"):
        await one.put("k", "x" * 1000)


async def test_the_lines_of_every_node(cluster, one, two):
    await one.put("k", 1)
    await two.get("k")
    body = (await ops.lines(one.node, LinesQuery(key="k"))).body
    assert [(row["node"], row["state"]) for row in body["lines"]] == [("n1", "S"), ("n2", "S"), ("n3", "I")]
    own = (await ops.lines(two.node, LinesQuery())).body
    assert (own["count"], own["lines"][0]["key"]) == (1, "k")


async def test_the_trace_of_a_key(one, two):
    await one.put("k", 1)
    await two.get("k")
    await two.put("k", 2)
    body = (await ops.trace(one.node, TraceQuery(key="k"))).body
    steps = [(row["node"], row["from"], row["to"], row["why"]) for row in body["transitions"]]
    assert sorted(steps) == sorted(
        [
            ("n1", "I", "M", "put"),
            ("n1", "M", "S", "fetched by n2"),
            ("n2", "I", "S", "fetched"),
            ("n1", "S", "I", "put on n2"),
            ("n2", "S", "M", "put"),
        ]
    )


async def test_stats(cluster, one, two):
    await one.put("k", 1)
    await one.get("k")
    await two.get("k")
    await two.put("k", 2)
    first = msgspec.structs.asdict(await ops.stats(one.node, StatsQuery()))
    assert (first["hits"], first["misses"], first["puts"], first["invalidations"], first["keys"]) == (1, 0, 1, 1, 1)
    second = msgspec.structs.asdict(await ops.stats(two.node, StatsQuery()))
    assert (second["hits"], second["misses"], second["puts"], second["items"]) == (0, 1, 1, 1)


async def test_one_value_is_not_sent_a_thousand_times(two, monkeypatch):
    """The same key may be named often in one call, and its answer would be as long as memory."""
    monkeypatch.setattr(ops, "BYTES_PER_MGET_MAX", 1000)
    await ops.put(two.node, PutRequest(key="k", value=msgspec.Raw(b'"' + b"x" * 398 + b'"')))
    assert len((await ops.mget(two.node, GetManyRequest(keys=["k", "k"]))).items) == 2
    with pytest.raises(Refused) as refused:
        await ops.mget(two.node, GetManyRequest(keys=["k"] * 1000))
    assert (refused.value.code, refused.value.extra["field"]) == ("too_large", "keys")


async def test_a_read_of_too_many_bytes_ends_before_all_are_read(cluster, one, two, monkeypatch):
    """100 values of 500 bytes are in the backing store, and the limit is 5,000 bytes: the others are not needed."""
    keys = [f"k{number}" for number in range(100)]
    for key in keys:
        await one.put(key, "x" * 498)
    await cluster.caches["n1"].write_back._write_due()
    await cluster.settle()
    monkeypatch.setattr(ops, "BYTES_PER_MGET_MAX", 5000)
    cluster.store.open.clear()
    large = asyncio.create_task(ops.mget(two.node, GetManyRequest(keys=keys)))
    await cluster.settle()
    # Another call has joined the fetch of a key that is given up.
    joined = asyncio.create_task(ops.mget(two.node, GetManyRequest(keys=["k99", "k98"])))
    await cluster.settle()
    reads = cluster.store.reads
    cluster.store.open.set()
    with pytest.raises(Refused) as refused:
        await large
    assert (refused.value.code, refused.value.extra["field"]) == ("too_large", "keys")
    async with asyncio.timeout(60):
        assert [item.found for item in (await joined).items] == [True, True]
    assert reads == 5, "as many as have room if each has the largest length"
    assert cluster.store.reads <= 15 + 2
    assert (await ops.mget(two.node, GetManyRequest(keys=keys[:10]))).items[9].found
