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
   have run out, then ends leases and delays, then grants: a wait that has run out is never granted.
7. A lock that is lost, not released, may leave a delay behind (`delays.py`): a request waits for it as for a holder, but it is no
   client's, so it is part of no cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from dss_api.result import Result
from dss_locks.core import answers
from dss_locks.core.commands import Acquire, CloseSession, ForceRelease, Release, Renew, RenewSession, StartSession
from dss_locks.core.holdings import MODES, Holdings
from dss_locks.core.rows import hold_from, hold_row, place_from, place_row
from dss_locks.core.sessions import Session
from dss_locks.core.state import Caller, Forced, Hold, KeyLock, Limits, LockChanged, LockEventKind, Place, SessionEnded
from dss_locks.core.waits import Positions, Waits
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Event, Origin, Resolved

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
            self._drop_caller(caller, index, "cancelled")
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
        positions = Positions(self.locks)
        overdue = self.waits.take_overdue(at_ms)
        refusals = [answers.not_granted("wait_timeout", self.holdings, positions, caller.place, at_ms) for caller in overdue]
        for caller, refusal in zip(overdue, refusals, strict=True):
            self._refuse_caller(caller, index, refusal)
        for hold in self.holdings.take_overdue(at_ms):
            self._end(hold, at_ms, index, "lost", "expired")
        for session in self.holdings.sessions.take_overdue(at_ms):
            self._end_session(session, at_ms, index, "expired")
        for delay in self.holdings.delays.take_over(at_ms):
            self._events.append(LockChanged("delay_ended", delay.key, delay.client, MODES[delay.exclusive], 0, index))
            self._dirty[delay.key] = None
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
        for caller in self.waits.of_node(node):
            self._drop_caller(caller, index, "node_restarted")
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
            "delays": self.holdings.delays.snapshot(),
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
        # Snapshots from before there were delays have none.
        self.holdings.delays.restore(state.get("delays") or {"rows": [], "rearmed_ms": state["rearmed_ms"]})
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
        if key is not None and key not in holdings.locks and key not in holdings.delays.by_key and not holdings.has_spent():
            limit = holdings.over_limit(keys, client)
            if limit:
                return answers.over_limit(holdings.limits, limit)
            hold = holdings.grant(key, client, exclusive, at_ms, index, command.ttl_ms, command.meta, session, origin)
            if command.lock_delay_ms:
                hold.lock_delay_ms = command.lock_delay_ms
            expires_in_ms = command.ttl_ms or None if session is None else holdings.sessions.expires_in_ms(session.id, at_ms)
            return Result({"fencing_token": index, "expires_in_ms": expires_in_ms, "reentrant": False})
        place = self.waits.place(client, keys, exclusive)
        if self.waits.is_blocked(place):
            if command.wait_ms:
                return self._enqueue(place, command, at_ms, index, origin)
            return answers.not_granted("held", holdings, Positions(holdings.locks), place, at_ms)
        if (place.upgrades or holdings.has_spent()) and holdings.must_defer(keys, client, exclusive, index):
            self._defer(keys, at_ms)
            return self._enqueue(place, command, at_ms, index, origin)
        if place.upgrades and client in self.waits.of_client and (cycle := self.waits.cycle(place)):
            return self._refuse_deadlock(place, cycle, index)
        limit = holdings.over_limit(keys, client)
        if limit:
            return answers.over_limit(holdings.limits, limit)
        return Result(self._take(place, command, session, at_ms, index, origin))

    def _release(self, command: Release, at_ms: int, index: int, origin: Origin) -> Result:
        if command.keys is not None:
            return self._release_several(command.keys, command.client, command.fencing_token, at_ms, index)
        key, token = command.key or "", command.fencing_token
        lock = self.holdings.locks.get(key)
        hold = lock.hold_of(command.client) if lock is not None else None
        if hold is not None and (token is None or hold.token == token):
            held_ms = at_ms - hold.granted_ms
            self._end(hold, at_ms, index, "released")
            return Result({"released": True, "held_ms": held_ms})
        if token is not None and lock is not None and lock.holder_count():
            return answers.not_holder(self.holdings, [key])
        return Result({"released": False})

    def holds(self, key: str, client: str, fencing_token: int) -> bool:
        """Whether the client holds the key under this token."""
        hold = self.holdings.hold_of(key, client)
        return hold is not None and hold.token == fencing_token

    def release(self, key: str, client: str, at_ms: int, index: int) -> bool:
        """A release that is part of another machine's command; false when the client holds nothing."""
        hold = self.holdings.hold_of(key, client)
        if hold is None:
            return False
        self._end(hold, at_ms, index, "released")
        self._settle(at_ms, index)
        return True

    def _release_several(self, keys: list[str], client: str, token: int | None, at_ms: int, index: int) -> Result:
        mine: list[Hold] = []
        stale: list[str] = []
        for key in keys:
            hold = self.holdings.hold_of(key, client)
            if hold is not None and answers.matches(hold, token, keys):
                mine.append(hold)
            elif token is not None and key in self.locks and self.locks[key].holder_count():
                stale.append(key)
        if stale and not mine:
            return answers.not_holder(self.holdings, stale)
        body: dict[str, Any] = {"released": bool(mine)}
        for hold in mine:
            body["held_ms"] = at_ms - hold.granted_ms
            self._end(hold, at_ms, index, "released")
        body["released_keys"] = [hold.key for hold in mine]
        return Result(body)

    def _renew(self, command: Renew, at_ms: int, index: int, origin: Origin) -> Result:
        keys = [command.key] if command.key is not None else command.keys or []
        holds: list[Hold] = []
        lost: list[str] = []
        for key in keys:
            hold = self.holdings.hold_of(key, command.client)
            if hold is not None and answers.matches(hold, command.fencing_token, keys):
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
            self._end(hold, at_ms, index, "lost", "forced", command.reason)
        del self.forced[:-FORCED_KEPT_MAX]
        return Result({"released": bool(holds), "holders": [{"client": h.client, "fencing_token": h.token} for h in holds]})

    def _start_session(self, command: StartSession, at_ms: int, index: int, origin: Origin) -> Result:
        sessions = self.holdings.sessions
        limits = self.holdings.limits
        if len(sessions.by_id) >= limits.sessions_max:
            return answers.over_limit(limits, "sessions_max")
        if sessions.of_client.get(command.client, 0) >= limits.sessions_per_client_max:
            return answers.over_limit(limits, "sessions_per_client_max")
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
        return Result({"closed": True, "released_keys": self._end_session(session, at_ms, index, "closed")})

    # -- granting and ending -------------------------------------------------------------------------------------------------

    def _take(
        self,
        place: Place,
        request: Acquire | Caller,
        session: Session | None,
        at_ms: int,
        index: int,
        claimant: Origin | None,
    ) -> dict[str, Any]:
        """Give `place` all its keys, on the terms of `request`; returns the answer."""
        holdings, client, exclusive = self.holdings, place.client, place.exclusive
        ttl_ms, meta = request.ttl_ms, request.meta
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
                    self._lose_dependents(client, key, index, only_exclusive=True)
                    self._dirty[key] = None
            hold.lock_delay_ms = request.lock_delay_ms
            tokens[key] = token = hold.token
            if token > highest:
                highest = token
        expires_in_ms = holdings.sessions.expires_in_ms(session.id, at_ms) if session is not None else ttl_ms or None
        body: dict[str, Any] = {"fencing_token": highest, "expires_in_ms": expires_in_ms, "reentrant": reentrant}
        if len(tokens) > 1:
            body["fencing_tokens"] = tokens
        return body

    def _end(
        self, hold: Hold, at_ms: int, index: int, kind: Literal["released", "lost"], reason: str = "", detail: str = ""
    ) -> None:
        """A hold is over; whoever waits for its key may come in."""
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
        if self.waits.dependents:
            self._lose_dependents(client, key, index)
        if lock.queue is not None:
            self._dirty[key] = None

    def _end_session(self, session: Session, at_ms: int, index: int, reason: Literal["expired", "closed"]) -> list[str]:
        """End a session: its waiting calls are refused, its locks end. Returns their keys."""
        for place in list(self.waits.of_client.get(session.client, {}).values()):
            for caller in [caller for caller in place.callers if caller.session == session.id]:
                self._refuse_caller(caller, index, Result({"session": session.id}, "session_lost"))
        keys = sorted(session.keys)
        for key in keys:
            hold = self.holdings.hold_of(key, session.client)
            assert hold is not None
            if reason == "closed":
                self._end(hold, at_ms, index, "released", "session_closed")
            else:
                self._end(hold, at_ms, index, "lost", "session_lost")
        self.holdings.sessions.forget(session)
        self._events.append(SessionEnded(session.id, session.client, reason, index))
        return keys

    def _take_back(self, hold: Hold, at_ms: int, index: int) -> None:
        """The grant never reached anybody: an upgrade becomes shared again, anything else ends."""
        if not hold.token_before:
            self._end(hold, at_ms, index, "released", "cancelled")
            return
        self.holdings.take_back_upgrade(hold, index)
        self._lose_dependents(hold.client, hold.key, index, only_exclusive=True)
        self._dirty[hold.key] = None

    def _lose_dependents(self, client: str, key: str, index: int, only_exclusive: bool = False) -> None:
        """Refuse the client's waiting requests that counted on holding `key` (`only_exclusive`: exclusive)."""
        for place in list(self.waits.dependents.get((client, key), {}).values()):
            if not only_exclusive or (place.exclusive and key not in place.upgrades):
                for caller in place.callers[:]:
                    self._refuse_caller(caller, index, Result({"keys": [key]}, "lock_lost"))

    # -- waiting -------------------------------------------------------------------------------------------------------------

    def _enqueue(self, place: Place, command: Acquire, at_ms: int, index: int, origin: Origin) -> Result | None:
        """Let the request wait; a result is a refusal."""
        waits = self.waits
        same = waits.same_as(place)
        limit = waits.over_limit(same or place)
        if limit:
            return answers.over_limit(self.holdings.limits, limit)
        if same is None:
            if waits.may_close_cycle(place.client) and (cycle := waits.cycle(place)):
                return self._refuse_deadlock(place, cycle, index)
            waits.join(place)
            self._tell_of_place("queued", place, index)
        deadline_ms = at_ms + command.wait_ms
        waits.add_caller(
            Caller(
                origin,
                same or place,
                at_ms,
                deadline_ms,
                command.ttl_ms,
                command.meta,
                command.session,
                command.lock_delay_ms,
            )
        )
        return None

    def _refuse_deadlock(self, place: Place, cycle: list[dict[str, Any]], index: int) -> Result:
        place.rank = 0  # it gets no place
        self._tell_of_place("refused", place, index, "deadlock")
        return answers.deadlock(cycle)

    def _refuse_caller(self, caller: Caller, index: int, result: Result) -> None:
        """A wait ends with a refusal."""
        self._drop_caller(caller, index, result.code)
        self._events.append(Resolved(caller.origin, result))

    def _drop_caller(self, caller: Caller, index: int, reason: str) -> None:
        """A wait is over without a grant."""
        place = caller.place
        self.waits.forget_caller(caller)
        place.callers.remove(caller)
        if not place.callers:
            self.waits.unlink(place)
            self._tell_of_place("dequeued", place, index, reason)
            self._dirty.update(dict.fromkeys(place.keys))

    def _tell_of_place(self, kind: LockEventKind, place: Place, index: int, reason: str = "") -> None:
        client, mode, rank, events = place.client, MODES[place.exclusive], place.rank, self._events
        for key in place.keys:
            events.append(LockChanged(kind, key, client, mode, 0, index, rank, reason))

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
                if place.callers and not self.waits.is_blocked(place) and self._let_in(place, at_ms, index) and dirty:
                    # It made room for others, who may have come before the rest. (A refusal makes room only for those who are in
                    # the rest's way until it is their turn.)
                    dirty.update(dict.fromkeys(keys))
                    break

    def _candidates(self, keys: list[str]) -> list[Place]:
        """The places at these keys whose turn may have come, in order of arrival."""
        locks, front_of = self.holdings.locks, self.waits.front
        found: list[Place] = []
        for key in keys:
            lock = locks.get(key)
            if lock is not None:
                found += front_of(lock, key)
        if len(found) < 2:
            return found
        places = {place.rank: place for place in found}
        return [places[rank] for rank in sorted(places)]

    def _let_in(self, place: Place, at_ms: int, index: int) -> bool:
        """Its turn has come; false when it is put off to the next entry, or refused for a limit."""
        holdings, waits, callers = self.holdings, self.waits, place.callers
        # The client may hold shared by now what it did not hold when it queued: then this is an upgrade.
        may_repeat = holdings.has_spent() or place.client in holdings.clients
        if may_repeat and holdings.must_defer(place.keys, place.client, place.exclusive, index):
            self._defer(place.keys, at_ms)
            return False
        limit = holdings.over_limit(place.keys, place.client)
        if limit:
            for caller in callers[:]:
                self._refuse_caller(caller, index, answers.over_limit(holdings.limits, limit))
            return False
        waits.unlink(place)
        self._tell_of_place("dequeued", place, index, "granted")
        place.callers = []
        for caller in callers:
            waits.forget_caller(caller)
        latest = callers[-1]
        session = holdings.sessions.by_id[latest.session] if latest.session else None
        claimant = latest.origin if len(callers) == 1 else None
        body = self._take(place, latest, session, at_ms, index, claimant)
        body["waited_ms"] = at_ms - callers[0].since_ms
        self._events.append(Resolved(callers[0].origin, Result(body)))
        for caller in callers[1:]:
            repeated = {**body, "reentrant": True, "waited_ms": at_ms - caller.since_ms}
            self._events.append(Resolved(caller.origin, Result(repeated)))
        return True
