"""The near cache against redis-py and django-redis, and what it costs a put.

    python benchmarks/bench_near.py            # the whole table, also as results/bench_near.json
    python benchmarks/bench_near.py --quick

Three nodes and a Redis (or Valkey) on one machine, everything over TCP on loopback. One thread reads one key whose value is there: through
`Client` with a near cache and without one, through redis-py, and through Django's cache API with the near cache and with django-redis.
Through Django, the value is a small dictionary that is unpickled with each read. The programs take turns in short slices, so each
alternation gives one ratio for each pair; the table has the median of the slices' p50, and the mean of the ratios with its 95 % interval.
A read that takes less than some microseconds is timed in batches of 100.

Then one writer puts a key that 50 near caches hold, in processes of their own, again and again. Each put begins when all 50 hold the key
again. The same is measured without near caches.

It needs `redis-server` or `valkey-server`. Without the package django-redis, its row is left out with a message.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvloop
from bench_http import commit
from compare_http import estimate

from dss_client import AsyncClient, Client
from dss_dev.local_cluster import ROOT, LocalCluster, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_near.json"
KEY = "product:42"
VALUE = {"id": 42, "name": "shoe", "price": 59.9, "tags": ["red", "leather"]}
TEXT = "x" * 100
HOLDERS = 50
HOLDER_PROCESSES = 2
HOLDER_READS_S = 0.02
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Reading:
    """One program that reads.

    Attributes:
        peer: the program that it is compared with; "" for a peer.
        batch: reads that are timed together.
    """

    name: str
    peer: str
    read: Callable[[], Any]
    expected: Any
    batch: int = 1

    def p50_us(self, seconds: float) -> float:
        """The median time of a read, in microseconds."""
        read, batch, clock = self.read, range(self.batch), time.perf_counter
        assert read() == self.expected, self.name
        taken = []
        until = clock() + seconds
        while (begun := clock()) < until:
            for _ in batch:
                read()
            taken.append((clock() - begun) / self.batch)
        return statistics.median(taken) * 1e6


@dataclass
class Row:
    """A line of the table.

    Attributes:
        times: how many times faster it is than `peer`, with its interval.
    """

    name: str
    p50_us: float
    peer: str = ""
    times: tuple[float, float, float] | None = None


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """A server without persistence. Yields its URL."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        sys.exit("redis-server is not installed (Debian: apt install redis-server)")
    (port,) = free_ports(1)
    command = [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def readings(urls: str, redis_url: str, stack: contextlib.ExitStack) -> list[Reading]:
    """All programs, with the values in place."""
    import redis
    from django.conf import settings
    from django.core.cache import caches

    near = stack.enter_context(Client(urls, near_cache=True))
    plain = stack.enter_context(Client(urls))
    plain.cache.put(KEY, TEXT)
    peer = stack.enter_context(redis.Redis.from_url(redis_url))
    peer.set(KEY, TEXT)
    backends = {"dss": {"BACKEND": "dss_django.cache.DSSCache", "LOCATION": urls, "TIMEOUT": None}}
    if find_spec("django_redis") is None:
        print("SKIPPED: the row of django-redis (pip install django-redis)")
    else:
        backends["django_redis"] = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": redis_url, "TIMEOUT": None}
    settings.configure(CACHES={"default": backends["dss"], **backends})
    for name in backends:
        caches[name].set(KEY, VALUE)
    all_readings = [
        Reading("Client, near cache", "redis-py GET", lambda: near.cache.get(KEY), TEXT, batch=100),
        Reading("Client, no near cache", "redis-py GET", lambda: plain.cache.get(KEY), TEXT),
        Reading("redis-py GET", "", lambda: peer.get(KEY), TEXT.encode()),
    ]
    ours = caches["dss"]
    all_readings.append(Reading("Django, DSSCache", "django-redis", lambda: ours.get(KEY), VALUE, batch=100))
    if "django_redis" in backends:
        theirs = caches["django_redis"]
        all_readings.append(Reading("django-redis", "", lambda: theirs.get(KEY), VALUE))
    # Warm: the subscriptions have begun, and the values are held.
    for reading in all_readings:
        reading.p50_us(1.0)
    return all_readings


def measure(programs: list[Reading], alternations: int, seconds: float) -> list[Row]:
    measured: dict[str, list[float]] = {program.name: [] for program in programs}
    for alternation in range(alternations):
        for program in programs if alternation % 2 == 0 else programs[::-1]:
            measured[program.name].append(program.p50_us(seconds))
        print(f"\ralternation {alternation + 1} of {alternations}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = []
    for program in programs:
        mine, its = measured[program.name], measured.get(program.peer)
        row = Row(program.name, round(statistics.median(mine), 2))
        if its is not None:
            times = estimate([peer / own for peer, own in zip(its, mine, strict=True)])
            row.peer, row.times = program.peer, (round(times.ratio, 1), round(times.low, 1), round(times.high, 1))
        rows.append(row)
    return rows


# -------------------------------------------------------------------- puts


async def hold(urls: list[str], count: int) -> None:
    """Be that many near caches that read the key again and again, until the process is killed."""
    clients = [AsyncClient(urls[number % 3 :] + urls[: number % 3], near_cache=True) for number in range(count)]

    async def reads(client: AsyncClient) -> None:
        while True:
            await client.cache.get("written")
            await asyncio.sleep(HOLDER_READS_S)

    await asyncio.gather(*(reads(client) for client in clients))


@contextlib.contextmanager
def holders(urls: list[str]) -> Iterator[None]:
    command = [sys.executable, __file__, "--hold", str(HOLDERS // HOLDER_PROCESSES), *urls]
    processes = [subprocess.Popen(command) for _ in range(HOLDER_PROCESSES)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def holding(client: Client) -> int:
    lines = client.call("cache.lines", key="written")["lines"]
    return sum(line["clients"] for line in lines)


def puts_ms(client: Client, count: int, caches: int) -> list[float]:
    """How long each put takes, when that many near caches hold the key."""
    taken = []
    client.cache.put("written", 0)
    for number in range(count):
        deadline = time.monotonic() + PATIENCE_S
        while (held := holding(client)) < caches:
            if time.monotonic() > deadline:
                sys.exit(f"only {held} of {caches} near caches hold the key")
            time.sleep(0.01)
        begun = time.perf_counter()
        client.cache.put("written", number)
        taken.append((time.perf_counter() - begun) * 1000)
    return taken


def measure_puts(urls: list[str], count: int) -> dict[str, float]:
    result = {}
    with Client(urls) as client:
        client.cache.put("written", 0)
        alone = puts_ms(client, count, 0)
        with holders(urls):
            held = puts_ms(client, count, HOLDERS)
    for name, taken in (("without near caches", alone), (f"{HOLDERS} near caches hold the key", held)):
        ordered = sorted(taken)
        result[f"{name}, p50 ms"] = round(statistics.median(ordered), 2)
        result[f"{name}, p99 ms"] = round(ordered[int(0.99 * len(ordered))], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="uvicorn", choices=["daphne", "uvicorn"])
    parser.add_argument("--alternations", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of reading, for each program in each alternation")
    parser.add_argument("--puts", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="two alternations and 30 puts; writes no results")
    parser.add_argument("--hold", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(hold(options.hold[1:], int(options.hold[0])))
        return
    if options.quick:
        options.alternations, options.puts = 2, 30
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    packages = {
        name: version(name)
        for name in ("redis", "hiredis", "django-redis", "Django")
        if find_spec(name.lower().replace("-", "_"))
    }
    print(f"3 nodes ({options.server}), Redis and the clients on one machine ({machine}); {packages}")
    with tempfile.TemporaryDirectory(prefix="bench-near-") as name, contextlib.ExitStack() as stack:
        cluster = LocalCluster(Path(name), free_ports(3), {"DSS_SERVER": options.server})
        stack.callback(cluster.stop)
        cluster.start()
        cluster.wait_ready()
        urls = [node.url for node in cluster.nodes]
        with contextlib.ExitStack() as clients, redis_server(Path(name)) as redis_url:
            rows = measure(readings(",".join(urls), redis_url, clients), options.alternations, options.seconds)
        puts = measure_puts(urls, options.puts)
    print(f"{'reads of one key':24} {'p50 us':>8}   times faster than")
    for row in rows:
        times = "" if row.times is None else "{:.1f} ({:.1f} to {:.1f})".format(*row.times) + f"  {row.peer}"
        print(f"{row.name:24} {row.p50_us:8.2f}   {times}")
    for what, milliseconds in puts.items():
        print(f"put, {what}: {milliseconds}")
    if options.quick:
        return
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "server": options.server,
        "packages": packages,
        "seconds": options.seconds,
        "alternations": options.alternations,
        "rows": [asdict(row) for row in rows],
        "puts": puts,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
