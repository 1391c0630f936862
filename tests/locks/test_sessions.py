"""Sessions: one lease for many locks of a client."""

import msgspec
import pytest

from dss_locks.core.commands import Acquire, CloseSession, Release, RenewSession, StartSession


def start(locks, client="a", **fields):
    (answer,) = locks.entry(StartSession(client=client, **fields))
    return answer.body["session"]


def renew(locks, session, **fields):
    (answer,) = locks.entry(RenewSession(session=session, **fields))
    return answer


def close(locks, session):
    (answer,) = locks.entry(CloseSession(session=session))
    return answer


def test_one_renewal_keeps_all_locks(locks):
    session = start(locks, ttl_ms=1000)
    for key in ("k1", "k2", "k3"):
        assert locks.acquire("a", key, session=session).body["expires_in_ms"] == 1000
    locks.pass_ms(900)
    assert renew(locks, session).body == {"expires_in_ms": 1000, "keys_held": 3}
    locks.pass_ms(900)
    assert all(locks.holders(key) for key in ("k1", "k2", "k3"))


def test_all_locks_are_lost_if_the_session_is_not_renewed(locks):
    session = start(locks, ttl_ms=1000)
    locks.acquire("a", "k1", "k2", session=session)
    waiter = locks.acquire("b", "k1", "k2", wait_ms=20_000)
    assert locks.table.next_deadline_ms() == locks.at_ms + 1000
    locks.pass_ms(1000)
    assert locks.answers[waiter].code == ""
    assert renew(locks, session).code == "session_lost"
    assert locks.acquire("a", "k3", session=session).code == "session_lost"
    assert [(c.key, c.reason) for c in locks.changes if c.kind == "lost"] == [
        ("k1", "session_lost"),
        ("k2", "session_lost"),
    ]


def test_closing_releases_everything_and_may_be_repeated(locks):
    session = start(locks)
    locks.acquire("a", "k2", session=session)
    locks.acquire("a", "k1", session=session)
    locks.acquire("a", "own")
    assert close(locks, session).body == {"closed": True, "released_keys": ["k1", "k2"]}
    assert locks.holders("own") == [("a", "exclusive")], "a lock with a lease of its own must not end with the session"
    assert close(locks, session).body == {"closed": False, "released_keys": []}


def test_waiting_calls_end_with_their_session(locks):
    session = start(locks, ttl_ms=1000)
    locks.acquire("b", "k", ttl_ms=0)
    waiter = locks.acquire("a", "k", session=session, wait_ms=20_000)
    locks.pass_ms(1000)
    assert locks.answers[waiter].code == "session_lost"


def test_a_waiting_call_is_granted_in_its_session(locks):
    session = start(locks, ttl_ms=5000)
    locks.acquire("b", "k")
    waiter = locks.acquire("a", "k", session=session, wait_ms=20_000)
    locks.pass_ms(1000)
    locks.release("b", "k")
    assert locks.answers[waiter].body["expires_in_ms"] == 4000
    close(locks, session)
    assert locks.holders("k") == []


def test_a_released_lock_leaves_its_session(locks):
    session = start(locks)
    locks.acquire("a", "k", session=session)
    locks.release("a", "k")
    locks.acquire("b", "k")
    assert close(locks, session).body["released_keys"] == []
    assert locks.holders("k") == [("b", "exclusive")]


def test_acquiring_again_moves_a_lock_in_and_out_of_a_session(locks):
    session = start(locks, ttl_ms=1000)
    locks.acquire("a", "k", ttl_ms=0)
    assert locks.acquire("a", "k", session=session).body["expires_in_ms"] == 1000
    assert locks.acquire("a", "k", ttl_ms=60_000).body["expires_in_ms"] == 60_000
    locks.pass_ms(1000)
    assert locks.holders("k") == [("a", "exclusive")]


def test_renewing_a_lock_in_a_session_gives_it_no_lease_of_its_own(locks):
    session = start(locks, ttl_ms=5000)
    locks.acquire("a", "k", session=session)
    assert locks.renew("a", "k", ttl_ms=10).body["expires_in_ms"] == 5000
    locks.pass_ms(10)
    assert locks.holders("k") == [("a", "exclusive")]


def test_a_session_belongs_to_one_client(locks):
    session = start(locks, client="a")
    answer = locks.acquire("b", "k", session=session)
    assert answer.code == "invalid"
    assert answer.body["field"] == "session"


def test_two_sessions_of_one_entry_have_different_ids(locks):
    first, second = locks.entry(StartSession(client="a"), StartSession(client="a"))
    assert first.body["session"] != second.body["session"]


def test_a_new_leader_gives_sessions_their_full_length_again(locks):
    session = start(locks, ttl_ms=1000)
    locks.acquire("a", "k", session=session)
    locks.new_leader(after_ms=60_000)
    assert locks.holders("k") == [("a", "exclusive")]
    assert locks.table.next_deadline_ms() == locks.at_ms + 1000


def test_a_session_survives_a_snapshot_with_its_locks(locks):
    session = start(locks, ttl_ms=1000)
    locks.acquire("a", "k", session=session)
    waiter = locks.acquire("a", "k2", session=session)
    assert waiter.code == ""
    before = msgspec.msgpack.encode(locks.table.snapshot())
    locks.reload()
    assert msgspec.msgpack.encode(locks.table.snapshot()) == before
    assert renew(locks, session).body["keys_held"] == 2
    locks.pass_ms(1000)
    assert locks.table.locks == {}
    assert start(locks) != session, "an id must not be used twice"


def test_a_grant_in_a_session_can_be_cancelled(locks):
    session = start(locks)
    locks.acquire("b", "k")
    waiter = locks.acquire("a", "k", session=session, wait_ms=1000)
    locks.release("b", "k")
    locks.cancel(waiter)
    assert close(locks, session).body["released_keys"] == []


def test_sessions_are_limited(limited):
    locks = limited(sessions_max=1)
    session = start(locks)
    (answer,) = locks.entry(StartSession(client="b"))
    assert (answer.code, answer.body["limit"]) == ("over_limit", "sessions_max")
    close(locks, session)
    start(locks, client="b")


@pytest.mark.parametrize("ttl_ms", [500, 3000])
def test_a_renewal_may_change_the_length(locks, ttl_ms):
    session = start(locks, ttl_ms=1000)
    assert renew(locks, session, ttl_ms=ttl_ms).body["expires_in_ms"] == ttl_ms
    assert locks.table.next_deadline_ms() == locks.at_ms + ttl_ms


def test_a_deferred_grant_ends_with_its_session(locks):
    session = start(locks)
    _, _, waiter = locks.entry(
        Acquire(key="k", client="b"), Release(key="k", client="b"), Acquire(key="k", client="a", session=session)
    )
    assert close(locks, session).body["released_keys"] == ["k"]
    assert locks.answers[waiter].code == ""
    assert locks.table.locks == {}
