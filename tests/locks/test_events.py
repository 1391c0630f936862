"""Events: every change of the holders or waiters of a key is emitted once, with its reason.

`test_against_model.py` checks that no event is missing in any history. These tests check the reasons.
"""

import pytest

from dss_locks.core.commands import Acquire, CloseSession, Release, StartSession
from dss_locks.core.state import SessionEnded
from dss_raft.replication.machine import Origin


def emitted(locks, since=0):
    return [(c.kind, c.key, c.client, c.reason) for c in locks.changes[since:]]


def session_of(locks, client, ttl_ms=1000):
    (answer,) = locks.entry(StartSession(client=client, ttl_ms=ttl_ms))
    return answer.body["session"]


def wait(locks, **fields):
    """Let b wait for k, which a holds. Returns the waiting call."""
    locks.acquire("a", "k", ttl_ms=0)
    waiter = locks.acquire("b", "k", wait_ms=1000, **fields)
    locks.changes.clear()
    return waiter


def test_an_event_names_its_entry_token_and_mode(locks):
    token = locks.acquire("a", "k", lock_delay_ms=700).body["fencing_token"]
    locks.shared("b", "k", wait_ms=1000)
    locks.pass_ms(300)
    locks.force("k", reason="it hangs")
    granted, queued, lost = locks.changes
    assert (granted.mode, granted.fencing_token, granted.index) == ("exclusive", token, 1)
    assert (queued.kind, queued.mode, queued.place, queued.index) == ("queued", "shared", 1, 2)
    assert (lost.reason, lost.detail, lost.held_ms, lost.delay_ms) == ("forced", "it hangs", 300, 700)
    assert (lost.fencing_token, lost.index) == (token, 4)


def test_events_when_a_waiter_is_granted(locks):
    wait(locks)
    locks.release("a", "k")
    assert emitted(locks) == [
        ("released", "k", "a", ""),
        ("dequeued", "k", "b", "granted"),
        ("granted", "k", "b", ""),
    ]


def test_a_repeat_of_a_waiting_call_is_no_event(locks):
    wait(locks)
    locks.acquire("b", "k", wait_ms=1000)
    assert emitted(locks) == []


@pytest.mark.parametrize("reason", ["wait_timeout", "cancelled", "node_restarted", "session_lost", "lock_lost", "over_limit"])
def test_dequeued_has_the_reason_why_a_wait_was_not_granted(locks, limited, reason):
    if reason == "over_limit":
        locks = limited(holds_per_client_max=1)
    session = session_of(locks, "b", ttl_ms=500) if reason == "session_lost" else ""
    if reason == "lock_lost":
        locks.shared("b", "k2", ttl_ms=500)
        locks.shared("c", "k2", ttl_ms=0)
        locks.acquire("b", "k2", wait_ms=1000)
        locks.changes.clear()
        locks.pass_ms(500)
        assert emitted(locks) == [("lost", "k2", "b", "expired"), ("dequeued", "k2", "b", "lock_lost")]
        return
    waiter = wait(locks, session=session)
    if reason == "wait_timeout":
        locks.pass_ms(1000)
    elif reason == "cancelled":
        locks.cancel(waiter)
    elif reason == "node_restarted":
        locks.restart_node("n1")
    elif reason == "session_lost":
        locks.pass_ms(500)
    else:
        locks.acquire("b", "k2")
        locks.changes.clear()
        locks.release("a", "k")
        locks.changes.pop(0)
    assert emitted(locks) == [("dequeued", "k", "b", reason)]


def test_a_refused_deadlock_is_an_event_at_each_key(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    locks.acquire("a", "k2", wait_ms=1000)
    locks.changes.clear()
    locks.acquire("b", "k1", "k3", wait_ms=1000)
    assert emitted(locks) == [("refused", "k1", "b", "deadlock"), ("refused", "k3", "b", "deadlock")]


def test_a_call_that_is_refused_immediately_is_no_event(locks):
    locks.acquire("a", "k")
    locks.changes.clear()
    assert locks.acquire("b", "k").code == "held"
    locks.acquire("a", "k")
    locks.renew("a", "k")
    assert emitted(locks) == []


def test_events_of_upgrades_and_downgrades(locks):
    locks.shared("a", "k")
    locks.acquire("a", "k")
    locks.shared("a", "k")
    assert emitted(locks) == [("granted", "k", "a", reason) for reason in ("", "upgraded", "downgraded")]
    locks.acquire("a", "k")
    locks.changes.clear()
    locks.cancel(Origin("n1", 1, locks.seq))
    assert emitted(locks) == [("granted", "k", "a", "cancelled")]
    assert [c.mode for c in locks.changes] == ["shared"]


def test_events_when_a_session_ends(locks):
    closed, lost = session_of(locks, "a"), session_of(locks, "b")
    locks.acquire("a", "k1", session=closed)
    locks.acquire("b", "k2", session=lost)
    locks.changes.clear()
    locks.entry(CloseSession(session=closed))
    locks.pass_ms(1000)
    assert emitted(locks) == [("released", "k1", "a", "session_closed"), ("lost", "k2", "b", "session_lost")]
    ends = [(e.session, e.client, e.reason) for e in locks.events if isinstance(e, SessionEnded)]
    assert ends == [(closed, "a", "closed"), (lost, "b", "expired")]


def test_an_event_when_a_lock_delay_ends(locks):
    locks.acquire("a", "k", ttl_ms=1000, lock_delay_ms=500)
    locks.pass_ms(1000)
    locks.changes.clear()
    locks.pass_ms(500)
    assert emitted(locks) == [("delay_ended", "k", "a", "")]


def test_a_deferred_grant_is_queued_until_the_next_entry(locks):
    locks.entry(Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b"))
    locks.entry()
    kinds = [(c.kind, c.client, c.index) for c in locks.changes]
    assert kinds == [("granted", "a", 1), ("released", "a", 1), ("queued", "b", 1), ("dequeued", "b", 2), ("granted", "b", 2)]
