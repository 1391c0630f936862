"""The proposals that a leader gathers belong to one term, and fill entries up to a limit."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from dss_dev.sum_machine import Add, Sum, with_sessions
from dss_raft.core import Busy
from dss_raft.replication import proposals as module
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import Batch, encode_command, encode_group
from dss_raft.replication.clocks import AGREE_MS, FIRST_STAMP_WAIT_S, AppliedClock, MemberClocks, StampClock
from dss_raft.replication.commands import AdvanceTime, Command
from dss_raft.replication.proposals import Proposals
from dss_raft.replication.replica import Replica
from dss_raft.versions import LATEST, Raise, Supported

NOW_MS = 1_000_000_000_000
DAY_MS = 24 * 3_600_000


class Core:
    """The part of a core that proposals need."""

    def __init__(self) -> None:
        self.term = 1
        self.last_index = 0
        self.commit_index = 0
        self.busy = False
        self.entries: list[Batch] = []
        self.log = SimpleNamespace(term=lambda index: self.term)
        self.membership = SimpleNamespace(ids=frozenset("abc"), voters=("a", "b", "c"))

    def propose(self, data: bytes) -> int:
        if self.busy:
            raise Busy("too much is uncommitted")
        self.entries.append(msgspec.msgpack.decode(data, type=Batch[msgspec.Raw]))
        self.last_index += 1
        return self.last_index


@pytest.fixture
def core():
    return Core()


class Clocks:
    """The wall clock of this node and the steady one, and what a majority agrees on."""

    def __init__(self) -> None:
        self.wall_ms, self.steady_s = NOW_MS, 1.0
        self.members = MemberClocks("a", lambda: self.wall_ms, lambda: self.steady_s)
        self.stamps = StampClock(self.members, AppliedClock(lambda: self.wall_ms, lambda: self.steady_s), lambda: self.steady_s)

    def agree_on(self, wall_ms: int) -> None:
        for peer in ("b", "c"):
            self.members.heard(peer, wall_ms)
        self.members.look(("a", "b", "c"))


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def replica():
    replica = with_sessions(Replica("a", [Sum()]))
    replica.at_ms = NOW_MS
    return replica


@pytest.fixture
def proposals(core, replica, clocks):
    return Proposals(core, replica, Admission(replica.command_types), clocks.stamps)


def group(first_seq: int) -> bytes:
    return encode_group("a", 1, first_seq, [], [encode_command(Add(amount=1))])


def first_seqs(batch: Batch) -> list[int]:
    return [one.first_seq for one in batch.groups]


def test_everything_that_was_gathered_goes_into_one_entry(core, proposals):
    proposals.add_groups([group(1)])
    proposals.add_own(Add(amount=5))
    proposals.add_groups([group(2)])
    proposals.propose()
    assert [(first_seqs(entry), len(entry.own)) for entry in core.entries] == [([1, 2], 1)]
    proposals.propose()
    assert len(core.entries) == 1, "nothing is proposed twice"


def test_a_leaders_own_command_is_dropped_with_its_term(core, proposals):
    proposals.add_own(Add(amount=5))
    core.term = 3
    proposals.stamp()
    proposals.propose()
    assert [entry.own for entry in core.entries] == [[]]


def test_proposals_that_a_busy_core_refuses_are_kept_in_order(core, proposals):
    proposals.add_groups([group(1), group(2)])
    core.busy = True
    proposals.propose()
    core.busy = False
    proposals.add_groups([group(3)])
    proposals.propose()
    assert [first_seqs(entry) for entry in core.entries] == [[1, 2, 3]]


def test_more_than_the_limit_becomes_several_entries(core, proposals, monkeypatch):
    monkeypatch.setattr(module, "ENTRY_FILL_BYTES", len(group(1)) + 1)
    proposals.add_groups([group(seq) for seq in (1, 2, 3)])
    proposals.propose()
    assert [first_seqs(entry) for entry in core.entries] == [[1, 2], [3]]


def test_proposals_gathered_while_the_core_is_busy_are_bounded(core, proposals, monkeypatch):
    """Every node repeats its calls each second while nothing is committed; the repeats must not fill the leader's memory."""
    monkeypatch.setattr(module, "GATHERED_BYTES_MAX", 10 * len(group(1)))
    core.busy = True
    for _ in range(1000):
        proposals.add_groups([group(1), group(2)])
        proposals.propose()
    assert not proposals.add_own(Add(amount=1))
    core.busy = False
    proposals.propose()
    assert [first_seqs(entry) for entry in core.entries] == [[1, 2] * 5], "what came first is kept"
    proposals.add_groups([group(3)])
    assert proposals.add_own(Add(amount=1)), "there is room again"
    proposals.propose()
    assert first_seqs(core.entries[1]) == [3]


