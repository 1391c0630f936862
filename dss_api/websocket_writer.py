"""Sends the messages of a WebSocket, and limits what its client has not read yet, in bytes and in time.

The server's `send` waits while the client does not read (flow control of uvicorn, and of Daphne as `on_daphne` sets it up). Everything
that waits there is counted here. The connection of a client that exceeds a limit is closed with 1008, and aborted after a grace period.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from dss_api.asgi import Send
from dss_api.client_memory import Account
from dss_api.supervised import report_if_failed

log = structlog.get_logger("api")

POLICY_VIOLATION = 1008
#: Maximum number of bytes that wait for one client.
UNREAD_BYTES_MAX = 16 * 1024 * 1024
#: Counted for each message in addition to its length: the memory that it needs in the process.
OVERHEAD_BYTES = 1024
#: A client that reads nothing for this long is disconnected.
STALLED_S_MAX = 30.0
#: Time between the close frame and the abort of the connection.
CLOSE_GRACE_S = 2.0


class WebSocketWriter:
    """Sends the messages of one connection.

    Args:
        send: `send` of the ASGI server.
        abort: ends the connection without sending the rest.
        give_up: called once when the client exceeds a limit; nothing is sent after that.
        account: what the node keeps for the connection.
        unread_bytes_max: maximum number of bytes that wait for the client.
        send_now: sends a message if that is possible without waiting. It spares a message its task and its counting.
    """

    def __init__(
        self,
        send: Send,
        abort: Callable[[], None],
        give_up: Callable[[], None],
        account: Account,
        unread_bytes_max: int = UNREAD_BYTES_MAX,
        send_now: Callable[[bytes, bool], bool] = lambda data, is_text: False,
    ) -> None:
        self._send_now = send_now
        self._send = send
        self._abort = abort
        self._give_up = give_up
        self._account = account
        self._unread_bytes_max = unread_bytes_max
        self._loop = asyncio.get_running_loop()
        self._sent = 0
        self._sent_before = 0
        self._stall_timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        #: those that wait for room
        self._waiting: list[asyncio.Future[None]] = []
        self.unread_bytes = 0
        self.is_open = True

    async def write(self, data: bytes, as_text: bool) -> bool:
        """Send one message. False: the client has disconnected, or exceeded a limit.

        A long message waits until there is room for it: several long answers, or even one, could exceed the limit.
        """
        if self.write_now(data, as_text):
            return True
        if len(data) > self._unread_bytes_max // 4:
            self._account.take(len(data))
            try:
                await self.room(len(data))
            finally:
                self._account.take(-len(data))
        if not self.keep(len(data)):
            return False
        try:
            return await self.write_kept(data, as_text)
        finally:
            self.forget(len(data))

    def write_now(self, data: bytes, as_text: bool) -> bool:
        """Send a message if nothing waits for the client, and the server takes it now."""
        is_ready = self.is_open and not self.unread_bytes and self._account.has_room_now(len(data))
        if not is_ready or not self._send_now(data, as_text):
            return False
        self._sent += 1
        return True

    async def write_kept(self, data: bytes, as_text: bool) -> bool:
        """Send a message that `keep` has counted already."""
        try:
            content = {"text": data.decode()} if as_text else {"bytes": data}
            await self._send({"type": "websocket.send", **content})
        except OSError:
            return False
        self._sent += 1
        return self.is_open

    def has_room(self, length: int) -> bool:
        """Whether a message of this length may be sent now, if it could be sent later as well.

        It may fill half of the limit. A longer one waits until at most a quarter is in use. The rest is for the client's other answers.
        """
        unread_bytes, bytes_max = self.unread_bytes, self._unread_bytes_max
        return unread_bytes + length <= bytes_max // 2 or unread_bytes <= bytes_max // 4

    async def room(self, length: int) -> None:
        """Wait until there is room for a message of this length, or the connection ends."""
        while self.is_open and not self.has_room(length):
            future = self._loop.create_future()
            self._waiting.append(future)
            await future

    def _look_for_room(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def keep(self, length: int) -> bool:
        """Count a message of this length as unread. False: a limit is exceeded, and the connection ends."""
        if not self.is_open or not self._account.admits(length):
            return False
        if self.unread_bytes + length + OVERHEAD_BYTES > self._unread_bytes_max and not self.has_room(length):
            self._end(f"more than {self._unread_bytes_max} bytes wait for the client")
            return False
        self.unread_bytes += length + OVERHEAD_BYTES
        self._account.take(length + OVERHEAD_BYTES)
        if self._stall_timer is None:
            self._sent_before = self._sent
            self._stall_timer = self._loop.call_later(STALLED_S_MAX, self._look_for_progress)
        return True

    def forget(self, length: int) -> None:
        """Stop counting a message: it was sent, or will never be."""
        self.unread_bytes -= length + OVERHEAD_BYTES
        self._account.take(-length - OVERHEAD_BYTES)
        if self._waiting:
            self._look_for_room()

    def close(self) -> None:
        """The connection has ended."""
        self.is_open = False
        self._look_for_room()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def abandon(self, why: str) -> None:
        """End the connection without a close frame: the memory is needed now."""
        if self.is_open:
            log.warning("api.websocket_client_given_up", why=why)
        self.is_open = False
        self._look_for_room()
        self._abort()
        self._loop.call_soon(self._give_up)

    def _look_for_progress(self) -> None:
        self._stall_timer = None
        if not self.unread_bytes or not self.is_open:
            return
        if self._sent == self._sent_before:
            self._end(f"the client has read nothing for {STALLED_S_MAX:.0f} s")
            return
        self._sent_before = self._sent
        self._stall_timer = self._loop.call_later(STALLED_S_MAX, self._look_for_progress)

    def _end(self, why: str) -> None:
        log.warning("api.websocket_client_given_up", why=why)
        self.is_open = False
        self._look_for_room()
        self._closing = self._loop.create_task(self._close_and_abort())
        self._closing.add_done_callback(partial(report_if_failed, "websocket"))

    async def _close_and_abort(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self._send({"type": "websocket.close", "code": POLICY_VIOLATION})
                await asyncio.sleep(CLOSE_GRACE_S)
        except (TimeoutError, OSError):
            pass
        finally:
            self._abort()
            self._give_up()
