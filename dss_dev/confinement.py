"""Runs a node with little memory, few threads and few descriptors, for tests.

Threads are limited by a pids cgroup, memory by a memory cgroup (version 1 or 2), descriptors by RLIMIT_NOFILE. A cgroup is made only
if this process may make one and is in the root cgroup of that controller: any other cgroup belongs to the program that made it. Where
there is no cgroup, `Watch` samples the node's memory and threads, and kills the node that exceeds a limit, as the kernel would.
`Confinement.notes` says which of both is in force.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20
SAMPLE_S = 0.02
#: whether this kernel says which children a thread has
_LISTS_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()
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
    """A context in which nodes are started under `limits`.

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
    def arguments(self) -> Sequence[str]:
        """What a process is started with under the limits: how many descriptors it may have, and the cgroups that it enters."""
        return [str(self.limits.open_files), *(str(cgroup / "cgroup.procs") for cgroup in self._cgroups.values())]

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

    Attributes:
        rest_bytes, peak_bytes: the memory of the node's process at the beginning, and the most since then. Its children, which write
            snapshots, count for the limits only.

    Args:
        limits: None: only sample.
    """

    def __init__(self, pid: int, limits: Limits | None = None) -> None:
        self._process = psutil.Process(pid)
        self._limits = limits
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rest_bytes = _resident_bytes(self._process)
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
        threads, children = _threads_and_children(self._process)
        resident = _resident_bytes(self._process)
        memory, threads = resident + sum(map(_private_bytes, children)), threads + len(children)
        self.peak_bytes = max(self.peak_bytes, resident)
        self.peak_threads = max(self.peak_threads, threads)
        limits = self._limits
        if limits is not None and (memory > limits.memory_bytes or threads > limits.pids):
            self.killed = f"{memory // MIB} MiB of {limits.memory_bytes // MIB}, {threads} threads of {limits.pids}"
            self._process.kill()


def _threads_and_children(process: psutil.Process) -> tuple[int, list[int]]:
    """How many threads it has, and the ids of its child processes. psutil would read the status of every process of the machine for them.

    It is called many times a second beside what a test measures, so it does as little as possible.
    """
    if not _LISTS_CHILDREN:
        return process.num_threads(), [child.pid for child in process.children()]
    tasks = f"/proc/{process.pid}/task"
    threads = os.listdir(tasks)
    children: list[int] = []
    for thread in threads:
        # A thread may have ended.
        with contextlib.suppress(OSError), open(f"{tasks}/{thread}/children", "rb", buffering=0) as file:
            children += map(int, file.readall().split())
    return len(threads), children


def _resident_bytes(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _private_bytes(pid: int) -> int:
    """What a process does not share with its parent; 0: it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    return 0
