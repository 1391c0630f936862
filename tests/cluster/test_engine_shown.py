"""What people see of the engine `redis`: health, metrics, admin and dashboard, while it is there, away, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dss_dev.admin_operator import Operator, rows_in
from dss_dev.local_cluster import HOST, LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages
from dss_dev.valkey_server import Server

pytestmark = pytest.mark.cluster

Waiting = Callable[[Callable[[], object], Callable[[], str]], None]


class World:
    """One node, and the server of its engine."""

    def __init__(self, node: LocalNode, valkey: Server) -> None:
        self.node, self.valkey = node, valkey

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, status: int = 200) -> Any:
        reply = self.node.call(method, path, body, headers=self.node.credentials)
        assert reply.status == status, reply.body
        return reply.json

    @property
    def state(self) -> str:
        return str(self.call("GET", "/ready")["services"]["queue.engine"])

    def metric(self, sample: str) -> float | None:
        text = self.node.call("GET", "/metrics", headers=self.node.credentials).body.decode()
        found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{sample} ")]
        return float(found[0]) if found else None

    def of_clicks(self) -> list[float | None]:
        return [self.metric(f'{name}{{topic="clicks"}}') for name in ("queue_depth", "queue_inflight")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory: Path = tmp_path_factory.mktemp("shown")
    service, engine = free_ports(2)
    environment = {**ENVIRONMENT, "DSS_ENGINE_URL": f"redis://{HOST}:{engine}"}
    cluster = LocalCluster(directory, [service], environment)
    prepare_pages(cluster)
    valkey = Server(directory / "valkey", engine, {"port": str(engine)})
    valkey.start()
    try:
        valkey.wait_started()
        cluster.start()
        cluster.wait_ready()
        yield World(cluster.nodes[0], valkey)
    finally:
        cluster.stop()
        valkey.kill()


def test_lists_have_what_is_on_the_engine(world: World, wait_until: Waiting) -> None:
    wait_until(lambda: world.state == "ready", lambda: world.state)
    assert world.call("GET", "/health")["services"] == {"queue.engine": "ready"}
    rejected = 'queue_dead_total{reason="rejected"}'
    assert world.metric(rejected) == 0
    world.call("PUT", "/queue/topic", {"topic": "clicks", "engine": "redis"})
    world.call("POST", "/queue/publish", {"topic": "clicks", "messages": [{"value": f"value {i}"} for i in range(3)]})
    world.call("POST", "/queue/publish", {"topic": "orders", "value": 1})
    taken = world.call("POST", "/queue/consume", {"topic": "clicks", "group": "g", "max_messages": 2, "visibility_ms": 600_000})
    dead = taken["messages"][0]
    world.call("POST", "/queue/nack", {"topic": "clicks", "group": "g", "msg_id": dead["msg_id"], "dead": True})
    assert world.metric("queue_engine_topics") == 1
    assert world.metric('queue_engine_state{state="ready"}') == 1
    assert (world.metric('queue_engine_call_seconds_count{step="publish"}') or 0) >= 1
    wait_until(lambda: world.of_clicks() == [2, 1], lambda: str(world.of_clicks()))
    assert world.metric('queue_depth{topic="orders"}') == 1
    assert world.metric(rejected) == 1
    wait_until(lambda: world.call("GET", "/users")["users"], lambda: "there is no first user")
    boss = Operator(world.node, "admin", "test")
    _, topics = boss.send("GET", "/admin/dss_queue/topicrow/?q=redis")
    assert rows_in(topics) == ["clicks"], "the column `engine` is searched"
    assert 'class="field-messages">2<' in topics
    _, groups = boss.send("GET", "/admin/dss_queue/backlogrow/?q=clicks")
    found = [f'class="field-{name}">1<' in groups for name in ("ready", "in_flight", "dead")]
    assert found == [True] * 3, groups
    _, listed = boss.send("GET", "/admin/dss_queue/messagerow/?topic=clicks")
    in_flight = [row for row in rows_in(listed) if row.startswith(taken["messages"][1]["msg_id"])]
    assert ("value 1" in listed, "in flight" in listed, len(in_flight)) == (True, True, 1)
    assert "success: 1 given back" in boss.act("dss_queue.messagerow give_back", in_flight, {})
    _, letters = boss.send("GET", "/admin/dss_queue/deadletterrow/?topic=clicks")
    assert "rejected" in letters
    assert "success: 1 deleted" in boss.act("dss_queue.deadletterrow delete_dead", rows_in(letters), {})
    assert "engine redis" in boss.send("GET", "/ui/topic?name=clicks")[1]
    wait_until(
        lambda: "2 messages retained" in boss.send("GET", "/ui/topic?name=clicks")[1], lambda: "the page lacks the numbers"
    )
    assert 'data-show="engine">redis</span>' in boss.send("GET", "/ui/queues")[1]


def test_an_engine_that_is_away_is_named_with_the_reason_and_comes_back(world: World, wait_until: Waiting) -> None:
    world.call("PUT", "/queue/topic", {"topic": "gone", "engine": "redis"})
    world.valkey.kill()
    wait_until(lambda: world.state == "away", lambda: world.state)
    assert world.call("GET", "/health")["services"] == {"queue.engine": "away"}
    assert world.call("GET", "/ready")["ok"], "other calls go on"
    refused = world.call("POST", "/queue/publish", {"topic": "gone", "value": 1}, status=503)
    assert (refused["code"], str(world.valkey.port) in refused["detail"]) == ("engine_away", True)
    world.call("POST", "/queue/publish", {"topic": "orders", "value": 1})
    (service,) = world.call("GET", "/raft/status")["services"]
    assert (service["name"], service["state"], str(world.valkey.port) in service["detail"]) == ("queue.engine", "away", True)
    assert world.metric('queue_engine_state{state="away"}') == 1
    assert world.of_clicks() == [None, None], "the last numbers are not shown as current"
    assert world.metric('queue_depth{topic="orders"}') == 2
    boss = Operator(world.node, "admin", "test")
    for page in ("topicrow", "backlogrow", "messagerow", "deadletterrow"):
        assert (
            f"on the engine redis: 127.0.0.1:{world.valkey.port} does not answer"
            in boss.send("GET", f"/admin/dss_queue/{page}/")[1]
        )
    assert "queue.engine" in boss.send("GET", "/admin/dss_raft/statusrow/")[1]
    _, dashboard = boss.send("GET", "/")
    assert "cannot use the engine redis" in dashboard
    assert "everything else goes on" in dashboard
    assert 'data-show="engine">redis: not known</span>' in dashboard
    world.valkey.start()
    world.valkey.wait_started()
    wait_until(lambda: world.state == "ready", lambda: world.state)
    world.call("POST", "/queue/publish", {"topic": "gone", "value": 1})
    assert "cannot use the engine" not in boss.send("GET", "/")[1]
    # The server has no files.
    wait_until(lambda: world.of_clicks() == [0, 0], lambda: str(world.of_clicks()))
