"""Puts a process under limits: how many descriptors it may have, and the cgroups that it enters. See `dss_dev.confinement`."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path


def prefix(arguments: Sequence[str]) -> Sequence[str]:
    """Put it before a command: the command runs under the limits of these `Confinement.arguments`."""
    return [sys.executable, "-m", "dss_dev.confined", *arguments, "--"]


def confine(arguments: Sequence[str]) -> None:
    """Put this process under the limits of these `Confinement.arguments`."""
    open_files, *files = arguments
    for file in files:
        Path(file).write_text(str(os.getpid()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(open_files), int(open_files)))


def _run(arguments: Sequence[str]) -> None:
    """Become a command under the limits."""
    split = list(arguments).index("--")
    confine(arguments[:split])
    command = arguments[split + 1 :]
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    _run(sys.argv[1:])
