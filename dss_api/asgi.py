"""The form in which a web server gives requests and WebSockets to an application: ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dss_api.codec import EncodedAnswer

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def send_answer(send: Send, method: str, answer: EncodedAnswer) -> None:
    """Send a whole answer; for HEAD without its body."""
    body = answer.payload
    headers = [*answer.headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def address_of(scope: Scope) -> str:
    """The client's address; "": it has none."""
    address: str = (scope.get("client") or ("",))[0]
    return address


def state_of(connection: Any) -> dict[str, Any]:
    """The `state` of a scope: it gives the application access to the connection."""
    return {"connection": connection}


def connection_of(scope: Scope) -> Any:
    """The connection, as the listener knows it. None: the request has not come through the listener."""
    return scope.get("state", {}).get("connection")
