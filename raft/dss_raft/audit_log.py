"""The audit trail as a node uses it: a record of a call before the call is carried out. See `replication.audit`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from dss_api.errors import Refused
from dss_api.routes import Audit, Route
from dss_api.supervised import Tasks
from dss_raft.replication.access_tokens import SINCE
from dss_raft.replication.audit import REASON_LENGTH_MAX, REQUEST_LENGTH_MAX, RecordCall

if TYPE_CHECKING:
    from dss_api.caller import Caller
    from dss_raft.node import Node

log = structlog.get_logger("audit")

#: Records of calls that did not wait for them. More would mean that there is no majority for long; the oldest ones are in the log only.
PENDING_MAX = 1000
RETRY_S = 1.0
TEXT_LENGTH_MAX = 600
#: instead of a password
HIDDEN = "(hidden)"

_encode = msgspec.json.Encoder().encode


class AuditLog(Audit):
    """Proposes the records of a node's calls, and writes them to the node's log."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pending: deque[RecordCall] = deque(maxlen=PENDING_MAX)
        self._tasks = Tasks()
        node.services[Audit.SERVICE] = self

    async def record(self, route: Route, caller: Caller, request: Any, via: str, address: str) -> None:
        """Record a call that is about to be carried out.

        Raises:
            Refused: the record cannot be committed, so the call must not be carried out.
        """
        fields = msgspec.to_builtins(request, str_keys=True)
        fields.pop("op", None)
        fields.update((name, HIDDEN) for name in route.secrets if fields.get(name) is not None)
        reason = str(fields.get("reason") or caller.reason)
        record = RecordCall(
            by=caller.name[:TEXT_LENGTH_MAX],
            via=via,
            address=address[:TEXT_LENGTH_MAX],
            node=self._node.node_id,
            operation=route.name,
            request=_cut(_encode(fields).decode(), REQUEST_LENGTH_MAX),
            reason=reason[:REASON_LENGTH_MAX],
        )
        log.info("audit.call", by=record.by, via=via, address=address, operation=route.name, request=record.request)
        if self._node.replica.cluster_version < SINCE:
            return
        if route.needs_state:
            try:
                await self._node.submit(record)
            except Refused as refusal:
                if refusal.code != "unknown_outcome":
                    raise
                # The call is not made, whether or not the record was committed. So its outcome is known.
                raise Refused(
                    "no_quorum", f"its record in the audit trail was not confirmed, so it was not made: {refusal.detail}"
                ) from None
            return
        # The call must work without a majority: its record is committed as soon as there is one.
        self._pending.append(record)
        if not len(self._tasks):
            self._tasks.spawn("audit", self._commit_pending())

    async def _commit_pending(self) -> None:
        while self._pending and self._node.is_running:
            try:
                await self._node.submit(self._pending[0])
            except Refused as refusal:
                log.warning("audit.waits", records=len(self._pending), why=refusal.detail or refusal.code)
                await asyncio.sleep(RETRY_S)
                continue
            self._pending.popleft()


def _cut(text: str, length_max: int) -> str:
    return text if len(text) <= length_max else f"{text[:length_max]}…"
