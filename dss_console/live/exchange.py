"""Leases out and reports in: how a node with viewers sees the others, and how it answers theirs.

Theory of operation
-------------------
1. While this node has viewers, it sends each member a lease of `LEASE_MS` every `RENEW_S`. A lease that is not renewed ends by itself, so
   a viewer that dies costs nothing for longer than that.
2. A node with a lease sends a report immediately, and then every `REPORT_S`. Further leases of the same viewer do not make it send more.
3. `look_once` is for a page that is rendered once: it asks each linked member for one report, and waits for them a moment. It does not ask
   a member that it has asked for the same within `FRESH_S`, or whose report is younger: many pages do not make many reports.
4. The age of the last report, and of the last frame of any kind on the link, is how long a member has been silent. Raft's own view
   (`up`) would be seconds late for a machine that was cut off silently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import Counter

from dss_api.supervised import Tasks
from dss_console.live.messages import CHANNEL, KEYS_PER_LEASE_MAX, Lease, Report, decode, encode
from dss_console.live.recorder import Recorded
from dss_console.live.reports import Reporter

if TYPE_CHECKING:
    from dss_raft.node import Node

LEASE_MS = 3_000
RENEW_S = 1.0
#: Minimum interval between two reports to one viewer.
REPORT_S = 0.5
#: How long a page waits for the others' reports. Members that are down are not waited for.
LOOK_S = 0.4
#: Pages within this time share a report, if it has what each of them shows.
FRESH_S = 0.25
#: Nodes that may have a lease of this node at a time.
LEASES_MAX = 64
#: Events of other nodes that a viewer keeps.
REMOTE_EVENTS_KEPT = 256

FRAMES = Counter("dss_live_frames", "Frames of the live view that this node sent to other members", ["kind"])
_LEASES, _REPORTS = FRAMES.labels("lease"), FRAMES.labels("report")


class _Given:
    """A lease that another node has from this one."""

    def __init__(self) -> None:
        self.until_s = 0.0
        self.sent_s = 0.0
        self.since = 0
        self.keys: list[str] = []
        self.traced = ""


class Remote:
    """What this node knows about another member."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self.received_s = 0.0
        #: when a page asked last, and for which keys and traced key
        self.looked_s = float("-inf")
        self.looked: tuple[list[str], str] = [], ""
        self.events: list[Recorded] = []
        self.last_seq = 0


