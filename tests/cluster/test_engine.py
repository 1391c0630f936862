"""Topics that move between the log and a Valkey Cluster, on real nodes: in the middle of traffic, past a node that lags behind, and while
the servers are away."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT
from dss_dev.valkey_cluster import ValkeyCluster

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0
#: Python runs this before the node's own code: while the file exists, the node applies nothing.
LAGGING = """
import os
from pathlib import Path
from dss_raft.applying import Applying
turn = Applying.turn
def late_turn(applying):
    if not Path(os.environ["LAGS_WHILE"]).exists():
        turn(applying)
Applying.turn = late_turn
"""


class Nodes:
    """Three nodes with one Valkey Cluster. The last node lags behind while a test says so."""

    def __init__(self, cluster: LocalCluster, valkey: ValkeyCluster, lags_while: Path) -> None:
        self.nodes = cluster.nodes
        self.valkey = valkey
        self._lags_while = lags_while

    def call(self, node: LocalNode, method: str, path: str, **fields: Any) -> dict[str, Any]:
        if method in ("GET", "DELETE"):
            path = f"{path}?" + "&".join(f"{name}={value}" for name, value in fields.items())
            return node.call(method, path, timeout_s=2 * PATIENCE_S).json
        return node.call(method, path, fields, timeout_s=2 * PATIENCE_S).json

    def done(self, node: LocalNode, method: str, path: str, **fields: Any) -> dict[str, Any]:
        answer = self.call(node, method, path, **fields)
        assert answer["ok"], answer
        return answer

    def move(self, topic: str, engine: str, node: int = 0) -> None:
        """Move a topic as soon as it has finished to move the other way."""
        while (answer := self.call(self.nodes[node], "PUT", "/queue/topic", topic=topic, engine=engine)).get("code") == "moving":
            pass
        assert answer["ok"], answer

    def publish(self, node: int, topic: str, value: object, **fields: Any) -> dict[str, Any]:
        return self.done(self.nodes[node], "POST", "/queue/publish", topic=topic, value=value, **fields)

    def finish_all(self, topic: str, count: int, node: int = 0) -> list[Any]:
        """Take and ack `count` messages, and what else comes within a second; the values in their order."""
        values: list[Any] = []
        named = {"topic": topic, "group": "g"}
        while True:
            timeout_ms = 20_000 if len(values) < count else 1000
            got = self.done(self.nodes[node], "POST", "/queue/consume", **named, timeout_ms=timeout_ms)
            if not got["msg_id"]:
                return values
            values.append(got["value"])
            acked = self.done(self.nodes[node], "POST", "/queue/ack", **named, msg_id=got["msg_id"], receipt=got["receipt"])
            assert acked["acked"]

    def keys_of(self, topic: str, *, only_lasting: bool = False) -> list[str]:
        """The keys of a topic in the Cluster.

        Args:
            only_lasting: without those that expire: an opening that was not confirmed lasts a minute.
        """
        client = self.valkey.client(decode_responses=True)
        try:
            found = list(client.scan_iter(match=f"dss:*/{topic}:*", count=1000, target_nodes=client.PRIMARIES))
            return [key for key in found if not only_lasting or client.pttl(key) == -1]
        finally:
            client.close()

    def lag(self) -> None:
        """The last node applies nothing from now on."""
        self._lags_while.touch()

    def catch_up(self) -> None:
        self._lags_while.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, prepare_pages: Callable[[LocalCluster], None]) -> Iterator[Nodes]:
    directory = tmp_path_factory.mktemp("engine")
    (directory / "lagging").mkdir()
    (directory / "lagging" / "sitecustomize.py").write_text(LAGGING)
    with ValkeyCluster(directory / "valkey", replicas=0) as valkey:
        # A call at the node that lags behind waits until it has caught up.
        patient = {"DSS_SUBMIT_TIMEOUT_MS": f"{PATIENCE_S * 1000:.0f}"}
        cluster = LocalCluster(directory, free_ports(3), {**ENVIRONMENT, **patient, "DSS_ENGINE_URL": valkey.url})
        lags_while = directory / "lags"
        cluster.nodes[-1].environment |= {"PYTHONPATH": str(directory / "lagging"), "LAGS_WHILE": str(lags_while)}
        prepare_pages(cluster)
        cluster.start()
        try:
            cluster.wait_ready()
            yield Nodes(cluster, valkey, lags_while)
        finally:
            cluster.stop()


@pytest.fixture
def lagging(nodes: Nodes, wait_until) -> Iterator[Nodes]:
    """The last node does not lead: the leader deletes what is abandoned on the engine."""
    last = nodes.nodes[-1]
    last.call("POST", "/raft/transfer", {"to": nodes.nodes[0].id}, headers=last.credentials)
    wait_until(lambda: last.status()["leader_id"] not in ("", last.id), lambda: "the last node leads")
    yield nodes
    nodes.catch_up()


def wait_for_engine(nodes: Nodes, wait_until) -> None:
    """Wait until each node can use all servers. A change of a topic that is already on them does not need them."""
    for node in nodes.nodes:
        wait_until(
            lambda node=node: nodes.call(node, "GET", "/health")["services"].get("queue.engine") == "ready",
            lambda node=node: f"{node.id} does not reach the engine: {nodes.call(node, 'GET', '/health')['services']}",
        )


def test_published_on_one_node_and_consumed_on_another(nodes, wait_until) -> None:
    wait_for_engine(nodes, wait_until)
    nodes.move("t", "redis")
    published = nodes.publish(1, "t", {"n": 1}, key="k")
    assert (published["durability"], published["index"]) == ("redis", None)
    assert nodes.finish_all("t", 1, node=2) == [{"n": 1}]
    stats = nodes.done(nodes.nodes[0], "GET", "/queue/stats", topic="t")
    assert (stats["messages"], stats["published"], stats["groups"][0]["acked"]) == (0, 1, 1)
    assert stats["engine"]["state"] == "ready"


def test_a_topic_moves_in_the_middle_of_traffic(nodes, wait_until) -> None:
    """Order per key holds, nothing is lost, and nothing comes twice."""
    wait_for_engine(nodes, wait_until)
    keys = [f"k{number}" for number in range(6)]
    delivered: dict[str, list[int]] = defaultdict(list)
    published: dict[str, int] = {}
    durabilities: set[str] = set()
    no_more, no_more_to_take = threading.Event(), threading.Event()

    def produce(number: int, key: str) -> None:
        count = 0
        while not no_more.is_set():
            answer = nodes.publish((number + count) % 3, "moves", count, key=key)
            durabilities.add(answer["durability"])
            count += 1
        published[key] = count

    def consume(number: int) -> None:
        named = {"topic": "moves", "group": "g"}
        while not no_more_to_take.is_set():
            node = nodes.nodes[number % 3]
            got = nodes.done(node, "POST", "/queue/consume", **named, timeout_ms=500, max_messages=10, visibility_ms=60_000)
            if not got["messages"]:
                continue
            for one in got["messages"]:
                delivered[one["key"]].append(one["value"])
            ids, receipts = [[one[name] for one in got["messages"]] for name in ("msg_id", "receipt")]
            answer = nodes.done(nodes.nodes[(number + 1) % 3], "POST", "/queue/ack", **named, msg_ids=ids, receipts=receipts)
            assert answer["acked"], answer

    with ThreadPoolExecutor(max_workers=3 + len(keys)) as pool:
        consumers = [pool.submit(consume, number) for number in range(3)]
        producers = [pool.submit(produce, number, key) for number, key in enumerate(keys)]
        try:
            for turn in range(3):
                nodes.move("moves", "redis", node=turn)
                wait_until(lambda: "redis" in durabilities, lambda: "nothing was published on the engine")
                nodes.move("moves", "raft", node=(turn + 1) % 3)
                durabilities.clear()
                wait_until(lambda: "replicated-log" in durabilities, lambda: "nothing was published in the log")
                durabilities.clear()
        finally:
            no_more.set()
            _results(producers)
            wait_until(
                lambda: all(one.done() for one in consumers) or {key: len(delivered[key]) for key in keys} == published,
                lambda: f"published {published}, delivered { {key: len(delivered[key]) for key in keys} }",
            )
            no_more_to_take.set()
            _results(consumers)
    for key in keys:
        assert published[key] > 0
        assert delivered[key] == list(range(published[key])), key


def _results(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result(timeout=2 * PATIENCE_S)


def test_a_node_that_lags_behind_publishes_nothing_on_the_engine_that_its_topic_left(lagging, wait_until) -> None:
    wait_for_engine(lagging, wait_until)
    lagging.move("left", "redis")
    lagging.publish(2, "left", "engine", key="k")
    lagging.lag()
    lagging.move("left", "raft")
    lagging.publish(0, "left", "log 1", key="k")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lagging.publish, 2, "left", "log 2", key="k")
        assert lagging.finish_all("left", 2) == ["engine", "log 1"]
        assert not waiting.done(), "it has not applied the move"
        lagging.catch_up()
        assert waiting.result(timeout=2 * PATIENCE_S)["durability"] == "replicated-log"
    assert lagging.finish_all("left", 1) == ["log 2"]


def test_a_node_that_lags_behind_publishes_nothing_in_the_log_that_its_topic_left(lagging, wait_until) -> None:
    wait_for_engine(lagging, wait_until)
    lagging.publish(2, "came", "log", key="k")
    lagging.lag()
    lagging.move("came", "redis")
    lagging.publish(0, "came", "engine 1", key="k")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lagging.publish, 2, "came", "engine 2", key="k")
        assert lagging.finish_all("came", 2) == ["log", "engine 1"]
        assert not waiting.done(), "it has not applied the move"
        lagging.catch_up()
        assert waiting.result(timeout=2 * PATIENCE_S)["durability"] == "redis"
    assert lagging.finish_all("came", 1) == ["engine 2"]


def test_a_node_that_lags_behind_brings_nothing_back_that_was_deleted(lagging, wait_until) -> None:
    wait_for_engine(lagging, wait_until)
    lagging.move("gone", "redis")
    lagging.publish(2, "gone", "old")
    lagging.lag()
    lagging.done(lagging.nodes[0], "DELETE", "/queue/topic", topic="gone")
    wait_until(lambda: not lagging.keys_of("gone"), lambda: f"there are {lagging.keys_of('gone')[:3]}")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lagging.publish, 2, "gone", "new")
        assert lagging.finish_all("gone", 0) == []
        lagging.catch_up()
        assert waiting.result(timeout=2 * PATIENCE_S)["durability"] == "replicated-log"
    assert lagging.finish_all("gone", 1) == ["new"]
    assert not lagging.keys_of("gone", only_lasting=True)


def test_servers_that_are_killed_stop_only_their_topics(nodes, wait_until) -> None:
    wait_for_engine(nodes, wait_until)
    nodes.move("away", "redis")
    nodes.publish(0, "away", "kept", key="k")
    for port in nodes.valkey.running:
        nodes.valkey.kill(port)
    for node in nodes.nodes:
        codes = set()

        def is_away(node: LocalNode = node, codes: set[str] = codes) -> bool:
            answer = nodes.call(node, "POST", "/queue/consume", topic="away", group="g", timeout_ms=0)
            assert answer["status"] == 503, answer
            codes.add(answer["code"])
            return answer["code"] == "engine_away"

        wait_until(is_away, lambda codes=codes: f"it says {codes}")
        assert codes <= {"engine_away", "unknown_outcome"}, "a call that was on its way may have taken effect"
        assert nodes.call(node, "POST", "/queue/publish", topic="away", value=1)["code"] == "engine_away"
        assert nodes.call(node, "GET", "/queue/stats", topic="away")["engine"]["state"] == "away"
        lock = nodes.done(node, "POST", "/lock/acquire", key=node.id, client="c", ttl_ms=60_000)
        assert lock["fencing_token"] > 0
        assert nodes.done(node, "POST", "/queue/publish", topic="other", value=node.id)["durability"] == "replicated-log"
    assert len(nodes.finish_all("other", 3)) == 3
    nodes.valkey.start_all()
    nodes.valkey.wait_ok()
    wait_for_engine(nodes, wait_until)
    assert nodes.publish(2, "away", "later", key="k")["durability"] == "redis"
    assert nodes.finish_all("away", 2, node=1) == ["kept", "later"]
