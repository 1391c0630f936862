"""Linearizable reads without log entries (thesis 6.4): note the commit index, then prove that this node still leads.

On the leader, requests are gathered until a confirmation round can start, and share it. AppendEntries carries the number of the
round, and every peer that still accepts the sender as its leader answers with it. A batch of requests is answered when a majority
of the voters has answered its round or a later one. Rounds belong to one term, because their answers do.

On other nodes, requests are sent to the leader with a nonce that no earlier incarnation of this node can have used, so that a
late answer is never taken for the answer to a later request (etcd#20418).
"""

from __future__ import annotations

from collections import deque


class LeaderReads:
    """Reads that this leader must answer: its own (origin "") and those of other nodes."""

    __slots__ = ("batches", "pending")

    def __init__(self) -> None:
        #: (origin, context): requests since the last round began
        self.pending: list[tuple[str, int]] = []
        #: (round, commit index when it began, requests), rounds ascending
        self.batches: deque[tuple[int, int, list[tuple[str, int]]]] = deque()

    def start(self, confirmation_round: int, commit_index: int) -> None:
        """A round has just begun. It confirms all requests that came before it."""
        if self.pending:
            self.batches.append((confirmation_round, commit_index, self.pending))
            self.pending = []

    def confirmed(self, confirmation_round: int) -> list[tuple[str, int, int]]:
        """A majority has answered this round. Returns (origin, context, index) of the requests that may be answered now."""
        answers: list[tuple[str, int, int]] = []
        batches = self.batches
        while batches and batches[0][0] <= confirmation_round:
            _, index, requests = batches.popleft()
            answers += [(origin, context, index) for origin, context in requests]
        return answers

    def take_all(self) -> list[tuple[str, int]]:
        """This node no longer leads: returns the open requests, which must be refused."""
        left = [request for _, _, requests in self.batches for request in requests] + self.pending
        self.batches.clear()
        self.pending = []
        return left


class ForwardedReads:
    """Reads of this node that the leader, another node, must answer."""

    __slots__ = ("_nonce", "sent", "waiting")

    def __init__(self, first_nonce: int) -> None:
        self._nonce = first_nonce
        #: contexts that have not been sent yet
        self.waiting: list[int] = []
        #: nonce -> (contexts, tick when sent), oldest first
        self.sent: dict[int, tuple[list[int], int]] = {}

    def send(self, tick: int) -> int:
        """Move all waiting contexts to a new nonce, and return it."""
        self._nonce += 1
        self.sent[self._nonce] = (self.waiting, tick)
        self.waiting = []
        return self._nonce

    def answered(self, nonce: int) -> list[int]:
        """The contexts that this answer is for; none when it comes too late."""
        contexts, _ = self.sent.pop(nonce, ([], 0))
        return contexts

    def expired(self, before: int) -> list[int]:
        """The contexts of requests that were sent before this tick and got no answer."""
        contexts: list[int] = []
        for nonce in [nonce for nonce, (_, tick) in self.sent.items() if tick < before]:
            contexts += self.sent.pop(nonce)[0]
        return contexts

    def take_all(self) -> list[int]:
        """The leader has changed: returns all open contexts, which must be refused."""
        left = [context for contexts, _ in self.sent.values() for context in contexts] + self.waiting
        self.sent.clear()
        self.waiting = []
        return left
