"""The cache of one node: assembles its parts and connects them to the node.

    directory (replicated) ── events ──> near cache (lines, lease, flights) <── peers (acknowledgements, leases)
                                         reader ──> backing store <── write-back

Everything runs in the node's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from dss_api.errors import Refused
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_cache import near_metrics
from dss_cache.backing_store import BackingStore
from dss_cache.config import config_of
from dss_cache.core.coherence import NearCache
from dss_cache.core.directory import PENDING_KEY, Directory
from dss_cache.core.events import Cleaned, Fetched, LeaseAgreed, Voided, Written
from dss_cache.core.lines import Line, Lines
from dss_cache.core.near_clients import NearClients
from dss_cache.core.policy import make_policy
from dss_cache.near import NearServer, Subscriber
from dss_cache.peers import Peers, Rows, Waiter
from dss_cache.reading import Found, Reader
from dss_cache.trace import Trace, Transition
from dss_cache.writeback import WriteBack
from dss_raft.replication.clocks import boot_time, wall_clock_ms
from dss_raft.replication.commands import Command

if TYPE_CHECKING:
    from dss_raft.node import Node

SERVICE = "cache"
WRITE_BACK_AT_STOP_S = 3.0


class CacheService:
    """The cache of one node. Build it before the node starts, `start` it afterwards.

    Args:
        store: the backing store.
        clock: replaces `boot_time` in tests.
    """

    #: name of its part in the node's snapshots; a stored format
    name = "cache-memory"

    def __init__(self, node: Node, store: BackingStore, clock: Any = boot_time) -> None:
        config = config_of(node)
        lease_s = config.cache_lease_ms / 1000
        self.node = node
        self.clock = clock
        self.directory = cast(Directory, node.machine("cache"))
        self.store = store
        self.trace = Trace()
        self.lines = Lines(
            config.cache_max_items,
            config.cache_max_bytes,
            self._line_changed,
            make_policy(config.cache_policy, config.cache_max_items),
        )
        clients: NearClients[Subscriber] = NearClients(
            config.cache_clients_max,
            config.cache_client_keys_max,
            config.cache_client_bytes_max,
            near_metrics.CONFIRMATION.observe,
        )
        self.near: NearCache[Waiter] = NearCache(node.node_id, node.incarnation, self.lines, lease_s, clients)
        self.peers = Peers(node, self.near, self.directory, lease_s, clock, self.rows)
        delay_s = config.cache_write_back_ms / 1000
        self.write_back = WriteBack(node, self.directory, self.near.acknowledgements, self.store, delay_s, clock)
        self.reader = Reader(node, self.near, self.directory, self.store, self.peers, clock, self.write_back.store_failed)
        self.near_server = NearServer(node, self.near, self.directory, self.peers, self.reader, clock, self._count)
        self.clearing = asyncio.Lock()
        #: counted by the operations
        self.hits = self.misses = self.puts = 0
        node.on_event(Written, self._written)
        node.on_event(Fetched, self._fetched)
        node.on_event(Cleaned, self._cleaned)
        node.on_event(Voided, self._voided)
        node.on_event(LeaseAgreed, self._lease_agreed)
        node.on_tick(self._tick)
        node.attach(self)
        node.before_opening(self.near_server.leases_of_earlier_process_s)
        node.services[SERVICE] = self

    async def start(self) -> None:
        """Start the write-back; the node is running."""
        self.near.incarnation = self.node.incarnation
        self.write_back.start()

    async def stop(self) -> None:
        """Write back what is dirty here, if the node still runs. The replicated log has all of it in any case."""
        self.near_server.close()
        await self.write_back.stop(WRITE_BACK_AT_STOP_S if self.node.is_running else 0.0)
        self.peers.close()
        self.reader.close()
        await self.store.close()

    # ---------------------------------------------------------- reading, writing

    async def read_many(self, keys: list[str], bytes_max: int = 0) -> list[Found]:
        """The slow path.

        Raises:
            Refused: see `Reader`.
        """
        self.near.used_at = self.clock()
        return await self.reader.read_many(keys, bytes_max)

    async def write(self, command: Command, once: RequestId | None = None) -> Result:
        """Submit a command and wait until its effect, or the version it found, may be shown.

        Args:
            once: the client's request; a repeat waits as the first call did.

        Raises:
            Refused: what `submit` raises; `unknown_outcome` if a node may still hold an older line.
        """
        result = await self.node.submit(command, once=once)
        pending = result.body.get(PENDING_KEY)
        if pending and not self.near.acknowledgements.covers(pending):
            await self.peers.wait_for_invalidations(pending, ask_now=False)
        return result

    # ------------------------------------------- what the directory has applied

    def _written(self, event: Written, index: int) -> None:
        near = self.near
        near.incarnation = self.node.incarnation
        self.peers.release(near.written(event, self.clock()))
        if near.clients.to_send:
            self.near_server.entry_applied()
        self.write_back.written(event)
        if self.lines.wants_write_back:
            self.lines.wants_write_back = False
            self.write_back.write_soon()
        self.peers.entry_applied()

    def _fetched(self, event: Fetched, index: int) -> None:
        self.near.incarnation = self.node.incarnation
        self.peers.release(self.near.fetched(event))
        self.peers.entry_applied()

    def _cleaned(self, event: Cleaned, index: int) -> None:
        self.near.cleaned(event)
        self.write_back.cleaned(event)

    def _voided(self, event: Voided, index: int) -> None:
        self._look_at_session()
        self.peers.release(self.near.voided(event, self.clock()))
        self.near_server.entry_applied()
        self.peers.granted.voided(event.node, event.term)
        self.peers.entry_applied()

    def _lease_agreed(self, event: LeaseAgreed, index: int) -> None:
        self.peers.granted.agreed(event.term, event.lease_ms)

    def _tick(self) -> None:
        near = self.near
        near.lease.applied(self.node.applied_index)
        self._look_at_session()
        self.peers.tick()
        self.write_back.tick()
        self.near_server.tick()
        if (near.lines.by_key or near.clients.count) and near.wants_lease(self.clock()):
            self.peers.renew_soon()

    def _look_at_session(self) -> None:
        if not self.near.is_open and self.node.is_session_open:
            self.peers.release(self.near.session_opened())
            self.peers.entry_applied()

    def _count(self, hits: int, misses: int) -> None:
        self.hits += hits
        self.misses += misses

    def _line_changed(self, key: str, old_state: str, new_state: str, why: str, version: int) -> None:
        self.trace.add(Transition(wall_clock_ms(), key, old_state, new_state, why, version))

    # ---------------------------------------------------------------- snapshots

    async def before_snapshot(self, index: int) -> None:
        """The log may be compacted when this node's own backing store has its values.

        Raises:
            Refused: `memory_unavailable`.
        """
        try:
            await self.store.flush()
        except Refused as refusal:
            # A longer log is better than a lost value: there is no snapshot this time.
            self.write_back.store_failed(refusal)
            raise

    async def dump(self) -> Iterable[bytes]:
        return await self.store.dump()

    def before_restore(self) -> None:
        """The directory is about to be replaced. All lines are dropped, because this node does not see the writes in between."""
        self.near.flush("restoring", self.clock())
        self.near_server.entry_applied()

    async def load(self, data: memoryview) -> None:
        """The directory was replaced by that of a snapshot: nothing known about lines is still valid."""
        self.peers.release(self.near.restored(self.directory.stamp, self.directory.voided, self.clock()))
        self.write_back.restored()
        self.peers.entry_applied()
        await self.store.load(data)

    # -------------------------------------------------------------- diagnostics

    async def rows(self, what: str, key: str, limit: int) -> Rows:
        """This node's answer to another node's question."""
        if what == "line":
            line = self.lines.get(key)
            if line is not None:
                return [self.line_row(key, line)]
            clients = self.near.clients.holders(key)
            return [self.no_line_row(self.node.node_id, key, clients)] if clients else []
        if what == "trace":
            return self.trace.of_key(key, self.node.node_id, limit)
        if what == "lines":
            return [self._row_of(one) for one in _names(key)[:limit]]
        if what == "evict":
            return await self._evict(*msgspec.json.decode(key, type=tuple[str, list[str]]))
        if what == "stored":
            stored = await self.store.read(key)
            return [] if stored is None or stored.value is None else [{"version": stored.version, "value": stored.value}]
        return []

    def _row_of(self, key: str) -> dict[str, Any]:
        """This node's line for a key, or that it has none."""
        line = self.lines.get(key)
        if line is not None:
            return self.line_row(key, line)
        return {"node": self.node.node_id, "key": key, "state": "I", "version": 0, "readable": False, "bytes": 0, "age_ms": None}

    async def _evict(self, key: str, nodes: list[str]) -> Rows:
        """Drop this node's line, if this node is one of them. The value of an M line is written back first."""
        if self.node.node_id not in nodes:
            return []
        line = self.lines.get(key)
        if line is not None and line.state == "M":
            await self.write_back.write_now(key)
        return [{"evicted": self.lines.drop(key, "evicted")}]

    def line_row(self, key: str, line: Line) -> dict[str, Any]:
        return {
            "node": self.node.node_id,
            "key": key,
            "state": line.state,
            "version": line.version,
            "readable": line.readable or self.near.acknowledgements.covers(line.pending_invalidations),
            "bytes": len(line.value),
            "age_ms": int((self.clock() - line.installed_at) * 1000),
            "clients": self.near.clients.holders(key),
        }

    @staticmethod
    def no_line_row(node_id: str, key: str, clients: int = 0) -> dict[str, Any]:
        """The row of a node without a line."""
        empty = {"node": node_id, "key": key, "state": "I", "version": 0, "readable": False, "bytes": 0, "age_ms": None}
        return {**empty, "clients": clients}


def _names(text: str) -> list[str]:
    return msgspec.json.decode(text, type=list[str])


def service_of(node: Node) -> CacheService:
    """The cache of this node."""
    return cast(CacheService, node.services[SERVICE])
