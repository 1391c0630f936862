"""The same commands lead to the same state, and a snapshot contains all of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_locks.core import inspection
from dss_locks.core.commands import Acquire, CloseSession, ForceRelease, Release, Renew, RenewSession, StartSession
from dss_locks.core.table import LockTable
from dss_raft.replication.machine import Origin, Resolved

clients = st.sampled_from("abcd")
keys = st.lists(st.sampled_from(["k1", "k2", "k3"]), min_size=1, max_size=3, unique=True)
#: ids that the first sessions of a short history may have
session_names = st.sampled_from(["1.1", "2.1", "2.2", "3.1"])
acquires = st.builds(
    lambda client, keys, mode, ttl, wait, session, delay: Acquire(
        client=client,
        keys=keys,
        mode=mode,
        ttl_ms=ttl,
        wait_ms=wait,
        meta={"pid": ttl},
        session=session,
        lock_delay_ms=delay,
    ),
    clients,
    keys,
    st.sampled_from(["shared", "exclusive"]),
    st.sampled_from([0, 50, 500]),
    st.sampled_from([0, 100, 1000]),
    st.one_of(st.just(""), session_names),
    st.sampled_from([0, 0, 70]),
)
sessions = st.one_of(
    st.builds(lambda client: StartSession(client=client, ttl_ms=100), clients),
    st.builds(lambda session: RenewSession(session=session), session_names),
    st.builds(lambda session: CloseSession(session=session), session_names),
)
releases = st.builds(lambda client, keys: Release(client=client, keys=keys), clients, keys)
renewals = st.builds(lambda client, keys: Renew(client=client, keys=keys), clients, keys)
forced = st.builds(lambda keys: ForceRelease(key=keys[0], reason="test"), keys)
#: (ms passed, commands of the entry, how many commands ago to cancel)
entries = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 10, 60, 600]),
        st.lists(st.one_of(acquires, acquires, releases, renewals, forced, sessions), max_size=4),
        st.integers(0, 20),
    ),
    max_size=25,
)


class Player:
    """Applies entries to a table, and records the results and events."""

    def __init__(self) -> None:
        self.table = LockTable()
        self.at_ms, self.index, self.seq = 1000, 0, 0
        self.output: list[object] = []

    def play(self, entry) -> None:
        ms, commands, back = entry
        table = self.table
        self.at_ms += ms
        self.index += 1
        deadline_ms = table.next_deadline_ms()
        if deadline_ms is not None and deadline_ms <= self.at_ms:
            table.expire(self.at_ms, self.index)
        for command in commands:
            self.seq += 1
            self.output.append(table.apply(command, self.at_ms, self.index, Origin("n", 1, self.seq)))
        if back > 15:
            table.node_restarted("n", self.at_ms, self.index)
        elif back:
            table.cancel(Origin("n", 1, self.seq - back), self.at_ms, self.index)
        self.output += table.take_events()


def encoded(table: LockTable) -> bytes:
    return msgspec.msgpack.encode(table.snapshot())


@settings(max_examples=100)
@given(entries, entries)
def test_a_node_restored_from_a_snapshot_behaves_the_same(before, after):
    """The same state, and the same answers and events in the same order."""
    first, second = Player(), Player()
    for entry in before:
        first.play(entry)
    second.table.restore(msgspec.msgpack.decode(encoded(first.table)))
    second.at_ms, second.index, second.seq = first.at_ms, first.index, first.seq
    assert encoded(second.table) == encoded(first.table)
    first.output.clear()
    for entry in after:
        first.play(entry)
        second.play(entry)
    assert second.output == first.output
    assert encoded(second.table) == encoded(first.table)


@settings(max_examples=50)
@given(entries)
def test_the_same_commands_lead_to_the_same_bytes(played):
    first, second = Player(), Player()
    for entry in played:
        first.play(entry)
        second.play(entry)
        # Reading the deadline must not change the state.
        second.table.next_deadline_ms()
    assert encoded(second.table) == encoded(first.table)
    assert second.output == first.output


def test_a_restored_table_answers_the_waiters_of_the_old_one(locks):
    locks.acquire("a", "k", ttl_ms=1000)
    patient = locks.acquire("b", "k", wait_ms=20_000)
    impatient = locks.acquire("c", "k", wait_ms=500)
    locks.reload()
    locks.pass_ms(500)
    assert locks.answers[impatient].code == "wait_timeout"
    locks.pass_ms(500)
    assert locks.answers[patient].code == ""


def test_restoring_replaces_the_previous_state(locks):
    locks.acquire("a", "k")
    locks.acquire("b", "k", wait_ms=1000)
    locks.table.restore(msgspec.msgpack.decode(encoded(LockTable())))
    assert encoded(locks.table) == encoded(LockTable())
    assert locks.table.next_deadline_ms() is None
    assert not any(isinstance(event, Resolved) for event in locks.table.take_events())


@pytest.mark.parametrize("meta", [None, {"pid": 7, "host": "näme", "ok": True, "load": 0.5, "none": None}])
def test_a_snapshot_has_the_metadata(locks, meta):
    locks.acquire("a", "k", meta=meta)
    locks.reload()
    (holder,) = inspection.status(locks.table, "k", 0)["holders"]
    assert holder["meta"] == meta


def same_events(locks, act) -> list[object]:
    """Apply `act` to the table and to a copy restored from its snapshot: both must emit the same events in the same order."""
    locks.collect()
    copy = LockTable()
    copy.restore(msgspec.msgpack.decode(encoded(locks.table)))
    act(locks.table)
    act(copy)
    events = locks.table.take_events()
    assert copy.take_events() == events
    assert encoded(copy) == encoded(locks.table)
    return events


def test_leases_that_end_together_end_in_the_same_order_on_every_node(locks):
    locks.acquire("a", "k1", ttl_ms=2000)
    locks.acquire("b", "k2", ttl_ms=1000)
    locks.renew("a", "k1", ttl_ms=1000)
    assert len(same_events(locks, lambda table: table.expire(locks.at_ms + 1000, 99))) == 2


def test_delays_that_end_together_end_in_the_same_order_on_every_node(locks):
    for client, ttl_ms, delay_ms in (("a", 1000, 1000), ("b", 2000, 3000)):
        locks.shared(client, "k1", ttl_ms=ttl_ms, lock_delay_ms=delay_ms)
    locks.acquire("c", "k2", ttl_ms=1000, lock_delay_ms=4000)
    locks.pass_ms(1000)
    locks.pass_ms(1000)
    locks.table.next_deadline_ms()
    events = same_events(locks, lambda table: table.expire(locks.at_ms + 3000, 99))
    assert [event.key for event in events] == ["k1", "k2"]


def test_a_grant_of_several_keys_is_undone_in_the_same_order_on_every_node(locks):
    locks.shared("z", "k1")
    locks.shared("a", "k2", "k1")
    origin = Origin("n1", 1, locks.seq)
    assert len(same_events(locks, lambda table: table.cancel(origin, locks.at_ms, 99))) == 2


def test_waiters_of_a_restarted_node_leave_in_the_same_order_on_every_node(locks):
    for key in ("k1", "k2"):
        locks.shared("z", key)
    locks.acquire("a", "k1", wait_ms=1000)
    locks.acquire("b", "k2", wait_ms=1000)
    locks.acquire("a", "k1", wait_ms=1000)
    for key in ("k1", "k2"):
        locks.shared("y", key, wait_ms=1000, node="n2")
    events = same_events(locks, lambda table: table.node_restarted("n1", locks.at_ms, 99))
    assert sum(isinstance(event, Resolved) for event in events) == 2


def test_metadata_of_several_keys_is_stored_once(locks):
    """64 keys with 8 KiB of metadata, a thousand times over, were 600 MB; the snapshot repeated the metadata for each key."""
    meta = {f"{n:x}": "m" * 512 for n in range(16)}
    locks.acquire("a", *[f"k{n}" for n in range(64)], meta=meta)
    locks.acquire("b", "k0", meta=meta, wait_ms=1000)
    assert len(msgspec.msgpack.encode(locks.table.snapshot())) < 20_000
    assert locks.table.usage()["lock_meta"] < 9_000
    locks.reload()
    assert locks.table.usage()["lock_meta"] < 9_000
    locks.release("a", *[f"k{n}" for n in range(64)])
    (holder,) = inspection.status(locks.table, "k0", 0)["holders"]
    assert (holder["client"], holder["meta"]) == ("b", meta)
    locks.release("b", "k0")
    assert set(locks.table.usage().values()) == {0}


def test_a_snapshot_of_the_first_format_loads(locks):
    """The first format had the metadata in each row, and no number."""
    meta = {"pid": 7}
    locks.acquire("a", "k1", "k2", meta=meta, ttl_ms=500)
    locks.acquire("b", "k1", meta=meta, wait_ms=1000)
    locks.acquire("c", "k3")
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(locks.table.snapshot()))
    metas = state.pop("metas")
    del state["format"]
    position = 6  # of the metadata in the row of a hold; in the row of a call it is 4
    for _, rows in state["locks"]:
        for row in rows:
            if row[position] is not None:
                row[position] = msgspec.msgpack.decode(metas[row[position]])
    for *_, callers in state["places"]:
        for caller in callers:
            caller[4] = msgspec.msgpack.decode(metas[caller[4]])
    copy = LockTable()
    copy.restore(state)
    assert copy.snapshot() == locks.table.snapshot()
    assert copy.usage() == locks.table.usage()
