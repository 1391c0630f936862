"""Do calls cost more at a node with much data? Rates of a full node against those of an empty one, in the same run.

    python benchmarks/bench_growth.py                  # about six minutes, also as results/bench_growth.json
    python benchmarks/bench_growth.py --alternations 1 --messages 100000 --locks 10000

The full node keeps 1,000,000 messages in 1,000 topics, each with a group that has not taken them, and 100,000 locks, and 10,000 calls wait
for locks. Both are single nodes with uvicorn, which run the whole time. Each gets the load for a second, in turn: 64 calls in progress, on
one WebSocket or on 64 connections. Odd alternations begin with the full one, even ones with the empty one. Messages of the load are deleted
after each slice.

A call waits at most 20 s, so the waiting calls are made again for each alternation.

Exit code: 1 if the interval of a row lies wholly below the limit, 2 if the measurement failed.
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
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_http
import psutil
import uvloop
import websocket_load
from bench_http import commit, interpreter
from compare_http import LOADS, Tally, cpu_time_s, estimate, positive

from dss_api.fields import WAIT_MS_MAX
from dss_client import AsyncClient
from dss_client.errors import DssError
from dss_dev.local_cluster import ROOT, LocalCluster, LocalNode, NotReady, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_growth.json"
ROWS = ("ws-lock", "ws-publish", "ws-put", "ws-get", "get", "consume-100")
CALLS = 64
SLICE_S = 1.0
#: a row whose interval lies wholly below this ratio of rates falls short
LIMIT = 0.9
VALUE = "v" * 98
BATCH = 1000
#: the waiting calls and the load come from one address
SETTINGS = {"DSS_SERVER": "uvicorn", "DSS_CALLS_PER_ADDRESS_MAX": "50000", "DSS_PENDING_COMMANDS_MAX": "20000"}
POLL_S = 0.05
LOCK_TTL_MS = 24 * 3600 * 1000
#: a connection may have 1,000 calls in progress
WAITERS_PER_SOCKET = 900
WAITERS_PER_LOCK = 100
GROUP = "workers"


@dataclass
class Target:
    """A node that gets load."""

    node: LocalNode
    process: psutil.Process

    async def load(self, row: str, seconds: float) -> Tally:
        """Send the load of a row, and delete what it has left."""
        if row == "consume-100":
            await bench_http.run(self.node.port, bench_http.publish_batches, CALLS, seconds)
        before_s = cpu_time_s([self.process])
        load, elapsed_s = await LOADS[row](self.node.port, CALLS, seconds, None)
        used_s = cpu_time_s([self.process]) - before_s
        tally = Tally(len(load.latencies) - load.errors, load.errors, elapsed_s, used_s)
        if tally.calls <= 0 or tally.errors > tally.calls // 100:
            raise NotReady(f"{row}: {tally.errors} of {len(load.latencies)} calls failed")
        topics = {"ws-publish": websocket_load.TOPICS, "consume-100": bench_http.BATCH_TOPICS}.get(row, ())
        async with AsyncClient(self.node.url) as dss:
            for topic in topics:
                await dss.call("queue.topic_delete", topic=topic)
        return tally


@contextlib.contextmanager
def started(directory: Path, name: str, port: int) -> Iterator[Target]:
    cluster = LocalCluster(directory / name, [port], SETTINGS)
    try:
        cluster.start()
        cluster.wait_ready()
        yield Target(cluster.nodes[0], psutil.Process(cluster.nodes[0].pid))
    finally:
        cluster.stop()


async def in_turns(calls: Iterable[Any], width: int) -> None:
    """Await all of these, `width` at a time."""
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await call

    await asyncio.gather(*(worker() for _ in range(width)))


async def fill(url: str, options: argparse.Namespace) -> None:
    async with AsyncClient(url) as dss:
        topics = [f"kept-{number}" for number in range(options.topics)]
        await in_turns((dss.topic(topic).consume(GROUP) for topic in topics), CALLS)
        size = min(BATCH, -(-options.messages // options.topics))
        numbers = range(options.messages // size)
        await in_turns((dss.topic(topics[number % len(topics)]).publish_many([VALUE] * size) for number in numbers), 8)
        await in_turns(
            (
                dss.call("locks.acquire", key=f"kept-{number}", client=f"holder-{number % 1000}", ttl_ms=LOCK_TTL_MS)
                for number in range(options.locks)
            ),
            CALLS,
        )


@contextlib.asynccontextmanager
async def waiting_calls(url: str, count: int) -> AsyncIterator[None]:
    """Keep this many calls waiting for locks.

    Raises:
        NotReady: the first of them had to be answered meanwhile.
    """
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(AsyncClient(url)) for _ in range(-(-count // WAITERS_PER_SOCKET))]
        began = time.monotonic()
        calls = [
            asyncio.create_task(
                sockets[number // WAITERS_PER_SOCKET].call(
                    "locks.acquire", key=f"kept-{number // WAITERS_PER_LOCK}", client=f"waiter-{number}", wait_ms=WAIT_MS_MAX
                )
            )
            for number in range(count)
        ]
        try:
            async with AsyncClient(url) as dss:
                for first in range(0, count, WAITERS_PER_LOCK):
                    key, wanted = f"kept-{first // WAITERS_PER_LOCK}", min(WAITERS_PER_LOCK, count - first)
                    while (await dss.call("locks.status", key=key))["waiter_count"] < wanted:  # noqa: ASYNC110
                        await asyncio.sleep(POLL_S)
            yield
            took_s = time.monotonic() - began
            if any(call.done() for call in calls) or took_s > WAIT_MS_MAX / 1000:
                raise NotReady(f"an alternation took {took_s:.0f} s, longer than calls may wait; give fewer rows")
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)


async def measure(full: Target, empty: Target, options: argparse.Namespace) -> dict[str, list[tuple[Tally, Tally]]]:
    """Row -> of each alternation: what the full node did, and the empty one."""
    began = time.monotonic()
    await fill(full.node.url, options)
    print(f"filled in {time.monotonic() - began:.0f} s, {full.process.memory_info().rss >> 20} MiB", flush=True)
    for row in options.rows:
        if row == "get":
            for target in (full, empty):
                bench_http.put_keys(target.node)
        for target in (full, empty):
            await target.load(row, SLICE_S)
    results: dict[str, list[tuple[Tally, Tally]]] = {row: [] for row in options.rows}
    for number in range(options.alternations):
        async with waiting_calls(full.node.url, options.waiters):
            for row in options.rows:
                order = (full, empty) if number % 2 == 0 else (empty, full)
                tallies = {target.node.port: await target.load(row, SLICE_S) for target in order}
                results[row].append((tallies[full.node.port], tallies[empty.node.port]))
        if sys.stderr.isatty():
            print(f"\ralternation {number + 1} of {options.alternations} ", end="", file=sys.stderr, flush=True)
    return results


def table(results: dict[str, list[tuple[Tally, Tally]]]) -> list[dict[str, Any]]:
    rows = []
    for row, pairs in results.items():
        rate = estimate([full.per_s / empty.per_s for full, empty in pairs])
        cpu = estimate([full.cpu_us / empty.cpu_us for full, empty in pairs])
        rows.append(
            {
                "row": row,
                "full_per_s": round(statistics.median(full.per_s for full, _ in pairs)),
                "empty_per_s": round(statistics.median(empty.per_s for _, empty in pairs)),
                "rate_ratio": round(rate.ratio, 3),
                "rate_interval": [round(rate.low, 3), round(min(rate.high, 99.0), 3)],
                "cpu_ratio": round(cpu.ratio, 3),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(LOADS))
    parser.add_argument("--alternations", type=positive, default=10)
    parser.add_argument("--messages", type=positive, default=1_000_000)
    parser.add_argument("--topics", type=positive, default=1000)
    parser.add_argument("--locks", type=positive, default=100_000)
    parser.add_argument("--waiters", type=positive, default=10_000)
    options = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.platform()}, {interpreter()}"
    print(f"two single nodes with uvicorn and the load on one machine ({machine})", flush=True)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        ports = free_ports(2)
        try:
            full, empty = (
                stack.enter_context(started(Path(name), which, port))
                for which, port in zip(("full", "empty"), ports, strict=True)
            )
            rows = table(uvloop.run(measure(full, empty, options)))
        except (NotReady, OSError, psutil.Error, DssError) as error:
            print(f"no verdict: {error}", file=sys.stderr)
            return 2
    print(f"\n{'row':12} {'full, per s':>12} {'empty, per s':>13} {'ratio':>7} {'95 % interval':>16} {'CPU ratio':>10}")
    for row in rows:
        rates = f"{row['full_per_s']:12,} {row['empty_per_s']:13,} {row['rate_ratio']:7.3f}"
        interval = "{:.3f} .. {:.3f}".format(*row["rate_interval"])
        print(f"{row['row']:12} {rates} {interval:>16} {row['cpu_ratio']:10.3f}")
    short = [row["row"] for row in rows if row["rate_interval"][1] < LIMIT]
    print(f"below {LIMIT}: {', '.join(short)}" if short else f"no row's interval lies wholly below {LIMIT}")
    kept = {kind: getattr(options, kind) for kind in ("messages", "topics", "locks", "waiters")}
    result = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "commit": commit(), **kept, "rows": rows}
    if options.rows == list(ROWS) and kept == {kind: parser.get_default(kind) for kind in kept}:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {RESULTS.relative_to(ROOT)}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
