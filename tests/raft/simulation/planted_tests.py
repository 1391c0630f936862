"""Run tests with a planted bug, each in a process that is forked from one with the libraries loaded, but nothing of this project.

Loading pytest and the libraries takes most of the time of a test that runs alone. Planted bugs are patches at import, so what is forked
must not have the project's modules.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from _pytest.config import default_plugins

#: what most tests of nodes load, besides pytest with its own plugins
LIBRARIES = (
    "cryptography.x509",
    "httpx",
    "hypothesis",
    "msgspec",
    "prometheus_client",
    "psutil",
    "pytest_asyncio.plugin",
    "structlog.twisted",
    "uvloop",
    "websockets.asyncio.client",
    "xdist.scheduler",
)
PROJECT = "dss_"


class PlantedTests:
    """The process that is forked. It starts when it is first needed, and ends with this one.

    Args:
        root: the working directory of the tests.
        environment: what their environment has besides that of this process.
    """

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self._root = root
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, options: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> int:
        """Run pytest. Returns its exit code.

        Args:
            options: of pytest, and the tests.
            environment: what the environment of this run has in addition.

        Raises:
            subprocess.TimeoutExpired: it was killed after `timeout_s`.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([list(options), dict(environment)]).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], timeout_s)[0]:
            self.close()
            raise subprocess.TimeoutExpired(list(options), timeout_s)
        return int(process.stdout.readline())

    def close(self) -> None:
        """End the process, with what it runs."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=self._root,
            env=os.environ | self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.close)
        return self._process


def _serve() -> list[str]:
    """Fork for each request, and report the exit code. Returns in a child, with the options of pytest."""
    for module in (*(f"_pytest.{name}" for name in default_plugins), *LIBRARIES):
        import_module(module)
    assert not [name for name in sys.modules if name.startswith(PROJECT)]
    gc.collect()
    gc.freeze()
    for request in sys.stdin.buffer:
        options, environment = json.loads(request)
        child = os.fork()
        if child == 0:
            _leave_pipes()
            os.environ.update(environment)
            return options
        _, status = os.waitpid(child, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _leave_pipes() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    os.close(nothing)


if __name__ == "__main__":
    arguments = _serve()
    sys.path.insert(0, os.getcwd())
    import pytest

    sys.exit(pytest.main(arguments))
