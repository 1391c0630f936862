"""Commands of a newer cluster version: refused before all members know them, and never applied by a node that does not."""

from __future__ import annotations

import pytest

from dss_api.errors import Refused
from dss_dev.sum_machine import Add, Double, NewSum, with_sessions
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.commands import Command, HashState, SetClusterVersion
from dss_raft.replication.replica import Replica
from dss_raft.versions import LATEST, RELEASE, Announced, Raise, Supported, UnsupportedVersion, conflict, next_version

OLD, NEW = Supported(1, 1), Supported(1, 2)


class Log:
    """Writes entries for replicas of several releases, like a leader."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = replicas

    def batch(self, *commands: Command, own: tuple[Command, ...] = (), first_seq: int = 1) -> Entry:
        groups = [encode_group("a", 1, first_seq, [], [encode_command(each) for each in commands])] if commands else []
        data = encode_batch(1, [encode_command(each) for each in own], groups)
        entry = Entry(self.replicas[0].applied_index + 1, 1, EntryKind.COMMANDS, data)
        for replica in self.replicas:
            replica.apply(entry)
        return entry


def replica_of(supported: Supported) -> Replica:
    return with_sessions(Replica("a", [NewSum()], supported))


def total(replica: Replica) -> int:
    return replica.machines["sum"].total  # type: ignore[attr-defined]


# ----------------------------------------------------------- applying


def test_a_version_is_part_of_the_state_and_only_grows():
    log = Log(replica := replica_of(NEW))
    assert replica.cluster_version == 1
    log.batch(own=(SetClusterVersion(version=2),))
    log.batch(own=(SetClusterVersion(version=1),))
    assert replica.cluster_version == 2
    other = replica_of(NEW)
    other.restore(replica.snapshot())
    assert other.cluster_version == 2
    older = replica_of(NEW).snapshot()
    other.restore(older)
    assert (other.cluster_version, other.highest_version) == (1, 2), "while its state is built again"
    other.restore(replica.snapshot())
    Log(other).batch(Add(amount=3), Double())
    assert total(other) == 6


def test_a_state_of_the_first_version_is_stored_without_it():
    assert b"cluster_version" not in replica_of(NEW).snapshot()


def test_nothing_of_an_entry_with_an_unknown_version_is_applied():
    log = Log(replica := replica_of(OLD))
    log.batch(Add(amount=3))
    before = replica.snapshot()
    for own in (
        (SetClusterVersion(version=2),),
        (SetClusterVersion(version=2), HashState()),
        (HashState(), SetClusterVersion(version=9)),
    ):
        with pytest.raises(UnsupportedVersion, match="the cluster's version is"):
            log.batch(Add(amount=4), own=own, first_seq=2)
    assert replica.snapshot() == before
    assert replica.take_faults() == []


def test_a_snapshot_of_an_unknown_version_is_not_restored():
    new, old = replica_of(NEW), replica_of(OLD)
    Log(new).batch(Add(amount=3), own=(SetClusterVersion(version=2),))
    with pytest.raises(UnsupportedVersion):
        old.restore(new.snapshot())
    assert old.applied_index == 0
    with pytest.raises(UnsupportedVersion):
        replica_of(Supported(3, 4)).restore(new.snapshot())


def test_a_log_with_an_unknown_version_is_found_before_it_is_applied():
    new = replica_of(NEW)
    log = Log(new)
    entries = [log.batch(Add(amount=1)), log.batch(own=(SetClusterVersion(version=2),)), log.batch(Double(), first_seq=2)]
    new.require_supported(entries)
    replica_of(OLD).require_supported(entries[:1])
    with pytest.raises(UnsupportedVersion, match="the cluster's version is 2"):
        replica_of(OLD).require_supported(entries)


def test_a_command_that_is_newer_than_the_version_has_no_effect_on_any_release():
    old, new = replica_of(OLD), replica_of(NEW)
    Log(old, new).batch(Add(amount=3), Double(), Add(amount=1), own=(HashState(),))
    assert total(old) == total(new) == 4
    assert old.snapshot() == new.snapshot()
    assert [fault.kind for fault in new.take_faults()] == [fault.kind for fault in old.take_faults()] == ["undecodable"] * 2


# ---------------------------------------------------------- admission


def test_a_call_that_not_all_members_know_is_refused_before_it_enters_the_log():
    version = 1
    admission = Admission(NewSum.commands, lambda: version)
    admission.encode(Add(amount=1))
    with pytest.raises(Refused) as refused:
        admission.encode(Double())
    assert refused.value.code == "not_supported_yet"
    assert refused.value.extra == {"needed": 2, "cluster_version": 1}
    version = 2
    admission.encode(Double())


# ------------------------------------------------------------- raising


@pytest.mark.parametrize(
    ("current", "members", "raised"),
    [
        (1, {"a": NEW}, Raise(2)),
        (1, {"a": NEW, "b": NEW, "c": NEW}, Raise(2)),
        (1, {"a": NEW, "b": NEW, "c": None}, Raise(0, ("c",))),
        (1, {"a": NEW, "b": OLD, "c": NEW}, Raise(0, (), {"b": 1})),
        (1, {"a": Supported(1, 9), "b": Supported(1, 4), "c": Supported(1, 3)}, Raise(3)),
        (2, {"a": NEW, "b": NEW}, Raise(0, (), {"a": 2, "b": 2})),
        (1, {}, Raise(0)),
    ],
)
def test_the_version_is_raised_to_what_every_member_supports(current, members, raised):
    assert next_version(current, members) == raised


# ------------------------------------------------------------- linking


@pytest.mark.parametrize(
    ("mine", "theirs", "may_link"),
    [
        (Announced(NEW, 1), Announced(OLD, 1), True),
        (Announced(NEW, 2), Announced(NEW, 1), True),
        (Announced(NEW, 2), Announced(OLD, 1), False),
        (Announced(Supported(2, 3), 2), Announced(NEW, 2), True),
        (Announced(Supported(2, 3), 2), Announced(NEW, 1), True),
        (Announced(Supported(2, 3), 1), Announced(OLD, 1), False),
        (Announced(Supported(3, 4), 3), Announced(NEW, 2), False),
    ],
)
def test_nodes_link_when_each_supports_what_the_other_has_applied(mine, theirs, may_link):
    assert (not conflict(mine, theirs)) == (not conflict(theirs, mine)) == may_link


def test_an_unsupported_version_says_what_to_do():
    newest = LATEST + 1
    assert str(UnsupportedVersion(newest, RELEASE)) == (
        f"the cluster's version is {newest}; this release supports {RELEASE}: start a newer release"
    )
    assert str(UnsupportedVersion(2, OLD)) == "the cluster's version is 2; DSS_CLUSTER_VERSION_MAX is 1: remove this setting"
