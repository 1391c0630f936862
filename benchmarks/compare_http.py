"""Is this checkout slower than another one? `python benchmarks/compare_http.py OTHER_CHECKOUT [--servers daphne uvicorn]`

A machine's speed changes from hour to hour by more than most changes of the program. So three nodes of each checkout run at the same
time, and the load goes to one and then to the other, a second each, again and again. Each checkout is started twice: how far its two rows
lie apart is how much the others say.

The other checkout needs its own `.venv` (`make .venv/.ready` there).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bench_http
import psutil
import uvloop

from dss_dev.local_cluster import LocalCluster, free_ports

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = 64


class Running(NamedTuple):
    """Three nodes of a checkout."""

    name: str
    port: int
    processes: list[psutil.Process]

    def cpu_s(self) -> float:
        """Processor time that the three nodes have used."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


def serve(server: str) -> None:
    """Run three nodes of the checkout whose Python this is, until standard input ends."""
    with tempfile.TemporaryDirectory() as name:
        cluster = LocalCluster(Path(name), free_ports(3), {"DSS_SERVER": server, "DSS_CLUSTER_SECRET": "compare"})
        cluster.start()
        try:
            cluster.wait_ready()
            follower = cluster.followers()[0]
            bench_http.put_keys(follower)
            pids = [node.process.pid for node in cluster.nodes if node.process]
            print(json.dumps([follower.port, pids]), flush=True)
            sys.stdin.read()
        finally:
            cluster.stop()


@contextmanager
def running(name: str, checkout: Path, server: str) -> Iterator[Running]:
    command = [str(checkout / ".venv/bin/python"), __file__, "--serve", server]
    with subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            line = process.stdout.readline()
            if not line:
                sys.exit(f"the nodes of {checkout} did not start")
            port, pids = json.loads(line)
            yield Running(name, port, [psutil.Process(pid) for pid in pids])
        finally:
            process.stdin.close()


def compare(clusters: list[Running], scenario: str, rounds: int) -> Iterator[dict[str, Any]]:
    """One row for each cluster: calls a second, and processor time of the three nodes for a call."""

    def load(cluster: Running) -> tuple[float, float, int]:
        before = cluster.cpu_s()
        calls = bench_http.SCENARIOS[scenario].calls
        result, elapsed_s = uvloop.run(bench_http.run(cluster.port, calls, CONNECTIONS, 1.0))
        count = len(result.latencies)
        return count / elapsed_s, (cluster.cpu_s() - before) / count * 1e6, result.errors

    seen: list[list[tuple[float, float, int]]] = [[] for _ in clusters]
    for cluster in clusters:
        load(cluster)
    for number in range(rounds):
        order = list(range(len(clusters)))
        for position in reversed(order) if number % 2 else order:
            seen[position].append(load(clusters[position]))
    for cluster, rows in zip(clusters, seen, strict=True):
        per_s, cpu_us, errors = zip(*rows, strict=True)
        yield {
            "checkout": cluster.name,
            "per_s": statistics.median(per_s),
            "best_per_s": max(per_s),
            "cpu_us": statistics.median(cpu_us),
            "least_cpu_us": min(cpu_us),
            "errors": sum(errors),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="the checkout to compare with")
    parser.add_argument("--servers", nargs="+", default=["daphne"], choices=["daphne", "uvicorn"])
    parser.add_argument("--scenarios", nargs="+", default=["lock", "publish", "put", "get"])
    parser.add_argument("--rounds", type=int, default=12, help="seconds of load for each row")
    parser.add_argument("--serve", metavar="SERVER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    if options.other is None:
        parser.error("name the checkout to compare with")
    print(f"{'server':8} {'calls':10} {'checkout':9} {'per s':>8} {'best':>8} {'cpu µs a call':>14} {'least':>7} {'errors':>7}")
    for server in options.servers:
        other = options.other.resolve()
        with (
            running("this", ROOT, server) as first,
            running("other", other, server) as second,
            running("this", ROOT, server) as third,
            running("other", other, server) as fourth,
        ):
            for scenario in options.scenarios:
                for row in compare([first, second, third, fourth], scenario, options.rounds):
                    print(
                        f"{server:8} {scenario:10} {row['checkout']:9} {row['per_s']:>8,.0f} {row['best_per_s']:>8,.0f} "
                        f"{row['cpu_us']:>14.0f} {row['least_cpu_us']:>7.0f} {row['errors']:>7}",
                        flush=True,
                    )
    return None


if __name__ == "__main__":
    main()
