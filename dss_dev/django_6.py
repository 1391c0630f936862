"""Django 6 for tests: it needs Python 3.12, so its libraries are kept in pytest's cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dss_dev.file_lock import locked
from dss_dev.pythons import find_python

PIP = ["-m", "pip", "--quiet", "--disable-pip-version-check"]


def fetch(python: str, arguments: list[str], directory: Path, done: str) -> None:
    """Run pip once; afterwards, the file `done` is there. Others that want the same wait. Skips if pip fails."""
    with locked(directory / "lock"):
        if (directory / "done").exists() and (directory / "done").read_text() == done:
            return
        run = subprocess.run([python, *PIP, *arguments], capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"pip {arguments[0]}: {(run.stderr.strip().splitlines() or ['failed'])[-1]}")
        (directory / "done").write_text(done)


def libraries_for_django_6(config: pytest.Config) -> tuple[str, list[Path]]:
    """A Python, and the directory of Django 6 and of the client's libraries for it. Skips where there is none."""
    python = find_python("3.12")
    if python is None:
        pytest.skip("Python 3.12 is not installed here")
    assert config.cache is not None
    directory = config.cache.mkdir("django-6-for-3.12")
    wanted = ["Django>=6,<7", "httpx", "msgspec", "websockets"]
    fetch(python, ["install", "--upgrade", f"--target={directory}", *wanted], directory, " ".join(wanted))
    return python, [directory]


def django_version(libraries: Path) -> str:
    """The release of Django in a directory."""
    return next(libraries.glob("[Dd]jango-*.dist-info")).name.removesuffix(".dist-info").partition("-")[2]
