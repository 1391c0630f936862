"""What does coherence cost? `python benchmarks/bench_cache_hit.py [--quick]`

1. A hit inside the node: only the operation `get`, without HTTP, on a cache with 10,000 lines.
2. A put with two sharers: one client, three nodes, over HTTP. Both other nodes read the key before each put. For comparison, a put of
   a key that only its writer has.
3. The first put after a sharer was killed, and the next hundred puts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvloop

from dss_cache import operations
from dss_cache.core.commands import GetRequest
from dss_cache.core.directory import Directory
from dss_cache.redis_store import RedisStore
from dss_cache.service import CacheService
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports

RESULTS = Path(__file__).parent / "results" / "bench_cache_hit.json"
LINES = 10_000


class LoneNode:
    """The part of a node that a hit and the constructor of the service use."""

    def __init__(self) -> None:
        self.node_id, self.incarnation = "n1", 1
        self.config = SimpleNamespace(
            cache_lease_ms=1000, cache_max_items=LINES, cache_max_bytes=1 << 30, cache_policy="lru", cache_write_back_ms=1000
        )
        self.services: dict[str, Any] = {}
        self.directory = Directory()

    def machine(self, name: str) -> Directory:
        return self.directory

    def _ignore(self, *_: Any) -> None:
        pass

    on_event = on_channel = on_peer_up = on_leader_change = on_tick = attach = _ignore


async def hit_ns(reads: int) -> dict[str, float]:
    """Nanoseconds for a hit, awaited like in an entry point; the cost of the clock is subtracted."""
    node: Any = LoneNode()
    service = CacheService(node, RedisStore("redis://localhost:1", "kv:"))
    for number in range(LINES):
        service.lines.install(f"user/{number}", "S", 1, b'{"name":"Ada"}', {}, True, 0.0, "bench")
    service.near.lease.valid_until = service.clock() + 3600
    rng = random.Random(1)
    requests = [GetRequest(key=f"user/{rng.randrange(LINES)}") for _ in range(reads)]
    get, clock = operations.get, time.perf_counter_ns
    for request in requests:
        assert (await get(node, request)).hit
    empty = []
    for _ in requests:
        began = clock()
        empty.append(clock() - began)
    spent = []
    for request in requests:
        began = clock()
        await get(node, request)
        spent.append(clock() - began)
    overhead = statistics.median(empty)
    spent.sort()
    began = clock()
    for request in requests:
        await get(node, request)
    mean = (clock() - began) / reads
    return {"p50_ns": spent[reads // 2] - overhead, "p99_ns": spent[reads * 99 // 100] - overhead, "mean_ns": round(mean)}


class Client:
    """One client of one node, with one connection."""

    def __init__(self, node: LocalNode) -> None:
        self._connection = http.client.HTTPConnection(node.host, node.port, timeout=30)

    def _call(self, method: str, path: str, body: bytes | None = None) -> float:
        began = time.perf_counter()
        self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = self._connection.getresponse()
        answer = response.read()
        spent = (time.perf_counter() - began) * 1000
        if response.status != 200:
            raise SystemExit(f"{method} {path}: {response.status} {answer!r}")
        return spent

    def get(self, key: str) -> float:
        """Milliseconds."""
        return self._call("GET", f"/cache/get?key={key}")

    def put(self, key: str, value: int) -> float:
        """Milliseconds."""
        return self._call("POST", "/cache/put", json.dumps({"key": key, "value": value}).encode())


def percentiles_ms(spent: list[float]) -> dict[str, float]:
    spent.sort()
    return {"p50_ms": round(spent[len(spent) // 2], 2), "p99_ms": round(spent[len(spent) * 99 // 100], 2)}


def put_ms(writer: LocalNode, readers: list[LocalNode], puts: int) -> dict[str, float]:
    """Puts by one client, each after every reader has read the key."""
    write, read = Client(writer), [Client(node) for node in readers]
    spent = []
    for number in range(puts):
        for one in read:
            one.get("shared")
        spent.append(write.put("shared", number))
    return percentiles_ms(spent)


def put_after_kill_ms(cluster: LocalCluster, rounds: int) -> dict[str, Any]:
    """The first put of a key whose sharer, a follower, has just been killed, and the next hundred puts."""
    first, later = [], []
    for _ in range(rounds):
        victim = cluster.followers()[0]
        write, read = Client(cluster.leader()), Client(victim)
        write.put("killed", 0)
        for _ in range(3):
            read.get("killed")
        victim.kill()
        first.append(round(write.put("killed", 1), 1))
        later += [write.put("killed", number) for number in range(100)]
        victim.start()
        cluster.wait_ready(nodes=[victim])
    return {"first_ms": first, "then": percentiles_ms(later)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run fewer rounds and write no results")
    arguments = parser.parse_args()
    puts, rounds = (100, 1) if arguments.quick else (1000, 5)
    figures: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    figures["hit inside the node"] = uvloop.run(hit_ns(20_000 if arguments.quick else 200_000))
    with tempfile.TemporaryDirectory() as directory:
        cluster = LocalCluster(Path(directory), free_ports(3), {"DSS_CLUSTER_SECRET": "bench"})
        cluster.start()
        try:
            cluster.wait_ready()
            leader, followers = cluster.leader(), cluster.followers()
            figures["put without sharers, by the leader"] = put_ms(leader, [], puts)
            figures["put with two sharers, by the leader"] = put_ms(leader, followers, puts)
            figures["put with two sharers, by a follower"] = put_ms(followers[0], [followers[1], leader], puts)
            figures["put after a sharer was killed"] = put_after_kill_ms(cluster, rounds)
        finally:
            cluster.stop()
    for name, values in figures.items():
        print(f"{name:40} {values}")
    if not arguments.quick:
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
