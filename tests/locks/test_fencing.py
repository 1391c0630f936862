"""Fencing tokens are Raft indexes, and grow with every grant that excludes an earlier one, within one entry too."""

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


def test_a_second_exclusive_grant_in_one_entry_is_put_off_to_the_next(locks):
    first, released, waiter = locks.entry(
        Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b")
    )
    assert first.body["fencing_token"] == locks.index
    assert released.body["released"]
    assert isinstance(waiter, Origin), "it waits, although it asked not to: a token cannot be given twice"
    assert locks.table.next_deadline_ms() <= locks.at_ms, "the leader proposes the next entry at once"
    locks.entry()
    assert locks.answers[waiter].body["fencing_token"] == locks.index
    assert locks.table.next_deadline_ms() > locks.at_ms


def test_what_was_put_off_is_granted_even_if_the_next_entry_comes_late(locks):
    """It was free within its wait; only its token had to be fetched."""
    _, _, waiter = locks.entry(Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b"))
    locks.pass_ms(3000)
    assert locks.answers[waiter].code == ""


def test_a_waiter_whose_turn_comes_twice_in_one_entry(locks):
    locks.acquire("a", "k")
    waiters = [locks.acquire(client, "k", wait_ms=20_000) for client in "bc"]
    locks.entry(Release(key="k", client="a"), Release(key="k", client="b"))
    first = locks.answers[waiters[0]].body["fencing_token"]
    assert first == locks.index
    assert waiters[1] not in locks.answers
    locks.entry()
    assert locks.answers[waiters[1]].body["fencing_token"] == locks.index > first


def test_shared_after_exclusive_in_one_entry_is_put_off_too(locks):
    _, _, reader = locks.entry(
        Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b", mode="shared")
    )
    assert isinstance(reader, Origin)


def test_a_downgrade_in_the_entry_of_its_grant_keeps_others_out_of_that_entry(locks):
    _, _, reader = locks.entry(
        Acquire(key="k", client="a"),
        Acquire(key="k", client="a", mode="shared"),
        Acquire(key="k", client="b", mode="shared"),
    )
    assert isinstance(reader, Origin)
    locks.entry()
    assert locks.holders("k") == [("a", "shared"), ("b", "shared")]


def test_an_upgrade_that_was_none_when_it_queued_is_put_off_too(locks):
    """Found by the state machine test: a's shared grant and its older exclusive request meet in one entry."""
    locks.shared("b", "k")
    older = locks.acquire("a", "k", wait_ms=20_000)
    shared, _ = locks.entry(Acquire(key="k", client="a", mode="shared"), Release(key="k", client="b"))
    assert shared.body["fencing_token"] == locks.index
    assert older not in locks.answers
    locks.entry()
    assert locks.answers[older].body["fencing_token"] == locks.index


def test_other_keys_are_not_put_off(locks):
    outcomes = locks.entry(Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k2", client="b"))
    assert outcomes[2].code == ""


def test_what_is_put_off_survives_a_snapshot(locks):
    _, _, waiter = locks.entry(Acquire(key="k", client="a"), Release(key="k", client="a"), Acquire(key="k", client="b"))
    locks.reload()
    assert locks.table.next_deadline_ms() <= locks.at_ms
    locks.entry()
    assert locks.answers[waiter].code == ""


def test_check_tells_a_present_holders_token_from_an_old_one(locks):
    old = locks.acquire("a", "k").body["fencing_token"]
    assert inspection.check(locks.table, "k", old) == {"valid": True, "current": old}
    locks.release("a", "k")
    assert inspection.check(locks.table, "k", old) == {"valid": False, "current": 0}
    new = locks.acquire("b", "k").body["fencing_token"]
    assert inspection.check(locks.table, "k", old) == {"valid": False, "current": new}
