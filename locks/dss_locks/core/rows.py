"""Holds and places as they stand in a snapshot."""

from __future__ import annotations

from typing import Any

from dss_locks.core.state import Caller, Hold, Place
from dss_raft.replication.machine import Origin

#: `timer` says where the entry is in this node's list of deadlines: not part of the state.
_HOLD_FIELDS = tuple(field for field in Hold.__struct_fields__ if field not in ("key", "timer"))


def hold_row(hold: Hold) -> list[Any]:
    return [getattr(hold, field) for field in _HOLD_FIELDS]


def hold_from(key: str, row: list[Any]) -> Hold:
    return Hold(key, *row)


def place_row(place: Place) -> list[Any]:
    callers = [[list(c.origin), c.since_ms, c.deadline_ms, c.ttl_ms, c.meta, c.session, c.lock_delay_ms] for c in place.callers]
    return [place.rank, place.client, place.exclusive, place.keys, place.counts_on, place.upgrades, callers]


def place_from(row: list[Any]) -> Place:
    *fields, callers = row
    place = Place(*fields)
    place.callers = [Caller(Origin(*origin), place, *rest) for origin, *rest in callers]
    return place
