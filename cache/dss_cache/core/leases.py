"""Acknowledgements and leases: how far each node has applied the log, and how long a node may answer from its lines.

Both are volatile, and each node has its own.

*Acknowledgements.* Each node records up to which directory stamp every other node has applied the log. These are facts about
the past: they may be repeated, late or out of order, and the highest stamp counts. A committed `Revoke` or a restart counts as
an acknowledgement, too.

*Leases* (Gray and Cheriton, 1989). A node answers from its lines only while it holds a coherence lease of length L, so a write
does not wait without end for a node that is cut off. No clocks are compared. The only assumption is that all clocks run at about the
same rate (within `RATE_ERROR`).

- L is the leader's own setting and is part of the grant. The holder counts from when it *sent* the request: its lease ends
  L(1 - e) - margin later.
- The leader counts from when it *granted*, which is later: for the leader, the lease ends L(1 + e) later.
- The leader grants only after a quorum has confirmed its leadership since the request came in. So a leader that was deposed
  without knowing it cannot grant a lease after its successor was elected.
- A new leader assumes that every node holds a lease until L(1 + e) after its election. Here L is the longest lease that any
  earlier leader may have granted: each leader puts its own L into the log before its first grant (`AgreeLease`). When the
  leader has waited for the longer leases, it may record that they are over.
- The grant contains the leader's commit index. The holder can use it only when it has applied the log that far. A `Revoke` of
  the holder, and every write that was answered because of it, is among those entries.

*Revoking.* When a write waits for a node whose lease is over, the leader proposes `Revoke(node)`, and grants that node nothing
until this very `Revoke` has been applied. If the node is voided by its restart or by an earlier leader, that is not enough: a
grant could then have an index before the `Revoke`, which would void what the node fetches before it while the lease is valid. A
node that renews its lease but has not caught up for a whole L is granted nothing either, so that no write waits forever.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from math import inf
from typing import Generic, TypeVar

from dss_cache.core.commands import AgreeLease
from dss_cache.core.events import Stamps

T = TypeVar("T")

#: How much faster or slower than another a clock may run.
RATE_ERROR = 0.01
#: Additional part of L that the holder does not use, in case clocks differ by more.
MARGIN = 0.05
#: How long a node whose lease is over has to acknowledge a write before it is revoked (part of L, and maximum in seconds).
GRACE, GRACE_S_MAX = 0.25, 0.2


class Acknowledgements(Generic[T]):
    """Up to which stamp each node has applied the log, and who waits for that.

    A waiter is any token of the caller; `advance` returns those that are done.
    """

    def __init__(self) -> None:
        self.applied: Stamps = {}
        self._waiting: dict[str, list[tuple[int, int, list[int], T]]] = {}
        self._count = 0

    def covers(self, pending: Mapping[str, int]) -> bool:
        """True if each of the nodes has applied the log up to its stamp."""
        applied = self.applied
        for node, stamp in pending.items():  # noqa: SIM110  (on the path of every write; a generator costs more)
            if applied.get(node, 0) < stamp:
                return False
        return True

    def missing(self, pending: Mapping[str, int]) -> dict[str, int]:
        """The nodes that have not applied that far yet."""
        return {node: stamp for node, stamp in pending.items() if self.applied.get(node, 0) < stamp}

    def wait(self, pending: Mapping[str, int], token: T) -> bool:
        """Have `advance` return `token` when `pending` is covered. False: it is covered already."""
        missing = self.missing(pending)
        left = [len(missing)]
        for node, stamp in missing.items():
            self._count += 1
            heapq.heappush(self._waiting.setdefault(node, []), (stamp, self._count, left, token))
        return bool(missing)

    def advance(self, node: str, stamp: int) -> list[T]:
        """`node` has applied the log up to `stamp`. Returns the waiters that are done."""
        if self.applied.get(node, 0) >= stamp:
            return []
        self.applied[node] = stamp
        done = []
        waiting = self._waiting.get(node)
        while waiting and waiting[0][0] <= stamp:
            _, _, left, token = heapq.heappop(waiting)
            left[0] -= 1
            if not left[0]:
                done.append(token)
        return done

    def awaited(self) -> Stamps:
        """For each node that has waiters, the highest stamp they wait for."""
        return {node: max(stamp for stamp, *_ in waiting) for node, waiting in self._waiting.items() if waiting}


class HeldLease:
    """This node's own lease.

    Args:
        lease_s: the expected length of the first lease.
    """

    def __init__(self, lease_s: float) -> None:
        #: L of the latest grant
        self.length_s = lease_s
        #: lines may be used before this time; 0: no lease
        self.valid_until = 0.0
        self._token = 0
        self._requested_at: dict[int, float] = {}
        #: grants that become usable when `must_apply` is applied: (must_apply, until)
        self._not_usable_yet: list[tuple[int, float]] = []

    def request(self, now: float) -> int:
        """A request is sent now. Returns its token."""
        self._token += 1
        self._requested_at = {token: sent for token, sent in self._requested_at.items() if now - sent < self.length_s}
        self._requested_at[self._token] = now
        return self._token

    def granted(self, token: int, must_apply: int, lease_s: float) -> None:
        """The leader granted the request `token`; the grant takes effect with the next call of `applied`."""
        sent_at = self._requested_at.pop(token, None)
        if sent_at is not None:
            self.length_s = lease_s
            self._not_usable_yet.append((must_apply, sent_at + lease_s * (1 - RATE_ERROR - MARGIN)))

    def applied(self, index: int) -> None:
        """This node has applied the log up to `index`: grants up to there become usable."""
        if not self._not_usable_yet:
            return
        for must_apply, until in self._not_usable_yet:
            if must_apply <= index:
                self.valid_until = max(self.valid_until, until)
        self._not_usable_yet = [grant for grant in self._not_usable_yet if grant[0] > index]

    def forget(self) -> None:
        """Drop the lease, and ignore the answers to earlier requests."""
        self.valid_until = 0.0
        self._requested_at.clear()
        self._not_usable_yet.clear()


class GrantedLeases:
    """The leases that a leader has granted. Only the leader of the term given to `lead` may use it.

    Args:
        lease_s: L of this leader's grants, in seconds.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._grace_s = min(lease_s * GRACE, GRACE_S_MAX)
        self.term = 0
        self._elected_at = 0.0
        self._is_proposed = False
        #: all leases of earlier leaders are over by then
        self._earlier_end = inf
        self._ends: dict[str, float] = {}
        self._revoking: set[str] = set()
        #: node: (the stamp it has not applied, since when)
        self._behind: dict[str, tuple[int, float]] = {}

    def lead(self, term: int, now: float) -> None:
        """This node leads in `term` from now on. Leases that earlier leaders granted may still be held, for an unknown time."""
        self.term = term
        self._elected_at = now
        self._is_proposed = False
        self._earlier_end = inf
        self._ends.clear()
        self._revoking.clear()
        self._behind.clear()

    @property
    def lease_ms(self) -> int:
        """L of this leader's grants, in milliseconds."""
        return round(self.lease_s * 1000)

    def next_proposal(self, longest_ms: int, now: float) -> AgreeLease | None:
        """What the leader has to propose now: the length of its leases, before the first grant and again when longer ones are over.

        Args:
            longest_ms: the longest lease according to the log.
        """
        if self._is_proposed or (self.is_agreed and (longest_ms == self.lease_ms or not self.longer_are_over(now))):
            return None
        return AgreeLease(lease_ms=self.lease_ms, term=self.term, longer_are_over=self.is_agreed)

    def proposed(self) -> None:
        """`next_proposal` was proposed."""
        self._is_proposed = True

    def agreed(self, term: int, longest_ms: int) -> None:
        """It was committed that no leader up to that of `term` has granted, or will grant, longer leases."""
        if term == self.term:
            self._is_proposed = False
            self._earlier_end = self._elected_at + longest_ms / 1000 * (1 + RATE_ERROR)

    @property
    def is_agreed(self) -> bool:
        """True if later leaders will know how long this leader's leases are."""
        return self._earlier_end < inf

    def longer_are_over(self, now: float) -> bool:
        """True if all leases of earlier leaders are over."""
        return now > self._earlier_end

    def may_grant(self, node: str, now: float) -> bool:
        """False before the length is agreed, while the node is being revoked, or if it has not caught up for a whole lease."""
        behind = self._behind.get(node)
        return self.is_agreed and node not in self._revoking and (behind is None or now - behind[1] <= self.lease_s)

    def grant(self, node: str, now: float) -> None:
        """A lease is granted now. Call this before the grant is sent."""
        self._ends[node] = now + self.lease_s * (1 + RATE_ERROR)

    def ends_at(self, node: str) -> float:
        """The time from which `node` cannot hold a lease."""
        return max(self._ends.get(node, 0.0), self._earlier_end)

    def overdue(self, awaited: Mapping[str, int], acknowledged: Mapping[str, int], now: float) -> list[str]:
        """Nodes that a write waits for and whose lease is over. Each is returned once, to be revoked."""
        found = []
        for node, stamp in awaited.items():
            applied = acknowledged.get(node, 0)
            if applied >= stamp:
                self._behind.pop(node, None)
                continue
            behind = self._behind.get(node)
            if behind is None or applied >= behind[0]:
                self._behind[node] = (stamp, now)
            elif node not in self._revoking and now > self.ends_at(node) and now - behind[1] > self._grace_s:
                self._revoking.add(node)
                found.append(node)
        return found

    @property
    def behind(self) -> Stamps:
        """Nodes that have not caught up, each with the stamp that it lacked last."""
        return {node: stamp for node, (stamp, _) in self._behind.items()}

    def voided(self, node: str, term: int) -> None:
        """The node was voided. Only this leader's own `Revoke`, proposed in its term, ends the revocation."""
        if term == self.term:
            self._revoking.discard(node)
        self._behind.pop(node, None)
