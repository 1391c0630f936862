"""A cluster's caches without I/O: the real directory, lines, leases and near caches on an adversary's network, clock and log.

Every method of `Simulation` is one step of the adversary; a step that makes no sense at the moment does nothing. Any order of steps must keep
the promise, which is checked at every answered read (`StaleRead`) against everything that was answered before the read began.

Raft is taken as given: there is one log, an entry is committed or lost with its leader, and each node applies the log at its own speed.
`Flaws` are mistakes one could make; the tests show that each of them is found.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dss_cache.coherence import Flight, NearCache, Step
from dss_cache.commands import Delete, Fetch, Lost, Put, Revoke, WrittenBack
from dss_cache.directory import Cleaned, Directory, Fetch1, Fetched, Stamps, Voided, Written
from dss_cache.leases import Acknowledgements, GrantedLeases, HeldLease
from dss_cache.lines import Lines
from dss_raft.machine import Origin, Result

LEASE_S = 1.0
KEYS = ("a", "b")


class StaleRead(AssertionError):
    """The promise was broken."""


@dataclass(frozen=True)
class Flaws:
    """Mistakes of an implementation, each to be found."""

    no_lease_check: bool = False
    answer_before_covered: bool = False
    no_overtaken_guard: bool = False
    deposed_leader_grants: bool = False
    revoke_without_waiting: bool = False
    new_leader_does_not_wait: bool = False
    grant_ignores_index: bool = False
    grant_while_revoking: bool = False
    join_without_lease: bool = False
    writer_not_in_must: bool = False
    own_line_readable_at_once: bool = False
    revoked_node_keeps_lines: bool = False
    snapshot_keeps_lines: bool = False
    lease_counts_from_grant: bool = False
    older_memory_is_good_enough: bool = False
    absence_serves_all: bool = False


NO_FLAWS = Flaws()


class Read:
    """A get under way, and what it may not be older than."""

    def __init__(self, key: str, floor: int, begun: int) -> None:
        self.key = key
        self.floor = floor
        self.begun = begun
        #: 0: it looks again when it is poked
        self.flight: FlightInAir | None = None
        self.can_renew = True


class FlightInAir:
    """A fetch under way: its command, then its row, then its value."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.index = 0
        self.row: Fetch1 | None = None
        self.value: bytes | None = None
        self.has_value = False
        self.readers: list[Read] = []


