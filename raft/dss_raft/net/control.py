"""Requests that only the leader can carry out, made on any node: transfer leadership, change the members.

A request and its reply travel over the peer link. These requests are rare and each is safe to repeat by hand, so they do not
use a client session: a lost reply is `unknown_outcome`.

A payload begins with the version of the format, 1 byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from dss_api.errors import Refused
from dss_api.supervised import Tasks
from dss_raft.formats import Format

CHANNEL = "control"


class ControlRequest(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    """Asks the leader to do `what` with `args`."""

    number: int
    what: str
    args: dict[str, Any]


class ControlReply(msgspec.Struct, tag="tell", array_like=True, frozen=True):
    """The leader's reply; `code` is "" when the request was carried out."""

    number: int
    body: dict[str, Any]
    code: str
    detail: str
    #: further members of a refusal, such as its field
    extra: dict[str, Any] = {}


FORMAT = Format("a control request", 1)
_START = bytes([FORMAT.version])
_decode = msgspec.msgpack.Decoder(ControlRequest | ControlReply).decode
Handler = Callable[..., Awaitable[dict[str, Any]]]


class Control:
    """Sends, receives and carries out the control requests of one node.

    Args:
        send: `send(peer_id, channel, payload)`, best effort.
        handlers: `what` -> the function that carries it out when this node leads.
    """

    def __init__(self, send: Callable[[str, str, bytes], None], handlers: dict[str, Handler]) -> None:
        self._send = send
        self._handlers = handlers
        self._number = 0
        self._asked: dict[int, asyncio.Future[ControlReply]] = {}
        self._tasks = Tasks()

    async def ask(self, leader_id: str, here: bool, timeout_s: float, what: str, args: dict[str, Any]) -> dict[str, Any]:
        """Have the leader do `what`; `here`: this node is the leader.

        Raises:
            Refused: as the leader refused it; `no_leader`; `unknown_outcome` when no reply came.
        """
        if here:
            return await self._handlers[what](**args)
        if not leader_id:
            raise Refused("no_leader", "no leader is known here")
        self._number += 1
        number = self._number
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(leader_id, CHANNEL, _START + msgspec.msgpack.encode(ControlRequest(number, what, args)))
        try:
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            raise Refused("unknown_outcome", f"{leader_id} did not answer in time") from None
        finally:
            del self._asked[number]
        if answer.code:
            raise Refused(answer.code, answer.detail, **answer.extra)
        body: dict[str, Any] = answer.body
        return body

    def receive(self, peer: str, payload: bytes) -> None:
        """Handle a frame on the channel.

        Raises:
            WrongFormat: a newer release sent it.
        """
        FORMAT.of_binary(payload)
        message = _decode(memoryview(payload)[1:])
        if isinstance(message, ControlReply):
            future = self._asked.get(message.number)
            if future is not None and not future.done():
                future.set_result(message)
            return
        self._tasks.spawn("control", self._do(peer, message))

    async def _do(self, peer: str, request: ControlRequest) -> None:
        try:
            answer = ControlReply(request.number, await self._handlers[request.what](**request.args), "", "")
        except Refused as refusal:
            answer = ControlReply(request.number, {}, refusal.code, refusal.detail, refusal.extra)
        except (KeyError, TypeError) as error:
            answer = ControlReply(
                request.number, {}, "invalid", f"{peer} sent a request that this version does not know: {error}"
            )
        self._send(peer, CHANNEL, _START + msgspec.msgpack.encode(answer))
