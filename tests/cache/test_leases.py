"""Leases and acknowledgements."""

from __future__ import annotations

import pytest

from dss_cache.core.commands import AgreeLease
from dss_cache.core.leases import GRACE_S_MAX, RATE_ERROR, Acknowledgements, GrantedLeases, HeldLease


@pytest.fixture
def held():
    return HeldLease(1.0)


@pytest.fixture
def granted():
    leases = GrantedLeases(1.0)
    leases.lead(1, now=100.0)
    leases.agreed(1, 1000)
    return leases


def test_a_lease_counts_from_its_request(held):
    token = held.request(now=10.0)
    held.granted(token, must_apply=5, lease_s=1.0)
    held.applied(5)
    assert 10.9 < held.valid_until < 11.0, "regardless of when the answer came"


def test_a_lease_is_usable_only_when_its_index_is_applied(held):
    held.granted(held.request(10.0), must_apply=5, lease_s=1.0)
    held.applied(4)
    assert held.valid_until == 0
    held.applied(5)
    assert held.valid_until > 10


def test_a_grant_without_a_request_is_ignored(held):
    held.granted(7, must_apply=0, lease_s=1.0)
    token = held.request(10.0)
    held.granted(token, 0, lease_s=1.0)
    held.granted(token, 0, lease_s=1.0)
    held.applied(0)
    held.forget()
    held.granted(token, 0, lease_s=1.0)
    held.applied(0)
    assert held.valid_until == 0


def test_answers_out_of_order(held):
    first, second = held.request(10.0), held.request(10.5)
    held.granted(second, 0, lease_s=1.0)
    held.applied(0)
    until = held.valid_until
    held.granted(first, 0, lease_s=1.0)
    held.applied(0)
    assert held.valid_until == until


def test_the_leader_waits_longer_than_the_holder_holds(held, granted):
    """Even if the holder's clock is as slow, and the leader's as fast, as allowed."""
    held.granted(held.request(200.0), 0, lease_s=1.0)
    held.applied(0)
    granted.grant("n2", now=200.0)
    assert (held.valid_until - 200) * (1 + RATE_ERROR) < (granted.ends_at("n2") - 200)


def test_a_lease_is_as_long_as_the_leader_says(held):
    held.granted(held.request(10.0), 0, lease_s=0.5)
    held.applied(0)
    assert 10.4 < held.valid_until < 10.5


@pytest.fixture
def new():
    """A leader that was just elected and grants leases of 1 s."""
    leases = GrantedLeases(1.0)
    leases.lead(7, now=100.0)
    return leases


def test_nothing_is_granted_before_the_length_is_in_the_log(new):
    assert not new.may_grant("n2", 100.1)
    assert new.next_proposal(5000, 100.1) == AgreeLease(lease_ms=1000, term=7)
    new.proposed()
    assert new.next_proposal(5000, 100.2) is None, "it is already proposed"
    new.agreed(6, 5000)
    assert not new.may_grant("n2", 100.2), "that was by an earlier leader"
    new.agreed(7, 5000)
    assert new.may_grant("n2", 100.2)


def test_a_new_leader_waits_for_the_longest_lease_of_any_leader(new):
    new.agreed(7, 5000)
    assert overdue_until(new, 100.0, 120.0) > 105.0


def test_nothing_is_revoked_before_the_length_is_known(new):
    assert overdue_until(new, 100.0, 1000.0) is None


def test_longer_leases_are_declared_over_after_they_have_expired(new):
    new.agreed(7, 5000)
    assert new.next_proposal(5000, 105.0) is None
    assert new.next_proposal(5000, 105.1) == AgreeLease(lease_ms=1000, term=7, longer_are_over=True)
    new.proposed()
    new.agreed(7, 1000)
    assert new.next_proposal(1000, 105.2) is None


def test_each_term_agrees_on_the_length_again(new):
    new.agreed(7, 1000)
    new.lead(9, 200.0)
    assert not new.may_grant("n2", 200.1)
    assert new.next_proposal(1000, 200.1) == AgreeLease(lease_ms=1000, term=9)


def overdue_until(granted, start, stop):
    """The first time, in steps of 10 ms, at which n2 is overdue."""
    now = start
    while now < stop:
        if granted.overdue({"n2": 5}, {"n2": 4}, now):
            return now
        now += 0.01
    return None


def test_a_node_is_not_revoked_before_its_lease_is_over(granted):
    granted.grant("n2", now=105.0)
    found = overdue_until(granted, 105.0, 110.0)
    assert found is not None
    assert found > 106.0


def test_a_new_leader_assumes_that_every_node_holds_a_lease(granted):
    assert overdue_until(granted, 100.0, 110.0) > 101.0


def test_a_node_without_a_lease_has_some_time_to_acknowledge(granted):
    found = overdue_until(granted, 110.0, 120.0)
    assert found == pytest.approx(110.0 + GRACE_S_MAX, abs=0.02)


def test_a_node_is_revoked_once_and_gets_no_lease_meanwhile(granted):
    assert overdue_until(granted, 110.0, 120.0)
    assert not granted.overdue({"n2": 5}, {"n2": 4}, 121.0)
    assert not granted.may_grant("n2", 121.0)
    granted.voided("n2", granted.term)
    assert granted.may_grant("n2", 121.0)


@pytest.mark.parametrize("term", [0, 1], ids=["its restart", "an earlier leader's revocation"])
def test_another_voiding_does_not_end_the_revocation(granted, term):
    """The leader's own `Revoke` is not applied yet: a node that has not applied it could use a grant made before."""
    granted.lead(2, 100.0)
    granted.agreed(2, 1000)
    assert overdue_until(granted, 110.0, 120.0)
    granted.voided("n2", term)
    assert not granted.may_grant("n2", 121.0)
    granted.voided("n2", 2)
    assert granted.may_grant("n2", 121.0)


def test_a_node_that_does_not_catch_up_gets_no_lease(granted):
    granted.overdue({"n2": 5}, {"n2": 4}, 110.0)
    assert granted.may_grant("n2", 110.5)
    assert not granted.may_grant("n2", 111.1)
    granted.overdue({"n2": 5}, {"n2": 5}, 111.2)
    assert granted.may_grant("n2", 111.2)


def test_a_node_that_keeps_up_with_writes_keeps_its_lease(granted):
    for step in range(400):
        now = 110.0 + step * 0.02
        assert not granted.overdue({"n2": step + 1}, {"n2": step}, now)
        assert granted.may_grant("n2", now)


def test_a_waiter_is_done_when_all_nodes_have_applied():
    acks = Acknowledgements()
    pending = {"n1": 5, "n2": 7}
    assert acks.wait(pending, "put")
    assert acks.advance("n1", 6) == []
    assert acks.advance("n2", 6) == []
    assert not acks.covers(pending)
    assert acks.advance("n2", 7) == ["put"]
    assert acks.covers(pending)
    assert not acks.wait(pending, "late")


def test_old_acknowledgements_change_nothing():
    acks = Acknowledgements()
    acks.advance("n1", 7)
    assert acks.advance("n1", 3) == []
    assert acks.applied == {"n1": 7}


def test_waiters_are_done_in_any_order():
    acks = Acknowledgements()
    acks.wait({"n1": 9}, "later")
    acks.wait({"n1": 3}, "sooner")
    assert acks.awaited() == {"n1": 9}
    assert acks.advance("n1", 5) == ["sooner"]
    assert acks.advance("n1", 9) == ["later"]
    assert acks.awaited() == {}
