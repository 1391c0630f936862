"""Folders next to manage.py must not shadow the standard library's modules of the same name."""

from __future__ import annotations

import queue
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["raft", "locks", "queue", "cache"])
def test_a_subsystem_folder_is_not_a_package(folder):
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_queue_is_the_standard_library_in_a_test_run():
    assert Path(queue.__file__).is_relative_to(sysconfig.get_path("stdlib"))
    assert queue.Queue().empty()


def test_queue_is_the_standard_library_next_to_manage_py():
    found = subprocess.run(
        [sys.executable, "-c", "import queue; print(queue.__file__)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(sysconfig.get_path("stdlib"))
