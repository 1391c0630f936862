"""Membership: one change at a time, in force as soon as its entry is in the log (thesis 4.1).

Majorities of consecutive configurations always share a node, so single-step changes need no joint phase. A configuration is in
force from the append of its entry on, so the truncation of the entry must undo it. Therefore the history of the configurations
in the log is kept by index.
"""

from __future__ import annotations

import msgspec

from dss_raft.core.errors import ChangeRefused, InvariantViolation
from dss_raft.core.messages import Configuration, Entry, Member

_decoder = msgspec.msgpack.Decoder(Configuration)


class AddLearner(msgspec.Struct, frozen=True):
    """Add a node that receives the log but has no vote yet."""

    id: str
    url: str


class Promote(msgspec.Struct, frozen=True):
    """Make a learner a voter."""

    id: str


class Remove(msgspec.Struct, frozen=True):
    """Remove a member: a learner or a voter, possibly the leader itself."""

    id: str


Change = AddLearner | Promote | Remove


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
        members[change.id] = Member(id=change.id, url=change.url, learner=True)
    elif member is None:
        raise ChangeRefused(f"{change.id} is not a member")
    elif isinstance(change, Promote):
        if not member.learner:
            raise ChangeRefused(f"{change.id} already has a vote")
        members[change.id] = Member(id=member.id, url=member.url)
    else:
        del members[change.id]
        if all(other.learner for other in members.values()):
            raise ChangeRefused(f"{change.id} is the last voter")
    return Configuration(tuple(sorted(members.values(), key=lambda each: each.id)))


def encode(configuration: Configuration) -> bytes:
    """The `data` of a CONFIGURATION entry."""
    return msgspec.msgpack.encode(configuration)


def decode(entry: Entry) -> Configuration:
    """The configuration in a CONFIGURATION entry.

    Raises:
        InvariantViolation: it cannot be read.
    """
    try:
        return _decoder.decode(entry.data)
    except msgspec.DecodeError as error:
        raise InvariantViolation(f"entry {entry.index} is not a configuration: {error}") from error


class Membership:
    """The configurations in the log. The last one is in force."""

    __slots__ = ("_history", "configuration", "ids", "index", "learners", "voters")

    def __init__(self, index: int, configuration: Configuration) -> None:
        #: (index of the entry, configuration), ascending; the first comes from the snapshot
        self._history: list[tuple[int, Configuration]] = []
        self.append(index, configuration)

    def _use_last(self) -> None:
        self.index, self.configuration = self._history[-1]
        self.ids = frozenset(member.id for member in self.configuration.members)
        self.voters = tuple(member.id for member in self.configuration.members if not member.learner)
        self.learners = tuple(member.id for member in self.configuration.members if member.learner)

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

    def compact(self, index: int) -> None:
        """Forget the configurations that no truncation after `index` can need."""
        while len(self._history) > 1 and self._history[1][0] <= index:
            del self._history[0]

    def at(self, index: int) -> Configuration:
        """The configuration in force at `index`, for a snapshot that ends there."""
        found = self._history[0][1]
        for entry_index, configuration in self._history:
            if entry_index > index:
                break
            found = configuration
        return found