class Exchange:
    """The leases and reports of one node. Create it before the node starts; all methods run in its event loop."""

    def __init__(self, node: Node, reporter: Reporter, clock: Callable[[], float] = monotonic) -> None:
        self._node = node
        self._reporter = reporter
        self._clock = clock
        self._remotes: dict[str, Remote] = {}
        self._given: dict[str, _Given] = {}
        self._tasks = Tasks()
        self._reporting: asyncio.Task[None] | None = None
        self._arrived: asyncio.Event = asyncio.Event()
        #: whether this node has viewers, and what their leases ask for
        self.is_viewing = False
        self.keys: list[str] = []
        self.traced = ""
        #: keys and traced key of the lease that the others have
        self._leased: tuple[list[str], str] | None = None
        #: how many events of others have arrived
        self.events_seen = 0
        self._started_s = clock()
        node.on_channel(CHANNEL, self._receive)
        node.on_peer_up(self._peer_is_up)
        node.on_peer_down(self._peer_is_down)

    # ------------------------------------------------------------ as a viewer

    def renew(self) -> None:
        """Ask every member for reports for the next seconds."""
        self._lease_is((self.keys, self.traced))
        self._send_leases(LEASE_MS)

    def release(self) -> None:
        """The last viewer has gone: ask for no more reports."""
        self.is_viewing = False
        self._lease_is(None)
        self._send_leases(-1)

    async def look_once(self, keys: list[str], traced: str) -> None:
        """Get one report of each linked member, as far as they answer soon.

        Args:
            keys, traced: as in a lease.
        """
        keys, now_s = keys[:KEYS_PER_LEASE_MAX], self._clock()
        waiting = []
        for peer in self._node.peers:
            remote = self.remote(peer)
            is_good = now_s - FRESH_S < max(remote.received_s, remote.looked_s) and self._has(remote, keys, traced)
            if self._node.is_linked(peer) and not is_good:
                remote.looked_s, remote.looked = now_s, (keys, traced)
                self._send_lease(peer, Lease(0, remote.last_seq, keys, traced))
            if self._node.is_linked(peer):
                waiting.append(remote)
        deadline = now_s + LOOK_S
        while any(remote.received_s < remote.looked_s for remote in waiting):
            left_s = deadline - self._clock()
            if left_s <= 0:
                return
            self._arrived.clear()
            try:
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the result.
                async with asyncio.timeout(left_s):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _has(self, remote: Remote, keys: list[str], traced: str) -> bool:
        """Whether every report that can arrive from this member has these keys and this trace."""
        asked = [remote.looked, (self.keys[:KEYS_PER_LEASE_MAX], self.traced)] if self.is_viewing else [remote.looked]
        return all(set(keys) <= set(its_keys) and traced in ("", its_traced) for its_keys, its_traced in asked)

    def remote(self, peer: str) -> Remote:
        """What is known about this member."""
        found = self._remotes.get(peer)
        if found is None:
            found = self._remotes[peer] = Remote()
        return found

    def silent_ms(self, peer: str) -> int:
        """For how long nothing has arrived from this member."""
        since_report = int((self._clock() - (self.remote(peer).received_s or self._started_s)) * 1000)
        on_link = self._node.silent_ms(peer)
        return since_report if on_link is None else min(on_link, since_report)

    def is_behind(self, peer: str) -> bool:
        """Whether this member is linked but has not reported for a while: an older release, or it hangs."""
        remote = self.remote(peer)
        return remote.report is None or self._clock() - remote.received_s > LEASE_MS / 1000

    def _lease_is(self, lease: tuple[list[str], str] | None) -> None:
        if lease != self._leased:
            self._leased = lease
            for remote in self._remotes.values():
                # What has arrived was for another lease: it may be without what this page wanted.
                remote.looked = [], ""

    def _send_leases(self, ms: int) -> None:
        for peer in self._node.peers:
            self._send_lease(peer, self._lease(peer, ms))

    def _lease(self, peer: str, ms: int) -> Lease:
        return Lease(ms, self.remote(peer).last_seq, self.keys[:KEYS_PER_LEASE_MAX], self.traced)

    def _send_lease(self, peer: str, lease: Lease) -> None:
        if self._node.is_linked(peer):
            _LEASES.inc()
            self._node.send(peer, CHANNEL, encode(lease))

    def _took(self, peer: str, report: Report) -> None:
        remote = self.remote(peer)
        if remote.report is not None and remote.report.incarnation != report.incarnation:
            remote.last_seq = 0  # it counts its events from 1 again; what it told before its restart stays in the list
        remote.report, remote.received_s = report, self._clock()
        for event in report.events:
            if event.seq > remote.last_seq:
                remote.last_seq = event.seq
                remote.events.append(Recorded(*msgspec.structs.astuple(event)))
                self.events_seen += 1
        del remote.events[:-REMOTE_EVENTS_KEPT]
        self._arrived.set()

    # ------------------------------------------------------- as the one viewed

    def _asked(self, peer: str, lease: Lease) -> None:
        now_s = self._clock()
        given = self._given.get(peer)
        if lease.ms < 0:
            self._given.pop(peer, None)
            return
        if lease.ms == 0:
            self._send_report(peer, self._reporter.report(lease.since, lease.keys[:KEYS_PER_LEASE_MAX], lease.traced))
            return
        if given is None:
            if len(self._given) >= LEASES_MAX:
                return
            given = self._given[peer] = _Given()
        given.since = max(given.since, lease.since) if lease.since else 0
        given.keys, given.traced = lease.keys[:KEYS_PER_LEASE_MAX], lease.traced
        given.until_s = now_s + min(lease.ms, LEASE_MS) / 1000
        if now_s - given.sent_s >= REPORT_S:
            self._report(peer, given)
        if self._reporting is None:
            self._reporting = self._tasks.spawn("live", self._report_regularly())

    async def _report_regularly(self) -> None:
        try:
            while self._given:
                await asyncio.sleep(REPORT_S)
                now_s = self._clock()
                for peer, given in list(self._given.items()):
                    if given.until_s <= now_s or not self._node.is_linked(peer):
                        del self._given[peer]
                    elif now_s - given.sent_s >= REPORT_S * 0.9:
                        self._report(peer, given)
        finally:
            self._reporting = None

    def _report(self, peer: str, given: _Given) -> None:
        given.sent_s = self._clock()
        report = self._reporter.report(given.since, given.keys, given.traced)
        if report.events:
            given.since = report.events[-1].seq
        self._send_report(peer, report)

    def _send_report(self, peer: str, report: Report) -> None:
        _REPORTS.inc()
        self._node.send(peer, CHANNEL, encode(report))

    # -------------------------------------------------------------------- links

    def _receive(self, peer: str, data: bytes) -> None:
        try:
            message = decode(data)
        except msgspec.DecodeError:
            return  # treated as lost
        if isinstance(message, Lease):
            self._asked(peer, message)
        else:
            self._took(peer, message)

    def _peer_is_up(self, peer: str) -> None:
        if self.is_viewing:
            self._send_lease(peer, self._lease(peer, LEASE_MS))

    def _peer_is_down(self, peer: str) -> None:
        self._given.pop(peer, None)

    def close(self) -> None:
        self._tasks.cancel()
