"""Start nodes quickly, for tests: each is forked from a process that has the libraries loaded.

Loading them takes most of the start of a node, and deriving keys from the cluster secret most of the rest, so that is done once for each
secret. A node that is started this way is an ordinary process with its own environment, session, output and exit code. It has the hash
seed of the process that it is forked from. The fork server of `multiprocessing` runs functions instead of scripts, with one hash seed for
all of them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from dss_dev.confined import confine

#: What a node loads, as far as it depends neither on settings nor on the environment. `daphne.server` opens an event loop.
MODULES = (
    "autobahn.twisted.websocket",
    "channels.routing",
    "django.contrib.admin",
    "django.contrib.staticfiles.handlers",
    "django.core.management.commands.migrate",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.loader",
    "django.db.models",
    "django.db.models.sql.compiler",
    "django.forms",
    "django.template.loader",
    "django.urls",
    "django.views.debug",
    "dss_admin.live_admin",
    "dss_api.http_listener",
    "dss_api.page_access",
    "dss_api.websocket",
    "dss_client",
    "dss_project.command_line",
    "dss_project.management.commands.node",
    "dss_project.registry",
    "dss_project.runtime",
    "dss_queue.sqs.port",
    "httptools",
    "redis.asyncio",
    "structlog",
    "stringprep",
    "twisted.internet.asyncioreactor",
    "twisted.internet.ssl",
    "twisted.web.http",
    "uvicorn",
    "uvicorn.protocols.http.auto",
    "uvloop",
    "xml.sax.expatreader",
)
ROOT = Path(__file__).resolve().parents[1]
MIGRATE_S = 120.0
_REQUEST_BYTES_MAX = 128 * 1024
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
#: the settings that keys are derived from
_SECRETS = ("DSS_CLUSTER_SECRET", "DSS_CLUSTER_SECRET_PREVIOUS", "DSS_TOKEN_KEY", "DSS_TOKEN_KEY_PREVIOUS")
#: options of the process
_END, _HASH_QUICKLY = "end", "hash-quickly"
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
    """A process with the libraries loaded, which lives as long as this object is not closed.

    Args:
        nodes_end_with_it: On Linux, what it has started is killed when it ends, for example because this process was killed.
        hashes_quickly: New hashes of passwords are computed in no time, and are no protection. Only for tests: each node of a cluster
            checks DSS_ADMIN_PASSWORD at its start, which takes longer than the rest of the start.
        environment: its environment; None: that of this process.
        root: the checkout whose code it loads.
    """

    def __init__(
        self,
        nodes_end_with_it: bool = False,
        hashes_quickly: bool = False,
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
    ) -> None:
        options = [_END] * nodes_end_with_it + [_HASH_QUICKLY] * hashes_quickly
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dss_dev.preloaded", str(theirs.fileno()), *options],
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

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
        assert len(request) < _REQUEST_BYTES_MAX
        states, theirs = os.pipe()
        try:
            socket.send_fds(self._requests, [request], [output, output if errors is None else errors, theirs])
        finally:
            os.close(theirs)
        return ForkedProcess(states)

    def close(self) -> None:
        self._requests.close()
        self._process.wait()


class Pool:
    """Some `Preloaded`, each started when it is first needed. They take turns, so nodes of a cluster differ in their hash seeds.

    What an interpreter reads at its start needs an interpreter of its own: a node with another PYTHONPATH, for example, is forked
    from a `Preloaded` with that PYTHONPATH. So does the code of another checkout.

    Args:
        nodes_end_with_it, hashes_quickly: as for `Preloaded`.
    """

    def __init__(self, size: int = 3, nodes_end_with_it: bool = False, hashes_quickly: bool = False) -> None:
        self._size = size
        self._nodes_end_with_it = nodes_end_with_it
        self._hashes_quickly = hashes_quickly
        self._processes: list[Preloaded] = []
        #: those of other checkouts, and of interpreters with other settings than this one
        self._others: dict[tuple[Path, tuple[tuple[str, str], ...]], Preloaded] = {}
        self._started = 0
        self._new_data: tempfile.TemporaryDirectory[str] | None = None

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
        """Whether the nodes of a checkout can be forked: it has the Python of this process, and this module as it is here."""
        theirs = root / "dss_dev" / "preloaded.py"
        return str(python) == sys.executable and theirs.is_file() and theirs.read_bytes() == Path(__file__).read_bytes()

    def _next(self, environment: Mapping[str, str], root: Path) -> Preloaded:
        settings = _read_at_start(environment)
        if root != ROOT or settings != _read_at_start(os.environ):
            key = root, settings
            if key not in self._others:
                rest = {name: text for name, text in os.environ.items() if not name.startswith(_READ_AT_START)}
                whole = {**rest, **dict(settings)}
                self._others[key] = Preloaded(self._nodes_end_with_it, self._hashes_quickly, whole, root)
            return self._others[key]
        turn = self._started % self._size
        self._started += 1
        if turn == len(self._processes):
            self._processes.append(Preloaded(self._nodes_end_with_it, self._hashes_quickly))
        return self._processes[turn]

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
            self._new_data = tempfile.TemporaryDirectory()
            environment = {**os.environ, "DSS_DATA_DIR": self._new_data.name}
            made = self.run(["manage.py", "migrate", "--verbosity", "0", "--no-input"], ROOT, environment, MIGRATE_S)
            assert made.returncode == 0, made.stderr
            for path in Path(self._new_data.name).iterdir():
                path.chmod(0o600)
        return Path(self._new_data.name)

    def close(self) -> None:
        for process in (*self._processes, *self._others.values()):
            process.close()
        if self._new_data is not None:
            self._new_data.cleanup()


def _read_at_start(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What an interpreter reads of `environment` when it starts."""
    return tuple(sorted((name, text) for name, text in environment.items() if name.startswith(_READ_AT_START)))


