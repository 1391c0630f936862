"""The table behaves as the naive model does, for random sequences of commands and events."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dss_locks.core import account, inspection
from dss_locks.core.commands import Acquire, CloseSession, ForceRelease, Release, Renew, RenewSession, StartSession
from dss_locks.core.deadlock import find_cycle
from dss_locks.core.state import LockChanged, SessionEnded
from dss_locks.core.table import LockTable
from dss_raft.replication.machine import Origin, Resolved


def load_sibling(name):
    """Load a module of this folder from its file. The folder is not a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def size(text):
    return len(text.encode())


naive_locks, observer = load_sibling("naive_locks"), load_sibling("observer")

CLIENTS = st.sampled_from(["a", "b", "c", "ö"])
KEYS = st.lists(st.sampled_from(["k1", "k2", "k3"]), min_size=1, max_size=3, unique=True)
TTLS = st.sampled_from([0, 60, 300])
METAS = st.sampled_from([None, None, {"pid": 1}, {"pid": 2, "host": "näme"}])
DELAYS = st.sampled_from([0, 0, 40, 300])
#: which of the latest sessions; None: no session
SESSIONS = st.sampled_from([None, None, None, 0, 1, 2])
NODES = st.sampled_from(["n1", "n2"])
MODES = st.sampled_from(["exclusive", "shared"])


class LocksAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.table, self.model = LockTable(), naive_locks.NaiveLocks()
        self.model.at, self.model.index = 10_000, 1
        self.incarnations = {"n1": 1, "n2": 1}
        self.seq = 0
        self.origins: list[Origin] = []
        self.answers: dict[Origin, str] = {}
        self.sessions: list[tuple[str, str]] = []
        self.observer = observer.Observer()
        self.last_grant: dict[str, tuple[int, str, str]] = {}

    # -- commands

    @rule(
        client=CLIENTS,
        keys=KEYS,
        mode=MODES,
        ttl=TTLS,
        wait=st.sampled_from([0, 40, 200, 200]),
        node=NODES,
        back=SESSIONS,
        delay=DELAYS,
        meta=METAS,
    )
    def acquire(self, client, keys, mode, ttl, wait, node, back, delay, meta):
        origin = self.origin(node)
        session, owner = self.session(back)
        client = owner if owner and wait else client
        command = Acquire(
            **self.names(keys),
            client=client,
            mode=mode,
            ttl_ms=ttl,
            wait_ms=wait,
            session=session,
            lock_delay_ms=delay,
            meta=meta,
        )
        waits_before = {r.client for r in self.model.requests} | {client}
        expected = self.model.acquire(origin, client, keys, mode == "exclusive", ttl, wait, session, delay)
        result = self.apply(command, origin)
        assert (None if result is None else result.code) == expected
        if expected == "deadlock":
            self.check_cycle(result.body["cycle"], client, waits_before)

    @rule(client=CLIENTS, keys=KEYS, token=st.sampled_from(["none", "none", "right", "old", "new"]))
    def release(self, client, keys, token):
        token = self.token(token, client, keys)
        expected = self.model.release(client, keys, token)
        result = self.apply(Release(**self.names(keys), client=client, fencing_token=token), self.origin("n1"))
        assert (result.code or result.body["released"]) == expected

    @rule(client=CLIENTS, keys=KEYS, token=st.sampled_from(["none", "right", "old"]), ttl=st.sampled_from([None, 0, 20, 300]))
    def renew(self, client, keys, token, ttl):
        token = self.token(token, client, keys)
        expected = self.model.renew(client, keys, token, ttl)
        result = self.apply(Renew(**self.names(keys), client=client, fencing_token=token, ttl_ms=ttl), self.origin("n1"))
        assert result.code == expected

    @rule(key=st.sampled_from(["k1", "k2", "k3"]))
    def force(self, key):
        self.model.force(key)
        self.apply(ForceRelease(key=key, reason="test"), self.origin("n1"))

    @rule(client=CLIENTS, ttl=st.sampled_from([60, 300]))
    def start_session(self, client, ttl):
        result = self.apply(StartSession(client=client, ttl_ms=ttl), self.origin("n1"))
        assert result.body["session"] not in self.model.sessions
        self.sessions.append((result.body["session"], client))
        self.model.sessions[result.body["session"]] = (client, self.model.at, ttl)

    @precondition(lambda self: self.sessions)
    @rule(back=st.integers(0, 2), ttl=st.sampled_from([None, 20, 300]), close=st.booleans())
    def use_session(self, back, ttl, close):
        name, client = self.session(back)
        command = CloseSession(session=name) if close else RenewSession(session=name, ttl_ms=ttl)
        result = self.apply(command, self.origin("n1"))
        is_live = name in self.model.sessions
        assert (result.body["closed"] if close else not result.code) == is_live
        if is_live and close:
            self.model.end_session(name)
            self.model.settle()
        elif is_live:
            self.model.sessions[name] = (client, self.model.at, ttl or self.model.sessions[name][2])

    @precondition(lambda self: self.origins)
    @rule(back=st.integers(0, 6))
    def cancel(self, back):
        origin = self.origins[max(0, len(self.origins) - 1 - back)]
        if origin.incarnation != self.incarnations[origin.node]:
            return
        self.model.cancel(origin)
        self.table.cancel(origin, self.model.at, self.model.index)
        self.collect()

    @rule(node=NODES)
    def restart(self, node):
        self.incarnations[node] += 1
        self.model.node_restarted(node)
        self.table.node_restarted(node, self.model.at, self.model.index)
        self.collect()

    # -- entries

    @rule(ms=st.sampled_from([0, 1, 20, 60, 300]), leader=st.booleans(), reload=st.booleans())
    def next_entry(self, ms, leader, reload):
        if reload:
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.table.snapshot()))
            copy = LockTable()
            copy.restore(state)
            assert copy.snapshot() == self.table.snapshot()
            assert copy.usage() == self.table.usage()
            self.table = copy
        model = self.model
        model.index += 1
        model.at += ms
        if leader and ms == 300:
            model.rearmed = model.at
            self.table.rearm(model.at, model.index)
        model.expire()
        deadline = self.table.next_deadline_ms()
        if deadline is not None and deadline <= model.at:
            self.table.expire(model.at, model.index)
        self.collect()

    # -- invariants

    @invariant()
    def same_state(self):
        if not hasattr(self, "table"):
            return
        table, model = self.table, self.model
        holds = {(h.key, h.client, h.exclusive, h.token, h.ttl_ms, h.session, h.lock_delay_ms) for h in table.holdings.all()}
        assert holds == {(h.key, h.client, h.exclusive, h.token, h.ttl, h.session, h.delay) for h in model.holds}
        delays = {d.key: (d.since_ms, d.length_ms, d.exclusive) for d in table.holdings.delays.by_key.values()}
        assert delays == model.delays
        assert table.holdings.sessions.by_id.keys() == model.sessions.keys()
        assert [(p.client, p.keys, p.exclusive) for p in table.waiters.all()] == [
            (r.client, r.keys, r.exclusive) for r in model.requests
        ]
        assert self.answers == model.answers
        deadlines = [model.ends(h.since, h.ttl) for h in model.holds if h.ttl]
        deadlines += [model.ends(since, ttl) for _, since, ttl in model.sessions.values()]
        deadlines += [model.ends(since, length) for since, length, _ in model.delays.values()]
        deadlines += [deadline for r in model.requests for _, deadline, _ in r.callers]
        if not table.scheduler.deferred:
            assert table.next_deadline_ms() == min(deadlines, default=None)

    @invariant()
    def the_observer_matches_the_table(self):
        if hasattr(self, "table"):
            self.observer.check(self.table)

    @invariant()
    def the_account_is_that_of_the_state(self):
        """The same bytes, counted naively: a node that applied everything has the account of one that loaded a snapshot."""
        if not hasattr(self, "table"):
            return
        table = self.table
        holds, waiters = list(table.holdings.all()), table.waiters.all()
        callers = [caller for waiter in waiters for caller in waiter.callers]
        metas = {record.meta.encoded for record in [*holds, *callers] if record.meta is not None}
        assert table.usage() == {
            "lock_holds": sum(account.HOLD_BYTES + size(h.key) + size(h.client) for h in holds),
            "lock_meta": sum(account.META_BYTES + len(encoded) for encoded in metas),
            "lock_waiters": sum(account.CALLER_BYTES + size(caller.session) for caller in callers)
            + sum(
                account.WAITER_BYTES + sum(account.PLACE_BYTES + size(key) + size(waiter.client) for key in waiter.keys)
                for waiter in waiters
            ),
            "lock_sessions": sum(account.SESSION_BYTES + size(s.client) for s in table.holdings.sessions.by_id.values()),
            "lock_delays": sum(account.DELAY_BYTES + size(d.key) + size(d.client) for d in table.holdings.delays.by_key.values()),
            "lock_audit": sum(
                account.FORCED_BYTES + sum(map(size, (f.key, f.client, f.reason, f.by))) for f in table.forced_releases
            ),
        }

    @invariant()
    def the_counters_add_up(self):
        if not hasattr(self, "table"):
            return
        holdings, waiters = self.table.holdings, self.table.waiters
        holds = list(holdings.all())
        assert holdings.held == [sum(not h.exclusive for h in holds), sum(h.exclusive for h in holds)]
        assert holdings.clients == {c: n for c in "abcö" if (n := sum(h.client == c for h in holds))}
        names = [session.client for session in holdings.sessions.by_id.values()]
        assert holdings.sessions.of_client == {c: n for c in "abcö" if (n := names.count(c))}
        queued = {key for p in waiters.all() for key in p.keys}
        assert holdings.contended == {c: n for c in "abcö" if (n := sum(h.client == c and h.key in queued for h in holds))}
        for key, lock in holdings.locks.items():
            assert lock.holder_count() or lock.queue, f"{key} is empty"
            assert list(lock.exclusives or ()) == [p for p in lock.queue or () if p.exclusive]
            assert sum(h.exclusive for h in lock.holds()) == 0 or lock.holder_count() == 1
            assert list(lock.upgraders or ()) == [p for p in lock.queue or () if key in p.upgrades]
        for client in waiters.of_client:
            assert not find_cycle(holdings.locks, waiters.of_client, client), "a cycle that was not refused"
            assert not self.model.waits_for_itself(client)
        graph = inspection.graph(self.table)
        nodes = {row["client"] for row in graph["nodes"]}
        assert nodes == {name for waiter, _, other in self.model.edges() for name in (waiter, other)} | set(waiters.of_client)
        nearest = set()
        for waiter in waiters.all():
            for key in waiter.keys:
                blockers = list(holdings.locks[key].blockers(waiter, key))
                nearest |= {(waiter.client, key, b.client) for b in blockers if b.because == "holds"}
                nearest |= {(waiter.client, key, b.client) for b in blockers[-1:]}
        assert {(edge["from"], edge["key"], edge["to"]) for edge in graph["edges"]} == nearest

    # -- helpers

    def origin(self, node) -> Origin:
        self.seq += 1
        origin = Origin(node, self.incarnations[node], self.seq)
        self.origins.append(origin)
        return origin

    def session(self, back):
        """(id, client) of one of the latest sessions, which may have ended; ("", "") for none."""
        return self.sessions[-1 - back % len(self.sessions)] if self.sessions and back is not None else ("", "")

    @staticmethod
    def names(keys):
        return {"key": keys[0]} if len(keys) == 1 else {"keys": keys}

    def token(self, which, client, keys):
        tokens = [h.token for key in keys if (h := self.model.hold(key, client))]
        right = max(tokens, default=1)
        return {"none": None, "right": right, "old": max(0, right - 1), "new": right + 1}[which]

    def apply(self, command, origin):
        result = self.table.apply(command, self.model.at, self.model.index, origin)
        self.collect()
        return result

    def collect(self):
        for event in self.table.take_events():
            if isinstance(event, Resolved):
                assert event.waiter not in self.answers, "answered twice"
                self.answers[event.waiter] = event.result.code
            elif isinstance(event, LockChanged):
                assert event.index == self.model.index
                self.observer.see(event)
                if event.kind == "granted":
                    self.check_token(event)
            elif isinstance(event, SessionEnded):
                assert event.session not in self.table.holdings.sessions.by_id

    def check_token(self, event):
        """The tokens of a key grow from each grant to the next. Only shared holders may have the same token."""
        token, mode = event.fencing_token, event.mode
        last_token, last_mode, last_client = self.last_grant.get(event.key, (0, "shared", ""))
        downgraded = last_mode == "exclusive" and last_client == event.client
        if mode == "shared" and downgraded and token <= last_token:
            return
        assert token > last_token or (token == last_token and mode == last_mode == "shared")
        self.last_grant[event.key] = (token, mode, event.client)

    def check_cycle(self, cycle, client, waiting):
        assert cycle[0]["client"] == client
        assert cycle[-1]["held_by"] == client
        assert [step["held_by"] for step in cycle[:-1]] == [step["client"] for step in cycle[1:]]
        names = [step["client"] for step in cycle]
        assert len(set(names)) == len(names)
        assert set(names) <= waiting
        edges = self.model.edges()
        for step in cycle[1:-1]:
            assert (step["client"], step["waits_for"], step["held_by"]) in edges


LocksAgainstModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck))
TestLocksAgainstModel = LocksAgainstModel.TestCase
