"""Backups: the state of a cluster in a file."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from dss_cli import backup
from dss_cli.cluster import Cluster, CommandFailed, OneNode
from dss_cli.terminal import Terminal
from dss_client import DssError, Refused
from dss_client.clock import now
from dss_client.config import pause_s
from dss_client.errors import NO_EFFECT

#: how long to wait for a leader
PATIENCE_S = 15.0
#: how long a node may take for the snapshot itself, and for a part of it
SNAPSHOT_S = 600.0
READ_S = 15.0


async def save(cluster: Cluster, terminal: Terminal, file: Path, *, local: bool = False) -> None:
    """Save the state of a running cluster.

    Args:
        local: what one node has applied, also without a majority.

    Raises:
        CommandFailed: the file exists.
        BackupInvalid: the node sent something else than it announced.
        OSError: the file cannot be written.
    """
    if file.exists():  # noqa: ASYNC240 (nothing else runs meanwhile)
        raise CommandFailed(f"{file} exists: choose another name, or delete it first")
    # Only one node has the snapshot open.
    node = cluster.any()
    begun = await _begin(node, "local" if local else "linearizable", terminal)
    header = backup.Header(
        cluster=begun["cluster"],
        node=begun["node"],
        index=begun["snapshot_index"],
        term=begun["snapshot_term"],
        members=tuple(backup.BackupMember(**member) for member in begun["members"]),
        saved_at_ms=begun["saved_at_ms"],
        bytes=begun["bytes"],
        sha256=begun["sha256"],
    )
    with backup.BackupWriter(file, header) as writer:
        data = b" "
        while data and writer.written < header.bytes:
            data = b64decode(
                (await node.call("raft.read_snapshot", READ_S, id=begun["snapshot_id"], offset=writer.written))["data"]
            )
            writer.write(data)
        writer.finish()
    with suppress(DssError):  # close it on the node
        await node.call("raft.read_snapshot", READ_S, id=begun["snapshot_id"], offset=header.bytes)
    if terminal.is_json:
        terminal.json({"ok": True, "file": str(file), **msgspec.to_builtins(header)})
    else:
        terminal.write(f"{file}: cluster {header.cluster} at index {header.index}, {header.bytes} bytes, from {header.node}")


def info(terminal: Terminal, file: Path) -> None:
    """Check a file, and print what it contains.

    Raises:
        BackupInvalid: it is not a complete and intact backup.
        OSError: it cannot be read.
    """
    header = backup.check(file)
    if terminal.is_json:
        terminal.json({"ok": True, "file": str(file), **msgspec.to_builtins(header)})
        return
    saved_at = datetime.fromtimestamp(header.saved_at_ms / 1000, UTC)
    rows = [
        ["cluster", header.cluster],
        ["index", str(header.index)],
        ["term", str(header.term)],
        ["saved at", saved_at.isoformat(" ", "seconds")],
        ["saved by", header.node],
        *(["member", f"{one.id}  {one.url}{'  (learner)' if one.learner else ''}"] for one in header.members),
        ["bytes", str(header.bytes)],
        ["SHA-256", f"{header.sha256}  (correct)"],
    ]
    terminal.table(["FILE", str(file)], rows)


async def _begin(node: OneNode, consistency: str, terminal: Terminal) -> dict[str, Any]:
    """Wait for a leader, if there is none now."""
    deadline, failures = now() + PATIENCE_S, 1
    while True:
        try:
            return await node.call("raft.save_snapshot", SNAPSHOT_S, consistency=consistency)
        except Refused as error:
            if error.code not in NO_EFFECT or now() > deadline:
                raise
            if failures == 1:
                terminal.say(f"{error.detail}; trying again")
        failures += 1
        await asyncio.sleep(pause_s(failures))
