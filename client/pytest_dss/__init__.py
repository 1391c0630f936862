"""The pytest plugin of `dss-client`: real nodes as fixtures.

    def test_orders(dss):
        dss.topic("orders").publish({"id": 42})

pytest imports this module in every run, so it imports the rest only when a test asks for a fixture. What the fixtures do is in
docs/reference/client.md of the project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dss_client import AsyncClient, Client
    from pytest_dss.nodes import Cluster


@pytest.fixture(scope="session")
def dss_environment() -> Mapping[str, str]:
    """Settings of the nodes. Override it to change them: `{"DSS_API_TOKEN": "secret"}`."""
    return {}


@pytest.fixture(scope="session")
def _dss_nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dss_environment: Mapping[str, str]
) -> Iterator[Any]:
    """What starts and stops the nodes of this run."""
    from pytest_dss.nodes import Nodes, NotStarted

    cache = getattr(request.config, "cache", None)
    try:
        nodes = Nodes(tmp_path_factory.mktemp("dss"), dss_environment, cache.mkdir("dss") if cache is not None else None)
    except NotStarted as error:
        pytest.fail(str(error), pytrace=False)
    yield nodes
    nodes.close()


@pytest.fixture(scope="session")
def _dss_one(_dss_nodes: Any) -> Iterator[Cluster]:
    yield from _started(_dss_nodes, 1)


@pytest.fixture
def dss_url(_dss_one: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of one real node, which the whole test run shares. DSS_URLS names it. After the test, the node is emptied."""
    _name_it(_dss_one, monkeypatch)
    yield _dss_one.urls
    _dss_one.empty()


@pytest.fixture
def dss(dss_url: str, _dss_one: Cluster) -> Iterator[Client]:
    """A client of one real node. After the test, the client is closed and the node is emptied."""
    client = _dss_one.client()
    yield client
    client.close()


@pytest.fixture
def dss_async(dss_url: str, _dss_one: Cluster) -> Iterator[AsyncClient]:
    """An asyncio client of one real node. After the test, the client is closed and the node is emptied."""
    from pytest_dss.closing import close

    client = _dss_one.async_client()
    yield client
    close(client)


@pytest.fixture(scope="session")
def _dss_three(_dss_nodes: Any) -> Iterator[Cluster]:
    yield from _started(_dss_nodes, 3)


@pytest.fixture
def dss_cluster(_dss_three: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three real nodes, which a test may kill, pause and start again. DSS_URLS names them.

    After the test, the cluster is emptied. If the test has stopped a node, the next test gets another cluster.
    """
    _dss_three.start()
    _name_it(_dss_three, monkeypatch)
    yield _dss_three
    _dss_three.heal()


def _started(nodes: Any, size: int) -> Iterator[Cluster]:
    from pytest_dss.nodes import NotStarted

    try:
        cluster: Cluster = nodes.start(size)
    except NotStarted as error:
        pytest.fail(str(error), pytrace=False)
    yield cluster
    cluster.kill()


def _name_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSS_URLS", cluster.urls)
    if cluster.token:
        monkeypatch.setenv("DSS_TOKEN", cluster.token)
    else:
        monkeypatch.delenv("DSS_TOKEN", raising=False)
