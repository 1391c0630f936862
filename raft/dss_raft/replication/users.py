"""The users of pages and the admin, as replicated state: made once, known on every node.

Theory of operation
-------------------
1. A user has a name, a group, a password hash and a generation. The hash is made before the command enters the log, because it is salted
   and slow; this machine stores it and never looks into it. No password is in the log.
2. A user has a number, which is never used for another one. Sessions and logs of a node name the number, so they never mean a later user
   of the same name.
3. Whatever ends the sessions of a user raises the generation: another password, another group, an end of the account, or "sign out
   everywhere". A session contains a proof of the generation and the hash, so no node has to store sessions.
4. `BeginUsers` adds the first users of a cluster. It has an effect once in the life of a cluster: several nodes may propose their own, and
   users who were deleted never come back by a restart.

The machine is empty below the cluster version that has its commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec

from dss_api.fields import OptionalName, check_name
from dss_api.result import Result
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.commands import Command
from dss_raft.replication.limits import StateLimit, StateLimits, text_bytes
from dss_raft.replication.machine import Event, Origin, WithoutWaiters

SINCE = 5
#: every entry with a `BeginUsers` contains these bytes
BEGIN_TAG = b"users.begin"
USERS_LIMIT = "users_max"
USERS_MAX_DEFAULT = 1_000
NAME_LENGTH_MAX = 150
#: Django's hashes have at most 128 characters.
HASH_LENGTH_MAX = 256
#: of one `BeginUsers`
FIRST_USERS_MAX = 1_000
#: What a user costs in the account besides the texts, with the objects around it.
USER_BYTES = 768

Group = Literal["viewer", "operator", "admin"]
GROUPS: tuple[Group, ...] = get_args(Group)

#: ASCII only: what Unicode counts as a letter differs between versions of Python, and names that look alike are different users.
NAME_PATTERN = r"^[A-Za-z0-9_.@+-]+$(?!\n)"
UserName = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=NAME_LENGTH_MAX, pattern=NAME_PATTERN, description="letters, digits and `@.+-_`"),
]
PasswordHash = Annotated[str, msgspec.Meta(min_length=1, max_length=HASH_LENGTH_MAX, pattern=r"^[\x21-\x7e]+$(?!\n)")]


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    """One of the first users."""

    name: UserName
    group: Group
    password_hash: PasswordHash


class BeginUsers(Command, tag="users.begin", kw_only=True):
    """A node's: the first users, if the cluster never had one."""

    since: ClassVar[int] = SINCE

    users: Annotated[list[NewUser], msgspec.Meta(min_length=1, max_length=FIRST_USERS_MAX)]
    #: the node whose users they are
    by: OptionalName


class CreateUser(Command, tag="users.create", kw_only=True):
    """Add a user."""

    since: ClassVar[int] = SINCE

    name: UserName
    group: Group
    password_hash: PasswordHash
    #: who made the user
    by: OptionalName = ""

    def __post_init__(self) -> None:
        check_name("by", self.by)


class ChangeUser(Command, tag="users.change", kw_only=True):
    """Change a user; what is null stays."""

    since: ClassVar[int] = SINCE

    name: UserName
    group: Group | None = None
    active: bool | None = None
    password_hash: PasswordHash | None = None
    #: end all sessions, whatever else changes
    sign_out: bool = False


class DeleteUser(Command, tag="users.delete", kw_only=True):
    """Delete a user, with all sessions."""

    since: ClassVar[int] = SINCE

    name: UserName


class UsersBegan(Event, frozen=True):
    """The cluster has its first users."""

    by: str


@dataclass(slots=True, eq=False)
class User:
    """One user. All times are applied time."""

    #: from 1
    number: int
    name: str
    group: Group
    password_hash: str
    created_ms: int
    created_by: str
    is_active: bool = True
    #: from 1; one more whenever all sessions end
    generation: int = 1
    changed_ms: int = 0
    password_changed_ms: int = 0

    @property
    def bytes(self) -> int:
        return USER_BYTES + text_bytes(self.name) + text_bytes(self.password_hash) + text_bytes(self.created_by)


class StoredUser(msgspec.Struct, array_like=True):
    """A user in a snapshot."""

    number: int
    name: str
    group: Group
    password_hash: str
    created_ms: int
    created_by: str
    is_active: bool
    generation: int
    changed_ms: int
    password_changed_ms: int


class _Stored(msgspec.Struct, array_like=True):
    #: the number of the last user that was made; 0: the cluster never had one
    last_number: int = 0
    users: list[StoredUser] = []


_FIELDS = StoredUser.__struct_fields__


