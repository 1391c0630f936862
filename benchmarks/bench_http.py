"""Three nodes over HTTP, all traffic to a follower: calls a second and latency, with Daphne and with uvicorn.

    python benchmarks/bench_http.py                          # the whole table, also as results/bench_http.json
    python benchmarks/bench_http.py --servers uvicorn --seconds 5 --scenarios put get

The load comes from this one process, which shares the machine with the nodes: keep-alive connections, one call at a time on each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop

from dss_project.local_cluster import HOST, ROOT, LocalCluster, LocalNode, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_http.json"
VALUE = {"id": 1, "text": "x" * 100}
KEYS = 64
IDLE_S = 20.0

#: calls a second asked for: (with Daphne, with uvicorn)
TARGETS = {"lock": (1500, 3000), "publish": (1500, 3000), "put": (1500, 3000), "get": (2500, 8000)}
TITLES = {"lock": "lock acquire, release", "publish": "publish", "put": "put", "get": "get, hits"}

Call = tuple[str, str, Any]


def lock_calls(connection: int, number: int) -> Call:
    path = "/lock/release" if number % 2 else "/lock/acquire"
    return "POST", path, {"key": f"bench-{connection}", "client": f"client-{connection}"}


def publish_calls(connection: int, number: int) -> Call:
    return "POST", "/queue/publish", {"topic": f"bench-{connection % 8}", "value": VALUE}


def put_calls(connection: int, number: int) -> Call:
    return "POST", "/cache/put", {"key": f"bench-{connection}-{number % KEYS}", "value": VALUE}


def get_calls(connection: int, number: int) -> Call:
    return "GET", f"/cache/get?key=hit-{(connection + number) % KEYS}", None


SCENARIOS: dict[str, Callable[[int, int], Call]] = {
    "lock": lock_calls,
    "publish": publish_calls,
    "put": put_calls,
    "get": get_calls,
}


@dataclass
class Row:
    """One line of the table."""

    server: str
    scenario: str
    calls_per_s: int
    target: int
    p50_ms: float
    p99_ms: float
    errors: int


class Connection(asyncio.Protocol):
    """A client on one connection: the next call leaves when the answer to the last one is complete."""

    def __init__(self, number: int, calls: Callable[[int, int], Call], load: Load) -> None:
        self.number = number
        self.calls = calls
        self.load = load
        self.count = 0
        self.buffer = b""
        self.sent_at = 0.0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.call()

    def call(self) -> None:
        method, path, body = self.calls(self.number, self.count)
        self.count += 1
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.sent_at = time.perf_counter()
        self.transport.write(head.encode() + data)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self.buffer[:head_end].lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self.buffer) < head_end + 4 + length:
            return
        now = time.perf_counter()
        self.load.answered(now - self.sent_at, self.buffer[9:12] == b"200")
        self.buffer = self.buffer[head_end + 4 + length :]
        if now < self.load.end:
            self.call()
        else:
            self.finished.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.finished.done():
            self.load.errors += 1
            self.finished.set_result(None)


class Load:
    """What all connections of one run have measured."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.latencies: list[float] = []
        self.errors = 0

    def answered(self, latency: float, ok: bool) -> None:
        self.latencies.append(latency)
        if not ok:
            self.errors += 1


async def run(port: int, calls: Callable[[int, int], Call], connections: int, seconds: float) -> tuple[Load, float]:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    load = Load(began + seconds)
    clients = [
        (await loop.create_connection(lambda number=number: Connection(number, calls, load), HOST, port))[1]
        for number in range(connections)
    ]
    await asyncio.gather(*(client.finished for client in clients))
    return load, time.perf_counter() - began


def measure(node: LocalNode, server: str, scenario: str, connections: int, seconds: float) -> Row:
    if scenario == "get":
        for key in range(KEYS):
            node.call("POST", "/cache/put", {"key": f"hit-{key}", "value": VALUE})
    uvloop.run(run(node.port, SCENARIOS[scenario], connections, min(1.0, seconds)))
    load, elapsed = uvloop.run(run(node.port, SCENARIOS[scenario], connections, seconds))
    latencies = sorted(load.latencies)
    return Row(
        server=server,
        scenario=scenario,
        calls_per_s=round(len(latencies) / elapsed),
        target=TARGETS[scenario][0 if server == "daphne" else 1],
        p50_ms=round(latencies[len(latencies) // 2] * 1000, 2),
        p99_ms=round(latencies[int(len(latencies) * 0.99)] * 1000, 2),
        errors=load.errors,
    )


def footprint(cluster: LocalCluster, idle_s: float) -> list[dict[str, Any]]:
    """Memory after the load, and CPU of an idle node in percent of one core."""
    processes = {node.id: psutil.Process(node.process.pid) for node in cluster.nodes if node.process}
    before = {node_id: sum(process.cpu_times()[:2]) for node_id, process in processes.items()}
    time.sleep(idle_s)
    return [
        {
            "node": node_id,
            "rss_mib": round(process.memory_info().rss / 1024**2),
            "idle_cpu_percent": round((sum(process.cpu_times()[:2]) - before[node_id]) / idle_s * 100, 2),
        }
        for node_id, process in processes.items()
    ]


def bench_server(server: str, options: argparse.Namespace) -> tuple[list[Row], list[dict[str, Any]], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as name:
        cluster = LocalCluster(Path(name), free_ports(3), {"DSS_SERVER": server, "DSS_CLUSTER_SECRET": "bench"})
        cluster.start()
        try:
            cluster.wait_ready()
            fresh = footprint(cluster, options.idle)
            follower = cluster.followers()[0]
            rows = []
            for scenario in options.scenarios:
                rows.append(measure(follower, server, scenario, options.connections, options.seconds))
                print_row(rows[-1])
            return rows, fresh, footprint(cluster, options.idle)
        finally:
            cluster.stop()


def print_row(row: Row) -> None:
    verdict = "" if row.calls_per_s >= row.target else "short"
    speed = f"{row.calls_per_s:>8,} {row.target:>8,} {row.p50_ms:>8.1f} {row.p99_ms:>8.1f} {row.errors:>7}"
    print(f"{row.server:8} {TITLES[row.scenario]:22} {speed}  {verdict}", flush=True)


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", default=["daphne", "uvicorn"], choices=["daphne", "uvicorn"])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds over which idle CPU is measured")
    options = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    print(f"3 nodes and the load on one machine ({machine}); {options.connections} connections to a follower\n")
    print(f"{'server':8} {'calls':22} {'calls/s':>8} {'target':>8} {'p50 ms':>8} {'p99 ms':>8} {'errors':>7}")
    result: dict[str, Any] = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "connections": options.connections,
        "seconds": options.seconds,
        "rows": [],
        "footprint": {},
    }
    for server in options.servers:
        rows, fresh, loaded = bench_server(server, options)
        result["rows"] += [asdict(row) for row in rows]
        result["footprint"][server] = {"fresh": fresh, "after_load": loaded}
    print()
    for server, both in result["footprint"].items():
        for when, nodes in both.items():
            cells = ", ".join(f"{node['rss_mib']} MiB {node['idle_cpu_percent']} % CPU" for node in nodes)
            print(f"{server:8} idle nodes, {when.replace('_', ' '):11} {cells}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
