"""Many waiting consumers on one node: each message wakes one of them, and consumers that disconnect leave nothing behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from websockets.asyncio.client import connect

from dss_dev.local_cluster import HOST, LocalCluster, LocalNode

pytestmark = pytest.mark.cluster

LONG_POLLS = 300
SUBSCRIPTIONS = 100
HOUR_MS = 3_600_000


def waiters(node: LocalNode, topic: str) -> int:
    """Consumers that wait for a topic, as this node sees them."""
    return sum(group["waiters"] for group in node.call("GET", f"/queue/stats?topic={topic}").json["groups"])


class LongPoll:
    """A consume that waits."""

    async def ask(self, node: LocalNode, topic: str) -> None:
        self.reader, self.writer = await asyncio.open_connection(HOST, node.port, ssl=node.tls)
        body = json.dumps({"topic": topic, "group": "g", "timeout_ms": 20_000, "visibility_ms": HOUR_MS})
        head = f"POST /queue/consume HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write((head + body).encode())

    async def value(self) -> int:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        return json.loads(await self.reader.readexactly(length))["value"]


def publish(node: LocalNode, topic: str, count: int) -> None:
    messages = [{"value": number} for number in range(count)]
    assert node.call("POST", "/queue/publish", {"topic": topic, "messages": messages}).status == 200


def test_long_polls_get_one_message_each_and_leave_nothing_behind(shared_cluster: LocalCluster, wait_until: Callable):
    near, far = shared_cluster.nodes[0], shared_cluster.nodes[1]

    async def run() -> None:
        polls = [LongPoll() for _ in range(LONG_POLLS)]
        await asyncio.gather(*(poll.ask(near, "polled") for poll in polls))
        await asyncio.to_thread(wait_until, lambda: waiters(far, "polled") == LONG_POLLS, lambda: str(waiters(far, "polled")))
        await asyncio.to_thread(publish, far, "polled", LONG_POLLS // 2)
        served = [asyncio.create_task(poll.value()) for poll in polls]
        got: list[int] = []
        for task in asyncio.as_completed(served):
            got.append(await task)
            if len(got) == LONG_POLLS // 2:
                break
        assert sorted(got) == list(range(LONG_POLLS // 2))
        assert waiters(far, "polled") == LONG_POLLS - LONG_POLLS // 2
        for task in served:
            task.cancel()
        for poll in polls:
            poll.writer.close()
        await asyncio.to_thread(wait_until, lambda: waiters(far, "polled") == 0, lambda: str(waiters(far, "polled")))

    asyncio.run(run())
    publish(far, "polled", 1)
    got = far.call("POST", "/queue/consume", {"topic": "polled", "group": "g", "timeout_ms": 0}).json
    assert (got["value"], got["attempt"]) == (0, 1), "no consumer that had disconnected got it"


def test_subscriptions_share_what_comes_and_leave_nothing_behind(shared_cluster: LocalCluster, wait_until: Callable):
    near, far = shared_cluster.nodes[0], shared_cluster.nodes[1]
    request = {"topic": "pushed", "group": "g", "credit": 1, "visibility_ms": HOUR_MS}

    async def run() -> None:
        sockets = [await connect(near.websocket_url, ssl=near.tls) for _ in range(SUBSCRIPTIONS)]
        for socket in sockets:
            await socket.send(json.dumps({"id": 1, "op": "queue.subscribe", "request": request}))
        await asyncio.to_thread(wait_until, lambda: waiters(far, "pushed") == SUBSCRIPTIONS, lambda: str(waiters(far, "pushed")))
        await asyncio.to_thread(publish, far, "pushed", SUBSCRIPTIONS)
        frames = [json.loads(await socket.recv()) for socket in sockets]
        assert sorted(frame["event"]["value"] for frame in frames) == list(range(SUBSCRIPTIONS))
        await asyncio.gather(*(socket.close() for socket in sockets))

    asyncio.run(run())
    # The unfinished messages of the subscribers are back, and their attempts do not count.
    back: list[dict] = []
    while len(back) < SUBSCRIPTIONS:
        request = {"topic": "pushed", "group": "g", "max_messages": SUBSCRIPTIONS, "timeout_ms": 20_000}
        messages = far.call("POST", "/queue/consume", request).json["messages"]
        assert messages, f"only {len(back)} came back"
        back += messages
    assert {one["attempt"] for one in back} == {1}
    assert waiters(far, "pushed") == 0
