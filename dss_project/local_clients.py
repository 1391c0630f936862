"""Whose calls need no token on an open node under another server than `manage.py node`.

`RPC_HOST` says where `manage.py node` listens. Another ASGI server does not read it (`uvicorn dss_project.asgi:application --host
0.0.0.0`), so a node could take itself for one that only its machine reaches. There, each client's address decides: calls from other
machines are answered 401 until the cluster has a token, unless DSS_OPEN=true.
"""

from __future__ import annotations

from typing import Any

from dss_api import environment
from dss_api.codec import encode_refusal
from dss_api.errors import Refused
from dss_api.guard import Guard
from dss_api.json_fast_path import Receive, Scope, Send, send_answer
from dss_api.websocket import UNAUTHENTICATED

REFUSED = Refused(
    "unauthenticated",
    "this node serves calls without a token to its own machine only: make a token (manage.py token create), or set DSS_OPEN=true",
)


class LocalClients:
    """An ASGI application in front of the entry points.

    Args:
        is_open_to_all: DSS_OPEN.
    """

    def __init__(self, application: Any, guard: Guard, is_open_to_all: bool) -> None:
        self._application = application
        self._guard = guard
        self._is_open_to_all = is_open_to_all
        #: Only other servers use ASGI's lifespan.
        self._is_other_server = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._is_other_server = True
        elif self._is_other_server and self._guard.is_open and not self._is_open_to_all and not _is_local(scope):
            await _refuse(scope, receive, send)
            return
        await self._application(scope, receive, send)


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    # On a Unix socket, there is no address: a proxy is in front.
    return client is not None and environment.is_loopback(client[0])


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": UNAUTHENTICATED})
    elif scope["type"] == "http":
        await send_answer(send, scope["method"], encode_refusal(REFUSED))
