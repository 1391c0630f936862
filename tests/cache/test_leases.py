"""Leases and acknowledgements, by the clock."""

from __future__ import annotations

import pytest

from dss_cache.core.commands import AgreeLease
from dss_cache.core.leases import PATIENCE_S_MAX, RATE_ERROR, Acknowledgements, GrantedLeases, HeldLease


@pytest.fixture
def held():
    return HeldLease(1.0)


@pytest.fixture
def granted():
    leases = GrantedLeases(1.0)
    leases.lead(1, now=100.0)
    leases.agreed(1, 1000)
    return leases


def test_a_lease_counts_from_when_it_was_asked_for(held):
    token = held.ask(now=10.0)
    held.granted(token, must_apply=5, lease_s=1.0)
    held.applied(5)
    assert 10.9 < held.valid_until < 11.0, "however late the answer came"


def test_a_lease_is_of_no_use_before_its_index_is_applied(held):
    held.granted(held.ask(10.0), must_apply=5, lease_s=1.0)
    held.applied(4)
    assert held.valid_until == 0
    held.applied(5)
    assert held.valid_until > 10


def test_a_grant_nobody_asked_for_counts_for_nothing(held):
    held.granted(7, must_apply=0, lease_s=1.0)
    token = held.ask(10.0)
    held.granted(token, 0, lease_s=1.0)
    held.granted(token, 0, lease_s=1.0)
    held.applied(0)
    held.forget()
    held.granted(token, 0, lease_s=1.0)
    held.applied(0)
    assert held.valid_until == 0


def test_answers_in_another_order(held):
    first, second = held.ask(10.0), held.ask(10.5)
    held.granted(second, 0, lease_s=1.0)
    held.applied(0)
    until = held.valid_until
    held.granted(first, 0, lease_s=1.0)
    held.applied(0)
    assert held.valid_until == until


def test_the_leader_waits_longer_than_the_holder_holds(held, granted):
    """Even when the holder's clock is as slow, and the leader's as fast, as they may be."""
    held.granted(held.ask(200.0), 0, lease_s=1.0)
    held.applied(0)
    granted.grant("n2", now=200.0)
    assert (held.valid_until - 200) * (1 + RATE_ERROR) < (granted.ends_at("n2") - 200)


def test_a_lease_is_as_long_as_the_leader_says(held):
    held.granted(held.ask(10.0), 0, lease_s=0.5)
    held.applied(0)
    assert 10.4 < held.valid_until < 10.5


@pytest.fixture
def new():
    """A leader whose own leases are of 1 s, just elected."""
    leases = GrantedLeases(1.0)
    leases.lead(7, now=100.0)
    return leases


def test_nothing_is_granted_before_the_log_says_for_how_long(new):
    assert not new.may_grant("n2", 100.1)
    assert new.to_agree(5000, 100.1) == AgreeLease(lease_ms=1000, term=7)
    new.agreeing()
    assert new.to_agree(5000, 100.2) is None, "it is under way"
    new.agreed(6, 5000)
    assert not new.may_grant("n2", 100.2), "that was an earlier leader's"
    new.agreed(7, 5000)
    assert new.may_grant("n2", 100.2)


def test_a_new_leader_waits_for_the_longest_lease_that_anybody_granted(new):
    new.agreed(7, 5000)
    assert overdue_until(new, 100.0, 120.0) > 105.0


def test_before_it_knows_how_long_it_revokes_nobody(new):
    assert overdue_until(new, 100.0, 1000.0) is None


def test_longer_leases_are_declared_over_when_they_are(new):
    new.agreed(7, 5000)
    assert new.to_agree(5000, 105.0) is None
    assert new.to_agree(5000, 105.1) == AgreeLease(lease_ms=1000, term=7, longer_are_over=True)
    new.agreeing()
    new.agreed(7, 1000)
    assert new.to_agree(1000, 105.2) is None


def test_another_term_is_agreed_anew(new):
    new.agreed(7, 1000)
    new.lead(9, 200.0)
    assert not new.may_grant("n2", 200.1)
    assert new.to_agree(1000, 200.1) == AgreeLease(lease_ms=1000, term=9)


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
    granted.agreed(2, 1000)
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
