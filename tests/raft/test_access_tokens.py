"""The state machine of tokens: what each command does, when secrets end, and that a copy is the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.access_tokens import (
    AccessTokens,
    CreateToken,
    NoteTokensUsed,
    RevokeToken,
    RotateToken,
    TokensChanged,
    last_with_token,
)
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.limits import LimitsMachine, StateLimits
from dss_raft.replication.machine import Origin
from dss_raft.replication.replica import Replica
from dss_raft.replication.state_hash import state_hashes
from dss_raft.versions import Supported

A, B, KEY, NEW_KEY = "aaaaaaaaaaaa", "bbbbbbbbbbbb", "00000001", "00000002"
ORIGIN = Origin("node-1", 1, 1)


class World:
    def __init__(self, **maxima: int) -> None:
        self.machine = AccessTokens(StateLimits(maxima))
        self.index = 0

    def apply(self, command: Any, at_ms: int = 0) -> Any:
        self.index += 1
        deadline = self.machine.next_deadline_ms()
        if deadline is not None and deadline <= at_ms:
            self.machine.expire(at_ms, self.index)
        return self.machine.apply(command, at_ms, self.index, ORIGIN)

    def create(self, token_id: str = A, at_ms: int = 0, **fields: Any) -> Any:
        return self.apply(CreateToken(**{"id": token_id, "name": token_id, "scopes": ["read"], "key": KEY, **fields}), at_ms)


def test_the_first_token_closes_the_cluster_for_good() -> None:
    world = World()
    assert not world.machine.is_closed
    assert world.create().code == ""
    assert world.machine.is_closed
    assert world.apply(RevokeToken(id=A)).body == {"revoked": True}
    assert world.machine.tokens == {}
    assert world.machine.is_closed
    assert world.apply(RevokeToken(id=A)).body == {"revoked": False}


def test_a_rotation_raises_the_generation_and_keeps_the_secret_before_it_for_a_while() -> None:
    world = World()
    world.create()
    body = world.apply(RotateToken(id=A, key=NEW_KEY, overlap_ms=100), 1000).body
    token = world.machine.tokens[A]
    assert (token.generation, token.key, token.previous_key, token.previous_until_ms) == (2, NEW_KEY, KEY, 1100)
    assert (body["generation"], body["rotated_ms"], body["previous_until_ms"]) == (2, 1000, 1100)
    assert world.machine.next_deadline_ms() == 1100
    world.machine.take_events()
    world.machine.expire(1100, 9)
    assert (token.previous_key, token.previous_until_ms) == ("", 0)
    assert world.machine.take_events() == [TokensChanged()]
    world.apply(RotateToken(id=A, key=NEW_KEY), 2000)
    assert (token.generation, token.previous_until_ms) == (3, 0), "without an overlap, the present secret ends"


def test_a_token_expires_in_applied_time_and_stays_in_the_list() -> None:
    world = World()
    world.create(expires_in_ms=500, at_ms=100)
    assert world.machine.next_deadline_ms() == 600
    world.apply(NoteTokensUsed(ids=[B]), 599)
    assert not world.machine.tokens[A].is_expired
    world.apply(NoteTokensUsed(ids=[B]), 600)
    assert world.machine.tokens[A].is_expired
    assert world.machine.next_deadline_ms() is None
    assert world.apply(RotateToken(id=A, key=KEY), 700).code == "invalid"
    assert world.create(B, at_ms=700, name=A).code == "", "its name is free"


def test_names_and_ids_are_used_once() -> None:
    world = World()
    world.create()
    assert world.create(A, name="other").body["field"] == "id"
    assert world.create(B, name=A).body["field"] == "name"
    assert world.apply(RotateToken(id=B, key=KEY)).code == "not_found"


def test_the_limit_and_the_place_of_expired_tokens() -> None:
    world = World(tokens_max=2)
    world.create(A, expires_in_ms=10)
    world.create(B)
    refused = world.create("cccccccccccc")
    assert (refused.code, refused.body["limit"]) == ("over_limit", "tokens_max")
    assert world.create("cccccccccccc", at_ms=10).code == ""
    assert list(world.machine.tokens) == [B, "cccccccccccc"]


def test_a_copy_from_a_snapshot_is_the_same() -> None:
    world = World()
    world.create(expires_in_ms=500)
    world.create(B, scopes=["locks:ä/", "queue::publish"], by="user alice")
    world.apply(RotateToken(id=B, key=NEW_KEY, overlap_ms=50), 10)
    world.apply(NoteTokensUsed(ids=[B]), 20)
    snapshot = msgspec.msgpack.encode(world.machine.snapshot())
    copy = AccessTokens()
    copy.restore(msgspec.msgpack.decode(snapshot))
    assert msgspec.msgpack.encode(copy.snapshot()) == snapshot
    assert copy.is_closed
    assert copy.next_deadline_ms() == world.machine.next_deadline_ms() == 60
    assert copy.usage() == world.machine.usage()
    for machine in (copy, world.machine):
        machine.expire(500, 9)
    assert msgspec.msgpack.encode(copy.snapshot()) == msgspec.msgpack.encode(world.machine.snapshot())
    copy.restore({})
    assert (copy.tokens, copy.is_closed, copy.next_deadline_ms(), copy.usage()["tokens"]) == ({}, False, None, 0)


def test_nothing_secret_is_in_the_state() -> None:
    world = World()
    body = world.create().body
    assert set(body) & {"token", "secret", "key"} == set()
    assert "secret" not in CreateToken.__struct_fields__


def replica_at(version: int) -> Replica:
    limits = StateLimits()
    replica = Replica("a", [AccessTokens(limits), LimitsMachine(limits)], Supported(1, 4))
    replica._use_version(version)
    return replica


@pytest.mark.parametrize(("version", "applied"), [(3, False), (4, True)])
def test_below_version_4_a_command_has_no_effect_and_the_state_is_not_hashed(version: int, applied: bool) -> None:
    from dss_raft.replication.commands import OpenSession

    replica = replica_at(version)
    command = encode_command(CreateToken(id=A, name="a", scopes=["read"], key=KEY))
    data = encode_batch(0, [], [encode_group("a", 1, 1, [], [encode_command(OpenSession()), command])])
    entry = Entry(1, 1, EntryKind.COMMANDS, data)
    replica.apply(entry)
    assert bool(replica.machines["tokens"].tokens) is applied
    assert ("tokens" in state_hashes(replica)) is applied
    assert last_with_token([entry]) == 1
    assert last_with_token([Entry(2, 1, EntryKind.COMMANDS, b"")]) == 0
