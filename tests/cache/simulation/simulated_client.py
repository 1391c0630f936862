"""Near clients without I/O: what a program with a near cache does, and the messages of its node (as `dss_cache.near` has them).

A connection carries messages in order, each way on its own. Every delivery is a step of the adversary, so a client can be slow, cut
off in one direction, or paused: it then finds a lease that is over, or messages that it has not read when it looks up a value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from simulated_parts import Entry, Read, StaleRead

from dss_cache.core.commands import AgreeClientLease
from dss_cache.core.leases import MARGIN, RATE_ERROR
from dss_cache.core.near_clients import NearClient, NearClients

if TYPE_CHECKING:
    from simulated_cluster import Simulation
    from simulated_node import SimNode

#: Longest leases of the nodes' clients, in milliseconds: the settings differ, and change with a restart.
CLIENT_LEASES_MS = (300, 600, 150)

Entries = dict[str, tuple[int, bytes | None]]


class Connection:
    """One subscription of a client."""

    def __init__(self, client: SimClient, node: SimNode) -> None:
        self.client = client
        self.node = node
        self.incarnation = node.incarnation
        self.to_client: deque[tuple[Any, ...]] = deque()
        self.to_node: deque[tuple[Any, ...]] = deque()
        self.near_client: NearClient[Connection] = node.near.clients.open(self)

    @property
    def is_served(self) -> bool:
        """The node's process still runs, and has not ended the subscription."""
        return self.node.incarnation == self.incarnation and not self.near_client.is_gone


class SimClient:
    """A program with a near cache, connected to one node at a time."""

    def __init__(self, simulation: Simulation, name: str, rate: float) -> None:
        self.simulation = simulation
        self.name = name
        #: rate of its clock
        self.rate = rate
        self.is_paused = False
        self.entries: Entries = {}
        self.lease_until = 0.0
        self.token = 0
        self.asked: dict[int, float] = {}
        #: fetches in progress: (key, floor)
        self.fetching: dict[int, tuple[str, int]] = {}
        self.done_seq = 0
        self.connection: Connection | None = None
        #: forked processes that kept what they must not keep (a flaw)
        self.children: list[tuple[Entries, float]] = []

    def clock(self) -> float:
        return 500 + self.simulation.now * self.rate

    def connect(self, node: SimNode) -> None:
        """Begin a subscription, with no entries."""
        self.disconnect()
        if not self.simulation.flaws.client_keeps_entries_when_it_subscribes_again:
            self.entries = {}
        self.lease_until, self.done_seq = 0.0, 0
        self.asked.clear()
        self.fetching.clear()
        self.connection = Connection(self, node)

    def disconnect(self) -> None:
        """The connection is lost. What the client has can be used until its lease is over."""
        connection, self.connection = self.connection, None
        if connection is not None and connection.is_served:
            connection.node.clients.leave(connection)

    def restart(self) -> None:
        """The process ends without a word; another one begins with nothing."""
        self.connection = None
        self.entries, self.lease_until = {}, 0.0

    def fork(self) -> None:
        """The child has no connection. It must not have values either."""
        if self.simulation.flaws.forked_client_keeps_entries:
            self.children.append((dict(self.entries), self.lease_until))

    # ------------------------------------------------------------------ reading

    def get(self, key: str) -> None:
        """Answer from an entry, or fetch."""
        for entries, lease_until in [(self.entries, self.lease_until), *self.children]:
            found = entries.get(key)
            if found is not None and (self.clock() < lease_until or self.simulation.flaws.no_client_lease_check):
                self._answer(key, self.simulation.shown.get(key, 0), *found)
        if self.entries.get(key) is None and self.connection is not None:
            self.token += 1
            self.fetching[self.token] = (key, self.simulation.shown.get(key, 0))
            self.connection.to_node.append(("fetch", self.token, key))

    def _answer(self, key: str, floor: int, version: int, value: bytes | None) -> None:
        simulation = self.simulation
        expected = simulation.values[key, version] if version else None
        if version < floor or value != expected:
            simulation.is_broken = True
            raise StaleRead(f"{self.name} read {key} at {version} ({value!r}); {floor} was answered before the read began")
        simulation.saw(key, version)

    # ----------------------------------------------------------------- messages

    def renew(self) -> None:
        """Ask for a lease."""
        if self.connection is not None:
            self.token += 1
            self.asked[self.token] = self.clock()
            self.connection.to_node.append(("renew", self.token, self.done_seq))

    def receive(self) -> None:
        """Carry out the next message."""
        if self.connection is None or not self.connection.to_client:
            return
        kind, *content = self.connection.to_client.popleft()
        getattr(self, f"_{kind}")(*content)

    def _drop(self, seq: int, keys: list[str]) -> None:
        for key in keys:
            self.entries.pop(key, None)
        self._done(seq)

    def _flush(self, seq: int) -> None:
        self.entries.clear()
        self._done(seq)

    def _done(self, seq: int) -> None:
        assert seq == self.done_seq + 1
        self.done_seq = seq
        assert self.connection is not None
        self.connection.to_node.append(("confirm", seq))

    def _grant(self, token: int, lease_ms: int) -> None:
        asked_at = self.asked.pop(token)
        if self.simulation.flaws.client_lease_counts_from_its_arrival:
            asked_at = self.clock()
        self.lease_until = max(self.lease_until, asked_at + lease_ms / 1000 * (1 - RATE_ERROR - MARGIN))

    def _fetched(self, token: int, version: int, value: bytes | None, install: bool) -> None:
        key, floor = self.fetching.pop(token)
        if value is not None and (install or self.simulation.flaws.client_installs_everything):
            self.entries[key] = (version, value)
        self._answer(key, floor, version, value)

    def _ended(self) -> None:
        self.connection = None


