"""Idle consumers: the cost of 10,000 long polls and 2,000 subscriptions on one node while no message is published, and the time until
one of them has a message.

    python benchmarks/bench_queue_idle.py                          # about three minutes; also as results/bench_queue_idle.json
    python benchmarks/bench_queue_idle.py --server uvicorn --nodes 3

Each consumer has a connection and a group of its own; ten of them share a topic. A client repeats its long poll as soon as it is
answered. The clients share the machine with the node, but only the node's processor time and memory are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop
from websockets.asyncio.client import ClientConnection, connect

from dss_dev.local_cluster import HOST, ROOT, LocalCluster, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_queue_idle.json"
WAIT_MS = 20_000
#: connections that are being opened at one time
OPENING = 100
#: file descriptors in addition to the connections
SPARE_FILES = 500
GROUPS_PER_TOPIC = 10


class LongPoll(asyncio.Protocol):
    """A consumer that repeats its long poll and acks nothing, because its group is its own."""

    def __init__(self, topic: str, group: str) -> None:
        body = json.dumps({"topic": topic, "group": group, "timeout_ms": WAIT_MS}).encode()
        head = f"POST /queue/consume HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.topic = topic
        self.buffer = b""
        self.failures = 0
        self.got: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]):
            return
        self.buffer = b""
        self.failures += head[9:12] != b"200"
        if b'"receipt"' in body and not self.got.done():
            self.got.set_result(time.perf_counter())
        self.transport.write(self.request)

    def connection_lost(self, error: Exception | None) -> None:
        self.failures += 1


class Subscriber:
    """A subscription on a connection of its own."""

    def __init__(self, topic: str, group: str, socket: ClientConnection) -> None:
        self.topic = topic
        self.group = group
        self.got: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.failures = 0
        self.reading = asyncio.create_task(self._read(socket))

    async def _read(self, socket: ClientConnection) -> None:
        await socket.send(json.dumps({"id": 1, "op": "queue.subscribe", "request": {"topic": self.topic, "group": self.group}}))
        async for frame in socket:
            if '"event"' not in str(frame):
                self.failures += 1
            elif not self.got.done():
                self.got.set_result(time.perf_counter())


class Clients:
    """All consumers of the run."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.polls: list[LongPoll] = []
        self.subscribers: list[Subscriber] = []

    async def poll(self, count: int) -> None:
        """Open this many long polls."""
        loop = asyncio.get_running_loop()

        async def one(number: int) -> None:
            _, poll = await loop.create_connection(lambda: LongPoll(*_names("poll", number)), HOST, self.port)
            self.polls.append(poll)

        await _in_parts(one, count)

    async def subscribe(self, count: int) -> None:
        """Open this many subscriptions."""

        async def one(number: int) -> None:
            url = f"ws://{HOST}:{self.port}/ws"
            socket = await connect(url, compression=None, ping_interval=None, open_timeout=60)
            self.subscribers.append(Subscriber(*_names("subscription", number), socket))

        await _in_parts(one, count)

    @property
    def failures(self) -> int:
        return sum(one.failures for one in (*self.polls, *self.subscribers))


def _names(kind: str, number: int) -> tuple[str, str]:
    """Topic and group of a consumer."""
    return f"{kind}-{number // GROUPS_PER_TOPIC}", f"group-{number % GROUPS_PER_TOPIC}"


async def _in_parts(one: Any, count: int) -> None:
    for first in range(0, count, OPENING):
        await asyncio.gather(*(one(number) for number in range(first, min(first + OPENING, count))))


async def publish(port: int, topic: str) -> None:
    """Publish one message on an open connection."""
    reader, writer = await _publisher(port)
    body = json.dumps({"topic": topic, "value": {"at": time.time()}}).encode()
    head = (
        f"POST /queue/publish HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    head_bytes = await reader.readuntil(b"\r\n\r\n")
    answer = await reader.readexactly(int(head_bytes.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]))
    if head_bytes[9:12] != b"200":
        raise SystemExit(f"publish was refused: {answer.decode()}")


_publishers: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}


