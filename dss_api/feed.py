"""The events of one subscription on their way to one client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from dss_api import attached
from dss_api.codec import EventEncoder
from dss_api.errors import Refused
from dss_api.liveness import Liveness
from dss_api.supervised import report_failure
from dss_api.turns import Turns
from dss_api.websocket_writer import WebSocketWriter

#: Maximum number of events that wait for a client. Above it, the subscription ends.
BACKLOG_MAX = 10_000

_encode = msgspec.json.Encoder().encode


class WebSocketFeed:
    """See `operation.Feed`. It has a task only while there is something to send.

    Args:
        liveness: signs of life of the client.
        id: id of the call.
        as_text: whether to send text frames, as the client does.
        end_subscription: called once when the subscription must end; `refusal` then has the reason.
        turns: lets the work of messages begin.
        hold: counts bytes that the work of messages keeps.
        attaches: whether the client accepts attached bytes (see attached.py).
    """

    def __init__(
        self,
        writer: WebSocketWriter,
        liveness: Liveness,
        id: int | str,
        as_text: bool,
        encoder: EventEncoder,
        end_subscription: Callable[[], Any],
        address: str = "",
        turns: Turns | None = None,
        hold: Callable[[int], None] = lambda count: None,
        attaches: bool = False,
    ) -> None:
        self.liveness = liveness
        self.address = address
        self.last_ping: int | None = None
        self._writer = writer
        self._start = b'{"id":%b,"event":' % _encode(id)
        self._as_text = as_text
        self._attaches = attaches
        self._encode_event = encoder.encode
        #: name of the subscription
        self.subscription = encoder.name
        self._end_subscription = end_subscription
        self._events: deque[bytes] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._is_over = False
        self.refusal: Refused | None = None
        self._turns = turns
        self._receive: Callable[[Any], None] | None = None
        #: see `operation.Feed`
        self.hold = hold
        #: counts a message as a call; the entry point sets it when it knows the caller
        self.count_call: Callable[[], None] = lambda: None

    def on_message(self, receive: Callable[[Any], None]) -> None:
        """See `operation.Feed`."""
        self._receive = receive

    def deliver(self, message: msgspec.Struct) -> bool:
        """The client has sent this to the subscription. False: it takes no messages, or has ended."""
        if self._receive is None or self._is_over:
            return False
        self._receive(message)
        return True

    async def turn(self) -> None:
        """See `operation.Feed`."""
        if self._turns is not None:
            await self._turns.enter(self.address)

    def has_room(self, length: int) -> bool:
        """See `operation.Feed`."""
        return self._writer.has_room(length)

    async def room(self, length: int) -> None:
        """See `operation.Feed`."""
        await self._writer.room(length)

    @property
    def backlog(self) -> int:
        """Events that the server has not taken yet."""
        return len(self._events)

    def push(self, event: msgspec.Struct) -> None:
        """Queue `event` for sending. After the end of the feed it is dropped."""
        if self._is_over:
            return
        try:
            if len(self._events) >= BACKLOG_MAX:
                raise Refused("over_limit", f"the client is {BACKLOG_MAX} events behind")
            encoded, parts = self._encode_event(event, self._attaches)
            data = b"%b%b}" % (self._start, encoded)
            if parts:
                data = attached.message(data, parts)
            if not self._events and self._writer.write_now(data, self._is_text(data)):
                return
            if not self._writer.keep(len(data)):
                raise Refused("over_limit", "too many bytes wait for the client")
            self._events.append(data)
        except Refused as refusal:
            self._is_over = True
            self.refusal = refusal
            self._end_subscription()
            return
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())

    def _is_text(self, data: bytes) -> bool:
        return self._as_text and not attached.is_attached(data)

    async def drained(self) -> None:
        """Wait until the server has taken everything that was pushed."""
        if self._sender is not None:
            await asyncio.wait((self._sender,))

    def end(self) -> None:
        """Accept no more events; after a refusal, drop those that were not sent."""
        self._is_over = True
        if self.refusal is not None:
            self._drop_unsent()

    async def _send_all(self) -> None:
        try:
            while self._events:
                data = self._events[0]
                if not await self._writer.write_kept(data, self._is_text(data)):
                    # The client has disconnected; the entry point will notice soon.
                    self._drop_unsent()
                    return
                if self._events:
                    self._events.popleft()
                    self._writer.forget(len(data))
        except Exception as error:
            report_failure("websocket", error)
            self._is_over = True
            self.refusal = Refused("internal", "an event could not be sent")
            self._end_subscription()

    def _drop_unsent(self) -> None:
        while self._events:
            self._writer.forget(len(self._events.popleft()))
