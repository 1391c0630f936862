"""Nodes of the Distributed Sync System for tests: processes in a temporary directory, on free ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The node starts while the client is imported.
    from dss_client import AsyncClient, Client

HOST = "127.0.0.1"
SERVER = "distributed-sync-system"
NODE = "from dss_project.command_line import dss_node; dss_node()"
GUARD = Path(__file__).with_name("guard.py")
#: A node's address for the other members is its port and this.
PEER_PORT_OFFSET = 1000
READY_S = 60.0
POLL_S = 0.01
ATTEMPTS = 3
#: variables of the program under test that mean something to a node, or slow it down
FOREIGN = (
    "DSS_",
    "RAFT_",
    "RPC_",
    "NODE_ID",
    "PEERS",
    "REDIS_",
    "CACHE_",
    "QUEUE_",
    "DJANGO_",
    "COV_",
    "COVERAGE_",
    "PYTHONPATH",
)
DATABASE = "django.sqlite3"


class NotStarted(Exception):
    """The nodes cannot be started. The text is for the person who runs the tests."""


class Node:
    """One node process.

    Attributes:
        id: "node-1"
        url: its address
        log: the file with its output
    """

    def __init__(self, id: str, port: int, directory: Path, environment: Mapping[str, str]) -> None:
        self.id = id
        self.url = f"http://{HOST}:{port}"
        self.log = directory / f"{id}.log"
        self.was_stopped = False
        self._data = directory / id
        self._port = port
        self._environment = {
            **environment,
            "NODE_ID": id,
            "RPC_HOST": HOST,
            "RPC_PORT": str(port),
            "DSS_DATA_DIR": str(self._data),
        }
        self._guard: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __repr__(self) -> str:
        return f"<{self.id} at {self.url}>"

    @property
    def is_running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def prepare(self, database: Path) -> None:
        """Use a copy of this database for the pages. To make it takes half of a node's first start."""
        self._data.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(database, self._data / DATABASE)

    def start(self, wait: bool = True) -> None:
        """Start it, with the data that it has, and wait until it is ready."""
        if self.is_running:
            return
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), sys.executable, "-c", NODE]
        with self.log.open("ab") as log:
            self._guard = guard = subprocess.Popen(
                command,
                cwd=self.log.parent,
                env={**inherited, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C reaches only pytest, which stops the nodes.
                start_new_session=True,
            )
        assert guard.stdout is not None
        self.pid = int(guard.stdout.readline())
        guard.stdout.close()
        if wait:
            self.wait_ready()

    def kill(self) -> None:
        """kill -9."""
        self._signal(signal.SIGKILL)
        if self._guard is not None:
            self._guard.wait()

    def stop(self) -> None:
        """SIGTERM: it finishes the calls in progress and passes the leadership on."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        if self._guard is not None:
            self._guard.wait()

    def pause(self) -> None:
        """It takes connections, but answers nothing until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def wait_ready(self, timeout: float = READY_S) -> None:
        """Wait until it answers calls.

        Raises:
            NotStarted
        """
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if not self.is_running:
                raise NotStarted(f"{self.id} has ended:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise NotStarted(f"{self.id} is not ready after {timeout:g} s:\n{self._log_tail()}")
            time.sleep(POLL_S)

    def is_ready(self) -> bool:
        """Whether it answers calls now, all those that its release knows."""
        if self._get("/ready") is None:
            return False
        status = self._get("/raft/status")
        # A new cluster begins with the first cluster version, and knows no request ids for a moment.
        return status is not None and status["cluster_version"] >= status["supported_versions"]["max"]

    def leads(self) -> bool:
        """Whether it says that it leads."""
        status = self._get("/raft/status")
        return status is not None and status["state"]["name"] == "LEADER"

    def save_database(self, path: Path) -> None:
        """Keep its database of the pages for later runs."""
        making = path.with_name(f"{path.name}.{os.getpid()}")
        with (
            contextlib.closing(sqlite3.connect(self._data / DATABASE)) as source,
            contextlib.closing(sqlite3.connect(making)) as target,
        ):
            source.backup(target)
        making.replace(path)

    def _get(self, path: str) -> dict[str, Any] | None:
        """The answer; None: there is none, or it is a refusal."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=2)
        token = self._environment.get("DSS_API_TOKEN")
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
            return answer if response.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def _signal(self, number: int) -> None:
        if not self.is_running:
            return
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.was_stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


class Cluster:
    """Nodes that form one cluster.

    Attributes:
        nodes: its nodes.
        token: that the nodes ask for; "" if they do not.
    """

    def __init__(self, make: Callable[[], list[Node]], token: str) -> None:
        self._make = make
        self.token = token
        self._janitor: Client | None = None
        self.nodes: list[Node] = []
        self.start()

    @property
    def urls(self) -> str:
        """As `Client` takes them."""
        return ",".join(node.url for node in self.nodes)

    def client(self, **options: object) -> Client:
        """A client. The test closes it."""
        from dss_client import Client

        return Client(self.urls, self.token, **options)  # type: ignore[arg-type]

    def async_client(self, **options: object) -> AsyncClient:
        """An asyncio client. The test closes it."""
        from dss_client import AsyncClient

        return AsyncClient(self.urls, self.token, **options)  # type: ignore[arg-type]

    def leader(self, timeout: float = 30) -> Node:
        """The node that leads.

        Raises:
            NotStarted: none does, in time.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for node in self.nodes:
                if node.is_running and node.leads():
                    return node
            time.sleep(POLL_S)
        raise NotStarted("no node leads")

    def followers(self) -> list[Node]:
        """The running nodes that do not lead."""
        leader = self.leader()
        return [node for node in self.nodes if node is not leader and node.is_running]

    def wait_ready(self) -> None:
        """Wait until all running nodes answer calls."""
        for node in self.nodes:
            if node.is_running:
                node.wait_ready()

    def empty(self) -> None:
        """Delete what is stored: locks, topics, and the cache."""
        from pytest_dss.purge import purge

        if self._janitor is None:
            self._janitor = self.client()
        purge(self._janitor, [node.url for node in self.nodes], self.token)

    def heal(self) -> None:
        """Empty it. If a node was stopped, end all: a stopped node forgets which keys it has cached."""
        for node in self.nodes:
            node.resume()
        if any(node.was_stopped for node in self.nodes):
            self.kill()
        else:
            self.wait_ready()
            self.empty()

    def start(self) -> None:
        """Start other nodes, after `heal` has ended those before."""
        if not self.nodes:
            self.nodes = self._make()

    def kill(self) -> None:
        """End all nodes."""
        if self._janitor is not None:
            self._janitor.close()
            self._janitor = None
        for node in self.nodes:
            node.kill()
        self.nodes = []


class Nodes:
    """Starts the clusters of one test run.

    Args:
        directory: for their data.
        environment: their settings.
        kept: a directory that later runs find again.

    Raises:
        NotStarted: the server's distribution is not installed.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str], kept: Path | None) -> None:
        if find_spec("dss_project") is None:
            raise NotStarted(
                f"The fixtures of dss-client start real nodes, and their distribution, {SERVER}, is not installed here. "
                'Install it, or "dss-client[testing]", in the environment of the tests.'
            )
        self._directory = directory
        self._environment = environment
        self._database = None if kept is None else kept / f"pages-{_version()}.sqlite3"
        self._clusters: list[Cluster] = []
        self._made = 0

    def start(self, size: int) -> Cluster:
        """Start a cluster.

        Raises:
            NotStarted
        """
        cluster = Cluster(lambda: self._start(size), self._environment.get("DSS_API_TOKEN", ""))
        self._clusters.append(cluster)
        return cluster

    def close(self) -> None:
        """End everything."""
        for cluster in self._clusters:
            cluster.kill()

    def _start(self, size: int) -> list[Node]:
        for attempt in range(1, ATTEMPTS + 1):
            nodes = self._prepare(size)
            try:
                for node in nodes:
                    node.start(wait=False)
                import dss_client  # noqa: F401

                for node in nodes:
                    node.wait_ready()
            except NotStarted:
                for node in nodes:
                    node.kill()
                # Another process may have taken the port, or the kept database is of another release.
                if attempt == ATTEMPTS:
                    raise
                if self._database is not None:
                    self._database.unlink(missing_ok=True)
                continue
            if self._database is not None and not self._database.exists():
                nodes[0].save_database(self._database)
            return nodes
        raise AssertionError

    def _prepare(self, size: int) -> list[Node]:
        self._made += 1
        directory = self._directory / str(self._made)
        directory.mkdir()
        ports = free_ports(size)
        environment = {
            "DSS_SERVER": "uvicorn",
            "DSS_ADMIN_PASSWORD": secrets.token_urlsafe(12),
            "DSS_CLUSTER_SECRET": secrets.token_urlsafe(12),
            **self._environment,
        }
        members = [f"node-{number}" for number in range(1, size + 1)]
        if size > 1:
            peers = [f"http://{HOST}:{port}/{member}" for member, port in zip(members, ports, strict=True)]
            environment["PEERS"] = ",".join(peers)
        nodes = [Node(member, port, directory, environment) for member, port in zip(members, ports, strict=True)]
        if self._database is not None and self._database.exists():
            for node in nodes:
                node.prepare(self._database)
        return nodes


def _version() -> str:
    try:
        return metadata.version(SERVER)
    except metadata.PackageNotFoundError:
        return "unknown"


def free_ports(count: int) -> list[int]:
    """Ports that are free together with those for the other members.

    They are below the range for outgoing connections (32768 on Linux): a port of that range may be taken before a node binds it.
    """
    # Even thousands for services, odd ones for the other members.
    candidates = [port for port in range(10_000, 32_000) if port // PEER_PORT_OFFSET % 2 == 0]
    found: list[int] = []
    while len(found) < count:
        port = random.choice(candidates)
        if port not in found and _are_free((port, port + PEER_PORT_OFFSET)):
            found.append(port)
    return found


def _are_free(ports: Sequence[int] | Iterable[int]) -> bool:
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                return False
    return True
