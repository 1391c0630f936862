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
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dss_client import Client
from dss_dev.local_cluster import ROOT, LocalCluster

pytestmark = pytest.mark.cluster
BUILD = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"


def dependencies(name: str, extra: str = "") -> Iterator[str]:
    """The distributions that a distribution needs, and those that they need."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement.name
            yield from dependencies(requirement.name)


def install(name: str, directory: Path) -> None:
    """Copy a distribution of this environment, as pip installs it."""
    for file in distribution(name).files or ():
        if ".." not in file.parts:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(str(file.locate())), directory / file)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that has the wheel and what it asks for."""
    directory = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-c", BUILD, str(directory)]
    wheel = directory / subprocess.run(build, cwd=ROOT / "client", check=True, capture_output=True, text=True).stdout.strip()
    venv.create(directory / "venv", symlinks=True)
    zipfile.ZipFile(wheel).extractall(packages_of(directory / "venv"))
    for name in {*dependencies("dss-client")}:
        install(name, packages_of(directory / "venv"))
    return directory / "venv" / "bin" / "python"


def packages_of(environment: Path) -> Path:
    (packages,) = (environment / "lib").glob("python3*/site-packages")
    return packages


def test_it_is_typed(python: Path) -> None:
    for name in ("dss_client", "dss_cli", "pytest_dss"):
        assert (packages_of(python.parent.parent) / name / "py.typed").exists()


def test_the_command_line_needs_its_extra(python: Path) -> None:
    # What pip writes into the script `dss`.
    script = "import sys; from dss_cli.command_line import main; sys.exit(main())"
    without = subprocess.run([python, "-c", script, "--version"], capture_output=True, text=True, check=False)
    assert without.stderr == "dss needs packages that are not installed here: pip install 'dss-client[cli]'\n"
    assert (without.returncode, without.stdout) == (1, "")
    for name in {*dependencies("dss-client", "cli")} - {*dependencies("dss-client")}:
        install(name, packages_of(python.parent.parent))
    done = subprocess.run([python, "-c", script, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"dss {distribution('dss-client').version}\n", done.stderr
    described = entry_points(group="console_scripts", name="dss")
    assert [one.value for one in described] == ["dss_cli.command_line:main"]


def test_the_plugin_says_that_the_server_is_missing(python: Path, tmp_path: Path) -> None:
    for name in {"pytest", *dependencies("pytest")}:
        install(name, packages_of(python.parent.parent))
    (tmp_path / "test_it.py").write_text("def test_it(dss): ...")
    run = [python, "-m", "pytest", "-q", "test_it.py", "-c", os.devnull]
    ran = subprocess.run(run, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "distributed-sync-system, is not installed here" in ran.stdout


def test_the_server_needs_this_version_of_the_client() -> None:
    needed = [Requirement(text) for text in distribution("distributed-sync-system").requires or ()]
    assert [str(one.specifier) for one in needed if one.name == "dss-client"] == [f"=={distribution('dss-client').version}"]


def test_the_example_of_the_readme(python: Path, real_node: LocalCluster, token: str, tmp_path: Path) -> None:
    url = real_node.nodes[0].url
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    example, count = re.subn(r"http://[\d.:]+(,http://[\d.:]+)*", url, example)
    assert count == 1
    environment = {"DSS_TOKEN": token, "PATH": os.environ["PATH"]}
    with (
        subprocess.Popen([python, "-c", example], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process,
        Client(url, token) as dss,
    ):
        try:
            # A new interpreter may take long on a busy machine.
            calls = (dss.topic("invoices").consume("the example", wait=20) for _ in range(3))
            (invoice,) = next(filter(None, calls))
        except BaseException:
            # Leaving the block waits for the process, which would run on.
            process.kill()
            raise
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert re.fullmatch(r"the resource refuses tokens below \d+\n", output)
        assert process.returncode == 0
        assert invoice.value == {"id": 42}
        assert dss.cache.get("page") == "<html>"
        assert not dss.lock("orders/42").locked()
        assert dss.topic("orders").stats()["groups"][0]["acked"] == 1
