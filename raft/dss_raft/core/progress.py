"""What a leader knows about one peer, and how it sends to it.

    PROBE      it is not known where the logs agree: send one message, then wait for its answer or the next heartbeat
    REPLICATE  the logs agree: `next` runs ahead of `match`, as far as the inflight limits allow
    SNAPSHOT   the peer needs entries that are compacted: send a snapshot, one chunk in flight; heartbeats continue

An accepting answer leads to REPLICATE, a refusing one to PROBE. `next` at or below the log's base leads to SNAPSHOT.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from dss_raft.core.errors import InvariantViolation
from dss_raft.core.messages import SnapshotMeta


class ProgressState(IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress:
    """One peer of the leader. Always `0 <= match < next`."""

    __slots__ = (
        "acknowledged_before",
        "chunk_due",
        "chunk_tick",
        "commit_sent",
        "contact_tick",
        "due",
        "id",
        "inflight",
        "inflight_bytes",
        "learner",
        "match",
        "next",
        "offset",
        "paused",
        "round",
        "snapshot",
        "state",
    )

    def __init__(self, peer_id: str, learner: bool, next_index: int, tick: int) -> None:
        self.id = peer_id
        self.learner = learner
        #: last index known to be equal and durable on the peer
        self.match = 0
        #: what `match` was before the peer restarted, until it is confirmed; 0 afterwards
        self.acknowledged_before = 0
        #: the entry to send next
        self.next = next_index
        self.state = ProgressState.PROBE
        #: PROBE: a probe has been sent and not answered
        self.paused = False
        #: a message must be sent even without news (heartbeat, confirmation round)
        self.due = True
        #: unacknowledged messages with entries: (last index, bytes)
        self.inflight: deque[tuple[int, int]] = deque()
        self.inflight_bytes = 0
        #: the highest commit index that was sent to the peer and that it could use
        self.commit_sent = 0
        #: last confirmation round that this peer has answered
        self.round = 0
        #: tick of its last answer; for a new leader, the tick of the election
        self.contact_tick = tick
        #: SNAPSHOT: what is being sent, the next offset, whether the driver must read a chunk, and when that was last requested
        self.snapshot: SnapshotMeta | None = None
        self.offset = 0
        self.chunk_due = False
        self.chunk_tick = 0

    def sent(self, last_index: int, size: int) -> None:
        """Entries up to `last_index` have been sent (REPLICATE)."""
        self.next = last_index + 1
        self.inflight.append((last_index, size))
        self.inflight_bytes += size

    def full(self, messages_max: int, bytes_max: int) -> bool:
        """True when no more entries may be sent before an acknowledgement."""
        return len(self.inflight) >= messages_max or self.inflight_bytes >= bytes_max

    def acknowledged(self, match: int) -> bool:
        """The peer holds everything up to `match`. False when that was known already."""
        inflight = self.inflight
        while inflight and inflight[0][0] <= match:
            self.inflight_bytes -= inflight.popleft()[1]
        if match <= self.match:
            return False
        self.match = match
        if match >= self.acknowledged_before:
            self.acknowledged_before = 0
        if self.next <= match:
            self.next = match + 1
        return True

    @property
    def held(self) -> int:
        """The last index that the peer has acknowledged in this term, perhaps before it restarted."""
        return max(self.acknowledged_before, self.match)

    def restarted(self) -> None:
        """Forget what the peer holds, and ask about it: its disk may not be what it was."""
        self.acknowledged_before = self.held
        self.match = 0
        self.become_probe(self.acknowledged_before + 1)

    def become_probe(self, next_index: int) -> None:
        self._leave(ProgressState.PROBE, next_index)
        self.paused = False
        self.commit_sent = 0

    def become_replicate(self, next_index: int) -> None:
        self._leave(ProgressState.REPLICATE, next_index)

    def become_snapshot(self, meta: SnapshotMeta) -> None:
        self._leave(ProgressState.SNAPSHOT, self.next)
        self.snapshot = meta
        self.offset = 0
        self.chunk_due = True

    def _leave(self, state: ProgressState, next_index: int) -> None:
        self.state = state
        self.next = max(next_index, self.match + 1)
        self.inflight.clear()
        self.inflight_bytes = 0
        self.snapshot = None
        self.chunk_due = False

    def check(self, last_index: int, messages_max: int) -> None:
        """Check invariant 7, the leader's bookkeeping.

        Raises:
            InvariantViolation: it does not hold.
        """
        if not 0 <= self.match < self.next <= last_index + 1 or len(self.inflight) > messages_max:
            raise InvariantViolation(
                f"progress of {self.id}: match {self.match}, next {self.next}, last {last_index}, inflight {len(self.inflight)}"
            )
