"""The fixtures of `pytest_dss`, in test runs of their own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dss_client import AsyncClient
from pytest_dss.closing import close

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.cluster

INI = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"

ONE_NODE = """
import os, threading
from pathlib import Path
import pytest
from dss_client import Client, LockHeld

@pytest.fixture(scope="session")
def dss_environment():
    return {"DSS_API_TOKEN": "secret"}

def test_everything_is_used(dss, dss_url):
    Path(os.environ["REPORT"]).joinpath(os.environ["PYTEST_XDIST_WORKER"]).write_text(dss_url)
    held = dss.lock("left behind", ttl=None, lock_delay=60).acquire()
    Client().lock("left behind, too", ttl=None).acquire()
    dss.topic("orders").publish({"id": 42})
    for start in (0, 600):
        dss.cache.mput({f"key {number}": number for number in range(start, start + 600)})
    assert os.environ["DSS_URLS"] == dss_url
    assert os.environ["DSS_TOKEN"] == "secret"

def test_it_is_empty(dss):
    assert not dss.lock("left behind").locked()
    with dss.lock("left behind", wait=0), dss.lock("left behind, too", wait=0):
        pass
    assert dss.call("queue.stats")["topics"] == []
    assert dss.cache.mget([f"key {number}" for number in range(0, 1200, 100)]) == {}

async def test_async(dss_async):
    lock = dss_async.lock("async")
    await lock.acquire()
    await dss_async.cache.put("async", 1)

async def test_after_async(dss_async):
    assert await dss_async.cache.get("async") is None
    async with dss_async.lock("async", wait=0):
        pass

def test_no_client_was_used(dss_url):
    with Client() as dss:
        assert dss.cache.get("async") is None
"""

THREE_NODES = """
import pytest

seen = set()

def test_nodes_fail(dss_cluster):
    seen.update(node.pid for node in dss_cluster.nodes)
    with dss_cluster.client() as dss:
        dss.cache.put("page", 1)
        paused = dss_cluster.followers()[0]
        paused.pause()
        assert dss.cache.incr("count") == 1
        paused.resume()
        dss_cluster.wait_ready()
        with dss.lock("kept", ttl=30) as held:
            leader = dss_cluster.leader()
            leader.kill()
            assert not leader.is_running
            assert dss_cluster.leader() is not leader
            assert dss.cache.incr("count") == 2
            assert not held.lost.is_set()
            leader.start()
            assert leader.is_ready()

def test_the_nodes_are_others(dss_cluster):
    assert not seen & {node.pid for node in dss_cluster.nodes}
    with dss_cluster.client() as dss:
        assert dss.cache.get("page") is None
        dss.cache.put("page", 2)
        seen.update(node.pid for node in dss_cluster.nodes)

def test_the_nodes_are_the_same(dss_cluster):
    assert seen >= {node.pid for node in dss_cluster.nodes}
    with dss_cluster.client() as dss:
        assert dss.cache.get("page") is None
"""

HANGS = """
import os, time
from pathlib import Path

def test_hangs(_dss_one):
    Path(os.environ["REPORT"]).joinpath("made").write_text(str(_dss_one.nodes[0].pid))
    Path(os.environ["REPORT"]).joinpath("made").rename(Path(os.environ["REPORT"]) / "pid")
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The runs share what the plugin keeps for later runs."""
    return ["-o", f"cache_dir={tmp_path_factory.mktemp('cache')}"]


@pytest.fixture
def report(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the inner run writes."""
    pytester.makefile(".ini", pytest=INI)
    directory = tmp_path / "report"
    directory.mkdir()
    monkeypatch.setenv("REPORT", str(directory))
    # The other plugins of this environment take seconds to import.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "pytest_dss,pytest_asyncio.plugin,xdist.plugin")
    # It must not reach the nodes.
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "no_such_module")
    monkeypatch.setenv("DSS_DATA_DIR", "/nowhere")
    return directory


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_worker_has_a_node_that_each_test_finds_empty(pytester: pytest.Pytester, report: Path, options: list[str]) -> None:
    pytester.makepyfile(ONE_NODE)
    result = pytester.runpytest_subprocess(*options, "-n", "2", "--dist", "each")
    result.assert_outcomes(passed=10)
    assert (report / "gw0").read_text() != (report / "gw1").read_text()


def test_three_nodes(pytester: pytest.Pytester, report: Path, options: list[str]) -> None:
    pytester.makepyfile(THREE_NODES)
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=3)


def test_no_node_outlives_a_killed_run(pytester: pytest.Pytester, report: Path, options: list[str]) -> None:
    path = pytester.makepyfile(HANGS)
    run = subprocess.Popen([sys.executable, "-m", "pytest", str(path), *options], cwd=pytester.path)
    deadline = time.monotonic() + 60
    while not (report / "pid").exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pid = int((report / "pid").read_text())
    assert is_running(pid)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.filterwarnings("error")
def test_a_client_whose_event_loop_is_closed(make_fake_node: Callable[[], Any]) -> None:
    """As anyio leaves it."""
    node, loop = make_fake_node(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(node.start(), loop).result(60)
    clients = [AsyncClient(node.url)]
    asyncio.run(clients[0].call("health"))
    close(clients.pop())
    gc.collect()
    asyncio.run_coroutine_threadsafe(node.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_without_the_servers_distribution(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    monkeypatch.setattr("pytest_dss.nodes.find_spec", lambda name: None)
    pytester.makepyfile("def test_one(dss): ...\ndef test_three(dss_cluster): ...")
    result = pytester.runpytest_inprocess(*options, "-p", "no:asyncio", "-p", "no:django")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines('*distributed-sync-system, is not installed here. Install it, or "dss-client*testing*"*')
    assert "Traceback" not in result.stdout.str()


def test_a_run_that_does_not_use_it_imports_nothing(pytester: pytest.Pytester, options: list[str]) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_nothing():
            assert "pytest_dss" in sys.modules
            assert not {"dss_client", "httpx", "msgspec", "websockets", "dss_project"} & {*sys.modules}
        """
    )
    heavy = ["-p", "no:schemathesis", "-p", "no:hypothesispytest", "-p", "no:locust", "-p", "no:django"]
    pytester.runpytest_subprocess(*options, *heavy).assert_outcomes(passed=1)
