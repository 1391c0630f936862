"""Lock delays: after a lock is lost, its key is not granted for a while, because its holder may still be working."""

import pytest

from dss_locks.core import inspection
from dss_locks.core.commands import CloseSession, StartSession


def session_of(locks, client, ttl_ms):
    (answer,) = locks.entry(StartSession(client=client, ttl_ms=ttl_ms))
    return answer.body["session"]


def lose_by_lease(locks):
    locks.acquire("a", "k", ttl_ms=1000, lock_delay_ms=5000)
    locks.pass_ms(1000)


def lose_by_session(locks):
    locks.acquire("a", "k", session=session_of(locks, "a", 1000), lock_delay_ms=5000)
    locks.pass_ms(1000)


def lose_by_force(locks):
    locks.acquire("a", "k", lock_delay_ms=5000)
    locks.force("k")


@pytest.mark.parametrize("lose", [lose_by_lease, lose_by_session, lose_by_force])
def test_after_a_loss_the_key_is_not_granted_during_the_delay(locks, lose):
    lose(locks)
    refused = locks.acquire("b", "k")
    assert (refused.code, refused.body["holders"], refused.body["delayed_ms"]) == ("held", [], 5000)
    assert "the lock of k was lost" in refused.body["detail"]
    assert locks.acquire("a", "k").code == "held", "the client that lost it may be another process with the same name"
    waiter = locks.acquire("b", "k", wait_ms=20_000)
    assert locks.table.next_deadline_ms() == locks.at_ms + 5000
    locks.pass_ms(4999)
    assert waiter not in locks.answers
    locks.pass_ms(1)
    assert locks.answers[waiter].code == ""
    assert locks.answers[waiter].body["waited_ms"] == 5000


def test_a_release_starts_no_delay(locks):
    session = session_of(locks, "a", 1000)
    locks.acquire("a", "k1", lock_delay_ms=5000)
    locks.release("a", "k1")
    locks.acquire("a", "k2", session=session, lock_delay_ms=5000)
    locks.entry(CloseSession(session=session))
    locks.acquire("x", "k3")
    waiter = locks.acquire("a", "k3", wait_ms=1000, lock_delay_ms=5000)
    locks.release("x", "k3")
    locks.cancel(waiter)
    assert all(locks.acquire("b", key).code == "" for key in ("k1", "k2", "k3"))


def test_a_wait_that_times_out_reports_the_delay(locks):
    lose_by_lease(locks)
    waiter = locks.acquire("b", "k", wait_ms=2000)
    locks.pass_ms(2000)
    answer = locks.answers[waiter]
    assert (answer.code, answer.body["delayed_ms"]) == ("wait_timeout", 3000)


def test_a_request_blocked_by_a_holder_reports_no_delay(locks):
    lose_by_lease(locks)
    locks.acquire("a", "held")
    assert "delayed_ms" not in locks.acquire("b", "held").body


def test_after_a_lost_shared_lock_only_exclusive_requests_wait(locks):
    locks.shared("a", "k", ttl_ms=1000, lock_delay_ms=5000)
    locks.shared("b", "k", ttl_ms=0)
    locks.pass_ms(1000)
    assert locks.shared("c", "k").code == ""
    assert locks.acquire("b", "k").code == "held", "an upgrade must wait: the reader may still be working"
    locks.release("c", "k")
    waiter = locks.acquire("b", "k", wait_ms=20_000)
    locks.pass_ms(5000)
    assert locks.answers[waiter].code == ""


@pytest.mark.parametrize("keys", [("k", "other"), ("other", "k")])
def test_one_delayed_key_blocks_a_request_for_several_keys(locks, keys):
    lose_by_lease(locks)
    waiter = locks.acquire("b", *keys, wait_ms=20_000)
    assert locks.acquire("c", "free").code == ""
    assert locks.holders("other") == []
    locks.pass_ms(5000)
    assert locks.answers[waiter].code == ""


def test_of_two_delays_the_later_end_counts(locks):
    locks.shared("a", "k", ttl_ms=1000, lock_delay_ms=5000)
    locks.shared("b", "k", ttl_ms=2000, lock_delay_ms=1000)
    locks.shared("c", "k", ttl_ms=3000, lock_delay_ms=4000)
    locks.pass_ms(1000)
    locks.pass_ms(1000)
    assert locks.table.holdings.delays.left_ms("k", locks.at_ms) == 4000
    locks.pass_ms(1000)
    assert locks.table.holdings.delays.left_ms("k", locks.at_ms) == 4000


def test_a_new_leader_restarts_the_delay(locks):
    """As with leases: clients could not call while there was no leader."""
    lose_by_lease(locks)
    locks.new_leader(after_ms=60_000)
    assert locks.acquire("b", "k").code == "held"
    locks.pass_ms(5000)
    assert locks.acquire("b", "k").code == ""


def test_a_snapshot_has_the_delays(locks):
    lose_by_lease(locks)
    locks.acquire("c", "held", lock_delay_ms=700)
    waiter = locks.acquire("b", "k", wait_ms=20_000, lock_delay_ms=900)
    locks.reload()
    locks.force("held")
    assert locks.acquire("d", "held").body["delayed_ms"] == 700
    locks.pass_ms(5000)
    assert locks.answers[waiter].code == ""
    locks.force("k")
    assert locks.acquire("d", "k").body["delayed_ms"] == 900


def test_a_snapshot_from_before_there_were_delays(locks):
    locks.acquire("a", "k", ttl_ms=1000)
    state = locks.table.snapshot()
    del state["delays"]
    for _, rows in state["locks"]:
        for row in rows:
            row.pop()
    locks.table.restore(state)
    locks.pass_ms(1000)
    assert locks.acquire("b", "k").code == ""


def test_acquiring_again_replaces_the_lock_delay(locks):
    locks.acquire("a", "k", lock_delay_ms=5000)
    locks.acquire("a", "k")
    locks.force("k")
    assert locks.acquire("b", "k").code == ""


def test_status_and_why_show_it(locks):
    lose_by_lease(locks)
    locks.pass_ms(1000)
    locks.acquire("b", "k", wait_ms=20_000)
    status = inspection.status(locks.table, "k", locks.at_ms, "b")
    delay = {"lost_by": "a", "keeps_out": "everybody", "left_ms": 4000, "delay_ms": 5000}
    assert (status["locked"], status["delay"]) == (False, delay)
    assert status["why"] == {"position": 1, "holders": [], "delay": delay, "chain": []}


def test_delayed_keys_count_as_held(limited):
    """Otherwise locks with a short lease and a long delay could fill the table without limit."""
    locks = limited(holds_max=2)
    lose_by_lease(locks)
    assert locks.acquire("b", "k2").code == ""
    assert locks.acquire("b", "k3").body["limit"] == "holds_max"
    locks.pass_ms(5000)
    assert locks.acquire("b", "k3").code == ""
