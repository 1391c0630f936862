"""The rules of the lock table, as simply as possible: lists, and loops over everything. The oracle of the state machine test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class NaiveHold:
    key: str
    client: str
    exclusive: bool
    token: int
    since: int
    ttl: int
    session: str
    delay: int
    claim: Any = None
    token_before: int = 0


@dataclass
class NaiveRequest:
    client: str
    keys: list[str]
    exclusive: bool
    depends_on: list[str]
    upgrades: list[str]
    #: (origin, deadline, terms)
    callers: list[tuple[Any, int, tuple[int, str, int]]] = field(default_factory=list)


class NaiveLocks:
    def __init__(self) -> None:
        self.holds: list[NaiveHold] = []
        self.requests: list[NaiveRequest] = []
        #: id -> client, renewed, ttl
        self.sessions: dict[str, tuple[str, int, int]] = {}
        #: key -> lost, length, exclusive
        self.delays: dict[str, tuple[int, int, bool]] = {}
        self.answers: dict[Any, str] = {}
        self.grants: list[tuple[str, int, bool]] = []
        self.rearmed = 0
        self.at = self.index = 0

    # state

    def hold(self, key, client):
        return next((h for h in self.holds if (h.key, h.client) == (key, client)), None)

    def blockers(self, request, key):
        """The clients that `request` waits for at `key`."""
        before = self.requests[: self.requests.index(request)] if request in self.requests else self.requests
        found = [h.client for h in self.holds if h.key == key and (h.exclusive or request.exclusive)]
        if key not in request.depends_on:
            found += [r.client for r in self.requests if key in r.upgrades]
            found += [r.client for r in before if key in r.keys and (r.exclusive or request.exclusive)]
        return [client for client in found if client != request.client]

    def must_wait(self, request):
        return any(self.blockers(request, key) for key in request.keys) or any(
            key in self.delays and (request.exclusive or self.delays[key][2]) for key in request.keys
        )

    def ends(self, since, length):
        return max(since, self.rearmed) + length

    def edges(self):
        return {(r.client, key, other) for r in self.requests for key in r.keys for other in self.blockers(r, key)}

    def waits_for_itself(self, client):
        edges = self.edges()
        reached = {other for waiter, _, other in edges if waiter == client}
        while True:
            more = {other for waiter, _, other in edges if waiter in reached} - reached
            if not more:
                return client in reached
            reached |= more

    def must_defer(self, request):
        return any(
            key == granted and index == self.index and (exclusive or request.exclusive)
            for key in request.keys
            if (hold := self.hold(key, request.client)) is None or (request.exclusive and not hold.exclusive)
            for granted, index, exclusive in self.grants
        )

    # commands and events

    def acquire(self, origin, client, keys, exclusive, ttl, wait, session, delay):
        if session:
            if session not in self.sessions:
                return "session_lost"
            if self.sessions[session][0] != client:
                return "invalid"
        terms = (0 if session else ttl, session, delay)
        depends_on = [k for k in keys if self.hold(k, client)]
        upgrades = [k for k in depends_on if exclusive and not self.hold(k, client).exclusive]
        request = NaiveRequest(client, keys, exclusive, depends_on, upgrades)
        blocked = self.must_wait(request)
        if blocked and not wait:
            return "held"
        if not blocked and not self.must_defer(request):
            if upgrades and any(r.client == client for r in self.requests):
                self.requests.append(request)
                closes = self.waits_for_itself(client)
                self.requests.remove(request)
                if closes:
                    return "deadlock"
            self.take(request, terms, origin)
            self.settle()
            return ""
        same = [r for r in self.requests if (r.client, r.keys, r.exclusive) == (client, keys, exclusive)]
        if same:
            request = same[0]
        else:
            self.requests.append(request)
            if self.waits_for_itself(client):
                self.requests.remove(request)
                return "deadlock"
        request.callers.append((origin, self.at + wait, terms))
        return None

    def take(self, request, terms, claim):
        for key in request.keys:
            hold = self.hold(key, request.client)
            if hold is None:
                self.holds.append(NaiveHold(key, request.client, request.exclusive, self.index, self.at, *terms, claim))
                self.grants.append((key, self.index, request.exclusive))
                continue
            hold.since, hold.claim, hold.token_before = self.at, None, 0
            hold.ttl, hold.session, hold.delay = terms
            if request.exclusive and not hold.exclusive:
                hold.token_before, hold.token, hold.exclusive, hold.claim = hold.token, self.index, True, claim
                self.grants.append((key, self.index, True))
            elif hold.exclusive and not request.exclusive:
                hold.exclusive = False
                self.lose(request.client, key, only_exclusive=True)

    def lose(self, client, key, only_exclusive=False):
        for request in self.requests[:]:
            if request.client == client and key in request.depends_on:
                if only_exclusive and (not request.exclusive or key in request.upgrades):
                    continue
                self.requests.remove(request)
                self.answers.update({origin: "lock_lost" for origin, _, _ in request.callers})

    def end(self, hold, lost=False):
        self.holds.remove(hold)
        if lost and hold.delay:
            before = self.delays.get(hold.key)
            if before is None or self.at + hold.delay > self.ends(*before[:2]):
                self.delays[hold.key] = (self.at, hold.delay, hold.exclusive)
        self.lose(hold.client, hold.key)

    def settle(self):
        while ready := [r for r in self.requests if not self.must_wait(r) and not self.must_defer(r)]:
            request = ready[0]
            self.requests.remove(request)
            self.answers.update({origin: "" for origin, _, _ in request.callers})
            claim = request.callers[0][0] if len(request.callers) == 1 else None
            self.take(request, request.callers[-1][2], claim)

    def release(self, client, keys, token):
        mine = [h for key in keys if (h := self.hold(key, client)) and self.matches(h, token, keys)]
        others = [h for h in self.holds if h.key in keys and h not in mine]
        if token is not None and others and not mine:
            return "not_holder"
        for hold in mine:
            self.end(hold)
        self.settle()
        return bool(mine)

    def renew(self, client, keys, token, ttl):
        holds = [h for key in keys if (h := self.hold(key, client)) and self.matches(h, token, keys)]
        if len(holds) < len(keys):
            return "lock_lost"
        for hold in holds:
            hold.since, hold.claim, hold.token_before = self.at, None, 0
            hold.ttl = hold.ttl if ttl is None or hold.session else ttl
        return ""

    @staticmethod
    def matches(hold, token, keys):
        return token is None or hold.token == token or (len(keys) > 1 and hold.token < token)

    def force(self, key):
        for hold in [h for h in self.holds if h.key == key]:
            self.end(hold, lost=True)
        self.settle()

    def end_session(self, session, lost=False):
        for request in self.requests[:]:
            mine = [c for c in request.callers if c[2][1] == session]
            self.answers.update({origin: "session_lost" for origin, _, _ in mine})
            request.callers = [c for c in request.callers if c not in mine]
            if not request.callers:
                self.requests.remove(request)
        for hold in [h for h in self.holds if h.session == session]:
            self.end(hold, lost)
        del self.sessions[session]

    def cancel(self, origin):
        for request in self.requests[:]:
            request.callers = [c for c in request.callers if c[0] != origin]
            if not request.callers:
                self.requests.remove(request)
        for hold in [h for h in self.holds if h.claim == origin]:
            if hold.token_before:
                hold.exclusive, hold.token, hold.token_before, hold.claim = False, hold.token_before, 0, None
                self.lose(hold.client, hold.key, only_exclusive=True)
            else:
                self.end(hold)
        self.settle()

    def node_restarted(self, node):
        for request in self.requests[:]:
            request.callers = [c for c in request.callers if c[0].node != node]
            if not request.callers:
                self.requests.remove(request)
        for hold in self.holds:
            if hold.claim is not None and hold.claim.node == node:
                hold.claim, hold.token_before = None, 0
        self.settle()

    def expire(self):
        self.settle()
        for request in self.requests[:]:
            late = [c for c in request.callers if c[1] <= self.at]
            self.answers.update({origin: "wait_timeout" for origin, _, _ in late})
            request.callers = [c for c in request.callers if c not in late]
            if not request.callers:
                self.requests.remove(request)
        for hold in [h for h in self.holds if h.ttl and self.ends(h.since, h.ttl) <= self.at]:
            self.end(hold, lost=True)
        for session in [name for name, (_, since, ttl) in self.sessions.items() if self.ends(since, ttl) <= self.at]:
            self.end_session(session, lost=True)
        self.delays = {key: delay for key, delay in self.delays.items() if self.ends(*delay[:2]) > self.at}
        self.settle()