def _serve(requests: socket.socket, children_end_too: bool) -> list[str]:
    """Fork for each request. Returns in a child, with the arguments of its script; the parent ends with its caller."""
    ended, wake = os.pipe()
    for descriptor in (ended, wake):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _report_ended(children)
        if requests.fileno() not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES_MAX, 3)
        if not request:
            os._exit(0)
        arguments, folder, environment, namespace, confinement = json.loads(request)
        _derive_keys(environment)
        output, errors, states = descriptors
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            if children_end_too:
                _end_with(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (requests.detach(), ended, wake, states, *children.values()):
                os.close(descriptor)
            if namespace:
                _enter(namespace)
            if confinement:
                confine(confinement)
            return _become(arguments, folder, environment, output, errors)
        os.close(output)
        os.close(errors)
        os.write(states, b"%12d" % pid)
        children[pid] = states


def _report_ended(children: dict[int, int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        states = children.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(states, b"%12d" % os.waitstatus_to_exitcode(status))
        os.close(states)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. SIGTERM would not end a paused node. Elsewhere than on Linux: nothing."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def _derive_keys(environment: Mapping[str, str]) -> None:
    """Derive the keys of a node's secrets here, where the nodes that are forked later find them."""
    from dss_api.token_text import token_key
    from dss_raft.net.certificates import authority

    for name in _SECRETS:
        if secret := environment.get(name):
            token_key(secret)
            if name.startswith("DSS_CLUSTER"):
                authority(secret)


def _make_routes() -> None:
    """Let msgspec find out about the types of all operations here. It keeps that with the types."""
    from dss_api.codec import RequestDecoder
    from dss_api.routes import Route
    from dss_project.registry import operations, subscriptions

    for operation in operations():
        Route(operation)
    for subscription in subscriptions():
        RequestDecoder(subscription)


def _enter(namespace: str) -> None:
    """Move this process into a network namespace that `ip netns` has made."""
    import ctypes

    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def _become(arguments: list[str], folder: str, environment: Mapping[str, str], output: int, errors: int) -> list[str]:
    """Give this child the session, output, folder and environment of its script."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    os.close(errors)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return arguments


class _QuickEnd:
    """Ends a child after its exit functions: to free each object of the process would take longer than its start."""

    def __init__(self) -> None:
        self._code: int | None = None
        # Those that are registered later are called earlier.
        atexit.register(self._end)

    def __enter__(self) -> None:
        self._code = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, SystemExit):
            code = error.code or 0
            # A text is an error.
            self._code = code if isinstance(code, int) else 1
        elif error is not None:
            # An interrupted process is killed by its signal.
            self._code = None if isinstance(error, KeyboardInterrupt) else 1

    def _end(self) -> None:
        if self._code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._code)


def _main() -> None:
    for module in MODULES:
        import_module(module)
    _make_routes()
    requests, *options = sys.argv[1:]
    if _HASH_QUICKLY in options:
        from django.contrib.auth.hashers import PBKDF2PasswordHasher

        PBKDF2PasswordHasher.iterations = 1
    gc.collect()
    gc.freeze()
    # In place: a module may have kept the list.
    sys.argv[:] = _serve(socket.socket(fileno=int(requests)), children_end_too=_END in options)
    sys.path[0] = os.getcwd()


if __name__ == "__main__":
    _quick_end = _QuickEnd()
    _main()
    # Not in a function: the script ends as one that an interpreter was started with, with its traceback and exit code.
    with _quick_end:
        runpy.run_path(sys.argv[0], run_name="__main__")
