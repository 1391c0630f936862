"""Makes the archives in this directory. See the README.

    python make.py CHECKOUT OUTPUT

CHECKOUT is a checkout of the release, with its .venv. The calls use nothing but HTTP.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Of a data directory, what a start needs. No secrets.
KEPT = ("raft", "django.sqlite3", "django.sqlite3-wal", "said.json")


class Node:
    """A process of the release."""

    def __init__(self, checkout: Path, directory: Path, number: int, ports: list[int], snapshot_entries: int) -> None:
        self.url = f"http://127.0.0.1:{ports[number]}"
        self.directory = directory / f"node-{number + 1}"
        peers = [f"http://127.0.0.1:{port}/node-{one + 1}" for one, port in enumerate(ports) if one != number]
        environ = os.environ | {
            "NODE_ID": f"node-{number + 1}",
            "RPC_PORT": str(ports[number]),
            "PEERS": ",".join(peers),
            "DSS_DATA_DIR": str(self.directory),
            "DSS_CLUSTER_SECRET": "of the archives",
            "DSS_ADMIN_PASSWORD": "of the archives",
            "DSS_SECRET_KEY": "of the archives, fifty characters or more, no secret at all",
            "DSS_SNAPSHOT_ENTRIES": str(snapshot_entries),
        }
        self.process = subprocess.Popen(
            [checkout / ".venv/bin/python", "manage.py", "node"], cwd=checkout, env=environ, stderr=subprocess.DEVNULL
        )

    def call(self, path: str, method: str | None = None, **fields: Any) -> dict[str, Any]:
        body = json.dumps(fields).encode() if fields else None
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def until_ready(self) -> None:
        for _ in range(300):
            try:
                self.call("/ready")
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        sys.exit(f"{self.url} is not ready")

    def call_without_answer(self, path: str, **fields: Any) -> None:
        """The call waits until the node is killed."""

        def call() -> None:
            with suppress(OSError, urllib.error.URLError):
                self.call(path, **fields)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(0.1)
        if not thread.is_alive():
            sys.exit(f"{path} does not wait")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def free_ports(count: int) -> list[int]:
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        if port < 60000:
            ports.append(port)
    return ports


def fill(node: Node) -> dict[str, Any]:
    """One of everything. Returns what the node answered."""
    call = node.call
    said: dict[str, Any] = {}
    # Locks: held, shared, with a session, with a lock delay, lost by force; two clients wait.
    said["held"] = call("/lock/acquire", key="held", client="alice", ttl_ms=0, meta={"host": "a", "pid": 7})
    said["shared"] = [call("/lock/acquire", key="shared", client=c, mode="shared", ttl_ms=0) for c in ("alice", "bob")]
    session = said["session"] = call("/session", client="carol", ttl_ms=600_000)
    said["by_session"] = call("/lock/acquire", key="by-session", client="carol", session=session["session"])
    said["several"] = call("/lock/acquire", keys=["one", "two"], client="dave", ttl_ms=0, lock_delay_ms=60_000)
    # Messages: keyed, delayed, with a dedup id, with headers; groups that are behind, in flight, dead.
    call("/queue/topic", "PUT", topic="orders", max_attempts=2, retention_ms=0, dedup_window_ms=86_400_000)
    said["published"] = call(
        "/queue/publish",
        topic="orders",
        messages=[
            {"value": {"n": 1}, "headers": {"h": "1"}},
            {"value": "two", "key": "k1"},
            {"value": 3, "key": "k1"},
            {"value": None, "key": "k2"},
            {"value": [5], "delay_ms": 3_600_000},
            {"value": 6, "dedup_id": "once"},
        ],
    )
    said["consumed"] = call("/queue/consume", topic="orders", group="workers", max_messages=2, visibility_ms=600_000)
    first, _ = said["consumed"]["messages"]
    call("/queue/ack", topic="orders", group="workers", msg_id=first["msg_id"], receipt=first["receipt"])
    poison = call("/queue/consume", topic="orders", group="strict", max_messages=1, visibility_ms=600_000)["messages"][0]
    call("/queue/nack", topic="orders", group="strict", msg_id=poison["msg_id"], receipt=poison["receipt"], dead=True)
    said["dead"] = poison
    # Values: numbers, texts, one that ends, one that was deleted; written back by now.
    said["clean"] = call("/cache/put", key="clean", value={"x": [1, 2]})
    said["counter"] = call("/cache/incr", key="counter", delta=41)
    call("/cache/put", key="gone", value=1)
    call("/cache/delete", key="gone")
    time.sleep(2.5)
    said["dirty"] = call("/cache/put", key="dirty", value="not written back", ttl_ms=86_400_000)
    node.call_without_answer("/lock/acquire", key="held", client="erin", wait_ms=20_000, ttl_ms=0)
    node.call_without_answer("/lock/acquire", key="held", client="frank", wait_ms=20_000, mode="shared", ttl_ms=0)
    node.call_without_answer("/queue/consume", topic="empty", group="workers", timeout_ms=20_000)
    time.sleep(0.2)
    return said


def archive(directory: Path, said: dict[str, Any], file: Path) -> None:
    (directory / "said.json").write_text(json.dumps(said, indent=1))
    with tarfile.open(file, "w:xz", preset=9) as tar:
        for name in KEPT:
            tar.add(directory / name, name, filter=lambda member: None if member.name.endswith(("-shm", ".lock")) else member)
    print(file, file.stat().st_size, "bytes")


def make(checkout: Path, output: Path, name: str, nodes: int, snapshot_entries: int) -> None:
    directory = output / f"{name}.work"
    shutil.rmtree(directory, ignore_errors=True)
    ports = free_ports(nodes)
    started = [Node(checkout, directory, number, ports, snapshot_entries) for number in range(nodes)]
    try:
        for node in started:
            node.until_ready()
        said = fill(started[-1])
    finally:
        for node in started:
            node.kill()
    archive(started[-1].directory, said, output / f"{name}.tar.xz")
    shutil.rmtree(directory)


if __name__ == "__main__":
    of, to = Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    release = subprocess.check_output(["git", "-C", of, "rev-parse", "--short=7", "HEAD"], text=True).strip()
    make(of, to, f"{release}-log", nodes=1, snapshot_entries=10_000)
    make(of, to, f"{release}-snapshot", nodes=1, snapshot_entries=15)
    make(of, to, f"{release}-member", nodes=3, snapshot_entries=15)
