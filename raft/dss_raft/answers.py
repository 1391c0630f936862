"""The answers of Raft's operations."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from dss_api.answer import Answer, Part, RaftIndex

#: name of a service of this node -> its state
ServiceStates = Annotated[
    dict[str, str],
    msgspec.Meta(
        description="other servers that this node uses for a part of its calls, and their state; one that is away does not change"
        " the status of this answer"
    ),
]


class Health(Answer, kw_only=True):
    node: str
    services: ServiceStates


class Ready(Answer, kw_only=True):
    node: str
    leader_id: str
    applied_index: int
    #: the cluster's time as this node estimates it, in ms since 1970; leases end by it
    now_ms: int
    services: ServiceStates


class Leader(Answer, kw_only=True):
    #: null while no leader is known
    leader_id: str | None
    node: str
    stores: Annotated[
        list[str],
        msgspec.Meta(description="random ids of the members' data directories; nodes of different clusters have none in common"),
    ]


class Role(Part):
    code: Annotated[int, msgspec.Meta(description="0 follower, 1 candidate, 2 leader, 3 learner")]
    name: str


class SupportedVersions(Part):
    min: int
    max: int


class MemberState(Part):
    id: str
    url: str
    learner: bool
    up: bool
    outdated: Annotated[
        bool,
        msgspec.Meta(
            description="its disk was put back to an earlier state: it has no vote until `manage.py member replace` replaces it"
        ),
    ]
    supported_versions: Annotated[
        SupportedVersions | None,
        msgspec.Meta(description="cluster versions that this member supports; null while it is not linked to this node"),
    ]


class PeerState(Part):
    id: str
    match_index: int
    next_index: int
    state: str
    last_contact_ms: int | None
    suspected: bool


class ApplyStopped(Part):
    index: Annotated[int, msgspec.Meta(description="the entry that this node cannot apply")]
    error: str


class ClockState(Part):
    off_by_ms: Annotated[
        int | None,
        msgspec.Meta(
            description="how far this node's wall clock is ahead of the one that a majority agrees on; null without one"
        ),
    ]
    is_wrong: Annotated[bool, msgspec.Meta(description="`off_by_ms` is more than a minute, in either direction")]
    agreeing: Annotated[list[str], msgspec.Meta(description="the voters whose wall clocks agree; empty if they are no majority")]
    applied_off_by_ms: Annotated[
        int | None, msgspec.Meta(description="how far applied time is ahead of the wall clock that a majority agrees on")
    ]


class StateHash(Part):
    index: Annotated[
        int | None, msgspec.Meta(description="the entry after which this node last hashed its state; null before the first time")
    ]
    agreeing: Annotated[list[str], msgspec.Meta(description="the other members whose state was equal at that index")]
    differing: Annotated[
        list[str],
        msgspec.Meta(
            description="members whose state differed from this node's, each until it is removed or has a new data directory"
        ),
    ]
    parts: Annotated[list[str], msgspec.Meta(description="the parts of the state that differed")]


class ServiceState(Part):
    """What a service of this node that depends on other servers says about itself."""

    #: such as "queue.engine"
    name: str
    state: str
    #: why, for people
    detail: str
    #: when it came to this state, by the clock of this node
    since_ms: int


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
    apply_stopped: Annotated[ApplyStopped | None, msgspec.Meta(description="null while this node applies the log")]
    cluster_version: Annotated[int, msgspec.Meta(description="the cluster version that this node has applied; never goes down")]
    supported_versions: Annotated[SupportedVersions, msgspec.Meta(description="cluster versions that this node supports")]
    clock: ClockState
    state_hash: StateHash
    boot: Annotated[int, msgspec.Meta(description="a random number, another one for each start of this node")]
    pending: Annotated[int, msgspec.Meta(description="calls in flight")]
    waiting: Annotated[int, msgspec.Meta(description="calls that wait for something, such as a lock")]
    services: Annotated[list[ServiceState], msgspec.Meta(description="other servers that this node uses for a part of its calls")]


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


class TokenRow(Part):
    """A token, without its secret."""

    id: str
    name: str
    scopes: list[str]
    #: 1, and one more with each rotation
    generation: int
    created_ms: int
    #: who made it
    created_by: str
    #: null: never
    rotated_ms: int | None
    #: null: never
    expires_ms: int | None
    expired: bool
    #: the hour of the last use; null: none is known
    used_ms: int | None
    #: until then, the secret before the last rotation is valid, too
    previous_until_ms: int | None
    #: its secret is computed from another key than those of new tokens
    old_key: bool


class Tokens(Answer, kw_only=True):
    #: oldest first
    tokens: list[TokenRow]


class TokenMade(Answer, kw_only=True):
    #: the secret text that clients send; it is not shown again
    token: str
    token_id: str
    name: str
    scopes: list[str]
    generation: int
    created_ms: int
    created_by: str
    rotated_ms: int | None
    expires_ms: int | None
    expired: bool
    used_ms: int | None
    previous_until_ms: int | None
    index: RaftIndex


class TokenRevoked(Answer, kw_only=True):
    #: false: there was no such token
    revoked: bool
    index: RaftIndex


class UserRow(Part):
    """A user of the pages and the admin."""

    name: str
    #: "viewer", "operator" or "admin"
    group: str
    #: false: cannot log in
    active: bool
    #: 1, and one more whenever all sessions end
    generation: int
    created_ms: int
    #: who made the user
    created_by: str
    #: null: never
    changed_ms: int | None
    #: null: it is the first one
    password_changed_ms: int | None


class Users(Answer, kw_only=True):
    #: oldest first
    users: list[UserRow]


class UserSaved(Answer, kw_only=True):
    name: str
    group: str
    active: bool
    generation: int
    created_ms: int
    created_by: str
    changed_ms: int | None
    password_changed_ms: int | None
    index: RaftIndex


class UserDeleted(Answer, kw_only=True):
    #: false: there was no such user
    deleted: bool
    index: RaftIndex


class AuditRecord(Part):
    """A call of an operator."""

    #: of the record in the log; the call was carried out after it
    index: int
    at_ms: int
    #: as authenticated
    by: str
    #: "http", "websocket", "page" or "admin"
    via: str
    address: str
    #: the node that took the call
    node: str
    operation: str
    #: its fields as JSON, perhaps cut
    request: str
    reason: str


class AuditPage(Answer, kw_only=True):
    #: oldest first
    records: list[AuditRecord]
    #: older records that are gone
    dropped: int


class LogCommand(Part):
    seq: Annotated[int, msgspec.Meta(description="its number in the session; 0 for a command of the leader")]
    op: str
    #: as stored; JSON values are shown as their text
    fields: dict[str, Any]


class LogGroup(Part):
    """Commands of one session."""

    #: whose callers sent them
    node: str
    #: which start of that node
    boot: int
    first_seq: int
    commands: list[LogCommand]


class LogEntry(Answer, kw_only=True):
    index: int
    term: int
    kind: Annotated[str, msgspec.Meta(description="commands, noop or configuration")]
    bytes: int
    #: null: read from the disk of a node that does not run
    committed: bool | None
    #: on this node
    applied: bool | None
    #: it had no effect, because an operator has skipped it
    skipped: bool | None
    at_ms: Annotated[int | None, msgspec.Meta(description="the leader's stamp")] = None
    own: Annotated[list[LogCommand], msgspec.Meta(description="commands of the leader itself")] = []
    groups: list[LogGroup] = []
    #: of a configuration
    members: list[str] = []
    #: large entries are shown in part
    commands_left_out: int = 0
    fault: str = ""


class Skipped(Answer, kw_only=True):
    #: the entry that has no effect
    skipped: int
    index: RaftIndex


class SnapshotMember(Part):
    id: str
    url: str
    learner: bool


class SnapshotBegun(Answer, kw_only=True):
    #: for `GET /raft/snapshot/{id}` on the same node
    snapshot_id: str
    node: str
    cluster: str
    #: the state contains everything up to this entry of the log
    snapshot_index: int
    #: of that entry
    snapshot_term: int
    #: in force at that entry
    members: list[SnapshotMember]
    saved_at_ms: Annotated[int, msgspec.Meta(description="wall clock of the node, in ms since 1970")]
    bytes: int
    sha256: str


class SnapshotChunk(Answer, kw_only=True):
    offset: int
    data: Annotated[str, msgspec.Meta(description="Base64; empty at the end")]


class RequestSessionOpened(Answer, kw_only=True):
    session: str
    #: unless a request uses it before
    expires_in_ms: int
    index: RaftIndex


class RequestSessionClosed(Answer, kw_only=True):
    #: false: there was no such session
    closed: bool
    index: RaftIndex
