"""The operations that make, show, change and delete users. See `replication.users`.

Who can make a user can make one for everything, so all of them need the scope `all`. Those with a password take no request id: what is
stored for a repeat would tell whether a guessed password is the right one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol, cast

import msgspec

from dss_api.caller import caller
from dss_api.errors import Refused
from dss_api.fields import Fields
from dss_api.operation import Operation
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_api.rights import ONLY_ALL
from dss_raft.answers import UserDeleted, UserRow, Users, UserSaved
from dss_raft.replication.users import SINCE, ChangeUser, CreateUser, DeleteUser, Group, UserName, describe
from dss_raft.replication.users import Users as UsersMachine

if TYPE_CHECKING:
    from dss_raft.node import Node

PASSWORD_LENGTH_MAX = 1024

Password = Annotated[str, msgspec.Meta(min_length=1, max_length=PASSWORD_LENGTH_MAX)]


class Passwords(Protocol):
    """Checks and hashes passwords outside the event loop. A service of the node."""

    async def hash_new(self, password: str, user_name: str) -> str:
        """The hash of a new password.

        Raises:
            Refused: `invalid`: it is too weak; `overloaded`.
        """


#: its name among the services of a node, and that of the state machine for Django's authentication
SERVICE = "passwords"
USERS = "users"


class ListUsers(Fields):
    """Call without parameters."""


class CreateUserRequest(Fields):
    """Make a user."""

    name: UserName
    group: Group
    password: Password


class ChangeUserRequest(Fields):
    """Change what is given."""

    name: UserName
    group: Group | None = None
    #: false: cannot log in
    active: bool | None = None
    password: Password | None = None

    def __post_init__(self) -> None:
        if self.group is None and self.active is None and self.password is None:
            raise ValueError("give at least one of `group`, `active` and `password`")


class SignOut(Fields):
    """End all sessions of a user."""

    name: UserName


async def list_users(node: Node, request: ListUsers) -> Users:
    await node.read_index()
    users = cast(UsersMachine, node.machine("users")).users.values()
    return Users(users=[UserRow(**describe(user)) for user in users])


async def wait_for_version(node: Node) -> None:
    """A new cluster gets its version in the moments after it was formed. If it does not come, the call is refused."""
    if node.replica.cluster_version < SINCE:
        await node.until(lambda: node.replica.cluster_version >= SINCE)


async def create(node: Node, request: CreateUserRequest) -> Result | UserSaved:
    password_hash = await _passwords(node).hash_new(request.password, request.name)
    command = CreateUser(name=request.name, group=request.group, password_hash=password_hash, by=caller().name)
    return await node.submit(command)


async def change(node: Node, request: ChangeUserRequest) -> Result | UserSaved:
    password_hash = None
    if request.password is not None:
        password_hash = await _passwords(node).hash_new(request.password, request.name)
    command = ChangeUser(name=request.name, group=request.group, active=request.active, password_hash=password_hash)
    return await node.submit(command)


async def sign_out(node: Node, request: SignOut, once: RequestId | None = None) -> Result | UserSaved:
    return await node.submit(ChangeUser(name=request.name, sign_out=True), once=once)


async def delete(node: Node, request: DeleteUser, once: RequestId | None = None) -> Result | UserDeleted:
    return await node.submit(request, once=once)


def _passwords(node: Node) -> Passwords:
    """Raises:
    Refused: `not_ready`: this process has no pages.
    """
    found = cast("Passwords | None", node.services.get(SERVICE))
    if found is None:
        raise Refused("not_ready", "this node cannot hash passwords", node=node.node_id)
    return found


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="users.list",
        method="GET",
        path="/users",
        request=ListUsers,
        handle=list_users,
        answer=Users,
        needs=ONLY_ALL,
        summary="List the users",
        description="All users of the pages and the admin, with their groups. Nothing about a password is shown.",
        tag="Access",
    ),
    Operation(
        name="users.create",
        method="POST",
        path="/users",
        request=CreateUserRequest,
        handle=create,
        prepare=wait_for_version,
        answer=UserSaved,
        needs=ONLY_ALL,
        secrets=("password",),
        summary="Make a user",
        description=(
            "A user logs in on any node. A `viewer` may read, an `operator` may also do what needs `operate`, an `admin` may do everything."
        ),
        tag="Access",
        example={"name": "example-alice", "group": "operator", "password": "a long and unusual one"},
        problems=("not_supported_yet",),
    ),
    Operation(
        name="users.change",
        method="POST",
        path="/users/change",
        request=ChangeUserRequest,
        handle=change,
        prepare=wait_for_version,
        answer=UserSaved,
        needs=ONLY_ALL,
        secrets=("password",),
        summary="Change a user",
        description=(
            "Another group, another password, or `active: false`, after which the user cannot log in. Each of them ends all sessions of "
            "the user, on every node as soon as it has applied the call."
        ),
        tag="Access",
        example={"name": "example-alice", "group": "viewer"},
        problems=("not_found", "not_supported_yet"),
    ),
    Operation(
        name="users.sign_out",
        method="POST",
        path="/users/sign_out",
        request=SignOut,
        handle=sign_out,
        prepare=wait_for_version,
        answer=UserSaved,
        needs=ONLY_ALL,
        takes_request_id=True,
        summary="End all sessions of a user",
        description="On every node, as soon as it has applied the call. The user can log in again.",
        tag="Access",
        example={"name": "example-alice"},
        problems=("not_found", "not_supported_yet"),
    ),
    Operation(
        name="users.delete",
        method="DELETE",
        path="/users/{name}",
        request=DeleteUser,
        handle=delete,
        prepare=wait_for_version,
        answer=UserDeleted,
        needs=ONLY_ALL,
        takes_request_id=True,
        summary="Delete a user",
        description="Ends all sessions of the user, too. A repeat has no effect (`deleted: false`).",
        tag="Access",
        example={"name": "example-alice"},
        problems=("not_supported_yet",),
    ),
)
