"""The replicated directory: versions, sharers, pending invalidations, limits, deadlines, snapshots."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_cache.core.commands import Add, AgreeLease, Delete, Fetch, Incr, Lost, Put, Revoke, WrittenBack
from dss_cache.core.directory import NODE_BYTES, RECORD_BYTES, Directory
from dss_cache.core.events import Cleaned, Fetched, LeaseAgreed, Voided, Written
from dss_raft.replication.limits import StateLimits
from dss_raft.replication.machine import Origin


class Harness:
    """Applies entries of one command each; only the test changes `at_ms`."""

    def __init__(self, limits=None):
        self.directory = Directory(limits)
        self.index, self.at_ms, self.seq = 0, 1000, 0
        self.events = []

    def __call__(self, command, node="n1", incarnation=1):
        return self.entry(command, node=node, incarnation=incarnation)[0]

    def entry(self, *commands, node="n1", incarnation=1):
        self.index += 1
        deadline = self.directory.next_deadline_ms()
        if deadline is not None and deadline <= self.at_ms:
            self.directory.expire(self.at_ms, self.index)
        results = []
        for command in commands:
            self.seq += 1
            results.append(self.directory.apply(command, self.at_ms, self.index, Origin(node, incarnation, self.seq)))
        self.events = self.directory.take_events()
        return results

    def put(self, key="k", value=b"1", node="n1", **fields):
        return self(Put(key=key, value=value, **fields), node).body

    def fetch(self, key="k", node="n1"):
        return self(Fetch(keys=[key]), node).body["rows"][0]

    def clean(self, key="k"):
        record = self.directory.records[key]
        return self(WrittenBack(items=[(key, record.version)]))

    def restart(self, node):
        self.index += 1
        self.directory.node_restarted(node, self.at_ms, self.index)
        self.events = self.directory.take_events()


@pytest.fixture
def directory():
    return Harness()


def test_two_writes_of_a_key_in_one_entry_have_two_versions(directory):
    first, second = directory.entry(Put(key="k", value=b"1"), Put(key="k", value=b"2"))
    assert second.body["version"] > first.body["version"]


def test_versions_are_never_reused(directory):
    versions = [directory.put()["version"], directory(Delete(key="k")).body["version"]]
    directory.clean()
    assert "k" not in directory.directory.records
    versions.append(directory.put()["version"])
    assert versions == sorted(set(versions))


def test_versions_are_above_those_of_an_earlier_cluster(directory):
    """The same backing store may have served a cluster before, at an earlier time."""
    for _ in range(100):
        last = directory.put()["version"]
    later = Harness()
    later.at_ms = directory.at_ms + 1
    assert later.put()["version"] > last


def test_only_the_writer_holds_a_new_version(directory):
    directory.put(node="n1")
    record = directory.directory.records["k"]
    assert directory.directory.state_of(record, "n1") == "M"
    assert directory.directory.state_of(record, "n2") == "I"
    directory.clean()
    assert directory.directory.state_of(record, "n1") == "E"


def test_a_second_holder_makes_the_line_shared(directory):
    directory.put(node="n1")
    row = directory.fetch(node="n2")
    assert (row.state, row.value, row.absent) == ("S", b"1", False)
    assert directory.events == [Fetched("k", "n2", 1, row.stamp)]
    record = directory.directory.records["k"]
    assert [directory.directory.state_of(record, node) for node in ("n1", "n2")] == ["S", "S"]


def test_the_only_holder_gets_an_exclusive_line(directory):
    directory.put(node="n1")
    directory.clean()
    directory(Revoke(node="n1"), node="", incarnation=0)
    row = directory.fetch(node="n2")
    assert (row.state, row.value) == ("E", None)


def test_every_holder_becomes_pending_the_writer_too(directory):
    directory.put(node="n1")
    directory.fetch(node="n2")
    body = directory.put(node="n2", value=b"2")
    assert body["must"] == {"n1": body["version"], "n2": body["version"]}
    (event,) = directory.events
    assert isinstance(event, Written)
    assert (event.node, event.value, event.pending_invalidations) == ("n2", b"2", body["must"])


def test_a_first_write_has_no_pending_invalidations(directory):
    assert directory.put()["must"] == {}


def test_pending_nodes_stay_pending_through_later_writes(directory):
    """The first write invalidated n2's line; the second write has to wait for that as well."""
    directory.put(node="n1")
    directory.fetch(node="n2")
    first = directory.put(node="n1", value=b"2")
    second = directory.put(node="n1", value=b"3")
    assert second["must"] == {"n1": second["version"], "n2": first["version"]}


@pytest.mark.parametrize("void", [lambda h: h(Revoke(node="n2"), node="", incarnation=0), lambda h: h.restart("n2")])
def test_revoked_and_restarted_nodes_hold_no_lines(directory, void):
    directory.put(node="n1")
    directory.fetch(node="n2")
    void(directory)
    (event,) = directory.events
    assert isinstance(event, Voided)
    assert event.node == "n2"
    assert "n2" not in directory.put(node="n1")["must"]


