"""A cluster in one event loop: one log, applied by each node at its own speed, and channels that can be cut."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dss_api.errors import Refused
from dss_api.result import Result
from dss_cache.backing_store import BackingStore, KeyRefused, Stored
from dss_cache.core.commands import AgreeLease
from dss_cache.core.directory import Directory
from dss_cache.service import CacheService
from dss_raft.replication.machine import Origin
from dss_raft.versions import LATEST


class FakeStore:
    """A shared backing store whose calls can be delayed or fail."""

    name = "fake"
    is_shared = True

    def __init__(self) -> None:
        self.items: dict[str, Stored] = {}
        self.is_down = False
        #: keys that the store refuses
        self.refused: set[str] = set()
        #: keys whose part of the store is away
        self.away: set[str] = set()
        self.reads = 0
        #: writes of each key, also those that it did not take
        self.attempts: Counter[str] = Counter()
        #: cleared: reads wait
        self.open = asyncio.Event()
        self.open.set()

    async def check(self) -> None:
        self._check()
        if self.away:
            raise Refused("memory_unavailable", "a part of it is away")

    async def read(self, key: str) -> Stored | None:
        self.reads += 1
        self._check()
        if key in self.refused:
            raise KeyRefused("another type")
        if key in self.away:
            raise Refused("memory_unavailable", "a part of it is away")
        await self.open.wait()
        return self.items.get(key)

    async def write(self, items: Any) -> dict[str, Refused]:
        self._check()
        not_taken: dict[str, Refused] = {}
        for item in items:
            self.attempts[item.key] += 1
            if item.key in self.refused:
                not_taken[item.key] = KeyRefused("another type")
            elif item.key in self.away:
                not_taken[item.key] = Refused("memory_unavailable", "a part of it is away")
            elif item.key not in self.items or self.items[item.key].version < item.version:
                self.items[item.key] = item
        if self.away.issuperset(item.key for item in items):
            raise Refused("memory_unavailable", "a part of it is away")
        return not_taken

    def _check(self) -> None:
        if self.is_down:
            raise Refused("memory_unavailable", "it is down")

    def keep(self, item: Stored) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def dump(self) -> list[bytes]:
        return []

    async def load(self, data: memoryview) -> None:
        pass

    async def close(self) -> None:
        pass


class FakeNode:
    """The part of a node that the cache uses."""

    def __init__(self, cluster: FakeCluster, node_id: str, config: Any) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.unusable_reason = ""
        self.config = config
        self.incarnation = 1
        self.directory = Directory()
        self.applied_index = 0
        #: applies nothing while true
        self.is_held = False
        self.services: dict[str, Any] = {}
        self._seq = 0
        self._futures: dict[Origin, asyncio.Future[Result]] = {}
        self._events: dict[type, list[Any]] = defaultdict(list)
        self._on_leader: list[Any] = []
        self._on_tick: list[Any] = []
        self._on_peer_up: list[Any] = []
        self._channels: dict[str, Any] = {}

    term = property(lambda self: self.cluster.term)
    commit_index = property(lambda self: len(self.cluster.log))
    is_running = True
    is_session_open = True
    replica = SimpleNamespace(cluster_version=LATEST)
    is_leader = property(lambda self: self.cluster.leader == self.node_id)
    leader_id = property(lambda self: self.cluster.leader)
    peers = property(lambda self: [name for name in self.cluster.nodes if name != self.node_id])

    def machine(self, name: str) -> Directory:
        assert name == "cache"
        return self.directory

    def attach(self, part: Any) -> None:
        self.part = part

    def on_event(self, event_type: type, callback: Any) -> None:
        self._events[event_type].append(callback)

    @property
    def core(self) -> Any:
        return SimpleNamespace(membership=SimpleNamespace(ids=frozenset(self.cluster.nodes)))

    def before_adding(self, check: Any) -> None:
        self.may_add = check

    def before_opening(self, delay: Any) -> None:
        self.opening_delay = delay

    def on_leader_change(self, callback: Any) -> None:
        self._on_leader.append(callback)

    def on_tick(self, callback: Any) -> None:
        self._on_tick.append(callback)

    def on_peer_up(self, callback: Any) -> None:
        self._on_peer_up.append(callback)

    def on_channel(self, channel: str, callback: Any) -> None:
        self._channels[channel] = callback

    def send(self, peer_id: str, channel: str, payload: bytes) -> None:
        if not self.cluster.is_cut(self.node_id, peer_id):
            receive = self.cluster.nodes[peer_id]._channels[channel]
            asyncio.get_running_loop().call_soon(receive, self.node_id, payload)

    async def submit(self, command: Any, *, timeout_ms: int | None = None, wait_ms: int = 0, once: Any = None) -> Result:
        if self.cluster.refusal is not None:
            raise self.cluster.refusal
        self._seq += 1
        origin = Origin(self.node_id, self.incarnation, self._seq)
        future = self._futures[origin] = asyncio.get_running_loop().create_future()
        self.cluster.append(command, origin)
        return await future

    def propose_as_leader(self, command: Any) -> bool:
        if not self.is_leader:
            return False
        self.cluster.append(command, Origin("", 0, 0))
        return True

    async def confirm_leadership(self) -> int:
        await asyncio.sleep(0)
        if not self.is_leader or self.cluster.refusal is not None:
            raise Refused("no_leader")
        return self.commit_index

    async def read_index(self) -> None:
        index = await self.cluster.nodes[self.leader_id].confirm_leadership()
        while self.applied_index < index:  # noqa: ASYNC110  (each try is a turn of the loop)
            await asyncio.sleep(0)

    def apply_all(self) -> None:
        while not self.is_held and self.applied_index < len(self.cluster.log):
            command, origin, at_ms = self.cluster.log[self.applied_index]
            self.applied_index += 1
            directory, index = self.directory, self.applied_index
            deadline = directory.next_deadline_ms()
            if deadline is not None and deadline <= at_ms:
                directory.expire(at_ms, index)
            if command is not None:
                result = directory.apply(command, at_ms, index, origin)
                assert result is not None
                if origin.node == self.node_id and (future := self._futures.pop(origin, None)) is not None and not future.done():
                    future.set_result(Result(result.body, result.code, index))
            self.tell()

    def tell(self) -> None:
        for event in self.directory.take_events():
            for callback in self._events[type(event)]:
                callback(event, self.applied_index)

    def tick(self) -> None:
        for callback in self._on_tick:
            callback()

    def leader_changed(self) -> None:
        for callback in self._on_leader:
            callback(self.cluster.leader, self.cluster.term)

    def peer_up(self, peer: str) -> None:
        for callback in self._on_peer_up:
            callback(peer)


class FakeCluster:
    """Nodes n1, n2, n3 with a cache each; n1 leads. The time is `now`; only the test advances it.

    Args:
        store_of: returns the backing store of a node, by name; by default all nodes share a fake one.
        settings: override the defaults.
    """

    def __init__(self, size: int = 3, store_of: Callable[[str], BackingStore] | None = None, **settings: Any) -> None:
        self.log: list[tuple[Any, Origin, int]] = []
        self.leader, self.term = "n1", 1
        self.now = 1000.0
        self.refusal: Refused | None = None
        self.store = FakeStore()
        self._cut: set[frozenset[str]] = set()
        config = SimpleNamespace(
            **{
                "cache_lease_ms": 1000,
                "cache_max_items": 100,
                "cache_max_bytes": 1 << 20,
                "cache_policy": "lru",
                "cache_write_back_ms": 1,
                "cache_client_lease_ms": 300,
                "cache_clients_max": 10,
                "cache_client_keys_max": 100,
                "cache_client_bytes_max": 1 << 20,
                "submit_timeout_ms": 5000,
                "value_bytes_max": 1000,
                **settings,
            }
        )
        self.nodes = {f"n{i}": FakeNode(self, f"n{i}", config) for i in range(1, size + 1)}
        store_of = store_of or (lambda name: self.store)
        self.caches = {name: CacheService(node, store_of(name), lambda: self.now) for name, node in self.nodes.items()}
        for node in self.nodes.values():
            node.leader_changed()
        for cache in self.caches.values():
            cache.near.session_opened()
        #: its first entry
        self.log.append((AgreeLease(lease_ms=config.cache_lease_ms, term=1), Origin("", 0, 0), int(self.now * 1000)))
        # All leases that an earlier leader may have granted are over.
        self.now += 2

    def elect(self, name: str) -> None:
        """Another term."""
        self.leader, self.term = name, self.term + 1
        for node in self.nodes.values():
            node.leader_changed()

    def append(self, command: Any, origin: Origin) -> None:
        self.log.append((command, origin, int(self.now * 1000)))
        asyncio.get_running_loop().call_soon(self.apply_all)

    def apply_all(self) -> None:
        for node in self.nodes.values():
            node.apply_all()

    def pass_s(self, seconds: float) -> None:
        """Advance the time and append an entry with it."""
        self.now += seconds
        self.append(None, Origin("", 0, 0))

    def cut(self, *names: str) -> None:
        """Disconnect these nodes; they apply nothing either."""
        for name in names:
            self.nodes[name].is_held = True
            self._cut.update(frozenset((name, other)) for other in self.nodes if other != name)

    def heal(self) -> None:
        self._cut.clear()
        for node in self.nodes.values():
            node.is_held = False
            for peer in node.peers:
                node.peer_up(peer)
        self.apply_all()

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._cut

    def tick(self) -> None:
        for node in self.nodes.values():
            if not node.is_held:
                node.tick()

    async def settle(self, turns: int = 30) -> None:
        """Let everything happen that needs no time."""
        for _ in range(turns):
            await asyncio.sleep(0)


@pytest.fixture
def make_service():
    """The cache of a single idle node; needs no event loop."""
    return lambda: FakeCluster(1).caches["n1"]


@pytest.fixture
def fake_cluster() -> type[FakeCluster]:
    """For tests that run their cluster in an event loop of their own."""
    return FakeCluster


@pytest.fixture
async def make_cluster():
    clusters: list[FakeCluster] = []

    def make(size: int = 3, **settings: Any) -> FakeCluster:
        clusters.append(FakeCluster(size, **settings))
        return clusters[-1]

    yield make
    for cluster in clusters:
        for cache in cluster.caches.values():
            cache.peers.close()
            cache.reader.close()
            cache.write_back._tasks.cancel()


@pytest.fixture
async def cluster(make_cluster):
    """Three nodes; nothing is written back unless the test starts it."""
    return make_cluster()
