"""Shared and exclusive locks."""

import pytest


def test_a_free_key_is_granted_with_the_index_as_its_token(locks):
    answer = locks.acquire("a", "k")
    assert answer.code == ""
    assert answer.body == {"fencing_token": locks.index, "expires_in_ms": 30_000, "reentrant": False}


@pytest.mark.parametrize(("first", "second"), [("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive")])
def test_an_exclusive_lock_is_alone(locks, first, second):
    token = locks.acquire("a", "k", mode=first).body["fencing_token"]
    answer = locks.acquire("b", "k", mode=second)
    assert answer.code == "held"
    assert answer.body["position"] == 1
    assert answer.body["holders"] == [{"key": "k", "client": "a", "mode": first, "fencing_token": token, "expires_in_ms": 30_000}]


def test_a_key_may_have_many_shared_holders(locks):
    for client in "abc":
        assert locks.shared(client, "k").code == ""
    assert locks.holders("k") == [("a", "shared"), ("b", "shared"), ("c", "shared")]
    locks.release("b", "k")
    assert locks.holders("k") == [("a", "shared"), ("c", "shared")]


def test_keys_are_independent(locks):
    locks.acquire("a", "k1")
    assert locks.acquire("b", "k2").code == ""


def test_a_released_key_leaves_nothing_behind(locks):
    locks.acquire("a", "k")
    locks.acquire("b", "k", wait_ms=1000)
    locks.release("a", "k")
    locks.release("b", "k")
    assert locks.table.locks == {}
    assert locks.table.holdings.clients == {}
    assert locks.table.waiters.of_client == {}
    assert locks.table.holdings.held == [0, 0]
