"""What the core wants done: the only way anything leaves it.

The driver takes a `Ready`, sends `messages` at once, gives `persist` to the store, and calls `core.persisted(number)` when that
is durable. At most one `Persist` is outstanding. Messages that depend on it stay inside the core until then
and come with a later `Ready`: no vote and no acknowledgement leaves before its fsync.
"""

from __future__ import annotations

import msgspec

from dss_raft.core.messages import AnyMessage, Entry, InstallSnapshot, SnapshotMeta


class HardState(msgspec.Struct, frozen=True):
    """What must survive a crash (paper, figure 2): the term, and whom this node voted for in it ("" for nobody)."""

    term: int = 0
    vote: str = ""


class BootState(msgspec.Struct, frozen=True):
    """What the store found at start."""

    hard_state: HardState
    snapshot: SnapshotMeta
    #: contiguous, from snapshot.index + 1
    entries: list[Entry]


class Persist(msgspec.Struct, frozen=True):
    """One transaction of the store: truncate, append, term and vote, together or not at all."""

    #: names this write in `core.persisted(number)`
    number: int
    hard_state: HardState
    #: remove all entries from this index on, before appending; 0: nothing to remove
    truncate_from: int
    entries: list[Entry]
    #: a received snapshot that replaces the log up to its index; its bytes are complete in the store already
    snapshot: SnapshotMeta | None = None


class ReadState(msgspec.Struct, frozen=True):
    """A read with `context` may be answered once `index` is applied; `ok` false: leadership was lost, ask again."""

    context: int
    index: int
    ok: bool


class SnapshotChunkWanted(msgspec.Struct, frozen=True):
    """The driver reads the snapshot's bytes from `offset` and sends them to `to` as `InstallSnapshot` of `term`."""

    to: str
    term: int
    meta: SnapshotMeta
    offset: int


class Ready(msgspec.Struct, frozen=True):
    """Everything that has come up since the last one."""

    persist: Persist | None
    messages: list[AnyMessage]
    #: to be applied in order; committed and durable on this node
    committed: list[Entry]
    read_states: list[ReadState]
    #: chunks to be read and sent by this leader
    chunks_wanted: list[SnapshotChunkWanted]
    #: chunks that arrived: the driver stores them, then calls `core.chunk_stored(…)`
    chunks_received: list[InstallSnapshot]
    #: the state machines must be replaced by this snapshot (it is durable) before `committed` is applied
    restore: SnapshotMeta | None = None
