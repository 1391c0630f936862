"""The caches of a cluster without I/O: the real directory, lines, leases and near caches; an adversary controls network, clock, log.

Every method of `Simulation` is one step of the adversary. A step that is not possible at the moment does nothing. The promise must
hold for any order of steps. Every answered read is checked (`StaleRead`) against everything that was answered before it began.

Raft is assumed to be correct: there is one log, an entry is committed or lost with its leader, and each node applies the log at
its own speed. `Flaws` are possible mistakes; the tests show that the simulation finds each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from simulated_client import SimClient
from simulated_node import SimNode, apply_entry
from simulated_parts import KEYS, NO_FLAWS, Entry, Flaws, Read, SimMessage, Write

from dss_cache.core.commands import Delete, Put, Revoke, WrittenBack
from dss_cache.core.directory import Directory
from dss_cache.core.events import Written
from dss_cache.core.near_clients import NearClients
from dss_raft.replication.machine import Origin


@dataclass
class Simulation:
    """See the module's docstring."""

    flaws: Flaws = NO_FLAWS
    size: int = 3
    now: float = 0.0
    log: list[Entry] = field(default_factory=list)
    #: proposed to the current leader, not committed yet
    proposed: list[Entry] = field(default_factory=list)
    messages: list[SimMessage] = field(default_factory=list)
    #: the versions that the backing store has had, latest last
    store: dict[str, list[tuple[int, bytes | None]]] = field(default_factory=dict)
    term: int = 1
    leader: str = "n1"
    puts: int = 0
    reads_answered: int = 0
    #: number of near clients, which first connect to the nodes in order
    client_count: int = 0
    #: a read was stale: later errors mean nothing
    is_broken: bool = False

    def __post_init__(self) -> None:
        #: the newest version of each key that a client has been shown
        self.shown: dict[str, int] = {}
        #: the value of each version, and the index at which it was written
        self.values: dict[tuple[str, int], bytes | None] = {}
        self.history: dict[str, list[tuple[int, int]]] = {key: [] for key in KEYS}
        #: applies every entry immediately: the true state
        self._truth = Directory()
        self._sessions: dict[str, int] = {}
        self.nodes: dict[str, SimNode] = {}
        for number in range(1, self.size + 1):
            rate = 1 + 0.004 * (number - 2)
            self.nodes[f"n{number}"] = SimNode(self, f"n{number}", rate)
        self._lead()
        self.clients: dict[str, SimClient] = {}
        for number in range(1, self.client_count + 1):
            client = self.clients[f"c{number}"] = SimClient(self, f"c{number}", 1 + 0.004 * (2 - number))
            client.connect(self.nodes[f"n{(number - 1) % self.size + 1}"])

    @property
    def has_clients(self) -> bool:
        return self.client_count > 0

    # ----------------------------------------------------------- the true state

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
        """Commit the next entries, each with the leader's time."""
        for _ in range(min(count, len(self.proposed))):
            entry = self.proposed.pop(0)
            entry.at_ms = max(int(self.now * 1000), self.log[-1].at_ms if self.log else 0)
            self.log.append(entry)
            index = len(self.log)
            deadline = self._truth.next_deadline_ms()
            if deadline is not None and deadline <= entry.at_ms:
                self._truth.expire(entry.at_ms, index)
            apply_entry(self._truth, self._sessions, entry, index)
            for event in self._truth.take_events():
                if isinstance(event, Written):
                    self.values[event.key, event.version] = event.value
                    self.history[event.key].append((index, event.version))

    def apply(self, node: str, count: int = 1) -> None:
        """A node applies committed entries."""
        one = self._awake(node)
        if one is not None:
            for _ in range(min(count, len(self.log) - one.applied)):
                one.apply_next()

    def work(self, connected: list[str], likely: Callable[[], bool] = lambda: True) -> None:
        """The connected nodes make all the steps they can, each with the probability of `likely`."""
        if self.leader in connected and likely():
            self.commit(len(self.proposed))
        for node in connected:
            if likely():
                self.apply(node, len(self.log))
            if likely():
                self.tick(node)
        for _ in range(2):
            for message in list(self.messages):
                if message.sender in connected and message.to in connected and likely() and message in self.messages:
                    self.deliver(self.messages.index(message))
            for node in connected:
                if likely():
                    self.confirm(node)
        for node in connected:
            if self.leader in connected and likely():
                self.learn_leader(node)
            for step in (self.poke, self.fill, self.finish):
                if likely():
                    step(node)

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
        node.propose(Entry(command, origin))

    def get(self, node: str, key: str) -> None:
        """Begin a get. A hit ends it immediately."""
        one = self._awake(node)
        if one is not None:
            read = Read(key, self.shown.get(key, 0), one.near.flights_begun)
            one.reads.append(read)
            one.poke(read)

    def poke(self, node: str) -> None:
        """Waiting reads look again."""
        one = self._awake(node)
        for read in [read for read in one.reads if read.fetch is None] if one is not None else []:
            one.poke(read)

    def fill(self, node: str) -> None:
        """The values of applied fetches arrive."""
        one = self._awake(node)
        for fetch in list(one.flights.values()) if one is not None else []:
            if fetch.row is not None and not fetch.has_value:
                one.read_store(fetch)

    def finish(self, node: str) -> None:
        """Finish the fetches that have their value and may be shown."""
        one = self._awake(node)
        for fetch in list(one.flights.values()) if one is not None else []:
            if fetch.row is not None and fetch.has_value:
                one.finish(fetch)

    # ------------------------------------------------------------- backing store

    def write_back(self, node: str, key: str) -> None:
        """A node writes back a value that is dirty in its directory, and reports it."""
        one = self._awake(node)
        record = one.directory.records.get(key) if one is not None else None
        if one is None or record is None or not record.dirty:
            return
        if record.absent and not one.near.acknowledgements.covers(record.pending_invalidations):
            return
        held = self.store.setdefault(key, [(0, None)])
        if held[-1][0] < record.version:
            held.append((record.version, record.value))
        one.propose(Entry(WrittenBack(items=[(key, record.version)]), one.origin()))

    def lose(self, key: str) -> None:
        """The backing store fails over to a replica that lags: its previous version is back."""
        if len(self.store.get(key, ())) > 1:
            self.store[key].pop()

    # ------------------------------------------------------------------- network

    def send(self, sender: SimNode, to: str, kind: str, content: Any) -> None:
        self.messages.append(
            SimMessage(
                sender.node_id, sender.incarnation, to, self.nodes[to].incarnation if to in self.nodes else 1, kind, content
            )
        )

    def deliver(self, which: int) -> None:
        if self.messages:
            message = self.messages.pop(which % len(self.messages))
            node = self._awake(message.to)
            if node is not None and (message.kind == "applied" or message.to_incarnation == node.incarnation):
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
        """Quorum rounds end. They succeed only for the leader of the newest term."""
        one = self._awake(node)
        if one is None:
            return
        leads = node == self.leader and one.believed_term == self.term
        waiting, one.confirming = one.confirming, []
        if leads or (self.flaws.deposed_leader_grants and one.believed_term):
            for peer, token in waiting:
                one.confirmed(peer, token)

    def tick(self, node: str) -> None:
        """A node that believes it is the leader revokes the nodes that a write waits for and whose lease is over."""
        one = self._awake(node)
        if one is None or not one.believed_term:
            return
        if node == self.leader and one.believed_term == self.term:
            self._agree_lease(one)
        if self.flaws.revoke_without_waiting:
            one.granted._earlier_end = 0
            one.granted._ends.clear()
        for overdue in one.granted.overdue(one.directory.awaited, one.near.acknowledgements.applied, one.clock()):
            if node == self.leader and one.believed_term == self.term:
                self.propose(Entry(Revoke(node=overdue, term=one.granted.term), Origin("", 0, 0)))

    def _agree_lease(self, leader: SimNode) -> None:
        command = leader.granted.next_proposal(leader.directory.lease_ms, leader.clock())
        if command is not None:
            leader.granted.proposed()
            self.propose(Entry(command, Origin("", 0, 0)))

    # -------------------------------------------------------------- near clients

    def client_get(self, name: str, key: str) -> None:
        client = self._client(name)
        if client is not None:
            client.get(key)

    def client_renew(self, name: str) -> None:
        client = self._client(name)
        if client is not None:
            client.renew()

    def client_receive(self, name: str) -> None:
        """A client carries out the next message."""
        client = self._client(name)
        if client is not None:
            client.receive()

    def serve_client(self, name: str) -> None:
        """The client's node carries out its next message."""
        connection = self.clients[name].connection
        if connection is not None and self._awake(connection.node.node_id) is not None:
            connection.node.clients.receive(connection)

    def send_drops(self, node: str) -> None:
        one = self._awake(node)
        if one is not None:
            one.clients.send_all()

    def serve_clients(self, node: str) -> None:
        """A tick of the node."""
        one = self._awake(node)
        if one is not None:
            one.clients.tick()

    def try_to_open(self, node: str) -> None:
        one = self._awake(node)
        if one is not None:
            one.try_to_open()

    def client_connect(self, name: str, node: str) -> None:
        client, one = self._client(name), self._awake(node)
        if client is not None and one is not None:
            client.connect(one)

    def client_disconnect(self, name: str) -> None:
        self.clients[name].disconnect()

    def client_restart(self, name: str) -> None:
        self.clients[name].restart()
        self.clients[name].is_paused = False

    def client_fork(self, name: str) -> None:
        client = self._client(name)
        if client is not None:
            client.fork()

    def client_pause(self, name: str) -> None:
        self.clients[name].is_paused = True

    def client_resume(self, name: str) -> None:
        self.clients[name].is_paused = False

    def _client(self, name: str) -> SimClient | None:
        client = self.clients[name]
        return None if client.is_paused else client

    # -------------------------------------------------------------------- faults

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def pause(self, node: str) -> None:
        self.nodes[node].is_paused = True

    def resume(self, node: str) -> None:
        self.nodes[node].is_paused = False

    def restart(self, node: str, snapshot_of: str = "") -> None:
        """kill -9 and a new process. With a snapshot it need not apply the log from the beginning."""
        one = self.nodes[node]
        if node == self.leader:
            self.lead(next(name for name in self.nodes if name != node))
        one.start()
        one.is_paused = False
        self.restore(node, snapshot_of)

    def restore(self, node: str, snapshot_of: str) -> None:
        """A node gets another node's snapshot instead of the log."""
        one, other = self._awake(node), self.nodes.get(snapshot_of)
        if one is None or other is None or other.applied <= one.applied or node == self.leader:
            return  # a leader has all entries itself
        old = one.directory.stamp
        one.directory.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(other.directory.snapshot())))
        one.sessions = dict(other.sessions)
        one.applied = other.applied
        if self.flaws.snapshot_keeps_clients:
            one.near.clients, kept = NearClients(), one.near.clients
            one.answered(one.near.restored(one.directory.stamp, one.directory.voided, one.clock()))
            one.near.clients = kept
        elif self.flaws.snapshot_keeps_lines and old:
            one.answered(one.near.acknowledgements.advance(node, one.directory.stamp))
        else:
            one.answered(one.near.restored(one.directory.stamp, one.directory.voided, one.clock()))
        one.look_at_session()
        # Reads and writes whose command is in the snapshot get no answer: they are dropped.
        for fetch in list(one.submitted.values()):
            for read in fetch.readers:
                one.reads.remove(read)
            one.near.end(fetch.flight)
            del one.flights[fetch.flight]
        one.submitted.clear()
        one.writes.clear()
        one.near.lease.applied(one.applied)
        one.announce()

    def lead(self, node: str, kept: int = 0) -> None:
        """Elect another leader. It has `kept` of the proposed entries in its log; the others are lost or sent again."""
        if node == self.leader or self._awake(node) is None:
            return
        self.commit(kept)
        self.proposed = [entry for entry in self.proposed if entry.origin.node]
        self.leader = node
        self.term += 1
        self._lead()

    def learn_leader(self, node: str) -> None:
        """A node, perhaps a deposed leader, learns who leads."""
        one = self._awake(node)
        if one is not None:
            one.leader = self.leader
            if node != self.leader:
                one.believed_term = 0

    def _lead(self) -> None:
        leader = self.nodes[self.leader]
        leader.believed_term, leader.leader = self.term, self.leader
        leader.confirming.clear()
        leader.granted.lead(self.term, leader.clock())
        self._agree_lease(leader)

    def _awake(self, node: str) -> SimNode | None:
        one = self.nodes[node]
        return None if one.is_paused else one

    # ------------------------------------------------------------------ quiescence

    def calm_down(self) -> None:
        """Faults end: everything in progress must finish."""
        for node in self.nodes:
            self.resume(node)
        for client in self.clients:
            self.client_resume(client)
        for _ in range(200):
            self.advance(0.05)
            self._clients_work()
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
                self.finish(node)
            if self.is_quiet:
                return

    def _clients_work(self) -> None:
        for node in self.nodes:
            self.try_to_open(node)
            self.send_drops(node)
            self.serve_clients(node)
        for name, client in self.clients.items():
            while client.connection is not None and (client.connection.to_client or client.connection.to_node):
                self.client_receive(name)
                self.serve_client(name)
                if client.connection is not None and not client.connection.is_served and not client.connection.to_client:
                    client.connection = None

    @property
    def is_quiet(self) -> bool:
        """All reads and writes are answered."""
        return all(
            not node.reads and not node.writes and not any(node.near.acknowledgements.awaited().values())
            for node in self.nodes.values()
        )
