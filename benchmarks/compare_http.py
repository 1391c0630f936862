"""Does this checkout use more CPU time per call than another one?

    python benchmarks/compare_http.py OTHER_CHECKOUT
    python benchmarks/compare_http.py OTHER_CHECKOUT --servers uvicorn --scenarios put get --seconds 6
    python benchmarks/compare_http.py OTHER_CHECKOUT --together      # on a busy machine
    python benchmarks/compare_http.py . --tls                        # what TLS costs
    python benchmarks/compare_http.py OTHER_CHECKOUT --scenarios ws-lock ws-publish ws-get     # calls on one WebSocket

The speed of a machine changes from hour to hour by more than most changes of the program, so the checkouts run side by side. Each
alternation starts three nodes of each checkout, and sends the load to one cluster and then to the other, a second each. Odd alternations
begin with this checkout, even ones with the other. An alternation gives one ratio for each row. New processes for each alternation make
the interval include the differences between two starts of the same code.

On a busy machine, CPU time per call changes within seconds: calls that arrive together share work. `--together` loads both clusters at
the same moment, so that they meet the same machine. Calls per second are then those of two clusters that share the machine.

`--connections` is the number of calls in progress: a connection for each, or one WebSocket for all in the scenarios `ws-…`.

CPU time is the user and system time of the three nodes that get the load. The other cluster and the load itself do not count.

Each checkout runs its own code with its own `.venv` (`make .venv/.ready` there), or with the Python that you give.

Exit code: 0 if no row's interval lies wholly above the limit, or without a verdict; 1 if one does; 2 if the measurement failed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench_http
import psutil
import uvloop
import websocket_load

from dss_dev.checkouts import ROOT, Checkout, checkout_at
from dss_dev.local_cluster import LocalCluster, NotReady, free_ports
from dss_dev.local_tls import make_files

NODES = 3
#: load on one cluster before it goes to the other, s
SLICE_S = 1.0
#: the same with `--tls`: every slice opens its connections again, and a handshake costs as much as ten calls
TLS_SLICE_S = 5.0
#: load that does not count, for each row and cluster, s
WARM_UP_S = 1.0
#: a row whose interval lies wholly above this ratio is slower
LIMIT = 1.05
CONFIDENCE = 0.95
#: with fewer, the interval says too little for a verdict
ALTERNATIONS_FOR_VERDICT = 5
#: share of calls that may fail
FAILED_SHARE = 0.01

#: sends the load of a scenario: called with port, calls in progress, seconds, and TLS
Send = Callable[[int, int, float, ssl.SSLContext | None], Coroutine[Any, Any, tuple[bench_http.Load, float]]]


def over_http(calls: bench_http.Calls) -> Send:
    return lambda port, connections, seconds, tls: bench_http.run(port, calls, connections, seconds, tls)


def on_one_websocket(calls: websocket_load.Calls) -> Send:
    return lambda port, in_progress, seconds, tls: websocket_load.run(port, calls, in_progress, seconds, tls)


LOADS: dict[str, Send] = {name: over_http(scenario.calls) for name, scenario in bench_http.SCENARIOS.items()} | {
    name: on_one_websocket(calls) for name, calls in websocket_load.SCENARIOS.items()
}


@dataclass
class Tally:
    """What the load on one cluster has measured."""

    #: answers with status 200
    calls: int = 0
    #: other answers, and lost connections
    errors: int = 0
    #: duration of the load, s
    seconds: float = 0.0
    #: user and system time of the nodes during the load, s
    cpu_s: float = 0.0

    @property
    def per_s(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time per call, µs."""
        return self.cpu_s / self.calls * 1e6


@dataclass(frozen=True)
class Pair:
    """One row of one alternation."""

    this: Tally
    other: Tally

    @property
    def ratio(self) -> float:
        """CPU time per call, this / other."""
        return self.this.cpu_us / self.other.cpu_us


@dataclass
class Row:
    """One line of the table: a scenario on a server, in all alternations."""

    scenario: str
    server: str
    pairs: list[Pair] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.scenario} ({self.server})"

    @property
    def errors(self) -> int:
        return sum(pair.this.errors + pair.other.errors for pair in self.pairs)

    @property
    def calls(self) -> int:
        return sum(pair.this.calls + pair.other.calls for pair in self.pairs)

    def estimate(self) -> Estimate:
        return estimate([pair.ratio for pair in self.pairs])


@dataclass(frozen=True)
class Estimate:
    """A ratio, and the interval that holds the true one with probability `CONFIDENCE`."""

    ratio: float
    low: float
    high: float


