"""Node processes on this machine, for `make run`, tests and benchmarks."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from dss_api.token_text import key_holder_text, token_key
from dss_client.tls import default_context
from dss_dev import confined, local_tls
from dss_dev.checkouts import ROOT, Checkout, tested_checkout
from dss_dev.preloaded import ForkedProcess, Pool
from dss_raft.versions import LATEST

HOST = "127.0.0.1"
PEER_PORT_OFFSET = 1000
PORTS_OF_THREE = (8101, 8102, 8103)
#: the SQS endpoint of the first of them; the others have the ports after it
SQS_PORT = 9324
PORTS_OF_ONE = (8201,)
POLL_S = 0.02
#: Longer than a node may wait, one after the other, for its subscriptions, calls in flight and successor.
STOP_S = 60.0
#: For the answer of a node that may be paused. Others are asked meanwhile, or it is asked again.
PROBE_S = 2.0


class NotReady(Exception):
    """A node ended or was not ready in time. The text has the end of its log."""


class Reply:
    """An HTTP answer. Header names are case-insensitive."""

    def __init__(self, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class LocalNode:
    """One node process and its HTTP address.

    Attributes:
        pool: where nodes of this checkout, and of others that are like it, are started quickly, if it is set.

    Args:
        environment: the node's settings.
        log_path: the file that gets its output.
        host: its address.
        prefix: a command that runs the node's command.
        confinement: limits that it runs under, as `Confinement.arguments`.
        checkout: whose code it runs. By default the one that `DSS_TEST_CHECKOUT` names, otherwise this one.
        namespace: the network namespace that it runs in.
    """

    pool: ClassVar[Pool | None] = None

    def __init__(
        self,
        node_id: str,
        port: int,
        environment: Mapping[str, str],
        log_path: Path,
        host: str = HOST,
        prefix: Sequence[str] = (),
        checkout: Checkout | None = None,
        namespace: str = "",
        confinement: Sequence[str] = (),
    ) -> None:
        self.id = node_id
        self.host = host
        self.port = port
        self._prefix = prefix
        self._namespace = namespace
        self._confinement = confinement
        self.checkout = checkout or tested_checkout()
        self.log_path = log_path
        self.environment = dict(environment) if self.checkout else local_tls.tested(environment)
        self.is_secure = "DSS_TLS_CERT_FILE" in self.environment
        self.url = f"{'https' if self.is_secure else 'http'}://{host}:{port}"
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """0 before the first start."""
        return self.process.pid if self.process is not None else 0

    @property
    def websocket_url(self) -> str:
        return f"{self.url.replace('http', 'ws', 1)}/ws"

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """For clients of this node, from its settings; None: it speaks HTTP."""
        return default_context(self.environment) if self.is_secure else None

    def connection(self, timeout_s: float = 30.0) -> http.client.HTTPConnection:
        """A connection for HTTP calls. It is opened by the first call."""
        if self.tls is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self.tls)

    def open_socket(self, timeout_s: float = 30.0) -> socket.socket:
        """A connected socket that carries bytes of HTTP."""
        tcp = socket.create_connection((self.host, self.port), timeout_s)
        return tcp if self.tls is None else self.tls.wrap_socket(tcp, server_hostname=self.host)

    def start(self) -> None:
        """Start the process with the data of its last run."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        checkout = self.checkout
        if checkout is None:
            folder, python, environment = ROOT, sys.executable, {**os.environ, **self.environment}
        else:
            folder, python, environment = checkout.path, str(checkout.python), checkout.environment(self.environment)
        with self.log_path.open("ab") as log:
            can_be_forked = checkout is None or Pool.can_load(checkout.path, checkout.python)
            if self.pool and can_be_forked and not self._prefix:
                self.process = self.pool.start(
                    ["manage.py", "node"],
                    folder,
                    environment,
                    log.fileno(),
                    namespace=self._namespace,
                    confinement=self._confinement,
                    root=folder,
                )
                return
            in_namespace = ("ip", "netns", "exec", self._namespace) if self._namespace else ()
            limited = confined.prefix(self._confinement) if self._confinement else ()
            self.process = subprocess.Popen(
                [*in_namespace, *limited, *self._prefix, python, str(folder / "manage.py"), "node"],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C must reach only the process that started the cluster. It stops the nodes in order.
                start_new_session=True,
            )

    def send_signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until the process has ended."""
        self.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def pause(self) -> None:
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.send_signal(signal.SIGCONT)

    def stop(self, timeout_s: float = STOP_S) -> int | None:
        """Ask the node to stop; its exit code, or None if it did not stop in time."""
        self.send_signal(signal.SIGTERM)
        if self.process is None:
            return None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One HTTP call; `body` is sent as JSON unless it is bytes.

        Raises:
            OSError, http.client.HTTPException: no answer, or an incomplete one.
        """
        connection = self.connection(timeout_s)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**given, **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    @property
    def credentials(self) -> dict[str, str]:
        """The header of a call that may do everything, from the settings of the node."""
        token = self.environment.get("DSS_API_TOKEN", "")
        secret = self.environment.get("DSS_TOKEN_KEY") or self.environment.get("DSS_CLUSTER_SECRET", "")
        if not token and secret:
            token = key_holder_text(token_key(secret), int(time.time()))
        return {"Authorization": f"Bearer {token}"} if token else {}

    def status(self, timeout_s: float = 30.0) -> dict[str, Any] | None:
        """The answer to `GET /raft/status`, or None: the node does not serve, does not answer in time, or may not be asked."""
        try:
            reply = self.call("GET", "/raft/status", timeout_s=timeout_s, headers=self.credentials)
            return reply.json if reply.status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return None

    def is_ready(self) -> bool:
        try:
            return self.call("GET", "/ready", timeout_s=PROBE_S).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def has_latest_version(self) -> bool:
        """Whether it has applied the latest cluster version, or may not be asked. False: it has not, or does not answer at the moment."""
        try:
            reply = self.call("GET", "/raft/status", timeout_s=PROBE_S, headers=self.credentials)
            return reply.status != 200 or reply.json["cluster_version"] >= LATEST
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def wait_alive(self, timeout_s: float) -> None:
        """Wait until the process serves, even if it belongs to no cluster.

        Raises:
            NotReady: it ended, or took too long.
        """
        deadline = time.monotonic() + timeout_s
        while self.status(PROBE_S) is None:
            if not self.is_running or time.monotonic() > deadline:
                raise NotReady(f"{self.id} does not accept calls:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def log_tail(self, lines: int = 20) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def member_node(
    node_id: str,
    port: int,
    members: Mapping[str, str],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    confinement: Sequence[str] = (),
    checkout: Checkout | None = None,
) -> LocalNode:
    """A node on loopback with its data in `<directory>/<node id>`.

    Args:
        members: the members' ids and URLs.
        environment: further settings.
        confinement, checkout: as for `LocalNode`.
    """
    given = {
        **(_with_sqs(port) if checkout is None else {}),
        **(environment or {}),
        "NODE_ID": node_id,
        "RPC_HOST": HOST,
        "RPC_PORT": str(port),
        "PEERS": ",".join(f"{url}/{member}" for member, url in members.items()),
        "DSS_DATA_DIR": str(directory / node_id),
    }
    return LocalNode(node_id, port, given, directory / "logs" / f"{node_id}.log", checkout=checkout, confinement=confinement)


