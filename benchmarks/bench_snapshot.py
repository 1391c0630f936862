"""How a snapshot of a large state delays the event loop: pauses while it is taken, while it is loaded, and otherwise, as a histogram.

    python benchmarks/bench_snapshot.py                       # 1,000,000 queued messages of 200 bytes
    python benchmarks/bench_snapshot.py --messages 100000

One node in this process with the real store, one client that publishes one message after the other, and a timer with a period of one
millisecond. The delay of the timer is the pause.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
import uvloop

from dss_queue.core.broker import Broker
from dss_queue.core.commands import NewMessage, Publish
from dss_raft.node import Node
from dss_raft.versions import LATEST

RESULTS = Path(__file__).parent / "results" / "bench_snapshot.json"
BATCH = 1000
PERIOD_S = 0.001
BUCKETS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
#: entries between two snapshots; filling the queue takes fewer
ENTRIES = 5000
SNAPSHOTS = 3


class Pauses:
    """The delays of a timer with a period of one millisecond, separately for the time while a snapshot was taken."""

    def __init__(self, is_taking: Callable[[], bool]) -> None:
        self.late_ms: dict[bool, list[float]] = {False: [], True: []}
        self._is_taking = is_taking

    async def watch(self) -> None:
        taking = self._is_taking()
        while True:
            due = time.perf_counter() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            late_ms = (time.perf_counter() - due) * 1000
            self.late_ms[taking or self._is_taking()].append(late_ms)
            taking = self._is_taking()


def config(directory: Path) -> SimpleNamespace:
    return SimpleNamespace(
        node_id="a", url="http://127.0.0.1:1", cluster_id="bench", cluster_secret="bench", data_dir=directory / "a",
        peer_host="127.0.0.1", peer_port=0, peers=[], raft_heartbeat_ms=100, raft_election_min_ms=500, raft_election_max_ms=1000,
        pending_commands_max=20_000, submit_timeout_ms=60_000, snapshot_entries=ENTRIES, snapshot_bytes=1 << 40,
        peer_port_offset=0, cluster_version_max=LATEST, state_hash_interval_s=0, join=False, peer_tls=False,
    )  # fmt: skip


def publish(count: int, value: bytes) -> Publish:
    return Publish(messages=[NewMessage("bench", value, "", -1, 0, "", b"") for _ in range(count)])


async def fill(node: Node, messages: int, value: bytes) -> None:
    for done in range(0, messages, BATCH):
        await node.submit(publish(BATCH, value))
        if sys.stderr.isatty():
            print(f"\r{done + BATCH:,} messages", end="", file=sys.stderr, flush=True)


async def measure(directory: Path, messages: int, size: int) -> dict[str, Any]:
    value = b'"' + b"x" * (size - 2) + b'"'
    node = Node(config(directory), [Broker()])
    await node.start()
    gc.freeze()
    while not node.is_ready:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await fill(node, messages, value)
    pauses = Pauses(lambda: node.is_taking_snapshot)
    watcher = asyncio.create_task(pauses.watch())
    taken, began_s, lengths_s, was = 0, 0.0, [], False
    while taken < SNAPSHOTS:
        await node.submit(publish(1, value))
        if node.is_taking_snapshot != was:
            was = not was
            if was:
                began_s = time.perf_counter()
            else:
                lengths_s.append(time.perf_counter() - began_s)
                taken += 1
    watcher.cancel()
    state_bytes = node.core.snapshot.size
    await node.stop()
    again = Node(config(directory), [Broker()])
    loading = Pauses(lambda: False)
    watcher = asyncio.create_task(loading.watch())
    began = time.perf_counter()
    await again.start()
    start_s = time.perf_counter() - began
    watcher.cancel()
    await again.stop()
    return {
        "messages": messages,
        "bytes_a_message": size,
        "snapshot_bytes": state_bytes,
        "snapshots": taken,
        "seconds_a_snapshot": [round(one, 2) for one in lengths_s],
        "start_from_it_s": round(start_s, 2),
        "pauses_while_taking": histogram(pauses.late_ms[True]),
        "pauses_while_loading": histogram(loading.late_ms[False]),
        "pauses_otherwise": histogram(pauses.late_ms[False]),
    }


def histogram(late_ms: list[float]) -> dict[str, Any]:
    counts = {f"<= {bucket} ms": 0 for bucket in BUCKETS_MS} | {f"> {BUCKETS_MS[-1]} ms": 0}
    names = list(counts)
    for late in late_ms:
        counts[names[sum(late > bucket for bucket in BUCKETS_MS)]] += 1
    ordered = sorted(late_ms)
    return {
        "samples": len(ordered),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 1),
        "max_ms": round(ordered[-1], 1),
    } | counts


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['messages']:,} messages of {result['bytes_a_message']} bytes, snapshot of {result['snapshot_bytes']:,} bytes; "
        f"{result['snapshots']} snapshots took {result['seconds_a_snapshot']} s; a start from it {result['start_from_it_s']} s\n"
    )
    columns = [result[f"pauses_{when}"] for when in ("while_taking", "while_loading", "otherwise")]
    print(f"{'loop pause':>12}{'while one is taken':>22}{'while it is loaded':>22}{'otherwise':>14}")
    for name in columns[0]:
        if any(column[name] for column in columns):
            taking, loading, otherwise = (column[name] for column in columns)
            print(f"{name.replace('_ms', ''):>12}{taking:>22,}{loading:>22,}{otherwise:>14,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=200)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(Path(directory), options.messages, options.bytes))
    show(result)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"python": platform.python_version(), **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
