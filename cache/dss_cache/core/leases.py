"""Who has applied what, and who may answer from its lines until when: the volatile half of coherence, on every node.

*Acknowledgements.* Each node counts up to which directory stamp every other node has applied. These are facts about the past:
they may be repeated, arrive late or in any order, and the highest counts. A committed `Revoke`, or a restart, counts as well.

*Leases* (Gray and Cheriton, 1989). A node answers from its lines only while it holds a coherence lease of length L, so that a
write need not wait for ever for a node that is cut off. No clocks are compared; all that is assumed is that clocks run at
about the same rate (within `RATE_ERROR`).

- L is the leader's own setting, and comes with the grant. The holder counts from when it *sent* the request: its lease ends
  L(1 - e) - margin later.
- The leader counts from when it *granted*, which is later: the lease is over L(1 + e) after that.
- The leader grants only after a quorum has confirmed, since the request came in, that it leads. So a leader that was deposed
  without knowing grants nothing that outlives its successor's patience:
- a new leader takes every node for a holder until L(1 + e) after it was elected. Here L is the longest that any leader before
  it may have granted: each of them has put its own into the log before its first grant (`AgreeLease`). It may say that longer
  ones are over when it has waited for them.
- The grant names the leader's commit index. It is of use to the holder only when it has applied that far: a `Revoke` of the
  holder, and every write that was answered because of it, is among those entries.

*Revoking.* When a write waits for a node whose lease is over, the leader proposes `Revoke(node)`, and grants that node nothing
until this very `Revoke` has been applied. Another voiding of the node, by its restart or by an earlier leader, does not do: a
grant then need not name an index behind the `Revoke` that is still on its way, which would void what the node fetches before
it while that lease holds. A node that renews its lease but has not caught up for a whole L is granted nothing either, so that
no write waits for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from math import inf
from typing import Generic, TypeVar

from dss_cache.core.commands import AgreeLease
from dss_cache.core.directory import Stamps

T = TypeVar("T")

#: How much faster or slower a clock may run than another one.
RATE_ERROR = 0.01
#: Part of L that a holder gives away on top, for what clocks do beyond that.
MARGIN = 0.05
#: A node whose lease is over has so long (part of L, and seconds) to say that it has applied a write: then it keeps its lines.
PATIENCE, PATIENCE_S_MAX = 0.25, 0.2


class Acknowledgements(Generic[T]):
    """Up to which stamp each node has applied, and who waits for it to go on.

    A waiter is any token of the caller's; `advance` returns those whose wait is over.
    """

    def __init__(self) -> None:
        self.applied: Stamps = {}
        self._waiting: dict[str, list[tuple[int, int, list[int], T]]] = {}
        self._count = 0

    def covers(self, must: Mapping[str, int]) -> bool:
        """True when every node in `must` has applied as far as it must."""
        applied = self.applied
        for node, stamp in must.items():  # noqa: SIM110  (on the path of every write; a generator costs more)
            if applied.get(node, 0) < stamp:
                return False
        return True

    def missing(self, must: Mapping[str, int]) -> dict[str, int]:
        """The part of `must` that is not covered."""
        return {node: stamp for node, stamp in must.items() if self.applied.get(node, 0) < stamp}

    def wait(self, must: Mapping[str, int], token: T) -> bool:
        """Have `advance` return `token` when `must` is covered. False: it is covered now."""
        missing = self.missing(must)
        left = [len(missing)]
        for node, stamp in missing.items():
            self._count += 1
            heapq.heappush(self._waiting.setdefault(node, []), (stamp, self._count, left, token))
        return bool(missing)

    def advance(self, node: str, stamp: int) -> list[T]:
        """`node` has applied up to `stamp`. Returns the waiters that now wait for nobody."""
        if self.applied.get(node, 0) >= stamp:
            return []
        self.applied[node] = stamp
        over = []
        waiting = self._waiting.get(node)
        while waiting and waiting[0][0] <= stamp:
            _, _, left, token = heapq.heappop(waiting)
            left[0] -= 1
            if not left[0]:
                over.append(token)
        return over

    def awaited(self) -> Stamps:
        """For each node that somebody waits for, the highest stamp that is waited for."""
        return {node: max(stamp for stamp, *_ in waiting) for node, waiting in self._waiting.items() if waiting}


class HeldLease:
    """This node's own lease.

    Args:
        lease_s: how long the first one will be, about, in seconds.
    """

    def __init__(self, lease_s: float) -> None:
        #: L of the latest grant
        self.length_s = lease_s
        #: lines may be used while the clock is below; 0: no lease
        self.valid_until = 0.0
        self._token = 0
        self._asked: dict[int, float] = {}
        #: granted, and of use once `must_apply` is applied: (must_apply, until)
        self._early: list[tuple[int, float]] = []

    @property
    def waits_for_index(self) -> int:
        """The lowest index at which a grant in hand becomes usable; 0: none is in hand."""
        return min((must_apply for must_apply, _ in self._early), default=0)

    def ask(self, now: float) -> int:
        """A request is sent now. Returns its token."""
        self._token += 1
        self._asked = {token: sent for token, sent in self._asked.items() if now - sent < self.length_s}
        self._asked[self._token] = now
        return self._token

    def granted(self, token: int, must_apply: int, lease_s: float) -> None:
        """The leader granted the request `token`, for so many seconds; it takes effect with the next `applied`."""
        sent_at = self._asked.pop(token, None)
        if sent_at is not None:
            self.length_s = lease_s
            self._early.append((must_apply, sent_at + lease_s * (1 - RATE_ERROR - MARGIN)))

    def applied(self, index: int) -> None:
        """This node has applied up to `index`: grants up to there are of use."""
        if not self._early:
            return
        for must_apply, until in self._early:
            if must_apply <= index:
                self.valid_until = max(self.valid_until, until)
        self._early = [grant for grant in self._early if grant[0] > index]

    def forget(self) -> None:
        """The lease is of no use any more."""
        self.valid_until = 0.0
        self._asked.clear()
        self._early.clear()


class GrantedLeases:
    """What a leader has granted. Only a leader of the term given to `lead` may use it.

    Args:
        lease_s: L of this leader's grants, in seconds.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._patience_s = min(lease_s * PATIENCE, PATIENCE_S_MAX)
        self.term = 0
        self._elected_at = 0.0
        self._agreeing = False
        #: leases of earlier leaders are over by then
        self._first_end = inf
        self._ends: dict[str, float] = {}
        self._revoking: set[str] = set()
        #: node: (the stamp it had not applied, since when)
        self._behind: dict[str, tuple[int, float]] = {}

    def lead(self, term: int, now: float) -> None:
        """This node leads in `term` from now on: whatever others granted may still be held, for however long."""
        self.term = term
        self._elected_at = now
        self._agreeing = False
        self._first_end = inf
        self._ends.clear()
        self._revoking.clear()
        self._behind.clear()

    @property
    def lease_ms(self) -> int:
        """L of this leader's grants, as nodes tell each other."""
        return round(self.lease_s * 1000)

    def to_agree(self, longest_ms: int, now: float) -> AgreeLease | None:
        """What is to be proposed now: how long this leader's leases are, before the first one, and again when longer ones are over.

        Args:
            longest_ms: what the log says.
        """
        if self._agreeing or (self.is_agreed and (longest_ms == self.lease_ms or not self.longer_are_over(now))):
            return None
        return AgreeLease(lease_ms=self.lease_ms, term=self.term, longer_are_over=self.is_agreed)

    def agreeing(self) -> None:
        """It was proposed."""
        self._agreeing = True

    def agreed(self, term: int, longest_ms: int) -> None:
        """The log says that no leader up to the one of `term` has granted, or will grant, longer leases."""
        if term == self.term:
            self._agreeing = False
            self._first_end = self._elected_at + longest_ms / 1000 * (1 + RATE_ERROR)

    @property
    def is_agreed(self) -> bool:
        """True when those who lead after this leader will know how long its leases are."""
        return self._first_end < inf

    def longer_are_over(self, now: float) -> bool:
        """True when whatever earlier leaders granted has run out."""
        return now > self._first_end

    def may_grant(self, node: str, now: float) -> bool:
        """False before it is agreed how long, while the node is being revoked, or when it has not caught up for a whole lease."""
        behind = self._behind.get(node)
        return self.is_agreed and node not in self._revoking and (behind is None or now - behind[1] <= self.lease_s)

    def grant(self, node: str, now: float) -> None:
        """A lease is granted now; call it before the grant is sent."""
        self._ends[node] = now + self.lease_s * (1 + RATE_ERROR)

    def ends_at(self, node: str) -> float:
        """When no lease of `node` can be held any more."""
        return max(self._ends.get(node, 0.0), self._first_end)

    def overdue(self, awaited: Mapping[str, int], acknowledged: Mapping[str, int], now: float) -> list[str]:
        """Nodes that a write waits for and whose lease is over: each is to be revoked, once."""
        found = []
        for node, stamp in awaited.items():
            applied = acknowledged.get(node, 0)
            if applied >= stamp:
                self._behind.pop(node, None)
                continue
            behind = self._behind.get(node)
            if behind is None or applied >= behind[0]:
                self._behind[node] = (stamp, now)
            elif node not in self._revoking and now > self.ends_at(node) and now - behind[1] > self._patience_s:
                self._revoking.add(node)
                found.append(node)
        return found

    @property
    def behind(self) -> Stamps:
        """Nodes that have not caught up, each with the stamp it was last seen to lack."""
        return {node: stamp for node, (stamp, _) in self._behind.items()}

    def voided(self, node: str, term: int) -> None:
        """A voiding of the node was applied. Only this leader's own `Revoke`, proposed in `term`, ends the revoking."""
        if term == self.term:
            self._revoking.discard(node)
        self._behind.pop(node, None)
