"""`manage.py node` as a process: how it starts, what it refuses, and how it stops."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect as websocket

from dss_dev.local_cluster import PEER_PORT_OFFSET, LocalNode, free_ports, manage
from dss_dev.preloaded import ForkedProcess
from dss_dev.prepared_pages import prepare_directory

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60

pytestmark = pytest.mark.cluster


def two_free_ports() -> tuple[int, int]:
    (port,) = free_ports(1)
    return port, port + PEER_PORT_OFFSET


class Process:
    """One node. Its output goes to `log`."""

    def __init__(self, directory: Path, **environ: str) -> None:
        self.port, peer_port = two_free_ports()
        self.directory = directory
        self.log = directory / "log"
        self.environ = {
            "NODE_ID": "node-1",
            "RPC_PORT": str(self.port),
            "DSS_PEER_PORT": str(peer_port),
            "DSS_DATA_DIR": str(directory / "data"),
            "DSS_LOG_FORMAT": "json",
            **environ,
        }
        self.arguments = ["manage.py", "node"]
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None

    def start(self, **environ: str) -> Process:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DSS_", "RPC_", "NODE_", "PEERS"))}
        environment = {**inherited, **self.environ, **environ}
        with self.log.open("ab") as log:
            if LocalNode.pool and self.arguments[0] == "manage.py":
                self.process = LocalNode.pool.start(self.arguments, ROOT, environment, log.fileno())
            else:
                self.process = subprocess.Popen(
                    [sys.executable, *self.arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
                )
        return self

    def until_ready(self) -> Process:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.get("/ready")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def until_logged(self, event: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while event not in {line["event"] for line in self.events()}:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        with closing(self.connect()) as connection:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())


@pytest.fixture
def make_node(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """`make_node(first_start=False, **settings)`: a node that has not been started. Its database is there, unless `first_start`."""
    made: list[Process] = []

    def make(first_start: bool = False, **environ: str) -> Process:
        if not first_start:
            prepare_directory(tmp_path / "data")
        made.append(Process(tmp_path, **environ))
        return made[-1]

    yield make
    for node in made:
        if node.process is not None and node.process.poll() is None:
            node.process.kill()
            node.process.wait()


@pytest.fixture(params=["daphne", "uvicorn"])
def node(request: pytest.FixtureRequest, make_node: Callable[..., Process]) -> Process:
    return make_node(DSS_SERVER=request.param, DSS_DRAIN_MS="500").start().until_ready()


def test_first_start_stop_and_second_start(make_node: Callable[..., Process]) -> None:
    node = make_node(first_start=True).start().until_ready()
    data = node.directory / "data"
    # The leader adds the first user in the moments after it can.
    node.until_logged("node.first_user")
    password = (data / "admin-password").read_text().strip()
    for name in ("admin-password", "secret-key"):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
    key = (data / "secret-key").read_text()
    assert password not in node.log.read_text()
    boot = json.loads(node.get("/raft/status")[1])["boot"]
    assert node.stop() == 0
    node.start().until_ready()
    assert (data / "admin-password").read_text().strip() == password
    assert (data / "secret-key").read_text() == key
    assert json.loads(node.get("/raft/status")[1])["boot"] != boot
    assert node.stop() == 0
    assert [event["user"] for event in node.events() if event["event"] == "node.first_user"] == ["admin"]
    assert not [event for event in node.events() if event["level"] in ("warning", "error", "critical")]
    assert "Traceback" not in node.log.read_text()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RPC_HOST": "0.0.0.0"}, "DSS_CLUSTER_SECRET is missing"),
        ({"RPC_PORT": "many"}, "RPC_PORT must be a whole number"),
        ({"RPC_HOST": "192.0.2.1", "DSS_CLUSTER_SECRET": "s" * 16}, "no interface of this machine has that address"),
        ({"DSS_DATA_DIR": "/proc/nowhere"}, "Cannot use DSS_DATA_DIR=/proc/nowhere"),
    ],
)
def test_it_says_why_it_cannot_start(make_node: Callable[..., Process], environ: dict[str, str], words: str) -> None:
    node = make_node(**environ).start()
    assert node.wait() == 1
    assert words in node.log.read_text()
    assert "Traceback" not in node.log.read_text()


@pytest.mark.parametrize("which", ["RPC_PORT", "DSS_PEER_PORT"])
def test_a_port_in_use(make_node: Callable[..., Process], which: str) -> None:
    node = make_node()
    with socket.create_server(("127.0.0.1", int(node.environ[which]))):
        node.start()
        assert node.wait() == 1
    said = node.log.read_text()
    assert "in use" in said
    assert node.environ[which] in said
    assert "Traceback" not in said


def test_a_call_in_progress_is_answered_before_the_node_stops(node: Process) -> None:
    assert node.post("/lock/acquire", {"key": "a", "client": "one"})[0] == 200
    with closing(node.connect()) as waiting:
        body = {"key": "a", "client": "two", "wait_ms": 20_000}
        waiting.request("POST", "/lock/acquire", json.dumps(body), {"Content-Type": "application/json"})
        while not json.loads(node.get("/lock/status?key=a")[1])["waiters"]:
            time.sleep(0.01)
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        # New connections are refused immediately; the waiting call continues.
        while True:
            try:
                node.get("/health")
            except OSError:
                break
        waiting.sock.settimeout(PATIENCE_S)
        response = waiting.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["ok"] is False
    assert node.wait() == 0
    assert "Traceback" not in node.log.read_text()


def test_a_second_signal_shortens_the_stop(make_node: Callable[..., Process]) -> None:
    node = make_node(DSS_DRAIN_MS="600000").start().until_ready()
    node.post("/lock/acquire", {"key": "a", "client": "one"})
    with closing(node.connect()) as waiting:
        body = {"key": "a", "client": "two", "wait_ms": 20_000}
        waiting.request("POST", "/lock/acquire", json.dumps(body), {"Content-Type": "application/json"})
        while not json.loads(node.get("/lock/status?key=a")[1])["waiters"]:
            time.sleep(0.01)
        assert node.process is not None
        node.process.send_signal(signal.SIGINT)
        while not any(event["event"] == "node.stopping" for event in node.events()):
            time.sleep(0.01)
        node.process.send_signal(signal.SIGINT)
        assert node.wait() == 0


def test_a_client_that_hangs_up_leaves_the_queue(node: Process) -> None:
    node.post("/lock/acquire", {"key": "a", "client": "one"})
    waiting = node.connect()
    body = {"key": "a", "client": "two", "wait_ms": 20_000}
    waiting.request("POST", "/lock/acquire", json.dumps(body), {"Content-Type": "application/json"})
    while not json.loads(node.get("/lock/status?key=a")[1])["waiters"]:
        time.sleep(0.01)
    waiting.close()
    while json.loads(node.get("/lock/status?key=a")[1])["waiters"]:
        time.sleep(0.01)


def _raw(node: Process, request: bytes) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", node.port), PATIENCE_S)) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def test_http_as_clients_use_it(node: Process) -> None:
    """Chunks, pipelines, escapes, HEAD, bodies that are too large: the same under both servers."""
    close = b"Host: localhost\r\nConnection: close\r\n"
    body = b'{"key": "\xc3\xa9", "client": "c"}'
    chunked = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])
    head = b"POST /lock/acquire HTTP/1.1\r\n" + close + b"Content-Type: application/json\r\n"
    answer = _raw(node, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    first = b"GET /lock/status?key=%C3%A9 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    two = _raw(node, first + b"GET /health HTTP/1.1\r\n" + close + b"\r\n")
    assert two.count(b"HTTP/1.1 200 OK") == 2
    assert two.index(b'"holders"') < two.index(b'"node"')
    head_only = _raw(node, b"HEAD /health HTTP/1.1\r\n" + close + b"\r\n")
    assert head_only.endswith(b"\r\n\r\n")
    assert b"ontent-" in head_only
    large = b'{"key": "k", "client": "c", "meta": "' + b"x" * 5_000_000 + b'"}'
    answer = _raw(node, head + b"Content-Length: %d\r\n\r\n" % len(large) + large)
    assert answer.startswith(b"HTTP/1.1 413")
    refused = _raw(node, b"GET /raft/status HTTP/1.1\r\n" + close.replace(b"localhost", b"evil.example") + b"\r\n")
    assert refused.startswith(b"HTTP/1.1 400")
    assert "Traceback" not in node.log.read_text()


def test_malformed_headers_are_refused(make_node: Callable[..., Process]) -> None:
    node = make_node(DSS_API_TOKEN="s3cret").start().until_ready()
    close = b"Host: localhost\r\nConnection: close\r\n"
    right = b"Authorization: Bearer s3cret\r\n"
    for bad in (b"X-Odd: a\x0bb\r\n", b"X Odd: a\r\n"):
        assert _raw(node, b"GET /raft/status HTTP/1.1\r\n" + close + right + bad + b"\r\n").startswith(b"HTTP/1.1 400")
    assert _raw(node, b"GET /raft/\xff HTTP/1.1\r\n" + close + right + b"\r\n").startswith(b"HTTP/1.1 400")
    # A header with an underscore must not pass for the one with a dash.
    posing = right + b"Content_Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    assert _raw(node, b"POST /lock/acquire HTTP/1.1\r\n" + close + posing).startswith(b"HTTP/1.1 415")
    assert _raw(node, b"GET /raft/status HTTP/1.1\r\n" + close + right + b"\r\n").startswith(b"HTTP/1.1 200")
    assert "Traceback" not in node.log.read_text()


def test_many_calls_on_one_websocket(node: Process) -> None:
    with websocket(f"ws://127.0.0.1:{node.port}/ws") as connection:
        node.post("/lock/acquire", {"key": "a", "client": "one"})
        waiting = {"key": "a", "client": "two", "wait_ms": 20_000}
        connection.send(json.dumps({"id": 0, "op": "locks.acquire", "request": waiting}))
        for number in range(1, 101):
            request = {"key": f"k{number}", "client": "two"}
            connection.send(json.dumps({"id": number, "op": "locks.acquire", "request": request}))
        answers = [json.loads(connection.recv(PATIENCE_S)) for _ in range(100)]
        assert sorted(answer["id"] for answer in answers) == list(range(1, 101))
        assert all(answer["ok"] for answer in answers)
        connection.send(json.dumps({"id": "r", "op": "locks.release", "request": {"key": "a", "client": "one"}}))
        last = {answer["id"]: answer for answer in (json.loads(connection.recv(PATIENCE_S)) for _ in range(2))}
        assert last[0]["ok"] is True, "the waiter is granted when the holder releases it"
    with pytest.raises(InvalidStatus), websocket(f"ws://127.0.0.1:{node.port}/elsewhere"):
        pass
    assert node.stop() == 0
    assert "Traceback" not in node.log.read_text()


def test_why_a_websocket_ends(node: Process) -> None:
    """The close codes for a frame that is not a call, and for a stop of the node."""
    url = f"ws://127.0.0.1:{node.port}/ws"
    with websocket(url) as connection:
        connection.send("no call")
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(PATIENCE_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007
    with websocket(url) as connection:
        assert node.stop() == 0
        with pytest.raises(ConnectionClosedOK) as closed:
            connection.recv(PATIENCE_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert "Traceback" not in node.log.read_text()


BROWSER = "text/html,application/xhtml+xml"


def test_the_token(make_node: Callable[..., Process]) -> None:
    right = "Bearer s3cret"
    for server in ("daphne", "uvicorn"):
        node = make_node(DSS_SERVER=server, DSS_API_TOKEN="s3cret").start().until_ready()
        assert node.get("/health")[0] == node.get("/ready")[0] == 200
        for path in ("/raft/status", "/metrics", "/", "/api/docs", "/api/schema", "/nowhere/"):
            refused, found = node.get(path)[0], node.get(path, Authorization=right)[0]
            assert (refused, found) == ((401, 200) if path != "/nowhere/" else (404, 404)), path
            assert node.get(path, Authorization="Bearer s3cre")[0] in (401, 404)
        assert node.get("/raft/status", Accept=BROWSER)[0] == 302, "a browser is sent to the login"
        url = f"ws://127.0.0.1:{node.port}/ws"
        with pytest.raises(InvalidStatus) as refused_socket, websocket(url):
            pass
        assert refused_socket.value.response.status_code == 401
        with websocket(url, additional_headers={"Authorization": right}) as connection:
            connection.send(json.dumps({"id": 1, "op": "raft.leader"}))
            assert json.loads(connection.recv(PATIENCE_S))["leader_id"] == "node-1"
        # Refused before the body is read: none of it was sent.
        for accept in ("application/json", BROWSER):
            head = f"POST /lock/acquire HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: 4000000\r\n\r\n"
            assert _raw(node, head.encode()).startswith(b"HTTP/1.1 401")
        assert node.stop() == 0
        assert "s3cret" not in node.log.read_text()


@pytest.mark.parametrize(
    ("environment", "status", "event"),
    [
        ({}, 200, "node.open "),
        ({"RPC_HOST": "0.0.0.0"}, 401, "node.closed "),
        ({"RPC_HOST": "0.0.0.0", "DSS_OPEN": "true"}, 200, "node.open_to_the_network "),
    ],
)
def test_a_node_without_tokens_says_whether_it_is_open(
    make_node: Callable[..., Process], environment: dict[str, str], status: int, event: str
) -> None:
    node = make_node(DSS_CLUSTER_SECRET="a test's cluster secret", **environment).start().until_ready()
    assert node.get("/raft/status")[0] == status
    (said,) = [line for line in node.log.read_text().splitlines() if "manage.py token create" in line]
    assert event in f"{said} ".replace('"', " ").replace(",", " ")
    assert node.stop() == 0


def test_status_prints_the_cluster(make_node: Callable[..., Process]) -> None:
    node = make_node().start().until_ready()
    said = manage("status", "--url", f"http://127.0.0.1:{node.port}").stdout
    assert "node-1" in said
    assert "leader: node-1" in said
    failed = manage("status", "--url", "http://127.0.0.1:1")
    assert failed.returncode == 1
    assert "no answer from http://127.0.0.1:1" in failed.stderr


#: A node whose loop blocks permanently when it gets SIGUSR1.
NODE_WITH_A_PLANTED_BLOCK = """
import asyncio, os, signal, time
from django.core.management import execute_from_command_line

