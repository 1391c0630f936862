"""What the members do about an entry that cannot be applied: move leadership to a member that can, and skip the entry.

An entry is skipped only if no member has applied it. Otherwise the states would differ: the node that stopped must be restarted,
or given a version without the fault. So the leader asks every member, and proposes the `Skip` when all have answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_raft.applying import ApplyStop
from dss_raft.config import RaftConfig
from dss_raft.core import ChangeRefused, NotLeader, RaftCore
from dss_raft.core.messages import EntryKind
from dss_raft.net.control import Handler
from dss_raft.replication.commands import Skip
from dss_raft.replication.replica import Replica

log = structlog.get_logger("raft")


class RecoveringNode(Protocol):
    """What the recovery needs of its node."""

    node_id: str
    config: RaftConfig
    core: RaftCore
    replica: Replica

    @property
    def is_leader(self) -> bool: ...

    @property
    def peers(self) -> list[str]: ...

    @property
    def apply_stop(self) -> ApplyStop | None: ...

    def propose_skip(self, command: Skip) -> bool: ...

    async def ask_peer(self, peer: str, timeout_s: float, what: str) -> dict[str, Any]: ...

    async def until(self, condition: Callable[[], bool]) -> bool: ...

    def wake(self) -> None: ...


class ApplyRecovery:
    """One node's part in it."""

    def __init__(self, node: RecoveringNode) -> None:
        self._node = node
        self._timeout_s = node.config.raft_election_max_ms / 1000
        self._tasks = Tasks()
        self._handing_over: asyncio.Task[None] | None = None
        self._next_attempt_s = 0.0

    def handlers(self) -> dict[str, Handler]:
        """The control requests that other members may send."""
        return {"apply_state": self._apply_state, "skip": self._skip}

    def tick(self, now_s: float) -> None:
        """Leader: if this node cannot apply, have another member lead; try again after an election timeout."""
        if self._node.apply_stop is None or not self._node.is_leader or now_s < self._next_attempt_s:
            return
        self._next_attempt_s = now_s + self._timeout_s
        if self._handing_over is None or self._handing_over.done():
            self._handing_over = self._tasks.spawn("raft", self._hand_over())

    def close(self) -> None:
        self._tasks.cancel()

    async def _apply_state(self) -> dict[str, Any]:
        stop = self._node.apply_stop
        return {"applied_index": self._node.replica.applied_index, "stopped_at": 0 if stop is None else stop.index}

    async def _ask_all(self) -> dict[str, dict[str, Any]]:
        """What each member answered; members that did not are left out."""
        peers = self._node.peers
        answers = await asyncio.gather(
            *(self._node.ask_peer(peer, self._timeout_s, "apply_state") for peer in peers), return_exceptions=True
        )
        states = {peer: answer for peer, answer in zip(peers, answers, strict=True) if isinstance(answer, dict)}
        return {self._node.node_id: await self._apply_state(), **states}

    async def _hand_over(self) -> None:
        node = self._node
        voters = {member.id for member in node.core.configuration.members if not member.learner}
        states = await self._ask_all()
        able = [(state["applied_index"], peer) for peer, state in states.items() if peer in voters and not state["stopped_at"]]
        if not able or node.apply_stop is None:
            return
        _, best = max(able)
        log.warning("raft.handing_over", to=best, reason="this node cannot apply the log")
        try:
            node.core.transfer(best)
        except (NotLeader, ChangeRefused):
            return  # another leader, or another configuration, in the meantime
        node.wake()

    async def _skip(self, index: int, reason: str, by: str) -> dict[str, Any]:
        """See `Node.skip`."""
        node, skipped = self._node, self._node.replica.skipped
        if not node.is_leader:
            raise Refused("no_leader", f"{node.node_id} does not lead")
        if not skipped.get(index):
            self._check_kind(index)
            self._check_states(index, await self._ask_all())
            if not node.propose_skip(Skip(entry=index, reason=reason, by=by)):
                raise Refused("no_leader", f"{node.node_id} does not lead any more")
            if not await node.until(lambda: bool(node.replica.skipped.get(index))):
                raise Refused("unknown_outcome", "the skip was proposed; the leader has not applied it in time")
        return {"skipped": index, "index": node.replica.skipped[index]}

    def _check_kind(self, index: int) -> None:
        log = self._node.core.log
        if index > log.committed:
            raise Refused("not_skippable", f"entry {index} is not committed")
        if index < log.first_index or log.slice(index, index)[0].kind != EntryKind.COMMANDS:
            raise Refused("not_skippable", f"entry {index} is not an entry with commands in the log of {self._node.node_id}")

    def _check_states(self, index: int, states: dict[str, dict[str, Any]]) -> None:
        silent = [peer for peer in self._node.peers if peer not in states]
        if silent:
            raise Refused(
                "not_skippable",
                f"{' and '.join(silent)} did not answer; every member must say that it has not applied entry {index}",
            )
        applied = [member for member, state in states.items() if state["applied_index"] >= index]
        if applied:
            raise Refused(
                "not_skippable",
                f"entry {index} is applied on {' and '.join(applied)}, so its effect must stay; restart the node that stopped there",
            )
        if not any(state["stopped_at"] == index for state in states.values()):
            raise Refused("not_skippable", f"no member has stopped applying at entry {index}")
