"""The operations of request sessions. See `replication.client_requests`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from dss_api.caller import caller
from dss_api.errors import Refused
from dss_api.fields import Fields
from dss_api.operation import Operation
from dss_api.request_id import SEAL_MARK, SEAL_PURPOSE, new_session_id
from dss_api.result import Result
from dss_api.rights import ANY_TOKEN
from dss_raft.answers import RequestSessionClosed, RequestSessionOpened
from dss_raft.replication.client_requests import TTL_MS_DEFAULT, CloseRequestSession, OpenRequestSession, TtlMs

if TYPE_CHECKING:
    from dss_raft.node import Node

#: Of a session's id: it is never guessed, and never made twice.
ID_BYTES = 12


class OpenRequestSessionRequest(Fields):
    """Open a request session."""

    #: the session ends when no request has used it for this time
    ttl_ms: TtlMs = TTL_MS_DEFAULT


async def open_session(node: Node, request: OpenRequestSessionRequest) -> Result:
    by = caller()
    if not by.owner and not by.access.everything:
        raise Refused("forbidden", "request sessions are for tokens: nothing would limit those of a user")
    session = by.seal(SEAL_PURPOSE, new_session_id(secrets.token_hex(ID_BYTES), by.owner), SEAL_MARK)
    return await node.submit(OpenRequestSession(session=session, ttl_ms=request.ttl_ms))


async def close_session(node: Node, request: CloseRequestSession) -> Result:
    caller().check_seal(SEAL_PURPOSE, request.session, SEAL_MARK, "session")
    return await node.submit(request)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="requests.open",
        method="POST",
        path="/request/session",
        request=OpenRequestSessionRequest,
        handle=open_session,
        answer=RequestSessionOpened,
        needs=ANY_TOKEN,
        summary="Open a request session",
        description=(
            "The client numbers its requests in the session and gives a changing call the field `request_id`, "
            "`SESSION:NUMBER` or `SESSION:NUMBER:ANSWERED`. The call can then be repeated, at any node: it takes effect once, and every "
            "repeat gets the same answer. Numbers begin with 1 and may arrive in any order. The client has the answers of all numbers up "
            "to `ANSWERED`; the cluster forgets them. Each call with a `request_id` renews the session.\n\nA call is refused with "
            "`request_expired`, and not carried out, if the session is over or the answer is forgotten."
        ),
        tag="Requests",
        example={"ttl_ms": 600000},
        problems=("not_supported_yet",),
    ),
    Operation(
        name="requests.close",
        method="DELETE",
        path="/request/session",
        request=CloseRequestSession,
        handle=close_session,
        answer=RequestSessionClosed,
        needs=ANY_TOKEN,
        summary="Close a request session",
        description="Its answers are forgotten, and its calls that wait are cancelled. A repeat has no effect (`closed: false`).",
        tag="Requests",
        example={"session": "6f1ed002ab5595859014ebf0951522d9"},
        problems=("not_supported_yet",),
    ),
)
