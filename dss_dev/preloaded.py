"""Start nodes quickly, for tests: each is forked from a process that has the libraries loaded.

Loading them takes most of the start of a node, and deriving keys from the cluster secret most of the rest, so that is done once for each
secret. A node that is started this way is an ordinary process with its own environment, session, output and exit code. It has the hash
seed of the process that it is forked from. The fork server of `multiprocessing` runs functions instead of scripts, with one hash seed for
all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from dss_dev import fork_server
from dss_dev.file_lock import locked

ROOT = Path(__file__).resolve().parents[1]
MIGRATE_S = 120.0
#: how many `Preloaded` take turns
SIZE = 3
#: environment variables with these prefixes have their effect when an interpreter starts
_READ_AT_START = ("PYTHON", "LD_")


class ForkedProcess:
    """A process that `Preloaded` has started. It has the methods of `subprocess.Popen` that tests use."""

    def __init__(self, states: int) -> None:
        self._states = states
        self.returncode: int | None = None
        self.pid = self._read()

    def _read(self) -> int:
        data = os.read(self._states, 12)
        if not data:
            os.close(self._states)
            raise RuntimeError("the process that starts nodes has ended")
        return int(data)

    def poll(self) -> int | None:
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises:
        subprocess.TimeoutExpired: it is still running after `timeout` seconds.
        """
        code = self._ended_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("node", timeout or 0)
        return code

    def _ended_within(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._states], [], [], timeout)[0]:
            self.returncode = self._read()
            os.close(self._states)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """A process with the libraries loaded, which lives as long as this object is not closed. See `new`, `connected` and `forked_here`."""

    def __init__(self, requests: socket.socket, wait: Callable[[], object]) -> None:
        self._requests = requests
        #: waits until the process has ended, if this object closes it
        self._wait = wait

    @classmethod
    def new(
        cls,
        nodes_end_with_it: bool = False,
        hashes_quickly: bool = False,
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
        address: Path | None = None,
    ) -> Preloaded:
        """Start the process.

        Args:
            nodes_end_with_it: On Linux, what it has started is killed when it ends, for example because this process was killed.
            hashes_quickly: New hashes of passwords are computed in no time, and are no protection. Only for tests: each node of a
                cluster checks DSS_ADMIN_PASSWORD at its start, which takes longer than the rest of the start.
            environment: its environment; None: that of this process.
            root: the checkout whose code it loads.
            address: a socket file by which other processes may use it, too: see `connected`.
        """
        options = [fork_server.END] * nodes_end_with_it + [fork_server.HASH_QUICKLY] * hashes_quickly
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as stack:
            passed = [theirs.fileno()]
            if address is not None:
                listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                listener.bind(str(address))
                listener.listen()
                passed.append(listener.fileno())
            process = subprocess.Popen(
                [sys.executable, "-m", "dss_dev.fork_server", ",".join(map(str, passed)), *options],
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
            )
        return cls(ours, process.wait)

    @classmethod
    def connected(cls, address: Path) -> Preloaded:
        """One that another process has started, and closes."""
        requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        requests.connect(str(address))
        return cls(requests, lambda: None)

    @classmethod
    def forked_here(cls) -> Preloaded:
        """Load the libraries in this process, which needs many of them as well, and fork it. What is started ends with the new process.

        Call it before Django is set up, and while there is one thread.
        """
        fork_server.load()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            ours.close()
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)
            fork_server.serve(theirs, children_end_too=True)
            fork_server.run_script()
        theirs.close()
        return cls(ours, lambda: os.waitpid(pid, 0))

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: int,
        errors: int | None = None,
        namespace: str = "",
        confinement: Sequence[str] = (),
    ) -> ForkedProcess:
        """Run a Python script.

        Args:
            arguments: the script and its arguments.
            folder: its working directory.
            output: the file descriptor that gets what it prints.
            errors: the one for its standard error; None: `output`.
            namespace: the name of the network namespace that it runs in, "" for that of this process. Linux only.
            confinement: what it runs under, as `Confinement.arguments`; (): as this process.
        """
        request = json.dumps([list(arguments), str(folder), dict(environment), namespace, list(confinement)]).encode()
        assert len(request) < fork_server.REQUEST_BYTES_MAX
        states, theirs = os.pipe()
        try:
            socket.send_fds(self._requests, [request], [output, output if errors is None else errors, theirs])
        finally:
            os.close(theirs)
        return ForkedProcess(states)

    def close(self) -> None:
        self._requests.close()
        self._wait()


