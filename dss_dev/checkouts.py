"""Copies of the project whose nodes can be started: this one, an older release, or one to compare with."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: A checkout whose nodes the cluster tests start, in place of this one's; and the Python that runs them, in place of its .venv.
CHECKOUT_VARIABLE, PYTHON_VARIABLE = "DSS_TEST_CHECKOUT", "DSS_TEST_PYTHON"
#: Settings of the caller's Python that must not reach another checkout's nodes.
PYTHON_SETTINGS = ("DJANGO_SETTINGS_MODULE", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", CHECKOUT_VARIABLE, PYTHON_VARIABLE)


@dataclass(frozen=True)
class Checkout:
    """A copy of the project, and the Python that runs it."""

    path: Path
    python: Path

    def import_path(self) -> str:
        """The folders that hold its packages, as `PYTHONPATH`.

        They come before what is installed: a `.venv` that was copied from another checkout would import that one's code.
        """
        project = tomllib.loads((self.path / "pyproject.toml").read_text())
        folders = project.get("tool", {}).get("hatch", {}).get("build", {}).get("dev-mode-dirs", ["."])
        return os.pathsep.join(str(self.path / folder) for folder in folders)

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """What a node of this checkout gets: the caller's environment without its Python's settings, and the node's `settings`."""
        inherited = {name: value for name, value in os.environ.items() if name not in PYTHON_SETTINGS}
        first = settings.get("PYTHONPATH", "")
        path = os.pathsep.join(filter(None, (first, self.import_path())))
        return {**inherited, **settings, "PYTHONPATH": path}


def checkout_at(path: Path, python: Path | None = None) -> Checkout:
    """The checkout in the folder, with its own `.venv` unless another Python is given."""
    # The Python of a .venv is a link: resolved, it would leave the .venv.
    return Checkout(path.resolve(), (python or path / ".venv/bin/python").absolute())


def tested_checkout() -> Checkout | None:
    """The checkout that `DSS_TEST_CHECKOUT` names; None: this one, with the Python that runs now."""
    path = os.environ.get(CHECKOUT_VARIABLE)
    if not path:
        return None
    python = os.environ.get(PYTHON_VARIABLE)
    checkout = checkout_at(Path(path), Path(python) if python else None)
    if not checkout.python.is_file() or not (checkout.path / "manage.py").is_file():
        sys.exit(f"{CHECKOUT_VARIABLE}={path} has no manage.py, or there is no {checkout.python}")
    return checkout
