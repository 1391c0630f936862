"""Three nodes over HTTP, all traffic to a follower: calls or messages a second, and latency of a call, with Daphne and with uvicorn.

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
import ssl
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop

from dss_dev.local_cluster import HOST, ROOT, LocalCluster, LocalNode, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_http.json"
VALUE = {"id": 1, "text": "x" * 100}
KEYS = 64
IDLE_S = 20.0

BATCH = 100
BATCH_TOPICS = [f"batch-{number}" for number in range(8)]

#: method, path, and body; bytes are sent as they are
Call = tuple[str, str, Any]


def lock_calls(connection: int, number: int, answer: bytes) -> Call:
    path = "/lock/release" if number % 2 else "/lock/acquire"
    return "POST", path, {"key": f"bench-{connection}", "client": f"client-{connection}"}


def publish_calls(connection: int, number: int, answer: bytes) -> Call:
    return "POST", "/queue/publish", {"topic": f"bench-{connection % 8}", "value": VALUE}


def publish_batches(connection: int, number: int, answer: bytes) -> Call:
    return (
        "POST",
        "/queue/publish",
        {"topic": BATCH_TOPICS[connection % len(BATCH_TOPICS)], "messages": [{"value": VALUE}] * BATCH},
    )


def consume_batches(connection: int, number: int, answer: bytes) -> Call:
    """Consume a batch, ack it, and so on."""
    delivery = {"topic": BATCH_TOPICS[connection % len(BATCH_TOPICS)], "group": "bench"}
    messages = json.loads(answer).get("messages") if answer else None
    if messages and "receipt" in messages[0]:
        return "POST", "/queue/ack", {**delivery, "msg_ids": [message["msg_id"] for message in messages]}
    return "POST", "/queue/consume", {**delivery, "max_messages": BATCH, "timeout_ms": 0, "visibility_ms": 60_000}


def put_calls(connection: int, number: int, answer: bytes) -> Call:
    return "POST", "/cache/put", {"key": f"bench-{connection}-{number % KEYS}", "value": VALUE}


def get_calls(connection: int, number: int, answer: bytes) -> Call:
    return "GET", f"/cache/get?key=hit-{(connection + number) % KEYS}", None


#: the next call of a connection, from its number, the count of its calls, and the body of its last answer; None: it has done its part
Calls = Callable[[int, int, bytes], Call | None]


@dataclass(frozen=True)
class Scenario:
    """What the connections of a run do."""

    title: str
    calls: Calls
    #: things a second asked for: (with Daphne, with uvicorn)
    targets: tuple[int, int]
    #: things done by one call
    per_call: float = 1


SCENARIOS: dict[str, Scenario] = {
    "lock": Scenario("lock acquire, release", lock_calls, (1500, 3000)),
    "publish": Scenario("publish", publish_calls, (1500, 3000)),
    "put": Scenario("put", put_calls, (1500, 3000)),
    "get": Scenario("get, hits", get_calls, (2500, 8000)),
    "publish-100": Scenario("messages, published by 100", publish_batches, (10_000, 10_000), BATCH),
    "consume-100": Scenario("messages, consumed and acked by 100", consume_batches, (8000, 8000), BATCH / 2),
}


@dataclass
class Row:
    """One line of the table."""

    server: str
    scenario: str
    #: calls, or messages where the scenario says so
    per_s: int
    target: int
    p50_ms: float
    p99_ms: float
    errors: int


class Connection(asyncio.Protocol):
    """A client on one connection: it sends the next call when the answer to the last one is complete."""

    def __init__(self, number: int, calls: Calls, load: Load) -> None:
        self.number = number
        self.calls = calls
        self.load = load
        self.count = 0
        self.buffer = b""
        self.answer = b""
        self.sent_at = 0.0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.call()

    def call(self) -> None:
        call = self.calls(self.number, self.count, self.answer)
        if call is None:
            self.finish()
            return
        method, path, body = call
        self.count += 1
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.sent_at = time.perf_counter()
        self.transport.write(head.encode() + data)
        self.load.bytes_sent += len(head) + len(data)

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
        self.load.bytes_received += head_end + 4 + length
        self.answer = self.buffer[head_end + 4 : head_end + 4 + length]
        self.buffer = self.buffer[head_end + 4 + length :]
        if now < self.load.end:
            self.call()
        else:
            self.finish()

    def finish(self) -> None:
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
        self.bytes_sent = 0
        self.bytes_received = 0

    def answered(self, latency: float, ok: bool) -> None:
        self.latencies.append(latency)
        if not ok:
            self.errors += 1


async def run(port: int, calls: Calls, connections: int, seconds: float, tls: ssl.SSLContext | None = None) -> tuple[Load, float]:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    load = Load(began + seconds)
    clients = [
        (await loop.create_connection(lambda number=number: Connection(number, calls, load), HOST, port, ssl=tls))[1]
        for number in range(connections)
    ]
    await asyncio.gather(*(client.finished for client in clients))
    return load, time.perf_counter() - began


def put_keys(node: LocalNode) -> None:
    """What the scenario `get` reads."""
    for key in range(KEYS):
        node.call("POST", "/cache/put", {"key": f"hit-{key}", "value": VALUE})


def prepare(node: LocalNode, name: str, connections: int, seconds: float) -> None:
    """Write what the scenario `name` reads in `seconds` of load."""
    if name == "get":
        put_keys(node)
    elif name == "consume-100":
        uvloop.run(run(node.port, publish_batches, connections, seconds, node.tls))


def measure(node: LocalNode, server: str, name: str, connections: int, seconds: float) -> Row:
    scenario = SCENARIOS[name]
    prepare(node, name, connections, seconds)
    uvloop.run(run(node.port, scenario.calls, connections, min(1.0, seconds)))
    load, elapsed = uvloop.run(run(node.port, scenario.calls, connections, seconds))
    latencies = sorted(load.latencies)
    return Row(
        server=server,
        scenario=name,
        per_s=round(len(latencies) * scenario.per_call / elapsed),
        target=scenario.targets[0 if server == "daphne" else 1],
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
    verdict = "" if row.per_s >= row.target else "short"
    speed = f"{row.per_s:>8,} {row.target:>8,} {row.p50_ms:>8.1f} {row.p99_ms:>8.1f} {row.errors:>7}"
    print(f"{row.server:8} {SCENARIOS[row.scenario].title:36} {speed}  {verdict}", flush=True)


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def interpreter() -> str:
    """The interpreter, and whether it was built with optimisations: one without is 1.07 to 1.2 times slower."""
    built = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return f"Python {platform.python_version()} built {'with' if built else 'without'} optimisations"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", default=["daphne", "uvicorn"], choices=["daphne", "uvicorn"])
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds over which idle CPU is measured")
    options = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.platform()}, {interpreter()}"
    print(f"3 nodes and the load on one machine ({machine}); {options.connections} connections to a follower\n")
    print(f"{'server':8} {'calls':36} {'per s':>8} {'target':>8} {'p50 ms':>8} {'p99 ms':>8} {'errors':>7}")
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
