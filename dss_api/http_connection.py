"""One HTTP/1.1 connection: parse, check limits, answer API calls in JSON, hand everything else to the web server.

An API call goes from the parsed bytes to its operation and is answered with one write. Pages, static files, metrics and WebSockets
are handed over with their whole request. Such an answer closes its connection, so that a proxy that pools
connections does not send its API calls through the slower server afterwards.

Limits come before work: the head, the token and the declared length are checked before a body is read, and a body is counted while it
arrives. Requests on one connection are served in the order in which they came, one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import httptools

from dss_api.caller import Caller
from dss_api.client_memory import CALL_BYTES, CONNECTION_BYTES, SETTING, Account, ClientMemory
from dss_api.codec import EncodedAnswer
from dss_api.errors import Refused
from dss_api.guard import TOKEN_ENDED
from dss_api.http_answers import CONTINUE, encode_answer
from dss_api.http_limits import HttpLimits
from dss_api.http_request import HttpRequest
from dss_api.supervised import report_failure
from dss_api.turns import InputTurns, Turns

#: Maximum number of pipelined requests on one connection. Above it, reading pauses.
PIPELINED_MAX = 64
#: A client that has closed its sending side may still read. If its call takes longer than this, the call is cancelled and answered.
HALF_CLOSED_GRACE_S = 0.05
#: Pause between the two parts of an answer to such a client. If the client has gone, sending the second part fails.
HALF_CLOSED_PROBE_S = 0.02
#: How much of a body is read and dropped after a refusal, so that the client can read the answer.
DISCARDED_BYTES_MAX = 64 * 1024 * 1024


class Listener(Protocol):
    """The part of its listener that a connection uses."""

    loop: asyncio.AbstractEventLoop
    limits: HttpLimits
    turns: Turns
    input_turns: InputTurns
    memory: ClientMemory
    find_node: Callable[[], Any]
    #: lines of headers for answers over HTTPS
    https_headers: bytes

    @property
    def is_stopping(self) -> bool:
        """No further connections are accepted: connections close after the call in progress."""

    def encode_refusal(self, refusal: Refused) -> EncodedAnswer:
        """The answer to a request that is refused, in the form that the port's clients know."""

    def opened(self, connection: HttpConnection) -> Refused | None:
        """Count a connection, or return the reason why it is refused."""

    def closed(self, connection: HttpConnection) -> None:
        """Count a connection as closed."""

    def check_head(self, request: HttpRequest) -> EncodedAnswer | None:
        """Find out what answers the request, and check its headers. Returns a refusal, or None."""

    def caller_of(self, request: HttpRequest) -> Caller:
        """Who makes the call now. Raises `Refused` if its token has ended since its head was checked."""

    def call_begins(self, address: str) -> None:
        """Count a call. Raises `Refused` when its client has too many in progress."""

    def call_ended(self, address: str) -> None:
        """Count a call as answered or cancelled."""

    def hand_over(self, connection: HttpConnection, transport: asyncio.Transport, data: bytes, is_websocket: bool) -> None:
        """Let the web server serve this connection from now on; `data` is the first input."""