class Users(WithoutWaiters):
    """The state machine `users`. See the module."""

    name = "users"
    format_version = 1
    commands: tuple[type[Command], ...] = (BeginUsers, CreateUser, ChangeUser, DeleteUser)

    def __init__(self, limits: StateLimits | None = None) -> None:
        self._limits = limits = limits or StateLimits()
        #: by name, oldest first
        self.users: dict[str, User] = {}
        self.by_number: dict[int, User] = {}
        self.last_number = 0
        self._bytes = 0
        self._events: list[Event] = []
        self._appliers: dict[type[Command], Callable[[Any, int], Result]] = {
            BeginUsers: self._begin,
            CreateUser: self._create,
            ChangeUser: self._change,
            DeleteUser: self._delete,
        }
        limits.declare(StateLimit(USERS_LIMIT, USERS_MAX_DEFAULT, "count", lambda: len(self.users), SINCE))

    @property
    def has_begun(self) -> bool:
        """The cluster has, or ever had, a user."""
        return self.last_number > 0

    def apply(self, command: Command, at_ms: int, index: int, origin: Origin) -> Result | None:
        """See `StateMachine.apply`."""
        return self._appliers[type(command)](command, at_ms)

    def _begin(self, command: BeginUsers, at_ms: int) -> Result:
        if self.has_begun:
            return Result({"begun": False})
        for new in command.users[: self._limits.maxima[USERS_LIMIT]]:
            if new.name not in self.users:
                self._add(User(self.last_number + 1, new.name, new.group, new.password_hash, at_ms, command.by))
        self._events.append(UsersBegan(command.by))
        return Result({"begun": True})

    def _create(self, command: CreateUser, at_ms: int) -> Result:
        if command.name in self.users:
            return Result({"field": "name", "detail": f"there is a user {command.name} already"}, "invalid")
        if len(self.users) >= self._limits.maxima[USERS_LIMIT]:
            return self._limits.over_limit(USERS_LIMIT)
        if not self.has_begun:
            self._events.append(UsersBegan(command.by))
        user = User(self.last_number + 1, command.name, command.group, command.password_hash, at_ms, command.by)
        self._add(user)
        return Result(describe(user))

    def _change(self, command: ChangeUser, at_ms: int) -> Result:
        user = self.users.get(command.name)
        if user is None:
            return Result({"detail": f"there is no user {command.name}"}, "not_found")
        ends_sessions = command.sign_out
        if command.group is not None and command.group != user.group:
            user.group, ends_sessions = command.group, True
        if command.active is not None and command.active != user.is_active:
            user.is_active, ends_sessions = command.active, True
        if command.password_hash is not None:
            self._bytes += text_bytes(command.password_hash) - text_bytes(user.password_hash)
            user.password_hash, user.password_changed_ms, ends_sessions = command.password_hash, at_ms, True
        if ends_sessions:
            user.generation += 1
            user.changed_ms = at_ms
        return Result(describe(user))

    def _delete(self, command: DeleteUser, at_ms: int) -> Result:
        user = self.users.pop(command.name, None)
        if user is None:
            return Result({"deleted": False})
        del self.by_number[user.number]
        self._bytes -= user.bytes
        return Result({"deleted": True})

    def _add(self, user: User) -> None:
        self.users[user.name] = self.by_number[user.number] = user
        self.last_number = max(self.last_number, user.number)
        self._bytes += user.bytes

    # -- the rest of the interface of a state machine ------------------------------------------------------------------------------

    def take_events(self) -> list[Event]:
        """See `StateMachine.take_events`."""
        events, self._events = self._events, []
        return events

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        return {"users": self._bytes}

    def snapshot(self) -> Any:
        """See `StateMachine.snapshot`."""
        users = [StoredUser(**{name: getattr(user, name) for name in _FIELDS}) for user in self.users.values()]
        return _Stored(self.last_number, users)

    def restore(self, state: Any) -> None:
        """See `StateMachine.restore`. An empty state is that of a release without users."""
        stored = msgspec.convert(state, _Stored) if state else _Stored()
        self.users.clear()
        self.by_number.clear()
        self._bytes, self.last_number, self._events = 0, stored.last_number, []
        for one in stored.users:
            self._add(User(**{name: getattr(one, name) for name in _FIELDS}))


def may_begin_users(entries: Iterable[Entry]) -> bool:
    """Whether one of these entries may add the first users. They are not decoded: text of a client can look like the command, too."""
    return any(entry.kind == EntryKind.COMMANDS and BEGIN_TAG in entry.data for entry in entries)


def describe(user: User) -> dict[str, Any]:
    """The fields of a user in answers and pages. The password hash is not one of them."""
    return {
        "name": user.name,
        "group": user.group,
        "active": user.is_active,
        "generation": user.generation,
        "created_ms": user.created_ms,
        "created_by": user.created_by,
        "changed_ms": user.changed_ms or None,
        "password_changed_ms": user.password_changed_ms or None,
    }
