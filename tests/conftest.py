"""Real clusters for tests: node processes on free ports, with data in a temporary directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dss_project.local_cluster import LocalCluster, free_ports

#: Quicker elections than the default, so that tests wait less; still far above what a busy machine delays a heartbeat.
ENVIRONMENT = {"DSS_CLUSTER_SECRET": "test", "DSS_LOG_FORMAT": "json", "DSS_ADMIN_PASSWORD": "test"}


@contextmanager
def running(cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """The cluster, started and ready; its logs are printed when the test fails."""
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


@pytest.fixture
def make_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., LocalCluster]]:
    """`make_cluster(nodes=3, **environment)` starts a cluster that is stopped after the test."""
    with ExitStack() as stack:

        def make(nodes: int = 3, **environment: str) -> LocalCluster:
            cluster = LocalCluster(tmp_path, free_ports(nodes), {**ENVIRONMENT, **environment})
            return stack.enter_context(running(cluster, request))

        yield make


@pytest.fixture
def cluster(make_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """Three nodes that one test may kill."""
    return make_cluster()


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Three nodes that the tests of a module share, and leave as they are."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), free_ports(3), ENVIRONMENT)
    with running(cluster, request):
        yield cluster
