"""The messages between Raft members, and the entries of the log: frozen Structs with strict decoding.

Every message carries its sender, its receiver and the sender's term (Raft paper, figure 2). Node ids are strings.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class EntryKind(IntEnum):
    """The meaning of an entry's `data`."""

    #: a batch of commands for the state machines
    COMMANDS = 0
    #: the empty entry that a new leader appends, so that it can commit earlier entries (paper 8)
    NOOP = 1
    #: a `Configuration` of the cluster, in force as soon as it is appended (thesis 4.1)
    CONFIGURATION = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One entry of the log: immutable once written."""

    index: int
    term: int
    kind: int
    data: bytes


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node of the cluster. A learner receives the log but has no vote."""

    id: str
    #: URL of its service, "http://127.0.0.1:8101"; opaque to the core
    url: str
    learner: bool = False
    #: the id of the member's store: its disk. "" until the log says it; then messages of another store do not count
    store: str = ""


class Configuration(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The members, sorted by id."""

    members: tuple[Member, ...]

    def find(self, node_id: str) -> Member | None:
        """The member with this id."""
        return next((member for member in self.members if member.id == node_id), None)


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Identifies a snapshot: it contains everything up to `index`."""

    index: int
    term: int
    configuration: Configuration
    #: bytes of the whole snapshot, and the CRC-32 over them; 0 until the snapshot is written
    size: int = 0
    crc: int = 0


class Message(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The fields that all messages have. A newer release may append further ones, unlike in stored data."""

    sender: str
    to: str
    term: int


class PreVote(Message, frozen=True, tag=1):
    """Asks whether the receiver would vote for the sender in `term`, before the sender raises its term (thesis 9.6)."""

    last_index: int
    last_term: int


class PreVoteReply(Message, frozen=True, tag=2):
    """`term` is the requested term when granted, otherwise the term of the answering node."""

    granted: bool


class RequestVote(Message, frozen=True, tag=3):
    """Paper 5.2. `transfer`: the leader itself or an operator wants this election, so a live leader is no reason to refuse."""

    last_index: int
    last_term: int
    transfer: bool = False


class VoteReply(Message, frozen=True, tag=4):
    granted: bool


class AppendEntries(Message, frozen=True, tag=5):
    """Entries after (`prev_index`, `prev_term`); a heartbeat when there are none. Paper 5.3.

    `round` is the number of the leader's confirmation round. Its answer proves that the peer still accepted this leader then.
    """

    prev_index: int
    prev_term: int
    entries: list[Entry]
    commit: int
    round: int = 0


class AppendReply(Message, frozen=True, tag=6):
    """`match`: the last index known to be equal and durable. On a conflict, `ok` is false and `hint_*` says where to continue."""

    ok: bool
    match: int
    prev_index: int
    hint_index: int = 0
    hint_term: int = 0
    round: int = 0


class InstallSnapshot(Message, frozen=True, tag=7):
    """One chunk of a snapshot: its bytes from `offset` on. Paper 7."""

    meta: SnapshotMeta
    offset: int
    data: bytes
    #: CRC-32 of `data`
    crc: int
    done: bool


class SnapshotReply(Message, frozen=True, tag=8):
    """`next_offset`: the bytes stored so far, from which to continue. `done`: installed up to `index`."""

    index: int
    next_offset: int
    done: bool


class ReadIndexRequest(Message, frozen=True, tag=9):
    """A follower requests the index that a linearizable read must wait for (thesis 6.4)."""

    context: int


class ReadIndexReply(Message, frozen=True, tag=10):
    """`ok` is false when the node no longer leads or has committed nothing in its own term: ask again."""

    context: int
    index: int
    ok: bool


class TimeoutNow(Message, frozen=True, tag=11):
    """Campaign immediately: the leader transfers its role (thesis 3.10)."""


AnyMessage = (
    PreVote
    | PreVoteReply
    | RequestVote
    | VoteReply
    | AppendEntries
    | AppendReply
    | InstallSnapshot
    | SnapshotReply
    | ReadIndexRequest
    | ReadIndexReply
    | TimeoutNow
)
