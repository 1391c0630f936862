"""The example of the README runs from the wheel, in a virtual environment that has nothing but what the wheel asks for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dss_client import Client
from dss_dev.local_cluster import ROOT, LocalCluster

pytestmark = pytest.mark.cluster
BUILD = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"


def dependencies(name: str) -> Iterator[str]:
    """The distributions that a distribution needs, and those that they need."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name
            yield from dependencies(requirement.name)


def install(name: str, directory: Path) -> None:
    """Copy a distribution of this environment, as pip installs it."""
    for file in distribution(name).files or ():
        if ".." not in file.parts:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(str(file.locate())), directory / file)


def plugin_needs_the_server(python: Path, packages: Path, directory: Path) -> None:
    """pytest finds the plugin, which says that the node's distribution is missing."""
    for name in {"pytest", *dependencies("pytest")}:
        install(name, packages)
    (directory / "test_it.py").write_text("def test_it(dss): ...")
    run = [python, "-m", "pytest", "-q", "test_it.py", "-c", os.devnull]
    ran = subprocess.run(run, cwd=directory, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    assert "distributed-sync-system, is not installed here" in ran.stdout


def test_the_example_of_the_readme(real_node: LocalCluster, token: str, tmp_path: Path) -> None:
    url = real_node.nodes[0].url
    build = [sys.executable, "-c", BUILD, str(tmp_path)]
    wheel = tmp_path / subprocess.run(build, cwd=ROOT / "client", check=True, capture_output=True, text=True).stdout.strip()
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    for name in {*dependencies("dss-client")}:
        install(name, packages)
    assert (packages / "dss_client" / "py.typed").exists()
    assert (packages / "pytest_dss" / "guard.py").exists()

    plugin_needs_the_server(python, packages, tmp_path)

    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    example, count = re.subn(r"http://[\d.:]+(,http://[\d.:]+)*", url, example)
    assert count == 1
    environment = {"DSS_TOKEN": token, "PATH": os.environ["PATH"]}
    with (
        subprocess.Popen([python, "-c", example], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process,
        Client(url, token) as dss,
    ):
        (invoice,) = dss.topic("invoices").consume("the example", wait=10)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
        assert re.fullmatch(r"the resource refuses tokens below \d+\n", output)
        assert process.returncode == 0
        assert invoice.value == {"id": 42}
        assert dss.cache.get("page") == "<html>"
        assert not dss.lock("orders/42").locked()
        assert dss.topic("orders").stats()["groups"][0]["acked"] == 1
