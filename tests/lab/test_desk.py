"""What the lab asks about processes is done by the main thread, by name, and only to processes that were started here."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dss_dev.lab.desk import Desk
from dss_dev.local_cluster import LocalNode


class Sleeper(LocalNode):
    """A process that does nothing, in place of a node."""

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def wait_until(condition: Callable[[], bool]) -> None:
    """A signal takes effect a moment after it was sent."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Sleeper]:
    found = Sleeper("node-1", 1, {}, tmp_path / "log")
    found.start()
    yield found
    found.kill()


def test_actions(node: Sleeper) -> None:
    started: list[str] = []
    desk = Desk([node], lambda each: started.append(each.id))

    def do(action: str) -> str:
        future = desk.ask(action, "node-1")  # type: ignore[arg-type]
        assert not future.done(), "nothing is done in the thread that asks"
        desk.carry_out(0)
        future.result(0)
        return desk.states["node-1"]

    process = psutil.Process(node.pid)
    assert do("pause") == "paused"
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    assert do("resume") == "running"
    wait_until(lambda: process.status() != psutil.STATUS_STOPPED)
    assert do("kill") == "ended"
    assert do("pause") == "ended"
    assert do("start") == "running"
    assert do("start") == "running"
    assert started == ["node-1"]


def test_a_node_that_is_not_here(node: Sleeper) -> None:
    desk = Desk([node])
    for name in ("node-2", "", str(node.pid)):
        future = desk.ask("kill", name)
        desk.carry_out(0)
        with pytest.raises(KeyError):
            future.result(0)
    assert node.is_running


def test_a_node_that_has_ended_by_itself(node: Sleeper) -> None:
    desk = Desk([node])
    node.kill()
    desk.carry_out(0)
    assert desk.states == {"node-1": "ended"}


def test_a_signal_does_not_stop_the_main_thread() -> None:
    """Ctrl-C at the end of a timeout: `make run` has to see it."""
    desk = Desk([])
    late = threading.Timer(20, lambda: desk.ask("kill", "nobody"))
    late.start()
    before = signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.3))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        desk.carry_out(0.2)
        assert late.is_alive(), "only a request has ended the wait"
    finally:
        signal.signal(signal.SIGALRM, before)
        late.cancel()
