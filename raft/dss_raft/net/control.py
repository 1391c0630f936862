"""What only the leader can do, asked for on any node: hand over leadership, change the members.

A small request and answer over the peer link. These calls are rare, and each is safe to repeat by hand, so they do not go through
a session: a lost answer is `unknown_outcome`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from dss_api.errors import Refused

CHANNEL = "control"


class Ask(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    """Do `what` with `args`, as the leader."""

    number: int
    what: str
    args: dict[str, Any]


class Tell(msgspec.Struct, tag="tell", array_like=True, frozen=True):
    """The answer; `code` is "" when it was done."""

    number: int
    body: dict[str, Any]
    code: str
    detail: str


_decoder = msgspec.msgpack.Decoder(Ask | Tell)
Doer = Callable[..., Awaitable[dict[str, Any]]]


class Control:
    """One node's end.

    Args:
        send: `send(peer_id, channel, payload)`, best effort.
        doers: what can be asked for, run when this node leads.
    """

    def __init__(self, send: Callable[[str, str, bytes], None], doers: dict[str, Doer]) -> None:
        self._send = send
        self._doers = doers
        self._number = 0
        self._asked: dict[int, asyncio.Future[Tell]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, leader_id: str, here: bool, timeout_s: float, what: str, args: dict[str, Any]) -> dict[str, Any]:
        """Have the leader do it; `here` says that this node is the leader.

        Raises:
            Refused: as the leader refused it; `no_leader`; `unknown_outcome` when no answer came.
        """
        if here:
            return await self._doers[what](**args)
        if not leader_id:
            raise Refused("no_leader", "no leader is known here")
        self._number += 1
        number = self._number
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(leader_id, CHANNEL, msgspec.msgpack.encode(Ask(number, what, args)))
        try:
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            raise Refused("unknown_outcome", f"{leader_id} did not answer in time") from None
        finally:
            del self._asked[number]
        if answer.code:
            raise Refused(answer.code, answer.detail)
        body: dict[str, Any] = answer.body
        return body

    def receive(self, peer: str, payload: bytes) -> None:
        """A frame on the channel."""
        message = _decoder.decode(payload)
        if isinstance(message, Tell):
            future = self._asked.get(message.number)
            if future is not None and not future.done():
                future.set_result(message)
            return
        task = asyncio.get_running_loop().create_task(self._do(peer, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, peer: str, ask: Ask) -> None:
        try:
            answer = Tell(ask.number, await self._doers[ask.what](**ask.args), "", "")
        except Refused as refusal:
            answer = Tell(ask.number, {}, refusal.code, refusal.detail)
        except (KeyError, TypeError) as error:
            answer = Tell(ask.number, {}, "invalid", f"{peer} asked for something this version does not know: {error}")
        self._send(peer, CHANNEL, msgspec.msgpack.encode(answer))
