"""Who listens to the lock table on this node, and who is told of what.

The table tells of every change with the index of its entry (`state.LockChanged`). A watch first tells the state at an index, and then
every later change: nothing in between is missed, and nothing is told twice. Reading the state of a large table takes more than
one turn of the loop; keys that change in the meantime are read again at the end, in the turn in which the state is told.

When a leader's snapshot has replaced the entries, there are no events of what they did. Watches then tell the state anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from dss_api.errors import Refused
from dss_locks.core import inspection
from dss_locks.core.commands import Watch
from dss_locks.core.state import LockChanged, LockEventKind, SessionEnded
from dss_locks.core.table import LockTable

if TYPE_CHECKING:
    from dss_api.operation import Feed
    from dss_raft.node import Node

SERVICE = "lock-watchers"
#: Watches on one node.
WATCHES_MAX = 10_000
#: Keys, holders and waiters that a watch may begin with, counted together: its client gets them all at once.
STATE_ROWS_MAX = 25_000
#: The state is sent in parts of about so many of them.
PART_ROWS = 500
#: Keys that are looked at in one turn of the loop, for a prefix or a client.
SCAN_KEYS = 20_000

StateKind = Literal["state", "resync"]


class LockEvent(msgspec.Struct, omit_defaults=True):
    """What a watch tells. A change has the fields of `state.LockChanged`; "state" and "resync" have `locks` and `more`."""

    #: "state": what is so at the beginning; "resync": forget everything, this is what is so now
    kind: LockEventKind | StateKind
    #: the Raft index at which it happened, or up to which the state goes
    index: int
    key: str = ""
    client: str = ""
    mode: str = ""
    fencing_token: int = 0
    #: names a place in a queue: the same in `queued`, `dequeued` and a state's waiters
    place: int = 0
    #: granted: "", "upgraded", "downgraded", "cancelled"; dequeued: "granted" or why not; refused: "deadlock";
    #: released: "", "session_closed", "cancelled"; lost: "expired", "session_lost", "forced"
    reason: str = ""
    #: the reason given for a forced release
    detail: str = ""
    held_ms: int = 0
    #: how long a lost key is kept back
    delay_ms: int = 0
    #: as `GET /lock/status` shows them
    locks: list[dict[str, Any]] | None = None
    #: the state goes on in the next event
    more: bool = False


class LockWatchers:
    """All watches of one node, and the sessions that connections keep. One for each node, made before it starts."""

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
        """A new watch, for as long as the context lasts.

        Raises:
            Refused: `over_limit`.
        """
        if len(self._watches) >= WATCHES_MAX:
            raise Refused("over_limit", f"this node has {WATCHES_MAX} watches", limit="watches_max", maximum=WATCHES_MAX)
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
        """A future that gets the reason when this session ends: "expired" or "closed"."""
        ended = self._sessions[session] = asyncio.get_running_loop().create_future()
        try:
            self._look_after(session)
            yield ended
        finally:
            del self._sessions[session]

    def _indexes(self, request: Watch) -> Iterable[tuple[dict[str, dict[LockWatch, None]], str]]:
        if request.prefix is not None:
            yield self._by_prefix, request.prefix
        elif request.client is not None:
            yield self._by_client, request.client
        else:
            for key in named_keys(request):
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
            watch.begin_anew()
        for session in self._sessions:
            self._look_after(session)

    def _look_after(self, session: str) -> None:
        ended = self._sessions[session]
        if session not in self.table.holdings.sessions.by_id and not ended.done():
            ended.set_result("expired")


class LockWatch:
    """One watch and where it tells."""

    def __init__(self, watchers: LockWatchers, request: Watch, feed: Feed) -> None:
        self._watchers = watchers
        self._table = watchers.table
        self._request = request
        self._feed = feed
        #: what changed while the state is being read; None once it has been told
        self._touched: dict[str, None] | None = {}
        self._anew = asyncio.Event()

    def changed(self, event: LockChanged) -> None:
        """Something happened to what is watched."""
        if self._touched is None:
            self._feed.push(event)
        else:
            self._touched[event.key] = None

    def begin_anew(self) -> None:
        """Events are missing from here on: the state has to be told again."""
        self._touched = {}
        self._anew.set()

    async def until_anew(self) -> None:
        """Wait for that."""
        await self._anew.wait()

    async def tell_state(self, kind: StateKind, now_ms: Callable[[], int]) -> None:
        """Read the state and push it, all of it in one turn of the loop.

        Raises:
            Refused: `over_limit` when it is too much.
        """
        while True:
            self._anew.clear()
            self._touched = {}
            found = await self._keys()
            if not self._anew.is_set():
                break
        found.update(self._touched)
        index = self._watchers.node.applied_index
        for part, more in self._parts(found, now_ms()):
            self._feed.push(LockEvent(kind, index, locks=part, more=more))
        self._touched = None

    async def _keys(self) -> dict[str, None]:
        """The keys that may have something to tell."""
        table, prefix, client = self._table, self._request.prefix, self._request.client
        found: dict[str, None] = {}
        if client is not None:
            for place in table.waits.of_client.get(client, {}).values():
                found.update(dict.fromkeys(place.keys))
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
                detail = f"there are more than {STATE_ROWS_MAX} locks, holders and waiters to begin with: watch less at once"
                raise Refused("over_limit", detail, limit="state_rows_max", maximum=STATE_ROWS_MAX)
            if in_part and in_part + size > PART_ROWS:
                part, in_part = [], 0
                parts.append(part)
            part.append(lock)
            in_part += size
        return ((part, number < len(parts)) for number, part in enumerate(parts, 1))

    def _row(self, key: str, now_ms: int) -> dict[str, Any] | None:
        """The key as status shows it; None when there is nothing to tell of it."""
        row = inspection.status(self._table, key, now_ms, rows_max=STATE_ROWS_MAX)
        client = self._request.client
        if client is not None:
            row["holders"] = [hold for hold in row["holders"] if hold["client"] == client]
            row["waiters"] = [waiter for waiter in row["waiters"] if waiter["client"] == client]
            return row if row["holders"] or row["waiters"] else None
        is_named = self._request.prefix is None
        return row if is_named or row["holders"] or row["waiters"] or row["delay"] else None


def named_keys(request: Watch) -> list[str]:
    """The keys that a watch names itself."""
    return [request.key] if request.key is not None else request.keys or []