def test_a_node_registers_again_after_it_was_revoked_in_the_same_entry(directory):
    directory.put(node="n1")
    directory.fetch(node="n2")
    directory.entry(Revoke(node="n2"), Fetch(keys=["k"]), node="n2")
    assert "n2" in directory.put(node="n1")["must"]


def test_absence_is_not_cached(directory):
    assert directory.fetch("nobody").state == "I"
    assert not directory.directory.records
    directory.put()
    directory(Delete(key="k"))
    row = directory.fetch(node="n2")
    assert (row.absent, row.state, directory.events) == (True, "I", [])
    assert directory.directory.records["k"].sharers == {}


def test_a_write_back_of_an_older_version_cleans_nothing(directory):
    version = directory.put()["version"]
    directory.put(value=b"2")
    directory(WrittenBack(items=[("k", version)]))
    assert directory.directory.records["k"].value == b"2"
    assert directory.events == []
    newest = directory.directory.records["k"].version
    directory.clean()
    assert directory.events == [Cleaned([("k", newest)])]
    assert directory.directory.dirty_bytes == 0


def test_dirty_bytes_are_counted(directory):
    directory.put("a", b"12345")
    directory.put("a", b"123")
    directory.put("b", b"12")
    assert directory.directory.dirty_bytes == 5
    directory.clean("a")
    assert directory.directory.dirty_bytes == 2
    assert list(directory.directory.dirty) == ["b"]


def test_limits():
    harness = Harness(StateLimits({"cache_keys_max": 2, "cache_dirty_bytes_max": 10}))
    harness.put("a", b"1234")
    harness.put("b", b"1234")
    assert harness(Put(key="c", value=b"1")).code == "over_limit"
    assert harness(Put(key="a", value=b"1234567")).code == "over_limit"
    assert harness(Put(key="a", value=b"4321")).code == "", "it replaces a value of the same size"
    assert harness(Add(key="c", value=b"1")).code == "over_limit"
    harness.clean("a")
    assert harness(Put(key="a", value=b"12345")).code == ""


def test_a_full_directory_refuses_what_grows_and_nothing_else():
    harness = Harness()
    for node in ("n1", "n2"):
        harness.restart(node)
    harness.put("a", b"12345")
    harness.put("b", b"1")
    harness.clean("b")
    limits = harness.directory.limits
    full = limits.maxima["cache_bytes_max"] = harness.directory.used_bytes()
    for command in (Put(key="c", value=b"1"), Put(key="a", value=b"123456"), Put(key="b", value=b"2"), Add(key="c", value=b"1")):
        refused = harness(command)
        assert (refused.code, refused.body["limit"], refused.body["maximum"]) == ("over_limit", "cache_bytes_max", full)
    assert harness(Put(key="a", value=b"54321")).code == ""
    assert harness.fetch("b", node="n2").state == "S"
    assert harness(Delete(key="b")).body["deleted"], "its tombstone was paid for by the record"
    assert harness.directory.used_bytes() == full
    harness.clean("b")
    assert harness(Put(key="a", value=b"5432")).code == ""
    assert harness(Put(key="c", value=b"1")).code == "", "it has the place of the deleted key and of a byte"


def test_a_directory_above_a_lowered_limit_loads_and_shrinks(directory):
    directory.put("a", b"12345")
    copy = Harness(StateLimits({"cache_bytes_max": 1, "cache_keys_max": 1, "cache_dirty_bytes_max": 1}))
    copy.directory.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(directory.directory.snapshot())))
    copy.index, copy.seq = directory.index, directory.seq
    assert copy(Put(key="a", value=b"123456")).code == "over_limit"
    assert copy(Put(key="a", value=b"1")).code == ""
    assert copy(Delete(key="a")).body["deleted"]
    copy.clean("a")
    assert copy.directory.used_bytes() == 0


_keys = st.sampled_from(["a", "b", "ключ"])
_steps = st.lists(
    st.one_of(
        st.builds(Put, key=_keys, value=st.binary(max_size=20), ttl_ms=st.sampled_from([0, 30])),
        st.builds(Add, key=_keys, value=st.binary(max_size=20)),
        st.builds(Incr, key=_keys),
        st.builds(Delete, key=_keys),
        st.builds(lambda key: Fetch(keys=[key]), _keys),
        st.builds(lambda key, version: Lost(key=key, version=version), _keys, st.integers(1, 3)),
        st.sampled_from(["clean", "restart", "later"]),
    ),
    max_size=40,
)


