"""The near cache of a client at work, against a fake node that keeps the rules of `cache.near`."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from dss_client import (
    AsyncClient,
    Client,
    ClientClosed,
    Forbidden,
    Invalid,
    NearCache,
    Unencodable,
    WrongUse,
    near_client,
)

Until = Callable[[Callable[[], Any]], Awaitable[None]]

LEASE_MS = 1000
REFUSED = {"ok": False, "status": 404, "code": "not_found", "detail": "there is no such call"}


class Subscription:
    def __init__(self, connection: ServerConnection, id: int) -> None:
        self.connection = connection
        self.id = id
        self.holds: set[str] = set()
        self.seq = 0
        self.confirmed = 0

    async def send(self, **event: Any) -> None:
        await self.connection.send(json.dumps({"id": self.id, "event": event}))


class NearNode:
    """Values, and the clients that hold them.

    Attributes:
        is_refusing: it knows no `cache.near`.
        grants: whether leases are granted.
        lease_ms: their length.
        installs: whether clients may keep what they fetch.
        is_leaderless: it refuses `cache.lines`.
        gate: fetches are answered when it is set.
    """

    def __init__(self) -> None:
        self.values: dict[str, tuple[Any, int]] = {}
        self.frames: list[tuple[str, dict[str, Any]]] = []
        self.subscriptions: list[Subscription] = []
        self.is_refusing = False
        self.grants = True
        self.installs = True
        self.is_leaderless = False
        self.lease_ms = LEASE_MS
        self.gate = asyncio.Event()
        self.gate.set()
        self.port = 0
        self._server: Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await serve(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        for subscription in self.subscriptions:
            subscription.connection.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    def requests(self, operation: str) -> list[dict[str, Any]]:
        return [request for name, request in self.frames if name == operation]

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value, self.values.get(key, (None, 0))[1] + 1

    async def put(self, key: str, value: Any, drop: bool = True) -> None:
        """Change a value, and tell those who hold it. Returns when each has confirmed."""
        self.set(key, value)
        for one in self.subscriptions:
            if key in one.holds:
                one.holds.discard(key)
                one.seq += 1
                if drop:
                    await one.send(seq=one.seq, drop=[key])
                    while one.confirmed < one.seq:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)

    async def _serve(self, connection: ServerConnection) -> None:
        try:
            async for text in connection:
                frame = json.loads(text)
                self.frames.append((frame["op"], frame["request"]))
                answer = await self._answer(connection, frame["id"], frame["op"], frame["request"])
                if answer is not None:
                    await connection.send(json.dumps({"id": frame["id"], "status": 200, "ok": True, **answer}))
        except ConnectionClosed:
            pass
        finally:
            self.subscriptions = [one for one in self.subscriptions if one.connection is not connection]

    async def _answer(self, connection: ServerConnection, id: int, operation: str, request: dict[str, Any]) -> Any:
        if operation == "cache.near":
            if self.is_refusing:
                return REFUSED
            opened = Subscription(connection, id)
            self.subscriptions.append(opened)
            await opened.send(opened={"node": "n1", "lease_ms": self.lease_ms, "keys_max": 1000})
        elif operation.startswith("cache.near."):
            (one,) = (one for one in self.subscriptions if (one.connection, one.id) == (connection, request["call"]))
            one.confirmed = max(one.confirmed, request.get("seq", 0))
            if operation == "cache.near.renew" and self.grants:
                await one.send(token=request["token"], lease_ms=self.lease_ms)
            elif operation == "cache.near.fetch":
                task = asyncio.ensure_future(self._fetched(one, request))
                self._tasks.add(task)
        elif operation == "cache.get":
            value, version = self.values.get(request["key"], (None, 0))
            if not isinstance(request["key"], str) or not 0 < len(request["key"].encode()) <= 512 or "\n" in request["key"]:
                return {"status": 400, "ok": False, "code": "invalid", "detail": "no key", "field": "key"}
            if request["key"] == "refused":
                return {"status": 403, "ok": False, "code": "forbidden", "detail": "not this key"}
            return {"value": value, "found": version > 0, "version": version, "hit": True, "state": "E"}
        elif operation == "cache.mget":
            return {
                "items": [await self._answer(connection, id, "cache.get", {"key": key}) | {"key": key} for key in request["keys"]]
            }
        elif operation == "queue.peek":
            return None
        elif operation == "cache.lines" and self.is_leaderless:
            return {"status": 503, "ok": False, "code": "no_leader", "detail": "no leader is known"}
        elif operation == "cancel":
            return {"id": request["call"], "status": 499, "ok": False, "code": "cancelled", "detail": ""}
        else:
            return {}
        return None

    async def _fetched(self, one: Subscription, request: dict[str, Any]) -> None:
        read = {key: self.values.get(key, (None, 0)) for key in request["keys"]}
        await self.gate.wait()
        if "refused" in read:
            await one.send(token=request["token"], problem={"code": "forbidden", "detail": "not this key"})
            return
        items = []
        for key, (value, version) in read.items():
            install = self.installs and version > 0 and self.values[key][1] == version
            if install:
                one.holds.add(key)
            items.append({"key": key, "value": value, "found": version > 0, "version": version, "install": install})
        await one.send(token=request["token"], fetched=items)


@pytest.fixture
async def make_near_node() -> AsyncIterator[Callable[[], Awaitable[NearNode]]]:
    nodes: list[NearNode] = []

    async def make() -> NearNode:
        nodes.append(NearNode())
        await nodes[-1].start()
        return nodes[-1]

    yield make
    for node in nodes:
        await node.stop()


@pytest.fixture
async def node(make_near_node: Any) -> NearNode:
    made: NearNode = await make_near_node()
    return made


@pytest.fixture
async def client(node: NearNode, make_client: Any) -> AsyncClient:
    made: AsyncClient = make_client(node, near_cache=True)
    return made


def count(client: AsyncClient | Client, *names: str) -> tuple[int, ...]:
    assert client.near_cache is not None
    statistics = client.near_cache.statistics()
    return tuple(getattr(statistics, name) for name in names)


async def read(client: AsyncClient, *keys: str) -> list[Any]:
    return [await client.cache.get(key) for key in keys]


# ----------------------------------------------------------------- reading


async def test_the_second_read_is_answered_here(node: NearNode, client: AsyncClient) -> None:
    node.set("key", {"a": [1]})
    assert await read(client, "key", "key") == [{"a": [1]}] * 2
    assert (await client.cache.entry("key")) == await client.cache.entry("key")
    entry = await client.cache.entry("key")
    assert (entry.value, entry.found, entry.version, entry.hit) == ({"a": [1]}, True, 1, True)
    assert count(client, "misses", "hits", "items", "subscriptions") == (1, 4, 1, 1)
    assert len(node.requests("cache.near.fetch")) == 1
    assert not node.requests("cache.get")


async def test_a_put_is_seen_as_soon_as_it_is_answered(node: NearNode, client: AsyncClient) -> None:
    for number in range(5):
        await node.put("key", number)
        assert await read(client, "key", "key") == [number, number]
    assert count(client, "misses", "drops") == (5, 4)


async def test_a_key_without_a_value_is_asked_for_each_time(node: NearNode, client: AsyncClient) -> None:
    assert await read(client, "key", "key") == [None, None]
    assert await client.cache.get("key", "default") == "default"
    node.set("key", None)
    assert await client.cache.get("key", "default") is None
    assert count(client, "hits", "misses") == (0, 4)


async def test_bytes(node: NearNode, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    node.set("key", "AAE=")
    send = Subscription.send

    async def as_base64(self: Subscription, **event: Any) -> None:
        for item in event.get("fetched", ()):
            item["encoding"] = "base64"
        await send(self, **event)

    monkeypatch.setattr(Subscription, "send", as_base64)
    assert await read(client, "key", "key") == [b"\x00\x01"] * 2


async def test_several_keys(node: NearNode, client: AsyncClient) -> None:
    for key in "abc":
        node.set(key, key.upper())
    assert await client.cache.get("a") == "A"
    wanted = {"a": "A", "b": "B", "c": "C"}
    assert await client.cache.mget(["c", "a", "b", "a", "d"]) == wanted
    assert await client.cache.mget("abc") == wanted
    assert [sorted(request["keys"]) for request in node.requests("cache.near.fetch")] == [["a"], ["b", "c", "d"]]
    many = {f"key-{number}": number for number in range(250)}
    for key, value in many.items():
        node.set(key, value)
    assert await client.cache.mget(many) == many
    assert len(node.requests("cache.near.fetch")) == 5


async def test_a_refused_fetch_is_refused_like_an_ordinary_read(node: NearNode, client: AsyncClient) -> None:
    with pytest.raises(Forbidden):
        await client.cache.get("refused")
    assert len(node.requests("cache.get")) == 1


@pytest.mark.parametrize("key", ["", "a\n", "k" * 513, "ä" * 257, 5])
async def test_what_is_no_key_does_not_spoil_the_fetch_of_others(node: NearNode, client: AsyncClient, key: Any) -> None:
    node.set("key", "value")
    wrong, right = await asyncio.gather(client.cache.get(key), client.cache.get("key"), return_exceptions=True)
    assert right == "value"
    assert isinstance(wrong, Invalid)
    assert [request["keys"] for request in node.requests("cache.near.fetch")] == [["key"]], (
        "a node refuses a fetch with such a key"
    )


@pytest.mark.parametrize("key", ["\udce9", type("Text", (str,), {})("key")])
async def test_a_key_that_is_no_json_is_the_callers_fault(node: NearNode, client: AsyncClient, key: str) -> None:
    node.set("other", "value")
    wrong, right = await asyncio.gather(client.cache.get(key), client.cache.get("other"), return_exceptions=True)
    assert isinstance(wrong, Unencodable)
    assert right == "value"
    assert [request["keys"] for request in node.requests("cache.near.fetch")] == [["other"]]


async def test_values_that_do_not_fit_are_reported(node: NearNode, make_client: Any) -> None:
    client = make_client(node, near_cache=NearCache(max_items=2))
    for key in "abcd":
        node.set(key, key)
        await client.cache.get(key)
    assert count(client, "items", "evictions") == (2, 2)
    assert [request.get("evicted") for request in node.requests("cache.near.fetch")] == [None, None, None, ["a"]]


# ------------------------------------------------------- order and sharing


async def test_reads_of_a_turn_share_a_fetch(node: NearNode, client: AsyncClient) -> None:
    node.set("key", [1])
    values = await asyncio.gather(*(client.cache.get("key") for _ in range(10)))
    assert values == [[1]] * 10
    values[0].append(2)
    assert values[1] == [1], "they do not share the list"
    assert len(node.requests("cache.near.fetch")) == 1


async def test_a_later_read_does_not_join_a_fetch_that_may_be_older(node: NearNode, client: AsyncClient, until: Until) -> None:
    node.set("key", "old")
    await client.cache.get("other")
    node.gate.clear()
    first = asyncio.create_task(client.cache.get("key"))
    await until(lambda: len(node.requests("cache.near.fetch")) == 2)
    node.set("key", "new")
    later = [asyncio.create_task(client.cache.get("key")) for _ in range(5)]
    await asyncio.sleep(0.02)
    node.gate.set()
    assert await first == "old", "it began before the put"
    assert await asyncio.gather(*later) == ["new"] * 5
    assert len(node.requests("cache.near.fetch")) == 3


async def test_a_later_read_uses_what_the_fetch_before_it_installed(node: NearNode, client: AsyncClient, until: Until) -> None:
    node.set("key", "value")
    await client.cache.get("other")
    node.gate.clear()
    reads = [asyncio.create_task(client.cache.get("key"))]
    await until(lambda: len(node.requests("cache.near.fetch")) == 2)
    reads.append(asyncio.create_task(client.cache.get("key")))
    await asyncio.sleep(0.02)
    node.gate.set()
    assert await asyncio.gather(*reads) == ["value"] * 2
    assert len(node.requests("cache.near.fetch")) == 2


@pytest.mark.parametrize("event", [{"drop": ["key"]}, {"flush": True}])
async def test_a_fetch_that_an_invalidation_overtakes_is_used_once(
    node: NearNode, client: AsyncClient, until: Until, event: dict[str, Any]
) -> None:
    node.set("key", "value")
    await client.cache.get("other")
    node.gate.clear()
    first = asyncio.create_task(client.cache.get("key"))
    await until(lambda: len(node.requests("cache.near.fetch")) == 2)
    await node.subscriptions[0].send(seq=1, **event)
    await until(lambda: node.requests("cache.near.confirm"))
    node.gate.set()
    assert await first == "value"
    assert count(client, "items", "not_installed") == (0, 1)


async def test_what_the_node_says_not_to_keep_is_used_once(node: NearNode, client: AsyncClient) -> None:
    node.installs = False
    node.set("key", "value")
    assert await read(client, "key", "key") == ["value"] * 2
    assert count(client, "hits", "not_installed") == (0, 2)


async def test_drops_are_confirmed_together_and_after_they_are_carried_out(
    node: NearNode, client: AsyncClient, until: Until
) -> None:
    for key in "abc":
        node.set(key, key)
        await client.cache.get(key)
    (one,) = node.subscriptions
    for number, key in enumerate("abc", 1):
        await one.send(seq=number, drop=[key])
    await until(lambda: one.confirmed == 3)
    assert count(client, "items", "drops") == (0, 3)
    assert len(node.requests("cache.near.confirm")) <= 3
    await one.send(seq=4, flush=True)
    await until(lambda: one.confirmed == 4)
    assert count(client, "flushes") == (1,)


# ------------------------------------------------------------------ leases


async def test_without_a_lease_each_read_asks_the_node(node: NearNode, client: AsyncClient) -> None:
    node.grants = False
    node.set("key", "value")
    assert await read(client, "key", "key", "key") == ["value"] * 3
    assert count(client, "hits", "misses", "lease_misses") == (0, 3, 2)


async def test_it_renews_while_it_is_used_and_stops_then(node: NearNode, client: AsyncClient, until: Until) -> None:
    node.lease_ms = 300
    node.set("key", "value")
    await client.cache.get("key")
    while count(client, "leases")[0] < 4:
        assert await client.cache.get("key") == "value"
        await asyncio.sleep(0.01)
    await until(lambda: not count(client, "is_leased")[0])
    leases = count(client, "leases")
    await asyncio.sleep(2 * node.lease_ms / 1000)
    assert count(client, "leases") == leases
    misses = count(client, "misses")[0]
    assert await client.cache.get("key") == "value"
    await until(lambda: count(client, "is_leased")[0])
    assert count(client, "misses") == (misses + 1,)


async def test_a_loop_that_was_blocked_does_not_answer_from_before(node: NearNode, client: AsyncClient) -> None:
    """The node waits for the confirmation until the lease is over, and then answers the put."""
    node.set("key", "old")
    assert await read(client, "key", "key") == ["old"] * 2
    time.sleep(1.2 * node.lease_ms / 1000)  # noqa: ASYNC251
    node.set("key", "new")
    assert await client.cache.get("key") == "new"


# ------------------------------------------------------ nodes that come and go


async def test_another_node_begins_empty(make_near_node: Any, make_client: Any, until: Until) -> None:
    first, second = await make_near_node(), await make_near_node()
    first.set("key", "old")
    second.set("key", "new")
    client = make_client(first, second, near_cache=True)
    assert await read(client, "key", "key") == ["old"] * 2
    await first.stop()
    await until(lambda: second.subscriptions)
    assert count(client, "items", "subscriptions") == (0, 2)
    assert await client.cache.get("key") == "new"


async def test_a_node_that_the_client_leaves_need_not_wait_for_it(make_near_node: Any, make_client: Any, until: Until) -> None:
    first, second = await make_near_node(), await make_near_node()
    client = make_client(first, second, near_cache=True)
    await client.cache.get("key")
    # It keeps the connection open.
    waiting = asyncio.create_task(client.call("queue.peek", topic="topic"))
    await until(lambda: first.requests("queue.peek"))
    (subscription,) = first.subscriptions
    first.is_leaderless = True
    await client.call("cache.lines", key="key")
    await until(lambda: second.subscriptions)
    await until(lambda: {"call": subscription.id} in first.requests("cancel"))
    assert subscription in first.subscriptions, "the connection is open"
    waiting.cancel()


async def test_a_fetch_that_is_lost_with_its_node(make_near_node: Any, make_client: Any, until: Until) -> None:
    first, second = await make_near_node(), await make_near_node()
    second.set("key", "value")
    client = make_client(first, second, near_cache=True)
    await client.cache.get("other")
    first.gate.clear()
    lost = asyncio.create_task(client.cache.get("key"))
    await until(lambda: len(first.requests("cache.near.fetch")) == 2)
    await first.stop()
    assert await lost == "value"


async def test_a_client_that_the_node_dropped_comes_back_empty(node: NearNode, client: AsyncClient, until: Until) -> None:
    node.set("key", "old")
    await client.cache.get("key")
    (one,) = node.subscriptions
    node.subscriptions.clear()
    end = {"id": one.id, "ok": False, "status": 408, "code": "request_timeout", "detail": "not confirmed in time"}
    await one.connection.send(json.dumps(end))
    await until(lambda: node.subscriptions)
    assert count(client, "items", "subscriptions") == (0, 2)
    node.set("key", "new")
    assert await read(client, "key", "key") == ["new"] * 2


async def test_a_node_without_near_caches(node: NearNode, client: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    node.is_refusing = True
    node.set("key", "value")
    started = time.monotonic()
    for _ in range(5):
        assert await client.cache.get("key") == "value"
        assert await client.cache.mget(["key"]) == {"key": "value"}
    assert time.monotonic() - started < 5 * near_client.BEGIN_S, "reads do not wait for a subscription that was refused"
    assert len(node.requests("cache.near")) == 1
    assert count(client, "hits", "subscriptions") == (0, 1)
    assert [record.message for record in caplog.records if "near cache" in record.message] == [
        "the near cache ended: there is no such call (not_found)"
    ]


async def test_a_fetch_without_an_answer_becomes_an_ordinary_read(
    node: NearNode, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dss_client.near_client.FETCH_S", 0.05)
    node.set("key", "value")
    await client.cache.get("other")
    node.gate.clear()
    assert await client.cache.get("key") == "value"
    assert node.requests("cache.get") == [{"key": "key"}]
    node.gate.set()
    monkeypatch.setattr("dss_client.near_client.FETCH_S", 2.0)
    assert await read(client, "key", "key") == ["value"] * 2


async def test_after_closing_nothing_is_left(node: NearNode, client: AsyncClient, until: Until) -> None:
    node.set("key", "value")
    await client.cache.get("key")
    await client.aclose()
    assert count(client, "items", "is_leased") == (0, False)
    with pytest.raises(ClientClosed):
        await client.cache.get("key")
    await until(lambda: not node.subscriptions)


def test_it_needs_a_websocket() -> None:
    with pytest.raises(WrongUse, match="websocket"):
        AsyncClient("http://127.0.0.1:1", transport="http", near_cache=True)


# ---------------------------------------------------------- threads, forks


@pytest.fixture
def node_in_thread() -> Iterator[NearNode]:
    """For clients that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> NearNode:
        node = NearNode()
        await node.start()
        return node

    node = asyncio.run_coroutine_threadsafe(make(), loop).result()
    yield node
    asyncio.run_coroutine_threadsafe(node.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_threads(node_in_thread: NearNode) -> None:
    for number in range(20):
        node_in_thread.set(f"key-{number}", number)
    with Client(node_in_thread.url, near_cache=True) as client:
        wrong: list[Any] = []

        def read_all() -> None:
            for turn in range(50):
                for number in range(20):
                    if client.cache.get(f"key-{number}") != number:
                        wrong.append((turn, number))

        threads = [threading.Thread(target=read_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        hits, misses = count(client, "hits", "misses")
        assert hits + misses == 4 * 50 * 20
        assert hits > 3500
        assert client.cache.entry("key-7").hit
        assert client.cache.mget(["key-7"]) == {"key-7": 7}
    with pytest.raises(ClientClosed):
        client.cache.get("key-7")


def test_the_child_of_a_fork_begins_empty(node_in_thread: NearNode) -> None:
    node_in_thread.set("key", "old")
    with Client(node_in_thread.url, near_cache=True) as client:
        assert [client.cache.get("key") for _ in range(3)] == ["old"] * 3
        node_in_thread.set("key", "new")
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            values = [client.cache.get("key") for _ in range(2)]
            os.write(write_end, json.dumps([values, count(client, "hits", "misses", "subscriptions")]).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write_end)
        with open(read_end) as pipe:
            assert json.load(pipe) == [["new", "new"], [1, 1, 1]]
        assert client.cache.get("other") is None
        assert count(client, "subscriptions") == (1,), "the parent's connection still works"