def t_quantile(freedom: int) -> float:
    """The t for which Student's distribution lies between -t and t with probability `CONFIDENCE`.

    Args:
        freedom: degrees of freedom, 1 or more.

    For t = √freedom · tan θ, the density of θ is proportional to cos θ to the power of `freedom` - 1. The function adds up that density
    from 0 until it has the share `CONFIDENCE` of the sum up to π/2.
    """
    steps = 50_000
    step = math.pi / 2 / steps
    density = [math.cos((number + 0.5) * step) ** (freedom - 1) for number in range(steps)]
    missing = CONFIDENCE * sum(density)
    number = 0
    while missing > density[number]:
        missing -= density[number]
        number += 1
    return math.sqrt(freedom) * math.tan((number + missing / density[number]) * step)


def estimate(ratios: Sequence[float]) -> Estimate:
    """Geometric mean of the ratios, and its interval from Student's t on their logarithms; of one ratio, the interval has no bounds."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return Estimate(math.exp(mean), 0.0, math.inf)
    half = t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


@contextmanager
def started(checkout: Checkout, server: str, ports: Sequence[int], tls: bool = False) -> Iterator[LocalCluster]:
    """A node of the checkout for each port, with new data; they may not be ready yet."""
    with tempfile.TemporaryDirectory() as name:
        settings = {"DSS_SERVER": server, "DSS_CLUSTER_SECRET": "compare"}
        if tls:
            settings |= make_files(Path(name) / "tls")
        cluster = LocalCluster(Path(name), ports, settings, checkout=checkout)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def node_processes(cluster: LocalCluster) -> list[psutil.Process]:
    """The processes of the nodes, and those that they have started."""
    nodes = [psutil.Process(node.process.pid) for node in cluster.nodes if node.process]
    return [process for node in nodes for process in (node, *node.children(recursive=True))]


def cpu_time_s(processes: Sequence[psutil.Process]) -> float:
    """User and system time that the processes have used since they started, s."""
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


class Target:
    """A follower that gets the load of one row, and the processes that count."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.node = cluster.followers()[0]
        self.processes = node_processes(cluster)
        self.tally = Tally()


def load(targets: Sequence[Target], scenario: str, connections: int, seconds: float) -> None:
    """Send load to all of the targets at once, and add what it measures to their tallies.

    Args:
        connections: calls in progress at each target.
        seconds: duration of the load.
    """
    send_one = LOADS[scenario]

    async def send() -> list[tuple[bench_http.Load, float]]:
        return await asyncio.gather(*(send_one(target.node.port, connections, seconds, target.node.tls) for target in targets))

    before_s = [cpu_time_s(target.processes) for target in targets]
    results = uvloop.run(send())
    for target, cpu_s, (result, elapsed_s) in zip(targets, before_s, results, strict=True):
        target.tally.cpu_s += cpu_time_s(target.processes) - cpu_s
        target.tally.seconds += elapsed_s
        target.tally.errors += result.errors
        target.tally.calls += max(len(result.latencies) - result.errors, 0)


def warm_up(target: Target, scenario: str, options: argparse.Namespace) -> None:
    """Write what the row will read, and send load that does not count."""
    bench_http.prepare(target.node, scenario.removeprefix("ws-"), options.connections, WARM_UP_S + options.seconds)
    load([target], scenario, options.connections, WARM_UP_S)
    target.tally = Tally()


def measure_pair(clusters: Sequence[LocalCluster], scenario: str, first: int, options: argparse.Namespace) -> Pair:
    """Send the load to both clusters in turn, a slice each: A B, B A, A B …; or to both at once.

    Args:
        clusters: of this checkout and of the other.
        first: which of the two begins, 0 or 1.
    """
    targets = [Target(cluster) for cluster in clusters]
    for target in targets:
        warm_up(target, scenario, options)
    slices = max(1, round(options.seconds / (TLS_SLICE_S if options.tls else SLICE_S)))
    for number in range(slices):
        order = targets if (number + first) % 2 == 0 else targets[::-1]
        for turn in [order] if options.together else [[target] for target in order]:
            load(turn, scenario, options.connections, options.seconds / slices)
    this, other = (target.tally for target in targets)
    if not this.calls or not other.calls:
        raise NotReady(f"no call of {scenario} succeeded")
    return Pair(this, other)


