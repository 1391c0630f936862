"""SQLite makes the system calls that the crash states are built from. Checked with strace, where it is available."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, pathlib
from dss_raft.disk import store
from dss_raft.core.messages import Configuration, Entry
from dss_raft.core.ready import HardState, Persist
log = store.LogStore(pathlib.Path(sys.argv[1]), "node-1")
log.bootstrap(Configuration(()))
def write(name, index, size=9000):
    os.write(2, b"BEGIN " + name + b"\\n")
    log.write(Persist(1, HardState(1, ""), 0, [Entry(index, 1, 0, b"x" * size)]))
    os.write(2, b"END\\n")
write(b"append", 1)
store.CHECKPOINT_BYTES = 1
write(b"checkpoint", 2)
store.CHECKPOINT_BYTES = 1 << 20
write(b"other_entry", 3, 100)
write(b"small_entry", 4, 100)
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The system calls on the database files during each write: "write wal 0", "sync database", …"""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed, or not permitted")
    directory = tmp_path_factory.mktemp("traced")
    trace = directory / "trace"
    calls = "trace=pwrite64,write,fsync,fdatasync,ftruncate"
    subprocess.run(
        [strace, "-f", "-y", "-s", "64", "-e", calls, "-o", trace, sys.executable, "-c", SCRIPT, directory / "raft"],
        check=True,
        capture_output=True,
    )
    return parse(trace)


def parse(trace: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in trace.read_text().splitlines():
        if begin := re.search(r'"BEGIN (\w+)', line):
            current = found.setdefault(begin[1], [])
        elif '"END' in line:
            current = None
        elif current is not None and (call := re.search(r"(\w+)\(\d+<[^>]*/raft\.(\w+)(-wal)?>", line)):
            kind = "sync" if "sync" in call[1] else call[1].replace("pwrite64", "write")
            file = "wal" if call[3] else {"sqlite3": "database"}.get(call[2], call[2])
            position = re.search(r", (\d+)\) =", line)
            current.append(
                f"{kind} {file}" + (" header" if kind == "write" and file == "wal" and position and position[1] == "0" else "")
            )
    return found


def test_a_commit_writes_to_the_write_ahead_log_and_syncs_it_before_it_returns(steps):
    calls = steps["append"]
    assert calls[-2:] == ["sync wal", "write acknowledged"]
    assert set(calls[:-2]) == {"write wal"}


def test_a_checkpoint_comes_between_syncs_and_a_new_header_is_synced_before_its_frames(steps):
    calls = steps["checkpoint"]
    shortened = [call for number, call in enumerate(calls) if number == 0 or call != calls[number - 1]]
    assert shortened == [
        "sync wal",
        "write database",
        "ftruncate database",
        "sync database",
        "write acknowledged",
        "sync acknowledged",
        "write wal header",
        "sync wal",
        "write wal",
        "sync wal",
        "write acknowledged",
    ]


def test_a_small_entry_rewrites_two_pages(steps):
    """The last page of the log, and the one of the store's state; each page is a frame, and each frame two writes."""
    assert steps["small_entry"] == ["write wal"] * 4 + ["sync wal", "write acknowledged"]