async def _publisher(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if port not in _publishers:
        _publishers[port] = await asyncio.open_connection(HOST, port)
    return _publishers[port]


async def latencies_ms(port: int, consumers: list[Any]) -> dict[str, float]:
    """The time from the start of a publish until this consumer, one of ten that get the message, has it."""
    measured = []
    for consumer in consumers:
        began = time.perf_counter()
        await publish(port, consumer.topic)
        async with asyncio.timeout(WAIT_MS / 1000):
            measured.append((await consumer.got - began) * 1000)
    measured.sort()
    return {"p50_ms": round(measured[len(measured) // 2], 2), "p99_ms": round(measured[int(len(measured) * 0.99)], 2)}


def _one_of_each(consumers: list[Any], count: int) -> list[Any]:
    """Consumers of different topics."""
    return list({consumer.topic: consumer for consumer in consumers}.values())[:count]


class Meter:
    """A node's memory, and its processor time while it is idle."""

    def __init__(self, process_id: int) -> None:
        self._process = psutil.Process(process_id)

    def rss_mib(self) -> float:
        return round(self._process.memory_info().rss / 2**20, 1)

    async def cpu_percent(self, seconds: float) -> float:
        """Processor time in percent of one core, over the next `seconds`."""
        before = sum(self._process.cpu_times()[:2])
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        return round((sum(self._process.cpu_times()[:2]) - before) / (time.perf_counter() - began) * 100, 2)


async def _once_round(what: str) -> None:
    """Wait until each consumer has sent its second poll."""
    print(f"{what} are there; their first round takes {WAIT_MS // 1000} s", flush=True)
    await asyncio.sleep(WAIT_MS / 1000 + 2)


async def measure(cluster: LocalCluster, options: argparse.Namespace) -> dict[str, Any]:
    node = cluster.followers()[0] if len(cluster.nodes) > 1 else cluster.nodes[0]
    assert node.process is not None
    meter, clients = Meter(node.process.pid), Clients(node.port)
    idle: dict[str, Any] = {"no_consumers": {"rss_mib": meter.rss_mib(), "cpu_percent": await meter.cpu_percent(options.seconds)}}
    await clients.subscribe(options.subscriptions)
    await _once_round(f"{options.subscriptions:,} subscriptions")
    idle["subscriptions"] = {"rss_mib": meter.rss_mib(), "cpu_percent": await meter.cpu_percent(options.seconds)}
    await clients.poll(options.polls)
    await _once_round(f"{options.polls:,} long polls")
    idle["subscriptions and long polls"] = {"rss_mib": meter.rss_mib(), "cpu_percent": await meter.cpu_percent(options.seconds)}
    latency = {
        "to a long poll": await latencies_ms(node.port, _one_of_each(clients.polls, options.samples)),
        "to a subscription": await latencies_ms(node.port, _one_of_each(clients.subscribers, options.samples)),
    }
    return {"idle": idle, "publish_to_delivery": latency, "failures": clients.failures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polls", type=int, default=10_000)
    parser.add_argument("--subscriptions", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds over which idle processor time is measured")
    parser.add_argument("--samples", type=int, default=200, help="messages published, one at a time")
    parser.add_argument("--server", default="daphne", choices=["daphne", "uvicorn"])
    parser.add_argument("--nodes", type=int, default=1, choices=[1, 3])
    options = parser.parse_args()
    files = options.polls + options.subscriptions + SPARE_FILES
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < files:
        parser.error(f"{files} files are needed, the limit is {hard}: ulimit -n {files}")
    # The node inherits it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        **{name: getattr(options, name) for name in ("server", "nodes", "polls", "subscriptions", "seconds", "samples")},
    }
    with tempfile.TemporaryDirectory() as name:
        environment = {"DSS_SERVER": options.server, "DSS_CLUSTER_SECRET": "bench"}
        cluster = LocalCluster(Path(name), free_ports(options.nodes), environment)
        cluster.start()
        try:
            cluster.wait_ready()
            result |= uvloop.run(measure(cluster, options))
        finally:
            cluster.stop()
    print(json.dumps(result, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