@given(_steps, st.sampled_from([1_500, 10**9]))
def test_the_account_is_that_of_the_state(steps, maximum):
    harness = Harness(StateLimits({"cache_bytes_max": maximum}))
    directory = harness.directory
    for step in steps:
        if step == "clean":
            harness(WrittenBack(items=[(key, record.version) for key, record in directory.records.items()]))
        elif step == "restart":
            harness.restart("n2")
        elif step == "later":
            harness.at_ms += 40
            harness(Fetch(keys=["a"]))
        else:
            harness(step)
        records = directory.records
        assert directory.usage() == {
            "cache_records": sum(RECORD_BYTES + len(key.encode()) for key in records),
            "cache_sharers": NODE_BYTES * len(records) * len(directory.voided),
            "cache_dirty_values": sum(len(record.value or b"") for record in records.values()),
        }
        assert directory.used_bytes() == sum(directory.usage().values())
        copy = Directory()
        copy.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(directory.snapshot())))
        assert copy.usage() == directory.usage()


def test_a_counter_adds_to_a_dirty_value(directory):
    directory.put(value=b"40")
    assert directory(Incr(key="k", delta=2)).body["value"] == 42
    assert directory.directory.records["k"].value == b"42"


def test_a_clean_counter_needs_the_value_of_its_version(directory):
    version = directory.put(value=b"40")["version"]
    directory.clean()
    assert directory(Incr(key="k")).body == {"wanted": version}
    assert directory(Incr(key="k", base=7, base_version=version - 1)).body == {"wanted": version}
    assert directory(Incr(key="k", delta=2, base=40, base_version=version)).body["value"] == 42


def test_a_lost_value_becomes_absent_once(directory):
    version = directory.put()["version"]
    assert directory(Lost(key="k", version=version)).body == {"lost": False}, "a dirty value is not lost"
    directory.clean()
    result = directory(Lost(key="k", version=version, found_version=10**17))
    assert result.body["lost"] is True
    assert result.body["version"] > 10**17, "otherwise the next write would look older than the stored version"
    assert directory(Lost(key="k", version=version)).body == {"lost": False}


def test_a_value_expires_at_its_deadline(directory):
    directory.put(ttl_ms=500)
    directory.fetch(node="n2")
    assert directory.directory.next_deadline_ms() == 1500
    directory.at_ms = 1500
    directory.entry()
    (event,) = directory.events
    assert (event.value, event.why, event.node, set(event.pending_invalidations)) == (None, "expired", "n1", {"n1", "n2"})
    assert directory.directory.next_deadline_ms() is None


def test_a_new_deadline_replaces_the_old_one(directory):
    directory.put(ttl_ms=500)
    directory.put(ttl_ms=900)
    assert directory.directory.next_deadline_ms() == 1900
    directory.at_ms = 1600
    directory.entry()
    assert not directory.directory.records["k"].absent


def test_old_deadlines_do_not_accumulate(directory):
    for number in range(5000):
        directory.put(ttl_ms=1000 + number)
    assert len(directory.directory._deadlines) < 1100


def test_a_new_leader_does_not_change_a_time_to_live(directory):
    directory.put(ttl_ms=500)
    directory.directory.rearm(1400, 10)
    assert directory.directory.next_deadline_ms() == 1500


def test_the_longest_lease_is_known_until_it_is_over(directory):
    def agree(lease_ms, term, **fields):
        directory(AgreeLease(lease_ms=lease_ms, term=term, **fields), node="", incarnation=0)
        return directory.directory.lease_ms

    assert agree(1000, 1) == 1000
    assert directory.events == [LeaseAgreed(1, 1000)]
    assert agree(500, 2) == 1000, "leases of term 1 may still be valid"
    assert agree(500, 2, longer_are_over=True) == 500
    assert agree(3000, 5) == 3000


def test_only_the_latest_leader_may_declare_longer_leases_over(directory):
    directory(AgreeLease(lease_ms=5000, term=3), node="", incarnation=0)
    directory(AgreeLease(lease_ms=500, term=2, longer_are_over=True), node="", incarnation=0)
    assert directory.directory.lease_ms == 5000
    assert not directory.events


def test_a_snapshot_contains_the_whole_state(directory):
    directory(AgreeLease(lease_ms=700, term=2), node="", incarnation=0)
    directory.put("a", ttl_ms=500)
    directory.put("b", b"2")
    directory.fetch("b", node="n2")
    directory.put("b", b"3", node="n3")
    directory.put("c")
    directory.clean("c")
    directory(Delete(key="c"))
    directory(Revoke(node="n2"), node="", incarnation=0)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(directory.directory.snapshot()))
    copy = Harness()
    copy.directory.restore(state)
    copy.index, copy.seq = directory.index, directory.seq
    for harness in (directory, copy):
        harness.at_ms = 1600
    steps = [Put(key="b", value=b"4"), Fetch(keys=["a", "b", "c"]), Delete(key="b"), Incr(key="n"), WrittenBack(items=[])]
    for step in steps:
        assert directory(step) == copy(step)
        assert directory.events == copy.events
    assert msgspec.msgpack.encode(directory.directory.snapshot()) == msgspec.msgpack.encode(copy.directory.snapshot())
    assert copy.directory.dirty_bytes == directory.directory.dirty_bytes
