"""For every test: the answers of the real operations have the fields and types that their Structs declare.

For the workers of `make test`: a file goes to one worker, because its tests may share their nodes; only the simulations are spread.
Files that use the ports of `make run` go to the same worker. Files that wait for nodes come first, each followed by one that computes: so
the processors are busy from the start, and no worker waits at the end for another one's nodes. Browsers and clusters that change the
machine's network wait for each other (`dss_dev.network_changes`): the browsers come before all such clusters.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from dss_dev.answer_check import checked
from dss_dev.compiled_tests import compile_packages, compile_tests
from dss_dev.local_cluster import LocalNode
from dss_dev.preloaded import Pool, SharedPool
from dss_dev.rounds import ROUNDS, wait_for_a_moment

OPERATIONS = ("health", "ready", "raft.", "requests.", "locks.", "queue.", "cache.")


#: files whose tests use the ports of `make run`, or look for a cluster there
ON_FIXED_PORTS = (
    "test_command_line",
    "test_compose",
    "test_find_cluster",
    "test_local_members",
    "test_members",
    "test_readme",
    "test_runbooks",
    "test_startup",
)
IN_BROWSER = (
    "tests/cluster/test_page_security.py",
    "tests/cluster/test_lab.py",
    "tests/cluster/test_cluster_page.py",
    "tests/cluster/test_users.py",
)
#: where tests mostly wait: for nodes, servers and other processes; those that take longest first
WITH_NODES = ("tests/cluster/", "tests/client/", "tests/examples/", "tests/fuzz/", "tests/raft/", "tests/queue/redis_engine/")
FIRST = ("fixed ports", *IN_BROWSER)
#: the rank of the tests that wait and must come last
CHANGES_NETWORK = len(FIRST) + len(WITH_NODES)

_POOL = pytest.StashKey[SharedPool]()

#: A busy machine may stand still for a moment in any example: how long one takes says nothing.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

#: The nodes that run in a test's process log the faults that they meet. By default, each would be coloured with its source and variables.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback


def pytest_configure(config: pytest.Config) -> None:
    """Compile once what each of the workers and nodes would compile again."""
    if not hasattr(config, "workerinput"):
        compile_packages(config.rootpath)
        if config.getoption("numprocesses", None):
            compile_tests(config)
            config.stash[_POOL] = SharedPool(hashes_quickly=True)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """The workers share the processes from which nodes are forked."""
    if _POOL in node.config.stash:
        node.workerinput["pool"] = str(node.config.stash[_POOL].folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _POOL in config.stash:
        config.stash[_POOL].close()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported and collected stays until the end: let garbage collections, which tests cause, not look at it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """See the module. The groups of pytest-xdist 3.8 have no effect with pytest 9.2."""
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


def _scope(nodeid: str) -> str:
    """The tests of a scope go to the same worker."""
    path = nodeid.partition("::")[0]
    if Path(path).stem in ON_FIXED_PORTS:
        return "fixed ports"
    return nodeid if _is_computed(path) else path


def _is_computed(path: str) -> bool:
    """Whether these tests only compute, and share nothing."""
    return "/simulation/" in path or path.endswith("cache/test_model.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See the module."""
    scopes: dict[str, list[pytest.Item]] = {"fixed ports": []}
    for item in items:
        scopes.setdefault(_scope(item.nodeid), []).append(item)
    ranks = {scope: _rank(scope, inside) for scope, inside in scopes.items()}
    waiting = sorted((scope for scope in scopes if ranks[scope] <= CHANGES_NETWORK), key=ranks.__getitem__)
    computing = sorted((scope for scope in scopes if ranks[scope] > CHANGES_NETWORK), key=ranks.__getitem__)
    ordered = [scope for pair in zip_longest(waiting, computing) for scope in pair if scope]
    items[:] = [item for scope in ordered for item in scopes[scope]]


def _rank(scope: str, items: list[pytest.Item]) -> int:
    """The place of a scope among all: those that wait, in the order of the module, those that only compute, the rest."""
    if scope in FIRST:
        return FIRST.index(scope)
    if any("make_partitioned_cluster" in item.fixturenames for item in items if isinstance(item, pytest.Function)):
        return CHANGES_NETWORK
    if _is_computed(scope.partition("::")[0]):
        return CHANGES_NETWORK + 1
    folders = (rank for rank, folder in enumerate(WITH_NODES, len(FIRST)) if scope.startswith(folder))
    return next(folders, CHANGES_NETWORK + 2)


@pytest.fixture(scope="session", autouse=True)
def _nodes_start_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """See `dss_dev.preloaded`."""
    shared = getattr(request.config, "workerinput", {}).get("pool")
    LocalNode.pool = pool = Pool(hashes_quickly=True, shared=Path(shared) if shared else None)
    yield
    LocalNode.pool = None
    pool.close()


@pytest.fixture
def round_number() -> int:
    """1, 2, … in the rounds of a test with the mark `rounds`."""
    return 1


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the tests with the mark `rounds` TEST_ROUNDS times."""
    if ROUNDS > 1 and metafunc.definition.get_closest_marker("rounds"):
        metafunc.fixturenames.append("round_number")
        metafunc.parametrize("round_number", range(1, ROUNDS + 1))


@pytest.fixture(autouse=True)
def _faults_come_at_random_moments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rounds, a node is stopped, killed or paused after a random time. `rounds(kills=True)`: some clean stops are kills instead."""
    mark = request.node.get_closest_marker("rounds")
    if mark is None or ROUNDS == 1:
        return
    stop, kill, pause = LocalNode.stop, LocalNode.kill, LocalNode.pause

    def stop_or_kill(node: LocalNode, *arguments: Any, **options: Any) -> int | None:
        wait_for_a_moment()
        if mark.kwargs.get("kills") and random.random() < 0.5:
            kill(node)
        return stop(node, *arguments, **options)

    def later(action: Callable[[LocalNode], None]) -> Callable[[LocalNode], None]:
        def act(node: LocalNode) -> None:
            wait_for_a_moment()
            action(node)

        return act

    monkeypatch.setattr(LocalNode, "stop", stop_or_kill)
    monkeypatch.setattr(LocalNode, "kill", later(kill))
    monkeypatch.setattr(LocalNode, "pause", later(pause))


@pytest.fixture(autouse=True)
def _answers_are_as_declared() -> Iterator[None]:
    with checked(OPERATIONS):
        yield
