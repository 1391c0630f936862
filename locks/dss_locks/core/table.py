"""The lock table: who holds each key, who waits for it, and in which order.

Theory of operation
-------------------
1. A client is one owner. It holds a key shared (with others) or exclusive (alone). It may acquire a key that it already holds:
   the lease is renewed and the token stays the same. Asking for exclusive while holding shared is an upgrade; the reverse is a
   downgrade.
2. A request names one key or several and gets either all of them or none. While it waits, it is in the queue of each of its keys.
   It is granted when nothing blocks it at any of them (`KeyLock.blockers`): no holder and no earlier waiter that it cannot share
   the key with. Shared requests therefore do not overtake an exclusive one, and there is no starvation: the oldest request waits
   for holders only.
3. An upgrade goes to the front of the queue, because every other waiter has to wait for its shared hold anyway. A request that
   depends on a lock its client holds is refused with `lock_lost` when that lock ends: the data read under it may have changed.
4. If a client repeats a request that is still waiting, both calls share one queue position. Each call has its own deadline.
5. A request that would close a cycle in the waits-for graph is refused immediately (`deadlock.py`). Nothing else can close one:
   a grant adds no edge between clients that was not there before. The one exception, an upgrade by a client that has another
   request waiting, is checked as well.
6. Time is applied time. `expire` first makes the grants that were deferred to get a new token (`holdings.py`), then refuses the
   waits that have timed out, then ends leases and lock delays, then grants. A wait that has timed out is never granted.
7. A lock that is lost, as opposed to released, may leave a lock delay (`delays.py`). A request waits for it as for a holder. It
   belongs to no client, so it is part of no cycle.

This file has the commands and the interface of a state machine. `scheduler.py` grants, ends and queues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dss_api.result import Result
from dss_locks.core import refusals
from dss_locks.core.account import FORCED_BYTES, Account, encode_meta
from dss_locks.core.commands import (
    Acquire,
    CancelWait,
    CloseSession,
    ForceRelease,
    ForceReleaseGrant,
    Release,
    Renew,
    RenewSession,
    StartSession,
)
from dss_locks.core.holdings import MODES, Holdings, matches_token
from dss_locks.core.rows import FORMAT, MetaReader, MetaWriter, decode_hold, decode_waiter, encode_hold, encode_waiter
from dss_locks.core.scheduler import LockScheduler
from dss_locks.core.state import ForcedRelease, Hold, KeyLock, LockChanged, LockLimits
from dss_locks.core.waiters import Positions, Waiters
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import StateLimits, text_bytes
from dss_raft.replication.machine import Event, Origin

#: Forced releases in the audit list. Older ones are dropped.
FORCED_RELEASES_MAX = 1000


class LockTable:
    """The state machine `locks`. See the module's theory of operation."""

    name = "locks"
    format_version = FORMAT
    commands: tuple[type[Command], ...] = (
        Acquire,
        Release,
        Renew,
        ForceRelease,
        StartSession,
        RenewSession,
        CloseSession,
        CancelWait,
        ForceReleaseGrant,
    )

    def __init__(self, limits: LockLimits | None = None, state_limits: StateLimits | None = None) -> None:
        self._events: list[Event] = []
        self.account = Account(state_limits)
        self.holdings = Holdings(limits or LockLimits(), self._events, self.account)
        self.waiters = Waiters(self.holdings)
        self.scheduler = LockScheduler(self.holdings, self.waiters, self._events)
        #: the audit list, oldest first
        self.forced_releases: list[ForcedRelease] = []
        self._handlers: dict[type[Command], Callable[[Any, int, int, Origin], Result | None]] = {
            Acquire: self._acquire,
            Release: self._release,
            Renew: self._renew,
            ForceRelease: self._force_release,
            ForceReleaseGrant: self._force_release,
            StartSession: self._start_session,
            RenewSession: self._renew_session,
            CloseSession: self._close_session,
            CancelWait: self._cancel_wait,
        }

    @property
    def locks(self) -> dict[str, KeyLock]:
        """All keys that are held or waited for."""
        return self.holdings.locks

    # -- the interface of a state machine --------------------------------------------------------------------------------------

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """See `StateMachine.apply`."""
        result = self._handlers[type(command)](command, at_ms, index, origin)
        scheduler = self.scheduler
        if scheduler.changed:
            scheduler.settle(at_ms, index)
        return result

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """See `StateMachine.cancel`."""
        caller = self.waiters.by_origin.get(waiter)
        if caller is not None:
            self.scheduler.drop_caller(caller, index, "cancelled")
        else:
            for hold in self.holdings.claims.of(waiter):
                self.scheduler.undo_grant(hold, at_ms, index)
        self.scheduler.settle(at_ms, index)

    def expire(self, at_ms: int, index: int) -> None:
        """See `StateMachine.expire`."""
        scheduler, holdings = self.scheduler, self.holdings
        if scheduler.deferred:
            scheduler.resume_deferred(at_ms, index)
        positions = Positions(self.locks)
        expired = self.waiters.pop_expired(at_ms)
        timeouts = [refusals.not_granted("wait_timeout", holdings, positions, caller.waiter, at_ms) for caller in expired]
        for caller, timeout in zip(expired, timeouts, strict=True):
            scheduler.refuse_caller(caller, index, timeout)
        for hold in holdings.pop_expired(at_ms):
            scheduler.end(hold, at_ms, index, "lost", "expired")
        for session in holdings.sessions.pop_expired(at_ms):
            scheduler.end_session(session, at_ms, index, "expired")
        for delay in holdings.delays.pop_expired(at_ms):
            self._events.append(LockChanged("delay_ended", delay.key, delay.client, MODES[delay.exclusive], 0, index))
            scheduler.changed[delay.key] = None
        scheduler.settle(at_ms, index)

    def next_deadline_ms(self) -> int | None:
        """See `StateMachine.next_deadline_ms`."""
        if self.scheduler.deferred:
            return self.scheduler.deferred_ms
        holdings = self.holdings
        earliest, wait_ms = holdings.leases.next_ms(), self.waiters.deadlines.next_ms()
        if earliest is None or (wait_ms is not None and wait_ms < earliest):
            earliest = wait_ms
        if holdings.sessions.by_id:
            session_ms = holdings.sessions.deadlines.next_ms()
            if earliest is None or (session_ms is not None and session_ms < earliest):
                earliest = session_ms
        if holdings.delays.by_key:
            delay_ms = holdings.delays.deadlines.next_ms()
            if earliest is None or (delay_ms is not None and delay_ms < earliest):
                earliest = delay_ms
        return earliest

    def rearm(self, at_ms: int, index: int) -> None:
        """See `StateMachine.rearm`."""
        holdings = self.holdings
        holdings.rearmed_ms = holdings.sessions.rearmed_ms = holdings.delays.rearmed_ms = at_ms

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """See `StateMachine.node_restarted`."""
        for caller in self.waiters.of_node(node):
            self.scheduler.drop_caller(caller, index, "node_restarted")
        self.holdings.claims.forget_node(node)
        self.scheduler.settle(at_ms, index)

    def node_removed(self, node: str, at_ms: int, index: int) -> None:
        """See `StateMachine.node_removed`."""
        self.node_restarted(node, at_ms, index)

    def take_events(self) -> list[Event]:
        """See `StateMachine.take_events`."""
        events = self._events[:]
        self._events.clear()
        return events

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        return self.account.usage()

    def snapshot(self) -> Any:
        """See `StateMachine.snapshot`."""
        metas = MetaWriter()
        locks = [[key, [encode_hold(hold, metas) for hold in lock.holds()]] for key, lock in self.locks.items()]
        waiters = [encode_waiter(waiter, metas) for waiter in self.waiters.all()]
        return {
            "format": FORMAT,
            "metas": metas.stored(),
            "locks": locks,
            "sessions": self.holdings.sessions.snapshot(),
            "delays": self.holdings.delays.snapshot(),
            "boots": self.holdings.claims.snapshot(),
            "rearmed_ms": self.holdings.rearmed_ms,
            "places": waiters,
            "last_rank": self.waiters.last_rank,
            "deferred": list(self.scheduler.deferred),
            "deferred_ms": self.scheduler.deferred_ms,
            "forced": [list(msgspec.structs.astuple(forced)) for forced in self.forced_releases],
        }

    def restore(self, state: Any) -> None:
        """See `StateMachine.restore`."""
        self.account.clear()
        metas = MetaReader(self.account, state.get("metas"))
        holds_by_key = [(key, [decode_hold(key, row, metas) for row in rows]) for key, rows in state["locks"]]
        self.holdings.sessions.restore(state["sessions"])
        # Snapshots of versions without lock delays have no "delays".
        self.holdings.delays.restore(state.get("delays") or {"rows": [], "rearmed_ms": state["rearmed_ms"]})
        self.holdings.restore(holds_by_key, state["boots"], state["rearmed_ms"])
        self.waiters.restore([decode_waiter(row, metas) for row in state["places"]], state["last_rank"])
        self.scheduler.restore(state["deferred"], state["deferred_ms"])
        self.forced_releases = [ForcedRelease(*row) for row in state["forced"]]
        self.account.forced = sum(map(_forced_bytes, self.forced_releases))
        self._events.clear()

    # -- calls from another machine's command ----------------------------------------------------------------------------------

    def holds(self, key: str, client: str, fencing_token: int) -> bool:
        """Whether the client holds the key under this token."""
        hold = self.holdings.hold_of(key, client)
        return hold is not None and hold.token == fencing_token

    def release(self, key: str, client: str, at_ms: int, index: int) -> bool:
        """Release a lock as part of another machine's command. False when the client does not hold it."""
        hold = self.holdings.hold_of(key, client)
        if hold is None:
            return False
        self.scheduler.end(hold, at_ms, index, "released")
        self.scheduler.settle(at_ms, index)
        return True

    # -- commands ------------------------------------------------------------------------------------------------------------

    def _acquire(self, command: Acquire, at_ms: int, index: int, origin: Origin) -> Result | None:
        holdings, client, key = self.holdings, command.client, command.key
        keys = [key] if key is not None else command.keys or []
        exclusive = command.mode == "exclusive"
        meta = encode_meta(command.meta) if command.meta is not None else None
        session = None
        if command.session:
            session = holdings.sessions.by_id.get(command.session)
            if session is None:
                return Result({"session": command.session}, "session_lost")
            if session.client != client:
                return Result({"field": "session", "detail": "`session` belongs to another client"}, "invalid")
        if key is not None and key not in holdings.locks and key not in holdings.delays.by_key and not holdings.has_spent():
            limit = holdings.over_limit(keys, client) or self.account.over_limit()
            if limit:
                return refusals.over_limit(holdings, limit)
            hold = holdings.grant(key, client, exclusive, at_ms, index, command.ttl_ms, meta, session, origin)
            if command.lock_delay_ms:
                hold.lock_delay_ms = command.lock_delay_ms
            expires_in_ms = command.ttl_ms or None if session is None else holdings.sessions.expires_in_ms(session.id, at_ms)
            return Result({"fencing_token": index, "expires_in_ms": expires_in_ms, "reentrant": False})
        waiter = self.waiters.new(client, keys, exclusive)
        if self.waiters.is_blocked(waiter):
            if command.wait_ms:
                return self.scheduler.enqueue(waiter, command, meta, at_ms, index, origin)
            return refusals.not_granted("held", holdings, Positions(holdings.locks), waiter, at_ms)
        if (waiter.upgrades or holdings.has_spent()) and holdings.must_defer(keys, client, exclusive, index):
            self.scheduler.defer(keys, at_ms)
            return self.scheduler.enqueue(waiter, command, meta, at_ms, index, origin)
        if waiter.upgrades and client in self.waiters.of_client and (cycle := self.waiters.cycle(waiter)):
            return self.scheduler.refuse_deadlock(waiter, cycle, at_ms, index)
        limit = holdings.over_limit(keys, client)
        if not limit and (meta is not None or len(waiter.depends_on) < len(keys)):
            limit = self.account.over_limit()
        if limit:
            return refusals.over_limit(holdings, limit)
        return Result(self.scheduler.grant_all(waiter, command, meta, session, at_ms, index, origin))

    def _release(self, command: Release, at_ms: int, index: int, origin: Origin) -> Result:
        if command.keys is not None:
            return self._release_several(command.keys, command.client, command.fencing_token, at_ms, index)
        key, token = command.key or "", command.fencing_token
        lock = self.holdings.locks.get(key)
        hold = lock.hold_of(command.client) if lock is not None else None
        if hold is not None and (token is None or hold.token == token):
            held_ms = at_ms - hold.granted_ms
            self.scheduler.end(hold, at_ms, index, "released")
            return Result({"released": True, "held_ms": held_ms})
        if token is not None and lock is not None and lock.holder_count():
            return refusals.not_holder(self.holdings, [key])
        return Result({"released": False})

    def _release_several(self, keys: list[str], client: str, token: int | None, at_ms: int, index: int) -> Result:
        mine: list[Hold] = []
        stale: list[str] = []
        for key in keys:
            hold = self.holdings.hold_of(key, client)
            if hold is not None and matches_token(hold, token, keys):
                mine.append(hold)
            elif token is not None and key in self.locks and self.locks[key].holder_count():
                stale.append(key)
        if stale and not mine:
            return refusals.not_holder(self.holdings, stale)
        body: dict[str, Any] = {"released": bool(mine)}
        for hold in mine:
            body["held_ms"] = at_ms - hold.granted_ms
            self.scheduler.end(hold, at_ms, index, "released")
        body["released_keys"] = [hold.key for hold in mine]
        return Result(body)

    def _renew(self, command: Renew, at_ms: int, index: int, origin: Origin) -> Result:
        keys = [command.key] if command.key is not None else command.keys or []
        holds: list[Hold] = []
        lost: list[str] = []
        for key in keys:
            hold = self.holdings.hold_of(key, command.client)
            if hold is not None and matches_token(hold, command.fencing_token, keys):
                holds.append(hold)
            else:
                lost.append(key)
        if lost:
            return Result({"keys": lost}, "lock_lost")
        for hold in holds:
            self.holdings.renew(hold, at_ms, hold.ttl_ms if command.ttl_ms is None else command.ttl_ms)
        left = [ms for hold in holds if (ms := self.holdings.expires_in_ms(hold, at_ms)) is not None]
        token = max(hold.token for hold in holds)
        return Result({"fencing_token": token, "expires_in_ms": min(left) if left else None})

    def _force_release(self, command: ForceRelease | ForceReleaseGrant, at_ms: int, index: int, origin: Origin) -> Result:
        lock = self.locks.get(command.key)
        holds = [hold for hold in lock.holds() if command.client in ("", hold.client)] if lock is not None else []
        if isinstance(command, ForceReleaseGrant):
            holds = [hold for hold in holds if hold.token == command.fencing_token]
        for hold in holds:
            forced = ForcedRelease(index, at_ms, hold.key, hold.client, hold.token, command.reason, command.by)
            self.forced_releases.append(forced)
            self.account.forced += _forced_bytes(forced)
            self.scheduler.end(hold, at_ms, index, "lost", "forced", command.reason)
        self.account.forced -= sum(map(_forced_bytes, self.forced_releases[:-FORCED_RELEASES_MAX]))
        del self.forced_releases[:-FORCED_RELEASES_MAX]
        return Result({"released": bool(holds), "holders": [{"client": h.client, "fencing_token": h.token} for h in holds]})

    def _cancel_wait(self, command: CancelWait, at_ms: int, index: int, origin: Origin) -> Result:
        own = self.waiters.of_client.get(command.client, ())
        waiter = next((one for one in own if one.rank == command.place), None)
        if waiter is None:
            return Result({"cancelled": False})
        refusal = refusals.not_granted("wait_timeout", self.holdings, Positions(self.locks), waiter, at_ms)
        refusal.body["detail"] = f"{command.by or 'an operator'} has ended the wait: {command.reason}"
        for caller in waiter.callers[:]:
            self.scheduler.refuse_caller(caller, index, refusal)
        return Result({"cancelled": True})

    def _start_session(self, command: StartSession, at_ms: int, index: int, origin: Origin) -> Result:
        sessions = self.holdings.sessions
        limits = self.holdings.limits
        if len(sessions.by_id) >= limits.sessions_max:
            limit = "sessions_max"
        elif sessions.of_client.get(command.client, 0) >= limits.sessions_per_client_max:
            limit = "sessions_per_client_max"
        else:
            limit = self.account.over_limit()
        if limit:
            return refusals.over_limit(self.holdings, limit)
        session = sessions.start(command.client, command.ttl_ms, at_ms, index)
        return Result({"session": session.id, "expires_in_ms": session.ttl_ms})

    def _renew_session(self, command: RenewSession, at_ms: int, index: int, origin: Origin) -> Result:
        session = self.holdings.sessions.by_id.get(command.session)
        if session is None:
            return Result({"session": command.session}, "session_lost")
        self.holdings.sessions.renew(session, at_ms, session.ttl_ms if command.ttl_ms is None else command.ttl_ms)
        return Result({"expires_in_ms": session.ttl_ms, "keys_held": len(session.keys)})

    def _close_session(self, command: CloseSession, at_ms: int, index: int, origin: Origin) -> Result:
        session = self.holdings.sessions.by_id.get(command.session)
        if session is None:
            return Result({"closed": False, "released_keys": []})
        return Result({"closed": True, "released_keys": self.scheduler.end_session(session, at_ms, index, "closed")})


def _forced_bytes(forced: ForcedRelease) -> int:
    return FORCED_BYTES + sum(map(text_bytes, (forced.key, forced.client, forced.reason, forced.by)))
