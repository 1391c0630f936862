"""`dss lock run`: the command's exit status and signals, and the end of a command whose lock is lost."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dss_client import Client
from dss_dev.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster
DSS = [sys.executable, "-m", "dss_cli.command_line", "--quiet", "lock", "run"]
#: A script with a child of its own, which both say when they get SIGTERM.
FAMILY = """
import os, signal, subprocess, sys, time
def told(number, frame):
    open(sys.argv[1] + "/" + os.environ["ROLE"] + "-was-told", "w").close()
    sys.exit(9)
signal.signal(signal.SIGTERM, told)
if os.environ["ROLE"] == "parent":
    subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, "ROLE": "child"})
# Not closed by the end of its life: an exception of a signal handler would be lost there.
with open(sys.argv[1] + "/" + os.environ["ROLE"], "w") as file:
    file.write(str(os.getpid()))
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def environment(real_node: LocalCluster, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSS_URLS", real_node.nodes[0].url)
    monkeypatch.setenv("DSS_TOKEN", token)
    monkeypatch.setenv("ROLE", "parent")


@pytest.fixture
def client(environment: None) -> Iterator[Client]:
    with Client() as client:
        yield client


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DSS, *arguments], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*DSS, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else True
    return False


def pid_in(file: Path) -> int:
    wait_for(lambda: file.exists() and file.read_text())
    return int(file.read_text())


def take_away(client: Client, key: str) -> None:
    client.call("locks.force_release", key=key, reason="a test")


def test_the_command_has_the_lock_and_its_token(client: Client) -> None:
    names = ("DSS_LOCK_KEY", "DSS_FENCING_TOKEN", "DSS_FENCING_TOKENS")
    program = f"import os; print(*[os.environ[name] for name in {names}], sep='\\n')"
    program += "; from dss_client import Client; print(Client().lock('a').locked())"
    done = run("a", "--also", "c", "--", sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    key, token, tokens, is_locked = done.stdout.splitlines()
    assert (key, is_locked, int(token) > 0) == ("a", "True", True)
    assert json.loads(tokens) == {"a": int(token), "c": int(token)}
    assert not client.lock("a").locked(), "it is released when the command has ended"
    assert not client.lock("c").locked()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command-here"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_status_is_that_of_the_command(command: list[str], status: int, client: Client) -> None:
    assert run("fails", "--", *command).returncode == status
    assert not client.lock("fails").locked()


def test_a_lock_that_is_held_is_not_acquired(client: Client, tmp_path: Path) -> None:
    with client.lock("held") as held:
        for wait in ("0", "0.1"):
            done = run("held", "--wait", wait, "--", "touch", str(tmp_path / "ran"))
            assert done.returncode == 124
            assert done.stderr.endswith(f"held is held by {held.name}; the command was not run\n") or not done.stderr
    assert not (tmp_path / "ran").exists()


def test_without_a_node_the_command_is_not_run(tmp_path: Path) -> None:
    nowhere = ["--url", "http://127.0.0.1:1", "--timeout", "0.2"]
    assert run("key", *nowhere, "--", "touch", str(tmp_path / "ran")).returncode == 125
    assert run("key", "--token", "wrong", "--", "touch", str(tmp_path / "ran")).returncode == 125
    assert not (tmp_path / "ran").exists()


def test_when_the_lock_is_lost_the_command_and_its_children_are_ended(client: Client, tmp_path: Path) -> None:
    with running("lost", "--ttl", "3", "--", sys.executable, "-c", FAMILY, str(tmp_path)) as process:
        pids = [pid_in(tmp_path / role) for role in ("parent", "child")]
        take_away(client, "lost")
        assert process.wait(60) == 123
        assert (tmp_path / "parent-was-told").exists()
        wait_for(lambda: not any(map(is_alive, pids)))


def test_a_command_that_ignores_sigterm_is_killed(client: Client, tmp_path: Path) -> None:
    program = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    with running("stubborn", "--ttl", "3", "--kill-after", "0.1", "--", "sh", "-c", program) as process:
        pid = pid_in(tmp_path / "pid")
        take_away(client, "stubborn")
        assert process.wait(60) == 123
        wait_for(lambda: not is_alive(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(number: signal.Signals, client: Client, tmp_path: Path) -> None:
    program = f"trap 'exit 40' {number.name.removeprefix('SIG')}; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    with running("told", "--", "sh", "-c", program) as process:
        pid_in(tmp_path / "pid")
        process.send_signal(number)
        assert process.wait(60) == 40
    assert not client.lock("told").locked()


def test_ctrl_c_ends_the_command_and_its_children(client: Client, tmp_path: Path) -> None:
    with running("told", "--", sys.executable, "-c", FAMILY, str(tmp_path)) as process:
        pids = [pid_in(tmp_path / role) for role in ("parent", "child")]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
        wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(number: signal.Signals, client: Client, tmp_path: Path) -> None:
    with client.lock("busy"), running("busy", "--", "touch", str(tmp_path / "ran")) as process:
        wait_for(lambda: client.call("locks.status", key="busy")["waiters"])
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        wait_for(lambda: not client.call("locks.status", key="busy")["waiters"])
    assert not (tmp_path / "ran").exists()
    assert not client.lock("busy").locked()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc, to see whether a process is stopped")
def test_ctrl_z_stops_the_command_too(tmp_path: Path) -> None:
    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    program = f"echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    with running("stopped", "--", "sh", "-c", program) as process:
        pid = pid_in(tmp_path / "pid")
        process.send_signal(signal.SIGTSTP)
        wait_for(lambda: state(process.pid) == state(pid) == "T")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: "T" not in (state(process.pid), state(pid)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_in_the_foreground_only_the_command_gets_signals(tmp_path: Path) -> None:
    with running("told", "--foreground", "--", sys.executable, "-c", FAMILY, str(tmp_path)) as process:
        child = [pid_in(tmp_path / role) for role in ("parent", "child")][1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 9
        assert is_alive(child)
        os.kill(child, signal.SIGKILL)


def test_a_command_that_reads_from_the_terminal_is_told_of_and_ended_by_ctrl_c(client: Client) -> None:
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [name for name in (*DSS, "typed", "--", "cat") if name != "--quiet"],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(other_end)
    try:
        shown = b""
        while b"run it with --foreground" not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        assert process.wait(60) == 128 + signal.SIGINT
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert not client.lock("typed").locked()
