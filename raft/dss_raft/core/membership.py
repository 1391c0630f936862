"""Membership: one change at a time, in force as soon as its entry is in the log (thesis 4.1).

Majorities of consecutive configurations always share a node, so single-step changes need no joint phase. A configuration is in
force from the append of its entry on, so the truncation of the entry must undo it. Therefore the history of the configurations
in the log is kept by index.
"""

from __future__ import annotations

import msgspec

from dss_raft.core.errors import ChangeRefused, InvariantViolation
from dss_raft.core.messages import Configuration, Entry, Member
from dss_raft.formats import Format, array_version

#: of an entry with a configuration
FORMAT = Format("this configuration in the log", 1, oldest=0)
#: how entries of releases up to 662b62d begin: an array of one element
_START_V0 = 0x91


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The data of a CONFIGURATION entry."""

    #: of the format; it is read first
    version: int
    members: tuple[Member, ...]


_decode = msgspec.msgpack.Decoder(_Stored).decode
_decode_v0 = msgspec.msgpack.Decoder(Configuration).decode


class AddLearner(msgspec.Struct, frozen=True):
    """Add a node that receives the log but has no vote yet."""

    id: str
    url: str
    #: its store; "" when only its messages will say it
    store: str = ""


class Promote(msgspec.Struct, frozen=True):
    """Make a learner a voter."""

    id: str


class Remove(msgspec.Struct, frozen=True):
    """Remove a member: a learner or a voter, possibly the leader itself."""

    id: str


class Bind(msgspec.Struct, frozen=True):
    """Say which store a member has, once: a member with another store is another member."""

    id: str
    store: str


Change = AddLearner | Promote | Remove | Bind


def changed(configuration: Configuration, change: Change) -> Configuration:
    """The configuration after one change.

    Raises:
        ChangeRefused: the change has been made already, or is not possible.
    """
    members = {member.id: member for member in configuration.members}
    member = members.get(change.id)
    if isinstance(change, AddLearner):
        if member is not None:
            raise ChangeRefused(f"{change.id} is already a member")
        members[change.id] = Member(id=change.id, url=change.url, learner=True, store=change.store)
    elif member is None:
        raise ChangeRefused(f"{change.id} is not a member")
    elif isinstance(change, Promote):
        if not member.learner:
            raise ChangeRefused(f"{change.id} already has a vote")
        members[change.id] = msgspec.structs.replace(member, learner=False)
    elif isinstance(change, Bind):
        if member.store:
            raise ChangeRefused(f"the store of {change.id} is known already: {member.store}")
        members[change.id] = msgspec.structs.replace(member, store=change.store)
    else:
        del members[change.id]
        if all(other.learner for other in members.values()):
            raise ChangeRefused(f"{change.id} is the last voter")
    return Configuration(tuple(sorted(members.values(), key=lambda each: each.id)))


def encode(configuration: Configuration) -> bytes:
    """The `data` of a CONFIGURATION entry."""
    return msgspec.msgpack.encode(_Stored(FORMAT.version, configuration.members))


def decode(entry: Entry) -> Configuration:
    """The configuration in a CONFIGURATION entry.

    Raises:
        WrongFormat: a newer release wrote it.
        InvariantViolation: it cannot be read.
    """
    try:
        if entry.data[:1] == bytes([_START_V0]):
            return _decode_v0(entry.data)
        FORMAT.require(array_version(entry.data) or 0, f"entry {entry.index} of the log, a configuration,")
        return Configuration(_decode(entry.data).members)
    except msgspec.DecodeError as error:
        raise InvariantViolation(f"entry {entry.index} is not a configuration: {error}") from error


class Membership:
    """The configurations in the log. The last one is in force."""

    __slots__ = ("_history", "configuration", "ids", "index", "learners", "stores", "voters")

    def __init__(self, index: int, configuration: Configuration) -> None:
        #: (index of the entry, configuration), ascending; the first comes from the snapshot
        self._history: list[tuple[int, Configuration]] = []
        self.append(index, configuration)

    def _use_last(self) -> None:
        self.index, self.configuration = self._history[-1]
        self.ids = frozenset(member.id for member in self.configuration.members)
        self.voters = tuple(member.id for member in self.configuration.members if not member.learner)
        self.learners = tuple(member.id for member in self.configuration.members if member.learner)
        #: the members whose stores are known
        self.stores = {member.id: member.store for member in self.configuration.members if member.store}

    def is_other_store(self, node_id: str, store: str) -> bool:
        """True when `store` is not the one that member `node_id` has. An unknown store, "", is not another one."""
        known = self.stores.get(node_id)
        return known is not None and store not in ("", known)

    def append(self, index: int, configuration: Configuration) -> None:
        """`configuration` is in force from now on."""
        self._history.append((index, configuration))
        self._use_last()

    def truncate(self, first: int) -> bool:
        """Forget the configurations of the entries from `first` on. True when that changes the one in force."""
        if self.index < first:
            return False
        while self._history[-1][0] >= first:
            self._history.pop()
        self._use_last()
        return True

    def was_voter(self, node_id: str) -> bool:
        """True if the configuration before the one in force gave this node a vote."""
        before = self._history[-2][1].members if len(self._history) > 1 else ()
        return any(member.id == node_id and not member.learner for member in before)

    def compact(self, index: int) -> None:
        """Forget the configurations that no truncation after `index` can need."""
        while len(self._history) > 1 and self._history[1][0] <= index:
            del self._history[0]

    def at(self, index: int) -> Configuration:
        """The configuration in force at `index`, for a snapshot that ends there."""
        return self._at(index)[1]

    def index_at(self, index: int) -> int:
        """The index of the entry with that configuration."""
        return self._at(index)[0]

    def _at(self, index: int) -> tuple[int, Configuration]:
        found = self._history[0]
        for each in self._history:
            if each[0] > index:
                break
            found = each
        return found
