"""The replica keeps the promises of sessions and of applied time."""

from __future__ import annotations

import msgspec
import pytest

from dss_dev.sum_machine import Add, Sum, Wait, with_sessions
from dss_raft.core import membership
from dss_raft.core.messages import Configuration, Entry, EntryKind, Member
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.commands import AdvanceTime, Cancel, Command, Nothing, OpenSession
from dss_raft.replication.replica import Replica
from dss_raft.replication.sessions import RESULTS_KEPT_MAX


class Log:
    """Writes entries for a replica, like a leader."""

    def __init__(self, *replicas: Replica) -> None:
        self.replicas = replicas
        self.index = 0

    def batch(self, *groups: bytes, at_ms: int = 0, term: int = 1, own: tuple[Command, ...] = ()) -> None:
        self.index += 1
        encoded = [encode_command(command) for command in own]
        entry = Entry(self.index, term, EntryKind.COMMANDS, encode_batch(at_ms, encoded, groups))
        for replica in self.replicas:
            replica.apply(entry)


def group(first_seq: int, *commands: Command, node: str = "a", incarnation: int = 1, answered: tuple[int, ...] = ()) -> bytes:
    return encode_group(node, incarnation, first_seq, list(answered), [encode_command(c) for c in commands])


@pytest.fixture
def replica() -> Replica:
    return with_sessions(Replica("a", [Sum()]))


def total(replica: Replica) -> int:
    return replica.machines["sum"].total  # type: ignore[attr-defined]


def test_a_repeated_command_takes_effect_once(replica):
    log = Log(replica)
    log.batch(group(1, Add(amount=5), Add(amount=7)))
    log.batch(group(1, Add(amount=5), Add(amount=7), Add(amount=1)))
    assert total(replica) == 13
    assert [(seq, r.body["total"]) for _, seq, r in replica.take_outcomes()] == [(1, 5), (2, 12), (3, 13)]


def test_a_command_after_a_gap_waits_for_the_missing_ones(replica):
    log = Log(replica)
    log.batch(group(2, Add(amount=7)))
    assert total(replica) == 0
    assert replica.take_gap()
    log.batch(group(1, Add(amount=5), Add(amount=7)))
    assert total(replica) == 12
    assert not replica.take_gap()


def test_a_gap_in_the_session_of_another_node_is_ignored(replica):
    Log(replica).batch(group(2, Add(amount=7), node="b"))
    assert not replica.take_gap()


def test_a_new_incarnation_closes_the_old_session(replica):
    log = Log(replica)
    log.batch(group(1, Add(amount=1), incarnation=1), group(1, Wait(target=9, lease_ms=60_000), node="b"))
    log.batch(group(1, OpenSession(replaces=1), incarnation=2), group(2, Add(amount=100), incarnation=1))
    assert total(replica) == 1
    assert len(replica.machines["sum"].waiters) == 1, "the waiter of the other node stays"
    log.batch(group(2, Add(amount=10), incarnation=2))
    assert total(replica) == 11


def test_results_carry_the_index_of_their_entry(replica):
    log = Log(replica)
    log.batch(group(1, Add(amount=1)))
    log.batch(group(2, Add(amount=1)))
    assert [r.index for _, _, r in replica.take_outcomes()] == [1, 2]


def test_a_waiter_can_be_answered_by_a_later_command_of_any_node(replica):
    log = Log(replica)
    log.batch(group(1, Wait(target=3)))
    assert replica.take_outcomes() == []
    log.batch(group(1, Add(amount=3), node="b"))
    assert [(seq, r.body, r.index) for _, seq, r in replica.take_outcomes()] == [(1, {"total": 3}, 2)]


def test_a_cancelled_waiter_is_never_answered(replica):
    log = Log(replica)
    log.batch(group(1, Wait(target=3)))
    log.batch(group(2, Cancel(seq=1)))
    log.batch(group(3, Add(amount=3)))
    assert [seq for _, seq, _ in replica.take_outcomes()] == [2, 3]


def test_nothing_expires_without_a_later_stamp(replica):
    log = Log(replica)
    log.batch(group(1, Wait(target=3, lease_ms=1000)), at_ms=5000)
    assert replica.next_deadline_ms() == 6000
    log.batch(at_ms=5999)
    assert replica.take_outcomes() == []
    log.batch(at_ms=6000)
    assert [r.code for _, _, r in replica.take_outcomes()] == ["wait_timeout"]


def test_applied_time_never_goes_back(replica):
    log = Log(replica)
    log.batch(at_ms=6000)
    log.batch(at_ms=10)
    assert replica.at_ms == 6000


def test_a_new_leader_re_arms_before_anything_expires(replica):
    log = Log(replica)
    log.batch(group(1, Wait(target=3, lease_ms=1000)), at_ms=5000, term=1)
    log.batch(at_ms=60_000, term=2)
    assert replica.take_outcomes() == [], "the lease has its full length again from the new leader's first stamp"
    log.batch(at_ms=61_000, term=2)
    assert [r.code for _, _, r in replica.take_outcomes()] == ["wait_timeout"]


def test_confirmed_results_are_dropped_and_others_kept(replica):
    log = Log(replica)
    log.batch(group(1, Add(amount=1), Add(amount=2), Add(amount=3)))
    log.batch(group(4, Nothing(), answered=(1, 3)))
    assert list(replica.sessions.get("a").results) == [2, 4]


