"""The nodes of the simulated world and what a driver does for each: ticks, writes, applying, snapshots, messages, crashes."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable
from typing import Any

import sim_profile
from sim_check import Violation
from sim_clocks import SimTime
from sim_heap import Heap
from sim_node import SimNode, SimStore
from sim_requests import Clients
from sim_sessions import ClockTold, Forward
from sim_versions import NEW, Releases

from dss_raft.core import Role
from dss_raft.core.messages import Configuration, InstallSnapshot, Member, SnapshotMeta
from dss_raft.core.ready import Persist, Ready, SnapshotChunkWanted
from dss_raft.versions import UnsupportedVersion

RESEND_US = 100_000
#: nodes tell each other their wall clocks in this interval
CLOCK_US = 50_000
#: a message with a clock is late by this at most, if its receiver is not paused
CLOCK_LATE_US = 5_000


class Drivers(Heap):
    """All nodes, their disks and the network between them."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None, profile: sim_profile.Profile | None) -> None:
        super().__init__(seed, trace, profile)
        #: (sender, receiver) of links that are cut
        self.cut: dict[tuple[str, str], bool] = {}
        self.nodes: dict[str, SimNode] = self.check.nodes
        self.restores = 0
        self.time = SimTime(lambda: self.now, self.seed, self.profile.voters, self.happened)
        self.releases = Releases(self.seed, self.profile.sessions, lambda: self.now, self.happened)
        self.clients = Clients(self.seed, self.profile.sessions, self.happened)
        self.releases.must_rise |= self.clients.are_there
        members = [Member(id=chr(97 + i), url="", store=f"{chr(97 + i)}0") for i in range(self.profile.voters)]
        for member in members:
            self._start_node(member.id, Configuration(tuple(members)))

    # ---- for the clients

    def _resend(self, node: SimNode, life: int) -> None:
        raise NotImplementedError

    def _arrived(self, node: SimNode, forward: Forward) -> None:
        raise NotImplementedError

    # ---- nodes

    def _start_node(self, node_id: str, configuration: Configuration) -> SimNode:
        limits = {
            "append_entries_max": self.profile.append_entries_max,
            "inflight_messages_max": self.profile.inflight_messages_max,
            "append_bytes_max": self.profile.append_bytes_max,
            "inflight_bytes_max": self.profile.inflight_bytes_max,
            "uncommitted_bytes_max": self.profile.uncommitted_bytes_max,
        }
        sessions_of = self.check if self.profile.sessions else None
        clocks = self.time.clocks_of(node_id)
        node = SimNode(
            len(self.nodes), node_id, configuration, limits, self.rng.getrandbits(32), sessions_of, clocks, self.releases
        )
        self.nodes[node_id] = node
        node.clock_rate = self.rng.uniform(*self.profile.clock_rates)
        self._wake(node)
        return node

    def _wake(self, node: SimNode) -> None:
        self._later(self.rng.randint(0, self.profile.tick_us), self._tick, node, node.life)
        if self.profile.sessions:
            self._later(RESEND_US, self._resend, node, node.life)
            self._later(0, self._tell_clock, node, node.life)

    def _postponed(self, node: SimNode, action: Callable[..., None], *arguments: Any) -> bool:
        """A paused node does nothing now; the work waits for it."""
        if node.paused_until <= self.now:
            return False
        self._sequence += 1
        heapq.heappush(self._heap, (node.paused_until, self._sequence, action, arguments))
        return True

    def _tick(self, node: SimNode, life: int) -> None:
        if life != node.life:
            return
        tick_us = int(self.profile.tick_us / node.clock_rate)
        if node.paused_until > self.now:
            missed = (node.paused_until - self.now) // tick_us if self.profile.burst_ticks else 0
            self._later(node.paused_until - self.now, self._ticks, node, life, int(missed))
            return
        self._note(1, node, 0)
        node.core.tick()
        if node.sessions is not None:
            node.sessions.ticked()
        self._drain(node)
        self._later(tick_us, self._tick, node, life)

    def _ticks(self, node: SimNode, life: int, count: int) -> None:
        """After a pause, many ticks may be due at the same time."""
        self.happened["clock jump"] += count > 1
        for _ in range(count):
            if life == node.life:
                node.core.tick()
                self._drain(node)
        self._tick(node, life)

    def _drain(self, node: SimNode) -> None:
        """Carry out the work of the core, like a driver."""
        try:
            self._carry_out_ready(node)
        except UnsupportedVersion:
            self._stop_at_version(node)

    def _stop_at_version(self, node: SimNode) -> None:
        """It has met a version that it does not support."""
        self._say(node.id, "stops at a version that its release does not support")
        self.happened["stop at a newer version"] += 1
        self._crash(node)

    def _carry_out_ready(self, node: SimNode) -> None:
        core, check = node.core, self.check
        while (ready := core.take_ready()) is not None:
            check.moved(node)
            if ready.persist is not None:
                self._write(node, ready.persist)
            for message in ready.messages:
                self._send(node, message)
            for wanted in ready.chunks_wanted:
                self._send_chunk(node, wanted)
            for chunk in ready.chunks_received:
                self._store_chunk(node, chunk)
            for read in ready.read_states:
                check.read_answered(read.context, read.index, read.ok)
            if ready.committed or ready.restore is not None or node.to_apply or node.restoring is not None:
                self._apply(node, ready)
        check.moved(node)

    def _apply(self, node: SimNode, ready: Ready) -> None:
        if ready.restore is not None:
            node.to_apply.clear()
            node.restoring = node.store.snapshots[ready.restore.index]
        node.to_apply += ready.committed
        if self.profile.apply_us == 0 or self.healed:
            self._apply_waiting(node)
        elif not node.applying and (node.to_apply or node.restoring is not None):
            node.applying = True
            self._later(self.rng.randint(0, self.profile.apply_us), self._apply_later, node, node.life)

    def _apply_later(self, node: SimNode, life: int) -> None:
        if life != node.life or self._postponed(node, self._apply_later, node, life):
            return
        node.applying = False
        self._note(9, node, len(node.to_apply))
        try:
            self._apply_waiting(node)
        except UnsupportedVersion:
            self._stop_at_version(node)
            return
        self._drain(node)

    def _apply_waiting(self, node: SimNode) -> None:
        if node.restoring is not None:
            self._restore(node)
        if not node.to_apply:
            return
        check, entries = self.check, node.to_apply
        node.to_apply = []
        for entry in entries:
            if entry.index != node.state_index + 1:
                raise Violation("state_machine_safety", f"{node.id} is given {entry.index} to apply after {node.state_index}")
            check.applied(node, entry.index, node.apply(entry))
            if node.proposed:
                check.delivered(node, entry)
        node.core.applied(node.state_index)
        if node.finds_itself_outdated:
            self._finds_outdated(node, node)
        if self.trace:
            self._say(node.id, f"applied {entries[0].index}-{node.state_index}")
        # the core's snapshot, not the store's: one that is being installed has replaced the log already
        if not node.snapshotting and node.state_index - node.core.snapshot.index >= self.profile.snapshot_entries:
            node.snapshotting = True
            meta, data = node.take_snapshot()
            self._later(self.profile.snapshot_us, self._snapshot_taken, node, node.life, meta, data)

    def _restore(self, node: SimNode) -> None:
        assert node.restoring is not None
        node.load(node.restoring)
        node.restoring = None
        index = node.state_index
        self.check.applied(node, index, node.state)
        node.core.applied(index)
        self.restores += 1
        # the outcome of proposals inside the snapshot is unknown
        node.proposed = {at: proposal for at, proposal in node.proposed.items() if at > index}
        self._say(node.id, f"restored {index}")

    # ---- disk

    def _write(self, node: SimNode, persist: Persist) -> None:
        store = node.store
        if persist.entries:
            first = persist.entries[0]
            prev_term = node.core.log.term(first.index - 1)
            self.check.appended(node, persist.entries, prev_term if prev_term is not None else 0)
        if node.writing is not None:
            raise Violation("core_invariant", f"{node.id} has two writes in progress")
        if persist.hard_state.term < store.hard_state.term:
            raise Violation("monotone", f"{node.id} writes term {persist.hard_state.term} over {store.hard_state.term}")
        if persist.hard_state.term == store.hard_state.term and store.hard_state.vote not in ("", persist.hard_state.vote):
            raise Violation("monotone", f"{node.id} changes its vote in term {persist.hard_state.term}")
        node.writing = persist
        fsync_us = 200 if self.healed else self.profile.fsync_us
        delay = self.rng.randint(fsync_us // 2, fsync_us * 2)
        if not self.healed and self.rng.random() < self.profile.stall_probability:
            delay += self.rng.randint(0, self.profile.stall_us)
            self.happened["disk stall"] += 1
        self._later(delay, self._written, node, node.life)

    def _written(self, node: SimNode, life: int) -> None:
        if life != node.life or self._postponed(node, self._written, node, life):
            return
        persist = node.writing
        assert persist is not None
        node.writing = None
        node.store.write(persist)
        self._note(2, node, persist.number)
        if self.trace:
            last = persist.entries[-1].index if persist.entries else 0
            self._say(node.id, f"durable: {persist.hard_state} up to {last}" + (" snapshot" if persist.snapshot else ""))
        node.core.persisted(persist.number)
        self._drain(node)

    def _snapshot_taken(self, node: SimNode, life: int, meta: SnapshotMeta, data: bytes) -> None:
        if life != node.life or self._postponed(node, self._snapshot_taken, node, life, meta, data):
            return
        node.snapshotting = False
        if meta.index <= node.store.snapshot.index:
            return
        self._note(3, node, meta.index)
        self._say(node.id, f"snapshot {meta.index} is durable")
        self.happened["snapshot"] += 1
        node.store.snapshots[meta.index] = data
        node.store.keep(meta)
        node.core.compact(meta, self.profile.keep_entries)
        self._drain(node)

    def _send_chunk(self, node: SimNode, wanted: SnapshotChunkWanted) -> None:
        data = node.store.snapshots.get(wanted.meta.index)
        if data is None:
            return
        # a few chunks, whatever the size of the state
        size = max(self.profile.chunk_bytes, len(data) // 4)
        chunk = data[wanted.offset : wanted.offset + size]
        done = wanted.offset + len(chunk) == len(data)
        self._send(
            node,
            InstallSnapshot(
                sender=node.id,
                to=wanted.to,
                term=wanted.term,
                meta=wanted.meta,
                offset=wanted.offset,
                data=chunk,
                crc=zlib.crc32(chunk),
                done=done,
            ),
        )

    def _store_chunk(self, node: SimNode, chunk: InstallSnapshot) -> None:
        key = (chunk.meta.index, chunk.meta.crc)
        stored = node.chunks.get(key, b"")
        self.happened["chunk"] += 1
        if chunk.offset == len(stored):
            stored = node.chunks[key] = stored + chunk.data
        self._later(self.rng.randint(0, self.profile.fsync_us), self._chunk_stored, node, node.life, chunk.meta, len(stored))

    def _chunk_stored(self, node: SimNode, life: int, meta: SnapshotMeta, length: int) -> None:
        if life != node.life or self._postponed(node, self._chunk_stored, node, life, meta, length):
            return
        self._note(4, node, length)
        complete = length == meta.size
        if complete:
            data = node.chunks.get((meta.index, meta.crc), b"")
            if zlib.crc32(data) != meta.crc:
                raise Violation("state_machine_safety", f"{node.id} has put a broken snapshot together")
            if meta.index >= node.store.snapshot.index:
                node.store.snapshots[meta.index] = data
        node.core.chunk_stored(meta, length, complete)
        self._drain(node)

    # ---- network

    def _send(self, node: SimNode, message: Any) -> None:
        self.check.leaves(node, message)
        if self.trace:
            self._say(node.id, f"-> {message.to} {brief(message)}")
        self._transmit(message)

    def _transmit(self, message: Any) -> None:
        rng, profile = self.rng, self.profile
        sender = self.nodes[message.sender]
        origin = (sender.store.id, sender.incarnation, sender.store.is_outdated)
        if message.to not in self.nodes or (message.sender, message.to) in self.cut:
            return
        if self.healed:
            self._later(rng.randint(50, 500), self._deliver, message, origin)
            return
        if profile.loss and rng.random() < profile.loss:
            self.happened["message lost"] += 1
            return
        delay = rng.randint(*profile.latency_us)
        if profile.slow_probability and rng.random() < profile.slow_probability:
            delay += rng.randint(0, profile.slow_us)
            self.happened["message late"] += 1
        self._later(delay, self._deliver, message, origin)
        if profile.duplicates and rng.random() < profile.duplicates:
            self._later(delay + rng.randint(0, profile.duplicate_us), self._deliver, message, origin)
            self.happened["message doubled"] += 1

    def _deliver(self, message: Any, origin: tuple[str, int, bool]) -> None:
        node = self.nodes[message.to]
        if not node.alive or (message.sender, message.to) in self.cut:
            return
        if node.paused_until > self.now and self._postponed(node, self._deliver, message, origin):
            return
        store, incarnation, is_outdated = origin
        if node.peer_incarnations.get(message.sender) != incarnation:
            sender = self.nodes[message.sender]
            if sender.incarnation != incarnation:
                return  # the connection of a process that has ended is closed
            node.peer_incarnations[message.sender] = incarnation
            if node.core.knows_newer(sender.id, store, *sender.began):
                self._finds_outdated(node, sender)
            node.core.peer_restarted(message.sender)
        if is_outdated:
            node.core.peer_outdated(store)
        if self.trace:
            self._say(node.id, f"<- {message.sender} {brief(message)}")
        if type(message) is Forward:
            self._note(8, node, len(message.groups))
            self._arrived(node, message)
        else:
            self._note(5, node, message.term)
            node.core.step(message, store)
        self._drain(node)
        if node.core.found_outdated:
            self._tell_outdated(node)

    def _tell_clock(self, node: SimNode, life: int) -> None:
        if life != node.life or self._postponed(node, self._tell_clock, node, life):
            return
        self._later(CLOCK_US, self._tell_clock, node, life)
        assert node.sessions is not None
        node.sessions.look()
        for peer in self.nodes:
            if peer != node.id and not self.time.chance(self.profile.loss):
                told = ClockTold(node.id, peer, node.clocks.wall_ms(), node.supported)
                self._later(self.time.delay_us(CLOCK_LATE_US), self._deliver_clock, told, self.time.down_ms)

    def _deliver_clock(self, told: ClockTold, down_ms: int) -> None:
        node = self.nodes[told.to]
        if not node.alive or (told.sender, told.to) in self.cut or down_ms != self.time.down_ms:
            return
        if not self._postponed(node, self._deliver_clock, told, down_ms):
            assert node.sessions is not None
            node.sessions.heard(told)

    # ---- crashes and restarts

    def _tell_outdated(self, leader: SimNode) -> None:
        """A leader tells its peers that they have lost what they had acknowledged."""
        found, leader.core.found_outdated = leader.core.found_outdated, []
        for peer in found:
            self._finds_outdated(leader, self.nodes[peer])

    def _finds_outdated(self, node: SimNode, peer: SimNode) -> None:
        if not peer.impaired:
            raise Violation("core_invariant", f"{node.id} says that {peer.id} has lost what it had promised, but it has not")
        self._outdated(peer, node.core.term)

    def _check_starts(self, node: SimNode) -> None:
        """The nodes that it reaches compare its starts with the log's."""
        if not node.was_restored:
            return
        for other in self.nodes.values():
            if self._knows_more(other, node, node.store, node.store.starts):
                self._outdated(node, other.core.term)

    def _knows_more(self, other: SimNode, node: SimNode, store: SimStore, starts: int) -> bool:
        """True if `node` reaches `other`, and that knows more about this disk than is on it."""
        if other is node or not other.alive or (other.id, node.id) in self.cut:
            return False
        if other.core.knows_newer(node.id, store.id, store.hard_state.term, store.last_index):
            return True
        sessions = other.sessions
        return sessions is not None and sessions.replica.sessions.outdates(node.id, node.incarnation + 1, store.id, starts)

    def _outdated(self, node: SimNode, term: int) -> None:
        if not node.store.is_outdated:
            self._say(node.id, "has an outdated disk")
            node.store.is_outdated = True
        elif term <= node.core.term:
            return
        if node.alive:
            node.core.outdated(term)
            self._drain(node)

    def _awake(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.alive and node.paused_until <= self.now]

    def _leader(self) -> SimNode | None:
        """The leader of the highest term, if there is one."""
        leaders = [node for node in self._awake() if node.core.role is Role.LEADER]
        return max(leaders, key=lambda node: node.core.term, default=None)

    def _crash(self, node: SimNode) -> None:
        if not node.alive:
            return
        node.alive = False
        node.life += 1
        if node.backup is None or self.rng.random() < 0.3:
            node.backup = node.store.copy()
        if node.writing is not None:
            survives = self.rng.random() < self.profile.survives
            self.happened["write kept at a crash" if survives else "write lost at a crash"] += 1
            if survives:
                node.store.write(node.writing)
        node.writing = None
        self._note(6, node, 0)
        self._say(node.id, "CRASH")
        if not node.gone:
            self._later(self.rng.randint(1, 2 * self.profile.restart_us), self._restart, node, node.life)

    def _restart(self, node: SimNode, life: int) -> None:
        if node.alive or node.gone or life != node.life:
            return
        self.releases.restarts(node)
        try:
            node.boot()
        except UnsupportedVersion:
            self.happened["way back refused"] += 1
            node.supported = NEW  # as its last line advises
            node.boot()
        self.happened["restart"] += 1
        self._note(7, node, 0)
        self._say(
            node.id, f"restarts: {node.store.hard_state}, snapshot {node.store.snapshot.index}, last {node.store.last_index}"
        )
        if node.core.term < node.seen_term and node.store.hard_state.term < node.core.hard_durable.term:
            raise Violation("monotone", f"{node.id} forgot term {node.seen_term}")
        node.seen_term = node.core.term
        self._check_starts(node)
        self._wake(node)


def brief(message: Any) -> str:
    """A message on one line: its fields without sender and receiver, entries as a range."""
    parts = []
    for name in message.__struct_fields__:
        if name in ("sender", "to"):
            continue
        value = getattr(message, name)
        if name == "entries":
            value = f"{value[0].index}-{value[-1].index}@{value[-1].term}" if value else "none"
        elif name == "meta":
            value = value.index
        elif name == "data":
            value = len(value)
        parts.append(f"{name}={value}")
    return f"{type(message).__name__}({', '.join(parts)})"
