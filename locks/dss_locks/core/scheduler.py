"""Grants, ends and queues: the steps of the lock table that change holders and waiters together.

Every step marks the keys where a waiter may have become grantable (`changed`). `settle` then grants those that are, in order of
arrival, until nothing more can be granted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from dss_api.result import Result
from dss_locks.core import refusals
from dss_locks.core.commands import Acquire
from dss_locks.core.holdings import MODES, Holdings
from dss_locks.core.sessions import LockSession
from dss_locks.core.state import Caller, Hold, LockChanged, LockEventKind, LockWaiter, RefusedDeadlock, SessionEnded
from dss_locks.core.waiters import Waiters
from dss_raft.replication.machine import Event, Origin, Resolved

#: Refused deadlocks that a node remembers, and steps of each one's cycle.
REFUSED_DEADLOCKS_MAX = 100
CYCLE_STEPS_KEPT_MAX = 50


class LockScheduler:
    """Decides which waiting request is granted next.

    Args:
        events: where it adds its events; shared with `holdings`.
    """

    def __init__(self, holdings: Holdings, waiters: Waiters, events: list[Event]) -> None:
        self.holdings = holdings
        self.waiters = waiters
        self._events = events
        #: keys where a waiter may have become grantable
        self.changed: dict[str, None] = {}
        #: keys where a grant was deferred to the next entry, and the stamp of the entry that deferred it
        self.deferred: dict[str, None] = {}
        self.deferred_ms = 0
        #: the last ones that this node has applied, oldest first; for people only: not part of the state
        self.refused_deadlocks: deque[RefusedDeadlock] = deque(maxlen=REFUSED_DEADLOCKS_MAX)

    def restore(self, deferred: Iterable[str], deferred_ms: int) -> None:
        """Replace everything."""
        self.changed.clear()
        self.deferred, self.deferred_ms = dict.fromkeys(deferred), deferred_ms

    def defer(self, keys: list[str], at_ms: int) -> None:
        """Have the next entry grant these keys, so that the grant gets a new token."""
        self.deferred.update(dict.fromkeys(keys))
        self.deferred_ms = at_ms

    def resume_deferred(self, at_ms: int, index: int) -> None:
        """Make the grants that the last entry deferred."""
        self.changed.update(self.deferred)
        self.deferred.clear()
        self.settle(at_ms, index)

    # -- granting and ending -------------------------------------------------------------------------------------------------

    def grant_all(
        self,
        waiter: LockWaiter,
        request: Acquire | Caller,
        meta: bytes | None,
        session: LockSession | None,
        at_ms: int,
        index: int,
        claimant: Origin | None,
    ) -> dict[str, Any]:
        """Grant `waiter` all its keys, with the lease of `request` and the encoded `meta`. Returns the body of the answer."""
        holdings, client, exclusive = self.holdings, waiter.client, waiter.exclusive
        ttl_ms = request.ttl_ms
        reentrant = True
        highest = 0
        tokens: dict[str, int] = {}
        for key in waiter.keys:
            hold = holdings.hold_of(key, client)
            if hold is None:
                reentrant = False
                hold = holdings.grant(key, client, exclusive, at_ms, index, ttl_ms, meta, session, claimant)
            else:
                holdings.bind(hold, session)
                holdings.renew(hold, at_ms, ttl_ms)
                if meta is not None:
                    holdings.change_meta(hold, meta)
                if exclusive and not hold.exclusive:
                    reentrant = False
                    holdings.upgrade(hold, index, claimant)
                elif hold.exclusive and not exclusive:
                    holdings.downgrade(hold, index)
                    self._refuse_dependents(client, key, index, only_exclusive=True)
                    self.changed[key] = None
            hold.lock_delay_ms = request.lock_delay_ms
            tokens[key] = token = hold.token
            if token > highest:
                highest = token
        expires_in_ms = holdings.sessions.expires_in_ms(session.id, at_ms) if session is not None else ttl_ms or None
        body: dict[str, Any] = {"fencing_token": highest, "expires_in_ms": expires_in_ms, "reentrant": reentrant}
        if len(tokens) > 1:
            body["fencing_tokens"] = tokens
        return body

    def end(
        self, hold: Hold, at_ms: int, index: int, kind: Literal["released", "lost"], reason: str = "", detail: str = ""
    ) -> None:
        """End a hold, and mark its key if other requests wait for it."""
        holdings, key, client, exclusive = self.holdings, hold.key, hold.client, hold.exclusive
        lock = holdings.remove(hold, index)
        delay_ms = hold.lock_delay_ms if kind == "lost" else 0
        if delay_ms:
            holdings.delays.add(key, client, exclusive, at_ms, delay_ms)
        self._events.append(
            LockChanged(
                kind, key, client, MODES[exclusive], hold.token, index, 0, reason, detail, at_ms - hold.granted_ms, delay_ms
            )
        )
        if self.waiters.dependents:
            self._refuse_dependents(client, key, index)
        if lock.queue is not None:
            self.changed[key] = None

    def end_session(self, session: LockSession, at_ms: int, index: int, reason: Literal["expired", "closed"]) -> list[str]:
        """End a session: refuse its waiting calls and end its locks. Returns their keys."""
        for waiter in list(self.waiters.of_client.get(session.client, ())):
            for caller in [caller for caller in waiter.callers if caller.session == session.id]:
                self.refuse_caller(caller, index, Result({"session": session.id}, "session_lost"))
        keys = sorted(session.keys)
        for key in keys:
            hold = self.holdings.hold_of(key, session.client)
            assert hold is not None
            if reason == "closed":
                self.end(hold, at_ms, index, "released", "session_closed")
            else:
                self.end(hold, at_ms, index, "lost", "session_lost")
        self.holdings.sessions.forget(session)
        self._events.append(SessionEnded(session.id, session.client, reason, index))
        return keys

    def undo_grant(self, hold: Hold, at_ms: int, index: int) -> None:
        """Undo a grant whose answer did not reach its caller: an upgrade becomes shared again, any other hold ends."""
        if not hold.token_before:
            self.end(hold, at_ms, index, "released", "cancelled")
            return
        self.holdings.undo_upgrade(hold, index)
        self._refuse_dependents(hold.client, hold.key, index, only_exclusive=True)
        self.changed[hold.key] = None

    def _refuse_dependents(self, client: str, key: str, index: int, only_exclusive: bool = False) -> None:
        """Refuse the client's waiting requests that depend on its hold of `key` (`only_exclusive`: on holding it exclusive)."""
        for waiter in list(self.waiters.dependents.get((client, key), ())):
            if not only_exclusive or (waiter.exclusive and key not in waiter.upgrades):
                for caller in waiter.callers[:]:
                    self.refuse_caller(caller, index, Result({"keys": [key]}, "lock_lost"))

    # -- waiting -------------------------------------------------------------------------------------------------------------

    def enqueue(
        self, waiter: LockWaiter, command: Acquire, meta: bytes | None, at_ms: int, index: int, origin: Origin
    ) -> Result | None:
        """Queue a request. A result means that it was refused instead."""
        waiters = self.waiters
        same = waiters.same_as(waiter)
        limit = waiters.over_limit(same or waiter) or self.holdings.account.over_limit()
        if limit:
            return refusals.over_limit(self.holdings, limit)
        if same is None:
            if waiters.may_close_cycle(waiter.client) and (cycle := waiters.cycle(waiter)):
                return self.refuse_deadlock(waiter, cycle, at_ms, index)
            waiters.join(waiter)
            self._emit_waiter("queued", waiter, index)
        deadline_ms = at_ms + command.wait_ms
        waiters.add_caller(
            Caller(
                origin,
                same or waiter,
                at_ms,
                deadline_ms,
                command.ttl_ms,
                self.holdings.account.use_meta(meta) if meta is not None else None,
                command.session,
                command.lock_delay_ms,
            )
        )
        return None

    def refuse_deadlock(self, waiter: LockWaiter, cycle: list[dict[str, Any]], at_ms: int, index: int) -> Result:
        """Refuse a request that would close `cycle`."""
        waiter.rank = 0  # it was never queued
        shown = tuple(cycle[:CYCLE_STEPS_KEPT_MAX])
        mode, keys = MODES[waiter.exclusive], tuple(waiter.keys[:CYCLE_STEPS_KEPT_MAX])
        self.refused_deadlocks.append(RefusedDeadlock(index, at_ms, waiter.client, keys, mode, shown, len(cycle)))
        self._emit_waiter("refused", waiter, index, "deadlock")
        return refusals.deadlock(cycle)

    def refuse_caller(self, caller: Caller, index: int, result: Result) -> None:
        """End a waiting call with a refusal."""
        self.drop_caller(caller, index, result.code)
        self._events.append(Resolved(caller.origin, result))

    def drop_caller(self, caller: Caller, index: int, reason: str) -> None:
        """Remove a waiting call that was not granted. The last one takes its request out of the queues."""
        waiter = caller.waiter
        self.waiters.forget_caller(caller)
        waiter.callers.remove(caller)
        if not waiter.callers:
            self.waiters.unlink(waiter)
            self._emit_waiter("dequeued", waiter, index, reason)
            self.changed.update(dict.fromkeys(waiter.keys))

    def _emit_waiter(self, kind: LockEventKind, waiter: LockWaiter, index: int, reason: str = "") -> None:
        client, mode, rank, events = waiter.client, MODES[waiter.exclusive], waiter.rank, self._events
        for key in waiter.keys:
            events.append(LockChanged(kind, key, client, mode, 0, index, rank, reason))

    # -- admitting -----------------------------------------------------------------------------------------------------------

    def settle(self, at_ms: int, index: int) -> None:
        """Grant all waiting requests that are no longer blocked, in order of arrival."""
        changed = self.changed
        while changed:
            keys = list(changed)
            changed.clear()
            for waiter in self._candidates(keys):
                if waiter.callers and not self.waiters.is_blocked(waiter) and self._admit(waiter, at_ms, index) and changed:
                    # The grant unblocked other requests, which may be older than the remaining candidates: start over. (A
                    # refusal unblocks only requests that block the remaining candidates until they are granted themselves.)
                    changed.update(dict.fromkeys(keys))
                    break

    def _candidates(self, keys: list[str]) -> list[LockWaiter]:
        """The waiters at these keys that may no longer be blocked, in order of arrival."""
        locks, front_of = self.holdings.locks, self.waiters.front
        found: list[LockWaiter] = []
        for key in keys:
            lock = locks.get(key)
            if lock is not None:
                found += front_of(lock, key)
        if len(found) < 2:
            return found
        waiters = {waiter.rank: waiter for waiter in found}
        return [waiters[rank] for rank in sorted(waiters)]

    def _admit(self, waiter: LockWaiter, at_ms: int, index: int) -> bool:
        """Grant a waiter that is not blocked. False when it is deferred to the next entry or refused because of a limit."""
        holdings, waiters, callers = self.holdings, self.waiters, waiter.callers
        # If the client has acquired one of the keys shared since it queued, this is an upgrade now.
        may_repeat = holdings.has_spent() or waiter.client in holdings.clients
        if may_repeat and holdings.must_defer(waiter.keys, waiter.client, waiter.exclusive, index):
            self.defer(waiter.keys, at_ms)
            return False
        limit = holdings.over_limit(waiter.keys, waiter.client)
        if limit:
            for caller in callers[:]:
                self.refuse_caller(caller, index, refusals.over_limit(holdings, limit))
            return False
        waiters.unlink(waiter)
        self._emit_waiter("dequeued", waiter, index, "granted")
        waiter.callers = []
        for caller in callers:
            waiters.forget_caller(caller)
        latest = callers[-1]
        session = holdings.sessions.by_id[latest.session] if latest.session else None
        claimant = latest.origin if len(callers) == 1 else None
        # The locks take less than the request did, so this needs no room.
        meta = latest.meta.encoded if latest.meta is not None else None
        body = self.grant_all(waiter, latest, meta, session, at_ms, index, claimant)
        body["waited_ms"] = at_ms - callers[0].since_ms
        self._events.append(Resolved(callers[0].origin, Result(body)))
        for caller in callers[1:]:
            repeated = {**body, "reentrant": True, "waited_ms": at_ms - caller.since_ms}
            self._events.append(Resolved(caller.origin, Result(repeated)))
        return True
