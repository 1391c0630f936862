"""The base Struct of every command, the commands of a session, and a leader's own commands.

A command is the only definition of a request's field names, limits and defaults. The JSON fast path decodes into it, DRF's
serializers and the OpenAPI schema are derived from it, and the Raft log holds its msgpack form. Every field is written to the
log, including defaults, so that changing a default never changes the meaning of an old entry.

If the log stores a field in another form than the client sends (a JSON value is stored as its encoded bytes), a common base class
has two children: the request and the command.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from dss_api.fields import Fields, Index, Name
from dss_api.request_id import DIGEST_BYTES, NUMBER_MAX, PARTS_MAX, RequestSessionId
from dss_api.result import Result
from dss_raft.versions import MIN, VERSION_MAX


class Command(Fields, tag_field="op"):
    """The base of all commands that are proposed to Raft. A subclass has a name: `tag="locks.acquire"`."""

    #: the cluster version from which it may be proposed; see `versions`
    since: ClassVar[int] = MIN
    #: a cancel undoes all that it did, so it can be carried out again; only such a command may wait. See `client_requests`
    is_undone_by_cancel: ClassVar[bool] = False

    @staticmethod
    def is_answer(result: Result) -> bool:
        """False: the node that proposed the command proposes it again, with more fields, before it answers the call."""
        return True


class Cancel(Command, tag="session.cancel"):
    """Undo the earlier command `seq` of the same session, because its caller has gone.

    A command that still waits leaves its queue. What an answered command was given (a lock, messages) is given back, because the
    answer will not reach its caller.
    """

    seq: Index


class Nothing(Command, tag="session.nothing"):
    """Replaces a command whose caller got `unknown_outcome` before the command was applied.

    It leaves no gap in the sequence of the session, and prevents a late effect that the caller does not expect.
    """


class Once(Command, tag="request.once", kw_only=True):
    """A command of a client's request. It takes effect once, however often the client repeats the request. See `client_requests`."""

    since: ClassVar[int] = 3

    #: the client's request session, and the number of the request in it
    session: RequestSessionId
    number: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    #: position in a request with several commands
    part: Annotated[int, msgspec.Meta(ge=0, lt=PARTS_MAX)] = 0
    #: the client has the answers of all numbers up to this one
    answered: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)] = 0
    #: of the call and its fields, as the client sent them
    digest: Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    #: the command, encoded
    command: bytes


class Skip(Command, tag="raft.skip"):
    """By the leader, for an operator: the entry at `entry` has no effect, because applying it fails.

    A node whose applying has stopped there rebuilds its state without that entry.
    """

    entry: Index
    reason: Name
    #: the node that was asked
    by: Name


class AdvanceTime(Command, tag="raft.advance_time"):
    """By a new leader: applied time is behind the wall clock of a majority, because there was no leader for a while.

    Leases and visibility timeouts get their full length from there on. Everything else that is due expires.
    """

    to_ms: Index
    #: the members whose wall clocks agree
    nodes: tuple[Name, ...]


class SetClusterVersion(Command, tag="raft.set_cluster_version"):
    """A leader's: all members support this cluster version. See `versions`."""

    version: Annotated[int, msgspec.Meta(ge=1, le=VERSION_MAX)]


class HashState(Command, tag="raft.hash_state"):
    """A leader's: every node hashes its state after this entry, so that the hashes can be compared."""

    since: ClassVar[int] = 2


class OpenSession(Command, tag="session.open"):
    """First command of a new incarnation of a node: closes the session of the incarnation that it names, and of no other.

    A delayed opening therefore cannot close a newer session.
    """

    #: the incarnation that it replaces; 0: the node has no session. None, in logs of releases before 0.2: the highest opens
    replaces: int | None = None
    #: the store of the new incarnation, and the number of starts with it
    store: str = ""
    starts: int = 0
