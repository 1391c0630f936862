"""Holds: grants, leases and fencing tokens. Queues are in `waiters.py`.

A lease starts at its last grant or renewal, or at the last change of leader if that was later. So `rearm` is one assignment.

A fencing token is a Raft index, and one log entry contains many commands. Shared holders granted in the same entry may have the
same token. Any other second grant of a key in one entry would repeat a token, or need one that is not the index. Such a grant is
deferred to the next entry (`must_defer`), which the leader proposes immediately.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from dss_locks.core.account import Account, hold_bytes
from dss_locks.core.claims import Claims
from dss_locks.core.delays import LockDelays
from dss_locks.core.sessions import LockSession, Sessions, count_down
from dss_locks.core.state import Hold, KeyLock, LockChanged, LockLimits
from dss_raft.replication.deadlines import Deadlines
from dss_raft.replication.machine import Event, Origin

MODES = ("shared", "exclusive")


class Holdings:
    """The holds of all keys."""

    def __init__(self, limits: LockLimits, events: list[Event], account: Account) -> None:
        self.limits = limits
        self.account = account
        self.locks: dict[str, KeyLock] = {}
        #: client -> number of keys that it holds
        self.clients: dict[str, int] = {}
        #: client -> number of keys it holds that have a queue; no one waits for the holds of a client that is not in it
        self.contended: dict[str, int] = {}
        #: number of holds: shared, exclusive
        self.held = [0, 0]
        self.claims = Claims()
        self.sessions = Sessions(account)
        self.delays = LockDelays(account)
        self.leases: Deadlines[Hold] = Deadlines(self.deadline_ms, attrgetter("token", "key", "client"))
        #: when the present leader took over
        self.rearmed_ms = 0
        self.events = events
        #: keys that were granted and ended in the entry `_spent_index` -> whether one of these holds was exclusive
        self._spent: dict[str, bool] = {}
        self._spent_index = 0

    def deadline_ms(self, hold: Hold) -> int:
        """When the lease ends. Only for a hold with `ttl_ms` > 0."""
        since_ms, rearmed_ms = hold.since_ms, self.rearmed_ms
        return (since_ms if since_ms > rearmed_ms else rearmed_ms) + hold.ttl_ms

    def expires_in_ms(self, hold: Hold, at_ms: int) -> int | None:
        """The remaining lease, its own or that of its session; None: held until released."""
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
        encoded_meta: bytes | None,
        session: LockSession | None,
        claimant: Origin | None,
    ) -> Hold:
        """Add a holder. The caller has checked that nothing blocks it. In a session it has no lease of its own."""
        account = self.account
        meta = account.use_meta(encoded_meta) if encoded_meta is not None else None
        account.holds += hold_bytes(key, client)
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
                self.contended[client] = self.contended.get(client, 0) + 1
        self.clients[client] = self.clients.get(client, 0) + 1
        self.held[exclusive] += 1
        if ttl_ms:
            # This is its `deadline_ms`, as `rearmed_ms` is not later than now.
            self.leases.add(hold, at_ms + ttl_ms)
        if claimant is not None:
            self.claims.add(claimant, hold)
        self.events.append(LockChanged("granted", key, client, MODES[exclusive], index, index))
        return hold

    def upgrade(self, hold: Hold, index: int, claimant: Origin | None) -> None:
        """From shared to exclusive, with a new token: other shared holders may have had a higher token than this one."""
        token_before, hold.token = hold.token, index
        self._set_mode(hold, True)
        if claimant is not None:
            self.claims.add(claimant, hold, token_before)
        self.events.append(LockChanged("granted", hold.key, hold.client, "exclusive", index, index, reason="upgraded"))

    def downgrade(self, hold: Hold, index: int, reason: str = "downgraded") -> None:
        """From exclusive to shared, with the same token."""
        if hold.token == index:
            self._spend(hold, index)
        self._set_mode(hold, False)
        self.events.append(LockChanged("granted", hold.key, hold.client, "shared", hold.token, index, reason=reason))

    def bind(self, hold: Hold, session: LockSession | None) -> None:
        """Move the hold into `session`; None: out of any session."""
        self._unbind(hold)
        if session is not None:
            hold.session = session.id
            session.keys[hold.key] = None

    def change_meta(self, hold: Hold, encoded: bytes) -> None:
        """Replace the metadata of a hold."""
        meta = self.account.use_meta(encoded)
        if hold.meta is not None:
            self.account.drop_meta(hold.meta)
        hold.meta = meta

    def renew(self, hold: Hold, at_ms: int, ttl_ms: int) -> None:
        """Renew the lease. The client has acted on the lock, so the grant can no longer be cancelled."""
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
        """Remove a hold. Returns the state of its key."""
        key, client = hold.key, hold.client
        lock = self.locks[key]
        lock.remove(hold)
        count_down(self.clients, client)
        self.held[hold.exclusive] -= 1
        account = self.account
        account.holds -= hold_bytes(key, client)
        if hold.meta is not None:
            account.drop_meta(hold.meta)
        if hold.ttl_ms:
            self.leases.discard(hold)
        if hold.claim_seq:
            self.claims.drop(hold)
        if hold.session:
            self._unbind(hold)
        if hold.token == index:
            self._spend(hold, index)
        if lock.queue is not None:
            count_down(self.contended, client)
        elif lock.holder is None and lock.sharers is None:
            del self.locks[key]
        return lock

    def queue_began(self, lock: KeyLock) -> None:
        """Count a key that now has a queue."""
        for hold in lock.holds():
            self.contended[hold.client] = self.contended.get(hold.client, 0) + 1

    def queue_ended(self, lock: KeyLock) -> None:
        """Discount a key that no longer has a queue."""
        for hold in lock.holds():
            count_down(self.contended, hold.client)

    def undo_upgrade(self, hold: Hold, index: int) -> None:
        """Undo an upgrade: the client holds the key shared again, with its previous token."""
        if hold.token == index:
            self._spend(hold, index)
        hold.token = hold.token_before
        self.claims.drop(hold)
        self.downgrade(hold, index, "cancelled")

    def pop_expired(self, at_ms: int) -> list[Hold]:
        """The holds whose lease has expired, in an order that is the same on every node. The caller must remove them."""
        return self.leases.pop_due(at_ms)

    def must_defer(self, keys: Sequence[str], client: str, exclusive: bool, index: int) -> bool:
        """Whether granting these keys in this entry would give the same token to two grants that exclude each other."""
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
        """False if no hold of this entry has ended in it: then only an upgrade may have to be deferred."""
        return bool(self._spent)

    def over_limit(self, keys: Sequence[str], client: str) -> str:
        """The name of the limit that granting `keys` would exceed; "" if none."""
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
        """All holds, in the order of the table."""
        for lock in self.locks.values():
            yield from lock.holds()

    def restore(self, holds_by_key: list[tuple[str, list[Hold]]], incarnations: dict[str, int], rearmed_ms: int) -> None:
        """Replace everything except the sessions, which must have been restored before.

        The account has the uses of the metadata already.
        """
        self.rearmed_ms = rearmed_ms
        self.locks, self.clients, self.contended, self.held = {}, {}, {}, [0, 0]
        self._spent.clear()
        for key, holds in holds_by_key:
            lock = self.locks[key] = KeyLock()
            for hold in holds:
                lock.add(hold)
                self.clients[hold.client] = self.clients.get(hold.client, 0) + 1
                self.held[hold.exclusive] += 1
                self.account.holds += hold_bytes(key, hold.client)
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


def matches_token(hold: Hold, token: int | None, keys: Sequence[str]) -> bool:
    """Whether `token` names this hold. A call for several keys gives the highest of their tokens."""
    return token is None or hold.token == token or (len(keys) > 1 and hold.token < token)
