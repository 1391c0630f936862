"""`lock_bytes_max`: when the table is full, commands that make it grow are refused, and commands that make it shrink work."""

from __future__ import annotations

import pytest

from dss_api.result import Result
from dss_locks.core.commands import CloseSession, RenewSession, StartSession
from dss_raft.replication.machine import Origin

KEYS = [f"k{n}" for n in range(64)]


@pytest.fixture
def full(locks):
    """A full table: `a` holds 64 keys, `b` waits for the first two, and `s` has a session."""
    locks.acquire("a", *KEYS, meta={"pid": 1}, lock_delay_ms=1000)
    (started,) = locks.entry(StartSession(client="s", ttl_ms=50_000))
    locks.session = started.body["session"]
    locks.waiting = locks.acquire("b", "k0", "k1", wait_ms=10_000, meta={"pid": 2})
    limits = locks.table.account.limits
    limits.maxima["lock_bytes_max"] = locks.table.account.used()
    return locks


def refusal(result: Result) -> tuple[str, str, int]:
    return result.code, result.body["limit"], result.body["maximum"]


def test_commands_that_grow_the_table_are_refused_with_the_limit(full):
    expected = ("over_limit", "lock_bytes_max", full.table.account.used())
    assert refusal(full.acquire("c", "new")) == expected
    assert refusal(full.acquire("c", "new", "other")) == expected
    assert refusal(full.acquire("c", "k0", wait_ms=100)) == expected
    assert refusal(full.acquire("a", "k0", "new")) == expected
    assert refusal(full.acquire("a", "k0", meta={"pid": 3})) == expected
    assert refusal(full.entry(StartSession(client="c"))[0]) == expected


def test_commands_that_keep_the_size_of_the_table_work(full):
    assert full.renew("a", *KEYS).code == ""
    assert full.acquire("a", "k0").body["reentrant"]
    assert full.entry(RenewSession(session=full.session))[0].code == ""


def test_commands_that_shrink_the_table_work(full):
    assert full.force("k5").body["released"]
    assert full.release("a", "k6").body["released"]
    assert full.entry(CloseSession(session=full.session))[0].body["closed"]
    full.cancel(full.waiting)
    assert full.table.usage()["lock_waiters"] == 0


def test_a_waiting_request_is_granted_in_a_full_table(full):
    before = full.table.account.used()
    full.release("a", "k0", "k1")
    assert full.answers[full.waiting].code == ""
    assert full.holders("k0") == [("b", "exclusive")]
    assert full.table.account.used() < before


def test_locks_that_are_lost_leave_their_delays_in_a_full_table(full):
    full.cancel(full.waiting)
    before = full.table.account.used()
    full.table.account.limits.maxima["lock_bytes_max"] = before
    full.pass_ms(30_000)
    assert full.table.holdings.delays.by_key.keys() == set(KEYS)
    assert full.table.account.used() < before
    full.pass_ms(1_000)
    assert full.table.usage()["lock_delays"] == 0


def test_a_table_above_a_lowered_limit_loads_and_shrinks(full):
    full.reload()
    full.table.account.limits.maxima["lock_bytes_max"] = 1
    assert full.table.account.used() > 1
    assert refusal(full.acquire("c", "new"))[0] == "over_limit"
    full.release("a", *KEYS)
    assert full.holders("k0") == [("b", "exclusive")]
    assert full.release("b", "k0", "k1").body["released"]
    full.entry(CloseSession(session=full.session))
    assert full.table.account.used() == 0
    full.table.account.limits.maxima["lock_bytes_max"] = 10_000
    assert full.acquire("c", "new").code == ""


def test_the_table_stays_within_its_limit_whatever_metadata_is_sent(locks):
    """64 keys with 8 KiB of metadata at a time: 624 MB in 12 s before the limit."""
    maximum = locks.table.account.limits.maxima["lock_bytes_max"] = 2**20
    codes = set()
    for n in range(200):
        meta = {f"{member:x}": f"{n:03}" + "m" * 509 for member in range(16)}
        codes.add(locks.acquire(f"c{n}", *[f"{n}/{key}" for key in range(64)], meta=meta).code)
    assert codes == {"", "over_limit"}
    assert locks.table.account.used() < maximum + 100_000, "the last command may exceed the limit by its own size"


def test_a_restarted_node_leaves_nothing_of_its_waiters(full):
    full.restart_node("n1")
    assert full.table.usage()["lock_waiters"] == 0
    assert full.table.waiters.by_origin.get(Origin("n1", 1, 3)) is None
