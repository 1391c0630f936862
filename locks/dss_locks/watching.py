"""The watches of one node: which changes of the lock table are sent to which client.

The table emits every change with its log index (`state.LockChanged`). A watch first sends the state at an index and then every
later change, each exactly once. Reading the state of a large table takes more than one turn of the event loop. Keys that change in
the meantime are read again at the end, in the same turn in which the state is sent.

If the node catches up from a leader's snapshot, there are no events for the entries that it replaces. Watches then send the state
again (`resync`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from dss_api.errors import Refused
from dss_locks.answers import LockEvent, StateKind
from dss_locks.core import inspection
from dss_locks.core.commands import Watch
from dss_locks.core.state import LockChanged, SessionEnded
from dss_locks.core.table import LockTable

if TYPE_CHECKING:
    from dss_api.operation import Feed
    from dss_raft.node import Node

SERVICE = "lock-watchers"
#: Watches on one node.
WATCHES_MAX = 10_000
#: Keys, holders and waiters in the initial state of a watch, counted together. They are sent in one turn of the event loop.
STATE_ROWS_MAX = 25_000
#: The approximate number of them in one part of the state.
PART_ROWS = 500
#: Keys that are scanned in one turn of the event loop, for a prefix or a client.
SCAN_KEYS = 20_000


class LockWatchers:
    """All watches of one node, and the sessions of its connections. Create it before the node starts."""

    def __init__(self, node: Node) -> None:
        self.table = cast(LockTable, node.machine("locks"))
        self.node = node
        self._watches: dict[LockWatch, None] = {}
        self._by_key: dict[str, dict[LockWatch, None]] = {}
        self._by_client: dict[str, dict[LockWatch, None]] = {}
        self._by_prefix: dict[str, dict[LockWatch, None]] = {}
        #: lengths of the prefixes
        self._lengths: list[int] = []
        self._sessions: dict[str, asyncio.Future[str]] = {}
        node.on_event(LockChanged, self._changed)
        node.on_event(SessionEnded, self._session_ended)
        node.on_state_replaced(self._state_replaced)
        node.services[SERVICE] = self

    @contextmanager
    def watch(self, request: Watch, feed: Feed) -> Iterator[LockWatch]:
        """Register a watch for the duration of the context.

        Raises:
            Refused: `over_limit`.
        """
        if len(self._watches) >= WATCHES_MAX:
            raise Refused("over_limit", f"this node already has {WATCHES_MAX} watches", limit="watches_max", maximum=WATCHES_MAX)
        watch = LockWatch(self, request, feed)
        indexes = list(self._indexes(request))
        self._watches[watch] = None
        for index, name in indexes:
            index.setdefault(name, {})[watch] = None
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix})
        try:
            yield watch
        finally:
            del self._watches[watch]
            for index, name in indexes:
                del index[name][watch]
                if not index[name]:
                    del index[name]
            self._lengths = sorted({len(prefix) for prefix in self._by_prefix})

    @contextmanager
    def session(self, session: str) -> Iterator[asyncio.Future[str]]:
        """A future that is set to the reason when this session ends: "expired" or "closed"."""
        ended = self._sessions[session] = asyncio.get_running_loop().create_future()
        try:
            self._check_session(session)
            yield ended
        finally:
            del self._sessions[session]

    def _indexes(self, request: Watch) -> Iterable[tuple[dict[str, dict[LockWatch, None]], str]]:
        if request.prefix is not None:
            yield self._by_prefix, request.prefix
        elif request.client is not None:
            yield self._by_client, request.client
        else:
            for key in dict.fromkeys(named_keys(request)):
                yield self._by_key, key

    def _changed(self, event: LockChanged, index: int) -> None:
        if not self._watches:
            return
        key = event.key
        for watch in self._by_key.get(key, ()):
            watch.changed(event)
        for watch in self._by_client.get(event.client, ()):
            watch.changed(event)
        for length in self._lengths:
            for watch in self._by_prefix.get(key[:length], ()):
                watch.changed(event)

    def _session_ended(self, event: SessionEnded, index: int) -> None:
        ended = self._sessions.get(event.session)
        if ended is not None and not ended.done():
            ended.set_result(event.reason)

    def _state_replaced(self) -> None:
        for watch in self._watches:
            watch.restart()
        for session in self._sessions:
            self._check_session(session)

    def _check_session(self, session: str) -> None:
        ended = self._sessions[session]
        if session not in self.table.holdings.sessions.by_id and not ended.done():
            ended.set_result("expired")


class LockWatch:
    """One watch and the feed that it sends to."""

    def __init__(self, watchers: LockWatchers, request: Watch, feed: Feed) -> None:
        self._watchers = watchers
        self._table = watchers.table
        self._request = request
        self._feed = feed
        #: the keys that have changed while the state is being read; None once it has been sent
        self._changed_keys: dict[str, None] | None = {}
        self._restart = asyncio.Event()

    def changed(self, event: LockChanged) -> None:
        """Handle a change of what is watched."""
        if self._changed_keys is None:
            self._feed.push(event)
        else:
            self._changed_keys[event.key] = None

    def restart(self) -> None:
        """Have the state sent again, because events are missing."""
        self._changed_keys = {}
        self._restart.set()

    async def wait_for_restart(self) -> None:
        """Wait until the state has to be sent again."""
        await self._restart.wait()

    async def send_state(self, kind: StateKind, now_ms: Callable[[], int]) -> None:
        """Read the state, then push all of it in one turn of the event loop.

        Raises:
            Refused: `over_limit` if it is too large.
        """
        while True:
            self._restart.clear()
            self._changed_keys = {}
            found = await self._keys()
            if not self._restart.is_set():
                break
        found.update(self._changed_keys)
        index = self._watchers.node.applied_index
        for part, more in self._parts(found, now_ms()):
            # Rows, not Structs: tests check their fields. Converting thousands of them would prolong this turn of the loop.
            self._feed.push(LockEvent(kind, index, locks=part, more=more))  # type: ignore[arg-type]
        self._changed_keys = None

    async def _keys(self) -> dict[str, None]:
        """The keys that may belong to the state."""
        table, prefix, client = self._table, self._request.prefix, self._request.client
        found: dict[str, None] = {}
        if client is not None:
            for waiter in table.waiters.of_client.get(client, ()):
                found.update(dict.fromkeys(waiter.keys))
            if client not in table.holdings.clients:
                return found
        elif prefix is None:
            return dict.fromkeys(named_keys(self._request))
        keys = [*table.locks, *table.holdings.delays.by_key]
        for first in range(0, len(keys), SCAN_KEYS):
            if first:
                await asyncio.sleep(0)
            some = keys[first : first + SCAN_KEYS]
            if client is not None:
                hold_of = table.holdings.hold_of
                found.update((key, None) for key in some if hold_of(key, client) is not None)
            else:
                found.update((key, None) for key in some if key.startswith(prefix or ""))
        return found

    def _parts(self, keys: Iterable[str], now_ms: int) -> Iterator[tuple[list[dict[str, Any]], bool]]:
        part: list[dict[str, Any]] = []
        parts, rows, in_part = [part], 0, 0
        for key in keys:
            lock = self._row(key, now_ms)
            if lock is None:
                continue
            size = 1 + len(lock["holders"]) + len(lock["waiters"])
            rows += size
            if rows > STATE_ROWS_MAX:
                detail = f"the initial state has more than {STATE_ROWS_MAX} locks, holders and waiters; watch fewer keys"
                raise Refused("over_limit", detail, limit="state_rows_max", maximum=STATE_ROWS_MAX)
            if in_part and in_part + size > PART_ROWS:
                part, in_part = [], 0
                parts.append(part)
            part.append(lock)
            in_part += size
        return ((part, number < len(parts)) for number, part in enumerate(parts, 1))

    def _row(self, key: str, now_ms: int) -> dict[str, Any] | None:
        """The key in the format of `status`; None if it is not part of the state."""
        row = inspection.status(self._table, key, now_ms, rows_max=STATE_ROWS_MAX)
        client = self._request.client
        if client is not None:
            row["holders"] = [hold for hold in row["holders"] if hold["client"] == client]
            row["waiters"] = [waiter for waiter in row["waiters"] if waiter["client"] == client]
            return row if row["holders"] or row["waiters"] else None
        is_named = self._request.prefix is None
        return row if is_named or row["holders"] or row["waiters"] or row["delay"] else None


def named_keys(request: Watch) -> list[str]:
    """The keys that a watch names explicitly."""
    return [request.key] if request.key is not None else request.keys or []