def test_a_session_keeps_a_bounded_number_of_results(replica):
    log = Log(replica)
    log.batch(group(1, *[Add(amount=1)] * (RESULTS_KEPT_MAX + 10)))
    kept = replica.sessions.get("a").results
    assert len(kept) == RESULTS_KEPT_MAX
    assert min(kept) == 11


def test_a_snapshot_contains_the_whole_state():
    first, second = with_sessions(Replica("a", [Sum()])), with_sessions(Replica("a", [Sum()]))
    log = Log(first)
    log.batch(group(1, Add(amount=1), Wait(target=9)), at_ms=100, term=3)
    second.restore(first.snapshot())
    assert second.snapshot() == first.snapshot()
    log.replicas = (first, second)
    log.batch(group(2, Wait(target=9)), group(3, Add(amount=8)), at_ms=200, term=3)
    assert second.snapshot() == first.snapshot()
    assert msgspec.msgpack.encode(second.take_outcomes()) != b""
    assert total(second) == 9


def test_an_entry_out_of_order_is_refused(replica):
    with pytest.raises(ValueError, match="does not follow"):
        replica.apply(Entry(2, 1, EntryKind.NOOP, b""))


# ---- time is advanced


DAY_MS = 24 * 3_600_000


class Kept(Sum):
    """Keeps what it is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def rearm(self, at_ms: int, index: int) -> None:
        super().rearm(at_ms, index)
        self.asked.append(("rearm", at_ms))

    def expire(self, at_ms: int, index: int) -> None:
        super().expire(at_ms, index)
        self.asked.append(("expire", at_ms))

    def next_deadline_ms(self) -> int | None:
        return 0


def test_advanced_time_gives_leases_their_full_length_before_anything_expires():
    machine = Kept()
    log = Log(replica := with_sessions(Replica("a", [machine])))
    log.batch(group(1, Wait(target=9, lease_ms=1_000)), at_ms=5_000)
    machine.asked.clear()
    log.batch(group(2, Wait(target=9, lease_ms=700)), at_ms=5_400, own=(AdvanceTime(to_ms=DAY_MS, nodes=("a", "b")),))
    assert machine.asked == [("expire", 5_400), ("rearm", DAY_MS), ("expire", DAY_MS)]
    assert sorted(deadline for _, deadline, _ in machine.waiters.values()) == [DAY_MS + 700, DAY_MS + 1_000]
    assert replica.at_ms == DAY_MS
    (fault,) = replica.take_faults()
    assert (fault.kind, fault.index) == ("advanced", 2)
    assert fault.detail == f"by {DAY_MS - 5_400} ms; the clocks of a, b agree"


@pytest.mark.parametrize("to_ms", [0, 5_000, 9_000])
def test_time_that_is_later_already_is_not_advanced(to_ms):
    machine = Kept()
    log = Log(replica := with_sessions(Replica("a", [machine])))
    log.batch(at_ms=9_000)
    machine.asked.clear()
    log.batch(at_ms=5_000, own=(AdvanceTime(to_ms=to_ms, nodes=("a",)),))
    assert machine.asked == [("expire", 9_000)]
    assert (replica.at_ms, replica.take_faults()) == (9_000, [])


def test_a_delayed_opening_does_not_close_a_newer_session():
    log = Log(replica := Replica("a", [Sum()]))
    delayed = group(1, OpenSession(replaces=0), Add(amount=1), incarnation=7)
    log.batch(group(1, OpenSession(replaces=0), Add(amount=2), incarnation=5))
    log.batch(delayed)
    assert (total(replica), replica.sessions.get("a").incarnation) == (2, 5)
    log.batch(group(1, OpenSession(replaces=5), Add(amount=4), incarnation=3))
    assert (total(replica), replica.sessions.get("a").incarnation) == (6, 3)


def test_commands_of_an_unknown_incarnation_have_no_effect():
    log = Log(replica := Replica("a", [Sum()]))
    log.batch(group(1, Add(amount=1), incarnation=9))
    assert (total(replica), replica.take_gap()) == (0, True)


def test_the_session_of_a_removed_node_ends_and_a_late_copy_does_not_open_it_again():
    log = Log(replica := Replica("b", [Sum()]))
    opening = group(1, OpenSession(replaces=0), Wait(target=9), incarnation=5)
    log.batch(opening)
    members = Configuration((Member("b", "", store="b0"),))
    log.index += 1
    replica.apply(Entry(log.index, 1, EntryKind.CONFIGURATION, membership.encode(members)))
    assert not replica.machines["sum"].waiters
    log.batch(opening, group(3, Add(amount=1), incarnation=5))
    assert total(replica) == 0
    log.batch(group(1, OpenSession(replaces=5), Add(amount=2), incarnation=6))
    assert total(replica) == 2


def test_a_store_that_was_started_more_often_than_it_says_is_outdated():
    log = Log(replica := Replica("b", [Sum()]))
    log.batch(group(1, OpenSession(replaces=0, store="s", starts=4), incarnation=5))
    outdates = replica.sessions.outdates
    assert outdates("a", 8, "s", 4)
    assert not outdates("a", 5, "s", 4), "it is that very start"
    assert not outdates("a", 8, "s", 5)
    assert not outdates("a", 8, "another store", 1)
