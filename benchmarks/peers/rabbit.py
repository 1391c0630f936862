"""Three nodes of RabbitMQ with quorum queues, called through aio-pika."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aio_pika
import rabbitmq

from peers.processes import NotInstalled
from peers.work import Work

PROGRAM = "RabbitMQ quorum queue, 3 nodes"
DURABILITY = "fsync on a majority; acks are not answered"
BATCH = 100


@contextlib.contextmanager
def start(directory: Path) -> Iterator[str]:
    """The URL of a node.

    Raises:
        NotInstalled: RabbitMQ is not installed.
    """
    if rabbitmq.find() is None:
        raise NotInstalled("RabbitMQ is not installed (Debian: apt install rabbitmq-server)")
    with rabbitmq.RabbitCluster(directory) as cluster:
        yield cluster.urls[1]


@contextlib.asynccontextmanager
async def works(url: str, callers: int) -> AsyncIterator[list[Work]]:
    """Messages are pushed, at most `callers` times `BATCH` at a time. The broker does not confirm acks."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
        await channel.declare_queue("sent", durable=True, arguments=arguments)
        queue = await channel.declare_queue("topic", durable=True, arguments=arguments)
        await channel.set_qos(prefetch_count=callers * BATCH)
        arrived: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        message = aio_pika.Message(b'{"n":1}', delivery_mode=aio_pika.DeliveryMode.PERSISTENT)

        async def send(name: str) -> None:
            await channel.default_exchange.publish(message, routing_key=name, mandatory=True)

        async def publish(caller: int) -> int:
            await send("sent")
            return 1

        async def take(caller: int, count: int) -> int:
            taken = []
            try:
                async with asyncio.timeout(1):
                    while len(taken) < count:
                        taken.append(await arrived.get())
            except TimeoutError:
                pass
            if taken:
                # Of this one and all that were delivered before.
                await taken[-1].ack(multiple=count > 1)
            return len(taken)

        async def fill(count: int) -> None:
            for start in range(0, count, 500):
                await asyncio.gather(*(send("topic") for _ in range(start, min(start + 500, count))))

        consumer = await queue.consume(arrived.put)
        try:
            yield [
                Work("publish", PROGRAM, publish),
                Work("consume + ack", PROGRAM, lambda caller: take(caller, 1), fill),
            ]
        finally:
            await queue.cancel(consumer)
