"""The events of one subscription on their way to one client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from dss_api.errors import Refused
from dss_api.json_fast_path import Send

#: A client that is so far behind loses its subscription: the node's memory is not its buffer.
BACKLOG_MAX = 10_000

_encode = msgspec.json.Encoder().encode


class SocketFeed:
    """See `operation.Feed`. Nothing runs while there is nothing to send.

    Args:
        end_subscription: called once when the client is too far behind; `refusal` then says so.
    """

    def __init__(self, send: Send, id: int | str, as_text: bool, end_subscription: Callable[[], Any]) -> None:
        self._send = send
        self._start = b'{"id":%b,"event":' % _encode(id)
        self._as_text = as_text
        self._end_subscription = end_subscription
        self._events: deque[bytes] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._is_over = False
        self.refusal: Refused | None = None

    @property
    def backlog(self) -> int:
        """Events that the server has not taken yet."""
        return len(self._events)

    def push(self, event: dict[str, Any] | msgspec.Struct) -> None:
        """Send `event` after those before it. After the end it goes nowhere."""
        if self._is_over:
            return
        if len(self._events) >= BACKLOG_MAX:
            self._is_over = True
            self.refusal = Refused("over_limit", f"the client is {BACKLOG_MAX} events behind")
            self._end_subscription()
            return
        self._events.append(_encode(event))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())

    async def drained(self) -> None:
        """Wait until the server has taken everything that was pushed."""
        if self._sender is not None:
            await asyncio.wait((self._sender,))

    def end(self) -> None:
        """Take no more; what a client that is too far behind has not got yet is dropped."""
        self._is_over = True
        if self.refusal is not None:
            self._events.clear()

    async def _send_all(self) -> None:
        while self._events:
            data = b"%b%b}" % (self._start, self._events[0])
            content: dict[str, Any] = {"text": data.decode()} if self._as_text else {"bytes": data}
            try:
                await self._send({"type": "websocket.send", **content})
            except OSError:
                # The client has gone: the door is about to hear of it.
                self._events.clear()
                return
            if self._events:
                self._events.popleft()
