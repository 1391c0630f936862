"""The nodes tell each other what their wall clocks show: when a link comes up, and every second.

So a new leader knows the clocks of those that voted for it, and every node finds out whether its own clock is wrong. A payload is
one byte with the version of the format, then the wall clock in ms since 1970 (8 bytes, big-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import structlog

from dss_raft import metrics
from dss_raft.core import RaftCore
from dss_raft.replication.clocks import AGREE_MS, MemberClocks

log = structlog.get_logger("raft")

CHANNEL = "clock"
FORMAT = 1
SEND_EVERY_S = 1.0
_PAYLOAD = struct.Struct(">Bq")


class ClockExchange:
    """Keeps `MemberClocks` current, and reports a clock that is wrong.

    Args:
        send: sends a payload to a peer on `CHANNEL`, best effort.
        peers: ids of the other members.
    """

    def __init__(
        self, core: RaftCore, clocks: MemberClocks, send: Callable[[str, str, bytes], None], peers: Callable[[], list[str]]
    ) -> None:
        self._core = core
        self._clocks = clocks
        self._send = send
        self._peers = peers
        self._due_s = float("-inf")
        self._own_offset_ms: float | None = None
        self._was_wrong = False
        self._did_disagree = False
        self.look()

    def ticked(self, now_s: float) -> None:
        """A tick has passed; `now_s` is the time of a monotonic clock."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + SEND_EVERY_S
        for peer in self._peers():
            self.tell(peer)
        self.look()

    def tell(self, peer: str) -> None:
        """Send this node's clock."""
        self._send(peer, CHANNEL, _PAYLOAD.pack(FORMAT, self._clocks.wall_ms()))

    def receive(self, peer: str, payload: bytes) -> None:
        """`peer` has sent its clock. Another format is ignored: the peer counts as one whose clock is not known."""
        if payload[:1] == bytes([FORMAT]) and len(payload) == _PAYLOAD.size:
            self._clocks.heard(peer, _PAYLOAD.unpack(payload)[1])
            self.look()

    def look(self) -> None:
        """Compare the clocks, and report what has changed."""
        self._clocks.look(self._core.membership.voters)
        self._report_a_set_clock()
        self._report_agreement()

    @property
    def is_wrong(self) -> bool:
        """True when this node's wall clock differs from the majority's by more than `AGREE_MS`."""
        return abs(self._clocks.off_by_ms or 0) > AGREE_MS

    def status(self, applied_ms: int) -> dict[str, Any]:
        """The field `clock` of `GET /raft/status`. `applied_ms` is this node's estimate of applied time."""
        agreement, agreed_ms = self._clocks.agreement, self._clocks.agreed_ms()
        return {
            "off_by_ms": self._clocks.off_by_ms,
            "is_wrong": self.is_wrong,
            "agreeing": [] if agreement is None else list(agreement.nodes),
            "applied_off_by_ms": None if agreed_ms is None else int(applied_ms - agreed_ms),
        }

    def _report_a_set_clock(self) -> None:
        own_offset_ms = self._clocks.own_offset_ms
        if self._own_offset_ms is not None and abs(own_offset_ms - self._own_offset_ms) > AGREE_MS:
            log.warning("raft.clock_set", by_ms=int(own_offset_ms - self._own_offset_ms))
        self._own_offset_ms = own_offset_ms

    def _report_agreement(self) -> None:
        clocks, voters = self._clocks, self._core.membership.voters
        agreement, off_by_ms = clocks.agreement, clocks.off_by_ms
        if off_by_ms is not None and agreement is not None and self.is_wrong != self._was_wrong:
            self._was_wrong = self.is_wrong
            if self.is_wrong:
                log.warning("raft.clock_wrong", off_by_ms=off_by_ms, agreeing=agreement.nodes)
            else:
                log.info("raft.clock_right", off_by_ms=off_by_ms)
        disagrees = agreement is None and len(clocks.offsets_ms) > len(voters) // 2
        if disagrees and not self._did_disagree:
            off = {peer: int(offset_ms - clocks.own_offset_ms) for peer, offset_ms in clocks.offsets_ms.items()}
            log.warning("raft.clocks_disagree", ahead_of_this_node_ms=off)
        self._did_disagree = disagrees
        metrics.CLOCK_OFF_SECONDS.set((off_by_ms or 0) / 1000)
        metrics.CLOCK_AGREEING.set(0 if agreement is None else len(agreement.nodes))
