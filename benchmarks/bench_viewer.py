"""What the live page costs the nodes, and what one recorded event costs.

    python benchmarks/bench_viewer.py                  # about three minutes; also as results/bench_viewer.json
    python benchmarks/bench_viewer.py --server daphne

Three idle nodes. In alternation, no page is open, and one `cluster.watch` subscription at the first node reads everything that is sent. The
table has the processor time of each node as a part of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import timeit
from pathlib import Path

import psutil
from bench_http import commit
from websockets.asyncio.client import connect

from dss_console.live.recorder import Recorder
from dss_dev.local_cluster import ROOT, LocalCluster, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_viewer.json"
WARM_UP_S = 3.0


def recorder_ns() -> float:
    """The time of one recorded event, in nanoseconds: the best of nine rounds, without the loop that measures."""
    recorder = Recorder(time.time_ns)
    count = 200_000

    def best(statement: str) -> float:
        return min(timeit.repeat(statement, globals={"add": recorder.add}, number=count, repeat=9)) / count * 1e9

    return best("add('leader', 'node-1', term=3)") - best("pass")


async def shares(cluster: LocalCluster, seconds: float, viewed: bool) -> list[float]:
    """The processor time of each node, in percent of one core."""
    reading = asyncio.create_task(_view(cluster.nodes[0].websocket_url)) if viewed else None
    await asyncio.sleep(WARM_UP_S)
    processes = [psutil.Process(node.pid) for node in cluster.nodes]
    before = [_cpu_s(process) for process in processes]
    begun = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - begun
    spent = [(_cpu_s(process) - was) / elapsed * 100 for process, was in zip(processes, before, strict=True)]
    if reading is not None:
        assert not reading.done(), "the view has ended"
        reading.cancel()
    return spent


async def _view(url: str) -> None:
    async with connect(url) as socket:
        await socket.send(json.dumps({"id": 1, "op": "cluster.watch", "request": {}}))
        async for _ in socket:
            pass


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(server: str, alternations: int, seconds: float) -> dict[str, list[list[float]]]:
    """For "idle" and "viewed": the nodes' shares in each alternation."""
    found: dict[str, list[list[float]]] = {"idle": [], "viewed": []}
    with tempfile.TemporaryDirectory() as directory:
        cluster = LocalCluster(Path(directory), free_ports(3), {"DSS_SERVER": server})
        try:
            cluster.start()
            cluster.wait_ready()
            for number in range(alternations):
                print(f"\ralternation {number + 1} of {alternations}", end="", flush=True)
                for name, rows in found.items():
                    rows.append(await shares(cluster, seconds, name == "viewed"))
        finally:
            cluster.stop()
    print()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("daphne", "uvicorn"), default="uvicorn")
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    print(f"one recorded event: {(event_ns := recorder_ns()):.0f} ns")
    found = asyncio.run(measure(options.server, options.alternations, options.seconds))
    medians = {name: [round(statistics.median(node), 2) for node in zip(*rows, strict=True)] for name, rows in found.items()}
    print(f"{'% of a core':14}{'viewed node':>12}{'other':>8}{'other':>8}")
    for name, row in medians.items():
        print(f"{name:14}{row[0]:12.2f}{row[1]:8.2f}{row[2]:8.2f}")
    document = {"commit": commit(), "server": options.server, "recorded_event_ns": event_ns, "percent_of_a_core": found}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
