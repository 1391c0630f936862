"""Near caches on real nodes: a read never returns what was there before a change that has been answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dss_client import AsyncClient, Client, Forbidden, NearCache
from dss_dev.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def url(real_node: LocalCluster) -> str:
    return real_node.nodes[0].url


@pytest.fixture(scope="module")
def near(url: str, token: str) -> Iterator[Client]:
    with Client(url, token, near_cache=True) as client:
        yield client


@pytest.fixture(scope="module")
def other(url: str, token: str) -> Iterator[Client]:
    with Client(url, token) as client:
        yield client


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return request.node.name


def hold(client: Client, key: str) -> None:
    """Read until the near cache answers."""
    until(lambda: client.cache.entry(key).hit and key in client.near_cache.holding)  # type: ignore[union-attr]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


CHANGES: dict[str, Callable[[Client, str], Any]] = {
    "put": lambda client, key: client.cache.put(key, 8),
    "cas": lambda client, key: client.cache.cas(key, 8, client.cache.entry(key).version),
    "mput": lambda client, key: client.cache.mput({key: 8}),
    "incr": lambda client, key: client.cache.incr(key),
    "delete": lambda client, key: client.cache.delete(key),
    "mdelete": lambda client, key: client.cache.mdelete([key]),
    "clear": lambda client, key: client.cache.clear(key),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_own", [True, False])
def test_a_change_is_seen_as_soon_as_it_is_answered(near: Client, other: Client, key: str, change: str, is_own: bool) -> None:
    other.cache.put(key, 7)
    hold(near, key)
    CHANGES[change](near if is_own else other, key)
    assert near.cache.get(key) == (None if change in ("delete", "mdelete", "clear") else 8)


def test_a_value_that_expired_is_gone_for_all_at_the_same_time(near: Client, other: Client, key: str) -> None:
    other.cache.put(key, 7, ttl=1)
    hold(near, key)
    until(lambda: other.cache.get(key) is None)
    assert near.cache.get(key) is None


def test_a_touch_keeps_the_value(near: Client, other: Client, key: str) -> None:
    other.cache.put(key, 7, ttl=1000)
    hold(near, key)
    assert other.cache.touch(key, 2000)
    assert near.cache.get(key) == 7


def test_bytes_and_documents(near: Client, other: Client, key: str) -> None:
    for value in (b"\x00\xff", {"a": [1, None]}, "ä", True):
        other.cache.put(key, value)
        hold(near, key)
        assert near.cache.get(key) == value
        assert near.cache.mget([key, "unknown"]) == {key: value}


async def test_an_event_loop_that_is_blocked_for_seconds(url: str, token: str, other: Client, key: str) -> None:
    other.cache.put(key, "old")
    async with AsyncClient(url, token, near_cache=True) as client:
        assert client.near_cache is not None
        while not client.near_cache.statistics().hits:
            await client.cache.get(key)
        puts = [threading.Thread(target=other.cache.put, args=(key, value)) for value in ("new", "newest")]
        for put in puts:
            put.start()
            put.join()
        time.sleep(1)  # noqa: ASYNC251
        assert await client.cache.get(key) == "newest"
        await asyncio.sleep(0.1)
        other.cache.put(key, "last")
        assert await client.cache.get(key) == "last"


def test_a_token_without_the_right_to_a_key(url: str, near: Client, other: Client) -> None:
    made = other.call("tokens.create", name="reader", scopes=["cache:a/:read"])
    other.cache.mput({"a/1": 1, "b/1": 1})
    with Client(url, made["token"], near_cache=True) as reader:
        hold(reader, "a/1")
        with pytest.raises(Forbidden):
            reader.cache.get("b/1")
        with pytest.raises(Forbidden):
            reader.cache.mget(["a/1", "b/1"])
        assert reader.cache.get("a/1") == 1


def test_rate_limits_keep_no_copy(near: Client, key: str) -> None:
    assert near.near_cache is not None
    misses = near.near_cache.statistics().misses
    limit = near.rate_limit(key, 1000)
    for _ in range(5):
        limit.acquire()
    assert near.near_cache.statistics().misses == misses


def test_more_values_than_there_is_space_for(url: str, token: str, other: Client, key: str) -> None:
    with Client(url, token, near_cache=NearCache(max_items=10)) as small:
        for _ in range(3):
            for number in range(50):
                other.cache.put(f"{key}/{number}", number)
                assert small.cache.get(f"{key}/{number}") == number
        assert small.near_cache is not None
        statistics = small.near_cache.statistics()
        assert (statistics.items, statistics.subscriptions) == (10, 1)
        (row,) = other.call("cache.lines", key=f"{key}/0")["lines"]
        assert row["clients"] == 0, "the node does not count what is no longer held"


def test_three_nodes_one_of_which_ends(three_nodes: LocalCluster, key: str) -> None:
    urls = [node.url for node in three_nodes.nodes]
    clients = [Client(urls[number:] + urls[:number], near_cache=True) for number in range(3)]
    try:
        for number, writer in enumerate(clients):
            writer.cache.put(key, number)
            for client in clients:
                hold(client, key)
            writer.cache.put(key, -number)
            assert [client.cache.get(key) for client in clients] == [-number] * 3
        three_nodes.nodes[0].kill()
        for turn in range(20):
            clients[1 + turn % 2].cache.put(key, turn + 10)
            assert [client.cache.get(key) for client in clients] == [turn + 10] * 3
        hold(clients[0], key)
    finally:
        for client in clients:
            client.close()
