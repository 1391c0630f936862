"""The operations of the node itself: health, leadership, membership."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from dss_api.errors import Refused
from dss_api.fields import Fields, Index, Name, OptionalName, check_name
from dss_api.operation import Operation
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_api.rights import ANY_TOKEN, CLUSTER, OPEN, READ
from dss_raft.answers import (
    Campaigning,
    Health,
    Leader,
    LimitRow,
    Limits,
    LimitsSet,
    LogEntry,
    Members,
    Ready,
    Skipped,
    SnapshotBegun,
    SnapshotChunk,
    SnapshotMember,
    Status,
    Transferred,
)
from dss_raft.replication.limits import SetLimits

if TYPE_CHECKING:
    from dss_raft.node import Node

NODE_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NodeId = Annotated[str, msgspec.Meta(pattern=NODE_ID_PATTERN, description="a node's name: letters, digits, '.', '_', '-'")]


# ------------------------------------------------------------------ requests


class NoParameters(Fields):
    """A call without parameters."""


class StartElection(Fields):
    #: campaign even if a live leader is known
    force: bool = False


class Transfer(Fields):
    #: the node that must lead; empty: the one that is most up to date
    to: Annotated[str, msgspec.Meta(pattern=f"^$|{NODE_ID_PATTERN}")] = ""


class ShowEntry(Fields):
    index: Index


class SkipEntry(Fields):
    #: the entry that cannot be applied
    index: Index
    #: for the log
    reason: Name

    def __post_init__(self) -> None:
        check_name("reason", self.reason)


class SaveSnapshot(Fields):
    """Begin to save the state."""

    #: local: what this node has applied, also without a majority
    consistency: Literal["linearizable", "local"] = "linearizable"


class ReadSnapshot(Fields):
    #: as `POST /raft/snapshot` answered it
    id: Name
    offset: Index = 0


class AddMember(Fields):
    id: NodeId
    #: URL of its service, "http://node-4:8104"
    url: Name


class RemoveMember(Fields):
    id: NodeId
    #: remove it although the remaining voters have none to spare; needs a `reason`
    force: bool = False
    #: why it is forced, for the log
    reason: OptionalName = ""

    def __post_init__(self) -> None:
        check_name("reason", self.reason)
        if self.force and not self.reason:
            raise ValueError("`force` needs a `reason`")


# ------------------------------------------------------------------- handlers


async def health(node: Node, request: NoParameters) -> Health:
    return Health(node=node.node_id, services=_services(node))


async def ready(node: Node, request: NoParameters) -> Ready:
    if node.not_ready_reason:
        raise Refused("not_ready", node.not_ready_reason, node=node.node_id)
    return Ready(
        node=node.node_id,
        leader_id=node.leader_id,
        applied_index=node.applied_index,
        now_ms=node.now_ms(),
        services=_services(node),
    )


def _services(node: Node) -> dict[str, str]:
    # Without the reasons, which may name addresses: these two calls need no token.
    return {state.name: state.state for state in node.service_states()}


async def status(node: Node, request: NoParameters) -> Result:
    return Result(node.status())


async def leader(node: Node, request: NoParameters) -> Leader:
    stores = [member.store for member in node.core.configuration.members if member.store]
    return Leader(leader_id=node.leader_id or None, node=node.node_id, stores=stores)


async def start_election(node: Node, request: StartElection) -> Campaigning:
    await node.start_election(request.force)
    return Campaigning(node=node.node_id)


async def transfer(node: Node, request: Transfer) -> Result:
    return Result(await node.transfer(request.to))


async def show_entry(node: Node, request: ShowEntry) -> LogEntry:
    return node.show_entry(request.index)


async def skip_entry(node: Node, request: SkipEntry) -> Result:
    return Result(await node.skip(request.index, request.reason))


async def save_snapshot(node: Node, request: SaveSnapshot) -> SnapshotBegun:
    node.exports.require_room()
    if request.consistency == "linearizable":
        await node.read_index()
    export_id, header = await node.exports.begin(node.applied_index)
    return SnapshotBegun(
        snapshot_id=export_id,
        node=header.node,
        cluster=header.cluster,
        snapshot_index=header.index,
        snapshot_term=header.term,
        members=[SnapshotMember(one.id, one.url, one.learner) for one in header.members],
        saved_at_ms=header.saved_at_ms,
        bytes=header.bytes,
        sha256=header.sha256,
    )


async def read_snapshot(node: Node, request: ReadSnapshot) -> SnapshotChunk:
    data = await node.exports.read(request.id, request.offset)
    return SnapshotChunk(offset=request.offset, data=b64encode(data).decode())


async def add_member(node: Node, request: AddMember) -> Result:
    return Result(await node.add_member(request.id, request.url))


async def remove_member(node: Node, request: RemoveMember) -> Result:
    return Result(await node.remove_member(request.id, request.force, request.reason))


async def limits(node: Node, request: NoParameters) -> Limits:
    return Limits(limits=_limit_rows(node), usage=node.replica.usage())


async def set_limits(node: Node, request: SetLimits, once: RequestId | None = None) -> LimitsSet:
    fault = node.replica.limits.fault(request.limits)
    if fault:
        raise Refused("invalid", fault, field="limits")
    result = await node.submit(request, once=once)
    if result.code:
        raise Refused(result.code, **result.body)
    return LimitsSet(limits=_limit_rows(node), usage=node.replica.usage(), index=result.index)


def _limit_rows(node: Node) -> list[LimitRow]:
    limits = node.replica.limits
    return [
        LimitRow(limit.name, maximum := limits.maxima[limit.name], limit.unit, used := limit.used(), round(used / maximum, 4))
        for limit in limits.present().values()
    ]


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="health",
        method="GET",
        path="/health",
        request=NoParameters,
        handle=health,
        answer=Health,
        needs=OPEN,
        summary="Is this process serving?",
        description="200 while the process serves requests, in any state of the cluster. For liveness probes. Needs no token.\n\n"
        "`services` has the state of other servers that this node uses, such as `queue.engine` (Valkey or Redis): `none`,"
        " `connecting`, `ready`, `away` or `unfit`. `GET /raft/status` has the reasons.",
        tag="Health",
        needs_state=False,
    ),
    Operation(
        name="ready",
        method="GET",
        path="/ready",
        request=NoParameters,
        handle=ready,
        answer=Ready,
        needs=OPEN,
        summary="Is this node ready to serve calls?",
        description="200 when a write that is sent to this node now would be answered; otherwise 503 `not_ready`."
        " For load balancers. Needs no token.\n\nAn engine of the queue that is away (`services`) does not change this: only the"
        " calls of its topics are refused, and another node would not help.",
        tag="Health",
        needs_state=False,
        problems=("not_ready",),
    ),
    Operation(
        name="raft.status",
        method="GET",
        path="/raft/status",
        request=NoParameters,
        handle=status,
        answer=Status,
        needs=READ,
        summary="Raft state as this node sees it",
        tag="Raft",
        needs_state=False,
    ),
    Operation(
        name="raft.leader",
        method="GET",
        path="/raft/leader",
        request=NoParameters,
        handle=leader,
        answer=Leader,
        needs=ANY_TOKEN,
        summary="The current leader",
        tag="Raft",
        needs_state=False,
    ),
    Operation(
        name="raft.start_election",
        method="POST",
        path="/raft/start_election",
        request=StartElection,
        handle=start_election,
        answer=Campaigning,
        needs=CLUSTER,
        summary="Start an election on this node",
        description="Without `force`, a live leader keeps its role: the other nodes refuse the pre-vote."
        " With `force`, the node raises its term immediately.",
        tag="Raft",
        needs_state=False,
        example={"force": False},
    ),
    Operation(
        name="raft.transfer",
        method="POST",
        path="/raft/transfer",
        request=Transfer,
        handle=transfer,
        answer=Transferred,
        needs=CLUSTER,
        summary="Transfer leadership to another node",
        description="The leader brings the chosen node up to date and tells it to start an election."
        " If `to` is empty, the leader chooses the node that is most up to date.",
        tag="Raft",
        needs_state=False,
        example={"to": ""},
    ),
    Operation(
        name="raft.log",
        method="GET",
        path="/raft/log/{index}",
        request=ShowEntry,
        handle=show_entry,
        answer=LogEntry,
        needs=CLUSTER,
        summary="Show a log entry",
        description="The entry as this node stores it, with its commands. Entries before the last snapshot may be gone.",
        tag="Raft",
        needs_state=False,
        example={"index": 1},
        problems=("not_found",),
    ),
    Operation(
        name="raft.skip",
        method="POST",
        path="/raft/skip",
        request=SkipEntry,
        handle=skip_entry,
        answer=Skipped,
        needs=CLUSTER,
        summary="Skip a log entry that cannot be applied",
        description="For an entry at which members have stopped applying (`apply_stopped` in `GET /raft/status`). It then has no"
        " effect on any node, and its calls are refused with `skipped`. Refused with `not_skippable` unless every member answers that"
        " it has not applied the entry.",
        tag="Raft",
        needs_state=False,
        example={"index": 1, "reason": "a fault in the lock table"},
        problems=("not_skippable",),
    ),
    Operation(
        name="raft.save_snapshot",
        method="POST",
        path="/raft/snapshot",
        request=SaveSnapshot,
        handle=save_snapshot,
        answer=SnapshotBegun,
        needs=CLUSTER,
        summary="Begin to save the state of the cluster",
        description="Takes a snapshot of everything that was answered before this call, and keeps it open for"
        " `GET /raft/snapshot/{id}` on this node. It contains all values, locks and messages: keep it as you keep them."
        " `manage.py snapshot save` makes both calls and writes a file.",
        tag="Raft",
        example={"consistency": "linearizable"},
    ),
    Operation(
        name="raft.read_snapshot",
        method="GET",
        path="/raft/snapshot/{id}",
        request=ReadSnapshot,
        handle=read_snapshot,
        answer=SnapshotChunk,
        needs=CLUSTER,
        summary="Read a part of a snapshot",
        description="Up to 512 KiB from `offset`. An empty part is the end, and closes the snapshot; so does a minute in which it is"
        " not read.",
        tag="Raft",
        needs_state=False,
        example={"id": "6f1ed002ab5595859014ebf0951522d9", "offset": 0},
        problems=("not_found",),
    ),
    Operation(
        name="raft.add_member",
        method="POST",
        path="/raft/members",
        request=AddMember,
        handle=add_member,
        answer=Members,
        needs=CLUSTER,
        summary="Add a member",
        description="The node starts as a learner, without a vote, and becomes a voter once it has caught up."
        " Start the new node with `DSS_JOIN=true`.",
        tag="Raft",
        needs_state=False,
        example={"id": "node-4", "url": "http://127.0.0.1:8104"},
        problems=("quorum_at_risk",),
    ),
    Operation(
        name="raft.remove_member",
        method="DELETE",
        path="/raft/members/{id}",
        request=RemoveMember,
        handle=remove_member,
        answer=Members,
        needs=CLUSTER,
        summary="Remove a member",
        description="Removes a node from the cluster permanently; it may be the leader. Its process ends by itself. Refused with"
        " `quorum_at_risk` if fewer than a majority of the remaining voters are reachable, or if a voter that works would be removed"
        " although others do not answer and none is to spare. Only in the second case, `force` with a `reason` removes it"
        " nevertheless.",
        tag="Raft",
        needs_state=False,
        example={"id": "example-node"},
        problems=("quorum_at_risk",),
    ),
    Operation(
        name="raft.limits",
        method="GET",
        path="/raft/limits",
        request=NoParameters,
        handle=limits,
        answer=Limits,
        needs=READ,
        summary="The limits of the replicated state",
        description="Each limit and how much of it is in use, as this node sees it. While a limit is reached, calls that make the"
        " state grow fail with 429 `over_limit`, which names the limit; calls that make it shrink always work.",
        tag="Raft",
    ),
    Operation(
        name="raft.set_limits",
        method="PUT",
        path="/raft/limits",
        request=SetLimits,
        handle=set_limits,
        answer=LimitsSet,
        takes_request_id=True,
        needs=CLUSTER,
        summary="Change limits of the replicated state",
        description="Takes effect on all nodes at the same log index. Limits that are not named stay as they are. A limit may be set"
        " below what is in use: nothing is deleted, but the state can only shrink until enough has gone.",
        tag="Raft",
        example={"limits": {"session_bytes_max": 67108864}},
    ),
)
