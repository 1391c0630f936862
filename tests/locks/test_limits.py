"""Every limit is enforced, and the refusal names it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_locks.core.commands import Acquire, CloseSession, ForceRelease, Release, StartSession
from dss_locks.core.state import LockLimits


def over(answer):
    assert answer.code == "over_limit"
    return answer.body["limit"]


def test_locks_of_one_client(limited):
    locks = limited(holds_per_client_max=2)
    locks.acquire("a", "k1")
    assert over(locks.acquire("a", "k2", "k3")) == "holds_per_client_max"
    assert locks.acquire("a", "k1", "k2").code == "", "a key that it already holds must not count twice"
    assert over(locks.acquire("a", "k3")) == "holds_per_client_max"
    locks.release("a", "k1")
    assert locks.acquire("a", "k3").code == ""


def test_total_locks(limited):
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


def test_queue_entries_count_for_free_keys_too(limited):
    locks = limited(places_max=5)
    locks.acquire("a", "k")
    waiter = locks.acquire("b", "k", "k2", "k3", wait_ms=1000)
    assert over(locks.acquire("c", "k", "k4", "k5", wait_ms=1000)) == "places_max"
    locks.reload()
    assert over(locks.acquire("c", "k", "k4", "k5", wait_ms=1000)) == "places_max"
    assert not hasattr(locks.acquire("b", "k", "k2", "k3", wait_ms=1000), "code"), "a repeat must not count as a new queue entry"
    locks.cancel(waiter)
    locks.pass_ms(1000)
    assert not hasattr(locks.acquire("c", "k", "k4", "k5", wait_ms=1000), "code")


def test_waiting_calls_of_one_client_including_repeats(limited):
    locks = limited(waiters_per_client_max=2)
    locks.acquire("a", "k1", ttl_ms=0)
    locks.acquire("b", "k1", wait_ms=1000)
    locks.acquire("b", "k1", wait_ms=1000)
    assert over(locks.acquire("b", "k1", wait_ms=1000)) == "waiters_per_client_max"


def test_a_waiter_that_exceeds_a_limit_is_refused_and_the_next_is_granted(limited):
    locks = limited(holds_per_client_max=1)
    locks.acquire("a", "k1")
    first = locks.acquire("b", "k1", wait_ms=1000)
    second = locks.acquire("c", "k1", wait_ms=1000)
    locks.acquire("b", "k2")
    locks.release("a", "k1")
    assert over(locks.answers[first]) == "holds_per_client_max"
    assert locks.answers[second].code == ""


def test_sessions_of_one_client(limited):
    locks = limited(sessions_per_client_max=1)
    (first,) = locks.entry(StartSession(client="a"))
    (second,) = locks.entry(StartSession(client="a"))
    assert over(second) == "sessions_per_client_max"
    assert locks.entry(StartSession(client="b"))[0].code == ""
    locks.reload()
    assert over(locks.entry(StartSession(client="a"))[0]) == "sessions_per_client_max"
    locks.entry(CloseSession(session=first.body["session"]))
    assert locks.entry(StartSession(client="a"))[0].code == ""


SMALL = LockLimits(
    holds_max=6,
    holds_per_client_max=3,
    holders_per_key_max=2,
    sessions_max=3,
    sessions_per_client_max=2,
    waiters_max=4,
    places_max=8,
    waiters_per_client_max=2,
    waiters_per_key_max=3,
)
clients = st.sampled_from("abcde")
keys = st.lists(st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6", "k7"]), min_size=1, max_size=3, unique=True)
histories = st.lists(
    st.one_of(
        st.builds(
            lambda client, keys, mode, wait, ttl: Acquire(
                client=client, keys=keys, mode=mode, wait_ms=wait, ttl_ms=ttl, lock_delay_ms=ttl and 500
            ),
            clients,
            keys,
            st.sampled_from(["shared", "shared", "exclusive"]),
            st.sampled_from([0, 1000]),
            st.sampled_from([0, 50]),
        ),
        st.builds(lambda client, keys: Release(client=client, keys=keys), clients, keys),
        st.builds(lambda keys: ForceRelease(key=keys[0], reason="test"), keys),
        st.builds(lambda client: StartSession(client=client, ttl_ms=300), clients),
        st.sampled_from([20, 100]),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(history=histories)
def test_no_history_exceeds_a_limit(history, harness):
    """Also, a request is refused only if it would exceed the limit."""
    locks = harness(SMALL)
    for step in history:
        if isinstance(step, int):
            locks.pass_ms(step)
            answers = []
        else:
            answers = locks.entry(step)
        used = usage(locks.table)
        for name, most in used.items():
            assert most <= getattr(SMALL, name), name
        for answer in answers:
            if getattr(answer, "code", "") == "over_limit":
                assert used[answer.body["limit"]] + len(getattr(step, "keys", "1")) > answer.body["maximum"]


def usage(table) -> dict[str, int]:
    """The current value for each limit."""
    holds, waiters = list(table.holdings.all()), table.waiters.all()
    sessions = list(table.holdings.sessions.by_id.values())

    def most(names) -> int:
        names = list(names)
        return max((names.count(name) for name in names), default=0)

    return {
        "holds_max": len(holds) + len(table.holdings.delays.by_key),
        "holds_per_client_max": most(hold.client for hold in holds),
        "holders_per_key_max": most(hold.key for hold in holds),
        "sessions_max": len(sessions),
        "sessions_per_client_max": most(session.client for session in sessions),
        "waiters_max": sum(len(waiter.callers) for waiter in waiters),
        "places_max": sum(len(waiter.keys) for waiter in waiters),
        "waiters_per_client_max": most(waiter.client for waiter in waiters for _ in waiter.callers),
        "waiters_per_key_max": most(key for waiter in waiters for key in waiter.keys),
    }
