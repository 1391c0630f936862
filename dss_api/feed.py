"""The events of one subscription on their way to one client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from dss_api.codec import EventEncoder
from dss_api.errors import Refused
from dss_api.json_fast_path import Send

#: Events that wait for a client that does not read; with more of them it loses the subscription.
BACKLOG_MAX = 10_000

_encode = msgspec.json.Encoder().encode


class WebSocketFeed:
    """See `operation.Feed`. It has a task only while there is something to send.

    Args:
        id: of the call.
        as_text: send text frames, as the client does.
        end_subscription: called once when the subscription cannot go on; `refusal` then says why.
    """

    def __init__(
        self, send: Send, id: int | str, as_text: bool, encoder: EventEncoder, end_subscription: Callable[[], Any]
    ) -> None:
        self._send = send
        self._start = b'{"id":%b,"event":' % _encode(id)
        self._as_text = as_text
        self._encode_event = encoder.encode
        self._end_subscription = end_subscription
        self._events: deque[bytes] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._is_over = False
        self.refusal: Refused | None = None

    @property
    def backlog(self) -> int:
        """Events that the server has not taken yet."""
        return len(self._events)

    def push(self, event: msgspec.Struct) -> None:
        """Send `event` after those before it. After the end it is dropped."""
        if self._is_over:
            return
        try:
            if len(self._events) >= BACKLOG_MAX:
                raise Refused("over_limit", f"the client is {BACKLOG_MAX} events behind")
            self._events.append(self._encode_event(event))
        except Refused as refusal:
            self._is_over = True
            self.refusal = refusal
            self._end_subscription()
            return
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())

    async def drained(self) -> None:
        """Wait until the server has taken everything that was pushed."""
        if self._sender is not None:
            await asyncio.wait((self._sender,))

    def end(self) -> None:
        """Accept no more events; after a refusal, drop those that were not sent."""
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
                # The client has disconnected; the entry point is about to notice.
                self._events.clear()
                return
            if self._events:
                self._events.popleft()
