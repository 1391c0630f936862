"""What the lists of the admin show of the cache. The generators run in the node's event loop, a slice in each turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dss_cache.core.directory import Directory
from dss_cache.core.values import as_text
from dss_cache.service import CacheService

VALUE_LENGTH_SHOWN = 200
Value = bytes
#: States of a key in the directory.
DIRTY, CACHED, NOT_CACHED, DELETED = "not written back", "cached", "not cached", "deleted"


class TakenKey(msgspec.Struct, frozen=True, gc=False):
    """A key of the directory."""

    key: str
    version: int
    state: str
    owner: str
    nodes: tuple[str, ...]
    expires_in_ms: int | None
    stored: bytes

    @property
    def registered(self) -> str:
        return ", ".join(self.nodes)

    @property
    def value(self) -> str:
        return as_text(self.stored, VALUE_LENGTH_SHOWN) if self.stored else ""


def take_keys(service: CacheService, now_ms: int) -> Iterator[TakenKey | None]:
    """Every key that has a value, or whose deletion is not yet in the backing store."""
    directory: Directory = service.directory
    for key in list(directory.records):
        record = directory.records.get(key)
        if record is None or (record.absent and not record.dirty):
            yield None
            continue
        nodes = tuple(sorted(directory.live_sharers(record)))
        state = DELETED if record.absent else DIRTY if record.dirty else CACHED if nodes else NOT_CACHED
        line = service.lines.by_key.get(key)
        stored = record.value if record.value is not None else line.value if line is not None else b""
        expires_in_ms = max(0, record.expires_at_ms - now_ms) if record.expires_at_ms else None
        yield TakenKey(key, record.version, state, record.owner if record.dirty else "", nodes, expires_in_ms, stored)


class TakenLine(msgspec.Struct, frozen=True, gc=False):
    """A line of this node. Its value is never changed, so it is not copied."""

    key: str
    state: str
    version: int
    readable: bool
    bytes: int
    age_ms: int
    stored: Value

    @property
    def value(self) -> str:
        return as_text(self.stored, VALUE_LENGTH_SHOWN)


def take_lines(service: CacheService) -> Iterator[TakenLine | None]:
    """Every line of this node."""
    for key in list(service.lines.by_key):
        line = service.lines.by_key.get(key)
        if line is None:
            yield None
            continue
        shown: dict[str, Any] = service.line_row(key, line)
        del shown["node"], shown["clients"]
        yield TakenLine(**shown, stored=line.value)
