"""Hostile clients, and the probe that must be answered meanwhile. For the tests in tests/cluster/hostile."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from dss_dev.confinement import MIB, Limits, Watch
from dss_dev.local_cluster import LocalNode

#: What the node gets.
LIMITS = Limits(memory_bytes=512 * MIB, pids=400, open_files=1024)
#: Its settings, and the limits of its state, as docs/how-to/small-nodes.md advises; a test compares them.
SETTINGS = {"DSS_CLIENT_BYTES_MAX": str(64 * MIB), "DSS_CACHE_MAX_BYTES": str(32 * MIB), "DSS_SNAPSHOT_BYTES": str(16 * MIB)}
STATE_LIMITS = {
    "lock_bytes_max": 24 * MIB,
    "cache_bytes_max": 24 * MIB,
    "cache_dirty_bytes_max": 16 * MIB,
    "session_bytes_max": 8 * MIB,
    "queue_bytes_max": 32 * MIB,
    "request_bytes_max": 8 * MIB,
}

#: 1 in CI, 10 with `make hostile`.
SCALE = int(os.environ.get("DSS_HOSTILE", "1"))
#: Longer than any answer may take. A call that takes longer hangs.
PATIENCE_S = 60.0
HOSTILE, PROBE = "127.0.0.1", "127.0.0.2"
BODY = json.dumps({"key": "probe", "client": "probe"})
#: Between two pairs of a probe's calls: the processor belongs to the attack. An attack that lasts long is watched by fewer calls a second.
PROBE_PAUSE_S_MIN, PROBE_PAUSE_S_MAX, PROBE_PAUSE_SHARE = 0.01, 0.1, 0.02
#: The share of a probe's calls that may be answered with 429 or 503.
REFUSED_SHARE_MAX = 0.2
#: How much more memory than at rest a node may use for its clients, whatever they do.
GROWTH_BYTES_MAX = 200 * MIB
#: The receive buffer of a client that does not read.
RECEIVE_BUFFER_BYTES = 4096


class Probe:
    """A context in which a client at another address calls the node, one call after the other, while its memory is watched.

    It fails if a call hangs, is reset or gets an unexpected answer, if the node ends, or if the node's memory grows too much.

    Args:
        limits: the node is killed above them, where no cgroup does that.
        budget_bytes: what the test fills on purpose: its state may grow by this in addition.
    """

    def __init__(self, node: LocalNode, limits: Limits | None = None, budget_bytes: int = 0) -> None:
        self._node = node
        self._growth_max = GROWTH_BYTES_MAX + budget_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.watch = Watch(node.pid, limits)
        self.answered = 0
        self.refused: list[str] = []
        self.not_ready: list[str] = []
        self.failures: list[str] = []
        self.slowest_s = 0.0
        self.seconds = 0.0

    def _run(self) -> None:
        while True:
            status, answer = self._call("POST", "/lock/acquire", BODY)
            if status == 200:
                self.answered += 1
            elif status in (429, 503):
                self.refused.append(answer)
            elif status:
                self.failures.append(f"{status} {answer}")
            status, answer = self._call("GET", "/ready")
            if status == 503:
                self.not_ready.append(answer)
            elif status not in (0, 200):
                self.failures.append(f"/ready: {status} {answer}")
            pause_s = PROBE_PAUSE_SHARE * (time.monotonic() - self._began)
            if self._stop.wait(min(max(pause_s, PROBE_PAUSE_S_MIN), PROBE_PAUSE_S_MAX)):
                return

    def _call(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        began = time.monotonic()
        connection = http.client.HTTPConnection(self._node.host, self._node.port, PATIENCE_S, source_address=(PROBE, 0))
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            reply = connection.getresponse()
            return reply.status, reply.read()[:300].decode()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"{path}: {error!r} after {time.monotonic() - began:.1f} s")
            return 0, ""
        finally:
            connection.close()
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def __enter__(self) -> Probe:
        self._began = time.monotonic()
        self.watch.__enter__()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.watch.__exit__()
        self.seconds = time.monotonic() - self._began
        if kind is not None:
            return
        assert not self.watch.killed, self.watch.killed
        assert self._node.is_running, self._node.log_tail()
        assert not self.failures, (len(self.failures), self.failures[:3])
        assert self.answered, self.refused[:3]
        assert len(self.refused) <= 1 + REFUSED_SHARE_MAX * self.answered, (self.answered, len(self.refused), self.refused[:3])
        grown = self.watch.peak_bytes - self.watch.rest_bytes
        assert grown < self._growth_max, f"{grown // MIB} MiB more than at rest"

    @property
    def summary(self) -> str:
        """One line for the report."""
        return (
            f"{self.seconds:6.1f} s  {self.answered:6} answered  {len(self.refused):4} refused  {len(self.not_ready):4} not ready"
            f"  slowest {self.slowest_s:5.2f} s  memory {self.watch.rest_bytes // MIB:4} → {self.watch.peak_bytes // MIB:4} MiB"
            f"  threads {self.watch.peak_threads:3}"
        )


# ------------------------------------------------------------------- clients


def connect(node: LocalNode, receive_buffer: int = 0) -> socket.socket:
    """A connection; with `receive_buffer`, of a client that soon stops reading."""
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(PATIENCE_S)
    client.bind((HOSTILE, 0))
    client.connect((node.host, node.port))
    return client


@contextlib.contextmanager
def connections(node: LocalNode, count: int, receive_buffer: int = 0) -> Iterator[list[socket.socket]]:
    """Many connections, closed at the end."""
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            clients.append(connect(node, receive_buffer))
        yield clients
    finally:
        for client in clients:
            client.close()


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def call(path: str, request: Any, *headers: str, padding: int = 0) -> bytes:
    """A whole request; its JSON has `padding` more spaces."""
    body = json.dumps(request).encode() + b" " * padding
    return head(path, "Content-Type: application/json", f"Content-Length: {len(body)}", *headers) + body


def status_of(answer: bytes) -> int:
    """The status of an HTTP answer; 0 if there is none."""
    parts = answer.split(b" ", 2)
    return int(parts[1]) if len(parts) > 1 else 0


def answer_of(client: socket.socket) -> int:
    """The status of the answer; 0 when the connection was closed or reset without one."""
    try:
        return status_of(client.recv(1000))
    except OSError:
        return 0


def send_all(client: socket.socket, blocks: Sequence[bytes] | Iterator[bytes], timeout_s: float = 5.0) -> bool:
    """Send until the node does not take any more. False: it closed the connection, or does not read."""
    client.settimeout(timeout_s)
    try:
        for block in blocks:
            client.sendall(block)
    except OSError:
        return False
    return True


def send_to_all(clients: Sequence[socket.socket], data: bytes, timeout_s: float = PATIENCE_S) -> int:
    """Send `data` to the node on all connections at the same time, as far as it reads. Returns how many sent everything."""
    rest = {client: memoryview(data) for client in clients}
    for client in clients:
        client.setblocking(False)
    deadline = time.monotonic() + timeout_s
    sent = 0
    while rest and time.monotonic() < deadline:
        progress = False
        for client, left in list(rest.items()):
            try:
                count = client.send(left)
            except BlockingIOError:
                continue
            except OSError:
                del rest[client]
                continue
            progress = True
            rest[client] = left[count:]
            if not rest[client]:
                del rest[client]
                sent += 1
        if not progress:
            time.sleep(0.01)
    for client in clients:
        client.settimeout(PATIENCE_S)
    return sent


# --------------------------------------------------------------- WebSockets


def websocket(node: LocalNode, receive_buffer: int = 0, *headers: str) -> socket.socket:
    """A WebSocket without a library: it reads and answers nothing by itself, not even pings."""
    client = connect(node, receive_buffer)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    client.sendall(
        head("/ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key, *headers, method="GET")
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = client.recv(1000)
        if not data:
            raise ConnectionError(f"no WebSocket: {answer[:300]!r}")
        answer += data
    if status_of(answer) != 101:
        raise ConnectionError(f"no WebSocket: {answer[:300]!r}")
    return client


@contextlib.contextmanager
def websockets(node: LocalNode, count: int, receive_buffer: int = 0) -> Iterator[list[socket.socket]]:
    """Many WebSockets, closed at the end."""
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            clients.append(websocket(node, receive_buffer))
        yield clients
    finally:
        for client in clients:
            client.close()


def frame(payload: bytes, opcode: int = 1, length: int | None = None, first: int = 0x80) -> bytes:
    """A masked frame; the mask 0 leaves the payload as it is. `length`: the length that it claims."""
    size = len(payload) if length is None else length
    if size < 126:
        start = struct.pack("!BB", first | opcode, 0x80 | size)
    elif size < 1 << 16:
        start = struct.pack("!BBH", first | opcode, 0x80 | 126, size)
    else:
        start = struct.pack("!BBQ", first | opcode, 0x80 | 127, size)
    return start + b"\0\0\0\0" + payload


def call_frame(id: int | str, op: str, request: Any, padding: int = 0) -> bytes:
    """One call as a frame; its JSON has `padding` more spaces."""
    return frame(json.dumps({"id": id, "op": op, "request": request}).encode() + b" " * padding)


def has_been_closed(client: socket.socket, timeout_s: float = PATIENCE_S) -> bool:
    """Read until the node closes the connection."""
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            client.settimeout(max(deadline - time.monotonic(), 0.1))
            if not client.recv(1 << 16):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True
    return False
