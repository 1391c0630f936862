"""Every table is bounded, and says so by name."""

import pytest


def over(answer):
    assert answer.code == "over_limit"
    return answer.body["limit"]


def test_keys_of_one_client(limited):
    locks = limited(holds_per_client_max=2)
    locks.acquire("a", "k1")
    assert over(locks.acquire("a", "k2", "k3")) == "holds_per_client_max"
    assert locks.acquire("a", "k1", "k2").code == "", "what it holds already does not count twice"
    assert over(locks.acquire("a", "k3")) == "holds_per_client_max"
    locks.release("a", "k1")
    assert locks.acquire("a", "k3").code == ""


def test_locks_in_all(limited):
    locks = limited(holds_max=2)
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    answer = locks.acquire("c", "k3")
    assert over(answer) == "holds_max"
    assert answer.body["maximum"] == 2


def test_shared_holders_of_one_key(limited):
    locks = limited(holders_per_key_max=2)
    locks.shared("a", "k")
    locks.shared("b", "k")
    assert over(locks.shared("c", "k")) == "holders_per_key_max"
    assert locks.shared("a", "k").code == ""


@pytest.mark.parametrize("limit", ["waiters_max", "waiters_per_key_max"])
def test_waiters(limited, limit):
    locks = limited(**{limit: 2})
    locks.acquire("a", "k")
    locks.acquire("b", "k", wait_ms=1000)
    locks.acquire("c", "k", wait_ms=1000)
    assert over(locks.acquire("d", "k", wait_ms=1000)) == limit
    locks.pass_ms(1000)
    assert not hasattr(locks.acquire("d", "k", wait_ms=1000), "code")


def test_waiting_calls_of_one_client_repeats_included(limited):
    locks = limited(waiters_per_client_max=2)
    locks.acquire("a", "k1", ttl_ms=0)
    locks.acquire("b", "k1", wait_ms=1000)
    locks.acquire("b", "k1", wait_ms=1000)
    assert over(locks.acquire("b", "k1", wait_ms=1000)) == "waiters_per_client_max"


def test_a_waiter_over_a_limit_when_its_turn_comes_is_told_so_and_the_next_goes_on(limited):
    locks = limited(holds_per_client_max=1)
    locks.acquire("a", "k1")
    first = locks.acquire("b", "k1", wait_ms=1000)
    second = locks.acquire("c", "k1", wait_ms=1000)
    locks.acquire("b", "k2")
    locks.release("a", "k1")
    assert over(locks.answers[first]) == "holds_per_client_max"
    assert locks.answers[second].code == ""
