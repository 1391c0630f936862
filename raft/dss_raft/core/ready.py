"""The core's output: work for the driver.

The driver takes a `Ready`, sends `messages` immediately, gives `persist` to the store, and calls `core.persisted(number)` when it
is durable. At most one `Persist` is outstanding. Messages that depend on it stay in the core until then and come with a later
`Ready`: no vote or acknowledgement is sent before its fsync.
"""

from __future__ import annotations

import msgspec

from dss_raft.core.messages import AnyMessage, Entry, InstallSnapshot, SnapshotMeta


class HardState(msgspec.Struct, frozen=True):
    """What must survive a crash (paper, figure 2): the term, and the node it voted for in that term ("" for none)."""

    term: int = 0
    vote: str = ""


class BootState(msgspec.Struct, frozen=True):
    """What the store read at start."""

    hard_state: HardState
    snapshot: SnapshotMeta
    #: contiguous, from snapshot.index + 1
    entries: list[Entry]
    #: the store may have lost what it promised; see `RaftCore.outdated`
    is_outdated: bool = False


class Persist(msgspec.Struct, frozen=True):
    """One transaction of the store, all or nothing: truncate, append, term and vote."""

    #: identifies this write in `core.persisted(number)`
    number: int
    hard_state: HardState
    #: remove all entries from this index on, before appending; 0: nothing to remove
    truncate_from: int
    entries: list[Entry]
    #: a received snapshot that replaces the log up to its index; the store already has all its bytes
    snapshot: SnapshotMeta | None = None


class ReadState(msgspec.Struct, frozen=True):
    """A read with `context` may be answered once `index` is applied. `ok` is false when leadership was lost: ask again."""

    context: int
    index: int
    ok: bool


class SnapshotChunkWanted(msgspec.Struct, frozen=True):
    """Read the snapshot's bytes from `offset` on, and send them to `to` as `InstallSnapshot` of `term`."""

    to: str
    term: int
    meta: SnapshotMeta
    offset: int


class Ready(msgspec.Struct, frozen=True):
    """The work that has come up since the last `Ready`."""

    persist: Persist | None
    messages: list[AnyMessage]
    #: entries to apply in this order; committed, and durable on this node
    committed: list[Entry]
    read_states: list[ReadState]
    #: chunks that this leader must read and send
    chunks_wanted: list[SnapshotChunkWanted]
    #: received chunks: the driver stores them, then calls `core.chunk_stored(…)`
    chunks_received: list[InstallSnapshot]
    #: before applying `committed`, replace the state of the state machines by this durable snapshot
    restore: SnapshotMeta | None = None
