"""Failover, repeats and their numbers, against fake nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dss_client import (
    AsyncClient,
    ClientClosed,
    InternalError,
    Invalid,
    NotFound,
    Unavailable,
    Unencodable,
    UnknownOutcome,
    VersionConflict,
    WrongServer,
    WrongUrl,
    WrongUse,
)
from dss_client import core as core_module
from dss_client.errors import NO_EFFECT

INCREMENTED = {"ok": True, "value": 1, "version": 1, "state": "M"}
EXPIRED = {"ok": False, "status": 409, "code": "request_expired", "detail": "the session is not known"}
UNSUPPORTED = {"ok": False, "status": 409, "code": "not_supported_yet", "detail": "version 3 is needed"}
NO_LEADER = {"ok": False, "status": 503, "code": "no_leader", "detail": "no leader is known"}
ENGINE_AWAY = {"ok": False, "status": 503, "code": "engine_away", "detail": "a server does not answer"}
UNKNOWN = {"ok": False, "status": 503, "code": "unknown_outcome", "detail": "no answer came in time"}

Make = Callable[..., AsyncClient]
Until = Callable[[Callable[[], Any]], Awaitable[None]]
MakeNode = Callable[[], Awaitable[Any]]


# -------------------------------------------------------------- arguments


@pytest.mark.parametrize("url", ["", "127.0.0.1:8101", "ftp://a", "http://", "http://a:port", "http://a/path", "http://u:p@a"])
def test_a_wrong_address(url: str) -> None:
    with pytest.raises(WrongUrl):
        AsyncClient(url)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"transport": "pigeon"}, {"token": "two words"}, {"token": "a\nb"}])
def test_a_wrong_option(options: dict[str, Any]) -> None:
    with pytest.raises(WrongUse):
        AsyncClient("http://a", **options)


def test_addresses_and_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSS_URLS", "http://a:1, https://b/,http://a:1")
    monkeypatch.setenv("DSS_TOKEN", "secret")
    config = AsyncClient()._config
    assert [node.url for node in config.nodes] == ["http://a:1", "https://b:443"]
    assert config.token == "secret"
    assert "secret" not in repr(config)


async def test_the_token_is_sent(node: Any, make_client: Make) -> None:
    await make_client(node, token="secret").call("health")
    assert node.authorization == "Bearer secret"


@pytest.mark.parametrize(
    "value", [object(), {1, object()}, {"a": {(1, 2): 3}}, "\ud800"], ids=["object", "set", "key", "surrogate"]
)
async def test_a_value_that_cannot_be_written_as_json(client: AsyncClient, value: Any) -> None:
    with pytest.raises(Unencodable):
        await client.cache.put("key", value)


async def test_a_closed_client(node: Any, client: AsyncClient) -> None:
    await client.call("health")
    await client.aclose()
    await client.aclose()
    with pytest.raises(ClientClosed):
        await client.call("health")


@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_one_event_loop_after_the_other(make_fake_node: Callable[[], Any], loops: str) -> None:
    run = pytest.importorskip(loops).run

    async def call(client: AsyncClient) -> None:
        node = make_fake_node()
        await node.start()
        try:
            client._config = AsyncClient(node.url)._config
            await client.call("health")
            assert len(node.requests("health")) == 1
        finally:
            await node.stop()

    client = AsyncClient("http://127.0.0.1:1")
    run(call(client))
    run(call(client))


async def test_two_event_loops_at_a_time(client: AsyncClient) -> None:
    await client.call("health")

    def call() -> None:
        asyncio.run(client.call("health"))

    with pytest.raises(WrongUse, match="another event loop"):
        await asyncio.to_thread(call)


async def test_an_operation_that_does_not_exist(client: AsyncClient) -> None:
    with pytest.raises(WrongUse):
        await client.call("locks.conjure")


# ------------------------------------------------------------------ calls


async def test_answers_may_come_in_any_order(node: Any, make_client: Make) -> None:
    client = make_client(node, timeout=60)
    node.answers["cache.get"] = lambda request: {"value": request["key"], "found": True, "hit": False, "version": 1, "state": "S"}
    keys = [f"key {number}" for number in range(2000)]
    assert await asyncio.gather(*map(client.cache.get, keys)) == keys
    assert len(node.connections) == 1


async def test_a_refusal_is_not_repeated(node: Any, client: AsyncClient) -> None:
    node.answers["cache.put"] = {"ok": False, "status": 409, "code": "version_conflict", "detail": "no", "version": 5}
    with pytest.raises(VersionConflict) as caught:
        await client.cache.cas("key", 1, 4)
    assert caught.value.version == 5
    assert len(node.requests("cache.put")) == 1


@pytest.mark.parametrize("code", sorted(NO_EFFECT))
async def test_a_call_without_effect_is_repeated(node: Any, client: AsyncClient, code: str) -> None:
    node.answers["cache.incr"] = [{**NO_LEADER, "code": code}, INCREMENTED]
    assert await client.cache.incr("key") == 1
    first, second = node.requests("cache.incr")
    assert first == second


async def test_the_next_node_is_asked_when_one_ends(make_node: MakeNode, make_client: Make) -> None:
    first, second = await make_node(), await make_node()
    client = make_client(first, second)
    await client.call("health")
    await first.stop()
    await client.call("health")
    assert len(second.requests("health")) == 1
    await first.start()


async def test_a_node_that_cannot_be_reached_is_passed_over(make_node: MakeNode, make_client: Make) -> None:
    first, second = await make_node(), await make_node()
    await first.stop()
    await make_client(first, second).call("health")
    assert len(second.requests("health")) == 1
    await first.start()


async def test_many_calls_move_on_together(make_node: MakeNode, make_client: Make) -> None:
    first, second = await make_node(), await make_node()
    first.answers["cache.incr"] = NO_LEADER
    second.answers["cache.incr"] = INCREMENTED
    client = make_client(first, second)
    await asyncio.gather(*(client.cache.incr("key") for _ in range(100)))
    assert len(second.requests("cache.incr")) == 100
    assert len(first.requests("cache.incr")) == 100


async def test_no_node_before_the_deadline(node: Any, make_client: Make) -> None:
    node.answers["cache.get"] = NO_LEADER
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await make_client(node, timeout=1.5).cache.get("key")
    assert time.monotonic() - started < 10
    assert caught.value.troubles == {node.url: "no leader is known"}


async def test_a_node_that_does_not_answer_in_time(node: Any, make_client: Make) -> None:
    node.answers["cache.get"] = node.answers["cache.put"] = None
    client = make_client(node, timeout=1.5)
    with pytest.raises(Unavailable):
        await client.cache.get("key")
    with pytest.raises(UnknownOutcome):
        await client.cache.put("key", 1)
    assert node.requests("cancel")


async def test_the_outcome_is_not_known_when_the_client_is_closed_before_the_answer(
    node: Any, make_client: Make, until: Until
) -> None:
    node.answers["cache.get"] = node.answers["cache.incr"] = None
    client = make_client(node)
    read, changed = asyncio.ensure_future(client.cache.get("key")), asyncio.ensure_future(client.cache.incr("key"))
    await until(lambda: len(node.requests("cache.get")) == len(node.requests("cache.incr")) == 1)
    await client.aclose()
    with pytest.raises(ClientClosed):
        await read
    with pytest.raises(UnknownOutcome, match="closed"):
        await changed


async def test_a_half_open_connection_is_left(make_node: MakeNode, make_client: Make) -> None:
    first, second = await make_node(), await make_node()
    second.answers["cache.incr"] = INCREMENTED
    client = make_client(first, second, timeout=15.0, check_s=0.05)
    await client.call("health")
    first.stop_reading()
    assert await client.cache.incr("key") == 1


async def test_a_slow_node_keeps_its_calls(node: Any, make_client: Make, until: Until) -> None:
    node.answers["cache.get"] = None
    client = make_client(node, timeout=5.0, check_s=0.05)
    slow = asyncio.ensure_future(client.cache.get("key"))
    await asyncio.sleep(0.5)
    assert len(node.connections) == 1
    assert not slow.done()
    slow.cancel()
    await asyncio.wait({slow})
    await until(lambda: node.requests("cancel"))


async def test_something_else_at_the_address(make_client: Make) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        for transport in ("websocket", "http"):
            async with AsyncClient(f"http://127.0.0.1:{port}", transport=transport) as client:  # type: ignore[arg-type]
                started = time.monotonic()
                with pytest.raises(WrongServer, match="no address is a node"):
                    await client.call("health")
                assert time.monotonic() - started < 14
    finally:
        server.close()


async def test_a_node_of_another_cluster(make_node: MakeNode, make_client: Make) -> None:
    """A replaced member has another store; a node with no store in common belongs to another cluster."""
    first, replaced, foreign = await make_node(), await make_node(), await make_node()
    for each, stores in ((first, ["a", "b"]), (replaced, ["b", "c"]), (foreign, ["x", "y"])):
        each.answers["raft.leader"] = {"ok": True, "leader_id": "node-1", "node": "node-1", "stores": stores}
        each.answers["cache.incr"] = INCREMENTED
    client = make_client(first, foreign, replaced, timeout=3)
    await client.cache.incr("key")
    await first.stop()
    await client.cache.incr("key")
    assert len(replaced.requests("cache.incr")) == 1
    assert not foreign.requests("cache.incr")
    await replaced.stop()
    with pytest.raises(Unavailable, match="it is a node of another cluster"):
        await client.cache.incr("key")


# ---------------------------------------------------------------- numbers


async def test_changing_calls_are_numbered(node: Any, client: AsyncClient) -> None:
    node.answers["cache.incr"] = INCREMENTED
    for _ in range(3):
        await client.cache.incr("key")
    assert [request["request_id"] for request in node.requests("cache.incr")] == ["s:1:0", "s:2:1", "s:3:2"]
    assert len(node.requests("requests.open")) == 1


async def test_reads_are_not_numbered(node: Any, client: AsyncClient) -> None:
    node.answers["cache.get"] = {"value": None, "found": False, "hit": False, "version": 0, "state": "I"}
    assert await client.cache.get("key", "default") == "default"
    assert not node.requests("requests.open")


async def test_the_oldest_call_in_progress_limits_what_is_forgotten(node: Any, client: AsyncClient, until: Until) -> None:
    node.answers["cache.incr"] = lambda request: None if request["key"] == "slow" else INCREMENTED
    slow = asyncio.ensure_future(client.cache.incr("slow"))
    await until(lambda: node.requests("cache.incr"))
    await client.cache.incr("fast")
    await client.cache.incr("fast")
    assert [request["request_id"] for request in node.requests("cache.incr")] == ["s:1:0", "s:2:0", "s:3:0"]
    slow.cancel()
    await asyncio.wait({slow})
    await client.cache.incr("fast")
    assert node.requests("cache.incr")[-1]["request_id"] == "s:4:3"


@pytest.mark.parametrize("lost", [UNKNOWN, ConnectionError()], ids=["unknown_outcome", "connection"])
async def test_a_lost_answer_is_asked_for_again(node: Any, client: AsyncClient, lost: Any) -> None:
    node.answers["cache.incr"] = [lost, INCREMENTED]
    assert await client.cache.incr("key") == 1
    first, second = node.requests("cache.incr")
    assert first["request_id"] == second["request_id"] == "s:1:0"


@pytest.mark.parametrize(
    ("answers", "ids"),
    [
        ([ENGINE_AWAY, ENGINE_AWAY], ["s:1:0", "s:2:1", "s:3:2"]),
        ([NO_LEADER, ENGINE_AWAY], ["s:1:0", "s:1:0", "s:2:1"]),
        ([UNKNOWN, ENGINE_AWAY], ["s:1:0", "s:1:0", "s:1:0"]),
    ],
)
async def test_a_publish_gets_another_number_when_the_engine_is_away(
    node: Any, client: AsyncClient, answers: list[Any], ids: list[str]
) -> None:
    """The number decides which of several servers gets the messages. One with which it may have taken effect stays."""
    node.answers["queue.publish"] = [*answers, {"ok": True, "msg_id": "r1-1", "partition": 1, "duplicate": False}]
    await client.topic("t").publish(1)
    assert [request["request_id"] for request in node.requests("queue.publish")] == ids


async def test_a_consume_that_has_waited_while_a_server_of_the_engine_is_away_is_not_repeated(
    node: Any, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_s, clock = 0.0, core_module.now

    def wait(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal ahead_s
        ahead_s += request["timeout_ms"] / 1000
        return ENGINE_AWAY

    monkeypatch.setattr(core_module, "now", lambda: clock() + ahead_s)
    # One that is refused at once may have more luck at another node.
    node.answers["queue.consume"] = [ENGINE_AWAY, wait]
    with pytest.raises(Unavailable, match="a server does not answer"):
        await client.topic("t").consume("g", wait=20)
    assert len(node.requests("queue.consume")) == 2
    # It keeps its connection.
    assert client._running()._connection is not None


@pytest.mark.parametrize("lost", [UNKNOWN, ConnectionError()], ids=["unknown_outcome", "connection"])
@pytest.mark.parametrize(
    "answer", [UNSUPPORTED, {"ok": False, "status": 404, "code": "not_found", "detail": "there is no operation requests.open"}]
)
async def test_without_numbers_a_lost_answer_is_an_unknown_outcome(
    node: Any, client: AsyncClient, lost: Any, answer: Any
) -> None:
    node.answers["requests.open"] = answer
    node.answers["cache.incr"] = [INCREMENTED, lost]
    assert await client.cache.incr("key") == 1
    with pytest.raises(UnknownOutcome):
        await client.cache.incr("key")
    assert node.requests("cache.incr") == [{"key": "key", "delta": 1}] * 2
    # It is not asked again for each call.
    assert len(node.requests("requests.open")) == 1


async def test_an_older_node_does_not_know_the_field(node: Any, client: AsyncClient) -> None:
    unknown_field = {"ok": False, "status": 400, "code": "invalid", "detail": "unknown field", "field": "request_id"}
    node.answers["cache.incr"] = [unknown_field, INCREMENTED]
    assert await client.cache.incr("key") == 1
    assert "request_id" not in node.requests("cache.incr")[1]


async def test_a_cluster_without_room_for_a_session(node: Any, client: AsyncClient) -> None:
    node.answers["requests.open"] = {
        "ok": False,
        "status": 429,
        "code": "over_limit",
        "detail": "",
        "limit": "request_sessions_max",
    }
    node.answers["cache.incr"] = INCREMENTED
    assert await client.cache.incr("key") == 1
    assert "request_id" not in node.requests("cache.incr")[0]


async def test_the_session_is_part_of_the_deadline(node: Any, make_client: Make) -> None:
    node.answers["requests.open"] = None
    client = make_client(node, timeout=0.2)
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await client.cache.incr("key")
        assert time.monotonic() - started < 14
    assert not node.requests("cache.incr")


async def test_an_expired_session_is_replaced(node: Any, client: AsyncClient) -> None:
    node.answers["requests.open"] = [{"ok": True, "session": name, "expires_in_ms": 1} for name in ("a", "b")]
    node.answers["cache.incr"] = [EXPIRED, INCREMENTED]
    assert await client.cache.incr("key") == 1
    assert [request["request_id"] for request in node.requests("cache.incr")] == ["a:1:0", "b:1:0"]


async def test_a_lost_answer_of_an_expired_session_is_never_repeated(node: Any, client: AsyncClient) -> None:
    node.answers["cache.incr"] = [UNKNOWN, EXPIRED, INCREMENTED]
    with pytest.raises(UnknownOutcome):
        await client.cache.incr("key")
    assert len(node.requests("cache.incr")) == 2


async def test_a_cluster_that_forgets_every_session(node: Any, client: AsyncClient) -> None:
    node.answers["cache.incr"] = EXPIRED
    with pytest.raises(Unavailable):
        await client.cache.incr("key")
    assert len(node.requests("cache.incr")) == 3


async def test_other_errors(node: Any, client: AsyncClient) -> None:
    for code, status, kind in (("invalid", 400, Invalid), ("not_found", 404, NotFound), ("internal", 500, InternalError)):
        node.answers["queue.stats"] = {"ok": False, "status": status, "code": code, "detail": "no", "field": "topic"}
        with pytest.raises(kind) as caught:
            await client.topic("orders").stats()
        assert caught.value.status == status
