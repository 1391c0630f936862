"""The operations of the lock manager."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import msgspec

from dss_api.caller import ANYONE, caller
from dss_api.errors import Refused
from dss_api.operation import Operation
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_api.rights import OPERATE, READ, AnyIn, Either, locks
from dss_locks import metrics
from dss_locks.answers import (
    AcquireAnswer,
    AuditAnswer,
    CheckAnswer,
    ForceReleaseAnswer,
    GraphAnswer,
    ReleaseAnswer,
    RenewAnswer,
    SessionAnswer,
    SessionCloseAnswer,
    SessionRenewAnswer,
    StatusAnswer,
)
from dss_locks.core import inspection
from dss_locks.core.commands import (
    Acquire,
    AuditQuery,
    CheckToken,
    CloseSession,
    ForceFields,
    ForceRelease,
    ForceReleaseGrant,
    ForceReleaseRequest,
    GraphQuery,
    Release,
    Renew,
    RenewSession,
    StartSession,
    StatusQuery,
)
from dss_locks.core.table import LockTable

if TYPE_CHECKING:
    from dss_raft.node import Node


#: in a session's id for a token, between the id in the lock table and the seal; see `Caller.seal`
SEAL_MARK = "~"
SEAL_PURPOSE = "lock session"


async def acquire(node: Node, request: Acquire, once: RequestId | None = None) -> Result:
    """Answer immediately or, if the request has to wait, when it is granted, refused or timed out."""
    outcome = "failed"
    try:
        if request.session:
            request = msgspec.structs.replace(request, session=own_session(request.session))
        result = await node.submit(request, wait_ms=request.wait_ms, once=once)
        outcome = result.code or ("reentrant" if result.body["reentrant"] else "granted")
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except Refused as refused:
        if refused.code == "over_limit":
            outcome = "over_limit"
        raise
    finally:
        metrics.acquire_counters[request.mode, outcome].inc()
    if not result.code:
        metrics.lock_wait_seconds.observe(result.body.get("waited_ms", 0) / 1000)
    elif result.code == "deadlock":
        metrics.lock_deadlock_total.inc()
    return with_seal(result)


async def release(node: Node, request: Release, once: RequestId | None = None) -> Result:
    """Release a lock. A repeat has no effect."""
    outcome = "failed"
    try:
        result = await node.submit(request, once=once)
        outcome = result.code or ("released" if result.body["released"] else "not_held")
    finally:
        metrics.release_counters[outcome].inc()
    return result


async def renew(node: Node, request: Renew, once: RequestId | None = None) -> Result:
    return await node.submit(request, once=once)


async def start_session(node: Node, request: StartSession, once: RequestId | None = None) -> Result:
    return with_seal(await node.submit(request, once=once))


async def renew_session(node: Node, request: RenewSession, once: RequestId | None = None) -> Result:
    request = msgspec.structs.replace(request, session=own_session(request.session))
    return with_seal(await node.submit(request, once=once))


async def close_session(node: Node, request: CloseSession, once: RequestId | None = None) -> Result:
    request = msgspec.structs.replace(request, session=own_session(request.session))
    return await node.submit(request, once=once)


async def force_release(node: Node, request: ForceReleaseRequest, once: RequestId | None = None) -> Result:
    fields = {name: getattr(request, name) for name in ForceFields.__struct_fields__}
    if caller() is not ANYONE:
        # The authentication knows who it is; the field is what an unknown caller of an open node says.
        fields["by"] = caller().name
    # All cluster versions know the command without a token.
    token = request.fencing_token
    command = ForceRelease(**fields) if token is None else ForceReleaseGrant(**fields, fencing_token=token)
    result = await node.submit(command, once=once)
    if result.body["released"]:
        metrics.release_counters["forced"].inc()
    return result


def own_session(session: str) -> str:
    """The session as the lock table knows it. Ids of sessions can be guessed, so a token gets them with a seal, and must send it.

    Raises:
        Refused: `forbidden`: it is the session of another token.
    """
    return caller().check_seal(SEAL_PURPOSE, session, SEAL_MARK, "session")


def with_seal(result: Result) -> Result:
    """The result with its session as the caller must send it."""
    session = result.body.get("session")
    if session is None:
        return result
    return Result({**result.body, "session": caller().seal(SEAL_PURPOSE, session, SEAL_MARK)}, result.code, result.index)


async def check(node: Node, request: CheckToken) -> Result:
    await node.read_index()
    return Result(inspection.check(_table(node), request.key, request.fencing_token))


async def status(node: Node, request: StatusQuery) -> Result:
    await _consistent(node, request.consistency)
    return Result(inspection.status(_table(node), request.key, node.now_ms(), request.client))


async def graph(node: Node, request: GraphQuery) -> Result:
    await _consistent(node, request.consistency)
    return Result(inspection.graph(_table(node)))


async def audit(node: Node, request: AuditQuery) -> Result:
    await _consistent(node, request.consistency)
    return Result({"forced": inspection.audit(_table(node))})


def _table(node: Node) -> LockTable:
    return cast(LockTable, node.machine("locks"))


async def _consistent(node: Node, consistency: str) -> None:
    if consistency == "linearizable":
        await node.read_index()


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="locks.acquire",
        method="POST",
        path="/lock/acquire",
        request=Acquire,
        handle=acquire,
        answer=AcquireAnswer,
        takes_request_id=True,
        needs=locks("key", "keys"),
        summary="Acquire a lock",
        description=(
            "Locks `key`, or all of `keys` or none, in mode `exclusive` or `shared`, first come, first served. A lock that "
            "`client` already holds is renewed and keeps its token. Asking for exclusive while holding shared is an upgrade.\n\n"
            "With `wait_ms` the call waits in the queue. If waiting would cause a deadlock, it is refused with the cycle. "
            "The lease ends after `ttl_ms` unless it is renewed. If a lock with `lock_delay_ms` is lost (not released), its key "
            "is not granted for that time, so that requests its holder sent earlier can arrive. "
            "A lease cannot stop a paused client: pass the `fencing_token` to the resource, which must refuse older tokens."
        ),
        tag="Locks",
        example={"key": "example/orders/42", "mode": "exclusive", "client": "worker-1", "ttl_ms": 30000, "wait_ms": 1000},
        problems=("held", "wait_timeout", "deadlock", "lock_lost", "session_lost"),
    ),
    Operation(
        name="locks.release",
        method="POST",
        path="/lock/release",
        request=Release,
        handle=release,
        answer=ReleaseAnswer,
        takes_request_id=True,
        needs=locks("key", "keys"),
        summary="Release a lock",
        description="A repeat has no effect (`released: false`). With `fencing_token`, only that grant is released.",
        tag="Locks",
        example={"key": "example/orders/42", "client": "worker-1"},
        problems=("not_holder",),
    ),
    Operation(
        name="locks.renew",
        method="POST",
        path="/lock/renew",
        request=Renew,
        handle=renew,
        answer=RenewAnswer,
        takes_request_id=True,
        needs=locks("key", "keys"),
        summary="Renew a lease",
        description="Restarts the lease with its current length, or with `ttl_ms`. Renew after about a third of the lease.",
        tag="Locks",
        example={"key": "example/orders/42", "client": "worker-1"},
        problems=("lock_lost",),
    ),
    Operation(
        name="locks.session_start",
        method="POST",
        path="/session",
        request=StartSession,
        handle=start_session,
        answer=SessionAnswer,
        takes_request_id=True,
        needs=AnyIn("locks", ""),
        summary="Start a client session",
        description=(
            "One lease for all locks that are acquired with this `session`. One call renews all of them; if the client does not "
            "renew for `ttl_ms`, all of them are lost."
        ),
        tag="Locks",
        example={"client": "worker-1", "ttl_ms": 30000},
    ),
    Operation(
        name="locks.session_renew",
        method="POST",
        path="/session/renew",
        request=RenewSession,
        handle=renew_session,
        answer=SessionRenewAnswer,
        takes_request_id=True,
        needs=AnyIn("locks", ""),
        summary="Renew a session and all its locks",
        description="Renew after about a third of the lease.",
        tag="Locks",
        example={"session": "0.0"},
        problems=("session_lost",),
    ),
    Operation(
        name="locks.session_close",
        method="POST",
        path="/session/close",
        request=CloseSession,
        handle=close_session,
        answer=SessionCloseAnswer,
        takes_request_id=True,
        needs=AnyIn("locks", ""),
        summary="Close a session and release all its locks",
        description="A repeat has no effect (`closed: false`).",
        tag="Locks",
        example={"session": "0.0"},
    ),
    Operation(
        name="locks.check",
        method="POST",
        path="/lock/check",
        request=CheckToken,
        handle=check,
        answer=CheckAnswer,
        needs=Either((READ, locks("key"))),
        summary="Check a fencing token",
        description="For a protected resource that cannot remember the highest token itself: check the token before each write.",
        tag="Locks",
        example={"key": "example/orders/42", "fencing_token": 17},
    ),
    Operation(
        name="locks.status",
        method="GET",
        path="/lock/status",
        request=StatusQuery,
        handle=status,
        answer=StatusAnswer,
        needs=Either((READ, locks("key"))),
        summary="Who holds a key, who waits for it, and why",
        description="Linearizable unless `consistency=local`. With `client`: why that client is waiting.",
        tag="Locks",
        example={"key": "example/orders/42"},
    ),
    Operation(
        name="locks.graph",
        method="GET",
        path="/lock/graph",
        request=GraphQuery,
        handle=graph,
        answer=GraphAnswer,
        needs=READ,
        summary="The waits-for graph",
        description="The clients that wait or are waited for, and who waits for whom. Linearizable unless `consistency=local`.",
        tag="Locks",
    ),
    Operation(
        name="locks.force_release",
        method="POST",
        path="/lock/force_release",
        request=ForceReleaseRequest,
        handle=force_release,
        answer=ForceReleaseAnswer,
        takes_request_id=True,
        needs=OPERATE,
        summary="Force the release of a lock",
        description=(
            "Takes the lock away without asking its holder, who may still be running: only the fencing token protects the "
            "resource. With `fencing_token`, only that grant ends, and a newer one of the same client stays. Recorded in the audit list."
        ),
        tag="Locks",
        example={"key": "example/orders/42", "reason": "worker-1 is gone", "by": "alice"},
    ),
    Operation(
        name="locks.audit",
        method="GET",
        path="/lock/audit",
        request=AuditQuery,
        handle=audit,
        answer=AuditAnswer,
        needs=READ,
        summary="Forced releases, latest first",
        description="The last 1,000 forced releases. Linearizable unless `consistency=local`.",
        tag="Locks",
    ),
)
