"""The members of a cluster of `make run`, as the data on this disk say: which nodes can be started, and which cannot.

The data of the first nodes are in the cluster's directory, those of nodes added with `make join` in `joined` beside it. The newest
configuration in any of them counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dss_raft.core.messages import Member
from dss_raft.core.quorum import majority
from dss_raft.disk.stored_members import StoredMembers, Unreadable, stored_members

JOINED = "joined"


@dataclass(frozen=True)
class LocalPlace:
    """A member whose data are on this disk."""

    id: str
    url: str
    #: of its data and logs
    directory: Path

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def has_joined(self) -> bool:
        return self.directory.name == JOINED


@dataclass
class LocalMembers:
    """What is on this disk of one cluster."""

    #: the members' ids and URLs
    urls: dict[str, str]
    voters: list[str]
    places: list[LocalPlace] = field(default_factory=list)
    #: ids of the members without data here
    missing: list[str] = field(default_factory=list)
    #: nodes that are no longer members, and where their data are
    removed: dict[str, Path] = field(default_factory=dict)

    @property
    def have_quorum(self) -> bool:
        """True when a majority of the voters can be started."""
        here = {place.id for place in self.places}
        return len(here.intersection(self.voters)) >= majority(len(self.voters))


def find_place(directory: Path, member: Mapping[str, Any]) -> LocalPlace | None:
    """Where the data of a member are, given as in `GET /raft/status`; None if they are not on this disk."""
    for parent in (directory, directory.parent / JOINED):
        if (parent / member["id"] / "raft").is_dir():
            return LocalPlace(member["id"], member["url"], parent)
    return None


def find_members(directory: Path) -> LocalMembers | None:
    """The members of the cluster in `directory`; None if it has never run."""
    joined = directory.parent / JOINED
    read = _Directories()
    for path in sorted(directory.glob("*/raft")):
        read.read(path.parent)
    newest = read.newest()
    if newest is None:
        return None
    while more := [each.id for each in newest.configuration.members if each.id not in read.tried and (joined / each.id).is_dir()]:
        for node_id in more:
            read.read(joined / node_id)
        newest = read.newest() or newest
    for path in sorted(joined.glob("*/raft")):
        if path.parent.name not in read.paths and read.is_of(path.parent, newest.configuration.members):
            read.read(path.parent)
    found = LocalMembers(
        {member.id: member.url for member in newest.configuration.members},
        [member.id for member in newest.configuration.members if not member.learner],
    )
    for member in newest.configuration.members:
        if member.id in read.paths:
            found.places.append(LocalPlace(member.id, member.url, read.paths[member.id].parent))
        else:
            found.missing.append(member.id)
    for node_id, stored in read.stored.items():
        if node_id not in found.urls and stored.configuration.members:
            found.removed[node_id] = read.paths[node_id]
    return found


class _Directories:
    """The data directories that have been read."""

    def __init__(self) -> None:
        self.tried: set[str] = set()
        #: id of a node -> its data directory
        self.paths: dict[str, Path] = {}
        self.stored: dict[str, StoredMembers] = {}

    def read(self, path: Path) -> None:
        self.tried.add(path.name)
        try:
            stored = stored_members(path)
        except Unreadable:
            # Its node runs, or will say what is damaged when it is started.
            self.paths[path.name] = path
            return
        if stored is not None:
            self.paths[path.name] = path
            self.stored[path.name] = stored

    def newest(self) -> StoredMembers | None:
        used = [stored for stored in self.stored.values() if stored.last_index and stored.configuration.members]
        return max(used, key=lambda stored: stored.version, default=None)

    @staticmethod
    def is_of(path: Path, members: tuple[Member, ...]) -> bool:
        """Whether the node in `path` once had one of these members beside it."""
        try:
            stored = stored_members(path)
        except Unreadable:
            return False
        known = {(member.id, member.url) for member in stored.configuration.members} if stored is not None else set()
        return any((member.id, member.url) in known for member in members if member.id != path.name)
