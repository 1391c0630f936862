"""Operations that only the admin offers."""

from __future__ import annotations

from typing import Any

from dss_api.answer import Answer
from dss_api.operation import Operation
from dss_api.result import Result
from dss_api.rights import OPERATE
from dss_locks.answers import SessionCloseAnswer
from dss_locks.core.commands import CancelWait, CloseSession


class CancelWaitAnswer(Answer):
    #: false: the request no longer waits
    cancelled: bool


async def submit(node: Any, request: Any) -> Result:
    found: Result = await node.submit(request)
    return found


CANCEL_WAIT = Operation(
    name="locks.cancel_wait",
    method="POST",
    path="/lock/cancel_wait",
    request=CancelWait,
    handle=submit,
    answer=CancelWaitAnswer,
    needs=OPERATE,
    summary="End a wait",
)

#: As `POST /session/close`, which only the token that has opened the session may use.
CLOSE_SESSION = Operation(
    name="locks.session_close",
    method="POST",
    path="/session/close",
    request=CloseSession,
    handle=submit,
    answer=SessionCloseAnswer,
    needs=OPERATE,
    summary="Close a client's session",
)
