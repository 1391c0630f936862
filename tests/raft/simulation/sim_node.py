"""One simulated node: a core, a disk that survives crashes, and a state machine that is a running hash."""

from __future__ import annotations

import random
import zlib
from typing import Any

from sim_check import Checker
from sim_clocks import SimClocks
from sim_sessions import Sessions

from dss_raft.core import CoreConfig, RaftCore, Role
from dss_raft.core.messages import Configuration, Entry, SnapshotMeta
from dss_raft.core.ready import BootState, HardState, Persist

ELECTION_TICKS = (5, 10)
HEARTBEAT_TICKS = 2


class SimStore:
    """The durable state: one transaction per Persist, all or nothing."""

    def __init__(self, configuration: Configuration) -> None:
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta(0, 0, configuration)
        #: index -> bytes of the complete snapshots that are kept
        self.snapshots: dict[int, bytes] = {0: b""}
        self.entries: list[Entry] = []
        self.last_index = 0

    def write(self, persist: Persist) -> None:
        self.hard_state = persist.hard_state
        entries = self.entries
        if persist.truncate_from:
            while entries and entries[-1].index >= persist.truncate_from:
                entries.pop()
        if persist.snapshot is not None:
            self.keep(persist.snapshot)
        entries += persist.entries
        self.last_index = entries[-1].index if entries else self.snapshot.index

    def keep(self, meta: SnapshotMeta) -> None:
        """This snapshot is the current one; older ones, and the entries it covers, may be dropped."""
        if meta.index <= self.snapshot.index:
            return
        self.snapshot = meta
        for index in [index for index in self.snapshots if index < meta.index]:
            del self.snapshots[index]
        entries = self.entries
        if entries:
            del entries[: max(0, meta.index - entries[0].index + 1)]

    def boot(self) -> BootState:
        return BootState(self.hard_state, self.snapshot, list(self.entries))


class SimNode:
    """A node, and what the checker records about it."""

    def __init__(
        self,
        number: int,
        node_id: str,
        configuration: Configuration,
        limits: dict[str, Any],
        seed: int,
        sessions_of: Checker | None,
        clocks: SimClocks,
    ) -> None:
        self.number = number
        #: if given, the state machine is a Replica with sessions
        self.sessions_of = sessions_of
        self.clocks = clocks
        #: number of starts of this node; durable
        self.incarnation = 0
        self.id = node_id
        self.limits = limits
        self.rng = random.Random(seed)
        self.store = SimStore(configuration)
        #: incremented at every crash: events from before a crash have no effect
        self.life = 0
        self.alive = False
        #: its disk is lost permanently
        self.lost = False
        self.paused_until = 0
        self.clock_rate = 1.0
        self.seen_term = 0
        self.boot()

    def boot(self) -> None:
        """Start from the durable state."""
        config = CoreConfig(
            node_id=self.id,
            election_ticks_min=ELECTION_TICKS[0],
            election_ticks_max=ELECTION_TICKS[1],
            heartbeat_ticks=HEARTBEAT_TICKS,
            promote_lag_max=5,
            **self.limits,
        )
        self.alive = True
        self.paused_until = 0
        self.core = RaftCore(config, self.store.boot(), self.rng)
        self.incarnation += 1
        self.sessions = Sessions(self, self.incarnation, self.sessions_of, self.clocks) if self.sessions_of is not None else None
        self.load(self.store.snapshots[self.store.snapshot.index])
        self.seen_role = Role.FOLLOWER
        self.seen_commit = self.core.commit_index
        self.writing: Persist | None = None
        self.snapshotting = False
        #: handed out by the core and not applied yet; a snapshot to be loaded before
        self.to_apply: list[Entry] = []
        self.restoring: bytes | None = None
        self.applying = False
        #: index -> (term, data) of proposals without an outcome
        self.proposed: dict[int, tuple[int, bytes]] = {}
        self.chunks: dict[tuple[int, int], bytes] = {}

    def apply(self, entry: Entry) -> int:
        if self.sessions is not None:
            self.state = self.sessions.apply(entry)
        else:
            self.state = hash((self.state, entry.index, entry.term, zlib.crc32(entry.data)))
        self.state_index = entry.index
        return self.state

    def take_snapshot(self) -> tuple[SnapshotMeta, bytes]:
        """A snapshot of the present state."""
        data = b"%d:%d" % (self.state_index, self.state) if self.sessions is None else self.sessions.dump()
        meta = self.core.meta_at(self.state_index)
        return SnapshotMeta(meta.index, meta.term, meta.configuration, len(data), zlib.crc32(data)), data

    def load(self, snapshot: bytes) -> None:
        """Replace the state by a snapshot; an empty one resets it."""
        if not snapshot:
            self.state_index = self.state = 0
        elif self.sessions is None:
            index, state = snapshot.split(b":")
            self.state_index, self.state = int(index), int(state)
        else:
            self.state_index = self.sessions.load(snapshot)
            self.state = self.sessions.face()
