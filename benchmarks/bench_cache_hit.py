"""What does coherence cost? `python benchmarks/bench_cache_hit.py [--json FILE] [--quick]`

1. A hit inside the node: the operation `get` alone, without HTTP, on a cache with 10,000 lines.
2. A put with two sharers, one client, three nodes over HTTP: each put follows a read on both other nodes.
3. The first put after a sharer was killed, and the one after it.
"""

from __future__ import annotations

import argparse
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
from dss_cache.commands import GetRequest
from dss_cache.directory import Directory
from dss_cache.memory_redis import RedisMemory
from dss_cache.service import CacheService
from dss_project.local_cluster import LocalCluster, LocalNode, free_ports

LINES = 10_000


class LoneNode:
    """As much of a node as a hit sees, and as the service asks for when it is built."""

    def __init__(self) -> None:
        self.node_id, self.boot = "n1", 1
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
    """Nanoseconds for a hit, awaited as a door awaits it; the clock's own cost is taken off."""
    node: Any = LoneNode()
    service = CacheService(node, RedisMemory("redis://localhost:1", "kv:"))
    for number in range(LINES):
        service.lines.install(f"user/{number}", "S", 1, b'{"name":"Ada"}', {}, True, 0.0, "bench")
    service.near.lease.valid_until = service.clock() + 3600
    dice = random.Random(1)
    requests = [GetRequest(key=f"user/{dice.randrange(LINES)}") for _ in range(reads)]
    get, clock = operations.get, time.perf_counter_ns
    for request in requests:
        assert (await get(node, request)).body["hit"]
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


def put_with_sharers_ms(nodes: list[LocalNode], puts: int) -> dict[str, float]:
    """Milliseconds for a put on one node after both others have read the key."""
    writer, *readers = nodes
    spent = []
    for number in range(puts):
        for reader in readers:
            assert reader.call("GET", "/cache/get?key=shared").status == 200
        began = time.perf_counter()
        reply = writer.call("POST", "/cache/put", {"key": "shared", "value": number})
        spent.append((time.perf_counter() - began) * 1000)
        assert reply.status == 200, reply.body
    spent.sort()
    return {"p50_ms": round(spent[puts // 2], 2), "p99_ms": round(spent[puts * 99 // 100], 2)}


def put_after_kill_ms(cluster: LocalCluster) -> dict[str, float]:
    """Milliseconds for the first two puts of a key whose sharer, a follower, has just been killed."""
    victim = cluster.followers()[0]
    writer = cluster.leader()
    writer.call("POST", "/cache/put", {"key": "killed", "value": 0})
    for _ in range(3):
        victim.call("GET", "/cache/get?key=killed")
    victim.kill()
    answer = {}
    for name in ("first_ms", "second_ms"):
        began = time.perf_counter()
        reply = writer.call("POST", "/cache/put", {"key": "killed", "value": name})
        answer[name] = round((time.perf_counter() - began) * 1000, 1)
        assert reply.status == 200, reply.body
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    rounds = 10 if arguments.quick else 1
    figures: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    figures["hit inside the node"] = uvloop.run(hit_ns(200_000 // rounds))
    with tempfile.TemporaryDirectory() as directory:
        cluster = LocalCluster(Path(directory), free_ports(3), {"DSS_CLUSTER_SECRET": "bench"})
        cluster.start()
        try:
            cluster.wait_ready()
            figures["put with two sharers, by the leader"] = put_with_sharers_ms(
                [cluster.leader(), *cluster.followers()], 500 // rounds
            )
            figures["put with two sharers, by a follower"] = put_with_sharers_ms(
                [*cluster.followers(), cluster.leader()], 500 // rounds
            )
            figures["put after a sharer was killed"] = put_after_kill_ms(cluster)
        finally:
            cluster.stop()
    for name, values in figures.items():
        print(f"{name:40} {values}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
