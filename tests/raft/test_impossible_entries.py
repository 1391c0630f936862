"""Committed entries that cannot be decoded or applied: what every replica makes of them is the same, and never the end."""

from __future__ import annotations

import msgspec
import pytest

from dss_dev.sum_machine import Add, Sum, Wait, with_sessions
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.formats import WrongFormat
from dss_raft.replication.batch import FORMAT, encode_batch, encode_command, encode_group
from dss_raft.replication.commands import Command, OpenSession, Skip
from dss_raft.replication.replica import AppliedBeforeSkip, ApplyFailed, Replica

POISON = 13


class Poisoned(Sum):
    """A sum with a planted bug: it cannot add 13, and is half-changed when it tries."""

    def apply(self, command, at_ms, index, origin):
        if isinstance(command, Add) and command.amount == POISON:
            self.total += 1_000_000
            raise ZeroDivisionError("13 is not a number")
        return super().apply(command, at_ms, index, origin)


def group(first_seq: int, *commands: Command | bytes, node: str = "a", incarnation: int = 1) -> bytes:
    encoded = [command if isinstance(command, bytes) else encode_command(command) for command in commands]
    return encode_group(node, incarnation, first_seq, [], encoded)


def entry(index: int, *groups: bytes, own: tuple[Command | bytes, ...] = (), at_ms: int = 0, term: int = 1) -> Entry:
    encoded = [command if isinstance(command, bytes) else encode_command(command) for command in own]
    return Entry(index, term, EntryKind.COMMANDS, encode_batch(at_ms, encoded, groups))


def applied(log: list[Entry], machine: type[Sum] = Sum) -> Replica:
    replica = with_sessions(Replica("a", [machine()]))
    for one in log:
        replica.apply(one)
    return replica


UNDECODABLE = [
    msgspec.msgpack.encode({"op": "sum.add", "amount": "many"}),
    msgspec.msgpack.encode({"op": "sum.add", "amount": 1, "more": 2}),
    msgspec.msgpack.encode({"op": "sum.add"}),
    msgspec.msgpack.encode({"op": "of.another.version", "amount": 1}),
    msgspec.msgpack.encode([1, 2]),
    msgspec.msgpack.encode(None),
]


@pytest.mark.parametrize("command", UNDECODABLE)
def test_a_command_that_cannot_be_decoded_is_refused_and_the_others_of_its_group_are_applied(command):
    replica = applied([entry(1, group(1, Add(amount=1), command, Add(amount=2)))])
    assert replica.machines["sum"].total == 3
    assert replica.sessions.get("a").last_seq == 3
    results = [(seq, result.code, result.index) for _, seq, result in replica.take_outcomes()]
    assert results == [(1, "", 1), (2, "invalid", 1), (3, "", 1)]
    (fault,) = replica.take_faults()
    assert (fault.index, fault.kind) == (1, "undecodable")
    assert "command 2 of 'a'" in fault.detail


def test_the_text_of_the_refusal_does_not_depend_on_the_decoder():
    """It is part of the state, and the decoder's messages may change with its version."""
    texts = set()
    for command in UNDECODABLE:
        ((_, _, result),) = applied([entry(1, group(1, command))]).take_outcomes()
        texts.add(result.body["detail"])
    assert len(texts) == 1


@pytest.mark.parametrize("command", UNDECODABLE)
def test_a_leaders_own_command_that_cannot_be_decoded_has_no_effect(command):
    replica = applied([entry(1, group(1, Add(amount=1)), own=(command, Add(amount=5)))])
    assert replica.machines["sum"].total == 6
    assert [fault.kind for fault in replica.take_faults()] == ["undecodable"]


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"no batch", msgspec.msgpack.encode([1, []]), msgspec.msgpack.encode([0, [], [1]])]
)
def test_an_entry_that_is_no_batch_has_no_effect(data):
    log = [entry(1, group(1, Add(amount=1))), Entry(2, 9, EntryKind.COMMANDS, data), entry(3, group(2, Add(amount=2)))]
    replica = applied(log)
    assert (replica.machines["sum"].total, replica.applied_index, replica.batch_term) == (3, 3, 1)
    assert [fault.kind for fault in replica.take_faults()] == ["undecodable"]


def test_an_entry_of_a_newer_release_stops_its_node_and_is_not_taken_for_garbage():
    """The others may have applied it: to refuse it, as if it were damaged, would make the states differ."""
    replica = applied([entry(1, group(1, Add(amount=1)))])
    with pytest.raises(WrongFormat, match="start the release that wrote it, or a newer one"):
        replica.apply(Entry(2, 1, EntryKind.COMMANDS, msgspec.msgpack.encode([FORMAT.version + 1, "of a later release"])))
    assert (replica.machines["sum"].total, replica.applied_index) == (1, 1)


