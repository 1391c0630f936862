"""The backing store of the cache (in MESI, main memory): it keeps the clean values, each with its version.

A backing store never decides which version is current; the directory does. It makes two promises: a version stays after `write`
has returned until a newer one replaces it, and an older version never replaces a newer one. If a store breaks the first promise
(a Redis that evicts or fails over), the cache forgets the value. It never answers an old value, because the reader compares
versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from dss_api.errors import Refused
from dss_api.supervised import Tasks


class Stored(NamedTuple):
    """A version of a key's value."""

    key: str
    version: int
    #: JSON; None: deleted
    value: bytes | None


class KeyRefused(Refused):
    """`memory_unavailable` for one key: what the store has under its name is nothing that this cache wrote."""

    def __init__(self, detail: str) -> None:
        super().__init__("memory_unavailable", detail)


class BackingStore(Protocol):
    """The backing store of one node's cache."""

    name: str
    #: all nodes use the same one, so one node's write-back serves all
    is_shared: bool

    async def check(self) -> None:
        """Check that the store can be reached.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def read(self, key: str) -> Stored | None:
        """The version that the store has for the key.

        Raises:
            Refused: `memory_unavailable`; `KeyRefused` if what the store has for this key is the reason.
        """

    async def write(self, items: Sequence[Stored]) -> dict[str, Refused]:
        """Store these versions, each unless there is a newer one.

        Returns:
            The keys that could not be written, with the reasons: `KeyRefused`, or another refusal if the part of the store that
            has the key is away. Those may have been written nevertheless.

        Raises:
            Refused: `memory_unavailable`: the store is away for all of them; some may have been written.
        """

    def keep(self, item: Stored) -> None:
        """A version was written in the cluster. A store of this node alone buffers it; a shared one ignores it."""

    async def flush(self) -> None:
        """Make everything durable that was given to `keep`.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def dump(self) -> Iterable[bytes]:
        """Everything that a lagging node needs, in pieces; empty for a shared store.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def load(self, data: memoryview) -> None:
        """Add what another node dumped, with the pieces joined; newer versions that are here stay.

        Raises:
            Refused: `memory_unavailable`.
        """

    async def close(self) -> None:
        """Close files and connections."""


class BatchedReads:
    """Combines the reads of one turn of the event loop into one call of `_read_batch`."""

    def __init__(self) -> None:
        self._wanted: dict[str, asyncio.Future[Stored | None]] = {}
        self._tasks = Tasks()

    async def read(self, key: str) -> Stored | None:
        future = self._wanted.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            if not self._wanted:
                loop.call_soon(self._begin)
            future = self._wanted[key] = loop.create_future()
        return await asyncio.shield(future)

    def _parts(self, keys: list[str]) -> Iterable[list[str]]:
        """Keys that are read together. By default, all are."""
        return [keys]

    async def _read_batch(self, keys: list[str]) -> Mapping[str, Stored | Refused]:
        raise NotImplementedError

    def _begin(self) -> None:
        wanted, self._wanted = self._wanted, {}
        for keys in self._parts(list(wanted)):
            self._tasks.spawn("cache_reads", self._answer({key: wanted[key] for key in keys}))

    async def _answer(self, wanted: dict[str, asyncio.Future[Stored | None]]) -> None:
        try:
            found = await self._read_batch(list(wanted))
        except BaseException as error:
            refusal = error if isinstance(error, Refused) else Refused("memory_unavailable", "the read was interrupted")
            for future in wanted.values():
                _refuse(future, Refused(refusal.code, refusal.detail))
            if not isinstance(error, Refused):
                raise
            return
        for key, future in wanted.items():
            one = found.get(key)
            if isinstance(one, Refused):
                _refuse(future, one)
            elif not future.done():
                future.set_result(one)


def _refuse(future: asyncio.Future[Stored | None], refusal: Refused) -> None:
    if not future.done():
        future.set_exception(refusal)
        future.exception()  # retrieved: the reader may have gone
