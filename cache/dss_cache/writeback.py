"""Bringing dirty values to the memory: late, in batches, again until it succeeds.

The owner of a dirty value, its writer, brings it. What stays dirty for longer than an owner would need is brought by the
leader: the value is in the directory on every node, and a memory takes a version only once, so it does no harm if both do it.

A deletion is brought like a value. It is reported only when every node has dropped its line, because the directory forgets the
key then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from dss_api.errors import Refused
from dss_cache.backing_store import Memory, Stored
from dss_cache.core.commands import WrittenBack
from dss_cache.core.directory import Cleaned, Directory, Written
from dss_cache.core.leases import Acknowledgements
from dss_cache.peers import Waiter

if TYPE_CHECKING:
    from dss_raft.node import Node

log = structlog.get_logger("cache")

BATCH_KEYS = 500
BATCH_BYTES = 4 * 1024 * 1024
RETRY_S_MIN, RETRY_S_MAX = 0.2, 5.0
#: The leader takes over what has been dirty for so many delays, and at least so long.
ORPHAN_DELAYS, ORPHAN_S_MIN = 3, 2.0


class WriteBack:
    """The write-back of one node.

    Args:
        delay_s: from a write to its write-back, about.
        clock: seconds.
    """

    def __init__(
        self,
        node: Node,
        directory: Directory,
        acknowledgements: Acknowledgements[Waiter],
        memory: Memory,
        delay_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._node = node
        self._directory = directory
        self._acknowledgements = acknowledgements
        self._memory = memory
        self._delay_s = delay_s
        self._clock = clock
        #: keys this node has to bring (None stands for "no value": an ordered set)
        self.due: dict[str, None] = {}
        #: versions this node has brought
        self.count = 0
        #: why the memory could not be used last time; "" when it could
        self.trouble = ""
        #: it was not used yet, or not since it failed
        self._in_doubt = True
        self._kept = False
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._suspects: dict[str, int] = {}
        self._look_at = 0.0

    def start(self) -> None:
        self._work.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, timeout_s: float) -> None:
        """Bring what is due, if the memory takes it in time."""
        if self._task is not None:
            self._task.cancel()
        try:
            async with asyncio.timeout(timeout_s):
                await self._bring_all()
        except (TimeoutError, Refused) as error:
            log.warning("cache.not_written_back", keys=len(self.due), why=str(error))

    # ------------------------------------------- what the directory has applied

    def written(self, event: Written) -> None:
        """A key has a new version."""
        if not self._memory.is_shared:
            self._memory.keep(Stored(event.key, event.version, event.value))
            self._kept = True
            self._work.set()
        if event.node == self._node.node_id:
            self.due[event.key] = None
            self._work.set()
        elif event.key in self.due:
            del self.due[event.key]

    def cleaned(self, event: Cleaned) -> None:
        """Versions are in the memory, and every node knows it."""
        for key, _ in event.items:
            self.due.pop(key, None)

    def restored(self) -> None:
        """Another directory took the place of the old one."""
        directory, node_id = self._directory, self._node.node_id
        self.due = {key: None for key in directory.dirty if directory.records[key].owner == node_id}
        if not self._memory.is_shared:
            for key in directory.dirty:
                record = directory.records[key]
                self._memory.keep(Stored(key, record.version, record.value))
            self._kept = True
        self._work.set()

    def hurry(self) -> None:
        """Do not wait for the delay: lines want to be evicted."""
        self._hurry.set()

    def doubt(self, refusal: Refused) -> None:
        """Somebody could not use the memory: say so, and find out when it is back."""
        if refusal.code == "memory_unavailable":
            if not self.trouble:
                log.warning("cache.memory_unavailable", memory=self._memory.name, why=refusal.detail)
            self.trouble = refusal.detail
            self._in_doubt = True
            self._work.set()

    async def bring_now(self, key: str) -> None:
        """Bring one key's value, if it is dirty.

        Raises:
            Refused: `memory_unavailable`, or what `submit` raises.
        """
        item = self._item(key)
        if item is not None:
            await self._bring([item])

    def tick(self) -> None:
        """The leader looks after what nobody brings."""
        if not self._directory.dirty or not self._node.is_leader:
            return
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + max(ORPHAN_S_MIN, ORPHAN_DELAYS * self._delay_s)
        versions = {key: self._directory.records[key].version for key in self._directory.dirty}
        orphans = [key for key, version in versions.items() if self._suspects.get(key) == version]
        self._suspects = versions
        if orphans:
            self.due.update(dict.fromkeys(orphans))
            self._work.set()

    # --------------------------------------------------------------- the writing

    async def _run(self) -> None:
        retry_s = RETRY_S_MIN
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                async with asyncio.timeout(self._delay_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            try:
                await self._bring_all()
                if self._in_doubt:
                    await self._memory.check()
                    self._in_order()
                retry_s = RETRY_S_MIN
            except Refused as refusal:
                self.doubt(refusal)
                await asyncio.sleep(retry_s)
                retry_s = min(RETRY_S_MAX, 2 * retry_s)
            if self.due or self._kept or self._in_doubt:
                self._work.set()

    async def _bring_all(self) -> None:
        """One pass over what is due now."""
        if self._kept and not self.due:
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
                await self._bring(batch)

    def _item(self, key: str) -> Stored | None:
        record = self._directory.records.get(key)
        if record is None or not record.dirty:
            self.due.pop(key, None)
            return None
        if record.absent and not self._acknowledgements.covers(record.must):
            return None
        return Stored(key, record.version, record.value)

    async def _bring(self, batch: list[Stored]) -> None:
        if self._memory.is_shared:
            await self._memory.write(batch)
        else:
            await self._flush()  # the batch was kept when it was applied
        self._in_order()
        await self._node.submit(WrittenBack(items=[(item.key, item.version) for item in batch]))
        self.count += len(batch)

    async def _flush(self) -> None:
        self._kept = False
        try:
            await self._memory.flush()
        except Refused:
            self._kept = True
            raise

    def _in_order(self) -> None:
        """The memory was just used."""
        if self.trouble:
            log.info("cache.memory_is_back", memory=self._memory.name)
        self.trouble, self._in_doubt = "", False
