"""The requests of clients that may be repeated: each takes effect once, and every repeat gets the same answer.

Theory of operation
-------------------
1. A client opens a *request session* and numbers its requests in it, in any order. A call with a `request_id` is an `Once` in the log:
   the number, a digest of the call, and the command. The node that gets a repeat need not be the one that got the request first.
2. A number that the session does not know: the command is applied, and its answer is kept. A refusal is an answer, too.
   A number whose answer is kept: the repeat gets this answer. A number whose command still waits: the repeat waits with it.
   The same number with another digest is refused with `request_id_reused`.
3. What might have been executed and is forgotten is never executed again. A request is refused with `request_expired` if its session is
   unknown, if the client has said that it has the answer (`answered`), or if its number is not above that of an answer that was dropped
   to keep a limit. So a session that is over can be forgotten completely: ids are random and never used again.
4. A session ends when it is closed, or when no request has used it for its `ttl_ms` of applied time. A new leader gives all sessions
   their full time again.
5. A caller that hangs up cancels its command. If no other caller waits for the request, or may have its answer, then a command that
   a cancel undoes completely (`Command.is_undone_by_cancel`: it leaves its queue, or gives back what it was given) is undone and
   forgotten: a repeat is executed again. All other commands stay as they are, and so do their answers.
6. A command that may wait belongs to no node, because its callers can be at several: in the machines its origin is `ANY_NODE` with a
   serial number. The restart of a node takes away callers. The waiter goes with the last one. What a command of another kind does may
   depend on its node (a cache line's owner), so it has the origin of its first caller.

The table is one of the replica's state machines; it is part of snapshots and hashes as the others are. It is empty below the cluster
version that has `Once`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any, ClassVar

import msgspec

from dss_api.request_id import RequestSessionId, owner_of
from dss_api.result import Result
from dss_raft.replication.commands import Command, Once
from dss_raft.replication.deadlines import NO_TIMER, Deadlines
from dss_raft.replication.limits import MIB, StateLimit, StateLimits
from dss_raft.replication.machine import Event, Origin, Resolved, Restoring, all_at_once

#: codes with which the table refuses a request without having its command applied
REFUSALS = ("request_expired", "request_id_reused")
#: the node of the origin of a command that may wait; no node can have this name
ANY_NODE = "*"

TTL_MS_DEFAULT = 600_000
TTL_MS_MIN = 1_000
TTL_MS_MAX = 24 * 3600 * 1000
#: Limit of the answers kept for one session. Above it, its oldest ones are dropped.
ANSWER_BYTES_PER_SESSION_MAX = 16 * MIB
#: Sessions that one token has open.
SESSIONS_PER_TOKEN_MAX = 1000
#: Requests of one session that wait.
WAITING_PER_SESSION_MAX = 1000
#: Calls that wait for one request.
CALLERS_PER_REQUEST_MAX = 16

SESSIONS_LIMIT = "request_sessions_max"
BYTES_LIMIT = "request_bytes_max"
SESSIONS_MAX_DEFAULT = 10_000
BYTES_MAX_DEFAULT = 64 * MIB
#: Requests that are restored in one step.
SLICE = 200
#: What each costs in the account, with the objects around it.
SESSION_BYTES = 1024
ANSWER_BYTES = 1024
WAITING_BYTES = 768
CALLER_BYTES = 256

TtlMs = Annotated[int, msgspec.Meta(ge=TTL_MS_MIN, le=TTL_MS_MAX)]


class OpenRequestSession(Command, tag="request.open", kw_only=True):
    """Open a request session."""

    since: ClassVar[int] = Once.since

    #: random; made by the node that got the call
    session: RequestSessionId
    #: the session ends when no request has used it for this time
    ttl_ms: TtlMs = TTL_MS_DEFAULT


class CloseRequestSession(Command, tag="request.close", kw_only=True):
    """Close a request session: its answers are forgotten, and its requests that wait are cancelled."""

    since: ClassVar[int] = Once.since

    session: RequestSessionId


@dataclass(slots=True, eq=False)
class Request:
    """A request that was carried out, or waits."""

    session: RequestSession
    number: int
    part: int
    digest: bytes
    #: of its origin in the machines; 0: a cancel does not undo it
    serial: int = 0
    #: None: it waits
    result: Result | None = None
    #: those that wait for it, or may have got its answer: an ordered set. Only of a request that a cancel undoes
    callers: dict[Origin, None] = field(default_factory=dict)
    #: of its answer, in the account
    size: int = 0


@dataclass(slots=True, eq=False)
class RequestSession:
    """One session. A request is known as long as it is in one of the two dicts."""

    id: str
    ttl_ms: int
    #: in applied time
    deadline_ms: int
    #: the client has the answers of all numbers up to this one
    answered: int = 0
    #: the highest number whose answer was dropped
    dropped: int = 0
    #: (number, part) -> request with its answer, oldest answer first
    answers: dict[tuple[int, int], Request] = field(default_factory=dict)
    #: (number, part) -> request that waits
    waiting: dict[tuple[int, int], Request] = field(default_factory=dict)
    #: of `answers`
    answer_bytes: int = 0
    #: see `Deadlines`
    timer: int = NO_TIMER


@dataclass(slots=True, frozen=True)
class Unknown:
    """The session does not know this request: it has not been carried out."""

    session: RequestSession


class StoredSession(msgspec.Struct, array_like=True):
    """A session in a snapshot."""

    id: str
    ttl_ms: int
    deadline_ms: int
    answered: int
    dropped: int


class StoredRequest(msgspec.Struct, array_like=True):
    """A request in a snapshot."""

    session: str
    number: int
    part: int
    digest: bytes
    serial: int
    result: Result | None
    callers: list[Origin]


class _Stored(msgspec.Struct, array_like=True):
    serial: int = 0
    sessions: list[StoredSession] = []
    #: slices of encoded requests: in the order of their answers, then those that wait in their order
    requests: list[bytes] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Stored).decode
_decode_slice = msgspec.msgpack.Decoder(list[StoredRequest]).decode


class ClientRequests:
    """The state machine `requests`. See the module.

    Args:
        cancel: cancels a command in all machines.
    """

    name = "requests"
    format_version = 1
    commands: tuple[type[Command], ...] = (OpenRequestSession, CloseRequestSession)

    def __init__(self, limits: StateLimits, cancel: Callable[[Origin, int, int], None]) -> None:
        self._limits = limits
        self._cancel = cancel
        self.sessions: dict[str, RequestSession] = {}
        #: by the token that opened them
        self._of_token: Counter[str] = Counter()
        self._deadlines: Deadlines[RequestSession] = Deadlines(attrgetter("deadline_ms"), attrgetter("id"))
        #: all answers, oldest first: an ordered set
        self._answers: dict[Request, None] = {}
        self.answer_bytes = 0
        #: by serial number
        self._waiting: dict[int, Request] = {}
        self._by_caller: dict[Origin, Request] = {}
        self._last_serial = 0
        self._events: list[Event] = []
        limits.declare(
            StateLimit(SESSIONS_LIMIT, SESSIONS_MAX_DEFAULT, "count", lambda: len(self.sessions), Once.since),
            StateLimit(BYTES_LIMIT, BYTES_MAX_DEFAULT, "bytes", lambda: self.answer_bytes, Once.since),
        )

    # -- an `Once`, step by step -------------------------------------------------------------------------------------------------

    def find(self, once: Once, at_ms: int, origin: Origin) -> Result | Unknown | None:
        """What is known of a request. None: it waits, and this caller waits with it."""
        session = self.sessions.get(once.session)
        if session is None:
            return _expired("the session of `request_id` is unknown, or has ended")
        session.deadline_ms = at_ms + session.ttl_ms
        if once.answered > session.answered:
            session.answered = once.answered
            self._forget_answered(session)
        if once.number <= session.answered:
            return _expired("the client has said that it has the answer to this request")
        key = (once.number, once.part)
        request = session.answers.get(key) or session.waiting.get(key)
        if request is None:
            if once.number > session.dropped:
                return Unknown(session)
            return _expired("it may be a repeat of a request whose answer was dropped to keep a limit")
        if request.digest != once.digest:
            detail = f"`request_id`: the number {once.number} of this session was used for another call, or with other fields"
            return Result({"field": "request_id", "detail": detail}, "request_id_reused")
        if request.serial:
            if len(request.callers) < CALLERS_PER_REQUEST_MAX:
                self._add_caller(request, origin)
            elif request.result is None:
                return _over_limit("callers_per_request_max", CALLERS_PER_REQUEST_MAX)
            else:
                # Too many may have its answer: it is never undone.
                self._forget_callers(request)
                request.serial = 0
        return request.result

    def refusal_to_wait(self, session: RequestSession) -> Result | None:
        """The refusal of a further command that may wait; None if the session may have one more."""
        if len(session.waiting) >= WAITING_PER_SESSION_MAX:
            return _over_limit("requests_waiting_max", WAITING_PER_SESSION_MAX)
        return None

    def begin(self, once: Once, session: RequestSession, origin: Origin) -> Origin:
        """A command that may wait is about to be applied. Returns its origin for the machines."""
        self._last_serial += 1
        request = Request(session, once.number, once.part, once.digest, self._last_serial)
        session.waiting[once.number, once.part] = self._waiting[request.serial] = request
        self._add_caller(request, origin)
        return Origin(ANY_NODE, 0, request.serial)

    def resolve(self, waiter: Origin, result: Result) -> list[Origin]:
        """A command that may wait has its result. Returns the callers that wait for it."""
        request = self._waiting.pop(waiter.seq, None)
        if request is None:
            return []
        del request.session.waiting[request.number, request.part]
        callers = list(request.callers)
        self._keep(request, result)
        return callers

    def answered(self, once: Once, session: RequestSession, result: Result) -> Result:
        """A command that does not wait was applied with this result. Returns the result."""
        self._keep(Request(session, once.number, once.part, once.digest), result)
        return result

    def knows(self, session_id: str, number: int, part: int) -> bool:
        """Whether a request was carried out, or waits, and is not forgotten."""
        session = self.sessions.get(session_id)
        return session is not None and ((number, part) in session.answers or (number, part) in session.waiting)

    # -- the interface of a state machine --------------------------------------------------------------------------------------

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """See `StateMachine.apply`."""
        if isinstance(command, OpenRequestSession):
            return self._open(command, at_ms)
        assert isinstance(command, CloseRequestSession)
        session = self.sessions.get(command.session)
        if session is not None:
            self._deadlines.discard(session)
            self._end(session, at_ms, index)
        return Result({"closed": session is not None})

    def cancel(self, waiter: Origin, at_ms: int, index: int) -> None:
        """See `StateMachine.cancel`."""
        request = self._by_caller.get(waiter)
        if request is not None:
            self._drop_caller(request, waiter, at_ms, index)

    def expire(self, at_ms: int, index: int) -> None:
        """See `StateMachine.expire`."""
        for session in self._deadlines.pop_due(at_ms):
            self._end(session, at_ms, index)

    def next_deadline_ms(self) -> int | None:
        """See `StateMachine.next_deadline_ms`."""
        return self._deadlines.next_ms()

    def rearm(self, at_ms: int, index: int) -> None:
        """See `StateMachine.rearm`."""
        for session in self.sessions.values():
            session.deadline_ms = at_ms + session.ttl_ms

    def node_restarted(self, node: str, at_ms: int, index: int) -> None:
        """See `StateMachine.node_restarted`. A caller that may have got an answer stays."""
        for request in list(self._waiting.values()):
            for caller in [caller for caller in request.callers if caller.node == node]:
                self._drop_caller(request, caller, at_ms, index)

    def node_removed(self, node: str, at_ms: int, index: int) -> None:
        """See `StateMachine.node_removed`."""
        self.node_restarted(node, at_ms, index)

    def take_events(self) -> list[Event]:
        """See `StateMachine.take_events`."""
        events, self._events = self._events, []
        return events

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        others = len(self.sessions) * SESSION_BYTES + len(self._waiting) * WAITING_BYTES + len(self._by_caller) * CALLER_BYTES
        return {"request_answers": self.answer_bytes, "request_others": others}

    def snapshot(self) -> bytes:
        """See `StateMachine.snapshot`. One binary, because it is restored in slices."""
        sessions = [StoredSession(s.id, s.ttl_ms, s.deadline_ms, s.answered, s.dropped) for s in self.sessions.values()]
        requests = [
            StoredRequest(one.session.id, one.number, one.part, one.digest, one.serial, one.result, list(one.callers))
            for one in (*self._answers, *self._waiting.values())
        ]
        slices = [_encode(requests[start : start + SLICE]) for start in range(0, len(requests), SLICE)]
        return _encode(_Stored(self._last_serial, sessions, slices))

    def restore(self, state: Any) -> None:
        """See `StateMachine.restore`."""
        all_at_once(self.restoring(state))

    def restoring(self, state: bytes | memoryview) -> Restoring:
        """See `RestoresInSlices`. Nothing at all is the state of a release without request sessions."""
        stored = _decode(state) if state else _Stored()
        new = ClientRequests(StateLimits(), self._cancel)
        new._last_serial = stored.serial
        for one in stored.sessions:
            new.sessions[one.id] = RequestSession(one.id, one.ttl_ms, one.deadline_ms, one.answered, one.dropped)
        yield
        for data in stored.requests:
            for request in _decode_slice(data):
                new._add_stored(request)
            yield

        def install() -> None:
            self._last_serial, self.answer_bytes, self._events = new._last_serial, new.answer_bytes, []
            self.sessions, self._answers, self._waiting = new.sessions, new._answers, new._waiting
            self._by_caller = new._by_caller
            self._of_token = Counter(map(owner_of, new.sessions))
            self._deadlines.rebuild(self.sessions.values())

        return install

    def _add_stored(self, stored: StoredRequest) -> None:
        request = Request(self.sessions[stored.session], stored.number, stored.part, stored.digest, stored.serial)
        for caller in stored.callers:
            self._add_caller(request, caller)
        if stored.result is None:
            request.session.waiting[stored.number, stored.part] = self._waiting[stored.serial] = request
        else:
            self._add_answer(request, stored.result)

    # -- steps -----------------------------------------------------------------------------------------------------------------

    def _open(self, command: OpenRequestSession, at_ms: int) -> Result:
        if len(self.sessions) >= self._limits.maxima[SESSIONS_LIMIT]:
            return self._limits.over_limit(SESSIONS_LIMIT)
        if command.session in self.sessions:
            return Result({"field": "session", "detail": "`session` is open already"}, "invalid")
        token = owner_of(command.session)
        if token and self._of_token[token] >= SESSIONS_PER_TOKEN_MAX:
            return _over_limit("request_sessions_per_token_max", SESSIONS_PER_TOKEN_MAX)
        self._of_token[token] += 1
        session = self.sessions[command.session] = RequestSession(command.session, command.ttl_ms, at_ms + command.ttl_ms)
        self._deadlines.add(session, session.deadline_ms)
        return Result({"session": session.id, "expires_in_ms": session.ttl_ms})

    def _end(self, session: RequestSession, at_ms: int, index: int) -> None:
        """Forget a session. Its deadline is not filed any longer."""
        for request in list(session.waiting.values()):
            self._events += [Resolved(caller, _expired("the session of `request_id` has ended")) for caller in request.callers]
            self._undo(request, at_ms, index)
        for request in list(session.answers.values()):
            self._forget_answer(request)
        del self.sessions[session.id]
        token = owner_of(session.id)
        self._of_token[token] -= 1
        if not self._of_token[token]:
            del self._of_token[token]

    def _keep(self, request: Request, result: Result) -> None:
        """Keep an answer, and drop the oldest ones above the limits."""
        session = request.session
        if request.number <= session.answered:
            self._forget_callers(request)
            return
        self._add_answer(request, result)
        while session.answer_bytes > ANSWER_BYTES_PER_SESSION_MAX:
            self._drop_answer(next(iter(session.answers.values())))
        while self.answer_bytes > self._limits.maxima[BYTES_LIMIT]:
            self._drop_answer(next(iter(self._answers)))

    def _add_answer(self, request: Request, result: Result) -> None:
        session = request.session
        request.result, request.size = result, ANSWER_BYTES + len(_encode(result.body))
        session.answers[request.number, request.part] = request
        self._answers[request] = None
        session.answer_bytes += request.size
        self.answer_bytes += request.size

    def _drop_answer(self, request: Request) -> None:
        session = request.session
        session.dropped = max(session.dropped, request.number)
        self._forget_answer(request)

    def _forget_answer(self, request: Request) -> None:
        session = request.session
        del session.answers[request.number, request.part], self._answers[request]
        session.answer_bytes -= request.size
        self.answer_bytes -= request.size
        self._forget_callers(request)

    def _forget_answered(self, session: RequestSession) -> None:
        """Forget the answers that the client has. One that is behind an answer of a higher number is forgotten after that one."""
        answers = session.answers
        while answers:
            request = next(iter(answers.values()))
            if request.number > session.answered:
                return
            self._forget_answer(request)

    def _undo(self, request: Request, at_ms: int, index: int) -> None:
        """Undo and forget a request that a cancel undoes."""
        if request.result is None:
            del request.session.waiting[request.number, request.part], self._waiting[request.serial]
            self._forget_callers(request)
        else:
            self._forget_answer(request)
        self._cancel(Origin(ANY_NODE, 0, request.serial), at_ms, index)

    def _add_caller(self, request: Request, caller: Origin) -> None:
        request.callers[caller] = None
        self._by_caller[caller] = request

    def _drop_caller(self, request: Request, caller: Origin, at_ms: int, index: int) -> None:
        del request.callers[caller], self._by_caller[caller]
        if not request.callers:
            self._undo(request, at_ms, index)

    def _forget_callers(self, request: Request) -> None:
        for caller in request.callers:
            del self._by_caller[caller]
        request.callers.clear()


def _expired(reason: str) -> Result:
    return Result({"detail": f"the call had no effect: {reason}"}, "request_expired")


def _over_limit(limit: str, maximum: int) -> Result:
    return Result({"limit": limit, "maximum": maximum, "detail": f"the limit {limit} is {maximum}"}, "over_limit")
