"""Who holds what: grants, leases and fencing tokens. It knows nothing of queues.

A lease counts from its last grant or renewal, or from the last change of leader if that was later: so `rearm` is one assignment.

Fencing tokens are Raft indexes, and an entry holds many commands. Shared holders of one entry may have the same token. Any other
second grant of a key within one entry would repeat a token, or let it run ahead of the index; such a grant is put off to the next
entry (`must_defer`), which the leader proposes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dss_locks.core.claims import Claims
from dss_locks.core.deadlines import Deadlines
from dss_locks.core.delays import Delays
from dss_locks.core.sessions import Session, Sessions, count_down
from dss_locks.core.state import Hold, KeyLock, Limits, LockChanged
from dss_raft.replication.machine import Event, Origin

MODES = ("shared", "exclusive")


class Holdings:
    """The holds of all keys."""

    def __init__(self, limits: Limits, events: list[Event]) -> None:
        self.limits = limits
        self.locks: dict[str, KeyLock] = {}
        #: keys held, by client
        self.clients: dict[str, int] = {}
        #: client -> how many of the keys it holds have a queue; nobody waits for the holds of a client that is not in it
        self.in_demand: dict[str, int] = {}
        #: holds: shared, exclusive
        self.held = [0, 0]
        self.claims = Claims()
        self.sessions = Sessions()
        self.delays = Delays()
        self.leases: Deadlines[Hold] = Deadlines(self.deadline_ms)
        #: when the present leader took over
        self.rearmed_ms = 0
        self.events = events
        #: keys whose grant in entry `_spent_index` is over already -> whether it was exclusive
        self._spent: dict[str, bool] = {}
        self._spent_index = 0

    def deadline_ms(self, hold: Hold) -> int:
        """When the lease ends (only for a hold with `ttl_ms` > 0)."""
        since_ms, rearmed_ms = hold.since_ms, self.rearmed_ms
        return (since_ms if since_ms > rearmed_ms else rearmed_ms) + hold.ttl_ms

    def expires_in_ms(self, hold: Hold, at_ms: int) -> int | None:
        """What is left of the lease, its own or its session's; None: until released."""
        if hold.session:
            return self.sessions.expires_in_ms(hold.session, at_ms)
        return max(0, self.deadline_ms(hold) - at_ms) if hold.ttl_ms else None

    def hold_of(self, key: str, client: str) -> Hold | None:
        lock = self.locks.get(key)
        return None if lock is None else lock.hold_of(client)

    def grant(
        self,
        key: str,
        client: str,
        exclusive: bool,
        at_ms: int,
        index: int,
        ttl_ms: int,
        meta: Any,
        session: Session | None,
        claimant: Origin | None,
    ) -> Hold:
        """A new holder. That it may have the key, the caller has made sure of. In a session it has no lease of its own."""
        if session is None:
            hold = Hold(key, client, exclusive, index, at_ms, ttl_ms, at_ms, meta)
        else:
            ttl_ms = 0
            hold = Hold(key, client, exclusive, index, at_ms, 0, at_ms, meta, session.id)
            session.keys[key] = None
        lock = self.locks.get(key)
        if lock is None:
            self.locks[key] = KeyLock(hold)
        else:
            lock.add(hold)
            if lock.queue is not None:
                self.in_demand[client] = self.in_demand.get(client, 0) + 1
        self.clients[client] = self.clients.get(client, 0) + 1
        self.held[exclusive] += 1
        if ttl_ms:
            # Its `deadline_ms`: no leader took over later than now.
            self.leases.add(hold, at_ms + ttl_ms)
        if claimant is not None:
            self.claims.add(claimant, hold)
        self.events.append(LockChanged("granted", key, client, MODES[exclusive], index, index))
        return hold

    def upgrade(self, hold: Hold, index: int, claimant: Origin | None) -> None:
        """Shared to exclusive, with a new token: other shared holders may have had a later one than this."""
        token_before, hold.token = hold.token, index
        self._set_mode(hold, True)
        if claimant is not None:
            self.claims.add(claimant, hold, token_before)
        self.events.append(LockChanged("granted", hold.key, hold.client, "exclusive", index, index, reason="upgraded"))

    def downgrade(self, hold: Hold, index: int, reason: str = "downgraded") -> None:
        """Exclusive to shared, with the same token."""
        if hold.token == index:
            self._spend(hold, index)
        self._set_mode(hold, False)
        self.events.append(LockChanged("granted", hold.key, hold.client, "shared", hold.token, index, reason=reason))

    def bind(self, hold: Hold, session: Session | None) -> None:
        """From now on it ends with `session`; None: it has a lease of its own."""
        self._unbind(hold)
        if session is not None:
            hold.session = session.id
            session.keys[hold.key] = None

    def renew(self, hold: Hold, at_ms: int, ttl_ms: int) -> None:
        """Start the lease anew. The client has acted on the lock, so its grant is not taken back any more."""
        if hold.claim_seq:
            self.claims.drop(hold)
        if hold.session:
            ttl_ms = 0
        had_lease, old_ttl_ms = hold.ttl_ms != 0, hold.ttl_ms
        old_deadline_ms = self.deadline_ms(hold)
        hold.since_ms, hold.ttl_ms = at_ms, ttl_ms
        if not ttl_ms:
            self.leases.discard(hold)
        elif not had_lease:
            self.leases.add(hold, self.deadline_ms(hold))
        elif ttl_ms < old_ttl_ms and self.deadline_ms(hold) < old_deadline_ms:
            self.leases.moved_forward(hold, self.deadline_ms(hold))

    def remove(self, hold: Hold, index: int) -> KeyLock:
        """The end of a hold."""
        key, client = hold.key, hold.client
        lock = self.locks[key]
        lock.remove(hold)
        count_down(self.clients, client)
        self.held[hold.exclusive] -= 1
        if hold.ttl_ms:
            self.leases.discard(hold)
        if hold.claim_seq:
            self.claims.drop(hold)
        if hold.session:
            self._unbind(hold)
        if hold.token == index:
            self._spend(hold, index)
        if lock.queue is not None:
            count_down(self.in_demand, client)
        elif lock.holder is None and lock.sharers is None:
            del self.locks[key]
        return lock

    def queue_began(self, lock: KeyLock) -> None:
        """A key has its first waiter."""
        for hold in lock.holds():
            self.in_demand[hold.client] = self.in_demand.get(hold.client, 0) + 1

    def queue_ended(self, lock: KeyLock) -> None:
        """A key has no waiter any more."""
        for hold in lock.holds():
            count_down(self.in_demand, hold.client)

    def take_back_upgrade(self, hold: Hold, index: int) -> None:
        """Undo an upgrade: the client holds the key as it did before, with the token it had."""
        if hold.token == index:
            self._spend(hold, index)
        hold.token = hold.token_before
        self.claims.drop(hold)
        self.downgrade(hold, index, "cancelled")

    def take_overdue(self, at_ms: int) -> list[Hold]:
        """The holds whose lease has run out, in an order that is the same everywhere. They are to be removed."""
        holds = self.leases.pop_due(at_ms)
        holds.sort(key=lambda hold: (self.deadline_ms(hold), hold.token, hold.key, hold.client))
        return holds

    def must_defer(self, keys: Sequence[str], client: str, exclusive: bool, index: int) -> bool:
        """True when granting these keys in this entry would give a key's token to two grants that exclude each other."""
        spent = self._spent
        if spent and self._spent_index != index:
            spent.clear()
        for key in keys:
            hold = self.hold_of(key, client)
            if hold is not None:
                if hold.exclusive or not exclusive:
                    continue
                if hold.token == index:
                    return True
            if key in spent and (exclusive or spent[key]):
                return True
        return False

    def has_spent(self) -> bool:
        """False: no grant of the present entry is over, so only an upgrade may have to be deferred."""
        return bool(self._spent)

    def over_limit(self, keys: Sequence[str], client: str) -> str:
        """The name of the limit that granting `keys` would break; "" when none."""
        limits, locks = self.limits, self.locks
        for key in keys:
            lock = locks.get(key)
            if lock is None or (sharers := lock.sharers) is None:
                continue
            if len(sharers) >= limits.holders_per_key_max and client not in sharers:
                return "holders_per_key_max"
        held, own = self.held[0] + self.held[1] + len(self.delays.by_key), self.clients.get(client, 0)
        if held + len(keys) <= limits.holds_max and own + len(keys) <= limits.holds_per_client_max:
            return ""
        new = sum(self.hold_of(key, client) is None for key in keys)
        if held + new > limits.holds_max:
            return "holds_max"
        return "holds_per_client_max" if own + new > limits.holds_per_client_max else ""

    def all(self) -> Iterator[Hold]:
        """Every hold, in the order of the table."""
        for lock in self.locks.values():
            yield from lock.holds()

    def restore(self, holds_by_key: list[tuple[str, list[Hold]]], incarnations: dict[str, int], rearmed_ms: int) -> None:
        """Replace everything but the sessions, which have been restored before."""
        self.rearmed_ms = rearmed_ms
        self.locks, self.clients, self.in_demand, self.held = {}, {}, {}, [0, 0]
        self._spent.clear()
        for key, holds in holds_by_key:
            lock = self.locks[key] = KeyLock()
            for hold in holds:
                lock.add(hold)
                self.clients[hold.client] = self.clients.get(hold.client, 0) + 1
                self.held[hold.exclusive] += 1
        for hold in self.all():
            if hold.session:
                self.sessions.by_id[hold.session].keys[hold.key] = None
        self.claims.restore(incarnations, self.all())
        self.leases.rebuild(hold for hold in self.all() if hold.ttl_ms)

    def _unbind(self, hold: Hold) -> None:
        if hold.session:
            del self.sessions.by_id[hold.session].keys[hold.key]
            hold.session = ""

    def _set_mode(self, hold: Hold, exclusive: bool) -> None:
        self.held[hold.exclusive] -= 1
        hold.exclusive = exclusive
        self.held[exclusive] += 1

    def _spend(self, hold: Hold, index: int) -> None:
        if self._spent_index != index:
            self._spent.clear()
            self._spent_index = index
        self._spent[hold.key] = hold.exclusive or self._spent.get(hold.key, False)
