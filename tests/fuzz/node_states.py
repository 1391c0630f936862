"""The replicated state that a stopped node has on its disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from dss_dev.local_cluster import LocalNode
from dss_project.runtime import state_machines
from dss_raft.core.messages import Entry
from dss_raft.disk.store import LogStore
from dss_raft.replication.replica import Replica
from dss_raft.replication.snapshot_keeper import split
from dss_raft.replication.state_hash import parts

CLUSTER_ID = "dss"


@dataclass(frozen=True)
class Disk:
    """A snapshot, and the entries after it."""

    node_id: str
    snapshot_index: int
    state: bytes
    entries: list[Entry]

    @property
    def last(self) -> tuple[int, int]:
        """Index and term of the last entry; 0 if there is none after the snapshot."""
        return (self.entries[-1].index, self.entries[-1].term) if self.entries else (self.snapshot_index, 0)


def read(node: LocalNode) -> Disk:
    """What is on the disk of a node that does not run."""
    store = LogStore(Path(node.environment["DSS_DATA_DIR"]) / "raft", node.id, CLUSTER_ID)
    try:
        boot = store.load()
        state = bytes(split(store.read_snapshot(boot.snapshot))[0]) if boot.snapshot.index else b""
        return Disk(node.id, boot.snapshot.index, state, boot.entries)
    finally:
        store.close()


def differences(disks: list[Disk]) -> list[str]:
    """What differs between the states up to the last entry that all nodes have.

    Each node's snapshot comes from its running process, and the entries after it are applied here. So this compares what the
    processes had in memory, with what the log says.
    """
    index = min(disk.last[0] for disk in disks)
    behind = [disk.node_id for disk in disks if disk.snapshot_index > index]
    if behind:
        return [f"the snapshots of {', '.join(behind)} are newer than the log of another node, which ends at {index}"]
    states = [_state(disk, index) for disk in disks]
    found = []
    for disk, state in zip(disks[1:], states[1:], strict=True):
        for name, part in states[0].items():
            if state[name] != part:
                found.append(f"{name} of {disks[0].node_id} and {disk.node_id} differ: {part!r:.300} / {state[name]!r:.300}")
    return found


def _state(disk: Disk, index: int) -> dict[str, object]:
    # Results are kept in memory for this node's callers only; the state is the same for any id.
    replica = Replica("", state_machines())
    if disk.state:
        replica.restore(disk.state)
    for entry in disk.entries:
        if entry.index <= index:
            replica.apply(entry)
            replica.take_outcomes()
            replica.take_events()
    return {name: msgspec.msgpack.encode(part) for name, part in parts(replica)}
