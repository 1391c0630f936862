"""Processes forked from one that has the libraries loaded are as those that an interpreter was started for."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from dss_dev.local_partitions import why_not
from dss_dev.preloaded import ROOT, SIZE, ForkedProcess, Pool, SharedPool

Start = Callable[..., ForkedProcess]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


@pytest.fixture
def start(pool: Pool, tmp_path: Path) -> Start:
    def run(code: str, *arguments: str, **environment: str) -> ForkedProcess:
        (tmp_path / "script.py").write_text(code)
        with (tmp_path / "output").open("ab") as output:
            return pool.start(["script.py", *arguments], tmp_path, {"A": "1", **environment}, output.fileno())

    return run


@pytest.mark.parametrize(
    ("code", "exit_code", "output"),
    [
        ("import os, sys; print(sys.argv, dict(os.environ), os.getcwd())", 0, "['script.py', 'x'] {'A': '1'} {folder}\n"),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("import os; print(os.getsid(0) == os.getpid(), os.read(0, 1))", 0, "True b''\n"),
        ("import neighbour; print(neighbour.__file__)", 0, "{folder}/neighbour.py\n"),
        ("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:4])", 0, "[0, 1, 2, 3]\n"),
        ("from dss_api.token_text import token_key as key; print(key.cache_info().currsize)", 0, "0\n"),
        ("import signal; print(signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)", 0, "True\n"),
    ],
)
def test_it_runs_as_a_script_does(start: Start, tmp_path: Path, code: str, exit_code: int, output: str) -> None:
    (tmp_path / "neighbour.py").write_text("")
    assert start(code, "x").wait(60) == exit_code
    assert (tmp_path / "output").read_text() == output.replace("{folder}", str(tmp_path))


KEYS = """
from dss_api.token_text import token_key
from dss_raft.net.certificates import authority
authority("a"), authority("b"), token_key("a"), token_key("b"), token_key("c")
print(authority.cache_info().misses, token_key.cache_info().misses)
"""


def test_the_keys_of_a_secret_are_derived_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KEYS)
    environment = {"DSS_CLUSTER_SECRET": "a", "DSS_CLUSTER_SECRET_PREVIOUS": "b", "DSS_TOKEN_KEY": "c"}
    pool = Pool(1)
    try:
        # A miss is of the process that the script is forked from.
        assert [pool.run(["script.py"], tmp_path, environment, 60).stdout for _ in range(2)] == ["2 3\n"] * 2
    finally:
        pool.close()


@pytest.mark.parametrize("hashes_quickly", [False, True])
def test_hashes_are_only_quick_if_asked_for(tmp_path: Path, hashes_quickly: bool) -> None:
    (tmp_path / "script.py").write_text(
        "from django.contrib.auth.hashers import PBKDF2PasswordHasher as hasher; print(hasher.iterations)"
    )
    pool = Pool(1, hashes_quickly=hashes_quickly)
    try:
        iterations = int(pool.run(["script.py"], tmp_path, {}, 60).stdout)
    finally:
        pool.close()
    assert iterations == (1 if hashes_quickly else PBKDF2PasswordHasher.iterations)


def test_it_runs_under_limits(pool: Pool, tmp_path: Path) -> None:
    """As `Confinement.arguments`: a number of descriptors, and files that get the id of the process."""
    (tmp_path / "script.py").write_text("import os, resource as r; print(os.getpid(), *r.getrlimit(r.RLIMIT_NOFILE))")
    with (tmp_path / "output").open("wb") as output:
        process = pool.start(["script.py"], tmp_path, {}, output.fileno(), confinement=["99", str(tmp_path / "cgroup.procs")])
    assert process.wait(60) == 0
    assert (tmp_path / "output").read_text() == f"{process.pid} 99 99\n"
    assert (tmp_path / "cgroup.procs").read_text() == str(process.pid)


def test_it_runs_in_a_network_namespace(pool: Pool, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    name = f"dss-test-{os.getpid()}"
    (tmp_path / "script.py").write_text("import os; print(os.readlink('/proc/self/ns/net'))")
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        expected = subprocess.run(
            ["ip", "netns", "exec", name, "readlink", "/proc/self/ns/net"], check=True, capture_output=True, text=True
        ).stdout
        with (tmp_path / "output").open("wb") as output:
            process = pool.start(["script.py"], tmp_path, {}, output.fileno(), namespace=name)
        assert process.wait(60) == 0
        assert (tmp_path / "output").read_text() == expected != f"{os.readlink('/proc/self/ns/net')}\n"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_a_traceback_goes_to_its_output(start: Start, tmp_path: Path) -> None:
    assert start("1 / 0").wait(60) == 1
    assert (tmp_path / "output").read_text().endswith("ZeroDivisionError: division by zero\n")


def test_it_can_be_signalled_and_waited_for(start: Start) -> None:
    process = start("import time; time.sleep(600)")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait(60) == process.poll() == -signal.SIGKILL
    process.terminate()  # a process that has ended is left alone


def test_two_that_start_after_each_other_differ_in_their_hash_seeds(start: Start, tmp_path: Path) -> None:
    for _ in range(2):
        assert start("print(hash('a'))", **os.environ).wait(60) == 0
    assert len(set((tmp_path / "output").read_text().split())) == 2


def test_what_an_interpreter_reads_at_its_start_has_its_effect(pool: Pool, tmp_path: Path) -> None:
    """Processes with the same of these settings are forked from the same one, and others are not."""
    (tmp_path / "sitecustomize.py").write_text("import os; started_in = os.getpid()")
    (tmp_path / "script.py").write_text("import os, sitecustomize as s; print(os.environ['A'], getattr(s, 'started_in', None))")
    found = [
        pool.run(["script.py"], tmp_path, {**os.environ, "A": a, **path}, 60).stdout.split()
        for a, path in (("1", {"PYTHONPATH": str(tmp_path)}), ("2", {}), ("3", {"PYTHONPATH": str(tmp_path)}))
    ]
    assert [a for a, _ in found] == ["1", "2", "3"]
    assert found[0][1] == found[2][1] != found[1][1]


def test_nodes_of_another_checkout_run_its_code_if_it_is_loaded_in_the_same_way(pool: Pool, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "dss_dev", other / "dss_dev", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "dss_project").symlink_to(ROOT / "dss_project")
    (other / "dss_api").mkdir()
    for file in (ROOT / "dss_api").iterdir():
        (other / "dss_api" / file.name).symlink_to(file)
    (other / "script.py").write_text("import os, dss_api; print(dss_api.__file__, os.getcwd())")
    assert Pool.can_load(other, Path(sys.executable))
    with (tmp_path / "output").open("wb") as output:
        process = pool.start(["script.py"], other, dict(os.environ), output.fileno(), root=other)
    assert process.wait(60) == 0
    assert (tmp_path / "output").read_text() == f"{other / 'dss_api' / '__init__.py'} {other}\n"
    assert not Pool.can_load(other, tmp_path / "python")
    (other / "dss_dev" / "fork_server.py").write_text("MODULES = ()")
    assert not Pool.can_load(other, Path(sys.executable))
    assert not Pool.can_load(tmp_path, Path(sys.executable))


def test_pools_of_several_processes_share_what_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os; print(os.getppid(), os.environ['A'])")
    shared = SharedPool()
    try:
        one, two = Pool(shared=shared.folder), Pool(shared=shared.folder)
        found = {}
        for name, pool in (("one", one), ("two", two)):
            lines = [pool.run(["script.py"], tmp_path, {**os.environ, "A": name}, 60).stdout.split() for _ in range(SIZE)]
            assert [said for _, said in lines] == [name] * SIZE
            found[name] = [parent for parent, _ in lines]
        assert found["one"] == found["two"], "each has the same ones, in turns"
        assert len(set(found["one"])) == SIZE
        data = one.new_data()
        one.close()
        assert (two.new_data(), (data / "django.sqlite3").stat().st_mode & 0o777) == (data, 0o600)
        assert two.run(["script.py"], tmp_path, {**os.environ, "A": "two"}, 60).returncode == 0, (
            "it is there after another pool was closed"
        )
        two.close()
    finally:
        shared.close()
    assert not shared.folder.exists()


FORKS = """
import os, time
from pathlib import Path
from dss_dev.preloaded import fork_here, pool_here
fork_here()
here = Path.cwd()
print(pool_here().run([str(here / "child.py"), "x"], here / "folder", {**os.environ, "B": "2"}, 60).stdout, flush=True)
with open("/dev/null") as nothing:
    sleeping = pool_here().start([str(here / "sleeping.py")], here, os.environ, nothing.fileno())
print("started", sleeping.pid, flush=True)
time.sleep(600)
"""
CHILD = """
import os, sys
import psutil
from django.apps import apps
print(sys.argv[1:], os.environ["B"], os.path.basename(os.getcwd()), os.read(0, 1), apps.ready, os.getsid(0) == os.getpid(), end=" ")
print(psutil.Process(os.getppid()).ppid())
"""


def test_a_script_is_forked_itself_and_what_it_starts_ends_with_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "sleeping.py").write_text("import time; time.sleep(600)")
    process = start(FORKS, **os.environ)
    output = tmp_path / "output"
    while "started" not in output.read_text():
        assert process.poll() is None, output.read_text()
        time.sleep(0.02)
    said, started = output.read_text().strip().splitlines()[0], output.read_text().split()[-1]
    assert said == f"['x'] 2 folder b'' False True {process.pid}"
    sleeping = psutil.Process(int(started))
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    if sys.platform == "linux":
        sleeping.wait(60)


def test_no_event_loop_is_there_before_the_fork() -> None:
    code = "import sys, dss_dev.fork_server as f; f.load(); print('twisted.internet.reactor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
