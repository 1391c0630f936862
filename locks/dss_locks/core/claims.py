"""Which request a grant was made to, as long as it may still be taken back.

A caller may hang up while its grant is on the way; its node then cancels the request, and the lock goes back. That is over when
the client acts on the lock again, with another request: it may have learnt of the grant, so the lock is its own from then on, and
only a release or the lease ends it.
"""

from __future__ import annotations

from collections.abc import Iterable

from dss_locks.core.state import Hold
from dss_raft.replication.machine import Origin


class Claims:
    """Grants by the request (node, incarnation, seq) that they answered."""

    def __init__(self) -> None:
        self._incarnations: dict[str, int] = {}
        #: node -> seq -> what was granted; a list where one request got several keys
        self._nodes: dict[str, dict[int, Hold | list[Hold]]] = {}

    def add(self, origin: Origin, hold: Hold, token_before: int = 0) -> None:
        """`hold` was granted to `origin`. `token_before`: the shared hold's token, when it was an upgrade."""
        node, incarnation, seq = origin
        if not seq:
            return
        if self._incarnations.get(node) != incarnation:
            self.forget_node(node)
            self._incarnations[node] = incarnation
            self._nodes[node] = {}
        hold.claim_node, hold.claim_seq, hold.token_before = node, seq, token_before
        self._register(self._nodes[node], seq, hold)

    def drop(self, hold: Hold) -> None:
        """The grant can no longer be taken back."""
        by_seq, seq = self._nodes[hold.claim_node], hold.claim_seq
        claimed = by_seq[seq]
        if isinstance(claimed, list):
            claimed[:] = [other for other in claimed if other is not hold]
            if not claimed:
                del by_seq[seq]
        else:
            del by_seq[seq]
        _clear(hold)

    def of(self, origin: Origin) -> list[Hold]:
        """What was granted to `origin` and can be taken back, by key."""
        node, incarnation, seq = origin
        if self._incarnations.get(node) != incarnation:
            return []
        claimed = self._nodes[node].get(seq)
        if claimed is None:
            return []
        return sorted(claimed, key=lambda hold: hold.key) if isinstance(claimed, list) else [claimed]

    def forget_node(self, node: str) -> None:
        """The node has a new incarnation: nobody can cancel requests of the old one."""
        for claimed in self._nodes.pop(node, {}).values():
            for hold in claimed if isinstance(claimed, list) else [claimed]:
                _clear(hold)
        self._incarnations.pop(node, None)

    def snapshot(self) -> dict[str, int]:
        """The incarnations; the claims themselves stand in the holds."""
        return self._incarnations

    def restore(self, incarnations: dict[str, int], holds: Iterable[Hold]) -> None:
        """Replace the claims by those in `holds`."""
        self._incarnations = dict(incarnations)
        self._nodes = {node: {} for node in incarnations}
        for hold in holds:
            if hold.claim_seq:
                self._register(self._nodes[hold.claim_node], hold.claim_seq, hold)

    @staticmethod
    def _register(by_seq: dict[int, Hold | list[Hold]], seq: int, hold: Hold) -> None:
        claimed = by_seq.get(seq)
        if claimed is None:
            by_seq[seq] = hold
        elif isinstance(claimed, list):
            claimed.append(hold)
        else:
            by_seq[seq] = [claimed, hold]


def _clear(hold: Hold) -> None:
    hold.claim_node, hold.claim_seq, hold.token_before = "", 0, 0
