"""How much memory a lock, a message, a connection, … takes in a node: the figures of docs/explanation/sizing.md.

    python benchmarks/bench_memory.py                       # about two minutes
    python benchmarks/bench_memory.py --count 20000 lock message

Each kind of the replicated state gets a process of its own, which fills the real state machines without a log or a network: the growth of
its memory (unique set size) divided by the number of objects. Keys and names have 16 characters, values 200 bytes. Beside it: what the
state's own account counts, which decides about limits, and the size in a snapshot. Each kind of connection is opened to a new real node.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
from websockets.asyncio.client import connect

from dss_api.fields import WAIT_MS_MAX
from dss_cache.core.commands import Put, WrittenBack
from dss_cache.core.directory import Directory
from dss_cache.core.lines import EXCLUSIVE, Lines
from dss_dev.local_cluster import HOST, LocalCluster, LocalNode, free_ports
from dss_locks.core.commands import Acquire, StartSession
from dss_project.runtime import state_machines
from dss_queue.core.commands import Consume, NewMessage, Publish
from dss_raft.replication.access_tokens import CreateToken
from dss_raft.replication.audit import RecordCall
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Origin
from dss_raft.replication.replica import Replica

RESULTS = Path(__file__).parent / "results" / "bench_memory.json"
COUNT = 100_000
#: more are refused by default
TOKENS = 900
CONNECTIONS_OPENED = 500
#: calls that wait at a real node, as many on a connection as are allowed; those of the first one are not counted
WAITING_CALL = "waiter with its call on a WebSocket"
WAITING, WAITING_PER_SOCKET = 5000, 1000
#: what is open before the measurement: buffers and code of the first ones
WARM_UP = 50
#: bytes of a value: JSON text
VALUE = b'"' + b"v" * 198 + b'"'
AT_MS = 1_000_000_000

#: bytes of memory, as counted, in a snapshot
Sizes = tuple[float, float, float]


def memory() -> int:
    gc.collect()
    found: int = psutil.Process().memory_full_info().uss
    return found


class World:
    """The state machines of a node."""

    def __init__(self) -> None:
        self.replica = Replica("a", state_machines())
        self.index = 0

    def apply(self, machine: str, command: Command) -> None:
        self.index += 1
        self.replica.machines[machine].apply(command, AT_MS, self.index, Origin("a", 1, self.index))
        self.replica.machines[machine].take_events()

    def counted(self) -> int:
        return sum(self.replica.usage().values())


def name(number: int, prefix: str = "key") -> str:
    return f"{prefix}{number:0{16 - len(prefix)}d}"


def locks(world: World, numbers: Iterable[int]) -> None:
    for number in numbers:
        world.apply("locks", Acquire(key=name(number), client=name(number, "client")))


def waiters(world: World, numbers: Iterable[int]) -> None:
    """A hundred at each lock."""
    for number in numbers:
        key = name(number // 100)
        if number % 100 == 0:
            world.apply("locks", Acquire(key=key, client="the holder"))
        world.apply("locks", Acquire(key=key, client=name(number, "client"), wait_ms=20_000))


def sessions(world: World, numbers: Iterable[int]) -> None:
    for number in numbers:
        world.apply("locks", StartSession(client=name(number, "client")))


def _publish(world: World, numbers: Iterable[int], key: bool = False, dedup: bool = False) -> None:
    for number in numbers:
        # A copy: equal objects would be one.
        message = NewMessage(
            name(number // 50_000, "topic"),
            bytes(bytearray(VALUE)),
            name(number) if key else "",
            number % 8 if key else -1,
            0,
            name(number, "dedup") if dedup else "",
            b"",
        )
        world.apply("queue", Publish(messages=[message]))


def _groups(world: World, numbers: Iterable[int]) -> None:
    for topic in sorted({number // 50_000 for number in numbers}):
        world.apply("queue", Consume(topic=name(topic, "topic"), group="workers", timeout_ms=0, visibility_ms=60_000))


def messages(world: World, numbers: list[int]) -> None:
    """With one group that has not taken them."""
    _groups(world, numbers)
    _publish(world, numbers)


def messages_in_flight(world: World, numbers: list[int]) -> None:
    messages(world, numbers)
    for topic in sorted({number // 50_000 for number in numbers}):
        for _ in range(0, 50_000, 100):
            world.apply(
                "queue",
                Consume(topic=name(topic, "topic"), group="workers", timeout_ms=0, visibility_ms=60_000, max_messages=100),
            )


def messages_with_a_key(world: World, numbers: list[int]) -> None:
    _groups(world, numbers)
    _publish(world, numbers, key=True)


def messages_with_a_dedup_id(world: World, numbers: list[int]) -> None:
    _groups(world, numbers)
    _publish(world, numbers, dedup=True)


def dirty_values(world: World, numbers: Iterable[int]) -> None:
    for number in numbers:
        world.apply("cache", Put(key=name(number), value=bytes(bytearray(VALUE))))


def clean_values(world: World, numbers: list[int]) -> None:
    """The value is in the backing store; the directory knows its version and who has a line."""
    for number in numbers:
        dirty_values(world, [number])
        directory = cast(Directory, world.replica.machines["cache"])
        world.apply("cache", WrittenBack(items=[(name(number), directory.records[name(number)].version)]))


def tokens(world: World, numbers: Iterable[int]) -> None:
    for number in numbers:
        command = CreateToken(
            id=f"{number:012x}", name=name(number, "token"), scopes=["locks:jobs/", "queue:jobs:consume"], key="0" * 8
        )
        world.apply("tokens", command)


def audit_records(world: World, numbers: Iterable[int]) -> None:
    for number in numbers:
        command = RecordCall(
            by=name(number % 10, "user"),
            via="http",
            address="192.0.2.17",
            node="node-1",
            operation="queue.purge",
            request=f'{{"topic":"{name(number)}"}}',
        )
        world.apply("audit", command)


KINDS: dict[str, tuple[Callable[[World, list[int]], None], int]] = {
    "lock": (locks, COUNT),
    "waiter": (waiters, COUNT),
    "session": (sessions, COUNT),
    "message": (messages, COUNT),
    "message in flight": (messages_in_flight, COUNT),
    "message with a key of its own": (messages_with_a_key, COUNT),
    "message with a dedup_id": (messages_with_a_dedup_id, COUNT),
    "value, not written back": (dirty_values, COUNT),
    "value in the backing store": (clean_values, COUNT),
    "token": (tokens, TOKENS),
    "audit record": (audit_records, 9000),
}


def measure_state(kind: str, count: int) -> Sizes:
    """Bytes of an object: of memory, as the state counts it, and in a snapshot."""
    fill, most = KINDS[kind]
    world = World()
    count = min(count, most)
    fill(world, list(range(10_000_000, 10_000_000 + min(100, count // 10))))
    before, counted_before = memory(), world.counted()
    fill(world, list(range(count)))
    used = memory() - before
    snapshot = sum(len(msgspec.msgpack.encode(machine.snapshot())) for machine in world.replica.machines.values())
    return used / count, (world.counted() - counted_before) / count, snapshot / count


def measure_lines(count: int) -> Sizes:
    """A line of a node's cache, in addition to the directory's record."""
    lines = Lines(10 * count, 2**40, lambda *change: None)
    before = memory()
    for number in range(count):
        lines.install(name(number), EXCLUSIVE, number, bytes(bytearray(VALUE)), {}, True, 0.0, "bench")
    return (memory() - before) / count, lines.bytes / count, 0.0


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a new process: nothing was freed in it before."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


async def _http(node: LocalNode) -> Any:
    reader, writer = await asyncio.open_connection(HOST, node.port)
    writer.write(b"GET /raft/leader HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"}")
    return writer


async def _websocket(node: LocalNode) -> Any:
    return await connect(f"ws://{HOST}:{node.port}/ws", compression=None)


async def _subscription(node: LocalNode) -> Any:
    opened = await _websocket(node)
    await opened.send('{"id": 1, "op": "queue.subscribe", "request": {"topic": "bench", "group": "g", "credit": 1}}')
    await opened.send('{"id": 2, "op": "health"}')
    await opened.recv()
    return opened


CONNECTIONS: dict[str, Callable[[LocalNode], Any]] = {
    "HTTP connection": _http,
    "WebSocket": _websocket,
    "WebSocket with a subscription": _subscription,
}


async def measure_connection(opens: Callable[[LocalNode], Any]) -> float:
    """Bytes of an idle connection at a new node with uvicorn. What the kernel keeps for it is not in them."""
    with tempfile.TemporaryDirectory() as directory:
        cluster = LocalCluster(Path(directory), free_ports(1), {"DSS_SERVER": "uvicorn"})
        cluster.start()
        try:
            cluster.wait_ready()
            process = psutil.Process(cluster.nodes[0].pid)
            kept = [await opens(cluster.nodes[0]) for _ in range(WARM_UP)]
            before = process.memory_full_info().uss
            kept += [await opens(cluster.nodes[0]) for _ in range(CONNECTIONS_OPENED)]
            return (process.memory_full_info().uss - before) / CONNECTIONS_OPENED
        finally:
            cluster.stop()


async def measure_waiting_calls() -> float:
    """Bytes of a lock call that waits on a WebSocket: with its place in the state, its task, and its entry in the log of one node."""
    with tempfile.TemporaryDirectory() as directory:
        cluster = LocalCluster(Path(directory), free_ports(1), {"DSS_SERVER": "uvicorn"})
        cluster.start()
        try:
            cluster.wait_ready()
            node = cluster.nodes[0]
            sockets = [await _websocket(node) for _ in range(1 + WAITING // WAITING_PER_SOCKET)]
            for number in range(WAITING // 100):
                await _acquire(sockets[0], number, name(number), "the holder", 0)
                await sockets[0].recv()
            used = []
            for first in (0, WAITING_PER_SOCKET):
                used.append(psutil.Process(node.pid).memory_full_info().uss)
                for number in range(first, WAITING_PER_SOCKET if not first else WAITING):
                    socket = sockets[1 + number // WAITING_PER_SOCKET]
                    await _acquire(socket, number, name(number // 100), name(number, "client"), WAIT_MS_MAX)
                    if number % 100 == 99:
                        await asyncio.sleep(0.02)
                # Answered behind all of them.
                await _acquire(sockets[0], -1 - first, name(first, "other"), "the holder", 0)
                await sockets[0].recv()
            return (psutil.Process(node.pid).memory_full_info().uss - used[-1]) / (WAITING - WAITING_PER_SOCKET)
        finally:
            cluster.stop()


async def _acquire(socket: Any, call: int, key: str, client: str, wait_ms: int) -> None:
    request = {"key": key, "client": client, "ttl_ms": 0, "wait_ms": wait_ms}
    await socket.send(json.dumps({"id": call, "op": "locks.acquire", "request": request}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"some of: {', '.join([*KINDS, 'cache line', WAITING_CALL, *CONNECTIONS])}")
    parser.add_argument("--count", type=int, default=COUNT, help="objects of each kind")
    parser.add_argument("--no-results", action="store_true", help=f"do not write {RESULTS.name}")
    options = parser.parse_args()
    wanted = options.kinds or [*KINDS, "cache line", WAITING_CALL, *CONNECTIONS]
    rows: dict[str, dict[str, int]] = {}
    print(f"{'kind':34} {'memory':>8} {'counted':>8} {'snapshot':>8}")
    for kind in wanted:
        if kind in CONNECTIONS:
            sizes: Sizes = (asyncio.run(measure_connection(CONNECTIONS[kind])), 0.0, 0.0)
        elif kind == WAITING_CALL:
            sizes = (asyncio.run(measure_waiting_calls()), 0.0, 0.0)
        elif kind == "cache line":
            sizes = in_process(measure_lines, options.count)
        else:
            sizes = in_process(measure_state, kind, options.count)
        rows[kind] = {name: round(size) for name, size in zip(("memory", "counted", "snapshot"), sizes, strict=True) if size}
        print(f"{kind:34}", *(f"{round(size):8,}" if size else " " * 8 for size in sizes), flush=True)
    if not options.kinds and not options.no_results:
        RESULTS.write_text(
            json.dumps({"python": platform.python_version(), "cores": os.cpu_count(), "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())
