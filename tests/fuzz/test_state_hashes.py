"""Hashes of random states: equal on all nodes, however they got there, and different where something differs.

The fuzzer compares the hashes of two replicas, one of which is restored now and then, with each comparison of the states.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from command_world import CommandWorld

from dss_project.runtime import state_machines
from dss_raft.replication.replica import Replica
from dss_raft.replication.state_hash import FORMS, differing_parts, form, state_hashes
from dss_raft.versions import LATEST

COMMANDS_MAX = 100_000


@pytest.fixture(scope="module")
def world() -> CommandWorld:
    """A random world, as soon as it has something of everything."""
    world = CommandWorld(27)
    world.weights = [1] * len(world.weights)
    while not (world.restores and has_everything(world.first)):
        assert world.made < COMMANDS_MAX
        world.step()
    return world


def has_everything(replica: Replica) -> bool:
    machines = replica.machines
    topics = machines["queue"].topics.values()
    return bool(
        any(True for lock in machines["locks"].locks.values() for _ in lock.holds())
        and any(topic.messages.by_number for topic in topics)
        and machines["cache"].records
        and replica.requests._answers
        and machines["tokens"].tokens
        and machines["audit"].records
        and machines["users"].users
    )


def copy_of(replica: Replica) -> Replica:
    copy = Replica(replica.node_id, state_machines())
    copy.restore(replica.snapshot())
    return copy


def in_slices(replica: Replica) -> Replica:
    """A copy, restored as a node does it; the state changes in the last step only."""
    copy = Replica(replica.node_id, state_machines())
    before = state_hashes(copy)
    restoring = copy.restoring(replica.snapshot())
    slices = 0
    while True:
        try:
            next(restoring)
        except StopIteration as end:
            end.value()
            break
        slices += 1
        assert state_hashes(copy) == before
    assert slices > 10
    return copy


def test_a_state_that_was_restored_has_the_same_hashes(world: CommandWorld) -> None:
    hashes = state_hashes(world.first)
    assert world.restores
    assert state_hashes(world.second) == state_hashes(copy_of(world.first)) == state_hashes(in_slices(world.first)) == hashes
    assert len(set(hashes.values())) == len(hashes) == 10


def change_limit(replica: Replica) -> None:
    replica.limits.maxima["session_bytes_max"] += 1


def change_lock(replica: Replica) -> None:
    table = replica.machines["locks"]
    next(hold for lock in table.locks.values() for hold in lock.holds()).token += 1


def change_message(replica: Replica) -> None:
    topics = replica.machines["queue"].topics.values()
    message = next(message for topic in topics for message in topic.messages.by_number.values())
    message.value = message.value + b" "


def change_record(replica: Replica) -> None:
    next(iter(replica.machines["cache"].records.values())).version += 1


def change_session(replica: Replica) -> None:
    next(iter(replica.sessions.sessions.values())).last_seq += 1


def change_request(replica: Replica) -> None:
    next(iter(replica.requests._answers)).number += 1


def change_token(replica: Replica) -> None:
    next(iter(replica.machines["tokens"].tokens.values())).generation += 1


def change_audit(replica: Replica) -> None:
    replica.machines["audit"].records[0].by += "x"


def change_user(replica: Replica) -> None:
    next(iter(replica.machines["users"].users.values())).generation += 1


def change_time(replica: Replica) -> None:
    replica.at_ms += 1


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_lock, "locks"),
        (change_message, "queue"),
        (change_record, "cache"),
        (change_limit, "limits"),
        (change_session, "sessions"),
        (change_request, "requests"),
        (change_token, "tokens"),
        (change_audit, "audit"),
        (change_user, "users"),
        (change_time, "replica"),
    ],
)
def test_a_small_change_of_a_part_changes_its_hash_alone(
    world: CommandWorld, change: Callable[[Replica], None], part: str
) -> None:
    changed = copy_of(world.first)
    change(changed)
    assert differing_parts(state_hashes(world.first), state_hashes(changed)) == [part]


def test_the_form_of_the_present_version_is_what_this_release_hashes() -> None:
    """If this fails: keep hashing the earlier form until the cluster has its next version, and add the new form to `FORMS`."""
    replica = Replica("a", state_machines())
    _, *_, sessions, machines = msgspec.msgpack.decode(replica.snapshot())
    formats = {"replica": 1, "sessions": sessions[0], **{name: part[0] for name, part in machines.items()}}
    assert form(LATEST) == formats
    assert max(FORMS) <= LATEST


def test_missing_parts_differ() -> None:
    assert differing_parts({"a": b"1", "b": b"2"}, {"a": b"1", "c": b"3"}) == ["b", "c"]
