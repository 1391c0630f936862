"""Subscriptions: messages are pushed up to the credit and given back when the subscription ends."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dss_api.errors import Refused
from dss_api.liveness import Liveness
from dss_dev.local_cluster import POLL_S, LocalCluster, LocalNode, free_ports
from dss_dev.websocket import connect
from dss_queue import push
from dss_queue.core.commands import AckRequest, ConsumeRequest, Nack, PublishRequest, Subscribe
from dss_queue.core.topic_commands import DeleteGroup, DeleteTopic
from dss_queue.operations import ack, consume, nack, publish
from dss_queue.push import subscribe
from dss_queue.subscribers import Subscribers

README = Path(__file__).parents[2] / "queue" / "README.md"


class Feed:
    """A client that reads everything immediately."""

    backlog = 0

    def __init__(self) -> None:
        self.liveness = Liveness()
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def push(self, event: Any) -> None:
        self.events.put_nowait(msgspec.structs.asdict(event))

    async def drained(self) -> None: ...

    async def value(self) -> Any:
        async with asyncio.timeout(60):
            event = await self.events.get()
        return json.loads(bytes(event["value"])), event


@pytest.fixture
def subscribed(node, time_of_ticks):
    """`async with subscribed(credit=2) as feed`."""
    Subscribers(node)

    @asynccontextmanager
    async def open_(**fields: Any):
        feed = Feed()
        request = Subscribe(topic="t", group="g", **fields)
        task = asyncio.create_task(subscribe(node, request, feed))
        await asyncio.sleep(0)
        feed.task = task
        yield feed
        task.cancel()
        await asyncio.wait((task,))

    return open_


async def put(node, *values: Any, **fields: Any) -> None:
    for value in values:
        await publish(node, PublishRequest(topic="t", value=msgspec.Raw(msgspec.json.encode(value)), **fields))


async def test_a_subscription_stays_while_the_queue_is_full(node, subscribed, monkeypatch):
    monkeypatch.setattr(push, "FULL_PAUSE_S", 0.01)
    async with subscribed(credit=1) as feed:
        await put(node, 1, 2)
        value, event = await feed.value()
        assert value == 1
        maxima, message = node.broker.limits.maxima, AckRequest(topic="t", group="g", msg_id=event["msg_id"])
        maximum, maxima["queue_bytes_max"] = maxima["queue_bytes_max"], 1
        await ack(node, message)
        value, event = await feed.value()
        assert value == 2, "what is ready is pushed"
        consumes = len(node.commands)
        await ack(node, AckRequest(topic="t", group="g", msg_id=event["msg_id"]))
        # No consume waits: it is refused and repeated.
        while len(node.commands) < consumes + 4 and not feed.task.done():  # noqa: ASYNC110  (nothing else tells)
            await asyncio.sleep(0)
        assert not feed.task.done()
        maxima["queue_bytes_max"] = maximum
        await put(node, 3)
        assert (await feed.value())[0] == 3


@pytest.mark.parametrize(("wait_ms", "pauses"), [(20_000, 2), (0, 0)], ids=["at once", "after its wait"])
async def test_subscriptions_that_were_refused_together_come_back_at_different_moments(
    node, subscribed, monkeypatch, wait_ms, pauses
):
    """One whose consume has waited where it could comes back immediately."""
    drawn, refused, consume_now = [], [], push._consume

    def uniform(low, high):
        drawn.append((low, high))
        return 0.0

    async def away():
        raise Refused("engine_away", "a server is away")

    def consume_later(node, command):
        if len(refused) == 2:
            return consume_now(node, msgspec.structs.replace(command, timeout_ms=20_000))
        refused.append(command)
        return away()

    monkeypatch.setattr(push, "random", SimpleNamespace(uniform=uniform))
    monkeypatch.setattr(push, "WAIT_MS_MAX", wait_ms)
    monkeypatch.setattr(push, "_consume", consume_later)
    await put(node, 1)
    async with subscribed(credit=1) as feed:
        assert (await feed.value())[0] == 1
    assert drawn == [(0.5, 1.0)] * pauses


async def nothing_comes(node, feed: Feed) -> None:
    """It does not happen within a few entries of the log."""
    index = node.index
    while node.index < index + 5:  # noqa: ASYNC110  (the log of this double grows by itself)
        await asyncio.sleep(0.001)
    assert feed.events.empty()


async def test_messages_are_pushed_up_to_the_credit(node, subscribed):
    async with subscribed(credit=2) as feed:
        await put(node, 1, 2, 3)
        (one, first), (two, _) = await feed.value(), await feed.value()
        assert (one, two) == (1, 2)
        await nothing_comes(node, feed)
        await ack(node, AckRequest(topic="t", group="g", msg_id=first["msg_id"], receipt=first["receipt"]))
        assert (await feed.value())[0] == 3


async def test_an_ack_of_several_makes_room_for_as_many(node, subscribed):
    async with subscribed(credit=3) as feed:
        await put(node, *range(6))
        events = [(await feed.value())[1] for _ in range(3)]
        ids, receipts = [event["msg_id"] for event in events], [event["receipt"] for event in events]
        await ack(node, AckRequest(topic="t", group="g", msg_ids=ids, receipts=receipts))
        assert [(await feed.value())[0] for _ in range(3)] == [3, 4, 5]


async def test_a_visibility_timeout_makes_room_too(node, subscribed):
    async with subscribed(credit=1, visibility_ms=50) as feed:
        await put(node, "slow")
        _, first = await feed.value()
        value, again = await feed.value()
        assert (value, first["attempt"], again["attempt"]) == ("slow", 1, 2)


async def test_an_ack_at_another_node_makes_room_at_the_next_tick(node, subscribed):
    async with subscribed(credit=1) as feed:
        await put(node, 1, 2)
        _, first = await feed.value()
        await node.submit(Nack(topic="t", group="g", msg_id=first["msg_id"], receipt=first["receipt"], dead=True))
        assert (await feed.value())[0] == 2


async def test_the_end_gives_messages_back_without_counting_an_attempt(node, subscribed):
    async with subscribed(credit=2, visibility_ms=3_600_000) as feed:
        await put(node, 1, 2, 3)
        done, _ = (await feed.value())[1], await feed.value()
        await ack(node, AckRequest(topic="t", group="g", msg_id=done["msg_id"], receipt=done["receipt"]))
        assert (await feed.value())[0] == 3
    answer = await consume(node, ConsumeRequest(topic="t", group="g", timeout_ms=0, max_messages=10))
    assert [(json.loads(bytes(one.value)), one.attempt) for one in answer.messages] == [(2, 1), (3, 1)]
    assert not node.services["queue-subscribers"]._by_group, "nothing is left of it"


async def test_the_end_of_an_idle_subscription_leaves_no_waiter(node, subscribed):
    async with subscribed() as feed:
        await put(node, 1)
        await feed.value()
    await put(node, 2)
    assert not node.broker.callers.waiters
    answer = await consume(node, ConsumeRequest(topic="t", group="g", timeout_ms=0, max_messages=10))
    assert len(answer.messages) == 2


@pytest.mark.parametrize("command", [DeleteTopic(topic="t"), DeleteGroup(topic="t", group="g")], ids=["topic", "group"])
@pytest.mark.parametrize("credit", [2, 1], ids=["waiting", "full"])
async def test_a_subscription_ends_when_its_topic_or_group_is_deleted(node, subscribed, command, credit):
    """Also when it is full, and so has no consume waiting that could be refused. Its next pull creates nothing."""
    async with subscribed(credit=credit) as feed:
        await put(node, 1)
        await feed.value()
        await node.submit(command)
        async with asyncio.timeout(60):
            result = await asyncio.shield(feed.task)
        assert (result.code, result.body) == ("not_found", {"detail": "the topic or the group was deleted"})
    topic = node.broker.topics.get("t")
    assert topic is None or not topic.groups
    assert (topic is None) == isinstance(command, DeleteTopic)


async def test_a_time_without_a_leader_does_not_end_a_subscription(node, subscribed):
    node.refusal = Refused("no_leader", "")
    original = node.submit
    tries = []

    async def submit(command, **options):
        tries.append(command)
        await asyncio.sleep(0)
        return await original(command, **options)

    node.submit = submit
    async with subscribed() as feed:
        while len(tries) < 3:  # noqa: ASYNC110  (each try is a turn of the loop)
            await asyncio.sleep(0)
        node.refusal = None
        await put(node, 1)
        assert (await feed.value())[0] == 1
        node.refusal = Refused("stopping", "")
        feed.task.cancel()
        await asyncio.wait((feed.task,))
        assert feed.task.cancelled(), "a node that stops cannot take back; visibility does"


async def test_a_nack_at_this_node_makes_room(node, subscribed):
    async with subscribed(credit=1) as feed:
        await put(node, 1)
        _, first = await feed.value()
        await nack(node, Nack(topic="t", group="g", msg_id=first["msg_id"], receipt=first["receipt"]))
        assert (await feed.value())[1]["attempt"] == 2


@pytest.mark.cluster
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_over_a_real_websocket(tmp_path, server):
    """Push at one node and ack at another. A closed connection and a stopped node both give messages back."""
    environment = {"DSS_CLUSTER_SECRET": "test", "DSS_ADMIN_PASSWORD": "test", "DSS_SERVER": server}
    cluster = LocalCluster(tmp_path, free_ports(3), environment)
    cluster.start()
    try:
        cluster.wait_ready()
        first, second, third = cluster.nodes
        subscription = {"topic": "t", "group": "g", "credit": 2, "visibility_ms": 3_600_000}
        with connect(first.websocket_url, ssl=first.tls) as listening:
            listening.send(json.dumps({"id": 1, "op": "queue.subscribe", "request": subscription}))
            messages = [{"value": n} for n in range(4)]
            assert second.call("POST", "/queue/publish", {"topic": "t", "messages": messages}).status == 200
            events = [json.loads(listening.recv(timeout=60)) for _ in range(2)]
            assert [(event["id"], event["event"]["value"]) for event in events] == [(1, 0), (1, 1)]
            done = {"topic": "t", "group": "g", "msg_id": events[0]["event"]["msg_id"]}
            assert third.call("POST", "/queue/ack", done).json["acked"]
            assert json.loads(listening.recv(timeout=60))["event"]["value"] == 2
        until(second, "t", lambda group: group["in_flight"] == 0)
        got = second.call("POST", "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 20_000, "max_messages": 1}).json
        assert (got["messages"][0]["value"], got["messages"][0]["attempt"]) == (1, 1), "given back, although hidden for an hour"

        with connect(third.websocket_url, ssl=third.tls) as listening:
            listening.send(json.dumps({"id": 1, "op": "queue.subscribe", "request": subscription}))
            assert [json.loads(listening.recv(timeout=60))["event"]["value"] for _ in range(2)] == [2, 3]
            third.stop()
            got = first.call("POST", "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 20_000, "max_messages": 2}).json
            assert [(one["value"], one["attempt"]) for one in got["messages"]] == [(2, 1), (3, 1)]

        if first.is_secure:
            return  # a paused process does not answer a handshake, and the README has an address without TLS
        # A client that hangs up immediately gets nothing, and withholds nothing from others.
        assert first.call("POST", "/queue/publish", {"topic": "t", "value": 9}).status == 200
        for node in (first, second):
            hang_up_at_once(node, {"topic": "t", "group": "g", "timeout_ms": 20_000, "visibility_ms": 3_600_000})
            got = node.call("POST", "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 20_000}).json
            assert (got["value"], got["attempt"]) == (9, 1)
            give_back = {
                "topic": "t",
                "group": "g",
                "msg_id": got["msg_id"],
                "receipt": got["receipt"],
                "silent": True,
                "delay_ms": 0,
            }
            assert node.call("POST", "/queue/nack", give_back).status == 200

        run_the_readme(first, second)
    finally:
        cluster.stop()


def until(node: LocalNode, topic: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until this holds for the topic's only group."""
    deadline = time.monotonic() + 60
    while not ((groups := node.call("GET", f"/queue/stats?topic={topic}").json["groups"]) and holds(groups[0])):
        assert time.monotonic() < deadline, groups
        time.sleep(POLL_S)


def run_the_readme(publisher: LocalNode, node: LocalNode) -> None:
    """Run the consumer of the README: it acks more messages than its credit, until its node stops."""
    code = README.read_text().split("```python\n")[1].split("```")[0].replace("127.0.0.1:8101", f"127.0.0.1:{node.port}")
    consumer = threading.Thread(target=exec, args=(code, {}))
    consumer.start()
    messages = [{"value": number} for number in range(25)]
    assert publisher.call("POST", "/queue/publish", {"topic": "orders", "messages": messages}).status == 200
    until(publisher, "orders", lambda group: group["acked"] == len(messages))
    node.stop()
    consumer.join(60)
    assert not consumer.is_alive()


def hang_up_at_once(node, request) -> None:
    """Make a call and close the connection before it can be answered: the node is paused meanwhile."""
    body = json.dumps(request).encode()
    head = f"POST /queue/consume HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    node.pause()
    try:
        with socket.create_connection(("127.0.0.1", node.port)) as connection:
            connection.sendall(head.encode() + body)
    finally:
        node.resume()
