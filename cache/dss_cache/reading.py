"""How a read that does not hit gets its answer: fetches shared by their readers, values from the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dss_api.errors import Refused
from dss_cache.backing_store import Memory, Stored
from dss_cache.core.coherence import Flight, NearCache, Step
from dss_cache.core.commands import Fetch, Lost
from dss_cache.core.directory import Directory, Fetch1
from dss_cache.peers import Peers, Waiter

if TYPE_CHECKING:
    from dss_raft.node import Node

#: A memory that is ahead of the fetch belongs to a write that came after it; so often in a row it is another cluster's memory.
FETCHES_MAX = 5


class Found(NamedTuple):
    """What a read is answered with."""

    #: JSON; None: the key has no value
    value: bytes | None
    version: int
    #: the line it was read from, or that was installed
    state: str
    hit: bool = False


FoundWaiter = asyncio.Future[Found]


class Reader:
    """The slow path of reads; a hit never comes here.

    Args:
        memory_failed: told why a fetch came to nothing; the memory may be the reason.
    """

    def __init__(
        self,
        node: Node,
        near: NearCache[Waiter],
        directory: Directory,
        memory: Memory,
        peers: Peers,
        clock: Callable[[], float],
        memory_failed: Callable[[Refused], None],
    ) -> None:
        self._node = node
        self._near = near
        self._directory = directory
        self._memory = memory
        self._peers = peers
        self._clock = clock
        self._memory_failed = memory_failed
        self._tasks: set[asyncio.Task[None]] = set()
        #: the landing places of the flights under way
        self._results: dict[Flight, FoundWaiter] = {}
        #: values that the memory had lost
        self.lost = 0

    async def read(self, key: str) -> Found:
        """One key.

        Raises:
            Refused: what `submit` raises, `memory_unavailable`, `unknown_outcome`.
        """
        return (await self.read_many([key]))[0]

    async def read_many(self, keys: Sequence[str]) -> list[Found]:
        """Several keys, missing ones fetched by one command.

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
                await self._peers.covered(line.must, ask_now=True)
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
        """Begin a flight; those of one call that begin in the same turn of the loop share a command."""
        flight = self._near.begin(key)
        loop = asyncio.get_running_loop()
        self._results[flight] = loop.create_future()
        if not gathered:
            loop.call_soon(self._depart, gathered)
        gathered.append(flight)
        return flight

    def _depart(self, gathered: list[Flight]) -> None:
        flights = list(gathered)
        gathered.clear()
        task = asyncio.get_running_loop().create_task(self._fly(flights))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, flights: list[Flight]) -> None:
        try:
            rows = await self._fetch([flight.key for flight in flights])
            if len(flights) == 1:
                await self._finish(flights[0], rows[0])
            else:
                await asyncio.gather(*(self._finish(flight, row) for flight, row in zip(flights, rows, strict=True)))
        except BaseException as error:
            refusal = error if isinstance(error, Refused) else Refused("unknown_outcome", "the read was broken off")
            for flight in flights:
                self._refuse(flight, refusal)
            if not isinstance(error, Refused):
                raise

    async def _fetch(self, keys: list[str]) -> list[Fetch1]:
        result = await self._node.submit(Fetch(keys=keys))
        return [msgspec.convert(row, Fetch1) for row in result.body["rows"]]

    async def _finish(self, flight: Flight, row: Fetch1) -> None:
        """From a fetch that was applied to an answer."""
        try:
            value, row = await self._value(flight.key, row)
            if not self._near.acknowledgements.covers(row.must):
                await self._peers.covered(row.must, ask_now=True)
        except Refused as refusal:
            self._memory_failed(refusal)
            self._refuse(flight, refusal)
            return
        state = "I" if value is None else self._near.land(flight, row, value, self._clock())
        self._near.end(flight)
        self._results.pop(flight).set_result(Found(value, row.version, state))

    async def _value(self, key: str, row: Fetch1) -> tuple[bytes | None, Fetch1]:
        """The value of the version that was fetched; a newer one's if it was overtaken meanwhile."""
        stored: Stored | None = None
        for _ in range(FETCHES_MAX):
            if row.absent or row.value is not None:
                return row.value, row
            stored = await self._memory.read(key)
            if stored is None or stored.version <= row.version:
                break
            row = (await self._fetch([key]))[0]
        if stored is not None and stored.version == row.version:
            return stored.value, row
        return await self._missing(key, row, stored)

    async def _missing(self, key: str, row: Fetch1, found: Stored | None) -> tuple[bytes | None, Fetch1]:
        """The memory has lost the version. Another node's own memory may have it; else the key has no value any more."""
        unreachable: list[str] = []
        if not self._memory.is_shared:
            replies, unreachable = await self._peers.ask_everybody("stored", key, 1)
            for rows in replies.values():
                for one in rows:
                    if one["version"] == row.version:
                        self._memory.keep(Stored(key, row.version, one["value"]))
                        return one["value"], row
        self.lost += 1
        if unreachable:
            return None, Fetch1(row.version, True, None, "I", row.stamp, row.must, 0)
        found_version = found.version if found is not None else 0
        result = await self._node.submit(Lost(key=key, version=row.version, found_version=found_version))
        if not result.body["lost"]:  # it was written again meanwhile
            return await self._value(key, (await self._fetch([key]))[0])
        return None, Fetch1(result.body["version"], True, None, "I", row.stamp, result.body["must"], 0)

    def _refuse(self, flight: Flight, refusal: Refused) -> None:
        self._near.end(flight)
        result = self._results.pop(flight, None)
        if result is not None and not result.done():
            result.set_exception(Refused(refusal.code, refusal.detail))
            result.exception()  # whoever waited may have gone

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