def test_a_new_term_starts_with_the_whole_limit(core, proposals, monkeypatch):
    monkeypatch.setattr(module, "GATHERED_BYTES_MAX", len(group(1)))
    proposals.add_groups([group(1), group(2)])
    core.term = 2
    proposals.add_groups([group(3), group(4)])
    proposals.propose()
    assert [first_seqs(entry) for entry in core.entries] == [[3]]


def test_a_stamp_is_proposed_only_when_something_is_due(core, proposals, replica, monkeypatch):
    monkeypatch.setattr(replica, "next_deadline_ms", lambda: NOW_MS + 60_000)
    assert not proposals.stamp_if_due()
    monkeypatch.setattr(replica, "next_deadline_ms", lambda: NOW_MS - 1)
    core.last_index = 1
    assert not proposals.stamp_if_due(), "an entry in flight may already cause it"
    core.last_index = 0
    assert proposals.stamp_if_due()
    proposals.propose()
    assert len(core.entries) == 1


# ---- time


def commands(core: Core) -> list[Command]:
    own = [raw for entry in core.entries for raw in entry.own]
    return [msgspec.msgpack.decode(raw, type=AdvanceTime) for raw in own]


def lead(core: Core, proposals: Proposals, replica: Replica, term: int) -> None:
    """The first batch of the term is applied."""
    core.term = term
    proposals.stamp()
    proposals.propose()
    replica.batch_term = term


def test_a_new_leader_advances_time_once_to_what_a_majority_agrees_on(core, proposals, replica, clocks):
    core.term = 3
    clocks.agree_on(NOW_MS + DAY_MS)
    proposals.catch_up()
    proposals.propose()
    assert not core.entries, "leases get their full length first, with the first batch of the term"
    lead(core, proposals, replica, 3)
    proposals.catch_up()
    proposals.propose()
    assert commands(core) == [AdvanceTime(to_ms=NOW_MS + DAY_MS, nodes=("b", "c"))]
    assert [entry.at_ms for entry in core.entries] == [NOW_MS, NOW_MS], "the stamp of its entry is not advanced"
    clocks.agree_on(NOW_MS + 3 * DAY_MS)
    proposals.catch_up()
    proposals.propose()
    assert len(core.entries) == 2, "a leader measures the time of its term itself"
    lead(core, proposals, replica, 4)
    proposals.catch_up()
    proposals.propose()
    assert len(commands(core)) == 2


@pytest.mark.parametrize("ahead_ms", [AGREE_MS, 0, -DAY_MS])
def test_applied_time_that_is_hardly_behind_or_ahead_is_not_advanced(core, proposals, replica, clocks, ahead_ms):
    clocks.agree_on(NOW_MS + ahead_ms)
    lead(core, proposals, replica, 3)
    proposals.catch_up()
    proposals.propose()
    assert commands(core) == []


def test_one_wrong_clock_does_not_advance_time(core, proposals, replica, clocks):
    clocks.wall_ms += 8 * DAY_MS
    clocks.members.look(("a", "b", "c"))
    lead(core, proposals, replica, 3)
    proposals.catch_up()
    clocks.members.heard("b", NOW_MS)
    clocks.members.look(("a", "b", "c"))
    proposals.catch_up()
    clocks.agree_on(NOW_MS)
    proposals.catch_up()
    proposals.propose()
    assert commands(core) == []


def test_a_majority_whose_clocks_start_in_1970_is_asked_again(core, proposals, replica, clocks):
    lead(core, proposals, replica, 3)
    clocks.agree_on(3_000)
    proposals.catch_up()
    clocks.agree_on(NOW_MS + DAY_MS)
    proposals.catch_up()
    proposals.propose()
    assert [command.to_ms for command in commands(core)] == [NOW_MS + DAY_MS]


def test_an_advance_for_which_there_is_no_room_is_proposed_later(core, proposals, replica, clocks, monkeypatch):
    lead(core, proposals, replica, 3)
    clocks.agree_on(NOW_MS + DAY_MS)
    monkeypatch.setattr(module, "GATHERED_BYTES_MAX", 0)
    proposals.catch_up()
    monkeypatch.undo()
    proposals.catch_up()
    proposals.propose()
    assert len(commands(core)) == 1


