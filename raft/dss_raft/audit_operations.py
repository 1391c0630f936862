"""The operation that shows the audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import msgspec

from dss_api.fields import Fields, Index
from dss_api.operation import Operation
from dss_api.rights import READ
from dss_raft.answers import AuditPage, AuditRecord
from dss_raft.replication.audit import AuditTrail

if TYPE_CHECKING:
    from dss_raft.node import Node

RECORDS_PER_CALL_MAX = 1000


class AuditQuery(Fields):
    """The records behind an index, oldest first."""

    after: Index = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=RECORDS_PER_CALL_MAX)] = 100


async def audit(node: Node, request: AuditQuery) -> AuditPage:
    await node.read_index()
    trail = cast(AuditTrail, node.machine("audit"))
    found = trail.after(request.after, request.limit)
    records = [AuditRecord(**msgspec.structs.asdict(record)) for record in found]
    return AuditPage(records=records, dropped=trail.dropped)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="audit.list",
        method="GET",
        path="/audit",
        request=AuditQuery,
        handle=audit,
        answer=AuditPage,
        needs=READ,
        summary="The audit trail: what operators did",
        description=(
            "Every changing call that needs `operate`, `cluster` or `all` (or `queue:…:manage` instead), and every action in the admin: "
            "who as authenticated, from where, what, why. Read on with `after` = the last `index`. `manage.py audit` writes JSON lines."
        ),
        tag="Access",
        example={"after": 0},
    ),
)
