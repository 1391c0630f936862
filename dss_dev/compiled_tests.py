"""Compile the project and its tests before they run.

Where Python keeps no bytecode, each of the hundreds of nodes would compile the packages. Each worker of pytest-xdist imports all tests:
without compiled ones, most of its start is spent on rewriting their assertions.
"""

from __future__ import annotations

import compileall
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from _pytest.assertion import rewrite


def compile_packages(root: Path) -> None:
    """Compile the packages, if Python would not keep what it compiles."""
    if sys.dont_write_bytecode:
        for package in (*root.glob("dss_*"), *root.glob("*/dss_*")):
            compileall.compile_dir(package, quiet=2)


def compile_tests(config: pytest.Config) -> None:
    """Compile the tests that were asked for on all cores, into the files in which pytest looks for them."""
    given = [config.rootpath / argument.partition("::")[0] for argument in config.args]
    found = [file for path in given for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    count = os.cpu_count() or 1
    # Forked, because pytest's configuration cannot be sent to another process.
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=_compile_share, args=(config, found[first::count])) for first in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _compile_share(config: pytest.Config, files: Sequence[Path]) -> None:
    for file in files:
        if not file.name.startswith("test_") and file.name != "conftest.py":
            compileall.compile_file(file, quiet=2)
            continue
        folder = rewrite.get_cache_dir(file)
        compiled = folder / f"{file.stem}{rewrite.PYC_TAIL}"
        if rewrite._read_pyc(file, compiled) is None:
            source_hash, code = rewrite._rewrite_test(file, config)
            if rewrite.try_makedirs(folder):
                rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, source_hash, compiled)
