"""How a node finds out that it was removed while it could not hear of it.

Nobody dials a node that is no member any more, and nobody sends it the entry that says so. So a node that has had no leader for a
while asks the others of its last configuration; each tells in the handshake whether it knows this node as a member. When a majority
of them does not, the removal is in the log of a majority of the configuration that followed.
"""

from __future__ import annotations

from dss_raft.core import RaftCore
from dss_raft.net.links import PeerLinks

#: several election timeouts
ASK_AFTER_S = 3.0
ASK_EVERY_S = 1.0
#: A member that has just come may be unknown to those who lag: once is not enough.
ROUNDS = 3


class NodeRemoved(Exception):
    """This node is no member of its cluster any more; the text says so to a person, and what to do."""


class RemovalWatch:
    """Looks at one node's links and leader, tick by tick.

    Args:
        data_dir: for the text of `NodeRemoved`.
    """

    def __init__(self, core: RaftCore, links: PeerLinks, data_dir: str) -> None:
        self._core = core
        self._links = links
        self._data_dir = data_dir
        self._ask_at_s = 0.0
        self._rounds = 0

    def check(self, now_s: float) -> None:
        """To be called every tick.

        Args:
            now_s: a monotonic clock.

        Raises:
            NodeRemoved: in so many rounds a majority of the others has said so.
        """
        core = self._core
        if core.leader_id or not self._ask_at_s:
            self._ask_at_s = now_s + ASK_AFTER_S
            self._rounds = 0
            return
        if now_s < self._ask_at_s:
            return
        self._ask_at_s = now_s + ASK_EVERY_S
        others = [member.id for member in core.configuration.members if member.id != core.node_id]
        disowning = sum(1 for other in others if other in self._links.disowned_by)
        self._rounds = self._rounds + 1 if disowning > len(others) // 2 else 0
        if self._rounds >= ROUNDS:
            raise NodeRemoved(
                f"{core.node_id} was removed from the cluster; {', '.join(others)} do not know it any more. What is in "
                f"{self._data_dir} belongs to the past. To join again: delete that directory, start with DSS_JOIN=true, and "
                "have the node added (`manage.py member add`)."
            )
        for other in others:
            self._links.probe(other)
