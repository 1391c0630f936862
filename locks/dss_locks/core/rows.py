"""Holds and waiters as rows of a snapshot. Metadata is stored once, in a list of its own: a row has its position in that list."""

from __future__ import annotations

from typing import Any

from dss_locks.core.account import Account, Meta, encode_meta
from dss_locks.core.state import Caller, Hold, LockWaiter
from dss_raft.replication.machine import Origin

#: `timer` refers to this node's list of deadlines. It is not part of the replicated state.
_HOLD_FIELDS = tuple(field for field in Hold.__struct_fields__ if field not in ("key", "timer"))
_META = _HOLD_FIELDS.index("meta")


#: Format of the snapshot. The first format had no number, and the metadata itself in each row.
FORMAT = 2


class MetaWriter:
    """Gives each metadata its position in a snapshot, in the order of the rows that have it: the same on every node."""

    def __init__(self) -> None:
        self._positions: dict[bytes, int] = {}

    def of(self, meta: Meta | None) -> int | None:
        """The position of `meta`."""
        return None if meta is None else self._positions.setdefault(meta.encoded, len(self._positions))

    def stored(self) -> list[bytes]:
        """What the rows refer to, when all of them are written."""
        return list(self._positions)


class MetaReader:
    """The metadata of a snapshot, of either format.

    Args:
        account: counts each use. Equal metadata of the first format becomes one.
    """

    def __init__(self, account: Account, stored: list[bytes] | None) -> None:
        self._account = account
        self._stored = stored

    def of(self, stored: Any) -> Meta | None:
        """The metadata of a row."""
        if stored is None:
            return None
        return self._account.use_meta(encode_meta(stored) if self._stored is None else self._stored[stored])


def encode_hold(hold: Hold, metas: MetaWriter) -> list[Any]:
    row = [getattr(hold, field) for field in _HOLD_FIELDS]
    row[_META] = metas.of(hold.meta)
    return row


def decode_hold(key: str, row: list[Any], metas: MetaReader) -> Hold:
    row[_META] = metas.of(row[_META])
    return Hold(key, *row)


def encode_waiter(waiter: LockWaiter, metas: MetaWriter) -> list[Any]:
    callers = [
        [list(c.origin), c.since_ms, c.deadline_ms, c.ttl_ms, metas.of(c.meta), c.session, c.lock_delay_ms]
        for c in waiter.callers
    ]
    return [waiter.rank, waiter.client, waiter.exclusive, waiter.keys, waiter.depends_on, waiter.upgrades, callers]


def decode_waiter(row: list[Any], metas: MetaReader) -> LockWaiter:
    rank, client, exclusive, keys, depends_on, upgrades, callers = row
    waiter = LockWaiter(rank, client, exclusive, keys, depends_on or (), upgrades or ())
    waiter.callers = [
        Caller(Origin(*origin), waiter, since_ms, deadline_ms, ttl_ms, metas.of(meta), *rest)
        for origin, since_ms, deadline_ms, ttl_ms, meta, *rest in callers
    ]
    return waiter
