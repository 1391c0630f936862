"""Three nodes of NATS with a JetStream stream of three replicas, called through nats-py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import nats.errors
from nats.js.api import RetentionPolicy, StreamConfig

from dss_dev.local_cluster import free_ports
from peers.processes import Processes, find
from peers.work import Work

PROGRAM = "NATS JetStream, 3 nodes"
DURABILITY = "a majority's memory, no fsync for each message"
NODES = 3
BATCH = 100
READY_TIMEOUT_S = 30


@contextlib.contextmanager
def start(directory: Path) -> Iterator[str]:
    """The URL of a node.

    Raises:
        NotInstalled: see `find`.
    """
    program = find("nats-server", "nats-server")
    ports = free_ports(2 * NODES)
    clients, routes = ports[:NODES], ports[NODES:]
    with Processes(directory / "nats") as processes:
        for number, (client, route) in enumerate(zip(clients, routes, strict=True)):
            config = processes.directory / f"n{number}.conf"
            others = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
            config.write_text(
                f"server_name: n{number}\nlisten: 127.0.0.1:{client}\njetstream {{ store_dir: n{number} }}\n"
                f"cluster {{ name: bench, listen: 127.0.0.1:{route}, routes: [{others}] }}\n"
            )
            processes.start(f"n{number}", [program, "-c", str(config)])
        processes.wait_for(ports)
        yield f"nats://127.0.0.1:{clients[1]}"


@contextlib.asynccontextmanager
async def works(url: str, callers: int) -> AsyncIterator[list[Work]]:
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream(timeout=20)
        await _make_streams(stream)
        pulls = [await stream.pull_subscribe("topic", durable="group") for _ in range(callers)]

        async def publish(caller: int) -> int:
            await stream.publish("sent", b'{"n":1}')
            return 1

        async def take(caller: int, count: int) -> int:
            try:
                messages = await pulls[caller].fetch(count, timeout=1)
            except nats.errors.TimeoutError:
                return 0
            await asyncio.gather(*(message.ack_sync(timeout=20) for message in messages))
            return len(messages)

        async def fill(count: int) -> None:
            for start in range(0, count, 500):
                await asyncio.gather(*(stream.publish("topic", b'{"n":1}') for _ in range(start, min(start + 500, count))))

        yield [
            Work("publish", PROGRAM, publish),
            Work("consume + ack", PROGRAM, lambda caller: take(caller, 1), fill),
            Work(f"consume + ack by {BATCH}", PROGRAM, lambda caller: take(caller, BATCH), fill),
        ]
    finally:
        await connection.close()


async def _make_streams(stream: nats.js.JetStreamContext) -> None:
    """The nodes need some seconds to form their cluster."""
    for name, retention in (("sent", RetentionPolicy.LIMITS), ("topic", RetentionPolicy.WORK_QUEUE)):
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
                    await stream.add_stream(StreamConfig(name=name, subjects=[name], num_replicas=NODES, retention=retention))
                    break
                await asyncio.sleep(0.2)