class Pool:
    """Some `Preloaded`, each started when it is first needed. They take turns, so nodes of a cluster differ in their hash seeds.

    What an interpreter reads at its start needs an interpreter of its own: a node with another PYTHONPATH, for example, is forked
    from a `Preloaded` with that PYTHONPATH. So does the code of another checkout.

    Args:
        nodes_end_with_it, hashes_quickly: as for `Preloaded.new`.
        first: the first of them.
        shared: the folder of a `SharedPool`, whose processes and data are used.
    """

    def __init__(
        self,
        size: int = SIZE,
        nodes_end_with_it: bool = False,
        hashes_quickly: bool = False,
        first: Preloaded | None = None,
        shared: Path | None = None,
    ) -> None:
        self._size = size
        self._nodes_end_with_it = nodes_end_with_it
        self._hashes_quickly = hashes_quickly
        self._shared = shared
        self._processes: list[Preloaded] = [first] if first is not None else []
        #: those of other checkouts, and of interpreters with other settings than this one
        self._others: dict[tuple[Path, tuple[tuple[str, str], ...]], Preloaded] = {}
        self._started = 0
        self._new_data: Path | None = None
        self._made_here = ExitStack()

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: int,
        errors: int | None = None,
        namespace: str = "",
        confinement: Sequence[str] = (),
        root: Path = ROOT,
    ) -> ForkedProcess:
        """See `Preloaded.start`.

        Args:
            root: the checkout whose code it runs, for which `can_load` is true.
        """
        return self._next(environment, root).start(arguments, folder, environment, output, errors, namespace, confinement)

    @staticmethod
    def can_load(root: Path, python: Path) -> bool:
        """Whether the nodes of a checkout can be forked: it has the Python of this process, and the process that forks is the same."""
        here, theirs = Path(fork_server.__file__), root / "dss_dev" / "fork_server.py"
        return str(python) == sys.executable and theirs.is_file() and theirs.read_bytes() == here.read_bytes()

    def _next(self, environment: Mapping[str, str], root: Path) -> Preloaded:
        settings = _read_at_start(environment)
        if root != ROOT or settings != _read_at_start(os.environ):
            key = root, settings
            if key not in self._others:
                rest = {name: text for name, text in os.environ.items() if not name.startswith(_READ_AT_START)}
                whole = {**rest, **dict(settings)}
                self._others[key] = Preloaded.new(self._nodes_end_with_it, self._hashes_quickly, whole, root)
            return self._others[key]
        turn = self._started % self._size
        self._started += 1
        if turn == len(self._processes):
            self._processes.append(self._another())
        return self._processes[turn]

    def _another(self) -> Preloaded:
        if self._shared is not None:
            return Preloaded.connected(self._shared / str(len(self._processes)))
        return Preloaded.new(self._nodes_end_with_it, self._hashes_quickly)

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python script to its end, as `subprocess.run` does. It reads nothing.

        Raises:
            subprocess.TimeoutExpired: it was killed after `timeout_s`.
        """
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = self.start(arguments, folder, environment, output.fileno(), errors.fileno())
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(list(arguments), code, output.read(), errors.read())

    def new_data(self) -> Path:
        """A data directory with nothing but a database that has its tables. It is made once."""
        if self._new_data is None:
            folder = self._shared or Path(self._made_here.enter_context(tempfile.TemporaryDirectory()))
            data = folder / "new-data"
            with locked(folder / "lock"):
                if not data.exists():
                    self._make(data)
            self._new_data = data
        return self._new_data

    def _make(self, data: Path) -> None:
        with tempfile.TemporaryDirectory(dir=data.parent) as unfinished:
            made = self.run(
                ["manage.py", "migrate", "--verbosity", "0", "--no-input"],
                ROOT,
                {**os.environ, "DSS_DATA_DIR": unfinished},
                MIGRATE_S,
            )
            assert made.returncode == 0, made.stderr
            for path in Path(unfinished).iterdir():
                path.chmod(0o600)
            shutil.copytree(unfinished, data)

    def close(self) -> None:
        for process in (*self._processes, *self._others.values()):
            process.close()
        self._made_here.close()


class SharedPool:
    """The processes of a `Pool` that several processes use, each with `Pool(shared=folder)`.

    Args:
        hashes_quickly: as for `Preloaded.new`.
    """

    def __init__(self, hashes_quickly: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self._processes = [
            Preloaded.new(hashes_quickly=hashes_quickly, address=self.folder / str(number)) for number in range(SIZE)
        ]

    def close(self) -> None:
        for process in self._processes:
            process.close()
        self._folder.cleanup()


#: set by `fork_here`
_here: Preloaded | None = None


def fork_here() -> None:
    """See `Preloaded.forked_here`. `pool_here` uses the process."""
    global _here
    _here = Preloaded.forked_here()


def pool_here() -> Pool:
    """For a command that starts nodes and ends them, even if it is killed. The nodes share the time and the memory that loading takes."""
    return Pool(1, nodes_end_with_it=True, first=_here)


def _read_at_start(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What an interpreter reads of `environment` when it starts."""
    return tuple(sorted((name, text) for name, text in environment.items() if name.startswith(_READ_AT_START)))
