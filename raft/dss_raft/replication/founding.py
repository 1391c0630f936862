"""A new cluster that begins with the state of another one: of a backup, or of the last member of a lost majority.

The other cluster may have gone on after this state: clients may have fencing tokens, message ids and versions that the state does
not know. Two things keep them from being repeated or mistaken. The index, from which tokens and message ids are made, is raised
far beyond what can have been given out, and the machines raise their other numbers (`machine.GivesOutNumbers`). And the new
cluster has a name of its own, so the handshake refuses members of the other one, and so does a data directory.

A store is built next to its final place and then renamed, so a crash leaves the old state or the new one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dss_raft.core.messages import Configuration, Entry, SnapshotMeta
from dss_raft.core.ready import HardState, Persist
from dss_raft.disk.files import Files, StoreError, StoreRefused
from dss_raft.disk.store import DATABASE, LogStore
from dss_raft.replication.machine import Event
from dss_raft.replication.replica import Replica
from dss_raft.replication.snapshot_keeper import pieces, split

#: The index is raised by this, and by `INDEXES_PER_S` for each second since the state was last changed. A leader writes an entry
#: with one fsync, so it cannot write as many. Because of the second part, a backup that is restored again has higher indexes than
#: the first time.
INDEX_RAISE_MIN = 10**10
INDEXES_PER_S = 4000
#: A message number has 40 bits for the index. This leaves decades of entries.
INDEX_MAX = 10**12

_BUILT, _REPLACED = "raft.new", "raft.before-recovery"


class CannotFound(StoreError):
    """The new cluster cannot be made. The text is one line for the operator."""


def index_raise(at_ms: int, now_ms: int) -> int:
    """By how much to raise the index of a state whose last entry was stamped at `at_ms`."""
    return INDEX_RAISE_MIN + INDEXES_PER_S * math.ceil(max(0, now_ms - at_ms) / 1000)


def another_name(cluster_id: str) -> str:
    """A proposal for the name of a cluster that follows `cluster_id`: "dss" -> "dss-2" -> "dss-3"."""
    start, dash, number = cluster_id.rpartition("-")
    return f"{start}-{int(number) + 1}" if dash and number.isdecimal() else f"{cluster_id}-2"


def require_new_name(old: str, new: str) -> None:
    """Raises:
    CannotFound: the new cluster would have the name of the old one.
    """
    if old == new:
        raise CannotFound(
            f"the new cluster needs a name of its own, so that members of the old one cannot join it by mistake: set DSS_CLUSTER_ID, "
            f"for example to {another_name(old)}, here and on all its future members (both are called {old} now)"
        )


def found(
    directory: Path,
    node_id: str,
    cluster_id: str,
    configuration: Configuration,
    replica: Replica,
    term: int,
    raise_by: int,
    parts: Mapping[str, Sequence[bytes]],
) -> int:
    """Build the store of a member of the new cluster in `directory`/raft.new. Returns the index at which the cluster begins.

    Args:
        directory: where the node keeps its store, `raft` in its data directory.
        replica: the state; it becomes that of the new cluster.
        term: of the last entry in the state, or higher.
    """
    index = replica.applied_index + raise_by
    if raise_by < INDEX_RAISE_MIN or index > INDEX_MAX:
        raise CannotFound(
            f"the index would become {index}: it must be raised by at least {INDEX_RAISE_MIN}, and to at most {INDEX_MAX}"
        )
    replica.begin_new_cluster(raise_by)
    built = directory.with_name(_BUILT)
    shutil.rmtree(built, ignore_errors=True)
    store = LogStore(built, node_id, cluster_id)
    try:
        store.bootstrap(configuration)
        state = replica.snapshot()
        meta = store.stage_snapshot(
            SnapshotMeta(index, term, configuration), pieces(state, {k: list(v) for k, v in parts.items()})
        )
        store.write(Persist(number=1, hard_state=HardState(term, ""), truncate_from=0, entries=[], snapshot=meta))
    finally:
        store.close()
    return index


def put_in_place(directory: Path) -> Path | None:
    """Make the store that `found` has built the node's store. Returns where the previous one is now, if there was one."""
    built, replaced, files = directory.with_name(_BUILT), directory.with_name(_REPLACED), Files()
    previous = replaced if directory.exists() else None
    if previous is not None:
        files.rename(directory, previous)
    files.rename(built, directory)
    files.sync_directory(directory.absolute().parent)
    return previous


def refuse_unfinished(directory: Path) -> None:
    """Raises:
    StoreRefused: a crash has interrupted `put_in_place`: a start would take the directory for a new one.
    """
    if not directory.exists() and directory.with_name(_REPLACED).exists():
        raise StoreRefused(
            f"a recovery of this node was interrupted: run `manage.py recover` again, or rename {_REPLACED} in {directory.parent} to "
            f"{directory.name} to undo it"
        )


def undo_unfinished(directory: Path) -> None:
    """Undo a `put_in_place` that a crash has interrupted.

    Raises:
        CannotFound: an earlier recovery was finished, and its previous store is still there.
    """
    replaced = directory.with_name(_REPLACED)
    if replaced.exists() and directory.exists():
        raise CannotFound(f"{replaced} is left from an earlier recovery: move it away first")
    if replaced.exists():
        Files().rename(replaced, directory)


class Survivor:
    """The store of a member that lost its majority, opened while its node does not run.

    Raises:
        CannotFound: there is no such store.
        StoreError: it cannot be used.
    """

    def __init__(self, directory: Path, node_id: str) -> None:
        if not (directory / DATABASE).exists():
            raise CannotFound(f"there is no log in {directory.parent}: check DSS_DATA_DIR and NODE_ID")
        self._store = LogStore(directory, node_id, any_cluster=True)
        try:
            if self._store.is_new:
                raise CannotFound(f"{directory.parent} belongs to no cluster yet")
            boot_state = self._store.load()
        except BaseException:
            self._store.close()
            raise
        self.cluster_id = self._store.identity.cluster_id
        self.snapshot = boot_state.snapshot
        self.entries: list[Entry] = boot_state.entries
        self.hard_state = boot_state.hard_state
        last = self.entries[-1] if self.entries else None
        self.last_index = last.index if last else self.snapshot.index
        self.last_term = last.term if last else self.snapshot.term

    def replay(self, replica: Replica) -> Iterator[list[Event]]:
        """Bring `replica` to the end of the log, with the entries that may not have been committed. Yields the events of each entry."""
        state = self._parts()[0]
        for entry in self.entries:
            for skipped in replica.skips(entry):
                replica.skip(skipped)
        if state is not None:
            replica.restore(state)
        for entry in self.entries:
            replica.apply(entry)
            replica.take_outcomes()
            replica.take_faults()
            yield [event for event, _ in replica.take_events()]

    def parts(self) -> dict[str, memoryview]:
        """The parts of the snapshot."""
        return self._parts()[1]

    def _parts(self) -> tuple[memoryview | None, dict[str, memoryview]]:
        if self.snapshot.index == 0:
            return None, {}
        return split(self._store.read_snapshot(self.snapshot))

    def close(self) -> None:
        self._store.close()
