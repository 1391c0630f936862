"""Runs a node with little memory, few threads and few descriptors, for tests.

Threads are limited by a pids cgroup, memory by a memory cgroup (version 1 or 2), descriptors by RLIMIT_NOFILE. A cgroup is made only
if this process may make one and is in the root cgroup of that controller: any other cgroup belongs to the program that made it. Where
there is no cgroup, `Watch` samples the node's memory and threads, and kills the node that exceeds a limit, as the kernel would.
`Confinement.notes` says which of both is in force.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20
SAMPLE_S = 0.02
#: controller -> the file of its limit, in version 1 and in version 2
LIMIT_FILES = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}


@dataclass(frozen=True)
class Limits:
    """What a node gets."""

    memory_bytes: int
    #: processes and threads
    pids: int
    open_files: int


class Confinement:
    """A context in which `prefix` starts commands under `limits`.

    Args:
        name: distinguishes the cgroups of tests that run at the same time.
    """

    def __init__(self, limits: Limits, name: str) -> None:
        self.limits = limits
        self.notes = [f"descriptors: {limits.open_files} (RLIMIT_NOFILE)"]
        self._name = f"dss-{name}-{os.getpid()}"
        self._cgroups: dict[str, Path] = {}

    def __enter__(self) -> Confinement:
        for controller, maximum in (("memory", self.limits.memory_bytes), ("pids", self.limits.pids)):
            try:
                self._cgroups[controller] = self._make(controller, maximum)
                self.notes.append(f"{controller}: {maximum} (cgroup)")
            except OSError as error:
                self.notes.append(f"{controller}: {maximum} (SAMPLED, because no cgroup can be made: {error})")
        return self

    def __exit__(self, *_: object) -> None:
        for cgroup in self._cgroups.values():
            with contextlib.suppress(OSError):
                cgroup.rmdir()

    @property
    def prefix(self) -> Sequence[str]:
        """Put it before a command: the command runs under the limits."""
        files = [str(cgroup / "cgroup.procs") for cgroup in self._cgroups.values()]
        return [sys.executable, "-m", "dss_dev.confinement", str(self.limits.open_files), *files, "--"]

    def _make(self, controller: str, maximum: int) -> Path:
        version, parent = _root_cgroup(controller)
        if version == 2 and controller not in (parent / "cgroup.subtree_control").read_text().split():
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")
        cgroup = parent / self._name
        cgroup.mkdir(exist_ok=True)
        try:
            (cgroup / LIMIT_FILES[controller][version - 1]).write_text(str(maximum))
        except OSError:
            cgroup.rmdir()
            raise
        return cgroup


def _root_cgroup(controller: str) -> tuple[int, Path]:
    """The version and the directory of the controller's root cgroup.

    Raises:
        OSError: there is none, or this process is in another one.
    """
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        raise OSError("this system has no cgroups") from None
    for _, controllers, path in lines:
        if controller in controllers.split(","):
            if path != "/":
                raise OSError(f"this process is in the cgroup {path} of another program")
            return 1, CGROUPS / controllers
    for _, controllers, path in lines:
        for root in (CGROUPS, CGROUPS / "unified"):
            available = root / "cgroup.controllers"
            if not controllers and available.exists() and controller in available.read_text().split():
                if path != "/":
                    raise OSError(f"this process is in the cgroup {path} of another program")
                return 2, root
    raise OSError(f"there is no {controller} controller")


class Watch:
    """A context that samples the memory and threads of a node, and kills it if it exceeds its limits.

    Args:
        limits: None: only sample.
    """

    def __init__(self, pid: int, limits: Limits | None = None) -> None:
        self._process = psutil.Process(pid)
        self._limits = limits
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rest_bytes = _memory(self._process, _children(self._process))
        self.peak_bytes = self.rest_bytes
        self.peak_threads = 0
        #: why the node was killed
        self.killed = ""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            try:
                self._sample()
            except (psutil.Error, OSError):
                return

    def _sample(self) -> None:
        children = _children(self._process)
        memory, threads = _memory(self._process, children), self._process.num_threads() + len(children)
        self.peak_bytes = max(self.peak_bytes, memory)
        self.peak_threads = max(self.peak_threads, threads)
        limits = self._limits
        if limits is not None and (memory > limits.memory_bytes or threads > limits.pids):
            self.killed = f"{memory // MIB} MiB of {limits.memory_bytes // MIB}, {threads} threads of {limits.pids}"
            self._process.kill()


def _children(process: psutil.Process) -> list[int]:
    """Process ids. psutil would read the status of every process of the machine for them."""
    lists = list(Path(f"/proc/{process.pid}/task").glob("*/children"))
    if not lists:
        return [child.pid for child in process.children()]
    children: list[int] = []
    for each in lists:
        with contextlib.suppress(OSError):
            children += map(int, each.read_text().split())
    return children


def _memory(process: psutil.Process, children: Sequence[int]) -> int:
    """Bytes of a process, and what its children do not share with it."""
    total = int(process.memory_info().rss)
    for child in children:
        with contextlib.suppress(OSError):
            total += _private_bytes(child)
    return total


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _run(arguments: Sequence[str]) -> None:
    """Enter the cgroups, set the limit of descriptors, and become the command."""
    split = list(arguments).index("--")
    (open_files, *files), command = arguments[:split], arguments[split + 1 :]
    for file in files:
        Path(file).write_text(str(os.getpid()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(open_files), int(open_files)))
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    _run(sys.argv[1:])
