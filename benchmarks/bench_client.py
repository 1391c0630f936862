"""The Python client against a bare WebSocket, and against aio-pika on a RabbitMQ quorum queue.

    python benchmarks/bench_client.py                   # the whole table, also as results/bench_client.json
    python benchmarks/bench_client.py --server daphne

One asyncio process with uvloop, one connection to a follower of three nodes, 64 calls in progress. The same calls are made in turn
by the client, by a program that only sends and receives frames (the library websockets, msgspec), and, for publish, by aio-pika, whose
queue has three replicas on three RabbitMQ nodes on this machine, with publisher confirms. Odd alternations begin with the client, even
ones with the others. The ratio of rates has a 95 % interval, as in compare_http.py.

"CPU" is the processor time of the client's process per call; "added" is the client's less the other program's: median, lowest and highest
of the alternations. A lock cycle is two calls. Rows of RabbitMQ are left out, with a message, where it is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import rabbitmq
import uvloop
from bench_http import commit
from compare_http import estimate
from websockets.asyncio.client import connect

from dss_client import AsyncClient
from dss_dev.local_cluster import ROOT, LocalCluster, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_client.json"
CALLERS = 64
WARM_UP_S = 1.0

#: does its work once: `await once(caller)` with the number of the caller
Once = Callable[[int], Awaitable[object]]


@dataclass(frozen=True)
class Work:
    """What one program does.

    Attributes:
        calls: how many calls it makes each time.
    """

    name: str
    program: str
    once: Once
    calls: int = 1


@dataclass
class Measured:
    """One slice of the load."""

    calls_per_s: float
    cpu_us: float


@contextlib.asynccontextmanager
async def bare(url: str) -> AsyncIterator[list[Work]]:
    """Calls on a WebSocket without the client."""
    loop = asyncio.get_running_loop()
    async with connect(url.replace("http", "ws", 1) + "/ws", compression=None, ping_interval=None) as socket:
        waiting: dict[int, asyncio.Future[Any]] = {}
        last_id = 0

        async def read() -> None:
            async for frame in socket:
                answer = msgspec.json.decode(frame)
                waiting.pop(answer["id"]).set_result(answer)

        async def call(operation: str, request: dict[str, Any]) -> dict[str, Any]:
            nonlocal last_id
            last_id += 1
            waiting[last_id] = future = loop.create_future()
            await socket.send(msgspec.json.encode({"id": last_id, "op": operation, "request": request}).decode())
            answer: dict[str, Any] = await future
            if answer["status"] != 200:
                raise RuntimeError(f"{operation}: {answer}")
            return answer

        async def lock(caller: int) -> None:
            key, client = f"bare-{caller}", f"client-{caller}"
            grant = await call("locks.acquire", {"key": key, "client": client, "ttl_ms": 30_000, "wait_ms": 0})
            await call("locks.release", {"key": key, "client": client, "fencing_token": grant["fencing_token"]})

        async def publish(caller: int) -> None:
            await call("queue.publish", {"topic": "bare", "value": {"n": caller}})

        async def get(caller: int) -> None:
            await call("cache.get", {"key": "page"})

        reader = asyncio.create_task(read())
        try:
            yield [
                Work("lock cycle", "bare", lock, calls=2),
                Work("publish", "bare", publish),
                Work("get, hit", "bare", get),
            ]
        finally:
            reader.cancel()


@contextlib.asynccontextmanager
async def client(url: str) -> AsyncIterator[list[Work]]:
    async with AsyncClient(url) as dss:
        await dss.cache.put("page", {"n": 1})
        locks = [dss.lock(f"client-{caller}", ttl=30, wait=0) for caller in range(CALLERS)]
        topic = dss.topic("client")

        async def lock(caller: int) -> None:
            async with locks[caller]:
                pass

        async def publish(caller: int) -> None:
            await topic.publish({"n": caller})

        async def get(caller: int) -> None:
            await dss.cache.get("page")

        yield [
            Work("lock cycle", "client", lock, calls=2),
            Work("publish", "client", publish),
            Work("get, hit", "client", get),
        ]


@contextlib.asynccontextmanager
async def pika(url: str | None) -> AsyncIterator[list[Work]]:
    """Publisher confirms of a quorum queue, or nothing without a URL."""
    if url is None:
        yield []
        return
    import aio_pika

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
        await channel.declare_queue("bench", durable=True, arguments=arguments)

        async def publish(caller: int) -> None:
            body = msgspec.json.encode({"n": caller})
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key="bench", mandatory=True)

        yield [Work("publish", "aio-pika", publish)]


async def run(work: Work, seconds: float) -> Measured:
    """`CALLERS` callers for this long."""
    done = 0
    until = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await work.once(number)
            done += 1

    began, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    calls = done * work.calls
    return Measured(calls / (time.perf_counter() - began), (time.process_time() - cpu_s) / calls * 1e6)


Results = dict[tuple[str, str], list[Measured]]


async def measure(url: str, rabbit_url: str | None, options: argparse.Namespace) -> Results:
    results: Results = {}
    async with client(url) as ours, bare(url) as raw, pika(rabbit_url) as peers:
        programs = [*ours, *raw, *peers]
        for work in programs:
            await run(work, WARM_UP_S)
        for alternation in range(options.alternations):
            for name in ("lock cycle", "publish", "get, hit"):
                works = [work for work in programs if work.name == name]
                for work in works if alternation % 2 == 0 else works[::-1]:
                    results.setdefault((name, work.program), []).append(await run(work, options.seconds))
            print(f"\ralternation {alternation + 1} of {options.alternations}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


@dataclass
class Row:
    """A line of the table: medians, and the client compared with the other program.

    Attributes:
        ratio: the client's rate divided by the other's, with its interval.
        added_us: the client's CPU time per call less the other's: median, lowest, highest.
    """

    calls: str
    program: str
    calls_per_s: int
    cpu_us: float
    ratio: tuple[float, float, float] | None = None
    added_us: tuple[float, float, float] | None = None


def rows_of(results: Results) -> Iterator[Row]:
    for (name, program), measured in results.items():
        row = Row(
            name,
            program,
            round(statistics.median(one.calls_per_s for one in measured)),
            round(statistics.median(one.cpu_us for one in measured), 1),
        )
        if program != "client":
            ours = results[name, "client"]
            ratio = estimate([mine.calls_per_s / its.calls_per_s for mine, its in zip(ours, measured, strict=True)])
            row.ratio = (round(ratio.ratio, 2), round(ratio.low, 2), round(ratio.high, 2))
            added = sorted(mine.cpu_us - its.cpu_us for mine, its in zip(ours, measured, strict=True))
            row.added_us = (round(statistics.median(added), 1), round(added[0], 1), round(added[-1], 1))
        yield row


def print_rows(rows: list[Row]) -> None:
    print(f"{'calls':12} {'program':10} {'per s':>8} {'CPU us':>7}   client's rate, times       CPU added by the client, us")
    for row in rows:
        ratio = "" if row.ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*row.ratio)
        added = "" if row.added_us is None else "{:.1f} ({:.1f} to {:.1f})".format(*row.added_us)
        print(f"{row.calls:12} {row.program:10} {row.calls_per_s:8,} {row.cpu_us:7.1f}   {ratio:26} {added}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="uvicorn", choices=["daphne", "uvicorn"])
    parser.add_argument("--alternations", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, for each program in each alternation")
    parser.add_argument("--quick", action="store_true", help="two short alternations; writes no results")
    options = parser.parse_args()
    if options.quick:
        options.alternations, options.seconds = 2, 0.5
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    print(f"3 nodes ({options.server}) and the client on one machine ({machine}); {CALLERS} calls in progress")
    with tempfile.TemporaryDirectory(prefix="bench-client-") as directory, contextlib.ExitStack() as stack:
        rabbit_url = None
        if rabbitmq.find() is None:
            print("SKIPPED: the row of aio-pika. RabbitMQ is not installed (Debian: apt install rabbitmq-server)")
        else:
            print("RabbitMQ's nodes are starting (about half a minute)", flush=True)
            rabbit_url = stack.enter_context(rabbitmq.RabbitCluster(Path(directory))).urls[1]
        cluster = LocalCluster(Path(directory), free_ports(3), {"DSS_SERVER": options.server})
        stack.callback(cluster.stop)
        cluster.start()
        cluster.wait_ready()
        rows = list(rows_of(uvloop.run(measure(cluster.followers()[0].url, rabbit_url, options))))
    print_rows(rows)
    if options.quick:
        return
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "server": options.server,
        "callers": CALLERS,
        "seconds": options.seconds,
        "alternations": options.alternations,
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
