"""The node that hostile clients attack, and the report of what happened to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dss_dev.checkouts import tested_checkout
from dss_dev.confinement import Confinement, Limits
from dss_dev.hostile import LIMITS, PATIENCE_S, SETTINGS, STATE_LIMITS, Probe
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports

_report: list[str] = []


@pytest.fixture(scope="session", params=["daphne", "uvicorn"])
def node(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, small_node: dict[str, str]
) -> Iterator[LocalNode]:
    """One small node that must survive all tests, and then stop cleanly."""
    server = request.param
    with Confinement(LIMITS, server) as confinement:
        port, sqs = free_ports(2)
        environment = {**small_node, "DSS_SERVER": server, "DSS_SQS_PORT": str(sqs)}
        cluster = LocalCluster(tmp_path_factory.mktemp(server), [port], environment, confinement.arguments)
        cluster.start()
        (only,) = cluster.nodes
        try:
            cluster.wait_ready()
            if tested_checkout() is None:
                # An older release has no such call. Its nodes must fail at what the tests are about.
                # A new node has the limits of its latest version a moment after it is ready.
                while not STATE_LIMITS.keys() <= {one["name"] for one in only.call("GET", "/raft/limits").json["limits"]}:
                    time.sleep(0.05)
                assert only.call("PUT", "/raft/limits", {"limits": STATE_LIMITS}).status == 200
            _report.append(f"{server}: {'; '.join(confinement.notes)}")
            yield only
            assert only.stop(PATIENCE_S) == 0, only.log_tail()
        finally:
            only.kill()


@pytest.fixture(scope="session")
def small_node() -> dict[str, str]:
    """The settings of a small node."""
    return {"DSS_ADMIN_PASSWORD": "test", "DSS_LOG_FORMAT": "json", **SETTINGS}


@pytest.fixture(scope="session")
def limits() -> Limits:
    """What a small node gets."""
    return LIMITS


@pytest.fixture
def probe(node: LocalNode, request: pytest.FixtureRequest) -> Iterator[Callable[..., Probe]]:
    """`with probe():` a client at another address must be answered inside. See `Probe`."""
    probes: list[Probe] = []

    def make(budget_bytes: int = 0) -> Probe:
        probes.append(Probe(node, LIMITS, budget_bytes))
        return probes[-1]

    yield make
    for one in probes:
        _report.append(f"{one.summary}  {request.node.name}")
        _report.extend(f"    not ready: {reason}" for reason in sorted(set(one.not_ready))[:2])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _report:
        terminalreporter.section("hostile clients")
        for line in _report:
            terminalreporter.write_line(line)


@pytest.fixture
def set_limits(node: LocalNode) -> Iterator[Callable[..., None]]:
    """`set_limits(lock_bytes_max=…)`, until the end of the test."""

    def set_them(**limits: int) -> None:
        assert node.call("PUT", "/raft/limits", {"limits": limits}).status == 200

    yield set_them
    if node.is_running:
        set_them(**STATE_LIMITS)