class Write:
    """A put or delete under way."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.version = 0


@dataclass
class Entry:
    """A place in the log. `command` None: the node `origin.node` opened the session of a new boot."""

    command: Any
    origin: Origin
    at_ms: int = 0


class SimNode:
    """One node: what survives a crash is only its place in the cluster."""

    def __init__(self, simulation: Simulation, node_id: str, rate: float) -> None:
        self.simulation = simulation
        self.node_id = node_id
        #: how fast its clock runs
        self.rate = rate
        self.boot = 0
        self.seq = 0
        self.is_paused = False
        self.start()

    def start(self) -> None:
        flaws = self.simulation.flaws
        self.boot += 1
        self.is_up = True
        self.applied = 0
        self.sessions: dict[str, int] = {}
        self.directory = _Forgetful() if flaws.writer_not_in_must else Directory()
        self.lines = Lines(items_max=1, bytes_max=10_000_000, on_change=lambda *_: None)
        self.near: NearCache[Write] = NearCache(self.node_id, self.boot, self.lines, LEASE_S)
        if flaws.no_lease_check:
            self.near.lease = _EndlessLease(LEASE_S)
        if flaws.answer_before_covered:
            self.near.acknowledgements = _Careless()
        self.granted = GrantedLeases(LEASE_S)
        #: the term it leads in, as far as it knows; 0: it does not lead
        self.believes_to_lead = 0
        #: the leader it has heard of
        self.leader = self.simulation.leader
        self.writes: dict[Origin, Write] = {}
        self.fetches: dict[Origin, FlightInAir] = {}
        self.air: dict[Flight, FlightInAir] = {}
        self.reads: list[Read] = []
        self.confirming: list[tuple[str, int]] = []
        self.simulation.propose(Entry(None, Origin(self.node_id, self.boot, 0)))

    def clock(self) -> float:
        return 1000 + self.simulation.now * self.rate

    def origin(self) -> Origin:
        self.seq += 1
        return Origin(self.node_id, self.boot, self.seq)

    # ------------------------------------------------------------------ applying

    def apply_next(self) -> None:
        entry = self.simulation.log[self.applied]
        self.applied += 1
        directory = self.directory
        deadline = directory.next_deadline_ms()
        if deadline is not None and deadline <= entry.at_ms:
            directory.expire(entry.at_ms, self.applied)
        result = _apply(directory, self.sessions, entry, self.applied)
        self._events(directory.take_events())
        write = self.writes.pop(entry.origin, None)
        if write is not None and result is not None:
            self._written(write, result.body["version"], result.body["must"])
        airborne = self.fetches.pop(entry.origin, None)
        if airborne is not None and result is not None:
            self._fetched(airborne, result.body)
        self.near.lease.applied(10**9 if self.simulation.flaws.grant_ignores_index else self.applied)
        self.announce()

    def _events(self, events: list[Any]) -> None:
        near, flaws = self.near, self.simulation.flaws
        for event in events:
            over: list[Write] = []
            if isinstance(event, Written):
                flight = near.flights.get(event.key)
                over = near.written(event, self.clock())
                line = self.lines.get(event.key)
                if flaws.own_line_readable_at_once and line is not None:
                    line.readable = True
                if flaws.no_overtaken_guard and flight is not None and flight.overtaken:
                    flight.overtaken = False
                    near.flights[event.key] = flight
            elif isinstance(event, Fetched):
                over = near.fetched(event)
            elif isinstance(event, Cleaned):
                near.cleaned(event)
            elif isinstance(event, Voided):
                if flaws.revoked_node_keeps_lines and event.node == self.node_id:
                    event = msgspec.structs.replace(event, node="nobody")
                over = near.voided(event)
                self.granted.revoked(event.node)
            self.answered(over)

    def _written(self, write: Write, version: int, must: Stamps) -> None:
        write.version = version
        if not self.near.acknowledgements.wait(must, write):
            self.answered([write])

    def answered(self, writes: list[Write]) -> None:
        for write in writes:
            self.simulation.saw(write.key, write.version)

    def _fetched(self, airborne: FlightInAir, body: dict[str, Any]) -> None:
        airborne.index = self.applied
        if "rows" in body:
            airborne.row = body["rows"][0]
        elif body["lost"]:
            airborne.row = Fetch1(body["version"], True, None, "I", 0, body["must"], 0)
        else:
            self.fetch(airborne)

    def announce(self) -> None:
        near = self.near
        if near.announcement_due or near.announcement_due_later:
            near.announcement_due = near.announcement_due_later = 0
            self.gossip()

    def gossip(self) -> None:
        for peer in self.simulation.nodes:
            if peer != self.node_id:
                self.simulation.send(self, peer, "applied", dict(self.near.acknowledgements.applied))

    # ------------------------------------------------------------------- reading

    def poke(self, read: Read) -> None:
        """Let a read that is under no flight look again."""
        near, flaws = self.near, self.simulation.flaws
        now = self.clock()
        step = near.step(read.key, now, read.begun, read.can_renew)
        if flaws.join_without_lease and step is Step.AWAIT:
            step = Step.JOIN
        if step is Step.HIT:
            line = near.hit(read.key, now)
            assert line is not None
            self._answer(read, line.version, line.value)
            self.reads.remove(read)
        elif step is Step.RENEW:
            self.ask_lease()
            read.can_renew = False
        elif step is Step.JOIN:
            self._board(read, self.air[near.flights[read.key]])
        elif step is Step.BEGIN:
            flight = near.begin(read.key)
            airborne = self.air[flight] = FlightInAir(flight)
            self._board(read, airborne)
            self.fetch(airborne)

    def _board(self, read: Read, airborne: FlightInAir) -> None:
        read.flight = airborne
        airborne.readers.append(read)

    def fetch(self, airborne: FlightInAir) -> None:
        self._submit_for(airborne, Fetch(keys=[airborne.flight.key]))

    def _submit_for(self, airborne: FlightInAir, command: Any) -> None:
        origin = self.origin()
        airborne.row, airborne.has_value = None, False
        self.fetches[origin] = airborne
        self.simulation.propose(Entry(command, origin))

    def look_into_memory(self, airborne: FlightInAir) -> None:
        """The value arrives: from the directory if it is dirty, else from the memory."""
        row = airborne.row
        assert row is not None
        if row.absent or row.value is not None:
            airborne.value, airborne.has_value = row.value, True
            return
        key = airborne.flight.key
        version, value = self.simulation.memory.get(key, [(0, None)])[-1]
        if version > row.version:
            self.fetch(airborne)
        elif version < row.version and not (self.simulation.flaws.older_memory_is_good_enough and version):
            self._submit_for(airborne, Lost(key=key, version=row.version))
        else:
            airborne.value, airborne.has_value = value, True

    def land(self, airborne: FlightInAir) -> None:
        row = airborne.row
        assert row is not None
        if not self.near.acknowledgements.covers(row.must):
            return
        if not row.absent:
            assert airborne.value is not None
            self.near.land(airborne.flight, row, airborne.value, self.clock())
        self.near.end(airborne.flight)
        del self.air[airborne.flight]
        version = self.simulation.version_at(airborne.flight.key, airborne.index) if row.absent else row.version
        for read in airborne.readers:
            if self.simulation.flaws.absence_serves_all or self.near.serves(airborne.flight, read.begun, row.absent):
                self.reads.remove(read)
                self._answer(read, version, airborne.value)
            else:
                read.flight = None

    def _answer(self, read: Read, version: int, value: bytes | None) -> None:
        if version < read.floor:
            raise StaleRead(f"{self.node_id} read {read.key} at {version}; {read.floor} was answered before the read began")
        expected = self.simulation.values[read.key, version] if version else None
        if value != expected:
            raise StaleRead(f"{self.node_id} read {value!r} as version {version} of {read.key}, which is {expected!r}")
        self.simulation.saw(read.key, version)

    # -------------------------------------------------------------------- leases

    def ask_lease(self) -> None:
        token = self.near.lease.ask(self.clock())
        self.simulation.send(self, self.leader, "renew", token)

    def confirmed(self, peer: str, token: int) -> None:
        """A quorum has confirmed that this node leads, since the request arrived."""
        flaws, now = self.simulation.flaws, self.clock()
        if not flaws.grant_while_revoking and not self.granted.may_grant(peer, now):
            return
        self.granted.grant(peer, now)
        self.simulation.send(self, peer, "grant", (token, len(self.simulation.log)))

    def receive(self, sender: str, kind: str, content: Any) -> None:
        if kind == "applied":
            self.answered(self.near.acknowledged(content))
        elif kind == "renew":
            if self.believes_to_lead:
                self.confirming.append((sender, content))
        elif kind == "grant":
            token, must_apply = content
            if self.simulation.flaws.lease_counts_from_grant:
                self.near.lease.ask(self.clock())
                token = self.near.lease._token
            self.near.lease.granted(token, must_apply)
            self.near.lease.applied(10**9 if self.simulation.flaws.grant_ignores_index else self.applied)


class _EndlessLease(HeldLease):
    @property
    def valid_until(self) -> float:  # type: ignore[override]
        return 1e18

    @valid_until.setter
    def valid_until(self, value: float) -> None:
        pass


class _Careless(Acknowledgements[Write]):
    def covers(self, must: Any) -> bool:
        return True

    def missing(self, must: Any) -> dict[str, int]:
        return {}


class _Forgetful(Directory):
    def _write(self, key: str, value: bytes | None, at_ms: int, expires_at_ms: int, origin: Origin, why: str) -> Result:
        if key in self.records:
            self.records[key].sharers.pop(origin.node, None)
        return super()._write(key, value, at_ms, expires_at_ms, origin, why)


def _apply(directory: Directory, sessions: dict[str, int], entry: Entry, index: int) -> Any:
    """As a replica does: a boot that is over has no effect, a new one voids the old one."""
    origin = entry.origin
    if origin.node:
        boot = sessions.get(origin.node, 0)
        if origin.boot < boot:
            return None
        if origin.boot > boot:
            sessions[origin.node] = origin.boot
            directory.node_restarted(origin.node, entry.at_ms, index)
    if entry.command is None:
        return None
    return directory.apply(entry.command, entry.at_ms, index, origin)


@dataclass(eq=False)
class Message:
    sender: str
    #: what a message of an ended process says of it is still true; what it asks for is not wanted any more
    boot: int
    to: str
    to_boot: int
    kind: str
    content: Any


@dataclass
class Simulation:
    """See the module."""

    flaws: Flaws = NO_FLAWS
    size: int = 3
    now: float = 0.0
    log: list[Entry] = field(default_factory=list)
    #: proposed to the present leader, not committed yet
    proposed: list[Entry] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    #: what it has held, latest last
    memory: dict[str, list[tuple[int, bytes | None]]] = field(default_factory=dict)
    term: int = 1
    leader: str = "n1"
    puts: int = 0
    reads_answered: int = 0

    def __post_init__(self) -> None:
        #: the newest version of each key that anybody has been shown
        self.shown: dict[str, int] = {}
        #: what each version holds, and when it came about
        self.values: dict[tuple[str, int], bytes | None] = {}
        self.history: dict[str, list[tuple[int, int]]] = {key: [] for key in KEYS}
        #: applies every entry at once: what is true
        self._truth = Directory()
        self._sessions: dict[str, int] = {}
        self.nodes: dict[str, SimNode] = {}
        for number in range(1, self.size + 1):
            rate = 1 + 0.004 * (number - 2)
            self.nodes[f"n{number}"] = SimNode(self, f"n{number}", rate)
        self._lead()

    # ------------------------------------------------------------ what is true

    def saw(self, key: str, version: int) -> None:
        self.shown[key] = max(version, self.shown.get(key, 0))
        self.reads_answered += 1

    def version_at(self, key: str, index: int) -> int:
        """The key's version after entry `index`."""
        return max((version for at, version in self.history[key] if at <= index), default=0)

    # ------------------------------------------------------------------- the log

    def propose(self, entry: Entry) -> None:
        self.proposed.append(entry)

    def commit(self, count: int = 1) -> None:
        """The next entries are committed; each carries the leader's stamp."""
        for _ in range(min(count, len(self.proposed))):
            entry = self.proposed.pop(0)
            entry.at_ms = max(int(self.now * 1000), self.log[-1].at_ms if self.log else 0)
            self.log.append(entry)
            index = len(self.log)
            deadline = self._truth.next_deadline_ms()
            if deadline is not None and deadline <= entry.at_ms:
                self._truth.expire(entry.at_ms, index)
            _apply(self._truth, self._sessions, entry, index)
            for event in self._truth.take_events():
                if isinstance(event, Written):
                    self.values[event.key, event.version] = event.value
                    self.history[event.key].append((index, event.version))

    def apply(self, node: str, count: int = 1) -> None:
        """A node applies what is committed."""
        one = self._awake(node)
        if one is not None:
            for _ in range(min(count, len(self.log) - one.applied)):
                one.apply_next()

    # ------------------------------------------------------------------- clients

    def put(self, node: str, key: str, ttl_ms: int = 0) -> None:
        one = self._awake(node)
        if one is not None:
            self.puts += 1
            self._write(one, Put(key=key, value=b"%d" % self.puts, ttl_ms=ttl_ms), key)

    def delete(self, node: str, key: str) -> None:
        one = self._awake(node)
        if one is not None:
            self._write(one, Delete(key=key), key)

    def _write(self, node: SimNode, command: Any, key: str) -> None:
        origin = node.origin()
        node.writes[origin] = Write(key)
        self.propose(Entry(command, origin))

    def get(self, node: str, key: str) -> None:
        """A get begins; a hit ends it at once."""
        one = self._awake(node)
        if one is not None:
            read = Read(key, self.shown.get(key, 0), one.near.flights_begun)
            one.reads.append(read)
            one.poke(read)

    def poke(self, node: str) -> None:
        """Reads that wait look again."""
        one = self._awake(node)
        for read in [read for read in one.reads if read.flight is None] if one is not None else []:
            one.poke(read)  # type: ignore[union-attr]

    def fill(self, node: str) -> None:
        """Values arrive for fetches that were applied."""
        one = self._awake(node)
        for airborne in list(one.air.values()) if one is not None else []:
            if airborne.row is not None and not airborne.has_value:
                one.look_into_memory(airborne)  # type: ignore[union-attr]

    def land(self, node: str) -> None:
        """Fetches that have their value, and may be shown, end."""
        one = self._awake(node)
        for airborne in list(one.air.values()) if one is not None else []:
            if airborne.row is not None and airborne.has_value:
                one.land(airborne)  # type: ignore[union-attr]

    # -------------------------------------------------------------------- memory

    def write_back(self, node: str, key: str) -> None:
        """A node brings the value it takes for dirty to the memory, and says so."""
        one = self._awake(node)
        record = one.directory.records.get(key) if one is not None else None
        if one is None or record is None or not record.dirty:
            return
        if record.absent and not one.near.acknowledgements.covers(record.must):
            return
        held = self.memory.setdefault(key, [(0, None)])
        if held[-1][0] < record.version:
            held.append((record.version, record.value))
        self.propose(Entry(WrittenBack(items=[(key, record.version)]), one.origin()))

    def lose(self, key: str) -> None:
        """The memory fails over to a replica that lags: what it had before is back."""
        if len(self.memory.get(key, ())) > 1:
            self.memory[key].pop()

    # ------------------------------------------------------------------- network

    def send(self, sender: SimNode, to: str, kind: str, content: Any) -> None:
        self.messages.append(
            Message(sender.node_id, sender.boot, to, self.nodes[to].boot if to in self.nodes else 1, kind, content)
        )

    def deliver(self, which: int) -> None:
        if self.messages:
            message = self.messages.pop(which % len(self.messages))
            node = self._awake(message.to)
            if node is not None and (message.kind == "applied" or message.to_boot == node.boot):
                node.receive(message.sender, message.kind, message.content)

    def drop(self, which: int) -> None:
        if self.messages:
            self.messages.pop(which % len(self.messages))

    def gossip(self, node: str) -> None:
        one = self._awake(node)
        if one is not None:
            one.gossip()

    # -------------------------------------------------------------------- leases

    def renew(self, node: str) -> None:
        one = self._awake(node)
        if one is not None:
            one.ask_lease()

    def confirm(self, node: str) -> None:
        """Quorum rounds end: they succeed for the leader of the newest term alone."""
        one = self._awake(node)
        if one is None:
            return
        leads = node == self.leader and one.believes_to_lead == self.term
        waiting, one.confirming = one.confirming, []
        if leads or (self.flaws.deposed_leader_grants and one.believes_to_lead):
            for peer, token in waiting:
                one.confirmed(peer, token)

    def tick(self, node: str) -> None:
        """A node that believes to lead revokes whom a write waits for and whose lease is over."""
        one = self._awake(node)
        if one is None or not one.believes_to_lead:
            return
        if self.flaws.revoke_without_waiting:
            one.granted._first_end = 0
            one.granted._ends.clear()
        for overdue in one.granted.overdue(one.directory.awaited, one.near.acknowledgements.applied, one.clock()):
            if node == self.leader and one.believes_to_lead == self.term:
                self.propose(Entry(Revoke(node=overdue), Origin("", 0, 0)))

    # -------------------------------------------------------------------- faults

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def pause(self, node: str) -> None:
        self.nodes[node].is_paused = True

    def resume(self, node: str) -> None:
        self.nodes[node].is_paused = False

    def restart(self, node: str, snapshot_of: str = "") -> None:
        """kill -9, and a new process; with a snapshot it need not apply the log from its beginning."""
        one = self.nodes[node]
        if node == self.leader:
            self.lead(next(name for name in self.nodes if name != node))
        one.start()
        one.is_paused = False
        self.restore(node, snapshot_of)

    def restore(self, node: str, snapshot_of: str) -> None:
        """A node gets another one's snapshot in place of the log."""
        one, other = self._awake(node), self.nodes.get(snapshot_of)
        if one is None or other is None or other.applied <= one.applied:
            return
        old = one.directory.stamp
        one.directory.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(other.directory.snapshot())))
        one.sessions = dict(other.sessions)
        one.applied = other.applied
        if self.flaws.snapshot_keeps_lines and old:
            one.answered(one.near.acknowledgements.advance(node, one.directory.stamp))
        else:
            one.answered(one.near.restored(one.directory.stamp, one.directory.voided))
        # A read or write whose command went by unseen is told so; that is nobody's answer.
        for airborne in list(one.fetches.values()):
            for read in airborne.readers:
                one.reads.remove(read)
            one.near.end(airborne.flight)
            del one.air[airborne.flight]
        one.fetches.clear()
        one.writes.clear()
        one.near.lease.applied(one.applied)
        one.announce()

    def lead(self, node: str, kept: int = 0) -> None:
        """Another leader: `kept` of the proposed entries were in its log, the others are lost or sent again."""
        if node == self.leader or self._awake(node) is None:
            return
        self.commit(kept)
        self.proposed = [entry for entry in self.proposed if entry.origin.node]
        self.leader = node
        self.term += 1
        self._lead()

    def learn_leader(self, node: str) -> None:
        """A node, perhaps a deposed leader, hears who leads."""
        one = self._awake(node)
        if one is not None:
            one.leader = self.leader
            if node != self.leader:
                one.believes_to_lead = 0

    def _lead(self) -> None:
        leader = self.nodes[self.leader]
        leader.believes_to_lead, leader.leader = self.term, self.leader
        leader.confirming.clear()
        leader.granted.lead(self.term, leader.clock())
        if self.flaws.new_leader_does_not_wait:
            leader.granted._first_end = 0.0

    def _awake(self, node: str) -> SimNode | None:
        one = self.nodes[node]
        return None if one.is_paused else one

    # ------------------------------------------------------------------- the end

    def calm_down(self) -> None:
        """Faults end: everything under way must come to an end."""
        for node in self.nodes:
            self.resume(node)
        for _ in range(200):
            self.advance(0.05)
            self.commit(len(self.proposed))
            for node in self.nodes:
                self.learn_leader(node)
                self.apply(node, len(self.log))
                self.gossip(node)
                self.tick(node)
            while self.messages:
                self.deliver(0)
            for node in self.nodes:
                self.confirm(node)
                self.poke(node)
                self.fill(node)
                self.land(node)
            if self.is_quiet:
                return

    @property
    def is_quiet(self) -> bool:
        """Every read and write is answered."""
        return all(
            not node.reads and not node.writes and not any(node.near.acknowledgements.awaited().values())
            for node in self.nodes.values()
        )