def test_nothing_is_stamped_before_the_stamps_in_the_log_are_known(core, proposals, replica, clocks):
    """A node was started without a snapshot and leads: its log is not applied yet."""
    replica.at_ms = 0
    core.commit_index = 9
    clocks.agree_on(NOW_MS + DAY_MS)
    proposals.stamp()
    proposals.propose()
    core.log.term = lambda index: core.term - 1
    replica.applied_index = 9
    proposals.propose()
    assert core.entries == [], "entries of this term may follow, and older ones before them"
    replica.at_ms = NOW_MS
    proposals.propose()
    assert [entry.at_ms for entry in core.entries] == [NOW_MS]


def test_the_first_stamp_of_a_cluster_waits_for_a_majority_of_clocks(core, proposals, replica, clocks):
    replica.at_ms = 0
    clocks.wall_ms -= 8 * DAY_MS
    proposals.stamp()
    proposals.propose()
    assert core.entries == []
    clocks.agree_on(NOW_MS)
    proposals.propose()
    assert [entry.at_ms for entry in core.entries] == [NOW_MS]


def test_the_first_stamp_of_a_cluster_does_not_wait_long(core, proposals, replica, clocks):
    replica.at_ms = 0
    proposals.stamp()
    proposals.propose()
    clocks.steady_s += FIRST_STAMP_WAIT_S
    proposals.propose()
    assert len(core.entries) == 1


def test_clocks_that_were_compared_before_a_change_of_members_advance_nothing(core, proposals, replica, clocks):
    replica.batch_term = core.term
    clocks.agree_on(NOW_MS + DAY_MS)
    clocks.wall_ms += DAY_MS
    core.membership.voters = ("a", "b", "c", "d", "e", "f")
    proposals.catch_up()
    proposals.propose()
    assert core.entries == []
    core.membership.voters = ("a", "b", "c")
    proposals.catch_up()
    proposals.propose()
    assert len(core.entries) == 1


# --------------------------------------------------------- the cluster's version


@pytest.fixture
def leading(core, replica, proposals):
    """The proposals of a leader that has applied a batch of its term; the members are a, b and c."""
    core.node_id = "a"
    replica.batch_term = core.term
    return proposals


def versions(core: Core) -> list[int]:
    own = [msgspec.msgpack.decode(command) for entry in core.entries for command in entry.own]
    return [command["version"] for command in own if command["op"] == "raft.set_cluster_version"]


def test_a_leader_proposes_a_version_once_in_a_term_and_the_next_leader_again(core, replica, leading):
    for _ in range(3):
        assert leading.raise_version(lambda peer: Supported(1, 2)) == Raise(2)
        leading.propose()
    assert versions(core) == [2]
    core.term = replica.batch_term = 4
    leading.raise_version(lambda peer: Supported(1, 2))
    leading.propose()
    assert versions(core) == [2, 2]


def test_a_leader_waits_for_all_members_and_for_the_entries_of_earlier_terms(core, replica, leading):
    assert leading.raise_version({"b": Supported(1, 2)}.get) == Raise(0, ("c",))
    core.term = 2
    assert leading.raise_version(lambda peer: Supported(1, 2)) == Raise()
    leading.propose()
    assert versions(core) == []


def test_a_version_that_is_in_force_is_not_proposed_again(core, replica, leading):
    replica.cluster_version = LATEST
    assert leading.raise_version(lambda peer: Supported(1, LATEST + 1)) == Raise()
    leading.propose()
    assert versions(core) == []


def test_a_version_that_cannot_be_proposed_now_is_not_proposed_when_a_member_has_gone_back(core, replica, leading):
    core.busy = True
    leading.raise_version(lambda peer: Supported(1, 2))
    core.busy = False
    assert leading.raise_version({"b": Supported(1, 2), "c": Supported(1, 1)}.get) == Raise(0, (), {"c": 1})
    leading.propose()
    assert versions(core) == []
    leading.raise_version(lambda peer: Supported(1, 2))
    assert versions(core) == [2]


def test_time_that_cannot_be_advanced_now_is_not_advanced_when_the_members_have_changed(core, replica, proposals, clocks):
    core.node_id, core.membership = "a", SimpleNamespace(voters=("a", "b", "c"), ids=frozenset("abc"))
    replica.batch_term, replica.at_ms = core.term, NOW_MS
    clocks.agree_on(NOW_MS + DAY_MS)
    core.busy = True
    proposals.catch_up()
    core.busy = False
    core.membership.voters = ("a", "d", "e")
    proposals.catch_up()
    proposals.propose()
    assert core.entries == []
