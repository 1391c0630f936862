"""The report of this node about itself, and the events that it records."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dss_cache.service import CacheService
from dss_console.live.messages import Change, LineState, Report, Told
from dss_console.live.recorder import REPLICATED, Recorder
from dss_locks.core.state import LockChanged
from dss_queue.core.records import DeadLettered
from dss_queue.engine_service import engine_of
from dss_raft import metrics, node_metrics
from dss_raft.core import Role
from dss_raft.replication.clocks import wall_clock_ms

if TYPE_CHECKING:
    from dss_raft.node import Node

#: Transitions of the traced key in a report, and those of all keys among which they are looked for.
CHANGES_MAX = 20
CHANGES_SCANNED_MAX = 2_000
#: How often the memory of the process is read.
RSS_EVERY_S = 5.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
#: of `LockChanged`: what is rare or unexpected
_RARE = {"refused": "deadlock", "lost": "lock_lost"}


class Reporter:
    """Records the events of this node, and reports on it. Create it before the node starts."""

    def __init__(self, node: Node, cache: CacheService) -> None:
        self._node = node
        self._cache = cache
        self.recorder = Recorder(time.time_ns)
        self._fsync = FsyncQuantile()
        #: the last index at which `_fsync` was asked
        self._fsync_index = -1
        self._fsync_ms = 0.0
        self._rss_bytes, self._rss_due_s = 0, float("-inf")
        self._led_by = ""
        self._members: tuple[str, ...] = ()
        self.started_ms = wall_clock_ms()
        self.recorder.add("started", node.node_id)
        node.on_leader_change(self._leader_changed)
        node.on_vote(self._vote_answered)
        node.on_peer_up(lambda peer: self.recorder.add("link_up", node.node_id, peer))
        node.on_peer_down(lambda peer: self.recorder.add("link_down", node.node_id, peer))
        node.on_configuration_change(self._members_changed)
        node.on_state_replaced(lambda: self.recorder.add("restored", node.node_id))
        node.on_event(LockChanged, self._lock_changed)
        node.on_event(DeadLettered, self._dead_lettered)

    def report(self, since: int, keys: Iterable[str], traced: str) -> Report:
        """The state of this node, its events after `since`, its lines of `keys`, and what happened to the line of `traced`."""
        node, cache, core = self._node, self._cache, self._node.core
        pending, waiting = node.pending_commands
        trace = self._cache.trace.of_key(traced, "", CHANGES_MAX, CHANGES_SCANNED_MAX) if traced else []
        return Report(
            node=node.node_id,
            incarnation=node.incarnation,
            at_ms=wall_clock_ms(),
            release=node_metrics.release(),
            term=core.term,
            role=int(core.role),
            leader=core.leader_id,
            commit=core.commit_index,
            applied=node.applied_index,
            last_index=core.last_index,
            snapshot_index=core.snapshot.index,
            not_ready=node.not_ready_reason,
            pending=pending,
            waiting=waiting,
            fsync_ms=self._fsync_now_ms(),
            rss_bytes=self._rss_now_bytes(),
            lines=len(cache.lines),
            hits=cache.hits,
            misses=cache.misses,
            store_trouble=cache.write_back.trouble,
            silent_ms={peer: ms for peer in node.peers if (ms := node.silent_ms(peer)) is not None},
            # Of the other kinds a viewer shows its own.
            events=[Told(*event) for event in self.recorder.since(since, without=REPLICATED)],
            line_states=self._lines(keys),
            changes=[Change(one["at_ms"], one["from"], one["to"], one["why"], one["version"]) for one in trace],
            engine_trouble=engine.detail if (engine := engine_of(node)).state not in ("ready", "connecting") else "",
            is_without_engine=engine.state == "none",
        )

    def _fsync_now_ms(self) -> float:
        # Without new entries it is what it was, and to read a histogram takes longer than the rest of a report.
        index = self._node.core.last_index
        if index != self._fsync_index:
            self._fsync_index, self._fsync_ms = index, self._fsync.take_ms()
        return self._fsync_ms

    def _rss_now_bytes(self) -> int:
        now_s = time.monotonic()
        if now_s >= self._rss_due_s:
            self._rss_due_s, self._rss_bytes = now_s + RSS_EVERY_S, rss_bytes()
        return self._rss_bytes

    def _lines(self, keys: Iterable[str]) -> dict[str, LineState]:
        states = {}
        for key in keys:
            line = self._cache.lines.get(key)
            if line is not None:
                row = self._cache.line_row(key, line)
                states[key] = LineState(row["state"], row["version"], row["readable"], row["bytes"], row["age_ms"])
        return states

    def _leader_changed(self, leader: str, term: int) -> None:
        if leader:
            self.recorder.add("leader", leader, term=term)
        elif self._node.core.role is Role.CANDIDATE:
            self.recorder.add("candidate", self._node.node_id, term=term)
        elif self._led_by:
            self.recorder.add("no_leader", self._node.node_id, term=term)
        self._led_by = leader

    def _vote_answered(self, candidate: str, term: int, granted: bool) -> None:
        self.recorder.add("vote" if granted else "vote_refused", self._node.node_id, candidate, term=term)

    def _members_changed(self) -> None:
        members = tuple(member.id for member in self._node.core.configuration.members)
        if members != self._members:
            self._members = members
            self.recorder.add("members", detail=", ".join(members))

    def _lock_changed(self, event: LockChanged, index: int) -> None:
        if (kind := _RARE.get(event.kind)) is not None:
            self.recorder.add(kind, event.client, event.key, event.reason, at_ms=self._node.event_at_ms)

    def _dead_lettered(self, event: DeadLettered, index: int) -> None:
        self.recorder.add("dead_letter", event.topic, event.group, event.reason, at_ms=self._node.event_at_ms)


class FsyncQuantile:
    """How long 99 % of the durable writes since the last call took at most, from the buckets of the histogram."""

    def __init__(self) -> None:
        self._before: dict[float, float] = {}
        self._last_ms = 0.0

    def take_ms(self) -> float:
        counts = {
            float(sample.labels["le"]): sample.value
            for family in metrics.FSYNC_SECONDS.collect()
            for sample in family.samples
            if sample.name.endswith("_bucket")
        }
        new = {limit: count - self._before.get(limit, 0.0) for limit, count in counts.items()}
        self._before = counts
        total = max(new.values(), default=0.0)
        if total:
            limits = [limit for limit in sorted(new) if new[limit] >= total * 0.99 and limit != float("inf")]
            self._last_ms = (limits[0] if limits else max(limit for limit in new if limit != float("inf"))) * 1000
        return self._last_ms


def rss_bytes() -> int:
    """The memory of this process; 0 where it cannot be read."""
    with suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    return 0
