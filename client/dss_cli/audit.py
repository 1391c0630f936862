"""The audit trail: what operators did, who they were, and from where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal, clock_time, short

PAGE = 1000
HEAD = ("INDEX", "TIME (UTC)", "BY", "FROM", "CALL", "REASON")


async def ls(cluster: Cluster, terminal: Terminal, after: int = 0) -> None:
    """Print the records behind an index, oldest first; with JSON, a line each."""
    if terminal.is_json:
        async for record in _records(cluster, after):
            terminal.json(record)
        return
    rows = [
        [
            str(record["index"]),
            clock_time(record["at_ms"]),
            record["by"],
            record["address"] or record["via"],
            short(f"{record['operation']} {record['request']}"),
            short(record["reason"]),
        ]
        async for record in _records(cluster, after)
    ]
    terminal.table(HEAD, rows)


async def _records(cluster: Cluster, after: int) -> AsyncIterator[dict[str, Any]]:
    while True:
        page = await cluster.call("audit.list", after=after, limit=PAGE)
        for record in page["records"]:
            yield record
        if len(page["records"]) < PAGE:
            return
        after = page["records"][-1]["index"]
