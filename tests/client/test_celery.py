"""Celery with the cluster as broker and result backend. With DSS_CELERY_TASKS=10000, the leader dies under so many tasks."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("celery", reason="Celery is not installed")

from celery import Celery, chord
from celery.canvas import Signature
from celery.exceptions import BackendStoreError, ImproperlyConfigured, TimeoutError

from dss_celery import chords
from dss_client import Client
from dss_dev.local_cluster import HOST, LocalCluster
from dss_dev.relays import Relay

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent / "celery_app"
TASKS = int(os.environ.get("DSS_CELERY_TASKS", "300"))
PATIENCE_S = 120 + TASKS / 20
RESULT_S = 60


class Counting:
    """The app of celery_app/ on a cluster, and its workers."""

    def __init__(
        self, cluster: LocalCluster, file: Path, monkeypatch: pytest.MonkeyPatch, broker: str = "", **options: object
    ) -> None:
        hosts = ",".join(node.url.removeprefix("http://") for node in cluster.nodes)
        self._file = file
        self._log = file.with_suffix(".log")
        self._workers: list[subprocess.Popen[bytes]] = []
        self._environment = {
            "COUNTING_BROKER": broker or f"dss://{hosts}//",
            "COUNTING_OPTIONS": json.dumps(options),
            "COUNTING_BACKEND": f"dss://{hosts}",
            "COUNTING_FILE": str(file),
            "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
        }
        for name, text in self._environment.items():
            monkeypatch.setenv(name, text)
        monkeypatch.syspath_prepend(str(HERE))
        self.tasks: ModuleType = importlib.reload(importlib.import_module("counting"))

    def start_worker(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "-A", "counting", "worker", "--loglevel=warning", "--concurrency=2", *options]
        with self._log.open("ab") as log:
            worker = subprocess.Popen(command, cwd=HERE, stdout=log, stderr=log, start_new_session=True)
        self._workers.append(worker)
        return worker

    def counted(self) -> Counter[int]:
        return Counter(map(int, self._file.read_text().split())) if self._file.exists() else Counter()

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, f"{len(self.counted())} of {TASKS} tasks\n{self._log.read_text()[-5000:]}"
            time.sleep(0.05)

    def close(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.tasks.app.close()


@pytest.fixture
def counting(three_nodes: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting(three_nodes, tmp_path / "counted", monkeypatch, timeout=60)
    yield counting
    counting.close()


@pytest.fixture
def counting_on_sqs(three_nodes: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """The same with kombu's own transport for SQS, which knows one address: a relay to the leader, or later to another node."""
    leader = three_nodes.leader()
    nodes = sorted(three_nodes.nodes, key=lambda node: node is not leader)
    options = {"is_secure": False, "region": "us-east-1", "wait_time_seconds": 1, "polling_interval": 0.1}
    with Relay(*(int(node.environment["DSS_SQS_PORT"]) for node in nodes)) as relay:
        broker = f"sqs://any:any@{HOST}:{relay.port}//"
        counting = Counting(three_nodes, tmp_path / "counted", monkeypatch, broker, **options)
        yield counting
        counting.close()


def test_no_task_is_lost_when_the_leader_is_killed(counting: Counting, three_nodes: LocalCluster) -> None:
    kill_leaders(counting, three_nodes)


def test_no_task_is_lost_on_sqs_when_the_leader_is_killed(counting_on_sqs: Counting, three_nodes: LocalCluster) -> None:
    kill_leaders(counting_on_sqs, three_nodes)


def kill_leaders(counting: Counting, three_nodes: LocalCluster) -> None:
    """While tasks are published, and while they are worked on. Each task must run."""
    counting.start_worker()
    for number in range(TASKS):
        counting.tasks.count.delay(number)
        if number == TASKS // 2:
            leader = three_nodes.leader()
            leader.kill()
    leader.start()
    counting.wait(lambda: len(counting.counted()) >= TASKS // 2)
    three_nodes.wait_ready()
    three_nodes.leader().kill()
    counting.wait(lambda: len(counting.counted()) == TASKS)
    assert set(counting.counted()) == set(range(TASKS))


@pytest.mark.parametrize("threads", [1, 8])
def test_each_task_is_published_once_when_the_leader_is_killed(
    counting: Counting, three_nodes: LocalCluster, threads: int
) -> None:
    def publish(number: int) -> None:
        counting.tasks.count.delay(number)
        if number == 50:
            three_nodes.leader().kill()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(publish, range(100)))
    with Client(three_nodes.leader().url) as dss:
        topic = dss.topic("kombu/queue/celery")
        messages = topic.peek(limit=100)
        assert topic.stats()["messages"] == 100
    numbers = Counter(message["value"]["headers"]["argsrepr"] for message in messages)
    assert numbers == Counter(f"({number},)" for number in range(100))


def test_no_task_is_lost_when_the_worker_is_killed(counting: Counting) -> None:
    count = 60
    for number in range(count):
        counting.tasks.slow.delay(number)
    worker = counting.start_worker()
    counting.wait(lambda: len(counting.counted()) >= 10)
    os.killpg(worker.pid, signal.SIGKILL)
    assert len(counting.counted()) < count
    counting.start_worker()
    counting.wait(lambda: len(counting.counted()) == count)


