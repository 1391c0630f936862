"""What near clients cost their node: memory for each client and key, and time for each write that is applied.

    python benchmarks/bench_near_clients.py [clients] [keys of each]

Each measurement of memory runs in a process of its own. The defaults are a third of 1,000 clients with 10,000 keys, as on one of three
nodes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import perf_counter_ns

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cache"))
WRITES = 500


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(clients_count: int, keys_count: int, shared_percent: int) -> None:
    """`shared_percent` of the keys of each client are the same for all clients."""
    from dss_cache.core.near_clients import NearClients

    clients: NearClients[None] = NearClients(clients_count, keys_count, 2**40)
    shared = keys_count * shared_percent // 100
    before, began = rss_bytes(), perf_counter_ns()
    for number in range(clients_count):
        client = clients.open(None)
        client.held_until = 1e9
        clients.install(client, [f"app/user/{key:08d}" for key in range(shared)], 0, 0.0)
        clients.install(client, [f"app/{number:04d}/{key:08d}" for key in range(shared, keys_count)], 0, 0.0)
    pairs, used = clients_count * keys_count, rss_bytes() - before
    install_ns = (perf_counter_ns() - began) / pairs
    began = perf_counter_ns()
    clients.written("app/user/00000000", 1, 1.0)
    told_us = (perf_counter_ns() - began) / 1000
    print(
        f"{clients_count} clients x {keys_count:,} keys, {shared_percent:3} % of them shared: {used / 2**20:7.1f} MiB, "
        f"{used / pairs:6.1f} bytes for each client and key, {used / clients.keys:6.1f} for each key "
        f"(account {clients.bytes / clients.keys:.0f}); {install_ns:.0f} ns to install one"
        + (f"; {told_us:.0f} us for a write that all {clients_count} hold" if shared else "")
    )


def time_writes() -> None:
    """What applying a write costs on a node: without clients, and with a client that does not hold the key. In pairs."""
    from dss_cache.core.coherence import NearCache
    from dss_cache.core.events import Written
    from dss_cache.core.lines import Lines

    def make(with_client: bool) -> NearCache[None]:
        near: NearCache[None] = NearCache("n1", 1, Lines(10, 10**6, lambda *_: None), 1.0)
        near.session_opened() if hasattr(near, "session_opened") else None
        if with_client:
            near.clients.install(near.clients.open(None), ["other"], 0, 0.0)
        return near

    kinds = {"no client": make(False), "one client": make(True)}
    best = dict.fromkeys(kinds, float("inf"))
    stamp = 0
    for _ in range(400):
        for kind, near in kinds.items():
            events = [Written("k", stamp + number, b"1", "n2", 1, "put", {}) for number in range(1, WRITES + 1)]
            stamp += WRITES
            began = perf_counter_ns()
            for event in events:
                near.written(event, 1.0)
            best[kind] = min(best[kind], (perf_counter_ns() - began) / WRITES)
    for kind, nanoseconds in best.items():
        print(f"a write is applied, {kind}: {nanoseconds:.0f} ns")


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        measure(*map(int, sys.argv[2:]))
        return
    clients_count, keys_count = map(int, sys.argv[1:3] or (333, 10_000))
    time_writes()
    for shared_percent in (100, 50, 0):
        command = [sys.executable, __file__, "--memory", str(clients_count), str(keys_count), str(shared_percent)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
