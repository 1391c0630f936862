"""The near cache of a client at work: its subscription `cache.near`, leases, confirmations and fetches. See near.py for the rules.

Everything travels on the client's connection, in order, beside its other calls. The near cache only adds to them: a read that it cannot
answer (no subscription yet, a node that refuses it or does not know it, a fetch that fails or takes long) is an ordinary call, with the
repeats, time limits and errors of such a call.

A fetch is shared by the reads that began before it was sent. A read that comes later waits for its end, because the node may have read the
value before a put that was answered before this read began. Then it looks again.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from enum import Enum
from typing import Any

from dss_client.clock import now
from dss_client.config import pause_s
from dss_client.connection import Connection, Handle
from dss_client.core import Core, Repeat
from dss_client.entry import Entry, found_value
from dss_client.errors import ClientClosed, DssError, Refused
from dss_client.near import Copy, Holding, NearCache, NearStatistics
from dss_client.websocket import WebSocketConnection

log = logging.getLogger("dss_client")

OPERATION = "cache.near"
#: A subscription has no end. Its call is repeated at another node when the connection ends.
SUBSCRIBED_S = 1e7
#: how long reads wait for a subscription to begin
BEGIN_S = 1.0
#: how long a read waits for fetches before it makes an ordinary call
FETCH_S = 2.0
KEYS_PER_FETCH = 100
#: in progress; a node takes 64
FETCHES_MAX = 32
#: until the next attempt, after the cluster has refused a subscription
REFUSED_PAUSE_S = 30.0
#: The end of a subscription that lasted at least this long does not count as a failure.
LASTED_S = 10.0
#: part of a lease after which the next one is asked for
RENEW_AFTER = 0.5
RENEW_S_MIN = 0.02
#: until a lease is asked for again, if there is no answer
ASK_AGAIN_S = 0.3
#: After so many leases in a row without a read, no other is asked for.
IDLE_LEASES = 2
#: of a key, in UTF-8
KEY_BYTES_MAX = 512

_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f]")


class Near:
    """The near cache of a client: `client.near_cache`."""

    def __init__(self, settings: NearCache) -> None:
        self.settings = settings
        self._reset()

    def _reset(self) -> None:
        #: replaced as a whole, and never used again; see near.py
        self.holding = Holding(self.settings)
        self.misses = self.lease_misses = self.not_installed = self.leases = self.subscriptions = 0
        self._before = NearStatistics()
        self._link: NearLink | None = None

    def read(self, key: str) -> Copy | None:
        """The value, if this process has it and may use it now. In any thread."""
        return self.holding.read(key)

    async def entries(self, core: Core, keys: Iterable[str]) -> dict[str, Entry]:
        """What this process or the node has for each key. A key that is missing here must be read by an ordinary call."""
        found: dict[str, Entry] = {}
        wanted = []
        for key in dict.fromkeys(keys):
            copy = self.read(key)
            if copy is None:
                wanted.append(key)
            else:
                found[key] = _entry(key, copy)
        if wanted:
            self.misses += len(wanted)
            holding = self.holding
            self.lease_misses += sum(key in holding for key in wanted)
            if self._link is None or self._link.core is not core:
                self._link = NearLink(self, core)
            found |= await self._link.fetch([key for key in wanted if _may_be_fetched(key)])
        return found

    def statistics(self) -> NearStatistics:
        """Counters since the client was made, or since its process was forked, and the present size. In any thread."""
        holding, before = self.holding, self._before
        return NearStatistics(
            hits=before.hits + holding.hits,
            misses=self.misses,
            lease_misses=self.lease_misses,
            not_installed=self.not_installed,
            drops=before.drops + holding.drops,
            evictions=before.evictions + holding.evictions,
            flushes=before.flushes + holding.flushes,
            leases=self.leases,
            subscriptions=self.subscriptions,
            items=len(holding),
            bytes=holding.bytes,
            is_leased=now() < holding.valid_until,
        )

    def replace(self, link: NearLink | None) -> Holding:
        """Go on with an empty holding. It is that of the near cache only for the link in use."""
        empty = Holding(self.settings)
        if link is self._link:
            old, self.holding = self.holding, empty
            before = self._before
            self._before = NearStatistics(
                hits=before.hits + old.hits,
                drops=before.drops + old.drops,
                evictions=before.evictions + old.evictions,
                flushes=before.flushes + old.flushes,
            )
        return empty

    def end(self) -> None:
        """The client closes. Nothing is held from here on, so the node need not wait for this client."""
        self._link = None
        self.replace(None)

    def forked(self) -> Any:
        """This is the child of a fork, and begins empty. Returns what belongs to the parent."""
        link = self._link
        self._reset()
        return link


class Fetch:
    """Keys that are fetched with one call."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        #: those that a write or the lack of an answer has overtaken: their values are used once
        self.overtaken: set[str] = set()
        self.found: dict[str, Entry | Copy] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: position among the fetches that were sent, from 1
        self.number = 0

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class NearLink:
    """The subscription of a near cache, with one `Core`. Only in the event loop."""

    def __init__(self, near: Near, core: Core) -> None:
        self.core = core
        self._near = near
        self._loop = core.loop
        self._holding = Holding(near.settings)
        #: None: there is no subscription now
        self._connection: WebSocketConnection | None = None
        self._id = 0
        self._token = 0
        self._begun = asyncio.Event()
        #: reads wait for a subscription until then
        self._begin_by = now() + min(BEGIN_S, core.config.timeout_s)
        self._since = 0.0
        self._has_heard = False
        self._planned: list[Fetch] = []
        self._fetches: dict[int, Fetch] = {}
        #: the last fetch of each key that is in progress
        self._flying: dict[str, Fetch] = {}
        self._sent = 0
        self._is_sending = False
        self._is_confirming = False
        self._timer: asyncio.TimerHandle | None = None
        self._reads = 0
        self._idle_leases = 0
        core.spawn(self._follow())

    # ------------------------------------------------------- subscription

    async def _follow(self) -> None:
        fields = {} if self._near.settings.lease_ms is None else {"lease_ms": self._near.settings.lease_ms}
        failures = 0
        has_warned = False
        while True:
            self._has_heard = False
            self._since = now()
            pause = None
            try:
                await self.core.call(
                    OPERATION, fields, Repeat.READ, wait_s=SUBSCRIBED_S, handle=_Subscribed(self), is_traced=False
                )
            except ClientClosed:
                return
            except Refused as error:
                log.log(logging.DEBUG if has_warned or self._has_heard else logging.WARNING, "the near cache ended: %s", error)
                if not self._has_heard:
                    has_warned, pause = True, REFUSED_PAUSE_S
            except DssError as error:
                log.debug("the near cache has no node: %s", error)
            failures = 1 if now() - self._since > LASTED_S else failures + 1
            if pause is None:
                self._begin_by = now() + min(BEGIN_S, self.core.config.timeout_s)
                pause = pause_s(failures)
            else:
                self._begin_by = 0.0
                self._begun.set()
                self._begun.clear()
            await asyncio.sleep(pause)

    def sent(self, connection: Connection | None, id: int) -> None:
        """A subscription begins, or has ended."""
        self._holding = self._near.replace(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        fetches = [*self._fetches.values(), *self._planned]
        self._fetches.clear()
        self._flying.clear()
        self._planned.clear()
        for fetch in fetches:
            fetch.end()
        if isinstance(connection, WebSocketConnection):
            self._connection, self._id = connection, id
            self._near.subscriptions += 1
            self._begun.set()
            self._ask()
        else:
            self._connection = None
            self._begin_by = now() + min(BEGIN_S, self.core.config.timeout_s)
            self._begun.clear()

    async def _has_begun(self) -> bool:
        if self._connection is None:
            left_s = self._begin_by - now()
            if left_s > 0:
                try:
                    async with asyncio.timeout(left_s):
                        await self._begun.wait()
                except TimeoutError:
                    pass
        return self._connection is not None

    def on_event(self, event: dict[str, Any]) -> None:
        """What the node sends on the subscription, in its order."""
        self._has_heard = True
        if "opened" in event:
            self._holding.items_max = min(self._near.settings.max_items, event["opened"]["keys_max"])
        if "seq" in event:
            self._invalidate(event)
        token = event.get("token")
        if "fetched" in event:
            self._fetched(event["fetched"], token)
        elif "lease_ms" in event:
            if self._holding.granted(event["token"], event["lease_ms"]):
                self._near.leases += 1
                self._set_timer(max(RENEW_S_MIN, event["lease_ms"] / 1000 * RENEW_AFTER))
        elif token is not None:
            self._holding.refused(token)
            fetch = self._fetches.get(token)
            if fetch is not None:
                self._end_fetch(token, fetch)

    # ----------------------------------------------------- invalidations

    def _invalidate(self, event: dict[str, Any]) -> None:
        if event.get("flush"):
            for key, fetch in self._flying.items():
                fetch.overtaken.add(key)
            self._holding.flush(event["seq"])
        else:
            for key in event["drop"]:
                if key in self._flying:
                    self._flying[key].overtaken.add(key)
            self._holding.drop(event["drop"], event["seq"])
        if not self._is_confirming:
            # One confirmation for all events that have arrived.
            self._is_confirming = True
            self._loop.call_soon(self._confirm)

    def _confirm(self) -> None:
        self._is_confirming = False
        if self._connection is not None:
            self._connection.post("cache.near.confirm", {"call": self._id, "seq": self._holding.seq})

    # ------------------------------------------------------------- leases

    def _ask(self) -> None:
        if self._connection is not None:
            self._token += 1
            self._holding.ask(self._token)
            self._connection.post("cache.near.renew", {"call": self._id, "token": self._token, "seq": self._holding.seq})
            self._set_timer(ASK_AGAIN_S)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._renew)

    def _renew(self) -> None:
        self._timer = None
        reads = self._holding.hits + self._near.misses
        self._idle_leases = self._idle_leases + 1 if reads == self._reads else 0
        self._reads = reads
        if self._idle_leases < IDLE_LEASES:
            self._ask()

    # ------------------------------------------------------------ fetches

    async def fetch(self, keys: list[str]) -> dict[str, Entry]:
        """Values from the node. Those that it could not give are missing."""
        if not keys or not await self._has_begun():
            return {}
        if self._timer is None:
            # It was idle.
            self._ask()
        begun = self._sent
        found: dict[str, Entry] = {}
        wanted = keys
        awaited: list[tuple[str, Fetch]] = []
        try:
            async with asyncio.timeout(min(FETCH_S, self.core.config.timeout_s)):
                while wanted and self._connection is not None:
                    awaited = [(key, self._flying.get(key) or self._plan(key)) for key in wanted]
                    await asyncio.wait({fetch.done for _, fetch in awaited})
                    wanted = []
                    for key, fetch in awaited:
                        entry = self._use(key, fetch, begun)
                        if entry is not None:
                            found[key] = entry
                        elif 0 < fetch.number <= begun:
                            wanted.append(key)
        except TimeoutError:
            for key, fetch in awaited:
                fetch.overtaken.add(key)
                if self._flying.get(key) is fetch:
                    del self._flying[key]
        return found

    def _use(self, key: str, fetch: Fetch, begun: int) -> Entry | None:
        """The result for a read that began when `begun` fetches had been sent. None: it cannot be used, or there is none."""
        if fetch.number <= begun:
            copy = self._near.read(key)
            if copy is None:
                return None
            # It waited for the fetch of another read. For the node, it was none.
            self._near.misses -= 1
            return _entry(key, copy)
        result = fetch.found.get(key)
        if result is None or isinstance(result, Entry):
            return result
        return _entry(key, result, is_hit=False)

    def _plan(self, key: str) -> Fetch:
        """The next fetch, with this key."""
        self._send_fetches_soon()
        if not self._planned or len(self._planned[-1].keys) >= KEYS_PER_FETCH:
            self._planned.append(Fetch())
        fetch = self._planned[-1]
        fetch.keys.add(key)
        return fetch

    def _send_fetches_soon(self) -> None:
        if not self._is_sending:
            self._is_sending = True
            self._loop.call_soon(self._send_fetches)

    def _send_fetches(self) -> None:
        self._is_sending = False
        room = max(0, FETCHES_MAX - len(self._fetches))
        planned, self._planned = self._planned[:room], self._planned[room:]
        busy = {key for fetch in (*planned, *self._fetches.values()) for key in fetch.keys}
        for fetch in planned:
            if self._connection is None:
                fetch.end()
                continue
            self._token += 1
            self._sent += 1
            fetch.number = self._sent
            self._fetches[self._token] = fetch
            self._flying |= dict.fromkeys(fetch.keys, fetch)
            fields: dict[str, Any] = {"call": self._id, "token": self._token, "keys": list(fetch.keys)}
            evicted = self._holding.report(busy)
            if evicted:
                fields["evicted"] = evicted
            self._connection.post("cache.near.fetch", fields)

    def _fetched(self, items: list[dict[str, Any]], token: Any) -> None:
        fetch = self._fetches.get(token)
        if fetch is None:
            return
        for item in items:
            key = item["key"]
            if key not in fetch.keys:
                continue
            if not item["found"]:
                fetch.found[key] = Entry(key, version=item["version"])
                continue
            copy = Copy(found_value(item), item["version"])
            if not self._install(key, copy, fetch, item["install"]):
                self._near.not_installed += 1
            fetch.found[key] = copy
        if len(fetch.found) >= len(fetch.keys):
            self._end_fetch(token, fetch)

    def _install(self, key: str, copy: Copy, fetch: Fetch, may_install: bool) -> bool:
        if may_install and key in fetch.overtaken:
            self._holding.refuse(key)
            return False
        return may_install and self._holding.install(key, copy)

    def _end_fetch(self, token: int, fetch: Fetch) -> None:
        del self._fetches[token]
        for key in fetch.keys:
            if self._flying.get(key) is fetch:
                del self._flying[key]
        fetch.end()
        if self._planned:
            self._send_fetches_soon()


def _may_be_fetched(key: object) -> bool:
    """Whether a node takes it as a key. The ordinary call says what is wrong with another one, and spoils no fetch of others."""
    if not isinstance(key, str) or not key or _CONTROL_CHARACTER.search(key) is not None:
        return False
    if type(key) is not str and not isinstance(key, Enum):
        return False
    try:
        return len(key.encode()) <= KEY_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _entry(key: str, copy: Copy, is_hit: bool = True) -> Entry:
    return Entry(key, copy.load(), True, copy.version, is_hit, "S")


class _Subscribed(Handle):
    """Tells the link where its subscription is."""

    def __init__(self, link: NearLink) -> None:
        super().__init__(link.on_event)
        self._link = link

    def sent(self, connection: Connection | None, id: int) -> None:
        super().sent(connection, id)
        self._link.sent(connection, id)
