"""The lock table: who holds each key, who waits for it, and in which order.

Theory of operation
-------------------
1. A client is one owner. It holds a key shared (with others) or exclusive (alone). What it holds it may acquire again: the lease
   starts anew, the token stays. Asking for exclusive what it holds shared is an upgrade; the other way round, a downgrade.
2. A request names one key or several and gets all of them at once or none. While it waits it has a place in the queue of each
   of its keys. Its turn has come when nothing blocks it at any of them (`KeyLock.blockers`): no holder it cannot share with, no
   earlier place it could not share with. So shared requests do not overtake an exclusive one, and nobody starves: the oldest
   request of all waits for holders only.
3. An upgrade goes before the queue, for those in it wait for its shared hold anyway. A request that counts on a lock its client
   holds is refused with `lock_lost` when that lock goes: what was read under it may have changed.
4. The same request of the same client, sent again while the first one waits, takes the same place. Each has its own deadline.
5. A request that would wait for somebody who waits for it, over however many steps, is refused at once (`deadlock.py`). Nothing
   else closes a cycle: a grant gives the others nobody to wait for whom they did not wait for already. (One exception, an upgrade
   by a client that has another request waiting, is checked as well.)
6. Time is applied time. `expire` first does what was put off for the sake of tokens (`holdings.py`), then answers the waits that
   have run out, then ends leases, then grants: a wait that has run out is never granted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from dss_locks.commands import Acquire, CloseSession, ForceRelease, Release, Renew, RenewSession, StartSession
from dss_locks.holdings import MODES, Holdings
from dss_locks.rows import hold_from, hold_row, place_from, place_row
from dss_locks.sessions import Session
from dss_locks.state import Caller, Forced, Hold, KeyLock, Limits, LockChanged, Place
from dss_locks.waits import Waits
from dss_raft.commands import Command
from dss_raft.machine import Event, Origin, Resolved, Result

#: A refusal names at most so many holders of a key.
HOLDERS_SHOWN_MAX = 16
#: Forced releases that are kept, the latest ones.
FORCED_KEPT_MAX = 1000


class LockTable:
    """The state machine `locks`. See the module's theory of operation."""

    name = "locks"
    commands: tuple[type[Command], ...] = (Acquire, Release, Renew, ForceRelease, StartSession, RenewSession, CloseSession)

    def __init__(self, limits: Limits | None = None) -> None:
        self._events: list[Event] = []
        self.holdings = Holdings(limits or Limits(), self._events)
        self.waits = Waits(self.holdings)
        #: the audit list: the latest forced releases
        self.forced: list[Forced] = []
        #: keys where a grant was put off to the next entry, and the stamp of the entry that put it off
        self._deferred: dict[str, None] = {}
        self._deferred_ms = 0
        #: keys where something has changed that may let somebody in
        self._dirty: dict[str, None] = {}
        self._handlers: dict[type[Command], Callable[[Any, int, int, Origin], Result | None]] = {
            Acquire: self._acquire,
            Release: self._release,
            Renew: self._renew,
            ForceRelease: self._force_release,
            StartSession: self._start_session,
            RenewSession: self._renew_session,
            CloseSession: self._close_session,
        }

    @property
    def locks(self) -> dict[str, KeyLock]:
        """All keys that are held or waited for."""
        return self.holdings.locks

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """See `StateMachine.apply`."""
        result = self._handlers[type(command)](command, at_ms, index, origin)
        if self._dirty:
            self._settle(at_ms, index)
        return result

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """See `StateMachine.cancel`."""
        caller = self.waits.by_origin.get(waiter)
        if caller is not None:
            self._drop_caller(caller)
        else:
            for hold in self.holdings.claims.of(waiter):
                self._take_back(hold, at_ms, index)
        self._settle(at_ms, index)

    def expire(self, at_ms: int, index: int) -> None:
        """See `StateMachine.expire`."""
        if self._deferred:
            self._dirty.update(self._deferred)
            self._deferred.clear()
            self._settle(at_ms, index)
        for caller in self.waits.take_overdue(at_ms):
            self._drop_caller(caller, Result(self._refusal(caller.place, at_ms), "wait_timeout"))
        for hold in self.holdings.take_overdue(at_ms):
            self._end(hold, at_ms, index, "lost", "expired")
        for session in self.holdings.sessions.take_overdue(at_ms):
            self._end_session(session, at_ms, index, "lost", "expired")
        self._settle(at_ms, index)

    def next_deadline_ms(self) -> int | None:
        """See `StateMachine.next_deadline_ms`."""
        if self._deferred:
            return self._deferred_ms
        holdings = self.holdings
        earliest, wait_ms = holdings.leases.next_ms(), self.waits.deadlines.next_ms()
        if earliest is None or (wait_ms is not None and wait_ms < earliest):
            earliest = wait_ms
        if holdings.sessions.by_id:
            session_ms = holdings.sessions.deadlines.next_ms()
            if earliest is None or (session_ms is not None and session_ms < earliest):
                earliest = session_ms
        return earliest

    def rearm(self, at_ms: int, index: int) -> None:
        """See `StateMachine.rearm`."""
        self.holdings.rearmed_ms = self.holdings.sessions.rearmed_ms = at_ms

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """See `StateMachine.node_restarted`."""
        for caller in self.waits.of_node(node):
            self._drop_caller(caller)
        self.holdings.claims.forget_node(node)
        self._settle(at_ms, index)

    def take_events(self) -> list[Event]:
        """See `StateMachine.take_events`."""
        events = self._events[:]
        self._events.clear()
        return events

    def snapshot(self) -> Any:
        """See `StateMachine.snapshot`."""
        return {
            "locks": [[key, [hold_row(hold) for hold in lock.holds()]] for key, lock in self.locks.items()],
            "sessions": self.holdings.sessions.snapshot(),
            "boots": self.holdings.claims.snapshot(),
            "rearmed_ms": self.holdings.rearmed_ms,
            "places": [place_row(place) for place in self.waits.places()],
            "last_rank": self.waits.last_rank,
            "deferred": list(self._deferred),
            "deferred_ms": self._deferred_ms,
            "forced": [list(msgspec.structs.astuple(forced)) for forced in self.forced],
        }

    def restore(self, state: Any) -> None:
        """See `StateMachine.restore`."""
        holds_by_key = [(key, [hold_from(key, row) for row in rows]) for key, rows in state["locks"]]
        self.holdings.sessions.restore(state["sessions"])
        self.holdings.restore(holds_by_key, state["boots"], state["rearmed_ms"])
        self.waits.restore([place_from(row) for row in state["places"]], state["last_rank"])
        self._deferred = dict.fromkeys(state["deferred"])
        self._deferred_ms = state["deferred_ms"]
        self.forced = [Forced(*row) for row in state["forced"]]
        self._events.clear()
        self._dirty.clear()

    # -- commands ------------------------------------------------------------------------------------------------------------

    def _acquire(self, command: Acquire, at_ms: int, index: int, origin: Origin) -> Result | None:
        holdings, client, key = self.holdings, command.client, command.key
        keys = [key] if key is not None else command.keys or []
        exclusive = command.mode == "exclusive"
        session = None
        if command.session:
            session = holdings.sessions.by_id.get(command.session)
            if session is None:
                return Result({"session": command.session}, "session_lost")
            if session.client != client:
                return Result({"field": "session", "detail": "`session` is another client's"}, "invalid")
        if key is not None and key not in holdings.locks and not holdings.has_spent():
            limit = holdings.over_limit(keys, client)
            if limit:
                return self._over_limit(limit)
            hold = holdings.grant(key, client, exclusive, at_ms, index, command.ttl_ms, command.meta, session, origin)
            expires_in_ms = holdings.expires_in_ms(hold, at_ms)
            return Result({"fencing_token": index, "expires_in_ms": expires_in_ms, "reentrant": False})
        place = self.waits.place(client, keys, exclusive)
        if self.waits.is_blocked(place):
            if command.wait_ms:
                return self._enqueue(place, command, at_ms, origin)
            return Result(self._refusal(place, at_ms), "held")
        if (place.upgrades or holdings.has_spent()) and holdings.must_defer(keys, client, exclusive, index):
            self._defer(keys, at_ms)
            return self._enqueue(place, command, at_ms, origin)
        if place.upgrades and client in self.waits.of_client and (cycle := self.waits.cycle(place)):
            return _deadlock(cycle)
        limit = holdings.over_limit(keys, client)
        if limit:
            return self._over_limit(limit)
        return Result(self._take(place, command.ttl_ms, command.meta, session, at_ms, index, origin))

    def _release(self, command: Release, at_ms: int, index: int, origin: Origin) -> Result:
        client, token = command.client, command.fencing_token
        keys = [command.key] if command.key is not None else command.keys or []
        mine: list[Hold] = []
        stale: list[str] = []
        for key in keys:
            lock = self.holdings.locks.get(key)
            if lock is None:
                continue
            hold = lock.hold_of(client)
            if hold is not None and _matches(hold, token, keys):
                mine.append(hold)
            elif token is not None and lock.holder_count():
                stale.append(key)
        if stale and not mine:
            return Result({"keys": stale, "current": self._highest_token(stale)}, "not_holder")
        held_ms = 0
        for hold in mine:
            held_ms = at_ms - hold.granted_ms
            self._end(hold, at_ms, index, "released")
        body: dict[str, Any] = {"released": bool(mine)}
        if mine:
            body["held_ms"] = held_ms
        if command.keys is not None:
            body["released_keys"] = [hold.key for hold in mine]
        return Result(body)

    def _renew(self, command: Renew, at_ms: int, index: int, origin: Origin) -> Result:
        keys = [command.key] if command.key is not None else command.keys or []
        holds: list[Hold] = []
        lost: list[str] = []
        for key in keys:
            hold = self.holdings.hold_of(key, command.client)
            if hold is not None and _matches(hold, command.fencing_token, keys):
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

    def _force_release(self, command: ForceRelease, at_ms: int, index: int, origin: Origin) -> Result:
        lock = self.locks.get(command.key)
        holds = [hold for hold in lock.holds() if command.client in ("", hold.client)] if lock is not None else []
        for hold in holds:
            self.forced.append(Forced(index, at_ms, hold.key, hold.client, hold.token, command.reason, command.by))
            self._end(hold, at_ms, index, "lost", "forced")
        del self.forced[:-FORCED_KEPT_MAX]
        return Result({"released": bool(holds), "holders": [{"client": h.client, "fencing_token": h.token} for h in holds]})

    def _start_session(self, command: StartSession, at_ms: int, index: int, origin: Origin) -> Result:
        sessions = self.holdings.sessions
        if len(sessions.by_id) >= self.holdings.limits.sessions_max:
            return self._over_limit("sessions_max")
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
        return Result({"closed": True, "released_keys": self._end_session(session, at_ms, index, "released")})

    # -- granting and ending -------------------------------------------------------------------------------------------------

    def _take(
        self,
        place: Place,
        ttl_ms: int,
        meta: Any,
        session: Session | None,
        at_ms: int,
        index: int,
        claimant: Origin | None,
    ) -> dict[str, Any]:
        """Give `place` all its keys; returns the answer."""
        holdings, client, exclusive = self.holdings, place.client, place.exclusive
        reentrant = True
        highest = 0
        tokens: dict[str, int] = {}
        for key in place.keys:
            hold = holdings.hold_of(key, client)
            if hold is None:
                reentrant = False
                hold = holdings.grant(key, client, exclusive, at_ms, index, ttl_ms, meta, session, claimant)
            else:
                holdings.bind(hold, session)
                holdings.renew(hold, at_ms, ttl_ms)
                if meta is not None:
                    hold.meta = meta
                if exclusive and not hold.exclusive:
                    reentrant = False
                    holdings.upgrade(hold, index, claimant)
                elif hold.exclusive and not exclusive:
                    holdings.downgrade(hold, index)
                    self._lose_dependents(client, key, only_exclusive=True)
                    self._dirty[key] = None
            tokens[key] = token = hold.token
            if token > highest:
                highest = token
        expires_in_ms = holdings.sessions.expires_in_ms(session.id, at_ms) if session is not None else ttl_ms or None
        body: dict[str, Any] = {"fencing_token": highest, "expires_in_ms": expires_in_ms, "reentrant": reentrant}
        if len(tokens) > 1:
            body["fencing_tokens"] = tokens
        return body

    def _end(self, hold: Hold, at_ms: int, index: int, kind: Literal["released", "lost"], reason: str = "") -> None:
        """A hold is over; whoever waits for its key may come in."""
        key, client = hold.key, hold.client
        lock = self.holdings.remove(hold, index)
        self._events.append(LockChanged(kind, key, client, MODES[hold.exclusive], hold.token, reason, at_ms - hold.granted_ms))
        if client in self.waits.of_client:
            self._lose_dependents(client, key)
        if lock.queue is not None:
            self._dirty[key] = None

    def _end_session(
        self, session: Session, at_ms: int, index: int, kind: Literal["released", "lost"], reason: str = ""
    ) -> list[str]:
        """End a session: its waiting calls are refused, its locks end. Returns their keys."""
        for place in list(self.waits.of_client.get(session.client, {}).values()):
            for caller in [caller for caller in place.callers if caller.session == session.id]:
                self._drop_caller(caller, Result({"session": session.id}, "session_lost"))
        keys = sorted(session.keys)
        for key in keys:
            hold = self.holdings.hold_of(key, session.client)
            assert hold is not None
            self._end(hold, at_ms, index, kind, reason)
        self.holdings.sessions.forget(session)
        return keys

    def _take_back(self, hold: Hold, at_ms: int, index: int) -> None:
        """The grant never reached anybody: an upgrade becomes shared again, anything else ends."""
        if not hold.token_before:
            self._end(hold, at_ms, index, "released")
            return
        self.holdings.take_back_upgrade(hold, index)
        self._lose_dependents(hold.client, hold.key, only_exclusive=True)
        self._dirty[hold.key] = None

    def _lose_dependents(self, client: str, key: str, only_exclusive: bool = False) -> None:
        """Refuse the client's waiting requests that counted on holding `key` (`only_exclusive`: exclusive)."""
        for place in list(self.waits.of_client.get(client, {}).values()):
            if key in place.counts_on and (not only_exclusive or (place.exclusive and key not in place.upgrades)):
                for caller in place.callers[:]:
                    self._drop_caller(caller, Result({"keys": [key]}, "lock_lost"))

    # -- waiting -------------------------------------------------------------------------------------------------------------

    def _enqueue(self, place: Place, command: Acquire, at_ms: int, origin: Origin) -> Result | None:
        """Let the request wait; a result is a refusal."""
        waits = self.waits
        same = waits.same_as(place)
        limit = waits.over_limit(same or place)
        if limit:
            return self._over_limit(limit)
        if same is None:
            if waits.may_close_cycle(place.client) and (cycle := waits.cycle(place)):
                return _deadlock(cycle)
            waits.join(place)
        waits.add_caller(
            Caller(origin, same or place, at_ms, at_ms + command.wait_ms, command.ttl_ms, command.meta, command.session)
        )
        mode = MODES[place.exclusive]
        for key in place.keys:
            self._events.append(LockChanged("queued", key, place.client, mode, 0))
        return None

    def _drop_caller(self, caller: Caller, result: Result | None = None) -> None:
        """A wait is over without a grant."""
        place = caller.place
        self.waits.forget_caller(caller)
        place.callers.remove(caller)
        if not place.callers:
            self.waits.unlink(place)
            self._dirty.update(dict.fromkeys(place.keys))
        if result is not None:
            self._events.append(Resolved(caller.origin, result))

    def _defer(self, keys: list[str], at_ms: int) -> None:
        self._deferred.update(dict.fromkeys(keys))
        self._deferred_ms = at_ms

    # -- letting in ----------------------------------------------------------------------------------------------------------

    def _settle(self, at_ms: int, index: int) -> None:
        """Grant what has become possible, in order of arrival."""
        dirty = self._dirty
        while dirty:
            keys = list(dirty)
            dirty.clear()
            for place in self._candidates(keys):
                if place.callers and not self.waits.is_blocked(place):
                    self._let_in(place, at_ms, index)
                    if dirty:
                        # It made room for others, who may have come before the rest.
                        dirty.update(dict.fromkeys(keys))
                        break

    def _candidates(self, keys: list[str]) -> list[Place]:
        """The places at these keys whose turn may have come, in order of arrival."""
        fronts = [self.waits.front(lock, key) for key in keys if (lock := self.locks.get(key)) is not None]
        if len(fronts) == 1 and len(fronts[0]) < 2:
            return fronts[0]
        places = {place.rank: place for front in fronts for place in front}
        return [places[rank] for rank in sorted(places)]

    def _let_in(self, place: Place, at_ms: int, index: int) -> None:
        holdings, waits, callers = self.holdings, self.waits, place.callers
        # The client may hold shared by now what it did not hold when it queued: then this is an upgrade.
        may_repeat = holdings.has_spent() or place.client in holdings.clients
        if may_repeat and holdings.must_defer(place.keys, place.client, place.exclusive, index):
            self._defer(place.keys, at_ms)
            return
        limit = holdings.over_limit(place.keys, place.client)
        if limit:
            for caller in callers[:]:
                self._drop_caller(caller, self._over_limit(limit))
            return
        waits.unlink(place)
        place.callers = []
        for caller in callers:
            waits.forget_caller(caller)
        latest = callers[-1]
        session = holdings.sessions.by_id[latest.session] if latest.session else None
        claimant = latest.origin if len(callers) == 1 else None
        body = self._take(place, latest.ttl_ms, latest.meta, session, at_ms, index, claimant)
        for caller in callers:
            body["waited_ms"] = at_ms - caller.since_ms
            self._events.append(Resolved(caller.origin, Result(body)))
            body = {**body, "reentrant": True}

    # -- answers -------------------------------------------------------------------------------------------------------------

    def holders(self, key: str, at_ms: int, at_most: int) -> list[dict[str, Any]]:
        """The first holders of a key, as answers show them."""
        lock = self.locks.get(key)
        return [
            {
                "key": key,
                "client": hold.client,
                "mode": MODES[hold.exclusive],
                "fencing_token": hold.token,
                "expires_in_ms": self.holdings.expires_in_ms(hold, at_ms),
            }
            for hold in (lock.holds()[:at_most] if lock is not None else ())
        ]

    def _refusal(self, place: Place, at_ms: int) -> dict[str, Any]:
        """What `held` and `wait_timeout` tell."""
        holders: list[dict[str, Any]] = []
        for key in place.keys:
            holders += self.holders(key, at_ms, HOLDERS_SHOWN_MAX)
        return {"holders": [h for h in holders if h["client"] != place.client], "position": self.waits.position(place)}

    def _highest_token(self, keys: list[str]) -> int:
        return max(hold.token for key in keys for hold in self.locks[key].holds())

    def _over_limit(self, limit: str) -> Result:
        return Result({"limit": limit, "maximum": getattr(self.holdings.limits, limit)}, "over_limit")


def _matches(hold: Hold, token: int | None, keys: list[str]) -> bool:
    """Whether `token` names this hold. A call for several keys gives the highest of their tokens."""
    return token is None or hold.token == token or (len(keys) > 1 and hold.token < token)


def _deadlock(cycle: list[dict[str, Any]]) -> Result:
    return Result({"deadlock": True, "cycle": cycle}, "deadlock")
