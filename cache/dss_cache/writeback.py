"""Write-back: dirty values are written to the backing store after a delay, in batches, and retried until that succeeds.

The owner of a dirty value, which is its writer, writes it back. If a value stays dirty for too long, the leader writes it back
instead: every node has the value in its directory. It is harmless if both do, because the store takes each version only once.

A key that the store refuses for itself alone (`KeyRefused`) is tried again after a pause of its own. Keys whose part of the store is
away (a primary of a Cluster) share one pause. Neither changes when the other keys are due.

A deletion is written back like a value. It is reported only when every node has dropped its line, because the directory then
removes the record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_cache.backing_store import BackingStore, KeyRefused, Stored
from dss_cache.core.commands import WrittenBack
from dss_cache.core.directory import Directory
from dss_cache.core.events import Cleaned, Written
from dss_cache.core.leases import Acknowledgements
from dss_cache.peers import Waiter

if TYPE_CHECKING:
    from dss_raft.node import Node

log = structlog.get_logger("cache")

BATCH_KEYS = 500
BATCH_BYTES = 4 * 1024 * 1024
#: Pauses for the keys whose part of the store is away; and for all, when a pass cannot go on (for example, without a leader).
RETRY_S_MIN, RETRY_S_MAX = 0.2, 5.0
#: Pauses for one key that the store refuses.
KEY_RETRY_S_MIN, KEY_RETRY_S_MAX = 0.2, 60.0
#: The leader takes over values that have been dirty for this many delays, and at least this long.
ORPHAN_DELAYS, ORPHAN_S_MIN = 3, 2.0


class WriteBack:
    """The write-back of one node.

    Args:
        delay_s: approximate time from a write to its write-back.
        clock: seconds.
    """

    def __init__(
        self,
        node: Node,
        directory: Directory,
        acknowledgements: Acknowledgements[Waiter],
        store: BackingStore,
        delay_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._node = node
        self._directory = directory
        self._acknowledgements = acknowledgements
        self._store = store
        self._delay_s = delay_s
        self._clock = clock
        #: keys this node has to write back (a dict used as an ordered set)
        self.due: dict[str, None] = {}
        #: keys this node has to write back when the pause ends, because their part of the store was away
        self.away: dict[str, None] = {}
        #: versions this node has written back
        self.count = 0
        #: why the backing store could not be used last time; "": it worked
        self.trouble = ""
        #: the store has not been used yet, or not since it failed
        self._check_due = True
        self._unflushed = False
        self._wake = asyncio.Event()
        self._soon = asyncio.Event()
        self._tasks = Tasks()
        #: keys that the store refuses: how long each waits before the next attempt, and the timer for it
        self._refused: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        #: while `away` waits, and checks with it
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = RETRY_S_MIN
        self._suspects: dict[str, int] = {}
        self._next_orphan_check = 0.0

    def start(self) -> None:
        self._tasks.keep("cache_write_back", self._run)

    async def stop(self, timeout_s: float) -> None:
        """Write back what is due, if the backing store takes it in time."""
        self._tasks.cancel()
        self._end_pause()
        try:
            async with asyncio.timeout(timeout_s):
                await self._write_due()
            if self.away:
                raise Refused("memory_unavailable", self.trouble)
        except (TimeoutError, Refused) as error:
            log.warning("cache.not_written_back", keys=len(self.due) + len(self.away), why=str(error))
        self._end_pause()

    # ------------------------------------------- what the directory has applied

    def written(self, event: Written) -> None:
        """A key has a new version."""
        if not self._store.is_shared:
            self._store.keep(Stored(event.key, event.version, event.value))
            self._unflushed = True
            self._wake.set()
        if event.node != self._node.node_id:
            self.due.pop(event.key, None)
            self.away.pop(event.key, None)
        elif event.key not in self.away:
            self.due[event.key] = None
            self._wake.set()

    def cleaned(self, event: Cleaned) -> None:
        """The backing store has these versions, and the directory records it."""
        for key, _ in event.items:
            self._done(key)

    def restored(self) -> None:
        """A snapshot replaced the directory."""
        directory, node_id = self._directory, self._node.node_id
        self.due = {key: None for key in directory.dirty if directory.records[key].owner == node_id}
        self.away.clear()
        if not self._store.is_shared:
            for key in directory.dirty:
                record = directory.records[key]
                self._store.keep(Stored(key, record.version, record.value))
            self._unflushed = True
        self._wake.set()

    @property
    def report(self) -> str:
        """What is wrong with the backing store; "": nothing."""
        if self.trouble or not self._refused:
            return self.trouble
        return f"{len(self._refused)} keys cannot be written back, among them `{next(iter(self._refused))}`: see the log"

    def write_soon(self) -> None:
        """Skip the delay: pinned lines are to be evicted."""
        self._soon.set()

    def store_failed(self, refusal: Refused) -> None:
        """The backing store could not be used: log it, and check until it works again."""
        if refusal.code == "memory_unavailable" and not isinstance(refusal, KeyRefused):
            if not self.trouble:
                log.warning("cache.backing_store_unavailable", store=self._store.name, why=refusal.detail)
            self.trouble = refusal.detail
            self._check_due = True
            self._wake.set()

    async def write_now(self, key: str) -> None:
        """Write back one key's value, if it is dirty.

        Raises:
            Refused: `memory_unavailable`, or what `submit` raises.
        """
        item = self._item(key)
        if item is not None:
            refused = await self._write_batch([item])
            if refused:
                raise refused[key]

    def tick(self) -> None:
        """As leader, take over values that their owners do not write back."""
        if not self._directory.dirty or not self._node.is_leader:
            return
        now = self._clock()
        if now < self._next_orphan_check:
            return
        self._next_orphan_check = now + max(ORPHAN_S_MIN, ORPHAN_DELAYS * self._delay_s)
        records = self._directory.records
        paused = self._refused.keys() | self.away.keys()
        versions = {key: records[key].version for key in self._directory.dirty if key not in paused}
        orphans = [key for key, version in versions.items() if self._suspects.get(key) == version]
        self._suspects = versions
        if orphans:
            self.due.update(dict.fromkeys(orphans))
            self._wake.set()

    # --------------------------------------------------------------- the writing

    async def _run(self) -> None:
        self._wake.set()
        retry_s = RETRY_S_MIN
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                async with asyncio.timeout(self._delay_s):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            try:
                await self._write_due()
                await self._check_store()
                retry_s = RETRY_S_MIN
            except Refused as refusal:
                self.store_failed(refusal)
                await asyncio.sleep(retry_s)
                retry_s = min(RETRY_S_MAX, 2 * retry_s)
            if self.due or self._unflushed or (self._check_due and self._pause is None):
                self._wake.set()

    async def _write_due(self) -> None:
        """Write back everything that is due now, once. Keys whose part of the store is away are in `away` then.

        Raises:
            Refused: see `_write_batch`.
        """
        if self._unflushed and not self.due:
            await self._flush()
        keys = list(self.due)
        while keys:
            batch: list[Stored] = []
            size = 0
            while keys and len(batch) < BATCH_KEYS and size < BATCH_BYTES:
                item = self._item(keys.pop())
                if item is not None:
                    batch.append(item)
                    size += len(item.value or b"")
            if batch:
                await self._write_batch(batch)

    def _item(self, key: str) -> Stored | None:
        record = self._directory.records.get(key)
        if record is None or not record.dirty:
            self._done(key)
            return None
        if record.absent and not self._acknowledgements.covers(record.pending_invalidations):
            return None
        return Stored(key, record.version, record.value)

    async def _write_batch(self, batch: list[Stored]) -> dict[str, Refused]:
        """Write these versions back. Returns the keys that the store did not take.

        Raises:
            Refused: `not_ready` while the directory may be half-changed: a shared store must not get its values.
                `memory_unavailable` if the store of this node alone cannot be used. What `submit` raises.
        """
        if self._node.unusable_reason:
            raise Refused("not_ready", self._node.unusable_reason)
        refused: dict[str, Refused] = {}
        if self._store.is_shared:
            try:
                refused = await self._store.write(batch)
            except Refused as refusal:  # the part that has all of them is away, or the whole store is
                refused = {item.key: refusal for item in batch}
        else:
            await self._flush()  # the values were given to `keep` when they were applied
        for key, why in refused.items():
            if isinstance(why, KeyRefused):
                self._retry_later(key, why)
            else:
                self._wait_for_store(key, why)
        items = [(item.key, item.version) for item in batch if item.key not in refused]
        if items:
            await self._node.submit(WrittenBack(items=items))
            self.count += len(items)
        return refused

    def _retry_later(self, key: str, refusal: KeyRefused) -> None:
        self.due.pop(key, None)
        if key in self._refused:
            pause_s, timer = self._refused[key]
            timer.cancel()
            pause_s = min(2 * pause_s, KEY_RETRY_S_MAX)
        else:
            pause_s = KEY_RETRY_S_MIN
            log.warning("cache.key_not_written_back", key=key, why=refusal.detail)
        self._refused[key] = pause_s, asyncio.get_running_loop().call_later(pause_s, self._retry, key)

    def _wait_for_store(self, key: str, refusal: Refused) -> None:
        self.due.pop(key, None)
        self.away[key] = None
        self.store_failed(refusal)
        self._begin_pause()

    def _begin_pause(self) -> None:
        if self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(self._pause_s, self._end_pause)
            self._pause_s = min(2 * self._pause_s, RETRY_S_MAX)

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self.due.update(self.away)
        self.away.clear()
        self._wake.set()

    def _retry(self, key: str) -> None:
        self.due[key] = None
        self._wake.set()

    def _done(self, key: str) -> None:
        """The key needs no write-back."""
        self.due.pop(key, None)
        self.away.pop(key, None)
        if key in self._refused:
            self._refused.pop(key)[1].cancel()

    async def _flush(self) -> None:
        self._unflushed = False
        try:
            await self._store.flush()
        except Refused:
            self._unflushed = True
            raise

    async def _check_store(self) -> None:
        """Check the store if it failed, unless it failed just now."""
        if not self._check_due or self._pause is not None:
            return
        try:
            await self._store.check()
        except Refused as refusal:
            self.store_failed(refusal)
            self._begin_pause()
            return
        self._pause_s = RETRY_S_MIN
        if self.trouble:
            log.info("cache.backing_store_available", store=self._store.name)
        self.trouble, self._check_due = "", False
