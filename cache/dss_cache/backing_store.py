"""What stands behind the cache (MESI calls it main memory): it keeps the values at rest, each with its version.

A memory never decides what is current; the directory does. It promises two things: a version that `write` has returned for is
there until a newer one takes its place, and an older version never takes the place of a newer one. A memory that breaks the
first promise (a Redis that evicts, or fails over) makes the cache forget, never answer an old value: the reader compares
versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dss_api.errors import Refused


class Stored(NamedTuple):
    """A version of a key's value."""

    key: str
    version: int
    #: JSON; None: deleted
    value: bytes | None


class Memory(Protocol):
    """Behind one node's cache."""

    name: str
    #: one for all nodes: whoever writes back does it for all
    is_shared: bool

    async def check(self) -> None:
        """Do nothing, if it can be reached.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def read(self, key: str) -> Stored | None:
        """What is there for the key.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def write(self, items: Sequence[Stored]) -> None:
        """Keep these versions, each unless there is a newer one.

        Raises:
            Refused: `memory_unavailable`; some of them may have been written.
        """

    def keep(self, item: Stored) -> None:
        """A version was written in the cluster. A memory of this node alone must have it sooner or later; a shared one ignores it."""

    async def flush(self) -> None:
        """Make everything kept so far durable.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def dump(self) -> list[bytes]:
        """All that a lagging node must be given, in pieces; empty for a shared memory.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def load(self, data: memoryview) -> None:
        """Take in what another node dumped, its pieces joined, unless it is older than what is here.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def close(self) -> None:
        """Let go of files and connections."""


class BatchedReads:
    """Turns the reads of one turn of the loop into one call of `_read_batch`."""

    def __init__(self) -> None:
        self._wanted: dict[str, asyncio.Future[Stored | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, key: str) -> Stored | None:
        future = self._wanted.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            if not self._wanted:
                loop.call_soon(self._begin)
            future = self._wanted[key] = loop.create_future()
        return await asyncio.shield(future)

    async def _read_batch(self, keys: list[str]) -> dict[str, Stored]:
        raise NotImplementedError

    def _begin(self) -> None:
        wanted, self._wanted = self._wanted, {}
        task = asyncio.get_running_loop().create_task(self._answer(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, wanted: dict[str, asyncio.Future[Stored | None]]) -> None:
        try:
            found = await self._read_batch(list(wanted))
        except Refused as refusal:
            for future in wanted.values():
                if not future.done():
                    future.set_exception(Refused(refusal.code, refusal.detail))
                    future.exception()  # whoever waited may have gone
            return
        for key, future in wanted.items():
            if not future.done():
                future.set_result(found.get(key))
