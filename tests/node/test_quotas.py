"""Quotas of tokens and addresses: calls in a second, calls in progress, WebSockets, subscriptions."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dss_api import quotas as quotas_module
from dss_api.answer import Answer
from dss_api.caller import ANYONE, Caller
from dss_api.errors import Refused
from dss_api.fields import Fields
from dss_api.guard import Guard
from dss_api.host_check import HostCheck
from dss_api.in_progress import InProgress
from dss_api.json_fast_path import JsonFastPath
from dss_api.operation import Feed, Operation, Subscription
from dss_api.quotas import InUse, Limit, Rates, TokenQuotas
from dss_api.rights import ANY_TOKEN, EVERYTHING
from dss_api.routes import Route
from dss_api.websocket import WebSocketEntryPoint
from dss_dev.access_world import KEY, FakeBook
from dss_project.access import make_guard
from dss_project.config import NodeConfig

NODE = SimpleNamespace(node_id="node-1", unusable_reason="")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def rates(maximum: int) -> tuple[Rates, Clock]:
    clock = Clock()
    return Rates(Limit("a_limit", "A_SETTING", maximum), clock), clock


def refused(act: Any) -> Refused:
    with pytest.raises(Refused) as found:
        act()
    assert found.value.code == "over_limit"
    return found.value


def test_a_second_of_calls_and_then_as_many_as_the_rate() -> None:
    limited, clock = rates(10)
    for _ in range(10):
        limited.take("a")
    refusal = refused(lambda: limited.take("a"))
    assert (refusal.extra, "A_SETTING" in refusal.detail) == ({"limit": "a_limit", "maximum": 10}, True)
    limited.take("b")
    clock.now += 0.1
    limited.take("a")
    refused(lambda: limited.take("a"))
    clock.now += 3600
    for _ in range(10):
        limited.take("a")
    refused(lambda: limited.take("a"))


def test_unlimited() -> None:
    limited, _ = rates(0)
    for _ in range(1000):
        limited.take("a")
    assert limited._free_at == {}
    count = InUse(Limit("a", "A", 0))
    for _ in range(1000):
        count.take("a")


def test_callers_that_are_idle_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "RATES_MAX", 3)
    limited, clock = rates(1)
    for name in "abc":
        limited.take(name)
    clock.now += 1
    limited.take("d")
    assert set(limited._free_at) == {"d"}
    for name in "efgh":
        limited.take(name)
    assert len(limited._free_at) <= 3, "however many addresses call in one second"


def test_how_many_at_a_time() -> None:
    count = InUse(Limit("a", "A", 2))
    with count.one("x"), count.one("x"):
        refused(lambda: count.take("x"))
        with count.one("y"):
            pass
    with count.one("x"):
        pass
    assert not count._count
    refused_all = InUse(Limit("a", "A", 1))
    refused_all.take("x")
    refused(lambda: refused_all.take("x"))
    assert refused_all._count == {"x": 1}


# ---------------------------------------------------------------------- entry points


class Nothing(Fields):
    pass


class Event(msgspec.Struct):
    n: int


async def wait(node: Any, request: Nothing) -> Answer:
    await asyncio.get_running_loop().create_future()
    return Answer()


async def quick(node: Any, request: Nothing) -> Answer:
    return Answer()


async def subscribe(node: Any, request: Nothing, feed: Feed) -> Answer:
    feed.push(Event(1))
    await asyncio.get_running_loop().create_future()
    return Answer()


OPERATIONS = [
    Operation("demo.wait", "POST", "/wait", Nothing, wait, Answer, ANY_TOKEN, "Wait"),
    Operation("demo.quick", "POST", "/quick", Nothing, quick, Answer, ANY_TOKEN, "Answer"),
]
SUBSCRIBE = Subscription("demo.subscribe", Nothing, subscribe, Event, ANY_TOKEN, "Subscribe")


async def test_calls_of_a_token_wherever_they_come_from() -> None:
    quotas = TokenQuotas(calls=1)
    first, second = (Caller(name, EVERYTHING, name, [KEY], quotas) for name in ("token a", "token b"))
    waiting, answered = (Route(operation) for operation in OPERATIONS)
    task = asyncio.create_task(waiting.perform(NODE, Nothing(), first, "websocket", "192.0.2.1"))
    await asyncio.sleep(0)
    with pytest.raises(Refused) as refusal:
        await answered.perform(NODE, Nothing(), first, "http", "192.0.2.2")
    assert refusal.value.extra == {"limit": "calls_per_token_max", "maximum": 1}
    await answered.perform(NODE, Nothing(), second, "http", "192.0.2.1")
    await answered.perform(NODE, Nothing(), ANYONE, "http", "192.0.2.1")
    task.cancel()
    await asyncio.wait([task])
    await answered.perform(NODE, Nothing(), first, "http", "192.0.2.2")


async def test_the_rate_of_a_token() -> None:
    quotas = TokenQuotas(calls_per_second=2)
    quotas.rates._clock = Clock()
    caller = Caller("token a", EVERYTHING, "a", [KEY], quotas)
    route = Route(OPERATIONS[1])
    answers = [await route.carry_out(lambda: NODE, Nothing(), caller, "http", "") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert json.loads(answers[2].body)["limit"] == "calls_per_second_per_token_max"


def test_the_rate_of_an_address() -> None:
    in_progress = InProgress(calls_per_second_max=2)
    for _ in range(2):
        in_progress.admit("192.0.2.1")
        in_progress.release("192.0.2.1")
    assert refused(lambda: in_progress.admit("192.0.2.1")).extra["limit"] == "calls_per_second_per_address_max"
    in_progress.admit("192.0.2.2")


class Socket:
    def __init__(self, entry_point: WebSocketEntryPoint, header: str) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        headers = [(b"host", b"localhost"), (b"authorization", header.encode())]
        scope = {"type": "websocket", "path": "/ws", "headers": headers, "client": ("192.0.2.1", 5)}
        self.inbox.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(entry_point(scope, self.inbox.get, self.outbox.put))

    async def hear(self) -> Any:
        async with asyncio.timeout(60):
            message = await self.outbox.get()
        return json.loads(message["text"]) if "text" in message else message

    def subscribe(self, id: int) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text": json.dumps({"id": id, "op": "demo.subscribe"})})

    async def leave(self) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await self.task


@pytest.mark.parametrize(
    ("quotas", "per_address", "limit"),
    [
        (TokenQuotas(subscriptions=1, connections=1), 0, "subscriptions_per_token_max"),
        (TokenQuotas(connections=1), 1, "subscriptions_per_address_max"),
    ],
)
async def test_websockets_and_subscriptions(quotas: TokenQuotas, per_address: int, limit: str) -> None:
    book = FakeBook()
    guard = Guard("", False, [KEY], quotas=quotas)
    guard.use(book)
    token, other = book.add("read"), book.add("operate")
    entry_point = WebSocketEntryPoint(
        JsonFastPath(OPERATIONS, lambda: NODE, guard),
        HostCheck(["localhost"]),
        InProgress(subscriptions_per_address_max=per_address),
        [SUBSCRIBE],
    )
    first = Socket(entry_point, token.header)
    assert (await first.hear())["type"] == "websocket.accept"
    first.subscribe(1)
    assert await first.hear() == {"id": 1, "event": {"n": 1}}
    first.subscribe(2)
    answer = await first.hear()
    assert (answer["id"], answer["status"], answer["limit"]) == (2, 429, limit)
    assert await Socket(entry_point, token.header).hear() == {"type": "websocket.close", "code": 4429}
    third = Socket(entry_point, other.header)
    assert (await third.hear())["type"] == "websocket.accept"
    await third.leave()
    await first.leave()
    again = Socket(entry_point, token.header)
    assert (await again.hear())["type"] == "websocket.accept"
    again.subscribe(1)
    assert await again.hear() == {"id": 1, "event": {"n": 1}}
    await again.leave()


def test_the_settings() -> None:
    config = NodeConfig(
        calls_per_second_per_token_max=1, calls_per_token_max=2, websockets_per_token_max=3, subscriptions_per_token_max=4
    )
    quotas = make_guard(config)._quotas
    limits = [one._limit for one in (quotas.rates, quotas.calls, quotas.connections, quotas.subscriptions)]
    assert [limit.maximum for limit in limits] == [1, 2, 3, 4]
    assert quotas.is_limited
    assert not TokenQuotas().is_limited
    variables = {field.metadata["variable"] for field in dataclasses.fields(NodeConfig)}
    assert {limit.setting for limit in limits} <= variables
