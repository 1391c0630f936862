"""Each layer can be imported without the layers above it, and without Django where it has no Django part."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: bottom to top, as in pyproject.toml's contract "Imports point down", on top of the client's distribution
LAYERS = ("dss_api", "dss_admin", "dss_raft", "dss_locks", "dss_queue", "dss_cache", "dss_console", "dss_project", "dss_dev")
SUBSYSTEMS = ("dss_locks", "dss_queue", "dss_cache")

WITHOUT_DJANGO = {
    "dss_api.json_fast_path": (),
    "dss_api.websocket": (),
    "dss_api.openapi": (),
    "dss_raft.core": ("dss_api",),
    "dss_raft.node": ("dss_api",),
    "dss_raft.operations": ("dss_api",),
    "dss_locks.core.table": ("dss_api", "dss_raft"),
    "dss_locks.operations": ("dss_api", "dss_raft"),
    "dss_queue.core.broker": ("dss_api", "dss_raft"),
    "dss_queue.operations": ("dss_api", "dss_raft"),
    "dss_cache.core.directory": ("dss_api", "dss_raft"),
    "dss_cache.service": ("dss_api", "dss_raft"),
    "dss_cache.operations": ("dss_api", "dss_raft"),
}

_LOADED = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*{name.partition('.')[0] for name in sys.modules})"


def loaded_by(module: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after importing `module`, with no settings named."""
    run = subprocess.run([sys.executable, "-c", _LOADED, module], cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(("module", "below"), WITHOUT_DJANGO.items())
def test_a_layer_is_imported_without_django_and_higher_layers(module: str, below: tuple[str, ...]) -> None:
    loaded = loaded_by(module)
    assert not loaded & {"django", "rest_framework", "channels", "daphne"}
    assert {name for name in loaded if name.startswith("dss_")} <= {module.partition(".")[0], *below}


def test_a_node_does_not_load_the_client_library(tmp_path: Path) -> None:
    environment = {"DJANGO_SETTINGS_MODULE": "dss_project.settings", "DSS_DATA_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", _LOADED, "dss_project.asgi"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert not set(run.stdout.split()) & {"dss_client", "httpx", "click"}


def test_the_contracts_have_no_exceptions() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert "layers" in {contract["type"] for contract in contracts}
    assert not [contract["name"] for contract in contracts if "ignore_imports" in contract]


def test_every_subsystem_separates_pure_code_and_django_by_folder() -> None:
    for package in ("dss_raft", *SUBSYSTEMS):
        folder = ROOT / package.removeprefix("dss_") / package
        assert (folder / "core" / "__init__.py").exists()
        assert (folder / "django_app" / "apps.py").exists()
        uses_django = [file for file in folder.rglob("*.py") if "django" in file.read_text() and "django_app" not in file.parts]
        assert [
            file.name for file in uses_django if "import django" in file.read_text() or "from django" in file.read_text()
        ] == []


def test_the_wheel_has_no_development_code() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).name for package in packages} == set(LAYERS) - {"dss_dev"}
