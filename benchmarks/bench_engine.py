"""Topics on the engine `redis` next to topics in the log: the same work on three nodes over HTTP, in turns, in one run.

    python benchmarks/bench_engine.py                      # the tables, also as results/bench_engine.json
    python benchmarks/bench_engine.py --acks fsync         # the same, with this setting of the topics on `redis`
    python benchmarks/bench_engine.py --acks each          # the three settings next to each other, without `raft`
    python benchmarks/bench_engine.py --memory             # what a topic of 1,000,000 messages takes in the nodes

Three nodes with uvicorn, and a Valkey Cluster of three primaries, each with a replica, share the machine with the load. In each round, the
engines (or settings) take turns at each step, and the next round has them in the opposite order. A step ends when all of its messages
are published, or consumed and acked. A ratio is the median of those of the rounds. Latencies are those of one caller, who calls the three
nodes in turn. The servers have `appendfsync always` while `acks: fsync` is measured, and `everysec` otherwise.

Processor time is the user and system time of all nodes, of all primaries and of all replicas, divided by the number of messages.

Exit code: 1 if it falls short of what is asked, 2 if the measurement failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import engine_load
import psutil
from bench_http import commit, interpreter
from compare_http import cpu_time_s, positive
from engine_load import Done, Step, together

from dss_dev.engine_memory import grown, print_growth
from dss_dev.local_cluster import ROOT, LocalCluster, NotReady, free_ports
from dss_dev.valkey_cluster import ValkeyCluster
from dss_dev.valkey_server import NotReached

RESULTS = Path(__file__).parent / "results" / "bench_engine.json"
ACKS = ("primary", "replica", "fsync")
BATCH = 100
#: for the first, untimed round: this part of the work
WARM_UP_PART = 10
RATIO_ASKED = 2.0
P50_MS_ASKED = 1.0
MACHINES = 6
#: of a network interface of 1 Gbit/s, each direction
NETWORK_BYTES_PER_S = 125_000_000
GROWTH_BYTES_ASKED = 10_000_000
MEMORY_MESSAGES, MEMORY_BATCH, MEMORY_CONSUMED = 1_000_000, 1000, 100_000

PUBLISH, CONSUME = "published by 100", "consumed and acked by 100"
PUBLISH_ONE, CONSUME_ONE = "publish, one caller", "consume and ack, one caller"


@dataclass(frozen=True)
class Contender:
    """What is compared: one engine, or one setting of it. It has topics of its own."""

    name: str
    engine: str
    acks: str = "primary"

    @property
    def settings(self) -> dict[str, str]:
        """Of its topics."""
        return {"engine": self.engine, **({"acks": self.acks} if self.engine == "redis" else {})}

    @property
    def appendfsync(self) -> str:
        """Of the servers. With `everysec`, a call that waits for a disk would take up to a second."""
        return "always" if self.acks == "fsync" else "everysec"


def contenders(acks: str) -> list[Contender]:
    """The first one is what the others are compared with."""
    if acks == "each":
        return [Contender(one, "redis", one) for one in ACKS]
    return [Contender("raft", "raft"), Contender("redis", "redis", acks)]


@dataclass
class World:
    """What gets the load."""

    nodes: LocalCluster
    servers: ValkeyCluster
    pool: ProcessPoolExecutor
    processes: int

    def cpu_s(self) -> dict[str, float]:
        """User and system time so far, by kind of process."""
        primaries = set(self.servers.primaries)
        kinds: dict[str, list[int]] = {
            "nodes": [node.pid for node in self.nodes.nodes],
            "primaries": [self.servers.server(port).pid for port in self.servers.ports if port in primaries],
            "replicas": [self.servers.server(port).pid for port in self.servers.ports if port not in primaries],
        }
        return {kind: cpu_time_s([psutil.Process(pid) for pid in pids]) for kind, pids in kinds.items()}

    def set_appendfsync(self, value: str) -> None:
        for port in self.servers.ports:
            self.servers.server(port).client.config_set("appendfsync", value)

    def server_bytes(self) -> int:
        """What the primaries have sent and received so far, also to and from replicas."""
        total = 0
        for port in self.servers.primaries:
            info = cast("dict[str, Any]", self.servers.server(port).client.info("stats"))
            total += sum(value for name, value in info.items() if name.startswith("total_net_") and name.endswith("_bytes"))
        return total

    def run(self, step: Step, callers: int) -> Done:
        """Send the load of a step.

        Raises:
            NotReady: calls failed.
        """
        ports = [node.port for node in self.nodes.nodes]
        count = min(self.processes, callers)
        parts = [callers // count + (number < callers % count) for number in range(count)]
        # Each process begins with another node.
        rotations = [ports[number % len(ports) :] + ports[: number % len(ports)] for number in range(count)]
        done = together(self.pool.map(engine_load.run, [step] * count, rotations, parts))
        if done.errors or not done.messages:
            raise NotReady(f"{step.kind}, {step.topic}: {done.errors} calls failed\n{self.nodes.nodes[0].log_tail()}")
        return done


@dataclass
class Measured:
    """A step of one contender in one round."""

    done: Done
    #: µs per message, by kind of process
    cpu_us: dict[str, float]
    #: per message, of HTTP and of the primaries
    bytes: float

    def latency_ms(self, share: float) -> float:
        ordered = sorted(self.done.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


def measured(world: World, step: Step, callers: int) -> Measured:
    before, bytes_before = world.cpu_s(), world.server_bytes()
    done = world.run(step, callers)
    after = world.cpu_s()
    used = {kind: (after[kind] - before[kind]) / done.messages * 1e6 for kind in after}
    used["load"] = done.cpu_s / done.messages * 1e6
    return Measured(done, used, (done.bytes + world.server_bytes() - bytes_before) / done.messages)


def work_of_a_round(one: Contender, options: argparse.Namespace, part: int = 1) -> list[tuple[str, Step, int]]:
    """Titles, steps, and callers. What is published is consumed by the next step."""
    topic, singles = f"bench-{one.name}", f"bench-{one.name}-singles"
    calls = max(1, options.messages // part // BATCH // options.callers)
    return [
        (PUBLISH, Step("publish", topic, BATCH, calls), options.callers),
        (CONSUME, Step("consume", topic, BATCH), options.callers),
        (PUBLISH_ONE, Step("publish", singles, 1, max(1, options.singles // part)), 1),
        (CONSUME_ONE, Step("consume", singles, 1), 1),
    ]


#: Title -> name of a contender -> what each round measured.
Rounds = dict[str, dict[str, list[Measured]]]


def measure(world: World, options: argparse.Namespace) -> Rounds:
    compared = contenders(options.acks)
    for one in compared:
        for title, step, _ in work_of_a_round(one, options):
            answer = world.nodes.nodes[0].call("PUT", "/queue/topic", {"topic": step.topic, **one.settings})
            if answer.status != 200:
                raise NotReady(f"{title}: {answer.status} {answer.body.decode()}")
        world.set_appendfsync(one.appendfsync)
        for _, step, callers in work_of_a_round(one, options, WARM_UP_PART):
            world.run(step, callers)
    titles = [title for title, _, _ in work_of_a_round(compared[0], options)]
    rounds: Rounds = {title: {one.name: [] for one in compared} for title in titles}
    for number in range(options.rounds):
        for place in range(len(titles)):
            for one in compared if number % 2 == 0 else compared[::-1]:
                title, step, callers = work_of_a_round(one, options)[place]
                world.set_appendfsync(one.appendfsync)
                rounds[title][one.name].append(measured(world, step, callers))
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {options.rounds} ", end="", file=sys.stderr, flush=True)
    return rounds


# ------------------------------------------------------------------- tables


def row_of(title: str, by: dict[str, list[Measured]]) -> dict[str, Any]:
    """A line of the tables: medians of the rounds."""
    is_single = title in (PUBLISH_ONE, CONSUME_ONE)
    base = next(iter(by.values()))
    row: dict[str, Any] = {"step": title}
    for name, rounds in by.items():
        row[name] = {
            "per_s": round(statistics.median(one.done.per_s for one in rounds)),
            "cpu_us": {kind: round(statistics.median(one.cpu_us[kind] for one in rounds), 1) for kind in rounds[0].cpu_us},
            "bytes": round(statistics.median(one.bytes for one in rounds)),
        }
        if is_single:
            row[name] |= {
                f"p{share:.0%}"[:-1] + "_ms": round(statistics.median(one.latency_ms(share) for one in rounds), 2)
                for share in (0.5, 0.99)
            }
            ratios = [one.latency_ms(0.5) / of_base.latency_ms(0.5) for one, of_base in zip(rounds, base, strict=True)]
        else:
            ratios = [one.done.per_s / of_base.done.per_s for one, of_base in zip(rounds, base, strict=True)]
        row[name]["ratio"] = round(statistics.median(ratios), 2)
    if title == CONSUME and "raft" in by:
        row |= {"asked": f"ratio {RATIO_ASKED:g}", "is_reached": row["redis"]["ratio"] >= RATIO_ASKED}
    if title == PUBLISH_ONE and "raft" in by:
        row |= {"asked": f"p50 < {P50_MS_ASKED:g} ms", "is_reached": row["redis"]["p50_ms"] < P50_MS_ASKED}
    return row


def print_rows(rows: list[dict[str, Any]], names: list[str], options: argparse.Namespace) -> None:
    base, *others = names
    titles = [f"{name:>15}" for name in names] + [f"{f'{name}/{base}':>16}" for name in others]
    print(f"\n{f'medians of {options.rounds} rounds':40}", *titles, f"{'asked':>13}")
    for row in rows:
        if "p50_ms" in row[base]:
            cells = [f"{row[name]['p50_ms']:.2f} / {row[name]['p99_ms']:.2f}" for name in names]
            title = f"{row['step']}: p50 / p99, ms"
        else:
            cells = [f"{row[name]['per_s']:,}" for name in names]
            title = f"{row['step']}, per s"
        verdict = "" if row.get("is_reached", True) else "  short"
        ratios = [f"{row[name]['ratio']:16.2f}" for name in others]
        print(f"{title:40}", *(f"{cell:>15}" for cell in cells), *ratios, f"{row.get('asked', ''):>13}{verdict}")
    print(f"\n{'processor time per message, µs':38} {'nodes':>8} {'primaries':>10} {'replicas':>9} {'load':>6}")
    for row in rows:
        for name in names:
            cpu = row[name]["cpu_us"]
            cells = [f"{cpu['nodes']:8.1f}", f"{cpu['primaries']:10.1f}", f"{cpu['replicas']:9.1f}", f"{cpu['load']:6.1f}"]
            print(f"{row['step']:30} {name:7}", *cells)


def on_paper(rows: list[dict[str, Any]], name: str) -> list[tuple[str, int]]:
    """What stops six machines from carrying more messages a second through publish, consume and ack, the first limit first.

    Each machine has a node, a primary, and a replica of another machine's primary, and a core for each of them.
    """
    batches = [row[name] for row in rows if row["step"] in (PUBLISH, CONSUME)]
    limits = {kind: MACHINES * 1e6 / sum(one["cpu_us"][kind] for one in batches) for kind in ("nodes", "primaries", "replicas")}
    # Each byte leaves one machine and reaches another.
    limits["networks of 1 Gbit/s"] = MACHINES * NETWORK_BYTES_PER_S / sum(one["bytes"] for one in batches)
    return sorted(((name, round(limit)) for name, limit in limits.items()), key=lambda one: one[1])


def print_paper(limits: list[tuple[str, int]]) -> None:
    print(
        f"\non paper, {MACHINES} machines, each with a node, a primary and a replica, a core for each; messages a second through"
    )
    print("publish, consume and ack by 100:")
    for place, (name, limit) in enumerate(limits):
        print(f"  {limit:>10,}  the {name} allow no more{' (what they carry)' if not place else ''}")


# ------------------------------------------------------------------- what runs


@contextlib.contextmanager
def started(options: argparse.Namespace) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = stack.enter_context(ValkeyCluster(directory / "valkey", settings={"appendfsync": "everysec"}))
        nodes = LocalCluster(directory / "nodes", free_ports(3), {"DSS_SERVER": options.server, "DSS_ENGINE_URL": servers.url})
        stack.callback(nodes.stop)
        nodes.start()
        nodes.wait_ready()
        # Not forked: the children would have this process's connections.
        pool = stack.enter_context(ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")))
        yield World(nodes, servers, pool, options.processes)


def memory(world: World) -> bool:
    """Print how much the nodes grow by a topic of many messages; whether it is as little as asked."""
    growth = grown(world.nodes.nodes, MEMORY_MESSAGES, MEMORY_BATCH, MEMORY_CONSUMED)
    print_growth(growth)
    return max(one.most_bytes for one in growth) < GROWTH_BYTES_ASKED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acks", default="primary", choices=[*ACKS, "each"], help="of the topics on `redis`")
    parser.add_argument("--memory", action="store_true", help="measure the nodes' memory instead")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--messages", type=positive, default=96_000, help="of a round, published by 100")
    parser.add_argument("--singles", type=positive, default=600, help="of a round, published by one caller")
    parser.add_argument("--callers", type=positive, default=24, help="of the calls with 100 messages")
    parser.add_argument("--processes", type=positive, default=1, help="of the load")
    parser.add_argument("--server", default="uvicorn", choices=["daphne", "uvicorn"])
    options = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.platform()}, {interpreter()}"
    print(f"3 nodes with {options.server}, 3 primaries and 3 replicas, and the load on one machine ({machine})", flush=True)
    try:
        with started(options) as world:
            if options.memory:
                return 0 if memory(world) else 1
            rounds = measure(world, options)
    except (NotReady, NotReached, OSError, psutil.Error) as error:
        print(f"no verdict: {error}", file=sys.stderr)
        return 2
    rows = [row_of(title, by) for title, by in rounds.items()]
    names = [one.name for one in contenders(options.acks)]
    # Of `redis`, or of `primary`.
    limits = on_paper(rows, "redis" if "redis" in names else names[0])
    print_rows(rows, names, options)
    print_paper(limits)
    given = {name: getattr(options, name) for name in ("acks", "rounds", "messages", "singles", "callers", "processes", "server")}
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        **given,
        "rows": rows,
        "on_paper": limits,
    }
    if all(value == parser.get_default(name) for name, value in given.items()):
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        print(f"\nwritten to {RESULTS.relative_to(ROOT)}")
    return 0 if all(row.get("is_reached", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
