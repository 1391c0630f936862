"""Backing store `django`: a table in this node's own SQLite, the embedded default.

Every node stores every value. Writes in the cluster are applied here from the log and collected in a buffer, which is flushed
to the table from time to time, in one transaction. That is safe because the log can be replayed: the buffer is flushed before
the log is compacted. The node's snapshots contain the whole table, for nodes that cannot catch up from the log. The table is
dumped in pieces, so that neither the event loop nor a reader of one value waits long for it.

A deleted key has no row: the directory, which every node has, knows that it is deleted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

import msgspec
from django.db import DatabaseError, connections, transaction

from dss_api.errors import Refused
from dss_cache.backing_store import BatchedReads, Stored
from dss_raft.formats import Format

T = TypeVar("T")

TABLE = "dss_cache_storedvalue"
#: SQLite takes at most 999 parameters in older builds.
KEYS_PER_QUERY = 500
#: A dump begins with its version, 1 byte; it is read first. Those of releases up to 662b62d begin with a length, whose first byte is 0.
FORMAT = Format("the cache's values in this snapshot", 1, oldest=0)
#: Size of a dump's piece, in rows and in bytes of values. Each piece is preceded by its length.
PIECE_ROWS_MAX, PIECE_BYTES = 2000, 512 * 1024
PIECE_LENGTH_BYTES = 4

_UPSERT = (
    f'INSERT INTO {TABLE} ("key", version, value) VALUES (%s, %s, %s) '
    f'ON CONFLICT ("key") DO UPDATE SET version = excluded.version, value = excluded.value WHERE excluded.version > {TABLE}.version'
)
_DELETE = f'DELETE FROM {TABLE} WHERE "key" = %s AND version < %s'

_Rows = list[tuple[str, int, bytes]]
_encode_rows = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(_Rows).decode


class _Spool:
    """Bytes in a file without a name. They can be read any number of times, in pieces."""

    def __init__(self, directory: Path | None) -> None:
        self._file = TemporaryFile(dir=directory)  # noqa: SIM115

    def append(self, data: bytes) -> None:
        self._file.write(data)

    def __iter__(self) -> Iterator[bytes]:
        self._file.flush()
        offset = 0
        while piece := os.pread(self._file.fileno(), PIECE_BYTES, offset):
            yield piece
            offset += len(piece)


class DjangoStore(BatchedReads):
    """See the module's docstring. One thread makes all accesses to the database.

    Args:
        alias: alias of the Django database.
    """

    name = "django"
    is_shared = False

    def __init__(self, alias: str = "default") -> None:
        super().__init__()
        self._alias = alias
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache-store")
        self._buffer: dict[str, Stored] = {}
        #: being written to the table
        self._flushing: dict[str, Stored] = {}
        self._flush_lock = asyncio.Lock()

    @property
    def buffered(self) -> int:
        """Number of versions that are not in the table yet."""
        return len(self._buffer) + len(self._flushing)

    async def check(self) -> None:
        await self._in_thread(lambda: self._select([""]))

    def keep(self, item: Stored) -> None:
        known = self._buffer.get(item.key)
        if known is None or known.version < item.version:
            self._buffer[item.key] = item

    async def write(self, items: Sequence[Stored]) -> dict[str, Refused]:
        for item in items:
            self.keep(item)
        await self.flush()
        return {}

    async def flush(self) -> None:
        async with self._flush_lock:
            if not self._buffer:
                return
            self._flushing, self._buffer = self._buffer, {}
            try:
                await self._in_thread(lambda: self._upsert(self._flushing.values()))
            except BaseException:
                self._buffer = {**self._flushing, **self._buffer}
                raise
            finally:
                self._flushing = {}

    async def _read_batch(self, keys: list[str]) -> dict[str, Stored]:
        found = {}
        others = []
        for key in keys:
            item = self._buffer.get(key) or self._flushing.get(key)
            if item is not None:
                found[key] = item
            else:
                others.append(key)
        if others:
            rows = await self._in_thread(lambda: self._select(others))
            found.update((key, Stored(key, version, bytes(value))) for key, version, value in rows)
        return found

    async def dump(self) -> Iterable[bytes]:
        """Not a consistent view: it may contain versions that are written meanwhile. They are in the log, too.

        The values are as large as the disk allows, so they are collected in a file beside the database.
        """
        pieces = await self._in_thread(self._spool)
        last = ""
        while rows := await self._in_thread(partial(self._select_after, last)):
            start = b"" if last else bytes([FORMAT.version])
            last = rows[-1][0]
            data = _encode_rows(rows)
            await self._in_thread(partial(pieces.append, start + len(data).to_bytes(PIECE_LENGTH_BYTES, "big") + data))
        return pieces

    async def load(self, data: memoryview) -> None:
        """Keys that are here and not in `data` may stay: the directory does not ask for deleted keys.

        Raises:
            WrongFormat: a newer release wrote it.
        """
        start = 1 if len(data) and FORMAT.of_binary(data) else 0
        while start < len(data):
            begin = start + PIECE_LENGTH_BYTES
            start = begin + int.from_bytes(data[start:begin], "big")
            rows = _decode_rows(data[begin:start])
            await self._in_thread(partial(self._upsert, [Stored(*row) for row in rows]))

    async def close(self) -> None:
        await self._in_thread(lambda: connections[self._alias].close())
        self._thread.shutdown()

    # ------------------------------------------------------------ in the thread

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except DatabaseError as error:
            raise Refused("memory_unavailable", f"SQLite: {error}") from None

    def _spool(self) -> _Spool:
        database = str(connections[self._alias].settings_dict["NAME"])
        directory = Path(database).parent
        return _Spool(directory if directory.is_absolute() and directory.is_dir() else None)

    def _select(self, keys: list[str]) -> _Rows:
        rows: _Rows = []
        with connections[self._alias].cursor() as cursor:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                part = keys[start : start + KEYS_PER_QUERY]
                marks = ", ".join(["%s"] * len(part))
                cursor.execute(f'SELECT "key", version, value FROM {TABLE} WHERE "key" IN ({marks})', part)
                rows.extend(cursor.fetchall())
        return rows

    def _select_after(self, last: str) -> _Rows:
        """The piece of the table after the key `last`, ordered by key."""
        rows: _Rows = []
        size = 0
        with connections[self._alias].cursor() as cursor:
            cursor.execute(
                f'SELECT "key", version, value FROM {TABLE} WHERE "key" > %s ORDER BY "key" LIMIT {PIECE_ROWS_MAX}', [last]
            )
            for key, version, value in cursor:
                rows.append((key, version, bytes(value)))
                size += len(value)
                if size >= PIECE_BYTES:
                    break
        return rows

    def _upsert(self, items: Iterable[Stored]) -> None:
        upserts, deletes = [], []
        for item in items:
            if item.value is None:
                deletes.append((item.key, item.version))
            else:
                upserts.append((item.key, item.version, item.value))
        with transaction.atomic(using=self._alias), connections[self._alias].cursor() as cursor:
            if upserts:
                cursor.executemany(_UPSERT, upserts)
            if deletes:
                cursor.executemany(_DELETE, deletes)
