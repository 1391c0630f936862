"""The members according to the data directory of a node that does not run.

The data are not changed, and not checked for damage: that is for the start of the node.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from dss_raft.core.membership import decode
from dss_raft.core.messages import Configuration, Entry, EntryKind, SnapshotMeta
from dss_raft.disk import rows
from dss_raft.disk.files import StoreError
from dss_raft.disk.store import DATABASE
from dss_raft.formats import WrongFormat


class StoredMembers(msgspec.Struct, frozen=True):
    """The last configuration in a log. A later one may be in the logs of other nodes."""

    node_id: str
    #: the last entry of the log; 0: nothing was written since the first configuration
    last_index: int
    #: term and index of the configuration; a later one has a greater pair
    version: tuple[int, int]
    configuration: Configuration


class Unreadable(Exception):
    """The directory cannot be read: a node uses it, or it is damaged."""


def stored_members(data_dir: Path) -> StoredMembers | None:
    """What the log in `data_dir` says; None if there is no log.

    Raises:
        Unreadable: a node uses it, or it is damaged.
    """
    path = data_dir / "raft" / DATABASE
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0)) as connection:
            if rows.is_empty(connection):
                return None
            return _read(connection)
    except (sqlite3.Error, StoreError, WrongFormat, msgspec.MsgspecError) as error:
        raise Unreadable(f"{data_dir}: {error}") from None


def _read(connection: sqlite3.Connection) -> StoredMembers | None:
    rows.schema_version(connection)
    identity = rows.require(connection, "identity", rows.Identity)
    state = rows.require(connection, "state", rows.State)
    snapshot = rows.get(connection, "snapshot", SnapshotMeta)
    if snapshot is None:
        return None
    version, configuration = (snapshot.term, snapshot.index), snapshot.configuration
    last = "SELECT idx, term, kind, data FROM entries WHERE kind = ? AND idx > ? ORDER BY idx DESC LIMIT 1"
    for row in connection.execute(last, (int(EntryKind.CONFIGURATION), snapshot.index)):
        entry = Entry(*row)
        version, configuration = (entry.term, entry.index), decode(entry)
    return StoredMembers(identity.node_id, state.last_index, version, configuration)
