"""A new cluster from the state of another one: numbers never repeat, waits end, and clients keep what they have."""

from __future__ import annotations

import pytest

from dss_cache.core.commands import Fetch, WrittenBack
from dss_dev.replica_log import START_MS, ReplicaLog, new_replica
from dss_raft.replication import founding
from dss_raft.replication.founding import INDEX_MAX, INDEX_RAISE_MIN


def continued(state: bytes, raise_by: int = INDEX_RAISE_MIN, term: int = 2) -> ReplicaLog:
    """A new cluster that begins with this state; its nodes count their starts from 1 again."""
    replica = new_replica()
    replica.restore(state)
    replica.begin_new_cluster(raise_by)
    encoded = replica.snapshot()
    replica.restore(encoded)
    assert replica.snapshot() == encoded
    return ReplicaLog(replica, term)


def test_no_number_is_given_out_twice() -> None:
    old = ReplicaLog(incarnation=7)
    old.numbers("a")
    state = old.replica.snapshot()
    after = old.numbers("b")
    new = continued(state)
    # The same file again, a minute later, when the first new cluster has been used.
    again = continued(state, founding.index_raise(START_MS, START_MS + 60_000))
    used = [after, new.numbers("c"), again.numbers("d")]
    for kind in ("token", "message", "version"):
        assert max(used[0][kind]) < min(used[1][kind]) <= max(used[1][kind]) < min(used[2][kind])
    for kind in ("receipt", "session"):
        assert len(used[0][kind] | used[1][kind] | used[2][kind]) == 15
    assert max(used[2]["version"]) < 2**53


def test_no_receipt_is_given_out_twice() -> None:
    old = ReplicaLog()
    old.publish()
    old.consume()
    state = old.replica.snapshot()
    old.at_ms += 1001
    (later,) = old.consume()
    new = continued(state)
    new.consume()
    new.at_ms += 1001
    (again,) = new.consume()
    assert again["msg_id"] == later["msg_id"]
    assert again["receipt"] != later["receipt"], "a consumer of the old cluster cannot acknowledge it"


def test_numbers_fit_after_the_last_raise_that_is_accepted() -> None:
    old = ReplicaLog()
    old.numbers("a")
    new = continued(old.replica.snapshot(), INDEX_MAX - old.replica.applied_index - 100)
    assert max(new.numbers("b")["version"]) < 2**53
    new.replica.snapshot()


def test_callers_that_waited_are_gone_and_got_nothing() -> None:
    old = ReplicaLog()
    (token,) = (answer["fencing_token"] for answer in old.acquire("k", "holder", ttl_ms=0))
    old.acquire("k", "writer", wait_ms=20_000, ttl_ms=0)
    old.acquire("k", "reader", node="node-2", mode="shared", wait_ms=20_000, ttl_ms=0)
    # Without the first waiter, the second one would be granted this lock.
    old.acquire("s", "sharer", mode="shared", ttl_ms=0)
    old.acquire("s", "writer", wait_ms=20_000, ttl_ms=0)
    old.acquire("s", "reader", node="node-2", mode="shared", wait_ms=20_000, ttl_ms=0)
    old.publish()
    old.consume(), old.consume(timeout_ms=20_000)
    new = continued(old.replica.snapshot())
    table, broker = new.replica.machines["locks"], new.replica.machines["queue"]
    assert [(hold.client, hold.token) for hold in table.locks["k"].holds()] == [("holder", token)]  # type: ignore[attr-defined]
    assert [hold.client for hold in table.locks["s"].holds()] == ["sharer"]  # type: ignore[attr-defined]
    assert not list(table.waiters.all())  # type: ignore[attr-defined]
    assert not broker.callers.waiters  # type: ignore[attr-defined]
    assert not new.replica.sessions.sessions
    assert new.acquire("k", "other")[0]["holders"][0]["client"] == "holder"


def test_the_first_leader_gives_each_lease_its_full_length_again() -> None:
    old = ReplicaLog()
    old.acquire("k", "alice", ttl_ms=1000)
    old.publish()
    old.consume()
    new = continued(old.replica.snapshot())
    new.at_ms += 10**9  # the file is old
    assert "holders" in new.acquire("k", "bob")[0]
    assert new.consume() == []
    new.at_ms += 999
    assert "holders" in new.acquire("k", "bob")[0]
    new.at_ms += 2
    assert "fencing_token" in new.acquire("k", "bob")[0]
    assert len(new.consume()) == 1


def test_a_backing_store_that_went_on_takes_dirty_values_and_lines_are_gone() -> None:
    old = ReplicaLog()
    old.send(WrittenBack(items=[("clean", old.put("clean"))]))
    old.put("dirty")
    old.send(Fetch(keys=["clean", "dirty"]), node="node-2")
    state = old.replica.snapshot()
    later = old.put("dirty", b"2")
    directory = continued(state).replica.machines["cache"]
    records = directory.records  # type: ignore[attr-defined]
    assert records["dirty"].version > later
    assert records["dirty"].value == b"1"
    assert records["clean"].version < later
    assert not any(record.sharers or record.pending_invalidations for record in records.values())


@pytest.mark.parametrize(("name", "proposal"), [("dss", "dss-2"), ("dss-2", "dss-3"), ("a-b", "a-b-2"), ("x-9", "x-10")])
def test_the_proposed_name(name: str, proposal: str) -> None:
    assert founding.another_name(name) == proposal
