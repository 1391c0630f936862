"""The world of one seed: one heap of events, one source of randomness, virtual time.

The same seed gives the same events in the same order, and so the same trace hash, on any machine.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sim_profile
from sim_check import Checker, Violation
from sim_node import SimNode
from sim_sessions import Forward, batch

from dss_raft.core import AddLearner, Busy, ChangeRefused, InvariantViolation, NotLeader, Remove, Role
from dss_raft.core.messages import Configuration, EntryKind, InstallSnapshot, Member, SnapshotMeta
from dss_raft.core.ready import Persist, Ready, SnapshotChunkWanted

NODES_MAX = 9
RESEND_US = 100_000
#: after the healing: more than thirty election timeouts
PROGRESS_US = 3_000_000


@dataclass
class Outcome:
    """How a seed went; `failed` names the check, "" for a clean run."""

    seed: int
    events: int
    trace_hash: int
    #: what really happened, so that a clean run is not an empty one
    commits: int = 0
    leaders: int = 0
    restores: int = 0
    reads: int = 0
    answered: int = 0
    configurations: int = 0
    failed: str = ""
    detail: str = ""
    time_us: int = 0


class World:
    """Nodes, network, disks, clocks, clients, an administrator, and a nemesis."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None, profile: sim_profile.Profile | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.profile = profile or sim_profile.draw(self.rng)
        self.trace = trace
        self.check = Checker()
        self.now = 0
        self.events = 0
        self.trace_hash = seed
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self.healed = False
        self.cut: dict[tuple[str, str], bool] = {}
        self.nodes: dict[str, SimNode] = {}
        self._next_data = 0
        self._next_context = 0
        members = [Member(id=chr(97 + i), url="") for i in range(self.profile.voters)]
        for member in members:
            self._start_node(member.id, Configuration(tuple(members)))
        self._later(self.profile.client_us, self._client)
        self._later(self.profile.read_us, self._read)
        self._later(self.profile.admin_us, self._admin)
        self._later(self.profile.fault_us, self._fault)
        self._later(self.profile.faults_us, self._heal)
        self.restores = 0
        self.final_index = 0
        self.final_term = 0

    # ---- the heap

    def _later(self, delay_us: int, action: Callable[..., None], *arguments: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_us, self._sequence, action, arguments))

    def run(self) -> Outcome:
        """Until everything has healed and caught up, or a check fails."""
        failed = detail = ""
        try:
            self._loop()
        except Violation as violation:
            failed, detail = violation.check, str(violation)
        except InvariantViolation as violation:
            failed, detail = "core_invariant", f"core_invariant: {violation}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            failed, detail = "crash", f"crash: {type(error).__name__}: {error}"
        if failed and self.trace:
            self.trace(f"{self.now / 1000:10.3f} FAILED {detail}")
        check = self.check
        return Outcome(
            seed=self.seed,
            events=self.events,
            trace_hash=hash((self.trace_hash, check.commit_max, check.states.get(check.applied_max, 0))),
            commits=check.commit_max,
            leaders=len(check.leaders),
            restores=self.restores,
            reads=check.reads_answered,
            answered=check.answered,
            configurations=sum(1 for entry in check.committed.values() if entry.kind == EntryKind.CONFIGURATION),
            failed=failed,
            detail=detail,
            time_us=self.now,
        )

    def _loop(self) -> None:
        heap = self._heap
        while heap:
            self.now, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            if action(*arguments) is True:
                return

    def _note(self, kind: int, node: SimNode, value: int) -> None:
        self.trace_hash = hash((self.trace_hash, self.now, kind, node.number, value))

    def _say(self, node_id: str, text: str) -> None:
        if self.trace:
            self.trace(f"{self.now / 1000:10.3f} {node_id:>2} {text}")

    # ---- nodes

    def _start_node(self, node_id: str, configuration: Configuration) -> SimNode:
        limits = {
            "append_entries_max": self.profile.append_entries_max,
            "inflight_messages_max": self.profile.inflight_messages_max,
        }
        sessions_of = self.check if self.profile.sessions else None
        node = SimNode(len(self.nodes), node_id, configuration, limits, self.rng.getrandbits(32), sessions_of)
        self.nodes[node_id] = node
        node.clock_rate = self.rng.uniform(*self.profile.clock_rates)
        self._wake(node)
        return node

    def _wake(self, node: SimNode) -> None:
        self._later(self.rng.randint(0, self.profile.tick_us), self._tick, node, node.life)
        if self.profile.sessions:
            self._later(RESEND_US, self._resend, node, node.life)

    def _postponed(self, node: SimNode, action: Callable[..., None], *arguments: Any) -> bool:
        """A paused node does nothing now; it will find all this waiting."""
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
        self._drain(node)
        self._later(tick_us, self._tick, node, life)

    def _ticks(self, node: SimNode, life: int, count: int) -> None:
        """After a pause a driver may find that many ticks are due at once."""
        for _ in range(count):
            if life == node.life:
                node.core.tick()
                self._drain(node)
        self._tick(node, life)

    def _drain(self, node: SimNode) -> None:
        """Do what the core wants done, as a driver does."""
        core = node.core
        while (ready := core.take_ready()) is not None:
            self.check.moved(node)
            if ready.persist is not None:
                self._write(node, ready.persist)
            for message in ready.messages:
                self._send(node, message)
            for wanted in ready.chunks_wanted:
                self._send_chunk(node, wanted)
            for chunk in ready.chunks_received:
                self._store_chunk(node, chunk)
            for read in ready.read_states:
                self.check.read_answered(read.context, read.index, read.ok)
            self._apply(node, ready)
        self.check.moved(node)

    def _apply(self, node: SimNode, ready: Ready) -> None:
        if ready.restore is not None:
            node.load(node.store.snapshots[ready.restore.index])
            index = node.state_index
            self.check.applied(node, index, node.state)
            node.core.applied(index)
            self.restores += 1
            # what became of proposals inside the snapshot is not to be seen
            node.proposed = {at: proposal for at, proposal in node.proposed.items() if at > index}
            self._say(node.id, f"restored {index}")
        if not ready.committed:
            return
        check = self.check
        for entry in ready.committed:
            if entry.index != node.state_index + 1:
                raise Violation("state_machine_safety", f"{node.id} is given {entry.index} to apply after {node.state_index}")
            check.applied(node, entry.index, node.apply(entry))
            if node.proposed:
                check.delivered(node, entry)
        node.core.applied(node.state_index)
        if self.trace:
            self._say(node.id, f"applied {ready.committed[0].index}-{node.state_index}")
        if not node.snapshotting and node.state_index - node.store.snapshot.index >= self.profile.snapshot_entries:
            node.snapshotting = True
            meta, data = node.take_snapshot()
            self._later(self.profile.snapshot_us, self._snapshot_taken, node, node.life, meta, data)

    # ---- disk

    def _write(self, node: SimNode, persist: Persist) -> None:
        store = node.store
        if persist.entries:
            first = persist.entries[0]
            prev_term = node.core.log.term(first.index - 1)
            self.check.appended(node, persist.entries, prev_term if prev_term is not None else 0)
        if node.writing is not None:
            raise Violation("core_invariant", f"{node.id} has two writes under way")
        if persist.hard_state.term < store.hard_state.term:
            raise Violation("monotone", f"{node.id} writes term {persist.hard_state.term} over {store.hard_state.term}")
        if persist.hard_state.term == store.hard_state.term and store.hard_state.vote not in ("", persist.hard_state.vote):
            raise Violation("monotone", f"{node.id} changes its vote in term {persist.hard_state.term}")
        node.writing = persist
        fsync_us = 200 if self.healed else self.profile.fsync_us
        delay = self.rng.randint(fsync_us // 2, fsync_us * 2)
        if not self.healed and self.rng.random() < self.profile.stall_probability:
            delay += self.rng.randint(0, self.profile.stall_us)
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
        node.store.snapshots[meta.index] = data
        node.store.keep(meta)
        node.core.compact(meta, self.profile.keep_entries)
        self._drain(node)

    def _send_chunk(self, node: SimNode, wanted: SnapshotChunkWanted) -> None:
        data = node.store.snapshots.get(wanted.meta.index)
        if data is None:
            return
        # a few chunks, however big the state is
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
        if message.to not in self.nodes or (message.sender, message.to) in self.cut:
            return
        if self.healed:
            self._later(rng.randint(50, 500), self._deliver, message)
            return
        if profile.loss and rng.random() < profile.loss:
            return
        delay = rng.randint(*profile.latency_us)
        if profile.slow_probability and rng.random() < profile.slow_probability:
            delay += rng.randint(0, profile.slow_us)
        self._later(delay, self._deliver, message)
        if profile.duplicates and rng.random() < profile.duplicates:
            self._later(delay + rng.randint(0, profile.duplicate_us), self._deliver, message)

    def _deliver(self, message: Any) -> None:
        node = self.nodes[message.to]
        if not node.alive or (message.sender, message.to) in self.cut:
            return
        if self._postponed(node, self._deliver, message):
            return
        if self.trace:
            self._say(node.id, f"<- {message.sender} {brief(message)}")
        if type(message) is Forward:
            self._note(8, node, len(message.groups))
            self._arrived(node, message)
        else:
            self._note(5, node, message.term)
            node.core.step(message)
        self._drain(node)

    # ---- clients and administrator

    def _awake(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.alive and node.paused_until <= self.now]

    def _leader(self) -> SimNode | None:
        """Whoever leads the highest term, if anybody does."""
        leaders = [node for node in self._awake() if node.core.role is Role.LEADER]
        return max(leaders, key=lambda node: node.core.term, default=None)

    def _client(self) -> None:
        if not self.healed:
            self._later(self.profile.client_us, self._client)
        awake = self._awake()
        if not awake:
            return
        # any node that takes itself for the leader, deposed ones too
        node = self.rng.choice([node for node in awake if node.core.role is Role.LEADER] or awake)
        burst = self.rng.randint(1, self.profile.burst)
        if self.profile.sessions:
            self._submit(self.rng.choice(awake), burst)
            return
        for _ in range(burst):
            self._propose(node, self._data())
        self._drain(node)

    def _data(self) -> bytes:
        self._next_data += 1
        return b"%d" % self._next_data if not self.profile.sessions else batch(self.now, [])

    def _submit(self, node: SimNode, count: int) -> None:
        """A node's callers: their commands go to the leader, as far as it is known."""
        assert node.sessions is not None
        groups = []
        for _ in range(count):
            self._next_data += 1
            groups.append(node.sessions.submit(self._next_data))
        self._forward(node, groups)

    def _resend(self, node: SimNode, life: int) -> None:
        """Now and then, and so after a change of leader: whatever is in flight, once more."""
        if life != node.life or self._postponed(node, self._resend, node, life):
            return
        self._later(RESEND_US, self._resend, node, life)
        assert node.sessions is not None
        self._forward(node, node.sessions.again())

    def _forward(self, node: SimNode, groups: list[bytes]) -> None:
        leader_id = node.core.leader_id
        if not groups or not leader_id:
            return
        if leader_id == node.id:
            self._propose(node, batch(self.now, groups))
            self._drain(node)
        else:
            self._transmit(Forward(node.id, leader_id, groups))

    def _arrived(self, node: SimNode, forward: Forward) -> None:
        if node.core.role is Role.LEADER:
            self._propose(node, batch(self.now, forward.groups))

    def _propose(self, node: SimNode, data: bytes) -> int:
        try:
            index = node.core.propose(data)
        except (NotLeader, Busy):
            return 0
        self.check.proposed(node, index, data)
        return index

    def _read(self) -> None:
        if not self.healed:
            self._later(self.profile.read_us, self._read)
        awake = self._awake()
        if awake:
            node = self.rng.choice(awake)
            self._next_context += 1
            self.check.read_asked(self._next_context)
            node.core.read_index(self._next_context)
            self._drain(node)

    def _admin(self) -> None:
        if self.healed:
            return
        self._later(self.rng.randint(1, 2 * self.profile.admin_us), self._admin)
        if not any(self.profile.admin_weights):
            return
        (action,) = self.rng.choices(
            (self._transfer, self._force, self._add, self._remove, self._lose_disk), weights=self.profile.admin_weights
        )
        # deposed leaders are asked too: they do not know it yet
        leaders = [node for node in self._awake() if node.core.role is Role.LEADER]
        if leaders:
            leader = self.rng.choice(leaders)
            try:
                action(leader)
            except (Busy, ChangeRefused, NotLeader):
                return
            self._drain(leader)

    def _transfer(self, leader: SimNode) -> None:
        to = self.rng.choice(leader.core.membership.voters)
        self._say(leader.id, f"transfer to {to}")
        leader.core.transfer(to)

    def _force(self, leader: SimNode) -> None:
        node = self.rng.choice(self._awake())
        self._say(node.id, "campaign by force")
        node.core.campaign(force=True)
        self._drain(node)

    def _add(self, leader: SimNode) -> None:
        if len(self.nodes) >= NODES_MAX:
            return
        node_id = chr(97 + len(self.nodes))
        leader.core.change(AddLearner(node_id, ""))
        self._say(leader.id, f"add {node_id}")
        self._start_node(node_id, Configuration(()))

    def _remove(self, leader: SimNode) -> None:
        members = leader.core.configuration.members
        lost = [member.id for member in members if self.nodes[member.id].lost]
        if lost or len(leader.core.membership.voters) > 2:
            node_id = self.rng.choice(lost or [member.id for member in members])
            self._say(leader.id, f"remove {node_id}")
            leader.core.change(Remove(node_id))

    def _lose_disk(self, leader: SimNode) -> None:
        """A flipped bit, found at start: the store refuses, this node never comes back. One at a time, for a quorum's sake."""
        if any(node.lost for node in self.nodes.values()):
            return
        if any(len(node.core.membership.voters) < 4 for node in self.nodes.values() if node.core.membership.voters):
            return
        node = self.rng.choice([node for node in self.nodes.values() if node is not leader])
        self._say(node.id, "loses its disk")
        node.lost = True
        self._crash(node)

    # ---- faults

    def _fault(self) -> None:
        if self.healed:
            return
        self._later(self.rng.randint(1, 2 * self.profile.fault_us), self._fault)
        if not any(self.profile.weights):
            return
        (name,) = self.rng.choices(sim_profile.FAULTS, weights=self.profile.weights)
        self._say("", f"-- {name}")
        getattr(self, f"_fault_{name}")()

    def _between(self, some: list[str], others: list[str]) -> None:
        for a in some:
            for b in others:
                self.cut[a, b] = self.cut[b, a] = True

    def _fault_split(self) -> None:
        ids = list(self.nodes)
        self.rng.shuffle(ids)
        self.cut = {}
        middle = self.rng.randint(0, len(ids))
        self._between(ids[:middle], ids[middle:])

    def _fault_isolate(self) -> None:
        leader = self._leader()
        node_id = leader.id if leader is not None and self.rng.random() < 0.5 else self.rng.choice(list(self.nodes))
        self._between([node_id], [other for other in self.nodes if other != node_id])

    def _fault_one_way(self) -> None:
        self.cut[self.rng.choice(list(self.nodes)), self.rng.choice(list(self.nodes))] = True

    def _fault_swizzle(self) -> None:
        """Cut nodes off one by one, heal them in another order."""
        ids = list(self.nodes)
        self.rng.shuffle(ids)
        for position, node_id in enumerate(ids[: self.rng.randint(1, len(ids))]):
            self._later(position * 10_000, self._between, [node_id], [other for other in ids if other != node_id])
            self._later(self.rng.randint(50_000, 200_000), self._rejoin, node_id)

    def _rejoin(self, node_id: str) -> None:
        self.cut = {pair: True for pair in self.cut if node_id not in pair}

    def _fault_heal(self) -> None:
        self.cut = {}

    def _crash(self, node: SimNode) -> None:
        if not node.alive:
            return
        node.alive = False
        node.life += 1
        if node.writing is not None and self.rng.random() < self.profile.survives:
            node.store.write(node.writing)
        node.writing = None
        self._note(6, node, 0)
        self._say(node.id, "CRASH")
        if not node.lost:
            self._later(self.rng.randint(1, 2 * self.profile.restart_us), self._restart, node, node.life)

    def _restart(self, node: SimNode, life: int) -> None:
        if node.alive or node.lost or life != node.life:
            return
        node.boot()
        self._note(7, node, 0)
        self._say(
            node.id, f"restarts: {node.store.hard_state}, snapshot {node.store.snapshot.index}, last {node.store.last_index}"
        )
        if node.core.term < node.seen_term and node.store.hard_state.term < node.core.hard_durable.term:
            raise Violation("monotone", f"{node.id} forgot term {node.seen_term}")
        node.seen_term = node.core.term
        self._wake(node)

    def _fault_crash(self) -> None:
        leader = self._leader()
        self._crash(leader if leader is not None and self.rng.random() < 0.5 else self.rng.choice(list(self.nodes.values())))

    def _fault_crash_all(self) -> None:
        for node in self.nodes.values():
            self._crash(node)

    def _fault_fsync_error(self) -> None:
        """The disk reports an error: the node stops, without a second try."""
        writing = [node for node in self.nodes.values() if node.writing is not None]
        if writing:
            self._crash(self.rng.choice(writing))

    def _fault_pause(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        node.paused_until = self.now + self.rng.randint(1, 300_000)

    def _fault_clock(self) -> None:
        self.rng.choice(list(self.nodes.values())).clock_rate = self.rng.uniform(*self.profile.clock_rates)

    # ---- the end

    def _heal(self) -> None:
        """Everything works from now on; within PROGRESS_US a leader must commit and everybody must catch up."""
        self._say("", "-- healed")
        self.healed = True
        self.cut = {}
        for node in self.nodes.values():
            node.paused_until = min(node.paused_until, self.now)
            node.clock_rate = 1.0
            if not node.alive:
                self._restart(node, node.life)
        self._later(PROGRESS_US, self._too_late)
        self._later(20_000, self._finish)

    def _too_late(self) -> None:
        leader = self._leader()
        raise Violation("progress", f"{PROGRESS_US / 1e6:g} s after everything healed: leader {leader.id if leader else 'none'}")

    def _finish(self) -> bool:
        """Propose a last command, and see it applied everywhere."""
        self._later(10_000, self._finish)
        leader = self._leader()
        if leader is None:
            return False
        if self.final_term != leader.core.term:
            self.final_index = self._propose(leader, self._data())
            self.final_term = leader.core.term if self.final_index else 0
            self._drain(leader)
            return False
        members = [self.nodes[member.id] for member in leader.core.configuration.members]
        if any(not node.lost and node.state_index < self.final_index for node in members):
            return False
        if any(node.sessions is not None and node.sessions.in_flight for node in members if not node.lost):
            return False
        return all(node.lost or node.core.leader_id == leader.id for node in members)


def brief(message: Any) -> str:
    """A message on one line: its fields without sender and addressee, entries as a range."""
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
