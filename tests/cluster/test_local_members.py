"""`make run`, `make join` and `make restart` with the data of earlier runs: who is started, who is missing, who was removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from dss_dev.local_cluster import POLL_S, ROOT, LocalNode, ports_in_use
from dss_dev.prepared_pages import prepare_directory
from dss_dev.rounds import wait_for_a_moment

pytestmark = pytest.mark.cluster

#: a text that has not appeared after this time never appears, even on a busy machine
PATIENCE_S = 120.0
PORTS = (8101, 8102, 8103, 8104, 8105)


def prepare(directory: Path) -> None:
    """The nodes' databases: making them takes longer than a start. `test_readme.py` and `test_startup.py` begin without them."""
    if not (directory / "cluster-of-3").exists():
        for place in ("cluster-of-3/node-1", "cluster-of-3/node-2", "cluster-of-3/node-3", "joined/node-4", "joined/node-5"):
            prepare_directory(directory / place)


class Terminal:
    """A command that runs in a terminal of its own, and what it has printed."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        prepare(directory)
        self.log = directory / f"terminal-{time.monotonic_ns()}.log"
        with self.log.open("w") as output:
            environment = {name: value for name, value in os.environ.items() if name not in ("PEERS", "DSS_URL")}
            assert LocalNode.pool is not None
            self.process = LocalNode.pool.start(
                ["manage.py", *arguments, "--directory", str(directory)], ROOT, environment, output.fileno()
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, text: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.said and self.process.poll() is None:
            assert time.monotonic() < deadline, self.said
            time.sleep(POLL_S)
        assert text in self.said, self.said
        return self.said

    def stop(self) -> int:
        wait_for_a_moment()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)


@contextmanager
def terminals(directory: Path, *commands: tuple[str, ...]) -> Iterator[list[Terminal]]:
    """Run commands until each has said that it can be stopped with Ctrl-C; stop them in the opposite order."""
    with ExitStack() as stack:
        started = []
        for command in commands:
            started.append(Terminal(directory, *command))
            stack.callback(started[-1].stop)
            started[-1].until("Ctrl-C")
        yield started


@pytest.fixture(autouse=True)
def _free_ports() -> None:
    if taken := ports_in_use(PORTS):
        pytest.skip(f"ports {taken} of this machine are taken")


def call(number: int, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{8100 + number}{path}", data, {"Content-Type": "application/json"}, method=method)
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def until_ready(*numbers: int) -> None:
    for number in numbers:
        with suppress(OSError):
            while call(number, "GET", "/ready")[0] != 200:
                time.sleep(POLL_S)


def process_of(number: int, run: Terminal) -> int:
    return int(re.findall(rf"^node-{number} +(\d+) ", run.said, flags=re.MULTILINE)[0])


def until_voters(*numbers: int) -> None:
    wanted = [(f"node-{number}", False) for number in numbers]
    deadline = time.monotonic() + PATIENCE_S
    while (found := members(numbers[0])) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(POLL_S)


def members(asked: int) -> list[tuple[str, bool]]:
    """Each member, and whether it is a learner."""
    return [(member["id"], member["learner"]) for member in call(asked, "GET", "/raft/status")[1]["members"]]


def remove(number: int, through: int) -> tuple[int, dict]:
    return call(through, "DELETE", f"/raft/members/node-{number}")


@pytest.mark.rounds
def test_members_that_joined_are_started_again_and_others_may_leave(tmp_path: Path) -> None:
    """Line 7: the processes know the first three from `PEERS`, and the others from their logs only."""
    with terminals(tmp_path, ("cluster",), ("join", "--number", "4"), ("join", "--number", "5")):
        until_voters(1, 2, 3, 4, 5)
        assert call(4, "POST", "/cache/put", {"key": "k", "value": 1})[0] == 200
    with terminals(tmp_path, ("cluster",)) as (run,):
        assert re.findall(r"^(node-\d) +\d+ +(?:leader|follower) ", run.said, flags=re.MULTILINE) == [
            f"node-{number}" for number in (1, 2, 3, 4, 5)
        ]
        again = Terminal(tmp_path, "join", "--number", "4")
        assert again.process.wait(PATIENCE_S) == 0
        assert "node-4 is a member and runs already" in again.said
        assert call(5, "GET", "/cache/get?key=k")[1]["value"] == 1
        for number in (1, 2):
            while (answer := remove(number, through=5))[1].get("code") == "no_leader":
                time.sleep(POLL_S)  # node-1 was the leader
            assert answer[0] == 200, answer
        until_voters(3, 4, 5)
        run.until("node-1 │ has ended")
        run.until("node-2 │ has ended")
    assert "was removed" not in re.sub(r"node-[12] .*", "", run.said)
    with terminals(tmp_path, ("cluster",)) as (run,):
        for number in (1, 2):
            run.until(f"node-{number} was removed from the cluster. It was not started")
        assert call(3, "GET", "/cache/get?key=k")[1]["value"] == 1
        assert call(3, "POST", "/cache/put", {"key": "k", "value": 2})[0] == 200


@pytest.mark.rounds
def test_the_last_spare_member_cannot_be_removed_and_a_stopped_one_is_restarted(tmp_path: Path) -> None:
    """Line 5: with one of three down, a live one must stay. Then the stopped one is started again."""
    with terminals(tmp_path, ("cluster",)) as (run,):
        (leader,) = map(int, re.findall(r"^node-(\d) +\d+ +leader ", run.said, flags=re.MULTILINE))
        stopped, live = (number for number in (1, 2, 3) if number != leader)
        wait_for_a_moment()
        os.kill(process_of(stopped, run), signal.SIGKILL)
        status, problem = remove(live, through=leader)
        assert (status, problem["code"]) == (409, "quorum_at_risk")
        rule = "2 of the 2 voters of the new configuration must be reachable"
        assert problem["detail"] == f"{rule}, but only 1 is: node-{leader}"
        assert (problem["reachable"], problem["needed"], problem["may_force"]) == ([f"node-{leader}"], 2, False)
        assert call(leader, "DELETE", f"/raft/members/node-{live}?force=true&reason=a+test")[0] == 409
        assert call(leader, "DELETE", f"/raft/members/node-{live}?force=true")[0] == 400
        assert call(live, "POST", "/cache/put", {"key": "k", "value": 1})[0] == 200
        run.until(f"node-{stopped} │ has ended")
        restarted = Terminal(tmp_path, "restart", str(stopped))
        assert restarted.process.wait(PATIENCE_S) == 0, restarted.said
        assert f"node-{stopped} is ready" in restarted.said
        assert call(stopped, "GET", "/cache/get?key=k")[1]["value"] == 1
        twice = Terminal(tmp_path, "restart", f"node-{stopped}")
        assert twice.process.wait(PATIENCE_S) == 1
        assert f"node-{stopped} is running" in twice.said


@pytest.mark.rounds
def test_a_removed_member_and_a_missing_one_are_named(tmp_path: Path) -> None:
    """Line 6: the others are started, and the removed one ends when it is started by hand."""
    with terminals(tmp_path, ("cluster",)):
        assert remove(3, through=1)[0] == 200
        until_voters(1, 2)
    with terminals(tmp_path, ("cluster",)) as (run,):
        run.until("node-3 was removed from the cluster. It was not started; its data are in")
        assert call(1, "POST", "/cache/put", {"key": "k", "value": 1})[0] == 200
        by_hand = os.environ | {
            "NODE_ID": "node-3",
            "RPC_HOST": "127.0.0.1",
            "RPC_PORT": "8103",
            "PEERS": "http://127.0.0.1:8101/node-1,http://127.0.0.1:8102/node-2",
            "DSS_DATA_DIR": str(tmp_path / "cluster-of-3" / "node-3"),
            "DSS_CLUSTER_SECRET": (tmp_path / "cluster-secret").read_text(),
        }
        command = [sys.executable, "manage.py", "node"]
        done = subprocess.run(command, cwd=ROOT, env=by_hand, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 1
        assert "node-3 was removed from the cluster" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    shutil.rmtree(tmp_path / "cluster-of-3" / "node-2")
    with terminals(tmp_path, ("cluster",)) as (run,):
        said = run.until("node-2 (http://127.0.0.1:8102) is a member, but has no data here. It was not started.")
        assert "A majority of the voters is missing" in said


def test_the_commands_of_the_page_about_removal(tmp_path: Path) -> None:
    """Four members, of which node-3 is stopped: the page's blocks in the order remove, force, restart, remove."""
    page = (ROOT / "docs" / "how-to" / "remove-a-member.md").read_text()
    remove_4, restart, force = re.findall(r"^```sh\n(.*?)\n```$", page, flags=re.MULTILINE | re.DOTALL)
    assert "manage.py restart $(NODE)" in (ROOT / "Makefile").read_text()
    restart = re.sub(r"^make restart NODE=(\d)$", r".venv/bin/python manage.py restart \1", restart)
    (tmp_path / "manage.py").symlink_to(ROOT / "manage.py")
    (tmp_path / ".venv").symlink_to(sys.prefix)

    def paste(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    with terminals(tmp_path / ".dss", ("cluster",), ("join", "--number", "4")) as (run, joined):
        until_voters(1, 2, 3, 4)
        assert paste(".venv/bin/python manage.py member transfer node-1").returncode == 0
        os.kill(process_of(3, run), signal.SIGKILL)
        run.until("node-3 │ has ended")
        unforced = paste(force.partition(" --force")[0])
        assert unforced.returncode == 1
        assert "Bring node-3 back or remove it first" in unforced.stderr
        assert "(quorum_at_risk)" in unforced.stderr
        forced = paste(force)
        assert forced.returncode == 0, forced.stderr
        assert [line.split()[0] for line in forced.stdout.splitlines()] == ["node-1", "node-3", "node-4"]
        run.until("its machine is switched off tonight")
        run.until("node-2 was removed from the cluster")
        refused = paste(remove_4)
        assert "2 of the 2 voters of the new configuration must be reachable, but only 1 is: node-1" in refused.stderr
        restarted = paste(restart)
        assert restarted.returncode == 0, restarted.stderr
        assert paste(remove_4).returncode == 0
        joined.until("node-4 was removed from the cluster")
