"""Commands of `manage.py` that tests run in the background, and whose output they read line by line."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dss_dev.local_cluster import ROOT, LocalNode


class PipedCommand:
    """A running command of `manage.py`, forked by `LocalNode.pool`.

    Attributes:
        process: it has a session of its own.
        output: what it prints.
    """

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        assert LocalNode.pool is not None
        reading, writing = os.pipe()
        try:
            whole = {**os.environ, **(environment or {})}
            self.process = LocalNode.pool.start([str(ROOT / "manage.py"), *arguments], ROOT, whole, writing)
        finally:
            os.close(writing)
        self.output = os.fdopen(reading)

    def until(self, text: str) -> str:
        """What it has printed up to the line with this text, or to its end."""
        said = ""
        while text not in said and (line := self.output.readline()):
            said += line
        return said

    def rest(self, timeout_s: float) -> str:
        """What it has printed since. Waits for its end; `process.returncode` is set then."""
        said = self.output.read()
        self.process.wait(timeout_s)
        return said
