"""One simulated node: a core, a disk that survives crashes, and a state machine that is a running hash."""

from __future__ import annotations

import random
import zlib
from typing import Any

from sim_check import Checker
from sim_clocks import SimClocks
from sim_sessions import Sessions
from sim_versions import Releases

from dss_raft.core import CoreConfig, RaftCore, Role
from dss_raft.core.messages import Configuration, Entry, SnapshotMeta
from dss_raft.core.ready import BootState, HardState, Persist
from dss_raft.replication.commands import OpenSession

ELECTION_TICKS = (5, 10)
HEARTBEAT_TICKS = 2


class SimStore:
    """The durable state: one transaction per Persist, all or nothing."""

    def __init__(self, store_id: str, configuration: Configuration) -> None:
        self.id = store_id
        #: number of starts with this disk
        self.starts = 0
        #: it is known to have been put back to an earlier state
        self.is_outdated = False
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

    def holds(self, entry: Entry) -> bool:
        """True if this entry, or a snapshot that contains it, is durable here."""
        if entry.index <= self.snapshot.index:
            return True
        position = entry.index - self.entries[0].index if self.entries else -1
        return 0 <= position < len(self.entries) and self.entries[position].term == entry.term

    @property
    def is_empty(self) -> bool:
        """True while the disk belongs to no cluster."""
        return not self.snapshot.configuration.members and not self.entries

    def boot(self) -> BootState:
        return BootState(self.hard_state, self.snapshot, list(self.entries), self.is_outdated)

    def copy(self) -> SimStore:
        """A backup of the disk."""
        other = SimStore(self.id, self.snapshot.configuration)
        other.__dict__.update(self.__dict__, snapshots=dict(self.snapshots), entries=list(self.entries))
        return other


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
        releases: Releases,
    ) -> None:
        self.number = number
        #: if given, the state machine is a Replica with sessions
        self.sessions_of = sessions_of
        self.clocks = clocks
        self.releases = releases
        #: the cluster versions that its present release supports
        self.supported = releases.first()
        #: random, of the running process
        self.incarnation = 0
        self.id = node_id
        self.limits = limits
        self.rng = random.Random(seed)
        self.store = SimStore(f"{node_id}0", configuration)
        #: an older copy of the disk
        self.backup: SimStore | None = None
        #: the disk before it was emptied or put back
        self.lost: SimStore | None = None
        #: its disk was put back to an earlier state at least once
        self.was_restored = False
        #: peer -> its process, as its messages said
        self.peer_incarnations: dict[str, int] = {}
        #: incremented at every crash: events from before a crash have no effect
        self.life = 0
        self.alive = False
        #: it never starts again
        self.gone = False
        #: its disk is gone, empty or outdated: it waits to be replaced
        self.impaired = False
        #: number of disks that it has had
        self.disks = 1
        self.paused_until = 0
        self.clock_rate = 1.0
        self.seen_term = 0
        self.boot()

    def new_disk(self) -> None:
        """An empty disk, in place of the one that it had."""
        self.store = SimStore(f"{self.id}{self.disks}", Configuration(()))
        self.disks += 1
        self.backup = None

    def boot(self) -> None:
        """Start from the durable state."""
        config = CoreConfig(
            node_id=self.id,
            election_ticks_min=ELECTION_TICKS[0],
            election_ticks_max=ELECTION_TICKS[1],
            heartbeat_ticks=HEARTBEAT_TICKS,
            promote_lag_max=5,
            store_id=self.store.id,
            **self.limits,
        )
        self.alive = True
        self.paused_until = 0
        self.core = RaftCore(config, self.store.boot(), self.rng)
        self.incarnation = self.rng.getrandbits(48) + 1
        self.store.starts += 1
        #: the durable term and the end of the log at the start
        self.began = (self.store.hard_state.term, self.store.last_index)
        self.sessions = None
        if self.sessions_of is not None:
            opening = OpenSession(store=self.store.id, starts=self.store.starts)
            self.sessions = Sessions(self, self.incarnation, opening, self.sessions_of, self.clocks)
            self.sessions.replica.require_supported(self.store.entries)
            self.sessions.replica.own = (self.incarnation, self.store.id)
        self.peer_incarnations.clear()
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

    @property
    def finds_itself_outdated(self) -> bool:
        """True if its replicated state shows that the disk had held more."""
        if self.sessions is None:
            return False
        replica = self.sessions.replica
        has_started = replica.sessions.outdates(self.id, self.incarnation, self.store.id, self.store.starts)
        return has_started or replica.applied_before > self.began[1]

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
