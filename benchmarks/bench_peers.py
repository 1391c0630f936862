"""This project next to etcd, RabbitMQ, NATS and Redis, on one machine, in one run.

    python benchmarks/bench_peers.py                    # the table, also as results/bench_peers.json, and docs/peers.svg
    python benchmarks/bench_peers.py --only etcd dss    # some of them

It installs nothing: a system that is not installed is left out, with a message. Systems that replicate run as three nodes. One asyncio
process with uvloop calls each through its usual Python client: 64 calls in progress, then one at a time. The programs take turns, in one
order and then in the other, and the table has the medians. All systems run the whole time, and idle while another one is measured.
A lock cycle acquires and releases a lock. "fsync" says what an answer promises.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import chart
import uvloop
from bench_http import commit, interpreter
from peers import bare_http, etcd, nats_server, ours, rabbit, redis_server
from peers.processes import NotInstalled
from peers.work import Slice, Work, run

from dss_dev.local_cluster import ROOT

RESULTS = Path(__file__).parent / "results" / "bench_peers.json"
CHART = ROOT / "docs" / "peers.svg"
CALLERS = 64
ROWS = ("lock cycle", "put", "get", "publish", "consume + ack", "consume + ack by 100")

Start = Callable[[Path], AbstractContextManager[str]]
Works = Callable[..., AbstractAsyncContextManager[list[Work]]]


@dataclass(frozen=True)
class System:
    """A system that is started once, with the programs that call it.

    Attributes:
        programs: name of a program -> what it does, called with the URL and `callers`.
        durability: what an answer promises.
    """

    key: str
    start: Start
    programs: dict[str, Works]
    durability: str


def systems() -> list[System]:
    others = [
        System(key, module.start, {module.PROGRAM: module.works}, module.DURABILITY)
        for key, module in (
            ("etcd", etcd),
            ("rabbitmq", rabbit),
            ("nats", nats_server),
            ("redis", redis_server),
            ("aiohttp", bare_http),
        )
    ]
    return [*others, *(our_system(server) for server in ("daphne", "uvicorn"))]


def our_system(server: str) -> System:
    programs: dict[str, Works] = {}
    for how, works in (("HTTP", ours.http), ("WebSocket", ours.websocket)):
        name = f"DSS, 3 nodes, {server}, {how}"
        programs[name] = partial(works, program=name)
    return System("dss", partial(ours.start, server=server), programs, ours.DURABILITY)


Results = dict[tuple[str, str], list[tuple[Slice, Slice]]]


async def measure(urls: list[tuple[System, str]], options: argparse.Namespace) -> Results:
    """(row, program) -> for each alternation: with `CALLERS` calls in progress, and one at a time."""
    results: Results = {}
    async with contextlib.AsyncExitStack() as stack:
        programs = [
            work
            for system, url in urls
            for works in system.programs.values()
            for work in await stack.enter_async_context(works(url, callers=CALLERS))
        ]
        rates: dict[Work, float] = {}
        for work in programs:
            rates[work] = (await run(work, CALLERS, options.warm_up, 2000)).per_s
        for alternation in range(options.alternations):
            for row in ROWS:
                works_of_row = [work for work in programs if work.name == row]
                for work in works_of_row if alternation % 2 == 0 else works_of_row[::-1]:
                    many = await run(work, CALLERS, options.seconds, rates[work])
                    single = await run(work, 1, options.seconds / 2, rates[work] / 2)
                    results.setdefault((row, work.program), []).append((many, single))
                print(f"\ralternation {alternation + 1} of {options.alternations}: {row:24}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def table(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "row": row,
            "program": program,
            "per_s": round(statistics.median(many.per_s for many, _ in slices)),
            "single_p50_ms": round(statistics.median(single.median_ms for _, single in slices), 3),
        }
        for (row, program), slices in results.items()
    ]


def print_table(rows: list[dict[str, Any]], durability: dict[str, str]) -> None:
    for name in ROWS:
        print(f"\n{name:34} {'per s':>9} {'p50 of one caller, ms':>22}   an answer promises")
        for row in (row for row in rows if row["row"] == name):
            print(f"  {row['program']:32} {row['per_s']:9,} {row['single_p50_ms']:22.2f}   {durability[row['program']]}")


def main() -> None:
    known = systems()
    keys = list(dict.fromkeys(system.key for system in known))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=keys, choices=keys)
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, for each cell in each alternation")
    parser.add_argument("--quick", action="store_true", help="one short alternation; writes no results")
    options = parser.parse_args()
    options.warm_up = 1.0
    if options.quick:
        options.alternations, options.seconds, options.warm_up = 1, 0.5, 0.3
    machine = f"{os.cpu_count()} cores, {platform.platform()}, {interpreter()}"
    print(f"Everything on one machine ({machine}); {CALLERS} calls in progress, then one", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as directory, contextlib.ExitStack() as stack:
        urls = []
        for system in (system for system in known if system.key in options.only):
            print(f"starting {', '.join(system.programs)}", flush=True)
            try:
                urls.append((system, stack.enter_context(system.start(Path(directory)))))
            except NotInstalled as missing:
                print(f"SKIPPED: {missing}")
        results = uvloop.run(measure(urls, options))
    rows = table(results)
    durability = {program: system.durability for system, _ in urls for program in system.programs}
    print_table(rows, durability)
    if options.quick or options.only != keys:
        return
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "callers": CALLERS,
        "seconds": options.seconds,
        "alternations": options.alternations,
        "durability": durability,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    groups = {f"{name}, a second": {row["program"]: row["per_s"] for row in rows if row["row"] == name} for name in ROWS}
    title = f"Calls a second with {CALLERS} in progress, logarithmic: this project next to etcd, RabbitMQ, NATS and Redis"
    CHART.write_text(chart.bars(groups, "DSS", title))
    print(f"\nwritten to {RESULTS.relative_to(ROOT)} and {CHART.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
