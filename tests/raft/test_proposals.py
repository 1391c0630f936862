"""The proposals that a leader gathers belong to one term, and fill entries up to a limit."""

from __future__ import annotations

import msgspec
import pytest

from dss_dev.sum_machine import Add, Sum
from dss_raft.core import Busy
from dss_raft.replication import proposals as module
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import Batch, encode_command, encode_group
from dss_raft.replication.clocks import wall_clock_ms
from dss_raft.replication.proposals import Proposals
from dss_raft.replication.replica import Replica


class Core:
    """The part of a core that proposals need."""

    def __init__(self) -> None:
        self.term = 1
        self.last_index = 0
        self.busy = False
        self.entries: list[Batch] = []

    def propose(self, data: bytes) -> int:
        if self.busy:
            raise Busy("too much is uncommitted")
        self.entries.append(msgspec.msgpack.decode(data, type=Batch[msgspec.Raw]))
        self.last_index += 1
        return self.last_index


@pytest.fixture
def core():
    return Core()


@pytest.fixture
def proposals(core):
    replica = Replica("a", [Sum()])
    return Proposals(core, replica, Admission(replica.command_types))


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


def test_a_stamp_is_proposed_only_when_something_is_due(core, proposals, monkeypatch):
    monkeypatch.setattr(proposals._replica, "next_deadline_ms", lambda: wall_clock_ms() + 60_000)
    assert not proposals.stamp_if_due()
    monkeypatch.setattr(proposals._replica, "next_deadline_ms", lambda: wall_clock_ms() - 1)
    core.last_index = 1
    assert not proposals.stamp_if_due(), "an entry in flight may already cause it"
    core.last_index = 0
    assert proposals.stamp_if_due()
    proposals.propose()
    assert len(core.entries) == 1
