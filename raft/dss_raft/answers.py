"""The answers of Raft's operations."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dss_api.answer import Answer, Part, RaftIndex


class Health(Answer, kw_only=True):
    node: str


class Ready(Answer, kw_only=True):
    node: str
    leader_id: str
    applied_index: int


class Leader(Answer, kw_only=True):
    #: null while no leader is known
    leader_id: str | None
    node: str


class Role(Part):
    code: Annotated[int, msgspec.Meta(description="0 follower, 1 candidate, 2 leader, 3 learner")]
    name: str


class MemberState(Part):
    id: str
    url: str
    learner: bool
    up: bool


class PeerState(Part):
    id: str
    match_index: int
    next_index: int
    state: str
    last_contact_ms: int | None
    suspected: bool


class Status(Answer, kw_only=True):
    node: str
    term: int
    state: Role
    leader_id: str | None
    commit_index: int
    last_applied: int
    log_len: int
    snapshot_index: int
    members: list[MemberState]
    peers: Annotated[list[PeerState], msgspec.Meta(description="what this node knows about the others while it leads")]
    boot: Annotated[int, msgspec.Meta(description="how often this node has been started")]
    pending: Annotated[int, msgspec.Meta(description="calls in flight")]
    waiting: Annotated[int, msgspec.Meta(description="calls that wait for something, such as a lock")]


class Campaigning(Answer, kw_only=True):
    node: str


class Transferred(Answer, kw_only=True):
    leader_id: str


class Members(Answer, kw_only=True):
    members: list[MemberState]
    index: RaftIndex


class LimitRow(Part):
    """A limit of the replicated state."""

    name: str
    maximum: int
    #: "bytes" or "count"
    unit: str
    #: how much of it is in use on this node's copy of the state
    used: int
    #: `used` / `maximum`; above 1 after the limit was lowered
    share: float


class Limits(Answer, kw_only=True):
    limits: list[LimitRow]
    #: bytes of the replicated state by kind
    usage: dict[str, int]


class LimitsSet(Limits, kw_only=True):
    index: RaftIndex
