"""The cluster version: which commands and behaviour all members know.

Theory of operation
-------------------
1. The cluster version is one number in the replicated state. A release supports the versions `MIN` to `LATEST`. A node announces what
   it supports in each handshake; DSS_CLUSTER_VERSION_MAX makes it support less than its release does.
2. Each command says from which version on it may be proposed (`Command.since`). A node decodes only the commands of the versions that it
   supports. It refuses a call whose command is newer than the version that it has applied.
3. A leader raises the version (`SetClusterVersion` in the log) when every member of its latest configuration, learners included, is
   linked and supports the next one. The version never goes down.
4. A node that would have to apply or restore a version that it does not support stops before it applies anything of that entry. So if a
   member goes back to an older release while the version is raised, that member stops, and the states never differ.
5. Two nodes link only if they support a common version, and neither has applied a newer version than the other one supports. One may have
   applied an older version than the other one supports: it lags, and gets the newer version with the log. A node stops when a member has
   applied a newer version than the node supports.

A released version never changes: tests/cluster/test_protocol_version.py has the fingerprint of the commands of each. A command whose
fields or effect change is a new command, with a new tag, from the next version on.

    version   adds
    1         the first one: the commands of the release that introduced it
    2         `HashState`
    3         `Once` and request sessions: calls with a `request_id`
    4         tokens and the audit trail
    5         `cache.touch`, and `must_exist` of `cache.incr`; links use mutual TLS only (`dss_raft.net.tls_handshake`); users of the
              pages and the admin; `max_per_key` of `queue.consume`, and `max_attempts: 0` and `dead_letter_topic` of topics;
              queues of the SQS endpoint; `locks.cancel_wait` and `queue.delete_dead`; `engine` and `acks` of topics
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from dss_api.errors import ForOperator

MIN: Final = 1
LATEST: Final = 5
#: the version from which on members are linked with TLS only
MUTUAL_TLS: Final = 5
#: False in a copy of this release with a lower `LATEST`, which tests use as an older one
KNOWS_TLS: Final = LATEST >= MUTUAL_TLS
#: limit of what a peer may announce
VERSION_MAX: Final = 2**16 - 1


class Supported(msgspec.Struct, frozen=True, array_like=True):
    """The versions that a node supports."""

    min: int
    max: int

    def __contains__(self, version: int) -> bool:
        return self.min <= version <= self.max

    def __str__(self) -> str:
        return str(self.max) if self.min == self.max else f"{self.min} to {self.max}"


#: what this release supports
RELEASE: Final = Supported(MIN, LATEST)


class UnsupportedVersion(ForOperator):
    """This node does not support the cluster's version. It must not apply anything, and stops.

    Args:
        version: of the cluster.
        supported: by this node.
    """

    def __init__(self, version: int, supported: Supported) -> None:
        if version in RELEASE:
            advice = f"DSS_CLUSTER_VERSION_MAX is {supported.max}: remove this setting"
        else:
            advice = f"this release supports {supported}: start {'a newer' if version > supported.max else 'an older'} release"
        super().__init__(f"the cluster's version is {version}; {advice}")
        self.version = version


def require_supported(version: int, supported: Supported) -> None:
    """Raises:
    UnsupportedVersion: a node that supports these versions must not use a state of this version.
    """
    if version not in supported:
        raise UnsupportedVersion(version, supported)


class Announced(msgspec.Struct, frozen=True, array_like=True):
    """What a node says in the handshake. New fields are appended; a node ignores those that it does not know."""

    supported: Supported
    #: the cluster version that the node has applied
    applied: int


#: what a node of this release announces until it has applied a version
FIRST_ANNOUNCED: Final = Announced(RELEASE, MIN)


def conflict(mine: Announced, theirs: Announced) -> str:
    """Why two nodes must not link; "" if they may. Both sides decide alike."""
    if theirs.applied > mine.supported.max:
        return str(UnsupportedVersion(theirs.applied, mine.supported))
    if mine.applied > theirs.supported.max:
        return f"the cluster's version is {mine.applied}, and the peer supports {theirs.supported}"
    if mine.supported.max < theirs.supported.min or theirs.supported.max < mine.supported.min:
        return f"this node supports the cluster versions {mine.supported}, and the peer {theirs.supported}"
    return ""


class Raise(msgspec.Struct, frozen=True):
    """Whether the version can be raised."""

    #: the new version; 0: it cannot be raised now
    to: int = 0
    #: members that are not linked
    missing: tuple[str, ...] = ()
    #: linked members that support no higher version, and the highest that each supports
    old: dict[str, int] = {}


def next_version(current: int, members: Mapping[str, Supported | None]) -> Raise:
    """Decides on a leader whether the cluster's version can be raised.

    Args:
        members: of the latest configuration, the leader included, with what each supports; None for one that is not linked.
    """
    missing = tuple(sorted(member for member, supported in members.items() if supported is None))
    old = {member: supported.max for member, supported in sorted(members.items()) if supported and supported.max <= current}
    if missing or old or not members:
        return Raise(0, missing, old)
    return Raise(min(supported.max for supported in members.values() if supported))
