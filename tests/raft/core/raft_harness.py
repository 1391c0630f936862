"""A cluster of cores in one thread: writes are durable immediately unless held, messages arrive unless dropped."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from dss_raft.core import CoreConfig, RaftCore, Role
from dss_raft.core.messages import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    Member,
    RequestVote,
    SnapshotMeta,
)
from dss_raft.core.ready import BootState, HardState, Persist


class Store:
    """A disk: term, vote, entries, the newest snapshot."""

    def __init__(self, configuration: Configuration) -> None:
        self.hard_state = HardState()
        self.snapshot = SnapshotMeta(0, 0, configuration)
        self.entries: list[Entry] = []

    def write(self, persist: Persist) -> None:
        self.hard_state = persist.hard_state
        if persist.truncate_from:
            self.entries = [entry for entry in self.entries if entry.index < persist.truncate_from]
        if persist.snapshot is not None:
            self.snapshot = persist.snapshot
            self.entries = [entry for entry in self.entries if entry.index > persist.snapshot.index]
        self.entries += persist.entries

    def boot(self) -> BootState:
        return BootState(self.hard_state, self.snapshot, [e for e in self.entries if e.index > self.snapshot.index])


class Node:
    """A core with its store, its applied commands and its outgoing messages."""

    def __init__(self, node_id: str, configuration: Configuration, options: dict[str, Any], seed: int) -> None:
        self.id = node_id
        self.options = options
        #: continues across restarts, like the randomness of a real node
        self.rng = random.Random(seed)
        self.store = Store(configuration)
        #: writes wait in `held` until the test calls `flush`
        self.hold_writes = False
        self.start()

    def start(self) -> None:
        """Also a restart: memory is lost, the store is not."""
        config = CoreConfig(
            node_id=self.id, **{"election_ticks_min": 10, "election_ticks_max": 20, "heartbeat_ticks": 2, **self.options}
        )
        self.core = RaftCore(config, self.store.boot(), self.rng)
        self.core.applied(self.store.snapshot.index)
        self.held: Persist | None = None
        self.applied: list[bytes] = []
        self.reads: dict[int, tuple[int, bool]] = {}
        self.restored: list[SnapshotMeta] = []
        self.chunks: dict[int, bytes] = {}

    @property
    def role(self) -> Role:
        return self.core.role

    def flush(self) -> None:
        """The held write becomes durable."""
        if self.held is not None:
            persist, self.held = self.held, None
            self.store.write(persist)
            self.core.persisted(persist.number)

    def log(self) -> list[tuple[int, int]]:
        """(index, term) of every entry held."""
        core = self.core
        return [(e.index, e.term) for e in core.log.slice(core.log.first_index, core.last_index)]


class Cluster:
    """Nodes and the messages between them."""

    def __init__(self, ids: str | list[str], learners: str = "", **options: Any) -> None:
        members = [Member(id=i, url=f"http://{i}", learner=i in learners) for i in sorted([*ids, *learners])]
        self.configuration = Configuration(tuple(members))
        self.options = options
        self.nodes: dict[str, Node] = {}
        self.queue: list[Any] = []
        self.sent: list[Any] = []
        #: messages for which this is true are lost
        self.drop: Callable[[Any], bool] = lambda message: False
        for member in members:
            self.add(member.id, self.configuration)

    def __getitem__(self, node_id: str) -> Node:
        return self.nodes[node_id]

    def add(self, node_id: str, configuration: Configuration | None = None) -> Node:
        """A new node; without a configuration it waits to be contacted."""
        node = Node(node_id, configuration or Configuration(()), self.options, seed=len(self.nodes) + 1)
        self.nodes[node_id] = node
        return node

    def cut(self, *ids: str) -> None:
        """Cut these nodes off: they neither send nor receive."""
        self.drop = lambda message: message.sender in ids or message.to in ids

    def heal(self) -> None:
        self.drop = lambda message: False

    def collect(self, node: Node) -> None:
        """Carry out all work of a node."""
        while (ready := node.core.take_ready()) is not None:
            for message in ready.messages:
                self.sent.append(message)
                self.queue.append(message)
            for chunk in ready.chunks_wanted:
                self.queue.append(
                    InstallSnapshot(
                        sender=node.id,
                        to=chunk.to,
                        term=chunk.term,
                        meta=chunk.meta,
                        offset=chunk.offset,
                        data=b"s" * min(10, chunk.meta.size - chunk.offset),
                        crc=0,
                        done=chunk.offset + 10 >= chunk.meta.size,
                    )
                )
                self.sent.append(self.queue[-1])
            for chunk in ready.chunks_received:
                stored = node.chunks.get(chunk.meta.index, b"")
                if chunk.offset == len(stored):
                    stored += chunk.data
                node.chunks[chunk.meta.index] = stored
                node.core.chunk_stored(chunk.meta, len(stored), len(stored) == chunk.meta.size)
            for read in ready.read_states:
                node.reads[read.context] = (read.index, read.ok)
            if ready.restore is not None:
                node.restored.append(ready.restore)
                node.core.applied(ready.restore.index)
            node.applied += [entry.data for entry in ready.committed if entry.kind == EntryKind.COMMANDS]
            if ready.committed:
                node.core.applied(ready.committed[-1].index)
            if ready.persist is not None:
                node.held = ready.persist
                if not node.hold_writes:
                    node.flush()

    def deliver(self, rounds: int = 1) -> None:
        """Deliver the messages in flight, `rounds` times."""
        for _ in range(rounds):
            for node in self.nodes.values():
                self.collect(node)
            queue, self.queue = self.queue, []
            for message in queue:
                if message.to in self.nodes and not self.drop(message):
                    self.nodes[message.to].core.step(message)

    def settle(self) -> None:
        """Deliver until no node sends anything."""
        for _ in range(1000):
            self.deliver()
            for node in self.nodes.values():
                self.collect(node)
            if not self.queue:
                return
        raise AssertionError("the cluster never settles")

    def tick(self, count: int = 1, *ids: str) -> None:
        """Let time pass (only for these nodes, if given). Messages arrive in between."""
        for _ in range(count):
            for node_id in ids or list(self.nodes):
                self.nodes[node_id].core.tick()
            self.settle()

    def elect(self, node_id: str) -> Node:
        """Make this node leader: only its clock runs."""
        node = self.nodes[node_id]
        for _ in range(200):
            if node.role is Role.LEADER:
                return node
            for other in self.nodes.values():
                if other is not node and other.core.in_lease and other.role is not Role.LEADER:
                    other.core.election_elapsed = other.core.config.election_ticks_min
            self.tick(1, node_id)
        raise AssertionError(f"{node_id} was not elected")

    def leader(self) -> Node:
        leaders = [node for node in self.nodes.values() if node.role is Role.LEADER]
        assert len(leaders) == 1
        return leaders[0]

    def propose(self, node_id: str, *data: bytes) -> int:
        index = 0
        for each in data:
            index = self.nodes[node_id].core.propose(each)
        self.settle()
        return index


class Lone:
    """Node a of three, with b and c silent. `say` gives it messages and returns its answers; writes are durable immediately."""

    def __init__(self) -> None:
        self.cluster = Cluster("abc")
        self.cluster.cut("b", "c")
        self.node = self.cluster["a"]

    @property
    def core(self) -> RaftCore:
        return self.node.core

    def _answers(self) -> list[Any]:
        return [message for message in self.cluster.sent if message.sender == "a"]

    def say(self, *messages: Any) -> list[Any]:
        self.cluster.sent.clear()
        for message in messages:
            self.core.step(message)
        self.cluster.collect(self.node)
        return self._answers()

    def tick(self, count: int = 1) -> list[Any]:
        self.cluster.sent.clear()
        self.cluster.tick(count, "a")
        return self._answers()

    def log(self) -> list[tuple[int, int]]:
        return self.node.log()

    def restart(self) -> None:
        self.node.start()


def entry(index: int, term: int, data: bytes = b"x") -> Entry:
    return Entry(index, term, EntryKind.COMMANDS, data)


def append(to, term, prev, entries=(), commit=0, sender="a", round=1):
    """An AppendEntries as `sender` would send it; prev is (index, term)."""
    return AppendEntries(
        sender=sender, to=to, term=term, prev_index=prev[0], prev_term=prev[1], entries=list(entries), commit=commit, round=round
    )


def request(to, term, last=(0, 0), sender="b", transfer=False):
    return RequestVote(sender=sender, to=to, term=term, last_index=last[0], last_term=last[1], transfer=transfer)
