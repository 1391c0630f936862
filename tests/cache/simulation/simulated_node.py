"""One node of the simulation: the near cache and what the running service has around it, without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from simulated_client import AcknowledgesAtOnce, SimNearServer
from simulated_parts import LEASES_S, Entry, Read, SimFetch, StaleRead, Write

from dss_api.result import Result
from dss_cache.core.coherence import Flight, NearCache, Step
from dss_cache.core.commands import Fetch, Lost
from dss_cache.core.directory import Directory, FetchRow
from dss_cache.core.events import Cleaned, Fetched, LeaseAgreed, Voided, Written
from dss_cache.core.leases import RATE_ERROR, Acknowledgements, GrantedLeases, HeldLease
from dss_cache.core.lines import Lines
from dss_cache.core.near_clients import NearClients
from dss_raft.replication.machine import Origin

if TYPE_CHECKING:
    from simulated_cluster import Simulation

    from dss_cache.core.events import Stamps


class SimNode:
    """One node. Nothing in it survives a crash."""

    def __init__(self, simulation: Simulation, node_id: str, rate: float) -> None:
        self.simulation = simulation
        self.node_id = node_id
        #: rate of its clock
        self.rate = rate
        self.incarnation = 0
        self.seq = 0
        self.is_paused = False
        self.start()

    def start(self) -> None:
        flaws = self.simulation.flaws
        self.incarnation += 1
        self.lease_s = LEASES_S[(int(self.node_id[1:]) + self.incarnation) % len(LEASES_S)]
        self.is_up = True
        self.applied = 0
        self.sessions: dict[str, int] = {}
        self.directory = _Forgetful() if flaws.writer_not_in_pending else Directory()
        self.lines = Lines(items_max=1, bytes_max=10_000_000, on_change=lambda *_: None)
        clients = AcknowledgesAtOnce() if flaws.acknowledges_before_clients_confirm else NearClients()
        self.near: NearCache[Write] = NearCache(self.node_id, self.incarnation, self.lines, self.lease_s, clients)
        # Without clients, nothing of an earlier process has to be waited for.
        self.near.is_open = flaws.acknowledges_before_its_session_is_open or not self.simulation.has_clients
        self.clients = SimNearServer(self)
        if flaws.no_lease_check:
            self.near.lease = _EndlessLease(self.lease_s)
        if flaws.answer_before_covered:
            self.near.acknowledgements = _Careless()
        self.granted = _Hasty(self.lease_s) if flaws.longer_leases_declared_over_at_once else GrantedLeases(self.lease_s)
        #: the term in which it believes it leads; 0: none
        self.believed_term = 0
        #: the leader, as far as it knows
        self.leader = self.simulation.leader
        self.writes: dict[Origin, Write] = {}
        self.submitted: dict[Origin, SimFetch] = {}
        self.flights: dict[Flight, SimFetch] = {}
        self.reads: list[Read] = []
        self.confirming: list[tuple[str, int]] = []
        #: the session is not open yet: its commands, and what must be applied before it is opened
        self.unsent: list[Entry] = []
        self.is_open = False
        self.opens_after = len(self.simulation.log)
        self.began = self.clock()
        if not self.simulation.has_clients or flaws.session_opens_before_client_leases_are_over:
            self._open()

    def _open(self) -> None:
        self.is_open = True
        self.simulation.propose(Entry(None, Origin(self.node_id, self.incarnation, 0)))
        for entry in self.unsent:
            self.simulation.propose(entry)

    def try_to_open(self) -> None:
        """Open the session when the leases of the earlier process's clients are over, according to the log."""
        lease_s = self.directory.client_lease_ms.get(self.node_id, 0) / 1000
        if not self.is_open and self.applied >= self.opens_after and self.clock() >= self.began + lease_s * (1 + RATE_ERROR):
            self._open()

    def look_at_session(self) -> None:
        if self.sessions.get(self.node_id) == self.incarnation and not self.near.is_open:
            self.answered(self.near.session_opened())

    def propose(self, entry: Entry) -> None:
        """Propose a command of this node."""
        if self.is_open:
            self.simulation.propose(entry)
        else:
            self.unsent.append(entry)

    def clock(self) -> float:
        return 1000 + self.simulation.now * self.rate

    def origin(self) -> Origin:
        self.seq += 1
        return Origin(self.node_id, self.incarnation, self.seq)

    # ------------------------------------------------------------------ applying

    def apply_next(self) -> None:
        entry = self.simulation.log[self.applied]
        self.applied += 1
        directory = self.directory
        deadline = directory.next_deadline_ms()
        if deadline is not None and deadline <= entry.at_ms:
            directory.expire(entry.at_ms, self.applied)
        result = apply_entry(directory, self.sessions, entry, self.applied)
        self._events(directory.take_events())
        write = self.writes.pop(entry.origin, None)
        if write is not None and result is not None:
            self._written(write, result.body["version"], result.body["must"])
        fetch = self.submitted.pop(entry.origin, None)
        if fetch is not None and result is not None:
            self._fetched(fetch, result.body)
        self.near.lease.applied(10**9 if self.simulation.flaws.grant_ignores_index else self.applied)
        self.look_at_session()
        self.announce()

    def _events(self, events: list[Any]) -> None:
        near, flaws = self.near, self.simulation.flaws
        for event in events:
            done: list[Write] = []
            if isinstance(event, Written):
                flight = near.flights.get(event.key)
                done = near.written(event, self.clock())
                line = self.lines.get(event.key)
                if flaws.own_line_readable_at_once and line is not None:
                    line.readable = True
                if flaws.no_overtaken_guard and flight is not None and flight.overtaken:
                    flight.overtaken = False
                    near.flights[event.key] = flight
            elif isinstance(event, Fetched):
                done = near.fetched(event)
            elif isinstance(event, Cleaned):
                near.cleaned(event)
            elif isinstance(event, Voided):
                if flaws.revoked_node_keeps_lines and event.node == self.node_id:
                    event = msgspec.structs.replace(event, node="nobody")
                if flaws.revoked_node_keeps_clients:
                    near.clients, kept = NearClients(), near.clients
                    done = near.voided(event, self.clock())
                    near.clients = kept
                else:
                    done = near.voided(event, self.clock())
                self.granted.voided(event.node, self.granted.term if flaws.any_voiding_ends_revoking else event.term)
            elif isinstance(event, LeaseAgreed):
                own_ms = round(self.lease_s * 1000)
                self.granted.agreed(event.term, own_ms if flaws.new_leader_waits_for_its_own_length else event.lease_ms)
                if flaws.new_leader_does_not_wait:
                    self.granted._earlier_end = 0.0
            self.answered(done)

    def _written(self, write: Write, version: int, pending: Stamps) -> None:
        write.version = version
        if not self.near.acknowledgements.wait(pending, write):
            self.answered([write])

    def answered(self, writes: list[Write]) -> None:
        for write in writes:
            self.simulation.saw(write.key, write.version)

    def _fetched(self, fetch: SimFetch, body: dict[str, Any]) -> None:
        fetch.index = self.applied
        if "rows" in body:
            fetch.row = body["rows"][0]
        elif body["lost"]:
            fetch.row = FetchRow(body["version"], True, None, "I", 0, body["must"], 0)
        else:
            self.submit_fetch(fetch)

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
        """Let a read that waits for no fetch look again."""
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
            self._join(read, self.flights[near.flights[read.key]])
        elif step is Step.BEGIN:
            flight = near.begin(read.key)
            fetch = self.flights[flight] = SimFetch(flight)
            self._join(read, fetch)
            self.submit_fetch(fetch)

    def _join(self, read: Read, fetch: SimFetch) -> None:
        read.fetch = fetch
        fetch.readers.append(read)

    def submit_fetch(self, fetch: SimFetch) -> None:
        self._submit_for(fetch, Fetch(keys=[fetch.flight.key]))

    def _submit_for(self, fetch: SimFetch, command: Any) -> None:
        origin = self.origin()
        fetch.row, fetch.has_value = None, False
        self.submitted[origin] = fetch
        self.propose(Entry(command, origin))

    def read_store(self, fetch: SimFetch) -> None:
        """The value arrives: from the directory if it is dirty, else from the backing store."""
        row = fetch.row
        assert row is not None
        if row.absent or row.value is not None:
            fetch.value, fetch.has_value = row.value, True
            return
        key = fetch.flight.key
        version, value = self.simulation.store.get(key, [(0, None)])[-1]
        if version > row.version:
            self.submit_fetch(fetch)
        elif version < row.version and not (self.simulation.flaws.older_stored_version_accepted and version):
            self._submit_for(fetch, Lost(key=key, version=row.version))
        else:
            fetch.value, fetch.has_value = value, True

    def finish(self, fetch: SimFetch) -> None:
        row = fetch.row
        assert row is not None
        if not self.near.acknowledgements.covers(row.pending_invalidations):
            return
        if not row.absent:
            assert fetch.value is not None
            self.near.install(fetch.flight, row, fetch.value, self.clock())
        self.near.end(fetch.flight)
        del self.flights[fetch.flight]
        version = self.simulation.version_at(fetch.flight.key, fetch.index) if row.absent else row.version
        for read in fetch.readers:
            if self.simulation.flaws.absence_serves_all or self.near.serves(fetch.flight, read.begun, row.absent):
                self.reads.remove(read)
                self._answer(read, version, fetch.value)
            else:
                read.fetch = None

    def _answer(self, read: Read, version: int, value: bytes | None) -> None:
        if read.near is not None:
            self.clients.answer(read.near, read.key, version, value)
            return
        if version < read.floor:
            raise self._stale(f"{self.node_id} read {read.key} at {version}; {read.floor} was answered before the read began")
        expected = self.simulation.values[read.key, version] if version else None
        if value != expected:
            raise self._stale(f"{self.node_id} read {value!r} as version {version} of {read.key}, which is {expected!r}")
        self.simulation.saw(read.key, version)

    def _stale(self, how: str) -> StaleRead:
        self.simulation.is_broken = True
        return StaleRead(how)

    # -------------------------------------------------------------------- leases

    def ask_lease(self) -> None:
        token = self.near.lease.request(self.clock())
        self.simulation.send(self, self.leader, "renew", token)

    def confirmed(self, peer: str, token: int) -> None:
        """A quorum has confirmed this node's leadership since the request arrived."""
        flaws, now = self.simulation.flaws, self.clock()
        if not flaws.grant_while_revoking and not self.granted.may_grant(peer, now):
            return
        self.granted.grant(peer, now)
        self.simulation.send(self, peer, "grant", (token, len(self.simulation.log), self.granted.lease_s))

    def receive(self, sender: str, kind: str, content: Any) -> None:
        if kind == "applied":
            self.answered(self.near.acknowledged(content))
        elif kind == "renew":
            if self.believed_term:
                self.confirming.append((sender, content))
        elif kind == "grant":
            token, must_apply, lease_s = content
            if self.simulation.flaws.lease_counts_from_grant:
                self.near.lease.request(self.clock())
                token = self.near.lease._token
            if self.simulation.flaws.lease_as_long_as_ones_own:
                lease_s = self.lease_s
            self.near.lease.granted(token, must_apply, lease_s)
            self.near.lease.applied(10**9 if self.simulation.flaws.grant_ignores_index else self.applied)