def measure_server(server: str, checkouts: Sequence[Checkout], options: argparse.Namespace) -> list[Row]:
    """All rows of a server; each alternation starts new clusters."""
    rows = [Row(scenario, server) for scenario in options.scenarios]
    for number in range(options.alternations):
        progress(f"{server}: alternation {number + 1} of {options.alternations}")
        ports = free_ports(2 * NODES)
        this_one, other_one = (
            started(checkouts[0], server, ports[:NODES], options.tls),
            started(checkouts[1], server, ports[NODES:]),
        )
        with this_one as this, other_one as other:
            for cluster in (this, other):
                cluster.wait_ready()
            for row in rows:
                row.pairs.append(measure_pair([this, other], row.scenario, number % 2, options))
    progress("")
    return rows


def progress(text: str) -> None:
    """Replace the last progress text, if standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def print_head() -> None:
    print(f"{'':21} {'CPU µs per call':^15}   {'this / other':^23}   {'calls per s':^15}")
    print(
        f"{'row':12} {'server':8} {'this':>7} {'other':>7}   {'ratio':>6} {'95 % interval':>16}   {'this':>7} {'other':>7} {'errors':>7}"
    )


def print_row(row: Row) -> None:
    """Medians of the alternations for each checkout; the geometric mean of their ratios, with its interval."""
    found = row.estimate()
    this, other = [pair.this for pair in row.pairs], [pair.other for pair in row.pairs]
    cpu = " ".join(f"{statistics.median(tally.cpu_us for tally in each):>7,.0f}" for each in (this, other))
    speed = " ".join(f"{statistics.median(tally.per_s for tally in each):>7,.0f}" for each in (this, other))
    interval = f"{found.low:.3f} .. {found.high:.3f}"
    print(f"{row.scenario:12} {row.server:8} {cpu}   {found.ratio:>6.3f} {interval:>16}   {speed} {row.errors:>7}", flush=True)


def verdict(rows: Sequence[Row], alternations: int) -> tuple[str, int]:
    """The last line of the output, and the exit code."""
    failed = [row.name for row in rows if row.errors > FAILED_SHARE * row.calls]
    if failed:
        return f"no verdict: more than {FAILED_SHARE:.0%} of the calls failed in {', '.join(failed)}", 2
    if alternations < ALTERNATIONS_FOR_VERDICT:
        return f"no verdict: it needs {ALTERNATIONS_FOR_VERDICT} alternations or more, not {alternations}", 0
    slower = [row.name for row in rows if row.estimate().low > LIMIT]
    if slower:
        return f"slower: the interval lies wholly above {LIMIT} in {', '.join(slower)}", 1
    return f"not slower: no row's interval lies wholly above {LIMIT}", 0


def compare(checkouts: Sequence[Checkout], options: argparse.Namespace) -> int:
    """Print the table and the verdict; the exit code."""
    began = time.monotonic()
    print_head()
    rows: list[Row] = []
    for server in options.servers:
        found = measure_server(server, checkouts, options)
        for row in found:
            print_row(row)
        rows += found
    text, code = ("this: with TLS; other: without", 0) if options.tls else verdict(rows, options.alternations)
    print(
        f"\n{options.alternations} alternations of {options.seconds:g} s a row and checkout, {time.monotonic() - began:.0f} s in all"
    )
    print(text)
    return code


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--servers", nargs="+", default=["daphne", "uvicorn"], choices=["daphne", "uvicorn"])
    parser.add_argument("--scenarios", nargs="+", default=["lock", "publish", "put", "get"], choices=list(LOADS))
    parser.add_argument("--alternations", type=positive, default=5, help="ratios for each row; a verdict needs 5 or more")
    parser.add_argument("--seconds", type=float, default=4.0, help="load for each row, checkout and alternation")
    parser.add_argument("--together", action="store_true", help="load both clusters at the same moment")
    parser.add_argument("--tls", action="store_true", help="this checkout's nodes speak HTTPS; gives no verdict")
    parser.add_argument("--connections", type=positive, default=64)
    parser.add_argument("--python", type=Path, help="runs this checkout's nodes, instead of its .venv")
    parser.add_argument("--other-python", type=Path, help="runs the other checkout's nodes, instead of its .venv")
    options = parser.parse_args()
    checkouts = [checkout_at(ROOT, options.python), checkout_at(options.other, options.other_python)]
    for checkout in checkouts:
        for needed in (checkout.path / "manage.py", checkout.python):
            if not needed.is_file():
                parser.error(f"there is no {needed}")
    try:
        return compare(checkouts, options)
    except (NotReady, OSError, psutil.Error) as error:
        print(f"no verdict: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
