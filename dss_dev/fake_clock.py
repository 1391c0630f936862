"""A wall clock for a node of a test, apart from that of the machine."""

from __future__ import annotations

from pathlib import Path

# Python runs this before a node's own code.
_PROGRAM = """
import os, pathlib, time
file, clock, clock_ns = pathlib.Path(os.environ["TEST_CLOCK_FILE"]), time.time, time.time_ns
time.time = lambda: clock() + int(file.read_text()) / 1000
time.time_ns = lambda: clock_ns() + int(file.read_text()) * 1_000_000
"""


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
        (directory / "sitecustomize.py").write_text(_PROGRAM)
        self._file = directory / "ahead_ms"
        self.environment = {"PYTHONPATH": str(directory), "TEST_CLOCK_FILE": str(self._file)}
        self.set(ahead_ms)

    def set(self, ahead_ms: int) -> None:
        """Set how far the clock is ahead, in one step: the node may be reading it."""
        written = self._file.with_suffix(".new")
        written.write_text(str(ahead_ms))
        written.rename(self._file)
