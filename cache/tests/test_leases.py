"""Leases and acknowledgements, by the clock."""

from __future__ import annotations

import pytest

from dss_cache.leases import PATIENCE_S_MAX, RATE_ERROR, Acknowledgements, GrantedLeases, HeldLease


@pytest.fixture
def held():
    return HeldLease(1.0)


@pytest.fixture
def granted():
    leases = GrantedLeases(1.0)
    leases.lead(1, now=100.0)
    return leases


def test_a_lease_counts_from_when_it_was_asked_for(held):
    token = held.ask(now=10.0)
    held.granted(token, must_apply=5)
    held.applied(5)
    assert 10.9 < held.valid_until < 11.0, "however late the answer came"


def test_a_lease_is_of_no_use_before_its_index_is_applied(held):
    held.granted(held.ask(10.0), must_apply=5)
    held.applied(4)
    assert held.valid_until == 0
    held.applied(5)
    assert held.valid_until > 10


def test_a_grant_nobody_asked_for_counts_for_nothing(held):
    held.granted(7, must_apply=0)
    token = held.ask(10.0)
    held.granted(token, 0)
    held.granted(token, 0)
    held.applied(0)
    held.forget()
    held.granted(token, 0)
    held.applied(0)
    assert held.valid_until == 0


def test_answers_in_another_order(held):
    first, second = held.ask(10.0), held.ask(10.5)
    held.granted(second, 0)
    held.applied(0)
    until = held.valid_until
    held.granted(first, 0)
    held.applied(0)
    assert held.valid_until == until


def test_the_leader_waits_longer_than_the_holder_holds(held, granted):
    """Even when the holder's clock is as slow, and the leader's as fast, as they may be."""
    held.granted(held.ask(200.0), 0)
    held.applied(0)
    granted.grant("n2", now=200.0)
    assert (held.valid_until - 200) * (1 + RATE_ERROR) < (granted.ends_at("n2") - 200)


def overdue_until(granted, start, stop):
    """The first moment, in steps of 10 ms, at which n2 is found overdue."""
    now = start
    while now < stop:
        if granted.overdue({"n2": 5}, {"n2": 4}, now):
            return now
        now += 0.01
    return None


def test_nobody_is_revoked_before_the_lease_is_over(granted):
    granted.grant("n2", now=105.0)
    found = overdue_until(granted, 105.0, 110.0)
    assert found is not None
    assert found > 106.0


def test_a_new_leader_takes_everybody_for_a_holder(granted):
    assert overdue_until(granted, 100.0, 110.0) > 101.0


def test_who_holds_no_lease_has_a_moment_to_say_so(granted):
    found = overdue_until(granted, 110.0, 120.0)
    assert found == pytest.approx(110.0 + PATIENCE_S_MAX, abs=0.02)


def test_revoked_once_and_granted_nothing_meanwhile(granted):
    assert overdue_until(granted, 110.0, 120.0)
    assert not granted.overdue({"n2": 5}, {"n2": 4}, 121.0)
    assert not granted.may_grant("n2", 121.0)
    granted.voided("n2", granted.term)
    assert granted.may_grant("n2", 121.0)


@pytest.mark.parametrize("term", [0, 1], ids=["its restart", "an earlier leader's revocation"])
def test_another_voiding_does_not_end_the_revoking(granted, term):
    """The leader's own `Revoke` is still on its way; a grant before it is applied could be used by a node that has not applied it."""
    granted.lead(2, 100.0)
    assert overdue_until(granted, 110.0, 120.0)
    granted.voided("n2", term)
    assert not granted.may_grant("n2", 121.0)
    granted.voided("n2", 2)
    assert granted.may_grant("n2", 121.0)


def test_who_never_catches_up_is_granted_nothing(granted):
    granted.overdue({"n2": 5}, {"n2": 4}, 110.0)
    assert granted.may_grant("n2", 110.5)
    assert not granted.may_grant("n2", 111.1)
    granted.overdue({"n2": 5}, {"n2": 5}, 111.2)
    assert granted.may_grant("n2", 111.2)


def test_who_keeps_up_with_a_stream_of_writes_keeps_its_lease(granted):
    for step in range(400):
        now = 110.0 + step * 0.02
        assert not granted.overdue({"n2": step + 1}, {"n2": step}, now)
        assert granted.may_grant("n2", now)


def test_waiters_end_when_everybody_has_applied():
    acks = Acknowledgements()
    must = {"n1": 5, "n2": 7}
    assert acks.wait(must, "put")
    assert acks.advance("n1", 6) == []
    assert acks.advance("n2", 6) == []
    assert not acks.covers(must)
    assert acks.advance("n2", 7) == ["put"]
    assert acks.covers(must)
    assert not acks.wait(must, "late")


def test_old_news_changes_nothing():
    acks = Acknowledgements()
    acks.advance("n1", 7)
    assert acks.advance("n1", 3) == []
    assert acks.applied == {"n1": 7}


def test_waiters_end_in_any_order():
    acks = Acknowledgements()
    acks.wait({"n1": 9}, "later")
    acks.wait({"n1": 3}, "sooner")
    assert acks.awaited() == {"n1": 9}
    assert acks.advance("n1", 5) == ["sooner"]
    assert acks.advance("n1", 9) == ["later"]
    assert acks.awaited() == {}
