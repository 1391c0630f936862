"""Fencing tokens are Raft indexes. They grow with every grant that excludes an earlier one, even within one entry."""

from dss_locks.core import inspection
from dss_locks.core.commands import Acquire, Release
from dss_raft.replication.machine import Origin


def test_tokens_grow_over_releases_and_clients(locks):
    tokens = []
    for client in "abcab":
        tokens.append(locks.acquire(client, "k").body["fencing_token"])
        locks.release(client, "k")
    assert tokens == sorted(set(tokens))


def test_shared_grants_of_one_entry_share_a_token(locks):
    first, second = locks.entry(Acquire(key="k", client="a", mode="shared"), Acquire(key="k", client="b", mode="shared"))
    assert first.body["fencing_token"] == second.body["fencing_token"] == locks.index


def test_a_second_exclusive_grant_in_one_entry_is_deferred_to_the_next(locks):
    first, released, waiter = locks.entry(
        Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b")
    )
    assert first.body["fencing_token"] == locks.index
    assert released.body["released"]
    assert isinstance(waiter, Origin), "it must wait even with wait_ms=0: a token cannot be used twice"
    assert locks.table.next_deadline_ms() <= locks.at_ms, "the leader must propose the next entry immediately"
    locks.entry()
    assert locks.answers[waiter].body["fencing_token"] == locks.index
    assert locks.table.next_deadline_ms() > locks.at_ms


def test_a_deferred_grant_does_not_time_out_if_the_next_entry_is_late(locks):
    """The key became free in time. Only the token had to wait for the next entry."""
    _, _, waiter = locks.entry(Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b"))
    locks.pass_ms(3000)
    assert locks.answers[waiter].code == ""


def test_a_key_released_twice_in_one_entry_is_granted_once(locks):
    locks.acquire("a", "k")
    waiters = [locks.acquire(client, "k", wait_ms=20_000) for client in "bc"]
    locks.entry(Release(key="k", client="a"), Release(key="k", client="b"))
    first = locks.answers[waiters[0]].body["fencing_token"]
    assert first == locks.index
    assert waiters[1] not in locks.answers
    locks.entry()
    assert locks.answers[waiters[1]].body["fencing_token"] == locks.index > first


def test_shared_after_exclusive_in_one_entry_is_deferred(locks):
    _, _, reader = locks.entry(
        Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b", mode="shared")
    )
    assert isinstance(reader, Origin)


def test_shared_requests_are_deferred_after_a_downgrade_in_the_entry_of_its_grant(locks):
    _, _, reader = locks.entry(
        Acquire(key="k", client="a"),
        Acquire(key="k", client="a", mode="shared"),
        Acquire(key="k", client="b", mode="shared"),
    )
    assert isinstance(reader, Origin)
    locks.entry()
    assert locks.holders("k") == [("a", "shared"), ("b", "shared")]


def test_a_request_that_became_an_upgrade_while_it_waited_is_deferred(locks):
    """Found by the state machine test: a shared grant and an older exclusive request of the same client in one entry."""
    locks.shared("b", "k")
    older = locks.acquire("a", "k", wait_ms=20_000)
    shared, _ = locks.entry(Acquire(key="k", client="a", mode="shared"), Release(key="k", client="b"))
    assert shared.body["fencing_token"] == locks.index
    assert older not in locks.answers
    locks.entry()
    assert locks.answers[older].body["fencing_token"] == locks.index


def test_other_keys_are_not_deferred(locks):
    outcomes = locks.entry(Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k2", client="b"))
    assert outcomes[2].code == ""


def test_deferred_grants_survive_a_snapshot(locks):
    _, _, waiter = locks.entry(Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b"))
    locks.reload()
    assert locks.table.next_deadline_ms() <= locks.at_ms
    locks.entry()
    assert locks.answers[waiter].code == ""


def test_check_distinguishes_the_current_token_from_old_ones(locks):
    old = locks.acquire("a", "k").body["fencing_token"]
    assert inspection.check(locks.table, "k", old) == {"valid": True, "current": old}
    locks.release("a", "k")
    assert inspection.check(locks.table, "k", old) == {"valid": False, "current": 0}
    new = locks.acquire("b", "k").body["fencing_token"]
    assert inspection.check(locks.table, "k", old) == {"valid": False, "current": new}
