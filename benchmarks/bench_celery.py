"""Celery on `dss://` and on `sqs://` (three nodes), and on one Redis that writes each command to the disk: tasks a second.

    python benchmarks/bench_celery.py                     # the table, also as results/bench_celery.json
    python benchmarks/bench_celery.py --tasks 200 --rounds 3

It installs nothing: a broker whose server or package is missing is left out, with a message. `sqs://` is kombu's own transport for Amazon
SQS, at the SQS endpoint of the same nodes.

Each broker has a worker of its own, with Celery's default pool (prefork, four processes) and prefetch; it idles while another broker is
measured. Tasks do nothing but to send a datagram to this program. There is no result backend, and no remote control, events or gossip.
Eight threads of one process publish, each one task after the other. In each round, each broker does four things, and the next round begins
with another one:

- publish by 1: the worker is stopped (SIGSTOP), and one thread publishes tasks.
- publish by 8: eight threads publish as many.
- work: the worker goes on, from then until the last task has been executed.
- both: tasks are published while the worker works, from the first publish until the last task has been executed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_http import commit, interpreter

from dss_dev.local_cluster import ROOT, LocalCluster, free_ports

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "bench_celery.json"
CONCURRENCY = 4
PUBLISHERS = 8
PATIENCE_S = 120.0
STEPS = ("publish_by_1", "publish_by_8", "work", "both")
#: `both` on dss://, compared with another broker, is at least this many times as fast
ASKED = {"sqs": 2.0, "redis": 0.6}
#: kombu's defaults are for Amazon: a worker whose window of prefetched tasks is full waits for a second before it looks again.
SQS_OPTIONS = {"is_secure": False, "region": "us-east-1", "polling_interval": 0.01}
MISSING = {
    "sqs": ("pycurl", "pip install 'kombu[sqs]'"),
    "redis": ("redis", "pip install 'celery[redis]'"),
}


class Broker:
    """A broker with its worker. Its producer is a process, too: Celery keeps one app in a process.

    Args:
        directory: its socket, and the log of its worker.
    """

    def __init__(self, name: str, url: str, options: dict[str, Any], directory: Path) -> None:
        self.name = name
        path = directory / f"{name}.socket"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._socket.settimeout(PATIENCE_S)
        self._socket.bind(str(path))
        #: the numbers of all tasks that were executed
        self._seen: set[bytes] = set()
        self._environment = {
            **os.environ,
            "BENCH_BROKER": url,
            "BENCH_OPTIONS": json.dumps(options),
            "BENCH_SOCKET": str(path),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT / "client")]),
        }
        self._log = directory / f"{name}.log"
        self._producer = self._start(
            [sys.executable, str(Path(__file__)), "--produce"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning"]
        pool = ["--pool=prefork", f"--concurrency={CONCURRENCY}"]
        self._worker = self._start([sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", *pool, *quiet])

    def _start(self, command: list[str], **files: int) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=HERE, env=self._environment, start_new_session=True, stderr=log, **{"stdout": log.fileno(), **files}
            )

    def publish(self, count: int, publishers: int = PUBLISHERS) -> float:
        """Publish tasks, and return how many seconds it took."""
        self._begin(count, publishers)
        return self._end()

    def work(self, count: int, is_published: bool) -> float:
        """Return after how many seconds `count` tasks have been executed; unless they are published, publish them first."""
        began = time.perf_counter()
        if not is_published:
            self._begin(count)
        self._wait(count)
        took_s = time.perf_counter() - began
        if not is_published:
            self._end()
        return took_s

    def pause(self) -> None:
        os.killpg(self._worker.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._worker.pid, signal.SIGCONT)

    def _begin(self, count: int, publishers: int = PUBLISHERS) -> None:
        assert self._producer.stdin is not None
        self._producer.stdin.write(b"%d %d\n" % (publishers, count))
        self._producer.stdin.flush()

    def _end(self) -> float:
        assert self._producer.stdout is not None
        line = self._producer.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the producer has ended\n{self._log.read_text()[-3000:]}")
        return float(line)

    def _wait(self, count: int) -> None:
        """Until each of the tasks was executed. One that is executed twice counts once."""
        seen = self._seen
        until = len(seen) + count
        try:
            while len(seen) < until:
                seen.add(self._socket.recv(16))
        except TimeoutError:
            missing = until - len(seen)
            raise RuntimeError(f"{self.name}: {missing} of {count} tasks are missing\n{self._log.read_text()[-3000:]}") from None

    def close(self) -> None:
        for process in (self._producer, self._worker):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._socket.close()


def produce() -> None:
    """The producer: reads how many tasks to publish, and writes how many seconds it took."""
    from celery_tasks import note

    numbers = itertools.count()
    with ThreadPoolExecutor(PUBLISHERS) as threads:
        for line in sys.stdin:
            publishers, count = map(int, line.split())
            began = time.perf_counter()
            some = itertools.islice(numbers, count)
            if publishers == 1:
                for number in some:
                    note.delay(number)
            else:
                list(threads.map(note.delay, some))
            print(time.perf_counter() - began, flush=True)


def available(names: list[str]) -> list[str]:
    """Those of the brokers that can be measured here; says what the others need."""
    found = []
    for name in names:
        package, advice = MISSING.get(name, ("celery", "pip install celery"))
        if importlib.util.find_spec("celery") is None or importlib.util.find_spec(package) is None:
            print(f"{name} is left out: {package} is not installed ({advice})")
        elif name == "redis" and shutil.which("redis-server") is None:
            print("redis is left out: redis-server is not installed (Debian: apt install redis-server)")
        else:
            found.append(name)
    return found


@contextlib.contextmanager
def brokers(names: list[str], directory: Path) -> Iterator[list[Broker]]:
    """All of them, with their workers."""
    with contextlib.ExitStack() as stack:
        found: list[Broker] = []
        ports = free_ports(6)
        cluster = LocalCluster(directory, ports[:3])
        for node, port in zip(cluster.nodes, ports[3:], strict=True):
            node.environment["DSS_SQS_PORT"] = str(port)
        cluster.start()
        stack.callback(cluster.stop)
        cluster.wait_ready()
        for name in names:
            options: dict[str, Any] = {}
            if name == "dss":
                url = f"dss://{','.join(f'{node.host}:{node.port}' for node in cluster.followers())}//"
            elif name == "sqs":
                follower = cluster.followers()[0]
                url = f"sqs://any:any@{follower.host}:{follower.environment['DSS_SQS_PORT']}"
                options = SQS_OPTIONS
            else:
                # It needs the package, which may be missing.
                from peers import redis_server

                url = stack.enter_context(redis_server.start(directory))
            broker = Broker(name, url, options, directory)
            stack.callback(broker.close)
            found.append(broker)
        yield found


def measure(found: list[Broker], tasks: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Broker -> step -> tasks a second in each round."""
    rates: dict[str, dict[str, list[float]]] = {broker.name: {step: [] for step in STEPS} for broker in found}
    for broker in found:
        # The worker declares the queue and starts its processes.
        broker.publish(CONCURRENCY)
        broker.work(CONCURRENCY, True)
        broker.publish(tasks // 4)
        broker.work(tasks // 4, True)
    for number in range(rounds):
        first = number % len(found)
        for broker in found[first:] + found[:first]:
            by_step = rates[broker.name]
            broker.pause()
            by_step["publish_by_1"].append(tasks / broker.publish(tasks, 1))
            by_step["publish_by_8"].append(tasks / broker.publish(tasks))
            broker.go_on()
            by_step["work"].append(2 * tasks / broker.work(2 * tasks, True))
            by_step["both"].append(tasks / broker.work(tasks, False))
    return rates


def print_table(rates: dict[str, dict[str, list[float]]], rounds: int) -> list[dict[str, Any]]:
    rows = []
    print(f"{f'medians of {rounds} rounds':24} " + " ".join(f"{step.replace('_', ' '):>12}" for step in STEPS))
    for name, by_step in rates.items():
        row = {"broker": name, **{f"{step}_per_s": round(statistics.median(by_step[step])) for step in STEPS}}
        rows.append(row)
        print(f"{name:24} " + " ".join(f"{row[f'{step}_per_s']:>12,}" for step in STEPS))
    for name, asked in ASKED.items():
        if name not in rates or "dss" not in rates:
            continue
        times = {
            step: round(
                statistics.median(own / other for own, other in zip(rates["dss"][step], rates[name][step], strict=True)), 2
            )
            for step in STEPS
        }
        rows.append({"compared_with": name, **times, "asked": asked, "is_reached": times["both"] >= asked})
        verdict = f"asked: {asked}{'' if times['both'] >= asked else ', short'}"
        print(f"{f'dss, times {name}':24} " + " ".join(f"{times[step]:>12.2f}" for step in STEPS) + f"   {verdict}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", nargs="+", default=["dss", "sqs", "redis"], choices=["dss", "sqs", "redis"])
    parser.add_argument("--tasks", type=int, default=400, help="in each step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--produce", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.produce:
        produce()
        return
    names = available(options.brokers)
    if not names:
        sys.exit("no broker can be measured")
    with tempfile.TemporaryDirectory() as name, brokers(names, Path(name)) as found:
        rates = measure(found, options.tasks, options.rounds)
    machine = f"{os.cpu_count()} cores, {platform.platform()}, {interpreter()}"
    print(f"tasks per second; servers, workers ({CONCURRENCY} processes each) and producers on one machine ({machine})\n")
    result = {
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "packages": {package: version(package) for package in ("celery", "kombu")},
        "tasks": options.tasks,
        "rounds": options.rounds,
        "rows": print_table(rates, options.rounds),
        "rounds_per_s": {name: {step: [round(one) for one in by[step]] for step in STEPS} for name, by in rates.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
