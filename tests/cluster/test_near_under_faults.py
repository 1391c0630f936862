"""Near caches while their processes are paused, cut off and forked, and their nodes killed: no read is stale.

Programs with near caches read and write a few keys, beside one without. All operations of all programs make one history, with the checks
of test_cache_under_faults.py. `make chaos` runs 200,000 operations. In programs whose near cache does not look at its lease, the same
checks must find stale reads.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dss_dev.cache_history import CHECKS, History, Operation, stale
from dss_dev.local_cluster import LocalCluster, LocalNode, NotReady
from dss_dev.relays import Relay

pytestmark = pytest.mark.cluster

OPERATIONS = int(os.environ.get("DSS_CHAOS_OPERATIONS", "9000"))
PROGRAMS = 3
#: bytes of its log that every program writes between two faults
BETWEEN_FAULTS = 20_000
#: several times a client's lease, which is 0.3 s
FAULT_S = 1.0
PATIENCE_S = 60.0
WORKER = Path(__file__).with_name("near_worker.py")


class Program:
    """A process with a near cache, and its ways to the nodes."""

    def __init__(self, directory: Path, name: str, kind: str, nodes: list[LocalNode], stack: ExitStack) -> None:
        self.relays = [stack.enter_context(Relay(node.port)) for node in nodes]
        self.log = directory / name
        urls = ",".join(relay.url for relay in self.relays)
        command = [sys.executable, str(WORKER), urls, str(self.log), name, kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(self.process.kill)

    @property
    def written(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def cut_off(self, *, aborts: bool) -> Iterator[None]:
        for relay in self.relays:
            relay.cut()
        yield
        for relay in self.relays:
            if aborts:
                relay.abort()
            relay.restore()

    def fork(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("fork\n")
        self.process.stdin.flush()

    def finish(self) -> str:
        """Wait until it has ended, after its children."""
        output, _ = self.process.communicate(timeout=2 * PATIENCE_S)
        assert self.process.returncode == 0
        return output


class Run:
    """Programs at work while the block runs."""

    def __init__(self, cluster: LocalCluster, directory: Path, kind: str) -> None:
        self._stack = ExitStack()
        self._directory = directory
        nodes = cluster.nodes
        self.near = [
            Program(directory, f"near-{number}", kind, nodes[number % 3 :] + nodes[: number % 3], self._stack)
            for number in range(PROGRAMS)
        ]
        self.programs = [*self.near, Program(directory, "plain", "plain", nodes, self._stack)]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def let_work(self) -> None:
        """Wait until every program has made more operations."""
        goals = {program: program.written + BETWEEN_FAULTS for program in self.programs}
        deadline = time.monotonic() + PATIENCE_S
        while any(program.written < goal for program, goal in goals.items()):
            if time.monotonic() > deadline:
                raise NotReady(f"too few operations in {PATIENCE_S:.0f} s: {[program.written for program in self.programs]}")
            time.sleep(0.02)

    def play(self, faults: list[Callable[[], None]]) -> None:
        """Cause each fault at least once, one after the other, until there were enough operations."""
        for number, fault in enumerate(itertools.cycle(faults)):
            self.let_work()
            if number >= len(faults) and len(self.history().operations) >= OPERATIONS:
                break
            fault()
        self.let_work()

    def finish(self) -> History:
        for program in self.programs:
            print(program.finish(), end="")
        return self.history()

    def history(self) -> History:
        """Everything until now. A last line may be incomplete."""
        history = History()
        for log in self._directory.iterdir():
            for line in log.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    continue
                kind, *fields = json.loads(line)
                if kind == "wants":
                    history.attempted[fields[0]] = fields[1]
                else:
                    history.operations.append(Operation(*fields))
        return history


def faults(cluster: LocalCluster, run: Run) -> list[Callable[[], None]]:
    turns = itertools.cycle(run.near)

    def pause() -> None:
        with next(turns).paused():
            time.sleep(FAULT_S)

    def cut(aborts: bool) -> None:
        with next(turns).cut_off(aborts=aborts):
            time.sleep(FAULT_S)

    def kill() -> None:
        node = next(victims)()
        node.kill()
        time.sleep(FAULT_S)
        node.start()
        cluster.wait_ready(nodes=[node])

    def pause_node() -> None:
        node = cluster.followers()[0]
        node.pause()
        time.sleep(2 * FAULT_S)
        node.resume()

    victims = itertools.cycle([cluster.leader, lambda: cluster.followers()[0]])
    return [pause, lambda: cut(aborts=False), lambda: next(turns).fork(), kill, lambda: cut(aborts=True), pause_node]


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> LocalCluster:
    """One for both tests: every node that is killed is started again."""
    return shared_cluster


def test_no_read_is_stale(cluster: LocalCluster, tmp_path: Path) -> None:
    with Run(cluster, tmp_path, "near") as run:
        run.play(faults(cluster, run))
        history = run.finish()
    reads = [one for one in history.operations if not one.is_write]
    hits = sum(one.is_hit for one in reads)
    print(f"{len(history.operations)} operations: {len(reads)} reads, {hits} of them hits")
    for check in CHECKS:
        assert not check(history)[:5], check.__doc__
    assert hits > 0.5 * len(reads), "too few hits: the run shows nothing"
    of_children = {one.node for one in reads if "child" in one.node and one.is_hit}
    assert of_children, "no child of a fork used its near cache"


def test_without_the_lease_check_reads_are_stale(cluster: LocalCluster, tmp_path: Path) -> None:
    with Run(cluster, tmp_path, "broken") as run:
        for aborts in (False, True) * 5:
            run.let_work()
            with run.near[0].cut_off(aborts=aborts):
                time.sleep(FAULT_S)
            run.let_work()
            if stale(run.history()):
                return
    pytest.fail("nothing was found")
