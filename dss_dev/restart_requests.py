"""How `manage.py restart` asks the process of `make run`, which follows and stops the nodes, to start one again: a file per node."""

from __future__ import annotations

from pathlib import Path

_PREFIX = "restart."


def request(directory: Path, node_id: str) -> None:
    """Ask the cluster that runs in `directory` to start the node."""
    (directory / f"{_PREFIX}{node_id}").touch()


def withdraw(directory: Path, node_id: str) -> None:
    (directory / f"{_PREFIX}{node_id}").unlink(missing_ok=True)


def take_requests(directory: Path) -> list[str]:
    """The nodes to start, each once."""
    found = []
    for path in sorted(directory.glob(f"{_PREFIX}*")):
        path.unlink(missing_ok=True)
        found.append(path.name.removeprefix(_PREFIX))
    return found
