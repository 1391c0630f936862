"""Servers of other projects, as processes of a benchmark."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

START_TIMEOUT_S = 60.0


class NotInstalled(Exception):
    """The text says which program is missing, and where it comes from."""


def find(program: str, package: str) -> str:
    """The path of an installed program.

    Raises:
        NotInstalled: it is not.
    """
    found = shutil.which(program)
    if found is None:
        raise NotInstalled(f"{program} is not installed (Debian: apt install {package})")
    return found


class Processes:
    """A context: the processes end with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: Sequence[str]) -> None:
        with (self.directory / f"{name}.log").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._processes.append((name, process))

    def wait_for(self, ports: Sequence[int]) -> None:
        """Wait until each port accepts connections.

        Raises:
            RuntimeError: a process has ended, or it took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        for port in ports:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                for name, process in self._processes:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log = (self.directory / f"{name}.log").read_text(errors="replace")
                        raise RuntimeError(f"{name} did not start:\n{log[-1000:]}")
                time.sleep(0.05)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        for _, process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
