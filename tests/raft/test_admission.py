"""What is proposed can be decoded, fits into an entry, and the entry into a frame."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from dss_api.errors import Refused
from dss_cache.core.commands import Incr, Lost
from dss_cache.core.directory import Directory
from dss_dev.sum_machine import Sum
from dss_raft import size_limits as limits
from dss_raft.core.messages import AppendEntries, Entry, EntryKind
from dss_raft.net.wire import AuthenticatedStream, RaftFrame
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import Batch, encode_command
from dss_raft.replication.clocks import AppliedClock, MemberClocks, StampClock
from dss_raft.replication.commands import Command
from dss_raft.replication.pending_commands import PendingCommands
from dss_raft.replication.proposals import Proposals
from dss_raft.replication.replica import Replica


class Blob(Command, tag="test.blob"):
    data: bytes


def blob(size: int) -> Blob:
    """A command of exactly this many bytes in the log."""
    return Blob(data=bytes(size - len(encode_command(Blob(data=bytes(size)))) + size))


@pytest.fixture
def admission() -> Admission:
    return Admission((*Directory.commands, Blob))


@pytest.mark.parametrize("base", [0, 1, -1, 2**53, 2**63 - 1, -(2**63 - 1)])
def test_a_command_in_range_is_encoded_as_ever(admission, base):
    command = Incr(key="a", base=base)
    assert admission.encode(command) == encode_command(command)


@pytest.mark.parametrize("base", [2**63, -(2**63), 2**64 - 1, 2**64, -(2**64), 10**40, -(10**40), 1.5, "7", None])
def test_a_field_that_the_log_would_not_accept_is_refused_by_name(admission, base):
    with pytest.raises(Refused) as refusal:
        admission.encode(Incr(key="a", base=base))
    assert (refusal.value.code, refusal.value.extra) == ("invalid", {"field": "base"})
    assert "`base`" in refusal.value.detail


@pytest.mark.parametrize(
    "command",
    [
        Incr(key=""),
        Incr(key="a\n"),
        Incr(key="\ud800"),
        Lost(key="a", version=1, found_version=-5),
        Lost(key="a", version=2**63),
    ],
)
def test_any_field_of_any_command(admission, command):
    with pytest.raises(Refused) as refusal:
        admission.encode(command)
    assert refusal.value.code == "invalid"
    assert refusal.value.extra["field"] in ("key", "version", "found_version")


def test_a_command_of_no_machine_is_refused():
    with pytest.raises(Refused) as refusal:
        Admission(Sum.commands).encode(Incr(key="a"))
    assert refusal.value.code == "invalid"


def test_a_command_is_as_large_as_the_limit_and_no_larger(admission):
    assert len(admission.encode(blob(limits.COMMAND_BYTES_MAX))) == limits.COMMAND_BYTES_MAX
    with pytest.raises(Refused) as refusal:
        admission.encode(blob(limits.COMMAND_BYTES_MAX + 1))
    assert refusal.value.code == "too_large"
    assert str(limits.COMMAND_BYTES_MAX) in refusal.value.detail


def replica_at(at_ms: int) -> Replica:
    replica = Replica("a", [Sum()])
    replica.at_ms = at_ms
    return replica


class Core:
    """Takes every entry."""

    term, last_index = 1, 0

    def __init__(self) -> None:
        self.entries: list[bytes] = []

    def propose(self, data: bytes) -> int:
        self.entries.append(data)
        return len(self.entries)


async def test_entries_stay_within_their_limit_whatever_is_proposed(admission):
    """Small and largest commands in all orders, of callers and of the leader, with many confirmed results."""
    rng = random.Random(7)
    core = Core()
    proposals = Proposals(core, replica_at(1), admission, StampClock(MemberClocks("a"), AppliedClock()))
    pending = PendingCommands("n" * 64, 2**62, asyncio.get_running_loop(), 1_000_000, admission)
    sizes = [
        limits.COMMAND_BYTES_MAX,
        limits.COMMAND_BYTES_MAX,
        limits.GROUP_FILL_BYTES - 1,
        limits.ENTRY_FILL_BYTES - 1,
        1000,
        100,
    ]
    sent = 0
    for _ in range(6):
        for size in rng.choices(sizes, k=8):
            pending.add(blob(size), 5)
            sent += 1
        for size in rng.choices(sizes, k=2):
            sent += proposals.add_own(blob(size))
        for seq in range(20_000):
            pending.resolve(2**62 + seq, None)
        groups = pending.next_groups()
        assert all(len(group) <= limits.GROUP_BYTES_MAX for group in groups)
        proposals.add_groups(groups)
        proposals.propose()
    assert max(map(len, core.entries)) > limits.COMMAND_BYTES_MAX
    assert max(map(len, core.entries)) <= limits.ENTRY_BYTES_MAX
    batches = [msgspec.msgpack.decode(data, type=Batch[msgspec.Raw]) for data in core.entries]
    assert sent == sum(len(batch.own) + sum(len(group.commands) for group in batch.groups) for batch in batches)


def test_the_largest_append_fits_into_a_frame():
    names = {"sender": "n" * 64, "to": "m" * 64, "term": 2**63, "prev_index": 2**63, "prev_term": 2**63, "commit": 2**63}
    index = 2**62
    one = [Entry(index, index, EntryKind.COMMANDS, bytes(limits.ENTRY_BYTES_MAX))]
    data = bytes(limits.APPEND_FILL_BYTES // limits.APPEND_ENTRIES_MAX)
    many = [Entry(index + i, index, EntryKind.COMMANDS, data) for i in range(limits.APPEND_ENTRIES_MAX)]
    stream = AuthenticatedStream(bytes(32), bytes(32))
    for entries in (one, many):
        assert len(stream.encode(RaftFrame([AppendEntries(**names, entries=entries, round=2**62)]))) <= limits.FRAME_BYTES_MAX


async def test_confirmed_results_are_named_in_parts(admission):
    """After a long stall there are more of them than one group may name."""
    pending = PendingCommands("a", 3, asyncio.get_running_loop(), 10, admission)
    for seq in range(2 * limits.ANSWERED_PER_GROUP_MAX + 1):
        pending.resolve(seq, None)
    named = []
    for _ in range(3):
        pending.add(blob(100), 5)
        (group,) = pending.next_groups()
        named.append(msgspec.msgpack.decode(group)[4])
    assert [len(part) for part in named] == [limits.ANSWERED_PER_GROUP_MAX, limits.ANSWERED_PER_GROUP_MAX, 1]
    assert [seq for part in named for seq in part] == list(range(2 * limits.ANSWERED_PER_GROUP_MAX + 1))


def test_a_forwarded_group_that_no_node_makes_is_dropped(admission):
    core = Core()
    proposals = Proposals(core, replica_at(1), admission, StampClock(MemberClocks("a"), AppliedClock()))
    proposals.add_groups([bytes(limits.GROUP_BYTES_MAX + 1)])
    proposals.propose()
    assert not core.entries
