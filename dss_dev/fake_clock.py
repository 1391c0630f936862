"""A wall clock for a node of a test, apart from that of the machine."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

# Python runs this before a node's own code. The process that nodes are forked from has no file.
_PROGRAM = """
import os, time
clock, clock_ns = time.time, time.time_ns

def ahead_ms():
    path = os.environ.get("TEST_CLOCK_FILE")
    if path is None:
        return 0
    with open(path) as file:
        return int(file.read())

time.time = lambda: clock() + ahead_ms() / 1000
time.time_ns = lambda: clock_ns() + ahead_ms() * 1_000_000
"""


@cache
def _program_folder() -> Path:
    """One for all clocks: nodes with different ones can be forked from the same process."""
    folder = Path(tempfile.mkdtemp(prefix="dss-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "sitecustomize.py").write_text(_PROGRAM)
    return folder


class FakeClock:
    """A wall clock that a test can set at any time.

    Args:
        directory: of this clock's files; it is made.
        ahead_ms: how far the clock is ahead of the machine's.

    Attributes:
        environment: of a node that has this clock.
    """

    def __init__(self, directory: Path, ahead_ms: int) -> None:
        directory.mkdir(parents=True)
        self._file = directory / "ahead_ms"
        self.environment = {"PYTHONPATH": str(_program_folder()), "TEST_CLOCK_FILE": str(self._file)}
        self.set(ahead_ms)

    def set(self, ahead_ms: int) -> None:
        """Set how far the clock is ahead, in one step: the node may be reading it."""
        written = self._file.with_suffix(".new")
        written.write_text(str(ahead_ms))
        written.rename(self._file)
