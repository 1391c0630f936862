"""Near clients of real nodes: a put waits for a client, for one that stalls, and for the clients of a process that was killed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from dss_cache.core.leases import MARGIN, RATE_ERROR
from dss_dev.local_cluster import LocalCluster, LocalNode

pytestmark = pytest.mark.cluster

#: longer than a node takes to start
CLIENT_LEASE_S = 6.0
LEASE_S = 10.0
#: what a client uses of a lease
USED = 1 - RATE_ERROR - MARGIN


class NearClient:
    """The client's side of `cache.near`."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.token = 0

    async def say(self, op: str, **request: Any) -> None:
        await self.socket.send(json.dumps({"id": 1 if op == "cache.near" else -1, "op": op, "request": request}))

    async def event(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self.socket.recv())
        return answer.get("event", answer)

    async def ask(self, op: str, **request: Any) -> dict[str, Any]:
        self.token += 1
        await self.say(op, call=1, token=self.token, **request)
        event = await self.event()
        assert event["token"] == self.token
        return event

    async def warm(self, key: str) -> float:
        """Hold the key under a lease. Returns when the lease was asked for."""
        while True:
            asked_at = time.monotonic()
            if "lease_ms" in await self.ask("cache.near.renew"):
                [item] = (await self.ask("cache.near.fetch", keys=[key]))["fetched"]
                if item["install"]:
                    return asked_at


def put(node: LocalNode, value: Any) -> float:
    """Returns when it was answered."""
    reply = node.call("POST", "/cache/put", {"key": "k", "value": value})
    assert reply.status == 200, reply.body
    return time.monotonic()


def test_puts_wait_for_near_clients(make_cluster: Callable[..., LocalCluster]) -> None:
    cluster = make_cluster(DSS_CACHE_CLIENT_LEASE_MS=f"{CLIENT_LEASE_S * 1000:.0f}", DSS_CACHE_LEASE_MS=f"{LEASE_S * 1000:.0f}")
    first, second, _ = cluster.nodes

    async def scene() -> None:
        put(second, 0)
        async with connect(first.websocket_url) as socket:
            client = NearClient(socket)
            await client.say("cache.near")
            assert (await client.event())["opened"]["node"] == first.id
            for value in range(1, 4):
                await client.warm("k")
                putting = asyncio.create_task(asyncio.to_thread(put, second, value))
                drop = await client.event()
                assert drop["drop"] == ["k"]
                assert not putting.done()
                await client.say("cache.near.confirm", call=1, seq=drop["seq"])
                await putting
                [item] = (await client.ask("cache.near.fetch", keys=["k"]))["fetched"]
                assert (item["value"], item["install"]) == (value, True)
            asked_at = await client.warm("k")
            answered_at = await asyncio.to_thread(put, second, "the client stalls")
            assert answered_at >= asked_at + USED * CLIENT_LEASE_S
            assert (await client.event())["drop"] == ["k"]
            assert (await client.event())["code"] == "request_timeout"
        async with connect(first.websocket_url) as socket:
            client = NearClient(socket)
            await client.say("cache.near")
            await client.event()
            asked_at = await client.warm("k")
            first.kill()
            first.start()
            answered_at = await asyncio.to_thread(put, second, "the node was killed and has started again")
            assert answered_at >= asked_at + USED * CLIENT_LEASE_S, "a client of the killed process still has its lease"
        await asyncio.to_thread(cluster.wait_ready)

    asyncio.run(scene())
