"""The door for programs that call often: a WebSocket, with many calls under way at once.

A frame is `{"id": …, "op": "locks.acquire", "request": {…}}`; `x-op` in the API docs names each operation. Its answer is the
same document as over HTTP with the call's `id` and `status`, and comes when it is ready: answers overtake each other. When the
connection closes, what still waits is cancelled as if each call's client had hung up.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

import msgspec

from dss_project.api.codec import Answer, encode_refusal
from dss_project.api.guard import check_origin
from dss_project.api.lane import Lane, Receive, Scope, Send
from dss_project.frontdoor import FrontDoor
from dss_raft.errors import Refused

PATH = "/ws"
#: Calls under way on one connection; the next ones are answered `over_limit`.
CALLS_PER_CONNECTION_MAX = 1000

#: Close codes of RFC 6455, and of ours (4000 and up) for what HTTP would answer 401, 403 and 404.
BAD_FRAME, UNAUTHENTICATED, FORBIDDEN, NOT_FOUND = 1007, 4401, 4403, 4404


class Frame(msgspec.Struct, forbid_unknown_fields=True):
    """One call."""

    id: int | str
    op: str
    request: msgspec.Raw = msgspec.Raw(b"{}")


_decode = msgspec.json.Decoder(Frame).decode
_encode = msgspec.json.Encoder().encode


class SocketDoor:
    """The ASGI application for WebSockets."""

    def __init__(self, lane: Lane, front: FrontDoor) -> None:
        self._lane = lane
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        refused = self._refused(scope)
        if refused:
            await send({"type": "websocket.close", "code": refused})
            return
        await send({"type": "websocket.accept"})
        await Connection(self._lane, self._front, send).serve(receive)

    def _refused(self, scope: Scope) -> int:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        if scope["path"] != PATH:
            return NOT_FOUND
        try:
            if host and not self._front.is_host_allowed(host):
                return FORBIDDEN
            check_origin(headers.get(b"origin", b""), host)
            self._lane.guard.check_token(headers.get(b"authorization", b""))
        except Refused as refusal:
            return UNAUTHENTICATED if refusal.code == "unauthenticated" else FORBIDDEN
        return 0


class Connection:
    """One client's connection and its calls."""

    def __init__(self, lane: Lane, front: FrontDoor, send: Send) -> None:
        self._lane = lane
        self._front = front
        self._send = send
        self._calls: set[asyncio.Task[None]] = set()

    async def serve(self, receive: Receive) -> None:
        """Until the client goes."""
        loop = asyncio.get_running_loop()
        try:
            while (message := await receive())["type"] == "websocket.receive":
                text = message.get("text")
                data = message.get("bytes") or b"" if text is None else text.encode()
                try:
                    frame = _decode(data)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    # Without an id there is nothing to answer to.
                    await self._send({"type": "websocket.close", "code": BAD_FRAME})
                    return
                if len(self._calls) >= CALLS_PER_CONNECTION_MAX:
                    refusal = Refused("over_limit", f"{CALLS_PER_CONNECTION_MAX} calls are under way on this connection")
                    await self._reply(frame.id, encode_refusal(refusal), text is not None)
                    continue
                call = loop.create_task(self._call(frame, text is not None))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
        finally:
            for call in self._calls:
                call.cancel()

    async def _call(self, frame: Frame, as_text: bool) -> None:
        started = perf_counter()
        self._front.calls_under_way += 1
        try:
            route = self._lane.routes.by_name.get(frame.op)
            if route is None:
                raise Refused("not_found", f"there is no operation {frame.op}")
            answer = await route.carry_out(self._lane.find_node, route.decoder.body(bytes(frame.request)))
            route.observe(answer.status, perf_counter() - started)
        except Refused as refusal:
            answer = encode_refusal(refusal)
        finally:
            self._front.calls_under_way -= 1
        await self._reply(frame.id, answer, as_text)

    async def _reply(self, id: int | str, answer: Answer, as_text: bool) -> None:
        # A problem document names its status itself.
        status = b"" if answer.status >= 400 else b'"status":%d,' % answer.status
        data = b'{"id":%b,%b%b' % (_encode(id), status, answer.body[1:])
        content = {"text": data.decode()} if as_text else {"bytes": data}
        await self._send({"type": "websocket.send", **content})
