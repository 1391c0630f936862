"""The state machine of users: what each command does, what ends sessions, and that a copy is the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dss_raft.replication.limits import StateLimits
from dss_raft.replication.machine import Origin
from dss_raft.replication.users import (
    BeginUsers,
    ChangeUser,
    CreateUser,
    DeleteUser,
    NewUser,
    Users,
    UsersBegan,
    describe,
)

ORIGIN = Origin("node-1", 1, 1)
HASH, OTHER_HASH = "pbkdf2_sha256$1$salt$hash", "pbkdf2_sha256$1$salt$another"


class World:
    def __init__(self, **maxima: int) -> None:
        self.machine = Users(StateLimits(maxima))
        self.index = 0

    def apply(self, command: Any, at_ms: int = 1) -> Any:
        self.index += 1
        return self.machine.apply(command, at_ms, self.index, ORIGIN)

    def create(self, name: str = "alice", **fields: Any) -> Any:
        return self.apply(CreateUser(**{"name": name, "group": "viewer", "password_hash": HASH, "by": "user boss", **fields}))


def test_a_user_is_made_once() -> None:
    world = World()
    made = world.create()
    assert made.body["name"] == "alice"
    assert HASH not in str(made.body)
    again = world.create()
    assert (again.code, again.body["field"]) == ("invalid", "name")
    assert world.machine.by_number[1] is world.machine.users["alice"]


@pytest.mark.parametrize(
    ("change", "ends"),
    [
        ({"group": "operator"}, True),
        ({"group": "viewer"}, False),
        ({"active": False}, True),
        ({"active": True}, False),
        ({"password_hash": OTHER_HASH}, True),
        ({"sign_out": True}, True),
        ({}, False),
    ],
)
def test_what_ends_the_sessions(change: dict[str, Any], ends: bool) -> None:
    world = World()
    world.create()
    body = world.apply(ChangeUser(name="alice", **change), 7).body
    assert body["generation"] == (2 if ends else 1)
    assert body["changed_ms"] == (7 if ends else None)


def test_who_is_not_there_cannot_be_changed() -> None:
    world = World()
    assert world.apply(ChangeUser(name="alice", sign_out=True)).code == "not_found"
    assert world.apply(DeleteUser(name="alice")).body == {"deleted": False}


def test_a_number_is_never_used_again() -> None:
    world = World()
    world.create()
    assert world.apply(DeleteUser(name="alice")).body == {"deleted": True}
    assert world.machine.by_number == {}
    world.create()
    assert world.machine.users["alice"].number == 2, "a session of the first Alice is none of the second"


def test_the_first_users_come_once() -> None:
    world = World()
    first = BeginUsers(users=[NewUser("admin", "admin", HASH)], by="node-1")
    assert world.apply(first).body == {"begun": True}
    assert world.machine.take_events() == [UsersBegan("node-1")]
    assert world.apply(BeginUsers(users=[NewUser("admin", "admin", OTHER_HASH)], by="node-2")).body == {"begun": False}
    assert world.machine.users["admin"].password_hash == HASH
    world.apply(DeleteUser(name="admin"))
    assert world.apply(first).body == {"begun": False}, "who was deleted must not come back by a restart"
    assert world.machine.users == {}
    assert world.machine.take_events() == []


def test_users_are_limited() -> None:
    world = World(users_max=2)
    world.create("a")
    world.create("b")
    assert (world.create("c").code, world.create("c").body["limit"]) == ("over_limit", "users_max")
    world.apply(DeleteUser(name="a"))
    assert world.create("c").code == ""


@pytest.mark.parametrize("name", ["", "a b", "a\n", "é", "a" * 151, "a/b", "a:b", "<b>"])
def test_names(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"op": "users.create", "name": name, "group": "viewer", "password_hash": HASH}, CreateUser)


def test_a_copy_is_the_same() -> None:
    world = World()
    for name in ("alice", "bob", "carol"):
        world.create(name)
    world.apply(ChangeUser(name="bob", active=False, password_hash=OTHER_HASH + "longer"), 5)
    world.apply(DeleteUser(name="carol"))
    copy = Users()
    copy.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(world.machine.snapshot())))
    assert msgspec.msgpack.encode(copy.snapshot()) == msgspec.msgpack.encode(world.machine.snapshot())
    assert copy.usage() == world.machine.usage() == {"users": sum(user.bytes for user in copy.users.values())}
    assert copy.last_number == 3
    assert describe(copy.users["bob"]) == describe(world.machine.users["bob"])
    copy.restore({})
    assert (copy.users, copy.has_begun, copy.usage()) == ({}, False, {"users": 0})