def _with_sqs(port: int) -> dict[str, str]:
    """The settings for the SQS endpoint of a node of `make run`, unless another program has its port."""
    if port not in PORTS_OF_THREE:
        return {}
    sqs_port = SQS_PORT + port - PORTS_OF_THREE[0]
    return {} if is_in_use(sqs_port) else {"DSS_SQS_PORT": str(sqs_port)}


class LocalCluster:
    """Nodes on loopback that form one cluster.

    Args:
        directory: their data, `<directory>/<node id>`, and logs.
        ports: one service port for each node.
        environment: settings for all nodes, in addition to those that form the cluster.
        confinement, checkout: of each node, as for `LocalNode`.
    """

    def __init__(
        self,
        directory: Path,
        ports: Sequence[int],
        environment: Mapping[str, str] | None = None,
        confinement: Sequence[str] = (),
        checkout: Checkout | None = None,
    ) -> None:
        self.directory = directory
        members = {f"node-{number}": port for number, port in enumerate(ports, 1)}
        scheme = "https" if environment and "DSS_TLS_CERT_FILE" in environment else "http"
        urls = {node_id: f"{scheme}://{HOST}:{port}" for node_id, port in members.items()}
        self.nodes = [
            member_node(node_id, port, urls, directory, environment, confinement, checkout) for node_id, port in members.items()
        ]

    def start(self) -> None:
        for node in self.nodes:
            if node.pool and node.checkout is None:
                self._copy_tables(node.pool, Path(node.environment["DSS_DATA_DIR"]))
            node.start()

    @staticmethod
    def _copy_tables(pool: Pool, data_dir: Path) -> None:
        """Give a new node its database with its tables: making them takes longer than the rest of its start."""
        if not data_dir.exists():
            shutil.copytree(pool.new_data(), data_dir)

    def wait_ready(self, timeout_s: float = 120.0, nodes: Sequence[LocalNode] | None = None) -> None:
        """Wait until each of the nodes (all by default) knows a leader and has caught up, and the cluster has its latest version.

        A new cluster gets that version a moment after it is ready. With given nodes, others may be away, and the version is not waited for.

        Raises:
            NotReady: one of them ended, or took too long.
        """
        deadline = time.monotonic() + timeout_s
        for node in nodes or self.nodes:
            while not node.is_ready():
                if not node.is_running:
                    raise NotReady(f"{node.id} has ended:\n{node.log_tail()}")
                if time.monotonic() > deadline:
                    raise NotReady(f"{node.id} is not ready after {timeout_s:.0f} s:\n{node.log_tail()}")
                time.sleep(POLL_S)
        if nodes is None:
            self.wait_for_version(deadline)

    def wait_for_version(self, deadline: float) -> None:
        """Wait until all nodes have applied the latest cluster version, if they are of this release and may be asked."""
        for node in self.nodes:
            if node.checkout is not None or "DSS_CLUSTER_VERSION_MAX" in node.environment:
                return
        for node in self.nodes:
            while time.monotonic() < deadline and not node.has_latest_version():
                time.sleep(POLL_S)

    def leader(self, timeout_s: float = 60.0) -> LocalNode:
        """The running node that says that it leads.

        Raises:
            NotReady: no node did in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for node in self.nodes:
                status = node.status(PROBE_S) if node.is_running else None
                if status is not None and status["state"]["name"] == "LEADER":
                    return node
            time.sleep(POLL_S)
        raise NotReady("no node leads:\n" + "\n".join(node.log_tail(5) for node in self.nodes))

    def followers(self) -> list[LocalNode]:
        leader = self.leader()
        return [node for node in self.nodes if node is not leader and node.is_running]

    def stop(self) -> list[str]:
        """Stop all nodes at the same time. Returns the ids of those that had to be killed."""
        for node in self.nodes:
            node.send_signal(signal.SIGCONT)
            node.send_signal(signal.SIGTERM)
        stubborn = []
        for node in self.nodes:
            if node.process is not None and node.stop() is None:
                stubborn.append(node.id)
                node.kill()
        return stubborn


def manage(
    *arguments: str, environment: Mapping[str, str] | None = None, folder: Path = ROOT, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a command of `manage.py` to its end, quickly if `LocalNode.pool` is set.

    Args:
        environment: further settings.
        folder: its working directory.
    """
    whole = {**os.environ, **(environment or {})}
    if LocalNode.pool:
        return LocalNode.pool.run([str(ROOT / "manage.py"), *arguments], folder, whole, timeout_s)
    command = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def ports_in_use(ports: Sequence[int]) -> list[int]:
    """The service ports, and the peer ports above them, that are in use."""
    return [port for port in (*ports, *(port + PEER_PORT_OFFSET for port in ports)) if is_in_use(port)]


def is_in_use(port: int) -> bool:
    """Whether a program listens on this port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


#: The latest that `free_ports` has found. Some of them may not be bound yet.
_given: deque[int] = deque(maxlen=100)


def free_ports(count: int) -> list[int]:
    """Service ports that are free together with the peer ports above them.

    They are below the range for outgoing connections (32768 on Linux): a port of that range may be taken before a node binds it.
    Each parallel worker of the tests has ports of its own: no other worker can take a port before the node binds it, or while
    the node is stopped. Ports that were given before are given again only after a hundred others.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    hundred = int(worker.removeprefix("gw")) % (PEER_PORT_OFFSET // 100)
    # Even thousands for services, odd ones for their peer ports.
    thousands = range(20_000, 32_000, 2 * PEER_PORT_OFFSET)
    candidates = [thousand + 100 * hundred + place for thousand in thousands for place in range(100)]
    found: list[int] = []
    while len(found) < count:
        port = random.choice(candidates)
        if port not in _given and not ports_in_use([port]):
            _given.append(port)
            found.append(port)
    return found
