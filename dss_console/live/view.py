"""The live view of one node: its viewers, and what they are shown.

One task serves all viewers of a node. It runs only while there is one: every `PUSH_S` it computes the view once, and sends each viewer the
parts that have changed. A viewer that does not take its frames gets the latest state later, not every state in between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from dss_api.caller import ANYONE, caller
from dss_api.errors import Refused
from dss_api.supervised import Tasks, report_failure
from dss_cache.core.directory import Directory
from dss_cache.service import CacheService
from dss_console.live import panels
from dss_console.live.answers import ClusterEvent, EventLine, Verdict
from dss_console.live.events import Elections, elections, event_lines
from dss_console.live.exchange import LOOK_S, RENEW_S, Exchange
from dss_console.live.judgement import RECENT_MS, Facts, Judgement, MemberFacts, judge
from dss_console.live.messages import Report
from dss_console.live.recorder import EVENTS_KEPT, EVENTS_PER_FRAME_MAX
from dss_console.live.reports import Reporter
from dss_console.live.requests import WatchCluster
from dss_console.live.texts import time_of_day
from dss_locks.core.state import LockChanged
from dss_locks.core.table import LockTable
from dss_queue.core.broker import Broker
from dss_queue.engine_numbers import numbers_of
from dss_raft.replication.clocks import wall_clock_ms

if TYPE_CHECKING:
    from dss_api.operation import Feed
    from dss_raft.node import Node

SERVICE = "live"
#: Viewers of one node: pages and subscriptions.
VIEWERS_MAX = 50
#: of them, those of one caller: a user, a token, or an address of an open node
VIEWERS_PER_CALLER_MAX = 10
#: Interval between two frames to a viewer.
PUSH_S = 0.5
#: A viewer with more frames than this that it has not taken gets no more until it has.
BEHIND_MAX = 2
#: Changes of a watched lock that are kept while it is watched.
LOCK_HISTORY_MAX = 50
#: Every part of the event, in the order of the page.
PARTS = ("verdict", "checks", "nodes", "locks", "queues", "cache", "events", "lock", "topic", "key")
#: of them, those for the head of every page
HEAD_PARTS = frozenset(("verdict", "nodes"))


class Viewer:
    """One subscription."""

    def __init__(self, request: WatchCluster, feed: Feed, of: str = "") -> None:
        self.request = request
        self.feed = feed
        #: whose it is
        self.of = of
        #: part -> what was sent last
        self.sent: dict[str, Any] = {}


class LiveView:
    """See the module. Create it before the node starts; all methods run in its event loop."""

    def __init__(self, node: Node, cache: CacheService, clock: Callable[[], float] = monotonic) -> None:
        self._node = node
        self._cache = cache
        self._clock = clock
        self._table = cast(LockTable, node.machine("locks"))
        self._broker = cast(Broker, node.machine("queue"))
        self._directory = cast(Directory, node.machine("cache"))
        self._reporter = Reporter(node, cache)
        self.recorder = self._reporter.recorder
        self._exchange = Exchange(node, self._reporter, clock)
        self._viewers: dict[Viewer, None] = {}
        self._tasks = Tasks()
        self._serving: asyncio.Task[None] | None = None
        self._leaderless_since_s: float | None = clock()
        #: the lines of the latest events, what they say about elections, and what both were made of
        self._lines: list[EventLine] = []
        self._known = Elections(0)
        self._read_of: tuple[Any, ...] = ()
        self._histories: dict[str, deque[tuple[int, LockChanged]]] = {}
        node.on_leader_change(self._leader_changed)
        node.on_event(LockChanged, self._lock_changed)
        node.services[SERVICE] = self

    # ------------------------------------------------------------------ viewers

    @contextmanager
    def viewer(self, request: WatchCluster, feed: Feed) -> Iterator[Viewer]:
        """Send `feed` the view for the duration of the context.

        Raises:
            Refused: `over_limit`.
        """
        if len(self._viewers) >= VIEWERS_MAX:
            raise Refused("over_limit", f"this node already has {VIEWERS_MAX} viewers", limit="viewers_max", maximum=VIEWERS_MAX)
        by = caller()
        of = feed.address if by is ANYONE else by.name
        if sum(viewer.of == of for viewer in self._viewers) >= VIEWERS_PER_CALLER_MAX:
            detail = f"this caller already has {VIEWERS_PER_CALLER_MAX} viewers at this node"
            raise Refused("over_limit", detail, limit="viewers_per_caller_max", maximum=VIEWERS_PER_CALLER_MAX)
        viewer = Viewer(request, feed, of)
        self._viewers[viewer] = None
        self._watch_locks()
        try:
            yield viewer
        finally:
            del self._viewers[viewer]
            self._watch_locks()
            if not self._viewers:
                self._exchange.release()

    def serve(self, viewer: Viewer) -> None:
        """Send everything now, and changes from now on."""
        self._push(viewer, _Moment(self))
        if self._serving is None:
            self._serving = self._tasks.spawn("live", self._serve())

    async def look(self, request: WatchCluster) -> ClusterEvent:
        """The whole view once, for a page that is rendered."""
        keys = self._keys([request])
        await asyncio.gather(
            self._exchange.look_once(keys, request.key or ""),
            numbers_of(self._node).look(_topics_of([request]), wait_s=LOOK_S),
        )
        return self._event(request, _Moment(self, keys, request.key or ""), None)

    def glance(self, request: WatchCluster) -> ClusterEvent:
        """The view once, from what this node knows already."""
        return self._event(request, _Moment(self), None)

    async def gather(self) -> None:
        """Ask the others for reports, and the engine for numbers, and wait a moment for them."""
        self._ask()
        await asyncio.gather(
            self._exchange.look_once(self._exchange.keys, self._exchange.traced),
            numbers_of(self._node).look(wait_s=LOOK_S),
        )

    async def _serve(self) -> None:
        renewed_s = float("-inf")
        try:
            while self._viewers:
                if self._clock() - renewed_s >= RENEW_S * 0.9:
                    renewed_s = self._clock()
                    self._ask()
                await asyncio.sleep(PUSH_S)
                moment = _Moment(self)
                for viewer in list(self._viewers):
                    if viewer in self._viewers and viewer.sent and viewer.feed.backlog <= BEHIND_MAX:
                        self._push(viewer, moment)
                        # Raft's timers must not wait for all viewers together.
                        await asyncio.sleep(0)
        finally:
            self._serving = None

    def _ask(self) -> None:
        exchange = self._exchange
        exchange.is_viewing = True
        exchange.keys = self._keys([viewer.request for viewer in self._viewers])
        exchange.traced = next((viewer.request.key for viewer in self._viewers if viewer.request.key), "")
        exchange.renew()
        numbers_of(self._node).want(_topics_of(viewer.request for viewer in self._viewers))

    def _keys(self, requests: list[WatchCluster]) -> list[str]:
        """The cache keys whose lines the others should report."""
        named = dict.fromkeys(request.key for request in requests if request.key)
        wants_list = any(request.rows == "cache" for request in requests)
        if wants_list or any(not request.head for request in requests):
            recent = panels.recent_keys(self._cache.lines, panels.ROWS_MANY if wants_list else panels.ROWS_FEW)
            named.update(dict.fromkeys(recent))
        return list(named)

    def _push(self, viewer: Viewer, moment: _Moment) -> None:
        try:
            event = self._event(viewer.request, moment, viewer.sent)
        except Exception as error:  # a fault of the view must not end it for everybody
            report_failure("live", error)
            return
        viewer.feed.push(event)

    def _event(self, request: WatchCluster, moment: _Moment, sent: dict[str, Any] | None) -> ClusterEvent:
        kind = "change" if sent else "state"
        event = ClusterEvent(kind=kind, node=self._node.node_id, at_ms=moment.at_ms, at=time_of_day(moment.at_ms))  # type: ignore[arg-type]
        for name in PARTS:
            if request.head and name not in HEAD_PARTS:
                continue
            part = moment.part(name, request)
            if part is None or (sent is not None and sent.get(name) == part):
                continue
            setattr(event, name, part)
            if sent is not None:
                sent[name] = part
        return event

    # ------------------------------------------------------------------- events

    def _leader_changed(self, leader: str, term: int) -> None:
        if leader:
            self._leaderless_since_s = None
        elif self._leaderless_since_s is None:
            self._leaderless_since_s = self._clock()

    def _watch_locks(self) -> None:
        wanted = {viewer.request.lock for viewer in self._viewers if viewer.request.lock}
        for key in wanted - self._histories.keys():
            self._histories[key] = deque(maxlen=LOCK_HISTORY_MAX)
        for key in self._histories.keys() - wanted:
            del self._histories[key]

    def _lock_changed(self, event: LockChanged, index: int) -> None:
        if self._histories and (history := self._histories.get(event.key)) is not None:
            history.append((self._node.event_at_ms, event))

    # -------------------------------------------------------------------- facts

    def facts(self, at_ms: int, own: Report) -> Facts:
        """What this node knows now."""
        node, recorder = self._node, self.recorder
        core, status = node.core, node.status()
        known = self._elections()
        led = core.leader_id, core.term
        leaderless_s = None if core.leader_id else self._leaderless_since_s
        # What happens in the log has the time of the log.
        recent = node.now_ms() - RECENT_MS
        on_engine = numbers_of(node).of
        elsewhere, unknown = panels.topics_on_engine(self._broker, on_engine)
        return Facts(
            node=node.node_id,
            at_ms=at_ms,
            members=[self._member(member, own) for member in status["members"]],
            term=core.term,
            leader=core.leader_id,
            leaderless_ms=0 if leaderless_s is None else int((self._clock() - leaderless_s) * 1000),
            leader_since_ms=known.elected.get(led, 0),
            leader_found_ms=known.found.get(led, 0),
            election_ms_max=node.config.raft_election_max_ms,
            unusable=node.unusable_reason,
            elections=known.count(at_ms - RECENT_MS),
            elections_known_since_ms=known.known_since_ms,
            new_dead_letters=recorder.count("dead_letter", recent),
            dead_letters=panels.dead_letters(self._broker, on_engine),
            topics_on_engine=elsewhere,
            topics_unknown=unknown,
            deadlocks=recorder.count("deadlock", recent),
            longest_wait=panels.longest_wait(self._table, node.now_ms()),
            differing=status["state_hash"]["differing"],
            is_clock_wrong=status["clock"]["is_wrong"],
        )

    def _member(self, member: dict[str, Any], own: Report) -> MemberFacts:
        name = member["id"]
        is_self = name == self._node.node_id
        return MemberFacts(
            id=name,
            url=member["url"],
            learner=member["learner"],
            outdated=member["outdated"],
            silent_ms=0 if is_self else self._exchange.silent_ms(name),
            report=own if is_self else self._exchange.remote(name).report,
            is_stale=not is_self and self._exchange.is_behind(name),
        )

    def _events(self) -> list[EventLine]:
        """The latest events of all members, latest first. What every node records by itself is shown once."""
        self._read_events()
        return self._lines

    def _elections(self) -> Elections:
        """What the members know about elections, as far as they have told this node."""
        self._read_events()
        return self._known

    def _read_events(self) -> None:
        node = self._node
        of = (self.recorder.last_seq, self._exchange.events_seen, tuple(node.peers))
        if of == self._read_of:
            return
        self._read_of = of
        # All that were kept: entries that are applied again may be the latest to be recorded, and the oldest.
        told = {node.node_id: self.recorder.since(0, EVENTS_KEPT)}
        for peer in node.peers:
            told[peer] = self._exchange.remote(peer).events[-EVENTS_PER_FRAME_MAX:]
        started_ms = self._reporter.started_ms
        self._known = elections(told, started_ms)
        self._lines = event_lines(told, self._known, node.node_id, started_ms)

    def close(self) -> None:
        self._tasks.cancel()
        self._exchange.close()


class _Moment:
    """The view at one moment, for all viewers: each part is computed when the first of them needs it.

    Args:
        keys, traced: of the cache, if they are not those that the node's viewers watch.
    """

    def __init__(self, view: LiveView, keys: list[str] | None = None, traced: str | None = None) -> None:
        exchange = view._exchange
        self._view = view
        self._keys = exchange.keys if keys is None else keys
        self._traced = exchange.traced if traced is None else traced
        self.at_ms = wall_clock_ms()
        self._parts: dict[tuple[str, str], Any] = {}
        self._own: Report | None = None
        self._judgement: Judgement | None = None
        #: the graph around all watched locks
        self._waits_for: dict[str, Any] | None = None

    def part(self, name: str, request: WatchCluster) -> Any:
        """This part of the event; None if it does not belong to what the request asks for."""
        variant = getattr(request, name, None) if name in ("lock", "topic", "key") else request.rows if name != "events" else ""
        if name in ("lock", "topic", "key") and not variant:
            return None
        found = self._parts.get((name, variant or ""))
        if found is None:
            found = self._parts[name, variant or ""] = getattr(self, f"_{name}")(variant or "")
        return found

    @property
    def own(self) -> Report:
        if self._own is None:
            self._own = self._view._reporter.report(self._view.recorder.last_seq, self._keys, self._traced)
        return self._own

    @property
    def judgement(self) -> Judgement:
        if self._judgement is None:
            self._judgement = judge(self._view.facts(self.at_ms, self.own))
        return self._judgement

    def _verdict(self, rows: str) -> Verdict:
        return self.judgement.verdict

    def _checks(self, rows: str) -> Any:
        return self.judgement.checks

    def _nodes(self, rows: str) -> Any:
        return self.judgement.nodes

    def _locks(self, rows: str) -> Any:
        view = self._view
        return panels.locks_panel(view._table, view._node.now_ms(), _rows_max(rows, "locks"))

    def _queues(self, rows: str) -> Any:
        view = self._view
        return panels.queues_panel(view._broker, numbers_of(view._node).of, view._node.now_ms(), _rows_max(rows, "queues"))

    def _cache(self, rows: str) -> Any:
        view = self._view
        keys = panels.recent_keys(view._cache.lines, _rows_max(rows, "cache"))
        return panels.cache_panel(self._reports(), keys, len(view._directory.records))

    def _events(self, rows: str) -> Any:
        return self._view._events()

    def _lock(self, key: str) -> Any:
        view = self._view
        if self._waits_for is None:
            self._waits_for = panels.waits_for(view._table)
        return panels.lock_detail(view._table, key, view._node.now_ms(), view._histories.get(key, ()), self._waits_for)

    def _topic(self, topic: str) -> Any:
        view = self._view
        return panels.topic_detail(view._broker, numbers_of(view._node).of, topic, view._node.now_ms())

    def _key(self, key: str) -> Any:
        return panels.key_detail(self._view._directory, key, self._reports())

    def _reports(self) -> dict[str, Report | None]:
        """The present report of every member; None if it does not answer."""
        view = self._view
        node, exchange = view._node, view._exchange
        return {
            member.id: self.own
            if member.id == node.node_id
            else None
            if exchange.is_behind(member.id)
            else exchange.remote(member.id).report
            for member in node.core.configuration.members
        }


def _topics_of(requests: Iterable[WatchCluster]) -> list[str]:
    """The topics whose pages these are."""
    return list(dict.fromkeys(request.topic for request in requests if request.topic))


def _rows_max(rows: str, name: str) -> int:
    return panels.ROWS_MANY if rows == name else panels.ROWS_FEW


def live_view_of(node: Node) -> LiveView:
    """The live view of this node."""
    return cast(LiveView, node.services[SERVICE])
