"""Whether a write that is submitted on this node now would be answered (`GET /ready`).

Everything here is counted in ticks and not with a clock: a node that was paused has not seen the time in between. And nothing
here looks at a single moment: a busy node that answers its calls is always a few entries behind.
"""

from __future__ import annotations

from dss_raft.calls import Calls
from dss_raft.core import RaftCore, Role
from dss_raft.replication.replica import Replica
from dss_raft.stall_watch import LagWatch, StallWatch


class Readiness:
    """Watches one node.

    Args:
        ticks_max: an election timeout: how long the leader may be silent, and how far applying may lag behind.
        ticks_per_look: `tick` is called once in this many ticks.
    """

    def __init__(self, core: RaftCore, replica: Replica, calls: Calls, ticks_max: int, ticks_per_look: int = 1) -> None:
        self._core = core
        self._replica = replica
        self._calls = calls
        self._ticks_max = ticks_max
        looks_max = max(1, ticks_max // ticks_per_look)
        self._stall = StallWatch(looks_max)
        self._lag = LagWatch(looks_max)

    def tick(self) -> None:
        """`ticks_per_look` ticks have passed."""
        core, applied = self._core, self._replica.applied_index
        is_pending = core.last_index > applied or self._calls.has_unapplied
        self._stall.tick(core.commit_index, applied, is_pending)
        self._lag.tick(core.known_committed)

    @property
    def not_ready_reason(self) -> str:
        """Why a write submitted here now would not be answered soon; "" if it would be."""
        core = self._core
        if self._calls.is_closing:
            return "this node is stopping"
        if core.node_id not in core.membership.ids:
            return "this node is not a member of the cluster"
        if not core.leader_id:
            return "this node knows no leader"
        if core.role is not Role.LEADER and core.election_elapsed > self._ticks_max:
            return f"nothing was received from the leader, {core.leader_id}, for an election timeout"
        if not self._calls.is_session_accepted:
            return "the cluster has not accepted the session of this start of the node yet"
        if self._lag.is_lagging(self._replica.applied_index):
            return f"this node has applied {self._replica.applied_index} of {core.known_committed} entries"
        if self._stall.is_stalled:
            return f"nothing was committed for an election timeout, although calls or entries wait; the last index is {core.last_index}"
        return ""