os.environ["DJANGO_SETTINGS_MODULE"] = "dss_project.settings"

def planted_block():
    time.sleep(3600)

def plant():
    from dss_project.server import life
    live = life.live
    async def with_block(*args):
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, planted_block)
        return await live(*args)
    life.live = with_block

import django
django.setup()
plant()
execute_from_command_line(["manage.py", "node"])
"""


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_a_loop_that_stands_still_for_good_ends_the_process(make_node: Callable[..., Process], server: str) -> None:
    node = make_node(DSS_SERVER=server, DSS_WATCHDOG_MS="3000")
    normal, node.arguments = node.arguments, ["-c", NODE_WITH_A_PLANTED_BLOCK]
    node.start().until_ready()
    assert node.process is not None
    node.process.send_signal(signal.SIGUSR1)
    assert node.wait() == 3
    *_, blocked = [event for event in node.events() if event["event"] == "node.loop_blocked"]
    assert "planted_block" in blocked["stack"]
    assert [event["exit_code"] for event in node.events() if event["event"] == "node.loop_did_not_go_on"] == [3]
    node.arguments = normal
    node.start().until_ready()
    assert node.stop() == 0


def test_a_process_that_is_stopped_for_longer_than_the_watchdog_waits_goes_on(make_node: Callable[..., Process]) -> None:
    node = make_node(DSS_WATCHDOG_MS="1000").start().until_ready()
    assert node.process is not None
    for _ in range(2):
        node.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        node.process.send_signal(signal.SIGCONT)
        node.until_ready()
    assert node.stop() == 0
    assert not [event for event in node.events() if event["event"].startswith("node.loop_")]
