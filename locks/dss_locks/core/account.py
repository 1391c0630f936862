"""The bytes of the lock table, by kind, and its metadata, each stored once. See `dss_raft/replication/limits.py`.

The constants are the memory of the objects around the names in CPython, measured with a table that was loaded from a snapshot, and
rounded up. They decide which commands are refused, so changing one requires a new protocol version.

Nothing that makes the table shrink makes the account grow: a waiting request costs more than the locks that it is granted
(`PLACE_BYTES` > `HOLD_BYTES`), and a lock costs more than the lock delay that it may leave. The audit list of forced releases is in the
account, but never refused: it has an upper bound of its own (`FORCED_RELEASES_MAX`), about 4 MiB with the longest names.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dss_raft.replication.limits import MIB, StateLimit, StateLimits, text_bytes

#: A hold with its key, its client's counters, its claim and its lease; the names are added.
HOLD_BYTES = 640
#: Distinct metadata; its encoded form is added.
META_BYTES = 200
#: A waiting request; its places and calls are added.
WAITER_BYTES = 320
#: A waiting request at one of its keys; the names are added.
PLACE_BYTES = 960
#: A waiting call; its session's name is added.
CALLER_BYTES = 400
#: A session; the client's name is added.
SESSION_BYTES = 480
#: A lock delay; the names are added.
DELAY_BYTES = 360
#: An entry of the audit list; its texts are added.
FORCED_BYTES = 360

LIMIT = "lock_bytes_max"
LOCK_BYTES_MAX_DEFAULT = 1024 * MIB

encode_meta = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def hold_bytes(key: str, client: str) -> int:
    """The bytes of a hold."""
    if key.isascii() and client.isascii():
        return HOLD_BYTES + len(key) + len(client)
    return HOLD_BYTES + text_bytes(key) + text_bytes(client)


class Meta(msgspec.Struct, gc=False):
    """Metadata of locks and waiting calls, as encoded."""

    encoded: bytes
    #: how many holds and waiting calls have it
    uses: int = 0

    def value(self) -> Any:
        """The metadata as the client sent it."""
        return _decode(self.encoded)


class Account:
    """The bytes of one lock table."""

    __slots__ = ("_metas", "delays", "forced", "holds", "limits", "maxima", "meta", "sessions", "waiters")

    def __init__(self, limits: StateLimits | None = None) -> None:
        self.limits = limits or StateLimits()
        self.limits.declare(StateLimit(LIMIT, LOCK_BYTES_MAX_DEFAULT, "bytes", self.used))
        self.maxima = self.limits.maxima
        self.holds = 0
        self.meta = 0
        self.waiters = 0
        self.sessions = 0
        self.delays = 0
        self.forced = 0
        #: encoded -> the metadata
        self._metas: dict[bytes, Meta] = {}

    def used(self) -> int:
        """All bytes of the table."""
        return self.holds + self.meta + self.waiters + self.sessions + self.delays + self.forced

    def over_limit(self) -> str:
        """The name of the limit that is reached; "" if none."""
        used = self.holds + self.meta + self.waiters + self.sessions + self.delays + self.forced
        return LIMIT if used >= self.maxima[LIMIT] else ""

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        return {
            "lock_holds": self.holds,
            "lock_meta": self.meta,
            "lock_waiters": self.waiters,
            "lock_sessions": self.sessions,
            "lock_delays": self.delays,
            "lock_audit": self.forced,
        }

    def clear(self) -> None:
        """Empty the account, before everything is counted again."""
        self.holds = self.meta = self.waiters = self.sessions = self.delays = self.forced = 0
        self._metas = {}

    # -- metadata --------------------------------------------------------------------------------------------------------------

    def use_meta(self, encoded: bytes) -> Meta:
        """The metadata with this encoding, with one more use. Equal metadata is stored once."""
        meta = self._metas.get(encoded)
        if meta is None:
            meta = self._metas[encoded] = Meta(encoded)
            self.meta += META_BYTES + len(encoded)
        meta.uses += 1
        return meta

    def drop_meta(self, meta: Meta) -> None:
        """One use less."""
        meta.uses -= 1
        if not meta.uses:
            del self._metas[meta.encoded]
            self.meta -= META_BYTES + len(meta.encoded)