class SimNearServer:
    """The near clients of a node: `dss_cache.near` without I/O."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self.lease_ms = CLIENT_LEASES_MS[(int(node.node_id[1:]) + node.incarnation) % len(CLIENT_LEASES_MS)]
        self._is_agreeing = False

    @property
    def _clients(self) -> NearClients[Any]:
        return self._node.near.clients

    def leave(self, connection: Connection) -> None:
        self._clients.leave(connection.near_client)
        if self._node.simulation.flaws.gone_client_is_forgotten:
            connection.near_client.held_until = 0.0
            for outstanding in connection.near_client.outstanding:
                outstanding[3].left -= 1
            connection.near_client.outstanding.clear()
            self._clients._waiting.pop(connection.near_client, None)
            self._clients.expire(self._node.clock())

    def receive(self, connection: Connection) -> None:
        """Carry out the next message of a client."""
        if not connection.is_served or not connection.to_node:
            return
        kind, *content = connection.to_node.popleft()
        if kind == "confirm":
            self._confirmed(connection, *content)
        elif kind == "renew":
            token, seq = content
            self._confirmed(connection, seq)
            self._renew(connection, token)
        else:
            self._fetch(connection, *content)

    def _confirmed(self, connection: Connection, seq: int) -> None:
        if self._clients.confirm(connection.near_client, seq, self._node.clock()):
            self.acknowledge()

    def acknowledge(self) -> None:
        self._node.answered(self._node.near.clients_confirmed())
        self._node.announce()

    def _renew(self, connection: Connection, token: int) -> None:
        node, flaws, now = self._node, self._node.simulation.flaws, self._node.clock()
        is_agreed = node.directory.client_lease_ms.get(node.node_id) == self.lease_ms
        if not is_agreed and not self._is_agreeing and not flaws.client_leases_not_in_the_log:
            self._is_agreeing = True
            node.propose(Entry(AgreeClientLease(lease_ms=self.lease_ms), node.origin()))
        if now >= node.near.lease.valid_until:
            node.ask_lease()
        elif is_agreed or flaws.client_leases_not_in_the_log:
            if not flaws.grant_overtakes_drops:
                self.send(connection.near_client)
            lease_ms = node.near.grant(connection.near_client, now, self.lease_ms / 1000)
            if flaws.client_grant_not_capped:
                lease_ms = self.lease_ms
                self._clients.granted(connection.near_client, now, lease_ms / 1000)
            if flaws.later_grant_extends_deadlines:
                client = connection.near_client
                client.outstanding = deque((seq, made, client.held_until, one) for seq, made, _, one in client.outstanding)
            if lease_ms:
                connection.to_client.append(("grant", token, lease_ms))

    def _fetch(self, connection: Connection, token: int, key: str) -> None:
        node = self._node
        read = Read(key, node.simulation.shown.get(key, 0), node.near.flights_begun)
        read.near = (connection, token)
        node.reads.append(read)
        node.poke(read)

    def answer(self, near: tuple[Connection, int], key: str, version: int, value: bytes | None) -> None:
        """The value for a fetch is here."""
        connection, token = near
        if not connection.is_served:
            return
        node, flaws, now = self._node, self._node.simulation.flaws, self._node.clock()
        usable = value is not None and (flaws.overtaken_fetch_is_installed or node.near.may_install(key, version, now))
        installed: Iterable[str] = [key] if usable else []
        if not flaws.holder_not_recorded:
            installed = self._clients.install(connection.near_client, installed, node.near.applied, now)
        self.send(connection.near_client)
        connection.to_client.append(("fetched", token, version, value, bool(installed)))

    def send_all(self) -> None:
        """Send what the clients must drop."""
        to_send, self._clients.to_send = self._clients.to_send, []
        for client in to_send:
            self.send(client)

    def send(self, client: NearClient[Any]) -> None:
        message = self._clients.take(client)
        if message is not None:
            seq, keys, is_flush = message
            client.subscriber.to_client.append(("flush", seq) if is_flush else ("drop", seq, keys))

    def tick(self) -> None:
        now = self._node.clock()
        for client in self._clients.expire(now):
            self.leave(client.subscriber)
            client.subscriber.to_client.append(("ended",))
        self.acknowledge()
        for _ in range(64):
            self._clients.sweep()
        for client in self._clients._waiting:
            if now > client.outstanding[0][1] + self.lease_ms / 1000 * (1 + RATE_ERROR) + 0.001:
                self._node.simulation.is_broken = True
                raise StaleRead("a client delays a write for longer than its lease")


class AcknowledgesAtOnce(NearClients[Any]):
    """A flaw: a node that does not wait for its clients."""

    def reported(self, applied: int) -> int:
        return applied


class KeepsClients(NearClients[Any]):
    """A flaw: clients are not told that nothing is known about what they hold."""

    def flush(self, stamp: int, now: float) -> None:
        pass