class Adversary:
    """Throws dice: some of the nodes can talk, work goes on among them in an order of its own, and small things happen anywhere.

    Args:
        seed: the same dice again.
    """

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.simulation = simulation
        self.dice = random.Random(seed)
        self.names = list(simulation.nodes)
        self.connected = list(self.names)
        #: likings differ from seed to seed, which finds more (swarm testing)
        self._anywhere = self._likings(
            put=3, delete=0.5, get=8, poke=4, fill=4, land=4, commit=6, apply=6, deliver=8, drop=1, renew=2, confirm=3, tick=3,
            pause=1, resume=2, restart=0.3, restore=0.5, lead=0.3, learn_leader=0.5, write_back=2, lose=0.1,
        )  # fmt: skip
        self._thoroughness = self.dice.choice((0.6, 0.8, 0.95))
        self._longest_wait_s = self.dice.choice((0.1, 0.3, 0.6, 1.2))

    def _likings(self, **weights: float) -> dict[str, float]:
        return {action: weight * self.dice.choice((0.2, 1, 1, 3)) for action, weight in weights.items()}

    def run(self, steps: int) -> None:
        dice, simulation = self.dice, self.simulation
        for number in range(steps):
            if number % 15 == 0:
                cut_off = dice.choice([None, *self.names])
                self.connected = [name for name in self.names if name != cut_off]
            if simulation.leader not in self.connected and dice.random() < 0.15:
                simulation.lead(dice.choice(self.connected), dice.choice((0, 1, 5)))
            kind = dice.choices(("work", "get", "put", "advance", "anything"), (5, 6, 2, 3, 6))[0]
            if kind == "work":
                self._work()
            elif kind == "get":
                simulation.get(dice.choice(self.names), dice.choice(KEYS))
            elif kind == "put":
                simulation.put(dice.choice(self.connected), dice.choice(KEYS), dice.choice((0, 0, 0, 700)))
            elif kind == "advance":
                simulation.advance(dice.random() * self._longest_wait_s)
            else:
                self._anything()

    def _work(self) -> None:
        """Among the connected nodes everything goes its way, more or less."""
        simulation, dice = self.simulation, self.dice

        def likely() -> bool:
            return dice.random() < self._thoroughness

        if simulation.leader in self.connected and likely():
            simulation.commit(len(simulation.proposed))
        for node in dice.sample(self.connected, len(self.connected)):
            if likely():
                simulation.apply(node, len(simulation.log))
            if likely():
                simulation.tick(node)
        for _ in range(2):
            for message in list(simulation.messages):
                if (
                    message.sender in self.connected
                    and message.to in self.connected
                    and likely()
                    and message in simulation.messages
                ):
                    simulation.deliver(simulation.messages.index(message))
            for node in self.connected:
                if likely():
                    simulation.confirm(node)
        for node in self.connected:
            if simulation.leader in self.connected and likely():
                simulation.learn_leader(node)
            for step in (simulation.poke, simulation.fill, simulation.land):
                if likely():
                    step(node)

    def _anything(self) -> None:
        """One small step, at any node."""
        dice, simulation = self.dice, self.simulation
        action = dice.choices(list(self._anywhere), list(self._anywhere.values()))[0]
        node, key = dice.choice(self.names), dice.choice(KEYS)
        if action in ("put", "delete", "get", "write_back"):
            getattr(simulation, action)(node, key)
        elif action == "lose":
            simulation.lose(key)
        elif action in ("deliver", "drop"):
            getattr(simulation, action)(dice.randrange(1000))
        elif action == "commit":
            simulation.commit(dice.choice((1, 2, 8)))
        elif action == "apply":
            simulation.apply(node, dice.choice((1, 3, 20)))
        elif action == "restart":
            simulation.restart(node, dice.choice(("", *self.names)))
        elif action == "restore":
            simulation.restore(node, dice.choice(self.names))
        elif action == "lead":
            simulation.lead(node, dice.choice((0, 1, 5)))
        else:
            getattr(simulation, action)(node)
