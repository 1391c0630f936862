"""The process from which `dss_dev.preloaded` forks: it has the libraries of a node loaded, and runs a script for each request.

A request is a packet: the arguments of the script, its folder, its environment, the network namespace and limits, as JSON, with three file
descriptors: for its output, for its errors, and for its process id and exit code.
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
import sys
from collections.abc import Mapping
from importlib import import_module

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
REQUEST_BYTES_MAX = 128 * 1024
#: options of the process
END, HASH_QUICKLY = "end", "hash-quickly"
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
#: the settings that keys are derived from
_SECRETS = ("DSS_CLUSTER_SECRET", "DSS_CLUSTER_SECRET_PREVIOUS", "DSS_TOKEN_KEY", "DSS_TOKEN_KEY_PREVIOUS")


class _QuickEnd:
    """Ends a child after its exit functions: freeing each object of the process would take longer than its start."""

    def __init__(self) -> None:
        self._code: int | None = None

    def register(self) -> None:
        """Functions that are registered later are called earlier."""
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


_is_loaded = False
_quick_end = _QuickEnd()


def load() -> None:
    """Load what a node needs, once. A process that is forked later has it, and so does one that is forked from that."""
    global _is_loaded
    if not _is_loaded:
        _quick_end.register()
        for module in MODULES:
            import_module(module)
        _make_routes()
        _is_loaded = True
    gc.collect()
    gc.freeze()


def serve(owner: socket.socket, listener: socket.socket | None = None, *, children_end_too: bool = False) -> None:
    """Fork for each request. Returns in a child, where `sys.argv` are its script and arguments; see `run_script`.

    Args:
        owner: requests come from here; the process ends with it.
        listener: further callers connect here.
        children_end_too: on Linux, what was started is killed when this process ends.
    """
    ended, wake = os.pipe()
    for descriptor in (ended, wake):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    callers = [owner]
    listening = [listener] if listener is not None else []
    children: dict[int, int] = {}
    while True:
        sources: list[int | socket.socket] = [ended, *listening, *callers]
        ready, _, _ = select.select(sources, [], [])
        if ended in ready:
            os.read(ended, 4096)
            _report_ended(children)
        callers += [each.accept()[0] for each in listening if each in ready]
        for caller in [each for each in callers if each in ready]:
            request, descriptors, _, _ = socket.recv_fds(caller, REQUEST_BYTES_MAX, 3)
            if not request:
                if caller is owner:
                    os._exit(0)
                callers.remove(caller)
                caller.close()
                continue
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
                for descriptor in (ended, wake, states, *children.values()):
                    os.close(descriptor)
                for each in (*listening, *callers):
                    each.close()
                if namespace:
                    _enter(namespace)
                if confinement:
                    confine(confinement)
                return _become(arguments, folder, environment, output, errors)
            os.close(output)
            os.close(errors)
            with contextlib.suppress(BrokenPipeError):  # the caller has ended
                os.write(states, b"%12d" % pid)
            children[pid] = states


def run_script() -> None:
    """Run the script of `sys.argv`. The process ends as one that an interpreter was started for, with its traceback and exit code."""
    with _quick_end:
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()


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


def _become(arguments: list[str], folder: str, environment: Mapping[str, str], output: int, errors: int) -> None:
    """Give this child the session, output, folder, environment and arguments of its script."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    os.close(errors)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # In place: a module may have kept the list.
    sys.argv[:] = arguments
    sys.path[0] = os.getcwd()


def main() -> None:
    """The process of `Preloaded`. Its arguments: the descriptors for `serve`, and options."""
    descriptors, *options = sys.argv[1:]
    load()
    if HASH_QUICKLY in options:
        from django.contrib.auth.hashers import PBKDF2PasswordHasher

        PBKDF2PasswordHasher.iterations = 1
    owner, *listeners = (socket.socket(fileno=int(descriptor)) for descriptor in descriptors.split(","))
    serve(owner, *listeners[:1], children_end_too=END in options)
    run_script()


if __name__ == "__main__":
    # The imported module: this one is `__main__`, and forked scripts would not see what it has loaded.
    from dss_dev import fork_server

    fork_server.main()
