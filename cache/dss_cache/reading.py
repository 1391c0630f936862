"""Reads that miss: fetches that are shared by their readers, and values from the backing store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from dss_api.errors import Refused
from dss_api.fields import INDEX_MAX
from dss_api.supervised import Tasks
from dss_cache.backing_store import BackingStore, Stored
from dss_cache.config import config_of
from dss_cache.core.coherence import Flight, NearCache, Step
from dss_cache.core.commands import Fetch, Lost
from dss_cache.core.directory import PENDING_KEY, Directory, FetchRow
from dss_cache.core.events import Stamps
from dss_cache.peers import Peers, Waiter

if TYPE_CHECKING:
    from dss_raft.node import Node

log = structlog.get_logger("cache")

#: If the store is ahead of the fetch, there was a later write: fetch again. After this many times it is another cluster's store.
FETCHES_MAX = 5
#: A read looks at its lines at most this many times. Nearly all reads need one or two looks; each wait between two has a deadline.
LOOKS_MAX = 30
#: A backing store that is newer than the directory is logged this often.
NEWER_REPORT_S = 60.0


class Found(NamedTuple):
    """The result of a read."""

    #: JSON; None: the key has no value
    value: bytes | None
    version: int
    #: of the line that was read or installed
    state: str
    hit: bool = False


FoundWaiter = asyncio.Future[Found]


class _GivenUp(Exception):
    """The call that began this fetch has no use for its value any more. Calls that joined it fetch the key themselves."""


def too_large(bytes_max: int) -> Refused:
    """The refusal of a read of several keys."""
    return Refused("too_large", f"the values are longer than {bytes_max} bytes; ask for fewer `keys`", field="keys")


class _Look:
    """What one look at the lines of several keys found, and what the other keys wait for."""

    __slots__ = ("flights", "found", "needs_lease", "others", "pending")

    def __init__(self) -> None:
        self.found: dict[str, Found] = {}
        self.needs_lease = False
        #: pending invalidations of lines
        self.pending: Stamps = {}
        #: fetches that began too early to be joined
        self.others: list[FoundWaiter] = []
        #: fetches that were begun or joined; True: begun
        self.flights: list[tuple[str, Flight, FoundWaiter, bool]] = []


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
        self._tasks = Tasks()
        #: the results of the flights in progress
        self._results: dict[Flight, FoundWaiter] = {}
        #: values that the backing store had lost
        self.lost = 0
        #: those of which it had a newer version than the directory
        self.newer = 0
        self._report_newer_at = 0.0

    async def read(self, key: str) -> Found:
        """One key.

        Raises:
            Refused: what `submit` raises, `memory_unavailable`, `unknown_outcome`.
        """
        return (await self.read_many([key]))[0]

    async def read_many(self, keys: Sequence[str], bytes_max: int = 0) -> list[Found]:
        """Several keys; the missing ones are fetched by one command. One task does it all, however many keys there are.

        Args:
            bytes_max: of all values; 0: any number. Once there are more, no further values are read from the backing store.

        Raises:
            Refused: as `read`, and `too_large`.
        """
        near = self._near
        begun = near.flights_begun
        gathered: list[Flight] = []
        found: dict[str, Found] = {}
        left = list(keys)
        can_renew = True
        for look_number in range(LOOKS_MAX):
            if look_number:
                # What a look waits for may be there already, and the other calls must have their turn.
                await asyncio.sleep(0)
            look = self._look(left, begun, can_renew, gathered, bytes_max)
            found.update(look.found)
            if look.needs_lease:
                # Once for each read: when the loop is slow, a new lease may be over before it can be used.
                can_renew = False
                await self._peers.renew()
            if look.pending:
                await self._peers.wait_for_invalidations(look.pending, ask_now=True)
            if look.others:
                await asyncio.wait(look.others)
            for key, flight, result, is_own in look.flights:
                try:
                    fetched = await asyncio.shield(result)
                except _GivenUp:
                    if is_own:
                        raise too_large(bytes_max) from None
                    continue
                if near.serves(flight, begun, fetched.value is None):
                    found[key] = fetched
            if bytes_max and sum(len(one.value) for one in found.values() if one.value is not None) > bytes_max:
                raise too_large(bytes_max)
            left = [key for key in left if key not in found]
            if not left:
                return [found[key] for key in keys]
        raise Refused("unknown_outcome", f"`{left[0]}` changed all the time while it was being read")

    def _look(self, keys: Sequence[str], begun: int, can_renew: bool, gathered: list[Flight], bytes_max: int) -> _Look:
        """Take what can be read now, and begin the fetches that are needed."""
        near = self._near
        look = _Look()
        for key in keys:
            now = self._clock()
            step = near.step(key, now, begun, can_renew)
            if step is Step.HIT:
                line = near.hit(key, now)
                assert line is not None
                look.found[key] = Found(line.value, line.version, line.state, hit=True)
            elif step is Step.COVER:
                line = near.lines.get(key)
                assert line is not None
                for node, stamp in line.pending_invalidations.items():
                    look.pending[node] = max(stamp, look.pending.get(node, 0))
            elif step is Step.RENEW:
                look.needs_lease = True
            elif step is Step.AWAIT:
                look.others.append(self._results[near.flights[key]])
            else:
                if now >= near.lease.valid_until:
                    self._peers.renew_soon()
                is_own = step is not Step.JOIN
                flight = self._begin(key, gathered, bytes_max) if is_own else near.flights[key]
                look.flights.append((key, flight, self._results[flight], is_own))
        return look

    # ------------------------------------------------------------------ flights

    def _begin(self, key: str, gathered: list[Flight], bytes_max: int) -> Flight:
        """Begin a flight. Flights of one call that begin in the same turn of the event loop share a command."""
        flight = self._near.begin(key)
        loop = asyncio.get_running_loop()
        self._results[flight] = loop.create_future()
        if not gathered:
            loop.call_soon(self._start_fetch, gathered, bytes_max)
        gathered.append(flight)
        return flight

    def _start_fetch(self, gathered: list[Flight], bytes_max: int) -> None:
        flights = list(gathered)
        gathered.clear()
        self._tasks.spawn("cache_reads", self._run_fetch(flights, bytes_max))

    async def _run_fetch(self, flights: list[Flight], bytes_max: int) -> None:
        try:
            rows = await self._fetch([flight.key for flight in flights])
            if len(flights) == 1:
                await self._finish(flights[0], rows[0])
            else:
                await self._finish_many(list(zip(flights, rows, strict=True)), bytes_max)
        except BaseException as error:
            refusal = error if isinstance(error, Refused) else Refused("unknown_outcome", "the read was interrupted")
            for flight in flights:
                self._refuse(flight, refusal)
            if not isinstance(error, Refused):
                raise

    async def _finish_many(self, fetched: list[tuple[Flight, FetchRow]], bytes_max: int) -> None:
        """Finish fetches in parts that are no longer than the limit, and give up the others once there are more bytes than that."""
        part_length = max(bytes_max // config_of(self._node).value_bytes_max, 1) if bytes_max else len(fetched)
        size = 0
        for start in range(0, len(fetched), part_length):
            if size > bytes_max > 0:
                for flight, _ in fetched[start:]:
                    self._fail(flight, _GivenUp())
                return
            part = fetched[start : start + part_length]
            size += sum(await asyncio.gather(*(self._finish(flight, row) for flight, row in part)))

    async def _fetch(self, keys: list[str]) -> list[FetchRow]:
        result = await self._node.submit(Fetch(keys=keys))
        return [msgspec.convert(row, FetchRow) for row in result.body["rows"]]

    async def _finish(self, flight: Flight, row: FetchRow) -> int:
        """Get the value for a fetch that was applied, install it, and answer the readers. Returns the length of the value."""
        try:
            value, row = await self._value(flight.key, row)
            if not self._near.acknowledgements.covers(row.pending_invalidations):
                await self._peers.wait_for_invalidations(row.pending_invalidations, ask_now=True)
        except Refused as refusal:
            self._memory_failed(refusal)
            self._refuse(flight, refusal)
            return 0
        state = "I" if value is None else self._near.install(flight, row, value, self._clock())
        self._near.end(flight)
        self._results.pop(flight).set_result(Found(value, row.version, state))
        return 0 if value is None else len(value)

    async def _value(self, key: str, row: FetchRow) -> tuple[bytes | None, FetchRow]:
        """The value of the fetched version, or of a newer one if a write came in between. Also returns the row it belongs to."""
        for _ in range(FETCHES_MAX):
            stored = await self._stored_value(key, row)
            if stored is not None:
                return stored
            row = (await self._fetch([key]))[0]
        raise Refused("unknown_outcome", f"`{key}` changed {FETCHES_MAX} times while its value was looked for")

    async def _stored_value(self, key: str, row: FetchRow) -> tuple[bytes | None, FetchRow] | None:
        """As `_value`. None: the store has lost the value, but the key was written again in the meantime."""
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

    async def _missing(self, key: str, row: FetchRow, found: Stored | None) -> tuple[bytes | None, FetchRow] | None:
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
        if found is not None and found.version > row.version:
            self._store_is_newer(key, row.version, found.version)
        if unreachable:
            return None, FetchRow(row.version, True, None, "I", row.stamp, row.pending_invalidations, 0)
        # A shared store can contain anything.
        found_version = found.version if found is not None and 0 <= found.version <= INDEX_MAX else 0
        result = await self._node.submit(Lost(key=key, version=row.version, found_version=found_version))
        if not result.body["lost"]:
            return None
        return None, FetchRow(result.body["version"], True, None, "I", row.stamp, result.body[PENDING_KEY], 0)

    def _store_is_newer(self, key: str, version: int, found_version: int) -> None:
        """The state is older than the backing store, perhaps because it was restored from a backup."""
        self.newer += 1
        now = self._clock()
        if now >= self._report_newer_at:
            self._report_newer_at = now + NEWER_REPORT_S
            log.warning(
                "cache.backing_store_is_newer",
                store=self._store.name,
                key=key,
                version=version,
                found=found_version,
                keys=self.newer,
            )

    def _refuse(self, flight: Flight, refusal: Refused) -> None:
        self._fail(flight, Refused(refusal.code, refusal.detail))

    def _fail(self, flight: Flight, error: Exception) -> None:
        self._near.end(flight)
        result = self._results.pop(flight, None)
        if result is not None and not result.done():
            result.set_exception(error)
            result.exception()  # retrieved: the reader may have gone

    def close(self) -> None:
        self._tasks.cancel()
