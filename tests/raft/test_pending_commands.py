"""A pending call is answered exactly once, with its true outcome."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from dss_api.errors import Refused
from dss_api.result import Result
from dss_dev.sum_machine import with_sessions
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import Group, encode_batch, encode_command
from dss_raft.replication.commands import Cancel, Nothing, OpenSession
from dss_raft.replication.pending_commands import GATHER_FROM, PendingCommands
from dss_raft.replication.replica import Replica
from dss_raft.replication.sessions import ClientSession
from dss_raft.size_limits import GROUP_FILL_BYTES


@pytest.fixture
async def pending():
    return PendingCommands("a", 3, asyncio.get_running_loop(), pending_max=5, admission=Admission(()))


@pytest.fixture
async def roomy():
    """With room for many calls."""
    return PendingCommands("a", 3, asyncio.get_running_loop(), pending_max=1000, admission=Admission(()))


def decode(groups: list[bytes]) -> list[Group]:
    return [msgspec.msgpack.decode(group, type=Group[msgspec.Raw]) for group in groups]


def commands(groups: list[bytes]) -> list[bytes]:
    return [bytes(command) for group in decode(groups) for command in group.commands]


async def test_numbers_are_assigned_at_the_first_send_and_kept_afterwards(pending):
    pending.add(OpenSession(), 5)
    pending.add(OpenSession(), 5)
    first = pending.next_groups()
    pending.add(OpenSession(), 5)
    second = pending.next_groups()
    assert [(g.first_seq, len(g.commands)) for g in decode(first + second)] == [(1, 2), (3, 1)]
    again = decode(pending.groups_again())
    assert [(g.node, g.incarnation, g.first_seq, len(g.commands)) for g in again] == [("a", 3, 1, 3)]


async def test_long_commands_can_be_held_and_are_sent_later(pending):
    long = OpenSession(store="x" * 100)
    for command in (long, OpenSession(), long):
        pending.add(command, 5)
    length = len(encode_command(long))
    (held,) = decode(pending.next_groups(shorter_than=length))
    assert (held.first_seq, list(map(bytes, held.commands))) == (1, [encode_command(OpenSession())])
    assert pending.has_unsent
    assert pending.next_groups(shorter_than=length) == []
    (later,) = decode(pending.next_groups())
    assert (later.first_seq, len(later.commands)) == (2, 2)


async def test_many_calls_wait_for_the_group_that_was_sent_and_few_do_not(roomy):
    for _ in range(GATHER_FROM - 1):
        roomy.add(OpenSession(), 5)
    assert not roomy.is_gathering, "nothing was sent yet"
    roomy.next_groups()
    assert not roomy.is_gathering
    roomy.add(OpenSession(), 5)
    assert roomy.is_gathering
    roomy.resolve(1, Result())
    assert not roomy.is_gathering, "one of them has its answer, so they are few"
    for _ in range(GATHER_FROM):
        roomy.add(OpenSession(), 5)
    assert roomy.is_gathering
    for seq in range(2, GATHER_FROM):
        roomy.resolve(seq, Result())
    assert not roomy.is_gathering
    (group,) = decode(roomy.next_groups())
    assert len(group.commands) == GATHER_FROM + 1


async def test_a_full_group_does_not_wait(roomy):
    for _ in range(GATHER_FROM):
        roomy.add(OpenSession(), 5)
    roomy.next_groups()
    long = OpenSession(store="x" * (GROUP_FILL_BYTES // 2))
    roomy.add(long, 5)
    assert roomy.is_gathering
    roomy.add(long, 5)
    assert not roomy.is_gathering
    roomy.next_groups()
    roomy.add(OpenSession(), 5)
    assert roomy.is_gathering
    roomy.add(long, 5)
    roomy.add(long, 5)
    assert roomy.next_groups(shorter_than=1000)
    assert not roomy.is_gathering, "the long ones are still there"


async def test_the_result_reaches_the_caller_and_is_confirmed_with_the_next_group(pending):
    call = pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.resolve(1, Result({"x": 1}))
    assert (await call.future).body == {"x": 1}
    assert pending.in_flight == 0
    pending.add(OpenSession(), 5)
    assert decode(pending.next_groups())[0].answered == [1]


async def test_a_call_that_was_never_sent_is_refused_and_never_sent(pending):
    call = pending.add(OpenSession(), 0.0)
    pending.sweep(lambda: "no_quorum")
    with pytest.raises(Refused) as refusal:
        await call.future
    assert refusal.value.code == "no_quorum"
    assert pending.next_groups() == []


async def test_a_call_that_was_sent_has_an_unknown_outcome_and_no_late_effect(pending):
    call = pending.add(OpenSession(), 0.0)
    pending.next_groups()
    pending.sweep(lambda: "no_quorum")
    with pytest.raises(Refused) as refusal:
        await call.future
    assert refusal.value.code == "unknown_outcome"
    assert commands(pending.groups_again()) == [encode_command(Nothing())]
    assert commands(pending.next_groups()) == [encode_command(Cancel(seq=1))]


async def test_a_parked_call_waits_for_its_event(pending):
    call = pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.park_applied(ClientSession(incarnation=3, last_seq=1, waiting={1: None}))
    assert (pending.in_flight, pending.parked) == (0, 1)
    assert pending.groups_again() == [], "a command that was applied is not sent again"
    pending.resolve(1, Result())
    assert call.future.done()
    assert pending.parked == 0


async def test_the_command_of_a_caller_that_hangs_up_is_undone_in_every_state(pending):
    unsent = pending.add(OpenSession(), 5)
    pending.abandon(unsent)
    assert pending.next_groups() == []
    in_flight = pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.abandon(in_flight)
    assert commands(pending.next_groups()) == [encode_command(Cancel(seq=1))]
    parked = pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.park_applied(ClientSession(incarnation=3, last_seq=3, waiting={3: None}))
    pending.abandon(parked)
    assert commands(pending.next_groups()) == [encode_command(Cancel(seq=3))]
    assert pending.parked == 0


async def test_a_stopping_node_cancels_waiting_calls_and_accepts_no_more(pending):
    waiting = pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.park_applied(ClientSession(incarnation=3, last_seq=1, waiting={1: None}))
    in_flight = pending.add(OpenSession(), 5)
    pending.next_groups()
    assert pending.withdraw()
    with pytest.raises(Refused) as refusal:
        await waiting.future
    assert refusal.value.code == "stopping"
    with pytest.raises(Refused) as refusal:
        pending.add(OpenSession(), 5)
    assert refusal.value.code == "stopping"
    assert commands(pending.next_groups()) == [encode_command(Cancel(seq=1))]
    pending.resolve(2, Result())
    assert in_flight.future.done(), "a call in flight is answered as usual"
    assert not pending.withdraw(), "no call is left to withdraw"


async def test_more_calls_than_the_limit_are_refused(pending):
    for _ in range(5):
        pending.add(OpenSession(), 5)
    with pytest.raises(Refused) as refusal:
        pending.add(OpenSession(), 5)
    assert refusal.value.code == "over_limit"


async def test_calls_are_answered_from_the_session_table_of_a_snapshot(pending):
    answered, waiting, forgotten, unapplied = (pending.add(OpenSession(), 5) for _ in range(4))
    pending.next_groups()
    pending.adopt(ClientSession(incarnation=3, last_seq=3, results={1: Result({"x": 1})}, waiting={2: None}))
    assert answered.future.result().body == {"x": 1}
    assert not waiting.future.done()
    assert pending.parked == 1
    with pytest.raises(Refused) as refusal:
        await forgotten.future
    assert refusal.value.code == "unknown_outcome"
    assert not unapplied.future.done()
    assert [g.first_seq for g in decode(pending.groups_again())] == [4]


async def test_a_large_backlog_is_sent_in_several_groups_without_a_gap(pending):
    big = PendingCommands("a", 3, asyncio.get_running_loop(), pending_max=10_000, admission=Admission(()))
    for _ in range(3):
        call = big.add(OpenSession(), 5)
        call.command = msgspec.msgpack.encode(b"x" * 300_000)
    groups = decode(big.next_groups())
    assert [(g.first_seq, len(g.commands)) for g in groups] == [(1, 2), (3, 1)]


class Cluster:
    """A node's calls, the log that takes their groups, and the state that is made of it."""

    def __init__(self) -> None:
        self.pending = PendingCommands("a", 3, asyncio.get_running_loop(), pending_max=10_000, admission=Admission(()))
        self.replica = with_sessions(Replica("a", []))

    @property
    def session(self) -> ClientSession:
        session = self.replica.sessions.get("a")
        assert session is not None
        return session

    def apply(self, groups: list[bytes]) -> None:
        index = self.replica.applied_index + 1
        self.replica.apply(Entry(index, 1, EntryKind.COMMANDS, encode_batch(0, [], groups)))
        for _, seq, result in self.replica.take_outcomes():
            self.pending.resolve(seq, result)
        self.pending.park_applied(self.session)

    def call(self, count: int = 1) -> list[bytes]:
        for _ in range(count):
            self.pending.add(OpenSession(), 5)
        return self.pending.next_groups()


