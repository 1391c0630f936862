"""One Redis that writes each command to the disk before it answers, called through redis-py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import redis.asyncio

from dss_dev.local_cluster import free_ports
from peers.processes import Processes, find
from peers.work import Work

PROGRAM = "Redis, 1 node"
DURABILITY = "fsync (appendfsync always), no replica"
BATCH = 100


@contextlib.contextmanager
def start(directory: Path) -> Iterator[str]:
    """Its URL.

    Raises:
        NotInstalled: see `find`.
    """
    program = find("redis-server", "redis-server")
    (port,) = free_ports(1)
    with Processes(directory / "redis") as processes:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        processes.start("redis", [program, *options])
        processes.wait_for([port])
        yield f"redis://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def works(url: str, callers: int) -> AsyncIterator[list[Work]]:
    client = redis.asyncio.Redis.from_url(url, max_connections=callers + 1)
    try:
        await client.set("page", '{"n":1}')
        await client.xgroup_create("topic", "group", id="0", mkstream=True)
        locks = [client.lock(f"lock-{caller}", timeout=30) for caller in range(callers)]

        async def lock(caller: int) -> int:
            await locks[caller].acquire()
            await locks[caller].release()
            return 1

        async def put(caller: int) -> int:
            await client.set(f"key-{caller}", '{"n":1}')
            return 1

        async def get(caller: int) -> int:
            await client.get("page")
            return 1

        async def publish(caller: int) -> int:
            await client.xadd("sent", {"value": '{"n":1}'})
            return 1

        async def take(caller: int, count: int) -> int:
            found = await client.xreadgroup("group", f"consumer-{caller}", {"topic": ">"}, count=count)
            ids = [entry[0] for _, entries in found for entry in entries]
            if ids:
                await client.xack("topic", "group", *ids)
            return len(ids)

        async def fill(count: int) -> None:
            for start in range(0, count, 1000):
                async with client.pipeline(transaction=False) as pipeline:
                    for _ in range(start, min(start + 1000, count)):
                        pipeline.xadd("topic", {"value": '{"n":1}'})
                    await pipeline.execute()
                await asyncio.sleep(0)

        yield [
            Work("lock cycle", PROGRAM, lock),
            Work("put", PROGRAM, put),
            Work("get", PROGRAM, get),
            Work("publish", PROGRAM, publish),
            Work("consume + ack", PROGRAM, lambda caller: take(caller, 1), fill),
            Work(f"consume + ack by {BATCH}", PROGRAM, lambda caller: take(caller, BATCH), fill),
        ]
    finally:
        await client.aclose()
