"""The client's tests without a node, with the other versions of Python that it supports.

A version that is not installed here is skipped. The libraries are those of this environment, as far as they are pure Python. The others
are installed for the version once, and kept in pytest's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from dss_dev.local_cluster import ROOT
from dss_dev.pythons import find_python

SUPPORTED = ("3.11", "3.12", "3.13")
OTHERS = [number for number in SUPPORTED if number != f"{sys.version_info.major}.{sys.version_info.minor}"]
FILES = [
    "test_calls.py",
    "test_frames.py",
    "test_locks.py",
    "test_near.py",
    "test_near_client.py",
    "test_watch.py",
    "test_worker.py",
]
#: Those that wait for seconds show nothing about the version.
SLOW = "not renew and not without_leader and not node_of_another_cluster"
OPTIONS = ["-q", "-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider", "-k", SLOW]
INI = ["asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function", "addopts=--import-mode=importlib"]
COMPILED = ("hypothesis", "msgspec")


def install_compiled(number: str, directory: Path) -> str:
    """Install the same releases for another version of Python. Returns why that is not possible."""
    wanted = [f"{name}=={version(name)}" for name in COMPILED]
    done = directory / "installed"
    if done.exists() and done.read_text() == " ".join(wanted):
        return ""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--upgrade",
        "--target",
        str(directory),
    ]
    command += ["--only-binary=:all:", "--no-deps", "--python-version", number, *wanted]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        return f"the libraries for Python {number} cannot be installed here: {installed.stderr.strip().splitlines()[-1]}"
    done.write_text(" ".join(wanted))
    return ""


def start_tests(python: str, compiled: Path, directory: Path) -> subprocess.Popen[str]:
    path = [compiled, ROOT / "client", ROOT, ROOT / "raft", Path(msgspec.__file__).parents[1]]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))},
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        # Kept for later runs, even where Python keeps no bytecode: compiling pytest and the client takes a third of the run.
        "PYTHONPYCACHEPREFIX": str(compiled / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    command = [python, "-W", "ignore", "-m", "pytest", *OPTIONS, "-c", os.devnull, f"--rootdir={ROOT}"]
    command += [f"--confcutdir={ROOT / 'tests' / 'client'}", f"--basetemp={directory / 'inner'}"]
    command += [option for line in INI for option in ("-o", line)]
    command += [str(ROOT / "tests" / "client" / file) for file in FILES]
    with (directory / "log").open("w") as log:
        return subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | Path]:
    """For each version, the directory of its run, or why there is none. The runs go on at the same time: the tests mostly wait."""
    runs: dict[str, str | Path] = {}
    processes = []
    for number in OTHERS:
        python = find_python(number)
        if python is None:
            runs[number] = f"Python {number} is not installed here"
            continue
        assert request.config.cache is not None
        compiled = request.config.cache.mkdir(f"libraries-for-{number}")
        if why := install_compiled(number, compiled):
            runs[number] = why
            continue
        runs[number] = directory = tmp_path_factory.mktemp(f"python{number}")
        processes.append(start_tests(python, compiled, directory))
    for process in processes:
        process.wait()
    return runs


@pytest.mark.parametrize("number", OTHERS)
def test_the_client_with_another_python(runs: dict[str, str | Path], number: str) -> None:
    run = runs[number]
    if isinstance(run, str):
        pytest.skip(run)
    log = (run / "log").read_text()
    summary = log.splitlines()[-1]
    assert " passed" in summary, log[-8000:]
    assert "failed" not in summary, log[-8000:]
    assert "error" not in summary, log[-8000:]
