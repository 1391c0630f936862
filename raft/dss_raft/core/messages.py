"""What Raft members say to each other, and the entries of the log: frozen Structs with strict decoding.

Every message carries its sender, its addressee and the sender's term (Raft paper, figure 2). Node ids are strings.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class EntryKind(IntEnum):
    """What an entry's `data` means."""

    #: a batch of commands for the state machines
    COMMANDS = 0
    #: the empty entry a leader appends when elected, so that it can commit what came before (paper 8)
    NOOP = 1
    #: a `Configuration` of the cluster, effective as soon as it is appended (thesis 4.1)
    CONFIGURATION = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One entry of the log: immutable once written."""

    index: int
    term: int
    kind: int
    data: bytes


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node of the cluster. A learner gets the log but has no vote."""

    id: str
    #: its service address, "http://127.0.0.1:8101"; opaque to the core
    url: str
    learner: bool = False


class Configuration(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The members, sorted by id."""

    members: tuple[Member, ...]


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Names a snapshot: everything up to `index` is in it."""

    index: int
    term: int
    configuration: Configuration
    #: bytes of the whole snapshot, and the CRC-32 over them; 0 while it is only metadata
    size: int = 0
    crc: int = 0


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """Common to all messages."""

    sender: str
    to: str
    term: int


class PreVote(Message, frozen=True, tag=1):
    """Would you vote for me in `term`? Asked before the term is really raised (thesis 9.6)."""

    last_index: int
    last_term: int


class PreVoteReply(Message, frozen=True, tag=2):
    """`term` is the term asked about when granted, else the answering node's own."""

    granted: bool


class RequestVote(Message, frozen=True, tag=3):
    """Paper 5.2. `transfer` says that the leader itself asked for it, so that a live leader is no reason to refuse."""

    last_index: int
    last_term: int
    transfer: bool = False


class VoteReply(Message, frozen=True, tag=4):
    granted: bool


class AppendEntries(Message, frozen=True, tag=5):
    """Entries after (`prev_index`, `prev_term`), or none: a heartbeat. Paper 5.3.

    `round` counts the leader's confirmation rounds: an answer to it proves that the sender still took it for the leader then.
    """

    prev_index: int
    prev_term: int
    entries: list[Entry]
    commit: int
    round: int = 0


class AppendReply(Message, frozen=True, tag=6):
    """`match`: last index known to be equal and durable. On a conflict `ok` is false and `hint_*` says where to go on."""

    ok: bool
    match: int
    prev_index: int
    hint_index: int = 0
    hint_term: int = 0
    round: int = 0


class InstallSnapshot(Message, frozen=True, tag=7):
    """One chunk of a snapshot, bytes from `offset`. Paper 7."""

    meta: SnapshotMeta
    offset: int
    data: bytes
    #: CRC-32 of `data`
    crc: int
    done: bool


class SnapshotReply(Message, frozen=True, tag=8):
    """`next_offset`: bytes stored so far, where to go on. `done`: installed up to `index`."""

    index: int
    next_offset: int
    done: bool


class ReadIndexRequest(Message, frozen=True, tag=9):
    """A follower asks which index a linearizable read must wait for (thesis 6.4)."""

    context: int


class ReadIndexReply(Message, frozen=True, tag=10):
    """`ok` false: no longer leader, or nothing of its own term committed yet; ask again."""

    context: int
    index: int
    ok: bool


class TimeoutNow(Message, frozen=True, tag=11):
    """Campaign at once: the leader hands over (thesis 3.10)."""


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
