"""Raft alone, through three real processes and without HTTP: throughput, commit latency, failover.

    python benchmarks/bench_raft.py                       # table of commands/s and latency, then failover
    python benchmarks/bench_raft.py --kills 50 --seconds 5
    python benchmarks/bench_raft.py --seconds 0           # failover alone; the results file is not changed

Each client is a coroutine in a node's process that submits one small command after the other. Every answered command is
fsynced on a majority. DSS_BENCH_PLAIN=1 links the nodes without TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dss_dev.local_cluster import free_ports

IDS = ("a", "b", "c")
RESULTS = Path(__file__).parent / "results" / "bench_raft.json"


# ------------------------------------------------------------------ the node's process


async def run_node(node_id: str, ports: dict[str, int], directory: Path) -> None:
    """One node. It reads commands from standard input (`run CLIENTS SECONDS`, `status`) and answers with lines of JSON."""
    import structlog

    from dss_dev.sum_machine import Sum
    from dss_raft.node import Node

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    node = Node(config_of(node_id, ports, directory), [Sum()])
    await node.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "run":
            answer = await run_clients(node, int(line[1]), float(line[2]))
        else:
            answer = {"leader": node.leader_id, "ready": node.is_ready}
        print(json.dumps(answer), flush=True)
    await node.stop()


async def run_clients(node: Any, clients: int, seconds: float) -> dict[str, Any]:
    from dss_dev.sum_machine import Add

    latencies: list[float] = []
    entries = node.commit_index
    began = time.perf_counter()
    end = began + seconds

    async def client() -> None:
        finished = began
        while not latencies or finished < end:
            start = time.perf_counter()
            await node.submit(Add(amount=1))
            finished = time.perf_counter()
            latencies.append(finished - start)

    await asyncio.gather(*(client() for _ in range(clients)))
    elapsed = time.perf_counter() - began
    latencies.sort()
    return {
        "clients": clients,
        "commands_per_s": round(len(latencies) / elapsed),
        "commands_per_entry": round(len(latencies) / max(1, node.commit_index - entries), 1),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 2),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1000, 2),
    }


def config_of(node_id: str, ports: dict[str, int], directory: Path) -> SimpleNamespace:
    from dss_raft.versions import LATEST

    peers = [
        SimpleNamespace(id=peer, url=f"http://{peer}", host="127.0.0.1", peer_port=ports[peer]) for peer in IDS if peer != node_id
    ]
    return SimpleNamespace(
        node_id=node_id,
        url=f"http://{node_id}",
        cluster_id="bench",
        cluster_secret="bench",
        cluster_secret_previous="",
        peer_tls="DSS_BENCH_PLAIN" not in os.environ,
        peer_certificate_file="",
        data_dir=directory / node_id,
        peer_host="127.0.0.1",
        peer_port=ports[node_id],
        peer_port_offset=0,
        cluster_version_max=LATEST,
        peers=peers,
        join=False,
        raft_heartbeat_ms=100,
        raft_election_min_ms=500,
        raft_election_max_ms=1000,
        pending_commands_max=100_000,
        submit_timeout_ms=5000,
        snapshot_entries=10_000,
        snapshot_bytes=64 * 1024 * 1024,
        state_hash_interval_s=0,
    )


# ------------------------------------------------------------------ the measuring process


class Process:
    """A node in a process of its own."""

    def __init__(self, node_id: str, ports: dict[str, int], directory: Path) -> None:
        self.id = node_id
        arguments = [sys.executable, __file__, "--node", node_id, "--ports", json.dumps(ports), "--directory", str(directory)]
        self.log = directory / f"{node_id}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )

    def ask(self, question: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.id} has ended:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def wait_for_leader(nodes: dict[str, Process], other_than: str = "") -> str:
    """The leader, when all these nodes know it and have caught up with it."""
    while True:
        answers = [node.ask("status") for node in nodes.values()]
        leaders = {answer["leader"] for answer in answers}
        if len(leaders) == 1 and all(a["ready"] for a in answers) and (leader := leaders.pop()) and leader != other_than:
            return leader
        time.sleep(0.01)


def measure_throughput(nodes: dict[str, Process], seconds: float) -> list[dict[str, Any]]:
    leader = wait_for_leader(nodes)
    follower = next(node_id for node_id in IDS if node_id != leader)
    rows = []
    for place, node_id in (("leader", leader), ("follower", follower)):
        for clients in (1, 64, 512):
            row = {"clients at": place, **nodes[node_id].ask(f"run {clients} {seconds}")}
            rows.append(row)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return rows


def measure_failover(nodes: dict[str, Process], ports: dict[str, int], directory: Path, kills: int) -> dict[str, Any]:
    """Seconds from kill -9 of the leader until a command on another node is answered."""
    durations = []
    for number in range(kills):
        leader = wait_for_leader(nodes)
        nodes.pop(leader).kill()
        began = time.perf_counter()
        next(iter(nodes.values())).ask("run 1 0")
        durations.append(time.perf_counter() - began)
        nodes[leader] = Process(leader, ports, directory)
        print(f"\rkill {number + 1} of {kills}: {durations[-1]:.2f} s", end="", flush=True)
    print()
    durations.sort()
    return {
        "kills": kills,
        "p50_s": round(statistics.median(durations), 2),
        "p99_s": round(durations[min(len(durations) - 1, int(len(durations) * 0.99))], 2),
        "max_s": round(durations[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each throughput run; 0: none")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--node", help=argparse.SUPPRESS)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        import uvloop

        uvloop.run(run_node(options.node, json.loads(options.ports), Path(options.directory)))
        return
    ports = dict(zip(IDS, free_ports(len(IDS)), strict=True))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        nodes = {node_id: Process(node_id, ports, directory) for node_id in IDS}
        try:
            result: dict[str, Any] = {
                "machine": f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
            }
            if options.seconds:
                result["throughput"] = measure_throughput(nodes, options.seconds)
            if options.kills:
                result["failover"] = measure_failover(nodes, ports, directory, options.kills)
                print("failover", "  ".join(f"{key} {value}" for key, value in result["failover"].items()))
        finally:
            for node in nodes.values():
                node.kill()
    if options.seconds:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
