"""What the operations answer, field by field: the API's documentation is made of these."""

from __future__ import annotations

from typing import Any

import msgspec


class PutAnswer(msgspec.Struct):
    #: grows with every write of the key
    version: int
    #: of this node's line
    state: str


class PutManyAnswer(msgspec.Struct):
    #: one for each item, in order: `key`, `ok`, `version`, `state`; or `code` and `detail`
    items: list[dict[str, Any]]


class GetAnswer(msgspec.Struct):
    #: null when there is none
    value: Any
    found: bool
    #: answered from this node's line, without asking anybody
    hit: bool
    #: 0: never written, or deleted long ago
    version: int
    #: of this node's line: `M`, `E`, `S`; `I`: there is none
    state: str
    node: str


class GetManyAnswer(msgspec.Struct):
    #: one for each key, in order: `key` and the fields of a get
    items: list[dict[str, Any]]


class DeleteAnswer(msgspec.Struct):
    #: false: there was no value
    deleted: bool
    version: int


class IncrAnswer(msgspec.Struct):
    value: int
    version: int
    state: str


class LinesAnswer(msgspec.Struct):
    node: str
    #: lines of this node
    count: int
    #: `node`, `key`, `state`, `version`, `readable`, `bytes`, `age_ms`
    lines: list[dict[str, Any]]
    #: with `key`: nodes that did not answer
    unreachable: list[str] = []


class EvictAnswer(msgspec.Struct):
    #: false: this node had no line
    evicted: bool
    #: it was an M line: its value went to the memory first
    written_back: bool


class TraceAnswer(msgspec.Struct):
    key: str
    #: latest first: `at_ms`, `node`, `from`, `to`, `why`, `version`
    transitions: list[dict[str, Any]]
    unreachable: list[str] = []


class StatsAnswer(msgspec.Struct):
    node: str
    hits: int
    misses: int
    hit_ratio: float
    puts: int
    invalidations: int
    evictions: int
    write_backs: int
    #: lines of this node
    items: int
    bytes: int
    #: keys in the cluster
    keys: int
    #: values not yet in the memory
    dirty: int
    #: "django" or "redis"
    memory: str
    #: empty: the memory works
    memory_trouble: str
    #: values that the memory had lost when they were read
    memory_lost: int
    #: this node may answer from its lines for so long without hearing from the leader
    lease_ms: int
