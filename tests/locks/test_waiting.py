"""A wait ends with a grant, with its own timeout, or with its caller."""

from dss_locks.core.commands import CancelWait
from dss_raft.replication.machine import Origin


def test_a_wait_that_times_out_is_refused_with_the_holders(locks):
    locks.acquire("a", "k")
    locks.acquire("b", "k", wait_ms=20_000)
    waiter = locks.acquire("c", "k", wait_ms=500)
    locks.pass_ms(499)
    assert waiter not in locks.answers
    locks.pass_ms(1)
    answer = locks.answers[waiter]
    assert answer.code == "wait_timeout"
    assert [holder["client"] for holder in answer.body["holders"]] == ["a"]
    assert answer.body["position"] == 2
    assert locks.queue("k") == ["b"]


def test_a_waiter_is_not_granted_after_its_timeout(locks):
    """The lease and the wait end before the same entry. The timeout comes first (etcd 11456: a grant to a caller that had gone)."""
    locks.acquire("a", "k", ttl_ms=1000)
    waiter = locks.acquire("b", "k", wait_ms=1000)
    patient = locks.acquire("c", "k", wait_ms=1500)
    locks.pass_ms(1400)
    assert locks.answers[waiter].code == "wait_timeout"
    assert locks.answers[patient].code == ""


def test_a_cancelled_waiter_is_removed_and_gets_no_answer(locks):
    locks.acquire("a", "k")
    waiter = locks.acquire("b", "k", wait_ms=20_000)
    locks.cancel(waiter)
    locks.release("a", "k")
    locks.pass_ms(20_000)
    assert waiter not in locks.answers
    assert locks.table.locks == {}


def test_a_grant_whose_caller_disconnected_is_undone(locks):
    locks.acquire("a", "k")
    waiter = locks.acquire("b", "k", wait_ms=20_000)
    patient = locks.acquire("c", "k", wait_ms=20_000)
    locks.release("a", "k")
    locks.cancel(waiter)
    assert locks.answers[patient].code == ""
    assert locks.holders("k") == [("c", "exclusive")]


def test_a_grant_of_several_keys_is_undone_completely(locks):
    locks.acquire("a", "k1")
    waiter = locks.acquire("b", "k1", "k2", "k3", wait_ms=20_000)
    locks.release("a", "k1")
    locks.cancel(waiter)
    assert locks.table.locks == {}


def test_a_cancelled_repeat_does_not_end_the_lock(locks):
    """The first call was answered, so the client is using the lock."""
    locks.acquire("a", "k")
    locks.acquire("a", "k")
    locks.cancel(_origin(locks.seq))
    assert locks.holders("k") == [("a", "exclusive")]


def test_the_first_call_cannot_be_cancelled_after_a_repeat_was_answered(locks):
    locks.acquire("a", "k")
    first = locks.seq
    locks.acquire("a", "k")
    locks.cancel(_origin(first))
    assert locks.holders("k") == [("a", "exclusive")]


def test_a_cancelled_upgrade_leaves_the_shared_lock_with_its_token(locks):
    token = locks.shared("a", "k").body["fencing_token"]
    locks.acquire("a", "k")
    locks.cancel(_origin(locks.seq))
    assert locks.holders("k") == [("a", "shared")]
    assert locks.release("a", "k", fencing_token=token).body["released"]


def test_cancelling_an_unknown_call_has_no_effect(locks):
    locks.acquire("a", "k")
    locks.cancel(_origin(999))
    assert locks.holders("k") == [("a", "exclusive")]


def test_the_waiters_of_a_restarted_node_are_removed_but_not_its_locks(locks):
    locks.acquire("a", "k", node="n1")
    lost = locks.acquire("b", "k", wait_ms=20_000, node="n1")
    kept = locks.acquire("c", "k", wait_ms=20_000, node="n2")
    locks.restart_node("n1")
    assert locks.holders("k") == [("a", "exclusive")]
    locks.release("a", "k")
    assert lost not in locks.answers
    assert locks.answers[kept].code == ""


def test_a_new_incarnation_cannot_cancel_a_grant_of_the_old_one(locks):
    locks.acquire("a", "k")
    origin = _origin(locks.seq)
    locks.restart_node("n1")
    locks.cancel(Origin("n1", 2, origin.seq))
    locks.cancel(origin)
    assert locks.holders("k") == [("a", "exclusive")]


def _origin(seq):
    return Origin("n1", 1, seq)


def test_a_grant_to_two_calls_is_not_undone_when_one_disconnects(locks):
    """The request was sent twice. The other call was answered, so the client is using the lock."""
    locks.acquire("a", "k")
    calls = [locks.acquire("b", "k", wait_ms=20_000) for _ in range(2)]
    locks.release("a", "k")
    for call in calls:
        locks.cancel(call)
        assert locks.holders("k") == [("b", "exclusive")]


def test_an_operator_ends_a_wait(locks):
    locks.acquire("a", "k")
    origin = locks.acquire("b", "k", wait_ms=5000)
    (waiter,) = locks.table.waiters.all()
    (result,) = locks.entry(CancelWait(client="c", place=waiter.rank, reason="x"))
    assert result.body == {"cancelled": False}, "the request of another client"
    (result,) = locks.entry(CancelWait(client="b", place=waiter.rank, reason="maintenance", by="alice"))
    assert result.body == {"cancelled": True}
    assert not locks.table.waiters.by_origin
    answer = locks.answers[origin]
    assert (answer.code, answer.body["detail"]) == ("wait_timeout", "alice has ended the wait: maintenance")
    (result,) = locks.entry(CancelWait(client="b", place=waiter.rank, reason="again"))
    assert result.body == {"cancelled": False}
    assert locks.holders("k") == [("a", "exclusive")]
