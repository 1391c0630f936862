"""Linearizable reads without a log entry: ReadIndex rounds that all waiting reads share (thesis 6.4).

A read must wait for a round that began after the call. So there is one round in progress, and one for which reads are gathered.
"""

from __future__ import annotations

import asyncio
import heapq

from dss_api.errors import Refused
from dss_raft.core import RaftCore, Role
from dss_raft.core.ready import ReadState

#: A round without an answer is repeated after this time.
ROUND_TIMEOUT_S = 0.5


class ReadRounds:
    """The reads of one node.

    Args:
        waiting_max: limit of the waiting reads; further ones are refused with `over_limit`.
    """

    def __init__(self, core: RaftCore, loop: asyncio.AbstractEventLoop, waiting_max: int) -> None:
        self._core = core
        self._loop = loop
        self._waiting_max = waiting_max
        self._context = 0
        self._started = 0.0
        self._gathering: list[asyncio.Future[int]] = []
        self._in_progress: list[asyncio.Future[int]] = []
        self._gathering_confirms: list[asyncio.Future[int]] = []
        self._confirms_in_progress: list[asyncio.Future[int]] = []
        self._until_applied: list[tuple[int, int, asyncio.Future[int]]] = []
        self._count = 0

    def read(self) -> asyncio.Future[int]:
        """Resolves when this node has applied everything that was answered before the call.

        Raises:
            Refused: `over_limit` when too many reads wait already.
        """
        if len(self._gathering) + len(self._in_progress) + len(self._until_applied) >= self._waiting_max:
            raise Refused("over_limit", f"this node already has {self._waiting_max} reads waiting for the cluster")
        future: asyncio.Future[int] = self._loop.create_future()
        self._gathering.append(future)
        return future

    def confirm(self) -> asyncio.Future[int]:
        """Resolves with the commit index when a quorum has confirmed, after the call, that this node leads.

        The future raises Refused(`no_leader`) when it does not.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        if self._core.role != Role.LEADER:
            future.set_exception(Refused("no_leader", "this node does not lead"))
        else:
            self._gathering_confirms.append(future)
        return future

    def begin_round(self) -> None:
        """Start the next round if reads wait for it and no round is in progress."""
        if self._in_progress or self._confirms_in_progress:
            if self._loop.time() - self._started < ROUND_TIMEOUT_S:
                return
            self._return_to_gathering()
        self._gathering = [f for f in self._gathering if not f.done()]
        if not self._gathering and not self._gathering_confirms:
            return
        if not self._core.leader_id:
            return
        self._in_progress, self._gathering = self._gathering, []
        self._confirms_in_progress, self._gathering_confirms = self._gathering_confirms, []
        self._context += 1
        self._started = self._loop.time()
        self._core.read_index(self._context)

    def settle(self, state: ReadState) -> None:
        """A round has been answered."""
        if state.context != self._context:
            return
        if not state.ok:
            self._return_to_gathering()
            return
        futures, self._in_progress = self._in_progress, []
        confirms, self._confirms_in_progress = self._confirms_in_progress, []
        for future in futures:
            self._count += 1
            heapq.heappush(self._until_applied, (state.index, self._count, future))
        for confirm in confirms:
            if not confirm.done():
                confirm.set_result(self._core.commit_index)

    def release(self, applied_index: int) -> None:
        """Answer the reads that waited for `applied_index`."""
        waiting = self._until_applied
        while waiting and waiting[0][0] <= applied_index:
            future = heapq.heappop(waiting)[2]
            if not future.done():
                future.set_result(applied_index)

    def refuse_all(self, refusal: Refused) -> None:
        """This node cannot apply, or stops: no read can be answered."""
        waiting = [future for _, _, future in self._until_applied]
        for future in (*self._gathering, *self._in_progress, *waiting):
            if not future.done():
                future.set_exception(Refused(refusal.code, refusal.detail, **refusal.extra))
        self._gathering, self._in_progress, self._until_applied = [], [], []

    def _return_to_gathering(self) -> None:
        self._gathering, self._in_progress = self._in_progress + self._gathering, []
        confirms, self._confirms_in_progress = self._confirms_in_progress, []
        if self._core.role == Role.LEADER:
            self._gathering_confirms = confirms + self._gathering_confirms
            return
        for confirm in confirms + self._gathering_confirms:
            if not confirm.done():
                confirm.set_exception(Refused("no_leader", "this node no longer leads"))
        self._gathering_confirms = []
