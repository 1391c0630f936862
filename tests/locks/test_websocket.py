"""Watches and sessions over real WebSockets, on real nodes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from queue import Queue

import pytest
from websockets.exceptions import ConnectionClosed

from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports
from dss_dev.websocket import connect

pytestmark = pytest.mark.cluster

ENVIRONMENT = {"DSS_CLUSTER_SECRET": "test", "DSS_LOG_FORMAT": "json", "DSS_ADMIN_PASSWORD": "test"}
PATIENCE_S = 60
README = Path(__file__).parents[2] / "locks" / "README.md"


class Connection:
    """A connection. Frames of different calls may arrive in any order."""

    def __init__(self, node) -> None:
        self._open = ExitStack()
        self.frames: dict[int | str, deque[dict]] = defaultdict(deque)
        self.socket = self._open.enter_context(connect(node.websocket_url, ssl=node.tls))

    def call(self, id, op, **request) -> None:
        self.socket.send(json.dumps({"id": id, "op": op, "request": request}))

    def receive(self, id) -> dict:
        while not self.frames[id]:
            frame = json.loads(self.socket.recv(timeout=PATIENCE_S))
            self.frames[frame["id"]].append(frame)
        return self.frames[id].popleft()

    def event(self, id) -> dict:
        return self.receive(id)["event"]

    def close(self) -> None:
        self._open.close()


@pytest.fixture(params=["daphne", "uvicorn"])
def cluster(tmp_path, request) -> Iterator[LocalCluster]:
    cluster = LocalCluster(tmp_path, free_ports(3), {**ENVIRONMENT, "DSS_SERVER": request.param})
    failed_before = request.session.testsfailed
    cluster.start()
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()
        if request.session.testsfailed > failed_before:
            for node in cluster.nodes:
                print(f"----- log of {node.id}\n{node.log_tail(60)}")


def test_locks_of_a_connection_are_freed_when_it_closes_or_its_node_fails(cluster, capsys):
    """One cluster for all steps, because starting three processes is slow."""
    leader, (first, second) = cluster.leader(), cluster.followers()
    with closing(Connection(leader)) as watching:
        watching.call("w", "locks.watch", prefix="jobs/")
        assert watching.event("w") | {"index": 0} == {"kind": "state", "index": 0, "locks": []}

        worker = Connection(first)
        worker.call("s", "locks.session", client="worker", ttl_ms=600_000)
        started = worker.event("s")
        worker.call(1, "locks.acquire", key="jobs/1", client="worker", session=started["session"])
        granted = worker.receive(1)
        event = watching.event("w")
        assert (event["kind"], event["client"]) == ("granted", "worker")
        assert event["fencing_token"] == event["index"] == granted["fencing_token"]

        # A closed connection frees its locks although the lease is ten minutes.
        worker.close()
        event = watching.event("w")
        assert (event["kind"], event["reason"]) == ("released", "session_closed")

        # A killed node cannot close the session. The lease ends it.
        worker = Connection(second)
        worker.call("s", "locks.session", client="worker", ttl_ms=4000)
        worker.call(1, "locks.watch", client="worker")
        session = worker.event("s")["session"]
        assert worker.event(1)["kind"] == "state"
        watching.call(2, "locks.acquire", key="jobs/2", client="worker", session=session, lock_delay_ms=100)
        assert watching.receive(2)["ok"]
        assert watching.event("w")["kind"] == "granted"
        second.kill()
        event = watching.event("w")
        assert (event["kind"], event["reason"], event["delay_ms"]) == ("lost", "session_lost", 100)
        assert watching.event("w")["kind"] == "delay_ended"

        # The example in the README.
        blocks = [block.split("```")[0] for block in README.read_text().split("```python\n")[1:]]
        (code,) = [block for block in blocks if "locks.session" in block]
        if not first.is_secure:
            exec(code.replace("127.0.0.1:8101", f"127.0.0.1:{first.port}"), {})
            assert capsys.readouterr().out.splitlines() == ["state", "['2', '3']"]

        # Cancelling a watch by its id ends it. The connection stays open.
        watching.call("c", "cancel", call="w")
        assert watching.receive("c")["cancelled"]
        assert watching.receive("w")["code"] == "cancelled"
        watching.call(3, "locks.watch", key="k", prefix="p")
        refused = watching.receive(3)
        assert (refused["status"], refused["code"]) == (400, "invalid")


class SlowLink:
    """A TCP proxy on a port of its own. Every byte, also the last one before the end, takes `delay_s` in each direction."""

    def __init__(self, node: LocalNode, delay_s: float) -> None:
        self._to = node.port
        self.tls = node.tls
        self._delay_s = delay_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.websocket_url = node.websocket_url.replace(str(node.port), str(self._listening.getsockname()[1]))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                node = socket.create_connection(("127.0.0.1", self._to))
                for source, target in ((client, node), (node, client)):
                    on_the_way: Queue[tuple[float, bytes]] = Queue()
                    threading.Thread(target=self._read, args=(source, on_the_way), daemon=True).start()
                    threading.Thread(target=self._write, args=(target, on_the_way), daemon=True).start()

    def _read(self, source: socket.socket, on_the_way: Queue[tuple[float, bytes]]) -> None:
        data = b"?"
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            on_the_way.put((time.monotonic() + self._delay_s, data))

    @staticmethod
    def _write(target: socket.socket, on_the_way: Queue[tuple[float, bytes]]) -> None:
        with suppress(OSError):
            while True:
                due, data = on_the_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    target.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(data)


class Holder:
    """A client that keeps a session and counts its lease as docs/reference/api.md says. Times are those of its steady clock."""

    def __init__(self, connection: Connection, ttl_ms: int) -> None:
        self.believes_until_s = 0.0
        #: by the rule that is wrong: `expires_in_ms` from when the event is heard
        self.would_believe_until_s = 0.0
        self.session: Future[str] = Future()
        #: an event that answers a ping has arrived before the lease that it names was over
        self.has_lease = threading.Event()
        self._connection = connection
        self._ttl_ms = ttl_ms
        self._called_ms = self._now_ms()
        connection.call(1, "locks.session", client="holder", ttl_ms=ttl_ms)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def join(self) -> None:
        """Wait until everything that was on its way has arrived, and the connection has ended."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    @staticmethod
    def _now_ms() -> int:
        return int(time.monotonic() * 1000)

    def _follow(self) -> None:
        ping_due_ms = self._now_ms()
        with suppress(ConnectionClosed):
            while True:
                now_ms = self._now_ms()
                if now_ms >= ping_due_ms:
                    self._connection.call(f"ping {now_ms}", "ping", call=1, ping=now_ms)
                    ping_due_ms = now_ms + self._ttl_ms // 6
                with suppress(TimeoutError):
                    self._heard(json.loads(self._connection.socket.recv(timeout=max(1, ping_due_ms - now_ms) / 1000)))

    def _heard(self, frame: dict) -> None:
        event = frame.get("event")
        if event is None:
            return
        sent_ms = event.get("ping", self._called_ms)
        self.believes_until_s = max(self.believes_until_s, (sent_ms + event["expires_in_ms"]) / 1000)
        self.would_believe_until_s = (self._now_ms() + event["expires_in_ms"]) / 1000
        if not self.session.done():
            self.session.set_result(event["session"])
        if "ping" in event and self.believes_until_s > time.monotonic():
            self.has_lease.set()


@pytest.mark.rounds
def test_on_a_slow_link_a_client_does_not_believe_longer_than_its_lease(cluster):
    """Its node is killed. The last event arrives long after the lease began, and another client gets the lock in the meantime."""
    delay_s, ttl_ms = 1.0, 4000
    mine, other = cluster.followers()
    with closing(SlowLink(mine, delay_s)) as link, closing(Connection(link)) as connection:
        holder = Holder(connection, ttl_ms)
        session = holder.session.result(PATIENCE_S)
        lock = {"key": "k", "client": "holder", "session": session, "wait_ms": 20_000}
        assert other.call("POST", "/lock/acquire", lock).status == 200
        assert holder.has_lease.wait(PATIENCE_S)
        mine.kill()
        answer = other.call("POST", "/lock/acquire", {"key": "k", "client": "other", "wait_ms": 20_000})
        granted_s = time.monotonic()
        assert answer.status == 200, answer.json
        holder.join()
    print(
        f"granted {granted_s - holder.believes_until_s:.3f} s after the belief ended; {granted_s - holder.would_believe_until_s:.3f}"
    )
    assert holder.believes_until_s <= granted_s
