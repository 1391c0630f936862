"""The answers of the operations of the cache, field by field."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from dss_api.answer import Answer, Part, RaftIndex


class PutAnswer(Answer, kw_only=True):
    #: grows with every write of the key
    version: int
    #: state of this node's line
    state: str
    index: RaftIndex


class PutItem(Part, kw_only=True):
    """One item of a `mput`: stored, or refused with a problem's code."""

    key: str
    ok: bool
    code: str | UnsetType = UNSET
    #: the new version; with `version_conflict` the current one
    version: int | UnsetType = UNSET
    state: str | UnsetType = UNSET
    #: the limit that is reached
    limit: str | UnsetType = UNSET
    maximum: int | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class PutManyAnswer(Answer, kw_only=True):
    #: one for each item, in order
    items: list[PutItem]
    #: of the last item that was stored; absent: none was
    index: RaftIndex | UnsetType = UNSET


class GetAnswer(Answer, kw_only=True):
    #: any JSON; null if the key has no value
    value: msgspec.Raw
    found: bool
    #: answered from this node's line
    hit: bool
    #: 0: never written, or deleted some time ago
    version: int
    #: state of this node's line: `M`, `E`, `S`; `I`: there is none
    state: str
    node: str
    #: "base64" or "attached": the value is bytes; absent: `value` is the value. See `attached`
    encoding: str | UnsetType = UNSET


class GetItem(Part):
    """One key of a `mget`, with the fields of a get."""

    key: str
    value: msgspec.Raw
    found: bool
    hit: bool
    version: int
    state: str
    node: str
    encoding: str | UnsetType = UNSET


class GetManyAnswer(Answer, kw_only=True):
    #: one for each key, in order
    items: list[GetItem]


class DeleteAnswer(Answer, kw_only=True):
    #: false: the key had no value
    deleted: bool
    version: int
    index: RaftIndex


class DeleteItem(Part, kw_only=True):
    """One key of a `mdelete`: done, or refused with a problem's code."""

    key: str
    ok: bool
    code: str | UnsetType = UNSET
    #: false: the key had no value
    deleted: bool | UnsetType = UNSET
    version: int | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class DeleteManyAnswer(Answer, kw_only=True):
    #: one for each key, in order
    items: list[DeleteItem]
    #: of the last key; absent: every call was refused
    index: RaftIndex | UnsetType = UNSET


class ClearAnswer(Answer, kw_only=True):
    #: values that this call deleted
    deleted: int
    #: values up to `up_to_version` that are left: repeat the call with this `up_to_version` until there are none
    remaining: int
    up_to_version: int


class TouchAnswer(Answer, kw_only=True):
    #: false: the key has no value
    touched: bool
    #: stays: the value is the same
    version: int
    index: RaftIndex


class IncrAnswer(Answer, kw_only=True):
    version: int
    state: str
    value: int
    index: RaftIndex


class LineRow(Part):
    """A line of a node. `state` is `I` when the node has none for the key."""

    node: str
    key: str
    state: str
    version: int
    #: false: it waits for other nodes to drop older lines
    readable: bool
    bytes: int
    age_ms: int | None
    #: near clients of this node that may hold the key
    clients: int = 0


class LinesAnswer(Answer, kw_only=True):
    node: str
    #: number of lines of this node
    count: int
    lines: list[LineRow]
    #: with `key`: nodes that did not answer
    unreachable: list[str]


class EvictAnswer(Answer, kw_only=True):
    #: false: this node had no line
    evicted: bool
    #: the line was in state M, so its value was written back first
    written_back: bool


class TransitionRow(Part):
    at_ms: int
    node: str
    from_: str = msgspec.field(name="from")
    to: str
    why: str
    version: int


class TraceAnswer(Answer, kw_only=True):
    key: str
    #: latest first
    transitions: list[TransitionRow]
    #: nodes that did not answer
    unreachable: list[str]


class StatsAnswer(Answer, kw_only=True):
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
    #: programs that keep values of this node in their own process
    near_clients: int
    #: keys that they may hold
    near_keys: int
    #: node -> longest lease of its near clients, according to the log; a node that starts again waits for it
    near_leases_ms: dict[str, int]
