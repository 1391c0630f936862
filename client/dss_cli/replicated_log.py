"""Entries of the log, and the limits of the replicated state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal, size

HEAD = ("LIMIT", "USED", "MAXIMUM", "SHARE")


def show_entry(entry: dict[str, Any], terminal: Terminal) -> None:
    """Print an entry of the log."""
    entry = {name: value for name, value in entry.items() if name != "ok"}
    if terminal.is_json:
        terminal.json(entry)
    else:
        terminal.write(json.dumps(entry, indent=2, ensure_ascii=False))


async def show(cluster: Cluster, terminal: Terminal, index: int) -> None:
    """Print one entry as a node stores it."""
    show_entry(await cluster.call("raft.log", index=index), terminal)


async def skip(cluster: Cluster, terminal: Terminal, index: int, reason: str) -> None:
    """Have every node give an entry no effect."""
    answer = await cluster.call("raft.skip", index=index, reason=reason)
    if terminal.is_json:
        terminal.json(answer)
    else:
        terminal.write(f"entry {answer['skipped']} is skipped, by entry {answer['index']}")


async def limits(cluster: Cluster, terminal: Terminal) -> None:
    """The limits of the replicated state, and what is in use."""
    _show_limits(await cluster.call("raft.limits"), terminal)


async def set_limits(cluster: Cluster, terminal: Terminal, maxima: Mapping[str, int]) -> None:
    """Change limits on all nodes: all of them, or none."""
    _show_limits(await cluster.call("raft.set_limits", limits=dict(maxima)), terminal)


def _show_limits(answer: dict[str, Any], terminal: Terminal) -> None:
    if terminal.is_json:
        terminal.json(answer)
        return
    rows = []
    for row in answer["limits"]:
        is_bytes = row["unit"] == "bytes"
        amounts = [f"{row[name]}" + (f" ({size(row[name])})" if is_bytes else "") for name in ("used", "maximum")]
        rows.append([row["name"], *amounts, f"{row['share']:.1%}"])
    terminal.table(HEAD, rows)
