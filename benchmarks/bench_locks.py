"""Speed and memory of the lock table alone: `python benchmarks/bench_locks.py [--json FILE] [--quick]`

There is no node, disk or network: commands go directly into the state machine, as when an entry is applied. Each figure is the best
of several rounds, in processor time, because the machine may be busy.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable

from dss_locks.core.commands import Acquire, Release, Watch
from dss_locks.core.state import LockChanged, LockLimits
from dss_locks.core.table import LockTable
from dss_locks.watching import LockWatchers
from dss_raft.replication.limits import StateLimits
from dss_raft.replication.machine import Origin

COMMANDS_PER_ENTRY = 64
AT_MS = 1_700_000_000_000
NO_ORIGIN = Origin("", 0, 0)


def new_table(limits: LockLimits | None = None) -> LockTable:
    """A table without a limit in bytes: a million locks take more than the default."""
    return LockTable(limits, StateLimits({"lock_bytes_max": 2**50}))


def best_of(rounds: int, run: Callable[[], float]) -> float:
    """The highest rate of several rounds, with a garbage collection before each."""
    rates = []
    for _ in range(rounds):
        gc.collect()
        rates.append(run())
    return max(rates)


def uncontended(pairs: int) -> float:
    """Acquire+release pairs per second by 1,000 clients, each pair on a key of its own."""
    table = new_table()
    commands = [
        (Acquire(key=f"orders/{n}", client=f"worker-{n % 1000}"), Release(key=f"orders/{n}", client=f"worker-{n % 1000}"))
        for n in range(pairs)
    ]
    origins = [Origin("node-1", 1, n + 1) for n in range(2 * pairs)]
    started = time.process_time()
    index, at_ms, seq = 1, AT_MS, 0
    for first in range(0, pairs, COMMANDS_PER_ENTRY):
        batch = commands[first : first + COMMANDS_PER_ENTRY]
        for half in (0, 1):
            index += 1
            at_ms += 1
            deadline_ms = table.next_deadline_ms()
            if deadline_ms is not None and deadline_ms <= at_ms:
                table.expire(at_ms, index)
            for pair in batch:
                table.apply(pair[half], at_ms, index, origins[seq])
                seq += 1
            table.take_events()
    rate = pairs / (time.process_time() - started)
    assert not table.locks
    return rate


def contended(waiters: int, pairs: int, nested: bool = False) -> float:
    """Release+acquire pairs per second on one key: the holder releases the key and joins the end of the queue.

    `nested`: each client also holds a lock of its own, which no other client requests.
    """
    table = new_table(LockLimits(waiters_per_key_max=waiters + 1))
    clients = [f"worker-{n}" for n in range(waiters + 1)]
    index, seq = 1, 0
    for client in clients:
        if nested:
            seq += 1
            table.apply(Acquire(key=f"job/{client}", client=client), AT_MS, index, Origin("node-1", 1, seq))
        seq += 1
        table.apply(Acquire(key="k", client=client, wait_ms=20_000), AT_MS, index, Origin("node-1", 1, seq))
    table.take_events()
    commands = [
        (Release(key="k", client=client), Acquire(key="k", client=client, wait_ms=20_000))
        for client in (clients[n % len(clients)] for n in range(pairs))
    ]
    origins = [Origin("node-1", 1, seq + n + 1) for n in range(2 * pairs)]
    at_ms, seq = AT_MS, 0
    started = time.process_time()
    for release, acquire in commands:
        index += 1
        if not index % COMMANDS_PER_ENTRY:
            at_ms += 1
        deadline_ms = table.next_deadline_ms()
        if deadline_ms is not None and deadline_ms <= at_ms:
            table.expire(at_ms, index)
        table.apply(release, at_ms, index, origins[seq])
        assert table.apply(acquire, at_ms, index, origins[seq + 1]) is None
        seq += 2
        table.take_events()
    return pairs / (time.process_time() - started)


def bytes_per_lock(locks: int, mode: str, ttl_ms: int) -> float:
    """Bytes per held lock, without the strings of its key and client."""
    keys = [f"orders/{n}" for n in range(locks)]
    clients = [f"worker-{n}" for n in range(locks)]
    table = new_table()
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    index, at_ms = 1, AT_MS
    for n in range(locks):
        if not n % COMMANDS_PER_ENTRY:
            index, at_ms = 1_000_000 + n, AT_MS + n // COMMANDS_PER_ENTRY
            table.next_deadline_ms()
            table.take_events()
        command = Acquire(key=keys[n], client=clients[n], mode=mode, ttl_ms=ttl_ms + n % 2)  # type: ignore[arg-type]
        table.apply(command, at_ms, index, Origin("node-1", 1, n + 1))
    del command
    table.take_events()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table.locks) == locks
    return (after - before) / locks


def deadlock_ring(clients: int) -> float:
    """Milliseconds to find a cycle of clients that each hold one key and wait for the key of the next client."""
    table = new_table()
    for n in range(clients):
        table.apply(Acquire(key=f"k{n}", client=f"c{n}"), AT_MS, n + 1, Origin("node-1", 1, n + 1))
    for n in range(clients - 1):
        origin = Origin("node-1", 1, clients + n + 1)
        table.apply(Acquire(key=f"k{n + 1}", client=f"c{n}", wait_ms=20_000), AT_MS, clients + n + 1, origin)
    command = Acquire(key="k0", client=f"c{clients - 1}", wait_ms=20_000)
    started = time.process_time()
    result = table.apply(command, AT_MS, 3 * clients, Origin("node-1", 1, 3 * clients))
    took_ms = (time.process_time() - started) * 1000
    assert result is not None
    assert len(result.body["cycle"]) == clients
    return took_ms


def deadlock_crowd(clients: int) -> float:
    """Milliseconds to find no cycle from the end of a queue of clients that all hold other locks.

    Another client waits for the last one, because otherwise there would be no search.
    """
    table = new_table()
    for n in range(clients):
        table.apply(Acquire(key=f"k{n}", client=f"c{n}"), AT_MS, n + 1, Origin("node-1", 1, n + 1))
    for n in range(clients):
        command = Acquire(key="crowd", client=f"c{n}", wait_ms=20_000)
        if n == clients - 1:
            outside = Acquire(key=f"k{n}", client="outside", wait_ms=20_000)
            table.apply(outside, AT_MS, clients + n + 1, Origin("node-1", 1, 3 * clients))
            started = time.process_time()
        table.apply(command, AT_MS, clients + n + 1, Origin("node-1", 1, clients + n + 1))
    return (time.process_time() - started) * 1000


def expire_all(locks: int) -> float:
    """Leases per second if all of them expire at the same time."""
    table = new_table()
    for n in range(locks):
        table.apply(Acquire(key=f"k{n}", client=f"c{n}", ttl_ms=1000), AT_MS + n // 1000, n + 1, Origin("node-1", 1, n + 1))
    table.take_events()
    started = time.process_time()
    table.expire(AT_MS + 60_000, locks + 1)
    rate = locks / (time.process_time() - started)
    assert not table.locks
    return rate


class Listening:
    """The part of a node that `LockWatchers` uses."""

    applied_index = 1

    def __init__(self, table: LockTable) -> None:
        self.table = table
        self.services: dict[str, object] = {}
        self.changed: Callable[[LockChanged, int], None]

    def machine(self, name: str) -> LockTable:
        return self.table

    def on_event(self, event_type: type, callback: Callable[[LockChanged, int], None]) -> None:
        if event_type is LockChanged:
            self.changed = callback

    def on_state_replaced(self, callback: Callable[[], None]) -> None: ...


class Sink:
    """A feed that only counts events. Encoding and sending them is not measured."""

    pushed = 0

    def push(self, event: object) -> None:
        self.pushed += 1


def event_ns(watches: int, events: int) -> float:
    """Nanoseconds per event at a node with a number of watches of its key."""
    node = Listening(new_table())
    watchers, sink = LockWatchers(node), Sink()  # type: ignore[arg-type]
    event = LockChanged("granted", "orders/1", "worker-1", "exclusive", 7, 7)

    async def run() -> float:
        contexts = [watchers.watch(Watch(key="orders/1"), sink) for _ in range(watches)]  # type: ignore[arg-type]
        for context in contexts:
            await context.__enter__().send_state("state", lambda: AT_MS)
        started = time.process_time()
        for _ in range(events):
            node.changed(event, 7)
        took_s = time.process_time() - started
        for context in contexts:
            context.__exit__(None, None, None)
        return took_s / events * 1e9

    took_ns = asyncio.run(run())
    assert sink.pushed == (events + 1) * watches
    return took_ns


def start_watching(locks: int) -> tuple[float, float]:
    """Milliseconds to find and send one in a thousand held locks: in total, and in the longest turn of the event loop."""
    table = new_table()
    for n in range(locks):
        table.apply(Acquire(key=f"orders/{n % 1000}/{n}", client=f"worker-{n}", ttl_ms=0), AT_MS, 1, NO_ORIGIN)
    watchers, sink = LockWatchers(Listening(table)), Sink()  # type: ignore[arg-type]
    turns: list[float] = []

    async def run() -> float:
        with watchers.watch(Watch(prefix="orders/7/"), sink) as watch:  # type: ignore[arg-type]
            task = asyncio.ensure_future(watch.send_state("state", lambda: AT_MS))
            began = time.perf_counter()
            while not task.done():
                turn = time.perf_counter()
                await asyncio.sleep(0)
                turns.append(time.perf_counter() - turn)
            return time.perf_counter() - began

    took_s = asyncio.run(run())
    assert sink.pushed
    return took_s * 1000, max(turns) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file as well")
    parser.add_argument("--quick", action="store_true", help="do a tenth of the work, to check that it runs")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    held = 1_000_000 // scale
    figures = {
        "acquire+release a second, uncontended (target 150,000)": best_of(5, lambda: uncontended(200_000 // scale)),
        "acquire+release a second, 1,000 waiters on the key (target 50,000)": best_of(
            5, lambda: contended(1000, 50_000 // scale)
        ),
        "the same, each waiter holding another lock": best_of(3, lambda: contended(1000, 50_000 // scale, nested=True)),
        "acquire+release a second, 10,000 waiters on the key": best_of(3, lambda: contended(10_000, 50_000 // scale)),
        f"bytes a held lock, exclusive, {held:,} held (target < 500)": bytes_per_lock(held, "exclusive", 60_000),
        f"bytes a held lock, shared, {held:,} held (target < 500)": bytes_per_lock(held, "shared", 60_000),
        "leases a second, all expired together": best_of(3, lambda: expire_all(100_000 // scale)),
        "ms to find a cycle of 10,000 waiting clients": min(deadlock_ring(10_000 // scale) for _ in range(3)),
    }
    figures["ms to find none among 10,000 in one exclusive queue"] = deadlock_crowd(10_000 // scale)
    figures["ns an event costs a node without watches"] = min(event_ns(0, 200_000 // scale) for _ in range(3))
    figures["ns an event costs with 1,000 watches of its key"] = min(event_ns(1000, 1000 // scale) for _ in range(3))
    in_all_ms, longest_ms = start_watching(held)
    figures[f"ms to begin watching a prefix (one in a thousand of {held:,})"] = in_all_ms
    figures["of these, ms in the longest turn of the loop"] = longest_ms
    for name, value in figures.items():
        print(f"{value:>12,.1f}  {name}")
    machine = f"Python {platform.python_version()} on {platform.machine()}"
    print(machine)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, "figures": figures}, file, indent=2)


if __name__ == "__main__":
    sys.exit(main())
