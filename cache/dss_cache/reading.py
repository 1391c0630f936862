"""Reads that miss: fetches that are shared by their readers, and values from the backing store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dss_api.errors import Refused
from dss_cache.backing_store import BackingStore, Stored
from dss_cache.core.coherence import Flight, NearCache, Step
from dss_cache.core.commands import Fetch, Lost
from dss_cache.core.directory import PENDING_KEY, Directory, FetchRow
from dss_cache.peers import Peers, Waiter

if TYPE_CHECKING:
    from dss_raft.node import Node

#: If the store is ahead of the fetch, there was a later write: fetch again. After this many times it is another cluster's store.
FETCHES_MAX = 5


class Found(NamedTuple):
    """The result of a read."""

    #: JSON; None: the key has no value
    value: bytes | None
    version: int
    #: of the line that was read or installed
    state: str
    hit: bool = False


FoundWaiter = asyncio.Future[Found]


class Reader:
    """The slow path of reads; hits do not come here.

    Args:
        store_failed: called with the refusal of a failed fetch; the backing store may be the reason.
    """

    def __init__(
        self,
        node: Node,
        near: NearCache[Waiter],
        directory: Directory,
        store: BackingStore,
        peers: Peers,
        clock: Callable[[], float],
        store_failed: Callable[[Refused], None],
    ) -> None:
        self._node = node
        self._near = near
        self._directory = directory
        self._store = store
        self._peers = peers
        self._clock = clock
        self._memory_failed = store_failed
        self._tasks: set[asyncio.Task[None]] = set()
        #: the results of the flights in progress
        self._results: dict[Flight, FoundWaiter] = {}
        #: values that the backing store had lost
        self.lost = 0

    async def read(self, key: str) -> Found:
        """One key.

        Raises:
            Refused: what `submit` raises, `memory_unavailable`, `unknown_outcome`.
        """
        return (await self.read_many([key]))[0]

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        """Several keys; the missing ones are fetched by one command.

        Raises:
            Refused: as `read`.
        """
        begun = self._near.flights_begun
        gathered: list[Flight] = []
        waits = [self._read_one(key, begun, gathered) for key in keys]
        if len(waits) == 1:
            return [await waits[0]]
        return list(await asyncio.gather(*waits))

    async def _read_one(self, key: str, begun: int, gathered: list[Flight]) -> Found:
        near = self._near
        can_renew = True
        while True:
            now = self._clock()
            step = near.step(key, now, begun, can_renew)
            if step is Step.HIT:
                line = near.hit(key, now)
                assert line is not None
                return Found(line.value, line.version, line.state, hit=True)
            if step is Step.COVER:
                line = near.lines.get(key)
                assert line is not None
                await self._peers.wait_for_invalidations(line.pending_invalidations, ask_now=True)
            elif step is Step.RENEW:
                can_renew = await self._peers.renew()
            elif step is Step.AWAIT:
                await asyncio.wait([self._results[near.flights[key]]])
            else:
                if now >= near.lease.valid_until:
                    self._peers.renew_soon()
                flight = near.flights[key] if step is Step.JOIN else self._begin(key, gathered)
                found = await asyncio.shield(self._results[flight])
                if near.serves(flight, begun, found.value is None):
                    return found

    # ------------------------------------------------------------------ flights

    def _begin(self, key: str, gathered: list[Flight]) -> Flight:
        """Begin a flight. Flights of one call that begin in the same turn of the event loop share a command."""
        flight = self._near.begin(key)
        loop = asyncio.get_running_loop()
        self._results[flight] = loop.create_future()
        if not gathered:
            loop.call_soon(self._start_fetch, gathered)
        gathered.append(flight)
        return flight

    def _start_fetch(self, gathered: list[Flight]) -> None:
        flights = list(gathered)
        gathered.clear()
        task = asyncio.get_running_loop().create_task(self._run_fetch(flights))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_fetch(self, flights: list[Flight]) -> None:
        try:
            rows = await self._fetch([flight.key for flight in flights])
            if len(flights) == 1:
                await self._finish(flights[0], rows[0])
            else:
                await asyncio.gather(*(self._finish(flight, row) for flight, row in zip(flights, rows, strict=True)))
        except BaseException as error:
            refusal = error if isinstance(error, Refused) else Refused("unknown_outcome", "the read was interrupted")
            for flight in flights:
                self._refuse(flight, refusal)
            if not isinstance(error, Refused):
                raise

    async def _fetch(self, keys: list[str]) -> list[FetchRow]:
        result = await self._node.submit(Fetch(keys=keys))
        return [msgspec.convert(row, FetchRow) for row in result.body["rows"]]

    async def _finish(self, flight: Flight, row: FetchRow) -> None:
        """Get the value for a fetch that was applied, install it, and answer the readers."""
        try:
            value, row = await self._value(flight.key, row)
            if not self._near.acknowledgements.covers(row.pending_invalidations):
                await self._peers.wait_for_invalidations(row.pending_invalidations, ask_now=True)
        except Refused as refusal:
            self._memory_failed(refusal)
            self._refuse(flight, refusal)
            return
        state = "I" if value is None else self._near.install(flight, row, value, self._clock())
        self._near.end(flight)
        self._results.pop(flight).set_result(Found(value, row.version, state))

    async def _value(self, key: str, row: FetchRow) -> tuple[bytes | None, FetchRow]:
        """The value of the fetched version, or of a newer one if a write came in between. Also returns the row it belongs to."""
        stored: Stored | None = None
        for _ in range(FETCHES_MAX):
            if row.absent or row.value is not None:
                return row.value, row
            stored = await self._store.read(key)
            if stored is None or stored.version <= row.version:
                break
            row = (await self._fetch([key]))[0]
        if stored is not None and stored.version == row.version:
            return stored.value, row
        return await self._missing(key, row, stored)

    async def _missing(self, key: str, row: FetchRow, found: Stored | None) -> tuple[bytes | None, FetchRow]:
        """The backing store has lost the version. Look in the other nodes' own stores; if none has it, the value is gone."""
        unreachable: list[str] = []
        if not self._store.is_shared:
            replies, unreachable = await self._peers.ask_all_nodes("stored", key, 1)
            for rows in replies.values():
                for one in rows:
                    if one["version"] == row.version:
                        self._store.keep(Stored(key, row.version, one["value"]))
                        return one["value"], row
        self.lost += 1
        if unreachable:
            return None, FetchRow(row.version, True, None, "I", row.stamp, row.pending_invalidations, 0)
        found_version = found.version if found is not None else 0
        result = await self._node.submit(Lost(key=key, version=row.version, found_version=found_version))
        if not result.body["lost"]:  # the key was written again in the meantime
            return await self._value(key, (await self._fetch([key]))[0])
        return None, FetchRow(result.body["version"], True, None, "I", row.stamp, result.body[PENDING_KEY], 0)

    def _refuse(self, flight: Flight, refusal: Refused) -> None:
        self._near.end(flight)
        result = self._results.pop(flight, None)
        if result is not None and not result.done():
            result.set_exception(Refused(refusal.code, refusal.detail))
            result.exception()  # retrieved: the reader may have gone

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
