"""Forced releases: they need a reason, are recorded in the audit list, and grant the next waiter."""

from dss_locks.core import inspection
from dss_locks.core.table import FORCED_RELEASES_MAX


def test_the_next_waiter_is_granted_and_the_holder_is_told_at_its_next_call(locks):
    token = locks.acquire("a", "k").body["fencing_token"]
    waiter = locks.acquire("b", "k", wait_ms=20_000)
    answer = locks.force("k", reason="node burnt down", by="alice")
    assert answer.body == {"released": True, "holders": [{"client": "a", "fencing_token": token}]}
    assert locks.answers[waiter].code == ""
    assert locks.renew("a", "k").code == "lock_lost"
    assert locks.release("a", "k", fencing_token=token).code == "not_holder"


def test_it_is_recorded_in_the_audit_list(locks):
    token = locks.acquire("a", "k").body["fencing_token"]
    locks.force("k", reason="node burnt down", by="alice")
    locks.reload()
    assert inspection.audit(locks.table) == [
        {
            "index": locks.index,
            "at_ms": locks.at_ms,
            "key": "k",
            "client": "a",
            "fencing_token": token,
            "reason": "node burnt down",
            "by": "alice",
        }
    ]


def test_the_audit_list_is_bounded_and_keeps_the_latest(locks):
    for number in range(FORCED_RELEASES_MAX + 5):
        locks.acquire("a", f"k{number}")
        locks.force(f"k{number}")
    lines = inspection.audit(locks.table)
    assert len(lines) == FORCED_RELEASES_MAX
    assert lines[0]["key"] == f"k{FORCED_RELEASES_MAX + 4}"


def test_one_of_several_holders(locks):
    locks.shared("a", "k")
    locks.shared("b", "k")
    locks.force("k", client="a")
    assert locks.holders("k") == [("b", "shared")]


def test_one_grant_only(locks):
    """The client may have released what an operator has seen, and have the lock again."""
    old = locks.acquire("a", "k").body["fencing_token"]
    locks.release("a", "k")
    new = locks.acquire("a", "k").body["fencing_token"]
    assert locks.force("k", client="a", fencing_token=old).body == {"released": False, "holders": []}
    assert locks.holders("k") == [("a", "exclusive")]
    assert locks.force("k", fencing_token=new).body["holders"] == [{"client": "a", "fencing_token": new}]
    locks.reload()
    assert not locks.holders("k")
    assert [line["fencing_token"] for line in inspection.audit(locks.table)] == [new]


def test_a_free_key_has_nothing_to_release(locks):
    assert locks.force("k").body == {"released": False, "holders": []}
    assert locks.table.forced_releases == []


def test_the_event_has_the_reason(locks):
    locks.acquire("a", "k")
    locks.force("k")
    assert [(c.kind, c.client, c.reason) for c in locks.changes] == [("granted", "a", ""), ("lost", "a", "forced")]
