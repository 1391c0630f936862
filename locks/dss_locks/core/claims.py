"""The request that each grant answered, while that request can still be cancelled.

A caller may disconnect while its grant is on the way. Its node then cancels the request, and the grant is undone. This is no
longer possible once the client has acted on the lock with another request: it may know of the grant. From then on only a release
or the end of the lease ends the lock.
"""

from __future__ import annotations

from collections.abc import Iterable

from dss_locks.core.state import Hold
from dss_raft.replication.machine import Origin


class Claims:
    """Grants by the request (node, incarnation, seq) that they answered."""

    def __init__(self) -> None:
        self._incarnations: dict[str, int] = {}
        #: node -> seq -> the hold; a list if the request was granted several keys
        self._nodes: dict[str, dict[int, Hold | list[Hold]]] = {}

    def add(self, origin: Origin, hold: Hold, token_before: int = 0) -> None:
        """Record that `hold` was granted to `origin`. `token_before`: for an upgrade, the token of the shared hold."""
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
        """Forget a claim: its grant can no longer be cancelled."""
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
        """The holds that were granted to `origin` and can still be cancelled, sorted by key."""
        node, incarnation, seq = origin
        if self._incarnations.get(node) != incarnation:
            return []
        claimed = self._nodes[node].get(seq)
        if claimed is None:
            return []
        return sorted(claimed, key=lambda hold: hold.key) if isinstance(claimed, list) else [claimed]

    def forget_node(self, node: str) -> None:
        """Forget the claims of a node that has restarted: requests of an old incarnation cannot be cancelled."""
        for claimed in self._nodes.pop(node, {}).values():
            for hold in claimed if isinstance(claimed, list) else [claimed]:
                _clear(hold)
        self._incarnations.pop(node, None)

    def snapshot(self) -> dict[str, int]:
        """The incarnations. The claims themselves are in the holds."""
        return self._incarnations

    def restore(self, incarnations: dict[str, int], holds: Iterable[Hold]) -> None:
        """Replace the claims with those in `holds`."""
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
