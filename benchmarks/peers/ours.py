"""Three nodes of this project, called through its client, and over HTTP through aiohttp."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from dss_client import AsyncClient
from dss_dev.local_cluster import LocalCluster, free_ports
from peers.work import Work

DURABILITY = "fsync on a majority"
BATCH = 100


@contextlib.contextmanager
def start(directory: Path, server: str) -> Iterator[str]:
    """The URL of a follower."""
    cluster = LocalCluster(directory / server, free_ports(3), {"DSS_SERVER": server})
    try:
        cluster.start()
        cluster.wait_ready()
        yield cluster.followers()[0].url
    finally:
        cluster.stop()


@contextlib.asynccontextmanager
async def websocket(url: str, program: str, callers: int) -> AsyncIterator[list[Work]]:
    async with AsyncClient(url) as dss:
        await dss.cache.put("page", {"n": 1})
        locks = [dss.lock(f"lock-{caller}", ttl=30, wait=0) for caller in range(callers)]
        sent, topic = dss.topic("sent"), dss.topic("topic")

        async def lock(caller: int) -> int:
            async with locks[caller]:
                return 1

        async def put(caller: int) -> int:
            await dss.cache.put(f"key-{caller}", {"n": 1})
            return 1

        async def get(caller: int) -> int:
            await dss.cache.get("page")
            return 1

        async def publish(caller: int) -> int:
            await sent.publish({"n": 1})
            return 1

        async def take(caller: int, count: int) -> int:
            messages = await topic.consume("group", max_messages=count)
            if messages:
                ids = [message.msg_id for message in messages]
                await dss.call("queue.ack", topic="topic", group="group", msg_ids=ids)
            return len(messages)

        async def fill(count: int) -> None:
            for start in range(0, count, 1000):
                await topic.publish_many([{"n": 1}] * min(1000, count - start))

        yield [
            Work("lock cycle", program, lock),
            Work("put", program, put),
            Work("get", program, get),
            Work("publish", program, publish),
            Work("consume + ack", program, lambda caller: take(caller, 1), fill),
            Work(f"consume + ack by {BATCH}", program, lambda caller: take(caller, BATCH), fill),
        ]


@contextlib.asynccontextmanager
async def http(url: str, program: str, callers: int) -> AsyncIterator[list[Work]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=callers)) as session:

        async def call(path: str, **fields: Any) -> dict[str, Any]:
            async with session.post(url + path, json=fields) as answer:
                body: dict[str, Any] = await answer.json()
                if answer.status != 200:
                    raise RuntimeError(f"{path}: {body}")
                return body

        await call("/cache/put", key="page", value={"n": 1})

        async def lock(caller: int) -> int:
            names = {"key": f"lock-{caller}", "client": f"http-{caller}"}
            grant = await call("/lock/acquire", **names, ttl_ms=30_000)
            await call("/lock/release", **names, fencing_token=grant["fencing_token"])
            return 1

        async def put(caller: int) -> int:
            await call("/cache/put", key=f"key-{caller}", value={"n": 1})
            return 1

        async def get(caller: int) -> int:
            await call("/cache/get", key="page")
            return 1

        async def publish(caller: int) -> int:
            await call("/queue/publish", topic="sent", value={"n": 1})
            return 1

        yield [
            Work("lock cycle", program, lock),
            Work("put", program, put),
            Work("get", program, get),
            Work("publish", program, publish),
        ]
