"""Linearizable reads without a log entry: ReadIndex rounds shared by everybody who waits (thesis 6.4).

A read must wait for a round that began after it was asked for. So there is one round on its way and one that gathers.
"""

from __future__ import annotations

import asyncio
import heapq

from dss_api.errors import Refused
from dss_raft.core import RaftCore, Role
from dss_raft.core.ready import ReadState

#: A round whose answer was lost on the way is asked again after this.
ROUND_TIMEOUT_S = 0.5


class ReadRounds:
    """The reads of one node.

    Args:
        waiting_max: reads that may wait at once; one more is refused with `over_limit`.
    """

    def __init__(self, core: RaftCore, loop: asyncio.AbstractEventLoop, waiting_max: int) -> None:
        self._core = core
        self._loop = loop
        self._waiting_max = waiting_max
        self._context = 0
        self._started = 0.0
        self._gathering: list[asyncio.Future[int]] = []
        self._on_its_way: list[asyncio.Future[int]] = []
        self._gathering_proofs: list[asyncio.Future[int]] = []
        self._proofs_on_their_way: list[asyncio.Future[int]] = []
        self._until_applied: list[tuple[int, int, asyncio.Future[int]]] = []
        self._count = 0

    def read(self) -> asyncio.Future[int]:
        """Resolves when this node has applied everything that was answered before the call.

        Raises:
            Refused: `over_limit` when too many reads wait already.
        """
        if len(self._gathering) + len(self._on_its_way) + len(self._until_applied) >= self._waiting_max:
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
            self._gathering_proofs.append(future)
        return future

    def begin_round(self) -> None:
        """Start the next round when one is wanted and none is on its way."""
        if self._on_its_way or self._proofs_on_their_way:
            if self._loop.time() - self._started < ROUND_TIMEOUT_S:
                return
            self._return_to_gathering()
        self._gathering = [f for f in self._gathering if not f.done()]
        if not self._gathering and not self._gathering_proofs:
            return
        if not self._core.leader_id:
            return
        self._on_its_way, self._gathering = self._gathering, []
        self._proofs_on_their_way, self._gathering_proofs = self._gathering_proofs, []
        self._context += 1
        self._started = self._loop.time()
        self._core.read_index(self._context)

    def settle(self, state: ReadState) -> None:
        """A round came back."""
        if state.context != self._context:
            return
        if not state.ok:
            self._return_to_gathering()
            return
        futures, self._on_its_way = self._on_its_way, []
        proofs, self._proofs_on_their_way = self._proofs_on_their_way, []
        for future in futures:
            self._count += 1
            heapq.heappush(self._until_applied, (state.index, self._count, future))
        for proof in proofs:
            if not proof.done():
                proof.set_result(self._core.commit_index)

    def release(self, applied_index: int) -> None:
        """Let go the reads that waited for `applied_index`."""
        waiting = self._until_applied
        while waiting and waiting[0][0] <= applied_index:
            future = heapq.heappop(waiting)[2]
            if not future.done():
                future.set_result(applied_index)

    def _return_to_gathering(self) -> None:
        self._gathering, self._on_its_way = self._on_its_way + self._gathering, []
        proofs, self._proofs_on_their_way = self._proofs_on_their_way, []
        if self._core.role == Role.LEADER:
            self._gathering_proofs = proofs + self._gathering_proofs
            return
        for proof in proofs + self._gathering_proofs:
            if not proof.done():
                proof.set_exception(Refused("no_leader", "this node does not lead any more"))
        self._gathering_proofs = []