def test_a_decodable_entry_has_no_faults():
    replica = applied([entry(1, group(1, OpenSession(), Add(amount=1)), own=(Add(amount=1),))])
    assert not replica.faults


def test_an_apply_that_raises_stops_at_its_entry_and_answers_nothing_of_it():
    replica = applied([entry(1, group(1, Add(amount=1)))], Poisoned)
    with pytest.raises(ApplyFailed) as failure:
        replica.apply(entry(2, group(2, Add(amount=2), Add(amount=POISON))))
    assert failure.value.index == 2
    assert isinstance(failure.value.cause, ZeroDivisionError)
    assert replica.applied_index == 1
    assert [seq for _, seq, _ in replica.take_outcomes()] == [1], "the state may be half-changed: nothing of it is shown"


def test_a_skipped_entry_refuses_its_commands_and_changes_nothing_else():
    log = [
        entry(1, group(1, Add(amount=1), Wait(target=100, lease_ms=1000)), at_ms=1000),
        entry(2, group(3, Add(amount=POISON), Add(amount=50)), at_ms=9000, term=2),
        entry(3, group(5, Add(amount=2)), at_ms=1500),
        entry(4, own=(Skip(entry=2, reason="planted", by="b"),), at_ms=1600),
    ]
    replica = with_sessions(Replica("a", [Poisoned()]))
    replica.skip(2)
    for one in log:
        replica.apply(one)
    assert replica.machines["sum"].total == 3
    assert len(replica.machines["sum"].waiters) == 1, "its stamp has no effect either"
    codes = {seq: result.code for _, seq, result in replica.take_outcomes()}
    assert codes == {1: "", 3: "skipped", 4: "skipped", 5: ""}
    assert replica.skipped == {2: 4}
    (fault,) = replica.take_faults()
    assert (fault.kind, fault.index) == ("skipped", 4)
    assert "planted" in fault.detail


def test_a_session_that_would_begin_in_a_skipped_entry_begins_when_it_sends_again():
    replica = Replica("a", [Sum()])
    replica.skip(1)
    replica.apply(entry(1, group(1, OpenSession(), Add(amount=7))))
    replica.apply(entry(2, group(3, Add(amount=1))))
    assert replica.take_gap()
    replica.apply(entry(3, group(1, OpenSession(), Add(amount=7), Add(amount=1))))
    assert replica.machines["sum"].total == 8


def test_a_skip_of_an_entry_that_had_its_effect_asks_for_the_state_without_it():
    replica = applied([entry(1, group(1, Add(amount=1))), entry(2, group(2, Add(amount=2)))])
    with pytest.raises(ApplyFailed) as failure:
        replica.apply(entry(3, own=(Skip(entry=2, reason="r", by="b"),)))
    assert isinstance(failure.value.cause, AppliedBeforeSkip)
    assert failure.value.cause.entry == 2


def test_a_repeated_skip_and_one_of_a_later_entry_have_no_effect():
    skip = Skip(entry=1, reason="r", by="b")
    replica = with_sessions(Replica("a", [Sum()]))
    replica.skip(1)
    for one in (
        entry(1, group(1, Add(amount=1))),
        entry(2, own=(skip,)),
        entry(3, own=(skip, Skip(entry=9, reason="r", by="b"))),
    ):
        replica.apply(one)
    assert replica.skipped == {1: 2}


def test_a_snapshot_carries_what_was_skipped():
    """Taken between the entry and its skip: the replica that loads it must not ask for another state."""
    first = with_sessions(Replica("a", [Sum()]))
    first.skip(1)
    first.apply(entry(1, group(1, Add(amount=1))))
    second = with_sessions(Replica("a", [Sum()]))
    second.restore(first.snapshot())
    second.apply(entry(2, own=(Skip(entry=1, reason="r", by="b"),)))
    assert second.skipped == {1: 2}
    assert second.snapshot() == msgspec.msgpack.encode(msgspec.msgpack.decode(second.snapshot()))


def test_what_was_skipped_is_found_in_an_entry():
    replica = with_sessions(Replica("a", [Sum()]))
    skips = [Skip(entry=4, reason="r", by="b"), Skip(entry=7, reason="r", by="b")]
    assert replica.skips(entry(9, group(1, Add(amount=1)), own=(skips[0], Add(amount=1), skips[1]))) == [4, 7]
    assert replica.skips(entry(9)) == replica.skips(Entry(9, 1, EntryKind.COMMANDS, b"x")) == []
    assert replica.skips(Entry(9, 1, EntryKind.NOOP, b"")) == []


def test_no_memory_is_no_fault_of_the_entry(monkeypatch):
    """It would be refused on this node and applied on the others."""
    replica = with_sessions(Replica("a", [Sum()]))

    def fail(data):
        raise MemoryError

    monkeypatch.setattr(replica._decoder, "_decode", fail)
    with pytest.raises(ApplyFailed):
        replica.apply(entry(1, group(1, Add(amount=1))))
