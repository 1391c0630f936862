"""How a node finds out that it was removed while it was down or cut off.

The members do not dial a removed node, and do not send it the entry that removed it. So a node that has had no leader for a while
dials the other members that it knows: those of its last configuration or, before it got one, those of `PEERS`. Each of them that has
proved to know the secret, follows a leader, and has a committed configuration that does not contain this node, says so in the
handshake. One is enough if no other one accepts this node: the others may be down, or removed, too. Nodes that were removed together
may accept each other, because neither knows of the other's removal, so a majority of the configuration is always enough: to add this
node again, the cluster would have needed one of them.

A node that waits to be added is no member either. But no leader has ever written to it, so it is still in term 0.
"""

from __future__ import annotations

from dss_api.errors import ForOperator
from dss_raft.core import RaftCore
from dss_raft.net.links import PeerLinks

#: time without a leader before the first question: several election timeouts
ASK_AFTER_S = 3.0
ASK_EVERY_S = 1.0
#: Rounds with this result in a row. One is not enough: members that lag may not know a new member yet.
ROUNDS = 3


class NodeRemoved(ForOperator):
    """This node is no longer a member of its cluster. The text tells the operator what to do."""


class RemovalWatch:
    """Watches the links and the leader of one node.

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
        """Call this every tick, or once in a few.

        Args:
            now_s: time of a monotonic clock.

        Raises:
            NodeRemoved: in `ROUNDS` rounds in a row, a majority has said so, or one of the others has and none has accepted this node.
        """
        core = self._core
        was_never_added = not core.configuration.members and not core.term
        if core.leader_id or was_never_added or not self._ask_at_s:
            self._ask_at_s = now_s + ASK_AFTER_S
            self._rounds = 0
            return
        if now_s < self._ask_at_s:
            return
        self._ask_at_s = now_s + ASK_EVERY_S
        members = [member.id for member in core.configuration.members]
        # `peers` also has members that are just being removed, and accept this node as long as they do not know what has happened.
        others = [member for member in members or self._links.peers if member != core.node_id]
        disowning = [other for other in others if other in self._links.disowned_by]
        is_accepted = any(self._links.is_up(other) for other in others)
        is_majority = len(disowning) * 2 > len(members or others)
        self._rounds = self._rounds + 1 if is_majority or (disowning and not is_accepted) else 0
        if self._rounds >= ROUNDS:
            raise NodeRemoved(
                f"{core.node_id} was removed from the cluster, as {', '.join(disowning)} confirmed with the cluster secret. The data in "
                f"{self._data_dir} stays as it is. To join again, add the node (`manage.py member add`) and start it."
            )
        for other in others:
            self._links.probe(other)