def test_results_remote_control_and_threads(counting: Counting) -> None:
    worker = counting.start_worker("--pool=threads", "--hostname=one@here")
    tasks = counting.tasks
    assert tasks.add.delay(1, 2).get(timeout=RESULT_S) == 3
    assert chord(tasks.add.s(number, number) for number in range(5))(tasks.total.s()).get(timeout=RESULT_S) == 20
    inspect = tasks.app.control.inspect(timeout=2)
    assert inspect.ping() == {"one@here": {"ok": "pong"}}
    later = tasks.add.apply_async((1, 2), countdown=3600)
    counting.wait(lambda: bool(inspect.scheduled()["one@here"]))
    later.revoke()
    counting.wait(lambda: inspect.revoked() == {"one@here": [later.id]})
    # It gives back what it holds, and deletes its queues for remote control.
    worker.terminate()
    worker.wait(PATIENCE_S)
    with Client(os.environ["COUNTING_BROKER"].removesuffix("//").replace("dss://", "http://").replace(",", ",http://")) as dss:
        (group,) = dss.topic("kombu/queue/celery").stats()["groups"]
        assert (group["in_flight"], group["ready"]) == (0, 1)
        assert dss.topic("kombu/exchange/celery.pidbox").stats()["groups"] == []


# ------------------------------------------------------------ result backend


@pytest.fixture
def backend(real_node: LocalCluster, token: str) -> Any:
    url = real_node.nodes[0].url.replace("http://", f"dss://:{token}@")
    return Celery("backend", backend=url, broker="memory://").backend


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_result_is_stored_and_forgotten(real_node: LocalCluster, token: str, serializer: str) -> None:
    url = real_node.nodes[0].url.replace("http://", f"dss://:{token}@")
    app = Celery("backend", backend=url, broker="memory://")
    app.conf.update(result_serializer=serializer, accept_content=[serializer])
    result = app.AsyncResult(f"task-{serializer}")
    app.backend.store_result(result.id, {"sum": 3}, "SUCCESS")
    assert result.get(timeout=RESULT_S) == {"sum": 3}
    result.forget()
    assert app.AsyncResult(result.id).state == "PENDING"


def test_a_result_expires(real_node: LocalCluster, token: str) -> None:
    app = Celery("backend", backend=real_node.nodes[0].url.replace("http://", f"dss://:{token}@"), broker="memory://")
    app.conf.result_expires = 1
    app.backend.store_result("short", 1, "SUCCESS")
    until = time.monotonic() + RESULT_S
    while app.backend.get(app.backend.get_key_for_task("short")) is not None:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_waiting_ends_after_the_timeout(backend: Any) -> None:
    with pytest.raises(TimeoutError):
        backend.app.AsyncResult("never").get(timeout=0.1)


def test_a_result_that_is_too_large(backend: Any) -> None:
    with pytest.raises(BackendStoreError, match="too large"):
        backend.set("big", "x" * 2**20)


def test_the_token_of_the_backend_is_not_shown(backend: Any, token: str) -> None:
    assert token not in backend.as_uri()


class Request:
    """Of a task in the header of a chord."""

    def __init__(self, group: str, index: int, id: str, body: Any) -> None:
        self.group, self.group_index, self.id, self.chord = group, index, id, body


def test_the_body_of_a_chord_comes_once_with_the_results_in_order(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a task of the header runs twice."""
    bodies: list[Any] = []

    monkeypatch.setattr(Signature, "delay", lambda self, results: bodies.append(results))
    backend.set_chord_size("group", 3)

    def end(index: int) -> None:
        backend.on_chord_part_return(Request("group", index, f"task-{index}", Signature("body")), "SUCCESS", index * 10)

    for index in (2, 0, 0, 2):
        end(index)
    assert bodies == []
    for index in (1, 1, 0):
        end(index)
    assert bodies == [[0, 10, 20]]


class Killed(BaseException):
    """The worker ends here."""


def test_the_body_of_a_chord_is_not_lost_with_the_worker_that_publishes_it(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[Any] = []

    def kill(self: Signature, results: list[Any]) -> None:
        raise Killed

    monkeypatch.setattr(chords, "LEASE_S", 1.0, raising=False)
    monkeypatch.setattr(Signature, "delay", kill)
    backend.set_chord_size("killed", 1)
    request = Request("killed", 0, "task", Signature("body"))
    with pytest.raises(Killed):
        backend.on_chord_part_return(request, "SUCCESS", 10)
    monkeypatch.setattr(Signature, "delay", lambda self, results: bodies.append(results))
    for _ in range(2):
        backend.on_chord_part_return(request, "SUCCESS", 10)
    assert bodies == [[10]]


@pytest.mark.parametrize(("url", "text"), [("dss://host?colour=red", "colour"), ("dss://host:port", "a URL must be like")])
def test_a_wrong_url_of_the_backend(url: str, text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=text):
        Celery("backend", backend=url, broker="memory://").backend  # noqa: B018
