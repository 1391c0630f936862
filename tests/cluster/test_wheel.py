"""The wheel: installed elsewhere, `dss-node` runs a node in an empty directory, without the code for development."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from dss_dev.local_cluster import ROOT, LocalNode, free_ports

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh virtual environment that has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(ROOT / "client"), str(ROOT)], check=True
    )
    wheels = list(map(str, folder.glob("*.whl")))
    assert len(wheels) == 2
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", *offline, *wheels], check=True)
    (site_packages,) = folder.glob("venv/lib/python*/site-packages")
    # After the installation, because pip would otherwise see this project as installed already.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def in_empty_directory(installed: Path, directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(installed / command[0]), *command[1:]], cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_wheel_has_the_service_and_nothing_for_development(installed: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.util, os; os.environ['DJANGO_SETTINGS_MODULE'] = 'dss_project.settings'\n"
        "from django.conf import settings\n"
        "print(importlib.util.find_spec('dss_dev'), 'dss_dev' in settings.INSTALLED_APPS, importlib.util.find_spec('dss_project').origin)"
    )
    done = in_empty_directory(installed, tmp_path, "python", "-c", program)
    assert done.stdout.startswith("None False "), done.stderr
    assert str(installed.parent) in done.stdout, "not the checkout"
    assert "DSS_CLUSTER_SECRET" in in_empty_directory(installed, tmp_path, "dss-node", "--help").stdout
    assert list(tmp_path.iterdir()) == [], "neither leaves anything behind"


def test_dss_node_runs_in_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    node = LocalNode("node-1", port, {}, tmp_path / "log")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DSS_", "RPC_", "NODE_"))}
    with node.log_path.open("wb") as log:
        node.process = subprocess.Popen(
            [str(installed / "dss-node")], cwd=tmp_path, env={**inherited, "RPC_PORT": str(port)}, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not node.is_ready():
            assert node.is_running, node.log_tail()
            assert time.monotonic() < deadline, node.log_tail()
            time.sleep(0.05)
        assert node.call("GET", "/health").json == {"ok": True, "node": "node-1", "services": {"queue.engine": "none"}}
        assert node.call("POST", "/lock/acquire", {"key": "a", "client": "c"}).json["ok"] is True
        page = node.call("GET", "/", headers={"Accept": "text/html"})
        assert (page.status, b"node-1 leads" in page.body) == (200, True)
        assert node.call("GET", "/static/admin/css/base.css").status == 200
        assert (tmp_path / ".dss" / "node-1" / "django.sqlite3").exists()
        status = in_empty_directory(installed, tmp_path, "dss-node", "status", "--url", node.url)
        assert "leader: node-1" in status.stdout, status.stderr
        again = in_empty_directory(installed, tmp_path, "dss", "status", "--url", node.url)
        assert re.sub(r"\d+", "N", again.stdout) == re.sub(r"\d+", "N", status.stdout), "the log may have grown"
    finally:
        assert node.stop() == 0