async def test_acknowledgements_that_were_lost_with_a_leader_are_sent_again():
    """Otherwise the session table would keep these results until the node restarts."""
    cluster = Cluster()
    cluster.apply(cluster.call(2000))
    cluster.call()  # its group acknowledges 2000 results; the leader dies with it
    assert cluster.pending.in_flight == 1
    cluster.apply(cluster.pending.groups_again())
    assert len(cluster.session.results) == 2001
    cluster.apply(cluster.call())
    assert list(cluster.session.results) == [2002], "only the newest result has not been acknowledged"


async def test_acknowledgements_in_a_repeat_that_was_lost_are_sent_again():
    """The originals arrive late, after they were sent again together with other acknowledgements, and the repeat is lost."""
    cluster = Cluster()
    cluster.apply(cluster.call(10))
    first = cluster.call()
    second = cluster.call(3)
    cluster.apply(first)
    cluster.pending.groups_again()
    cluster.apply(second)
    assert cluster.pending.in_flight == 0
    for _ in range(2):
        cluster.apply(cluster.call())
    assert list(cluster.session.results) == [16]


async def test_a_parked_call_does_not_keep_the_results_of_later_ones(pending):
    pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.park_applied(ClientSession(incarnation=3, last_seq=1, waiting={1: None}))
    for seq in (2, 3):
        pending.add(OpenSession(), 5)
        pending.next_groups()
        pending.resolve(seq, Result())
        pending.park_applied(ClientSession(incarnation=3, last_seq=seq, results={seq: Result()}, waiting={1: None}))
    pending.add(OpenSession(), 5)
    assert decode(pending.next_groups())[0].answered == [3]


async def test_a_snapshot_shows_which_acknowledgements_were_lost(pending):
    pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.resolve(1, Result())
    pending.add(OpenSession(), 5)
    pending.next_groups()
    pending.adopt(ClientSession(incarnation=3, last_seq=2, results={1: Result(), 2: Result()}))
    pending.add(OpenSession(), 5)
    assert sorted(decode(pending.next_groups())[0].answered) == [1, 2]
