"""Watches and sessions over real WebSockets, on real nodes."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from websockets.sync.client import connect

from dss_dev.local_cluster import LocalCluster, free_ports

pytestmark = pytest.mark.cluster

ENVIRONMENT = {"DSS_CLUSTER_SECRET": "test", "DSS_LOG_FORMAT": "json", "DSS_ADMIN_PASSWORD": "test"}
PATIENCE_S = 30
README = Path(__file__).parents[2] / "locks" / "README.md"


class Connection:
    """A connection. Frames of different calls may arrive in any order."""

    def __init__(self, node) -> None:
        self._open = ExitStack()
        self.frames: dict[int | str, deque[dict]] = defaultdict(deque)
        self.socket = self._open.enter_context(connect(f"ws://127.0.0.1:{node.port}/ws"))

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
        worker.call("s", "locks.session", client="worker", ttl_ms=2000)
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
        exec(code.replace("127.0.0.1:8101", f"127.0.0.1:{first.port}"), {})
        assert capsys.readouterr().out.splitlines() == ["state", "['2', '3']"]

        # Cancelling a watch by its id ends it. The connection stays open.
        watching.call("c", "cancel", call="w")
        assert watching.receive("c")["cancelled"]
        assert watching.receive("w")["code"] == "cancelled"
        watching.call(3, "locks.watch", key="k", prefix="p")
        refused = watching.receive(3)
        assert (refused["status"], refused["code"]) == (400, "invalid")