class _EndlessLease(HeldLease):
    @property
    def valid_until(self) -> float:
        return 1e18

    @valid_until.setter
    def valid_until(self, value: float) -> None:
        pass


class _Hasty(GrantedLeases):
    def longer_are_over(self, now: float) -> bool:
        return True


class _Careless(Acknowledgements[Write]):
    def covers(self, pending: Any) -> bool:
        return True

    def missing(self, pending: Any) -> dict[str, int]:
        return {}


class _Forgetful(Directory):
    def _write(self, key: str, value: bytes | None, at_ms: int, expires_at_ms: int, origin: Origin, why: str) -> Result:
        if key in self.records:
            self.records[key].sharers.pop(origin.node, None)
        return super()._write(key, value, at_ms, expires_at_ms, origin, why)


def apply_entry(directory: Directory, sessions: dict[str, int], entry: Entry, index: int) -> Any:
    """Apply like a replica: commands of an ended incarnation have no effect; a new incarnation voids the old one."""
    origin = entry.origin
    if origin.node:
        incarnation = sessions.get(origin.node, 0)
        if origin.incarnation < incarnation:
            return None
        if origin.incarnation > incarnation:
            sessions[origin.node] = origin.incarnation
            directory.node_restarted(origin.node, entry.at_ms, index)
    if entry.command is None:
        return None
    return directory.apply(entry.command, entry.at_ms, index, origin)
