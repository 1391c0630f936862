"""The answers of the operations, field by field: the API's documentation is generated from these."""

from __future__ import annotations

from typing import Any

import msgspec


class PutAnswer(msgspec.Struct):
    #: grows with every write of the key
    version: int
    #: state of this node's line
    state: str


class PutManyAnswer(msgspec.Struct):
    #: one for each item, in order: `key`, `ok`, `version`, `state`; or `code` and `detail`
    items: list[dict[str, Any]]


class GetAnswer(msgspec.Struct):
    #: null if the key has no value
    value: Any
    found: bool
    #: answered from this node's line
    hit: bool
    #: 0: never written, or deleted some time ago
    version: int
    #: state of this node's line: `M`, `E`, `S`; `I`: there is none
    state: str
    node: str


class GetManyAnswer(msgspec.Struct):
    #: one for each key, in order: `key` and the fields of a get
    items: list[dict[str, Any]]


class DeleteAnswer(msgspec.Struct):
    #: false: the key had no value
    deleted: bool
    version: int


class IncrAnswer(msgspec.Struct):
    value: int
    version: int
    state: str


class LinesAnswer(msgspec.Struct):
    node: str
    #: number of lines of this node
    count: int
    #: `node`, `key`, `state`, `version`, `readable`, `bytes`, `age_ms`
    lines: list[dict[str, Any]]
    #: with `key`: nodes that did not answer
    unreachable: list[str] = []


class EvictAnswer(msgspec.Struct):
    #: false: this node had no line
    evicted: bool
    #: the line was in state M, so its value was written back first
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
    #: values that are not in the backing store yet
    dirty: int
    #: the backing store: "django" or "redis"
    memory: str
    #: why the backing store cannot be used; empty: it works
    memory_trouble: str
    #: values that the backing store had lost when they were read
    memory_lost: int
    #: how long this node may still answer from its lines without hearing from the leader
    lease_ms: int
