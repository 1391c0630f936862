"""A subscriber whose host has vanished: its messages go to other consumers, and no attempt is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from websockets.frames import Frame, Opcode

from dss_api.liveness import Liveness
from dss_dev.local_cluster import POLL_S, LocalCluster, free_ports
from dss_dev.websocket import connect
from dss_queue.core.commands import AckRequest, ConsumeRequest, GiveBack, MarkReceived, PublishRequest, PutTopic, Subscribe
from dss_queue.core.group import UNCOUNTED_MAX
from dss_queue.operations import ack, consume, publish
from dss_queue.push import subscribe
from dss_queue.subscribers import Subscribers

VISIBILITY_MS = 200
PATIENCE_S = 60


class Client:
    """A subscriber: its feed, and the connection that answers pings while it is there."""

    backlog = 0

    def __init__(self) -> None:
        self.is_there = True
        self.pings = 0
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.liveness = Liveness(self)

    def watch(self, on_data) -> None:
        self.speak = on_data

    def ping(self) -> None:
        self.pings += 1
        if self.is_there:
            asyncio.get_running_loop().call_soon(self.speak)

    def push(self, event: Any) -> None:
        self.events.put_nowait(msgspec.structs.asdict(event))

    async def drained(self) -> None: ...

    async def event(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.events.get()


@pytest.fixture
def subscribed(node, time_of_ticks):
    Subscribers(node)

    @asynccontextmanager
    async def open_(**fields: Any):
        client = Client()
        request = Subscribe(topic="t", group="g", **{"visibility_ms": VISIBILITY_MS, **fields})
        client.task = asyncio.create_task(subscribe(node, request, client))
        await asyncio.sleep(0)
        yield client
        client.task.cancel()
        await asyncio.wait((client.task,))

    return open_


async def put(node, *values: Any) -> None:
    for value in values:
        await publish(node, PublishRequest(topic="t", value=msgspec.Raw(msgspec.json.encode(value))))


async def until(holds) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  (the log of the node's double grows by itself)
            await asyncio.sleep(0.002)


def group_of(node):
    return node.broker.topics["t"].groups["g"]


def silent(node) -> bool:
    return any(one._is_silent for of in node.services["queue-subscribers"]._by_group.values() for one in of)


async def take(node, count: int) -> list[tuple[Any, int]]:
    answer = await consume(node, ConsumeRequest(topic="t", group="g", timeout_ms=0, max_messages=count, visibility_ms=60_000))
    return [(json.loads(bytes(one.value)), one.attempt) for one in answer.messages]


async def test_a_message_that_was_not_received_goes_to_others_without_an_attempt(node, subscribed):
    await node.submit(PutTopic(topic="t", max_attempts=2))
    async with subscribed() as client:
        client.is_there = False
        await put(node, 1, 2, 3, 4, 5)
        for _ in range(5):
            await client.event()
        await until(lambda: len(group_of(node).backlog.returned) == 5)
        # Several timeouts later they are still there.
        at_ms = node.now_ms()
        await until(lambda: node.now_ms() > at_ms + 3 * VISIBILITY_MS)
        assert client.events.empty(), "nothing is pushed to a silent client"
        assert not node.broker.callers.waiters, "and nothing waits for it"
        assert await take(node, 5) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]
        assert not group_of(node).dead


async def test_it_is_asked_well_before_the_visibility_ends(node, subscribed):
    async with subscribed(visibility_ms=1000) as client:
        client.is_there = False
        await put(node, 1)
        event = await client.event()
        await until(lambda: client.pings)
        assert node.now_ms() < event["delivered_ms"] + 600
        await until(lambda: not all(one.received for one in group_of(node).in_flight.values()))
        assert node.now_ms() < event["visible_until_ms"]


async def test_a_client_that_was_heard_after_the_frame_has_used_an_attempt(node, subscribed):
    async with subscribed() as client:
        await put(node, 1)
        await client.event()
        client.speak()
        client.is_there = False
        await until(lambda: group_of(node).backlog.returned or client.events.qsize())
    # A second delivery may have been pushed before the silence was noticed; it was not received.
    assert await take(node, 1) == [(1, 2)]


async def test_a_client_that_is_heard_again_gets_messages_again(node, subscribed):
    async with subscribed() as client:
        client.is_there = False
        await put(node, 1)
        await client.event()
        await until(lambda: group_of(node).backlog.returned)
        client.is_there = True
        client.speak()
        assert (await client.event())["attempt"] == 1


async def test_a_client_that_is_heard_before_the_timeout_has_received_it_after_all(node, subscribed):
    async with subscribed(visibility_ms=600) as client:
        client.is_there = False
        await put(node, 1)
        await client.event()
        await until(lambda: not all(one.received for one in group_of(node).in_flight.values()))
        client.is_there = True
        client.speak()
        await until(lambda: all(one.received for one in group_of(node).in_flight.values()))
        assert (await client.event())["attempt"] == 2


async def test_a_slow_client_that_answers_pings_keeps_its_subscription(node, subscribed):
    async with subscribed(credit=1, visibility_ms=100) as client:
        await put(node, 1)
        assert [(await client.event())["attempt"] for _ in range(3)] == [1, 2, 3]
        last = await client.event()
        await ack(node, AckRequest(topic="t", group="g", msg_id=last["msg_id"], receipt=last["receipt"]))
        await put(node, 2)
        assert (await client.event())["attempt"] == 1
        assert client.pings


async def test_after_a_timeout_nothing_is_pushed_until_the_client_is_heard(node, subscribed):
    """Also when the message had been received, and although other messages are ready."""
    async with subscribed(credit=1) as client:
        await put(node, 1, 2)
        await client.event()
        client.speak()
        client.is_there = False
        await until(lambda: not group_of(node).in_flight)
        assert await take(node, 5) == [(1, 2), (2, 1)]
        assert client.events.empty()


async def test_the_end_of_a_silent_subscription_leaves_nothing(node, subscribed):
    async with subscribed() as client:
        client.is_there = False
        await put(node, 1)
        await client.event()
        await until(lambda: silent(node))
    assert client.task.cancelled()
    assert not group_of(node).in_flight
    assert not node.services["queue-subscribers"]._by_group


def end_unreceived(desk, how):
    (message,) = desk.take()
    named = {"topic": "t", "group": "g", "msg_ids": [message["msg_id"]], "receipts": [message["receipt"]]}
    if how == "disconnect":
        desk.do(GiveBack(**named))
    else:
        desk.do(MarkReceived(**named, received=False))
        desk.pass_ms(20_000)
    return message["attempt"]


@pytest.mark.parametrize("how", ["disconnect", "timeout"])
def test_a_message_that_crashes_its_consumers_becomes_a_dead_letter(desk, how):
    desk.settings(max_attempts=3)
    desk.publish(1)
    attempts = []
    while not desk.dead:
        attempts.append(end_unreceived(desk, how))
        desk.restart()
    assert attempts == [1] * (UNCOUNTED_MAX + 1) + [2, 3]
    (dead,) = desk.broker.topics["t"].groups["g"].dead.values()
    assert (dead.reason, dead.attempts) == ("max_attempts", 3)


@pytest.mark.parametrize("command", ["queue.give_back", "queue.mark_received"])
def test_deliveries_and_receipts_must_match(command):
    """Otherwise applying the command would fail, on every node."""
    fields = {"op": command, "topic": "t", "group": "g", "msg_ids": ["1-0", "1-1"], "receipts": ["1-0.1"], "received": True}
    if command == "queue.give_back":
        del fields["received"]
    with pytest.raises(msgspec.ValidationError, match="same length"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=GiveBack | MarkReceived)


def test_a_late_or_foreign_receipt_marks_nothing(desk):
    desk.publish(1)
    (message,) = desk.take()
    named = {"topic": "t", "group": "g", "msg_ids": [message["msg_id"]], "receipts": [message["msg_id"] + ".999"]}
    desk.do(MarkReceived(**named, received=False))
    desk.do(GiveBack(**named))
    desk.do(GiveBack(**{**named, "topic": "other"}))
    desk.pass_ms(20_000)
    assert [one["attempt"] for one in desk.take()] == [2]


def test_an_extension_shows_that_the_message_was_received(desk):
    desk.publish(1)
    (message,) = desk.take()
    named = {"topic": "t", "group": "g", "msg_ids": [message["msg_id"]], "receipts": [message["receipt"]]}
    desk.do(MarkReceived(**named, received=False))
    desk.extend(message["msg_id"], 1000)
    desk.pass_ms(2000)
    assert [one["attempt"] for one in desk.take()] == [2]


# ---------------------------------------------------------------- on real nodes


class Vanished:
    """A WebSocket client that subscribes, and then neither reads nor answers anything; its connection stays open."""

    def __init__(self, port: int, request: dict[str, Any]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b"101" in self._socket.recv(4096)
        call = json.dumps({"id": 1, "op": "queue.subscribe", "request": request}).encode()
        self._socket.sendall(Frame(Opcode.TEXT, call).serialize(mask=True))

    def close(self) -> None:
        self._socket.close()


@pytest.mark.cluster
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_a_vanished_host_costs_no_attempt(tmp_path, server):
    environment = {"DSS_CLUSTER_SECRET": "test", "DSS_ADMIN_PASSWORD": "test", "DSS_SERVER": server}
    cluster = LocalCluster(tmp_path, free_ports(1), environment)
    cluster.start()
    try:
        cluster.wait_ready()
        (node,) = cluster.nodes
        slow = {"topic": "slow", "group": "g", "credit": 1, "visibility_ms": 1500}
        with connect(node.websocket_url, ssl=node.tls) as listening:
            listening.send(json.dumps({"id": 1, "op": "queue.subscribe", "request": slow}))
            node.call("POST", "/queue/publish", {"topic": "slow", "value": 0})
            attempts = [json.loads(listening.recv(timeout=60))["event"]["attempt"] for _ in range(3)]
            assert attempts == [1, 2, 3], "a client that only answers pings has received them"

        node.call("PUT", "/queue/topic", {"topic": "t", "max_attempts": 3})
        vanished = Vanished(node.port, {"topic": "t", "group": "g", "credit": 10, "visibility_ms": 2000})
        await in_group(node, lambda group: group["waiters"] == 1)
        node.call("POST", "/queue/publish", {"topic": "t", "messages": [{"value": n} for n in range(5)]})
        await in_group(node, lambda group: group["in_flight"] == 5)
        await in_group(node, lambda group: group["ready"] == 5 or group["dead"])
        taken = {"topic": "t", "group": "g", "max_messages": 10, "timeout_ms": 0}
        await asyncio.sleep(4)  # two more timeouts, if it were pushed again
        got = node.call("POST", "/queue/consume", taken).json["messages"]
        assert [(one["value"], one["attempt"]) for one in got] == [(n, 1) for n in range(5)]
        vanished.close()
    finally:
        cluster.stop()


async def in_group(node, holds) -> None:
    async with asyncio.timeout(60):
        while True:
            groups = node.call("GET", "/queue/stats?topic=t").json["groups"]
            if groups and holds(groups[0]):
                return
            await asyncio.sleep(POLL_S)
