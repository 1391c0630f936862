"""The rows of the log store's database: the schema, the CRCs, and how rows are read.

A CRC-32 covers each row including its key, so that a row is never taken for another one. It detects damage on the disk, not
manipulation.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from typing import Any, TypeVar

import msgspec

from dss_raft.core.messages import Entry, SnapshotMeta
from dss_raft.disk.files import StoreDamaged, StoreRefused

#: Version of the tables and of everything in them, in the header of the database file. It is read first. Releases up to 662b62d
#: wrote version 1. When a node starts with such a store, the version becomes 2, so that those releases refuse it from then on.
SCHEMA_VERSION = 2
SCHEMA_OLDEST = 1

_TABLES = {
    "entries": "CREATE TABLE entries (idx INTEGER PRIMARY KEY, term INTEGER, kind INTEGER, data BLOB, crc INTEGER)",
    "meta": "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB, crc INTEGER)",
}
#: Only the page of the row is written. `INSERT OR REPLACE` would also write that of the index.
_PUT = "INSERT INTO meta VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value, crc = excluded.crc"
_ENTRY_HEAD = struct.Struct("<QQQ")

T = TypeVar("T")


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """The owner of the store."""

    node_id: str
    cluster_id: str
    #: random, made with the directory: another directory of this node is another store
    store_id: str = ""


class State(msgspec.Struct, frozen=True, array_like=True):
    """The row that every transaction rewrites."""

    term: int = 0
    vote: str = ""
    #: the database holds exactly the entries `first_index` … `last_index`; none when `last_index == first_index - 1`
    first_index: int = 1
    last_index: int = 0
    #: number of starts with this directory
    starts: int = 0
    #: number of transactions so far
    sequence: int = 0
    #: other members know of later starts, or of entries that are missing here: the directory was put back to an earlier state
    is_outdated: bool = False


def create(connection: sqlite3.Connection, identity: Identity) -> None:
    """Create the tables of a new store, in the transaction of the caller."""
    for statement in _TABLES.values():
        connection.execute(statement)
    put_schema_version(connection)
    put(connection, "identity", identity)
    put(connection, "state", State())


def put_schema_version(connection: sqlite3.Connection) -> None:
    """Note that this release has written the store, in the transaction of the caller."""
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def schema_version(connection: sqlite3.Connection) -> int:
    """The version of the store. Nothing else in the database has been read. Raises StoreRefused for a newer one."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StoreRefused(
            f"the log has format {version}, and this release reads formats up to {SCHEMA_VERSION}: start the release that wrote it, or "
            "a newer one"
        )
    return version


def check_schema(connection: sqlite3.Connection) -> None:
    """Raises StoreRefused for a newer schema, and StoreDamaged when the schema is not the one that this store creates."""
    version = schema_version(connection)
    tables = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    if version < SCHEMA_OLDEST or tables != _TABLES:
        raise StoreDamaged("the schema of the database is not the one it was created with")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreDamaged(f"SQLite reports damage: {verdict}")


def is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def put(connection: sqlite3.Connection, name: str, value: Any) -> None:
    """Write one row of `meta`."""
    data = msgspec.msgpack.encode(value)
    connection.execute(_PUT, (name, data, _meta_crc(name, data)))


def get(connection: sqlite3.Connection, name: str, type_: type[T]) -> T | None:
    """Read one row of `meta`; None when it does not exist. Raises StoreDamaged."""
    row = connection.execute("SELECT value, crc FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    data, crc = row
    if not isinstance(data, bytes) or _meta_crc(name, data) != crc:
        raise StoreDamaged(f"the row `{name}` fails its checksum")
    return msgspec.msgpack.decode(data, type=type_)


def require(connection: sqlite3.Connection, name: str, type_: type[T]) -> T:
    """Like `get`, for a row that every store has."""
    value = get(connection, name, type_)
    if value is None:
        raise StoreDamaged(f"the row `{name}` is missing")
    return value


def entry_row(entry: Entry) -> tuple[int, int, int, bytes, int]:
    return entry.index, entry.term, entry.kind, entry.data, _entry_crc(entry.index, entry.term, entry.kind, entry.data)


def read_entries(connection: sqlite3.Connection, state: State, snapshot: SnapshotMeta) -> list[Entry]:
    """All entries after `snapshot`. Checks every row. Raises StoreDamaged."""
    if not state.first_index - 1 <= snapshot.index <= state.last_index:
        raise StoreDamaged(f"the log {state.first_index} to {state.last_index} does not fit its snapshot {snapshot.index}")
    entries = []
    expected = state.first_index
    for index, term, kind, data, crc in connection.execute("SELECT idx, term, kind, data, crc FROM entries ORDER BY idx"):
        if index != expected:
            raise StoreDamaged(f"the log has entry {index} in place of entry {expected}")
        if not _is_sound(index, term, kind, data, crc):
            raise StoreDamaged(f"entry {index} fails its checksum")
        if index > snapshot.index:
            entries.append(Entry(index, term, kind, data))
        expected += 1
    if expected != state.last_index + 1:
        raise StoreDamaged(f"the log ends at entry {expected - 1} instead of {state.last_index}")
    return entries


def _is_sound(index: int, term: Any, kind: Any, data: Any, crc: Any) -> bool:
    """True when the CRC is right. Damage may have changed the type of a column, too."""
    if not isinstance(data, bytes):
        return False
    try:
        return bool(_entry_crc(index, term, kind, data) == crc)
    except struct.error:
        return False


def _entry_crc(index: int, term: int, kind: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(_ENTRY_HEAD.pack(index, term, kind)))


def _meta_crc(name: str, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(name.encode()))