class HttpConnection(asyncio.Protocol):
    """See the module. The listener makes one for each connection that it accepts."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._reading: HttpRequest | None = None
        self._queue: deque[HttpRequest] = deque()
        self._task: asyncio.Task[None] | None = None
        #: the request of `_task`
        self._serving: HttpRequest | None = None
        #: the token of `_task` has ended
        self._is_revoked = False
        self._head_bytes = 0
        self._messages_read = 0
        self._discarded_bytes = 0
        #: no further request is read: the connection is handed over, refused or closing
        self._is_over = False
        #: a request was refused before all of it had arrived: the client may still be sending
        self._lingers = False
        self._has_hung_up = False
        self._is_half_closed = False
        self._is_reading_paused = False
        self._can_write = True
        #: input after an upgrade request
        self._rest = b""
        #: bytes of answers in the account
        self._unread_bytes = 0
        #: lines of headers of every answer on this connection
        self._more_headers = b""
        self.account: Account = listener.memory.open(self._drop_soon)
        #: ends the connection after it was handed over
        self.abort_handed_over: Callable[[], None] | None = None
        #: loop time at which the listener ends a connection that was handed over
        self.handed_over_until = 0.0
        self.address = ""
        #: loop time at which the listener ends this connection; 0: never
        self.deadline = 0.0

    # ------------------------------------------------------------- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else ""
        if transport.get_extra_info("sslcontext") is not None:
            self._more_headers = self._listener.https_headers
        self.account.take(CONNECTION_BYTES)
        refusal = self._listener.opened(self)
        if refusal is None:
            self._set_deadline(self._limits.idle_timeout_s)
            return
        self._is_over = True
        self._transport.write(encode_answer(self._listener.encode_refusal(refusal), False, False, False))
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.abort_handed_over is None:
            self.account.close()
        self._is_over = self._has_hung_up = True
        self.deadline = 0.0
        # The parser and this object refer to each other. Garbage collection would come late for a large body.
        self._reading = self._serving = None
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()
        self._listener.input_turns.forget(self)
        self._listener.closed(self)

    def eof_received(self) -> bool:
        """The client sends nothing more. It may still read, so its requests are answered."""
        self._is_half_closed = True
        if self._task is None and not self._queue:
            return False
        self._is_over = True
        self._listener.loop.call_later(HALF_CLOSED_GRACE_S, self._cancel_if_slow, self._task)
        return True

    def pause_writing(self) -> None:
        self._can_write = False
        self._set_deadline(self._limits.write_timeout_s)

    def resume_writing(self) -> None:
        self._can_write = True
        self._count_unread()
        self._set_deadline(self._limits.idle_timeout_s)
        self._serve_next()

    def data_received(self, data: bytes) -> None:
        self._listener.input_turns.deliver(self, data)

    def take_input(self, data: bytes) -> None:
        """Parse this input."""
        if self._is_over:
            self._discard(data)
            return
        if self._is_in_head:
            if not self._head_bytes:
                self._set_deadline(self._limits.head_timeout_s)
            self._head_bytes += len(data)
        messages_read = self._messages_read
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if not self._is_over:
                self._refuse(Refused("invalid", f"this is not HTTP/1.1: {error}"))
            return
        if self._messages_read != messages_read:
            # The rest of this chunk belongs to a later request, whose head is counted from the next chunk on.
            self._head_bytes = 0
        elif self._is_in_head and self._head_bytes > self._limits.head_bytes_max:
            self._refuse(self._limits.head_too_large)
            return
        self._serve_next()

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                self._rest = data[upgrade.args[0] :]
                if self._reading is None:
                    return
                # This upgrade is ignored. The parser has not read the body, because it took that for another protocol.
                data = self._reading.head_without_upgrade() + self._rest
                self._parser = httptools.HttpRequestParser(self)

    @property
    def _is_in_head(self) -> bool:
        return self._reading is None or not self._reading.has_head

    # ---------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        self._reading = HttpRequest()

    def on_url(self, url: bytes) -> None:
        if self._reading is not None:
            self._reading.target += url
            self._reading.head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers behind a chunked body are not looked at.
        if self._reading is not None and not self._reading.has_head:
            self._reading.headers.append((name.lower(), value))
            self._reading.head_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        request, parser = self._reading, self._parser
        if request is None:
            return
        request.complete_head(parser.get_method(), parser.get_http_version(), parser.should_keep_alive(), parser.should_upgrade())
        if self._is_over or request.ignores_upgrade:
            return
        self._set_deadline(self._limits.body_timeout_s)
        request.held_bytes = request.head_bytes + CALL_BYTES
        self.account.take(request.held_bytes)
        if request.head_bytes > self._limits.head_bytes_max:
            self._end_with(request, self._listener.encode_refusal(self._limits.head_too_large))
            return
        request.address = self.address
        refusal = self._listener.check_head(request)
        if refusal is not None:
            self._end_with(request, refusal)
        elif request.expects_continue and self._task is None and not self._queue:
            self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        request = self._reading
        if request is None or self._is_over:
            return
        request.body_bytes += len(body)
        if request.body_bytes > self._limits.body_bytes_max:
            self._end_with(request, self._listener.encode_refusal(self._limits.too_large))
        else:
            request.add_body(body)
            request.held_bytes += len(body)
            self.account.take(len(body))

    def on_message_complete(self) -> None:
        if self._reading is not None and self._reading.ignores_upgrade:
            return
        request, self._reading = self._reading, None
        self._messages_read += 1
        if self._is_over:
            self._lingers = False
            return
        if request is None:
            return
        self._queue.append(request)
        self._is_over = request.is_upgrade or not request.keep_alive
        if len(self._queue) >= PIPELINED_MAX and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def pause_input(self) -> None:
        """Stop reading until `resume_input`: other connections take their turn."""
        self._transport.pause_reading()

    def resume_input(self) -> None:
        """Read again, unless too many requests wait."""
        if not self._is_reading_paused and self.abort_handed_over is None and not self._transport.is_closing():
            self._transport.resume_reading()

    # --------------------------------------------------------------- serving

    def _end_with(self, request: HttpRequest, answer: EncodedAnswer) -> None:
        """Answer `request` after those before it, and do not parse further input."""
        request.answer, request.keep_alive, request.body = answer, False, b""
        self._is_over = self._lingers = True
        self._queue.append(request)

    def _refuse(self, refusal: Refused) -> None:
        self._end_with(self._reading or HttpRequest(), self._listener.encode_refusal(refusal))
        self._serve_next()

    def _serve_next(self) -> None:
        """Serve queued requests in order, until one has to wait."""
        while self._queue and self._task is None and self._can_write and not self._transport.is_closing():
            request = self._queue.popleft()
            if request.answer is not None:
                self._send(request, request.answer)
            elif request.route is None:
                self._is_over = True
                self._set_deadline(self._limits.write_timeout_s)
                data = request.replayed() + self._rest if request.is_upgrade else request.replayed()
                self._listener.hand_over(self, self._transport, data, request.is_upgrade)
                return
            else:
                self._begin_call(request)
        if self._is_reading_paused and not self._queue and not self._transport.is_closing():
            self._is_reading_paused = False
            self._transport.resume_reading()

    def _begin_call(self, request: HttpRequest) -> None:
        assert request.route is not None
        try:
            decoded = request.decode()
            caller = self._listener.caller_of(request)
            self._listener.call_begins(request.address)
        except Refused as refusal:
            answer = self._listener.encode_refusal(refusal)
            request.route.observe(answer.status, perf_counter() - request.started)
            self._send(request, answer)
            return
        self.deadline = 0.0
        self._serving, self._is_revoked = request, False
        self._task = self._listener.loop.create_task(self._call(request, decoded, caller))

    async def _call(self, request: HttpRequest, decoded: Any, caller: Caller) -> None:
        route = request.route
        assert route is not None
        try:
            await self._listener.turns.enter(request.address)
            answer = await route.carry_out(self._listener.find_node, decoded, caller, "http", request.address, request.headers)
        except asyncio.CancelledError:
            if self._has_hung_up:
                route.observe(499, perf_counter() - request.started)
                return
            if self._is_revoked:
                answer = self._listener.encode_refusal(Refused("unauthenticated", TOKEN_ENDED))
            elif self._is_half_closed:
                answer = self._listener.encode_refusal(
                    Refused("cancelled", "the client closed its side of the connection while the call waited")
                )
            else:
                raise
        finally:
            self._listener.call_ended(request.address)
        try:
            if answer.undo is not None and await self._is_gone(request, answer):
                route.observe(499, perf_counter() - request.started)
                await answer.undo()
                return
            route.observe(answer.status, perf_counter() - request.started)
            if (not self._is_half_closed or answer.undo is None) and not self._send(request, answer) and answer.undo is not None:
                await answer.undo()
            self._task = self._serving = None
            self._serve_next()
        except Exception as error:
            # The connection would wait for this call without end.
            report_failure("http_call", error)
            self._transport.abort()

    def _encoded(self, request: HttpRequest, answer: EncodedAnswer, keeps_alive: bool) -> bytes:
        more = self._more_headers or request.more_headers
        return encode_answer(answer, request.method == b"HEAD", keeps_alive, request.is_http_1_0, more)

    async def _is_gone(self, request: HttpRequest, answer: EncodedAnswer) -> bool:
        """Whether the client has hung up. If it has only closed its sending side, this sends the answer to find out."""
        await self._pause(0)
        if self._is_half_closed and not self._has_hung_up:
            data = self._encoded(request, answer, False)
            for part in (data[:1], data[1:]):
                self._transport.write(part)
                await self._pause(HALF_CLOSED_PROBE_S)
            self._transport.close()
        return self._has_hung_up

    @staticmethod
    async def _pause(seconds: float) -> None:
        """Let the loop deliver the connection's events. The loss of the connection cancels this task."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(seconds)

    def tokens_changed(self) -> None:
        """End the call in progress if its token is not valid any longer."""
        request = self._serving
        if self._task is None or self._is_revoked or request is None or request.route is None or request.route.outlives_tokens:
            return
        try:
            self._listener.caller_of(request)
        except Refused:
            self._is_revoked = True
            self._task.cancel()

    def _cancel_if_slow(self, task: asyncio.Task[None] | None) -> None:
        if task is not None and task is self._task:
            task.cancel()

    def _send(self, request: HttpRequest, answer: EncodedAnswer) -> bool:
        """Send an answer. False: there is no memory for it, and the connection ends."""
        keeps = request.keep_alive and not self._is_half_closed and not self._listener.is_stopping
        data = self._encoded(request, answer, keeps)
        if not self.account.admits(len(data)):
            return False
        self._transport.write(data)
        self.account.take(-request.held_bytes)
        request.held_bytes = 0
        self._count_unread()
        self._set_deadline(self._limits.idle_timeout_s)
        if keeps:
            return True
        self._is_over = True
        self._queue.clear()
        if self._lingers and not self._is_half_closed:
            # Closing a connection with unread input resets it, and the client might not be able to read the answer.
            self._transport.write_eof()
            self._set_deadline(self._limits.linger_timeout_s)
        else:
            self._transport.close()
        return True

    # ---------------------------------------------------------------- limits

    def _discard(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._discarded_bytes > DISCARDED_BYTES_MAX:
            self._transport.abort()

    def _count_unread(self) -> None:
        unread = self._transport.get_write_buffer_size()
        if unread != self._unread_bytes:
            self.account.take(unread - self._unread_bytes)
            self._unread_bytes = unread

    def _drop_soon(self) -> None:
        """The clients' memory is exceeded, and this connection uses the most: forget its requests, and end it in the next turn."""
        arrives = self._task is None and not self._queue and not self._is_over and self._reading is not None
        self._is_over = True
        self._queue.clear()
        if self._reading is not None:
            self._reading.body = b""
        self._listener.loop.call_soon(self._drop, arrives and self._can_write)

    def _drop(self, arrives: bool) -> None:
        """End the connection; a request that was still arriving gets an answer."""
        if self.abort_handed_over is not None:
            self.abort_handed_over()
        elif arrives and not self._transport.is_closing():
            self._refuse(Refused("overloaded", f"the clients of this node use too much memory ({SETTING})"))
        else:
            self._transport.abort()

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = self._listener.loop.time() + seconds

    def time_out(self) -> None:
        """The deadline has passed: refuse a request that has not fully arrived, and end the connection."""
        self.deadline = 0.0
        if not self._can_write:
            self._transport.abort()
        elif self._is_over or (self._reading is None and not self._head_bytes):
            self._transport.close()
        else:
            self._refuse(Refused("request_timeout", "the request did not arrive in time"))

    def close_when_idle(self) -> None:
        """The node stops: close now, or after the call in progress."""
        if self._task is None and not self._queue:
            self._transport.close()

    def close(self) -> None:
        """End the connection after all output has been sent."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection immediately, without sending the remaining output."""
        self._transport.abort()
