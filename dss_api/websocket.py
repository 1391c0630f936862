"""The entry point for programs that call often: a WebSocket with many concurrent calls.

A frame is `{"id": …, "op": "locks.acquire", "request": {…}}`; `x-op` in the API docs names each operation. The answer is the same
document as over HTTP, with the call's `id` and `status`. Answers are sent as soon as they are ready, in any order.

A subscription is called the same way. It sends `{"id": …, "event": {…}}` as things happen, and an answer when it ends.
`{"id": …, "op": "ping", "request": {"call": …, "ping": 17}}` numbers a moment of the client, which later events of this subscription
name. `{"id": …, "op": "cancel", "request": {"call": …}}` cancels a call or a subscription by its id. A subscription may take messages of
its own (`cache.near.fetch`), which name it in the same way and have no answer. When the connection closes, all its calls are cancelled,
as if each client had hung up.

A binary frame may have bytes attached (attached.py). Those of the node have them if the client's handshake accepts that type.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextvars import copy_context
from functools import partial
from time import perf_counter
from typing import Annotated

import msgspec
import structlog
from prometheus_client import Gauge

from dss_api import attached, tickets
from dss_api.answer import Answer
from dss_api.asgi import Receive, Scope, Send, address_of, connection_of
from dss_api.attached import Parts
from dss_api.caller import ANYONE, Caller, set_caller
from dss_api.client_memory import CALL_BYTES, SETTING
from dss_api.codec import INTERNAL, AnswerEncoder, EncodedAnswer, EventEncoder, RequestDecoder, encode_refusal
from dss_api.errors import Refused
from dss_api.feed import WebSocketFeed
from dss_api.guard import check_origin
from dss_api.host_check import HostCheck
from dss_api.in_progress import InProgress, cancel_once
from dss_api.json_fast_path import JsonFastPath
from dss_api.liveness import Line, Liveness, NoLine
from dss_api.operation import Message, Subscription
from dss_api.proxies import NO_PROXIES, TrustedProxies
from dss_api.quotas import TokenQuotas
from dss_api.routes import Route, require_right, require_state
from dss_api.supervised import Tasks, report_if_failed
from dss_api.websocket_writer import WebSocketWriter

log = structlog.get_logger("api")

PATH = "/ws"
#: Maximum number of calls in progress on one connection. Further calls are refused with `over_limit`.
CALLS_PER_CONNECTION_MAX = 1000
CANCEL = "cancel"
PING = "ping"

#: Close codes of RFC 6455, and our own (4000 and up) where HTTP would answer 401, 403, 404 and 429.
GOING_AWAY, BAD_FRAME, UNAUTHENTICATED, FORBIDDEN, NOT_FOUND, OVER_LIMIT = 1001, 1007, 4401, 4403, 4404, 4429
#: the connection was opened with a ticket, whose time is over
TICKET_ENDED = 4408
_ONLY_WATCHES = f"a connection that was opened with a ticket may only subscribe to {tickets.SUBSCRIPTION}"
_NO_QUOTAS = TokenQuotas()

SUBSCRIPTIONS = Gauge("dss_subscriptions", "Subscriptions on this node's WebSocket connections.", ["subscription"])


class Frame(msgspec.Struct, forbid_unknown_fields=True):
    """One call."""

    id: int | str
    op: str
    request: msgspec.Raw = msgspec.Raw(b"{}")
    #: the trace of the caller (W3C Trace Context); of calls only
    traceparent: str = ""


class Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """Cancel a call of this connection; it is answered `cancelled`."""

    call: int | str


class CancelAnswer(Answer, kw_only=True):
    #: false: no such call is in progress
    cancelled: bool


class Ping(msgspec.Struct, forbid_unknown_fields=True):
    """The events that a subscription sends from now on answer this ping; see `Feed.last_ping`."""

    call: int | str
    #: the client chooses it: a count, or the time of its own clock
    ping: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class PingAnswer(Answer, kw_only=True):
    #: false: no such subscription is in progress
    pinged: bool


_decode = msgspec.json.Decoder(Frame).decode
_decode_cancel = msgspec.json.Decoder(Cancel).decode
_decode_ping = msgspec.json.Decoder(Ping).decode
_encode = msgspec.json.Encoder().encode
_cancel_answers = AnswerEncoder(CANCEL, CancelAnswer)
_ping_answers = AnswerEncoder(PING, PingAnswer)


class _Subscribable:
    """One subscription with its codecs."""

    def __init__(self, subscription: Subscription) -> None:
        self.handle = subscription.handle
        self.needs = subscription.needs
        self.decoder = RequestDecoder(subscription)
        self.events = EventEncoder(subscription)
        self.answers = AnswerEncoder(subscription.name, subscription.answer)


class _Receivable:
    """One message with its decoder."""

    def __init__(self, message: Message, subscription: str) -> None:
        self.subscription = subscription
        self.decoder = RequestDecoder(message)


class WebSocketEntryPoint:
    """The ASGI application for WebSockets."""

    def __init__(
        self,
        json: JsonFastPath,
        is_host_allowed: HostCheck,
        in_progress: InProgress,
        subscriptions: Iterable[Subscription] = (),
        proxies: TrustedProxies = NO_PROXIES,
    ) -> None:
        self.json = json
        self._proxies = proxies
        self.is_host_allowed = is_host_allowed
        self.in_progress = in_progress
        subscriptions = tuple(subscriptions)
        self.subscriptions = {one.name: _Subscribable(one) for one in subscriptions}
        self.messages: dict[str, _Receivable] = {}
        for one in subscriptions:
            SUBSCRIPTIONS.labels(one.name)
            self.messages.update({message.name: _Receivable(message, one.name) for message in one.messages})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope = self._proxies.scope(scope)
        subprotocols = scope.get("subprotocols") or ()
        refused = self._refused(scope)
        holder = None
        if not refused or refused == UNAUTHENTICATED:
            try:
                holder = tickets.shared().take(subprotocols)
                refused = 0 if holder is not None else refused
            except Refused:
                refused = UNAUTHENTICATED
        if refused:
            await send({"type": "websocket.close", "code": refused})
            return
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        caller = holder or self.json.guard.authenticate(authorization)
        quotas = caller.quotas or _NO_QUOTAS
        try:
            quotas.connections.take(caller.name)
        except Refused:
            await send({"type": "websocket.close", "code": OVER_LIMIT})
            return
        try:
            accepts = {"subprotocol": tickets.PROTOCOL} if tickets.PROTOCOL in subprotocols else {}
            await send({"type": "websocket.accept", **accepts})
            attaches = attached.accepts(scope["headers"])
            line = connection_of(scope) or NoLine()
            connection = WebSocketConnection(self, line, send, authorization, address_of(scope), holder, attaches)
            await connection.serve(receive)
        finally:
            quotas.connections.give_back(caller.name)

    def _refused(self, scope: Scope) -> int:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        if scope["path"] != PATH:
            return NOT_FOUND
        try:
            if host and not self.is_host_allowed(host):
                return FORBIDDEN
            check_origin(headers.get(b"origin", b""), host)
            self.json.guard.authenticate(headers.get(b"authorization", b""), address_of(scope))
        except Refused as refusal:
            return {"unauthenticated": UNAUTHENTICATED, "over_limit": OVER_LIMIT}.get(refusal.code, FORBIDDEN)
        return 0


class WebSocketConnection:
    """One client's connection and its calls."""

    def __init__(
        self,
        entry_point: WebSocketEntryPoint,
        line: Line,
        send: Send,
        authorization: bytes = b"",
        address: str = "",
        holder: Caller | None = None,
        attaches: bool = False,
    ) -> None:
        #: the client accepts attached bytes
        self._attaches = attaches
        self._headers = ((b"accept", attached.MEDIA_TYPE),) if attaches else ()
        self._entry_point = entry_point
        #: who had the ticket with which it was opened
        self._holder = holder
        self._guard = entry_point.json.guard
        self._authorization = authorization
        self._json = entry_point.json
        self._in_progress = in_progress = entry_point.in_progress
        self._address = address
        self._account = in_progress.memory.open(self._drop)
        self._send = send
        self._line = line
        self._writer = WebSocketWriter(send, line.abort, self._give_up, self._account, send_now=line.send_now)
        self._liveness = Liveness(line)
        self._serving: asyncio.Task[None] | None = None
        self._calls: dict[int | str, asyncio.Task[None]] = {}
        #: of the subscriptions among them
        self._feeds: dict[int | str, WebSocketFeed] = {}
        #: calls that change tokens: they are answered although the connection's token may end by them
        self._changing_tokens: set[asyncio.Task[None]] = set()
        self._refusals = Tasks()
        self._is_open = True
        #: in which its calls end
        self._context = copy_context()

    async def serve(self, receive: Receive) -> None:
        """Serve until the connection closes. When this returns, cancelled calls have given back what they held."""
        self._in_progress.sockets.add(self._go_away)
        self._serving = asyncio.current_task()
        unwatch = self._guard.watch(self._tokens_changed)
        ending = None
        if self._holder is not None:
            ending = asyncio.get_running_loop().call_later(tickets.CONNECTION_S, self._end_ticket)
        try:
            while (message := await receive())["type"] == "websocket.receive":
                self._line.message_taken()
                text = message.get("text")
                data = message.get("bytes") or b"" if text is None else text.encode()
                is_text = text is not None or message.get("is_text", False)
                del text, message
                parts = None
                try:
                    document = data
                    if attached.is_attached(data) and not is_text:
                        document, parts = attached.split(data)
                    frame = _decode(document)
                except (msgspec.DecodeError, ValueError, RecursionError):
                    # Without an id there is no call to answer.
                    await self._send({"type": "websocket.close", "code": BAD_FRAME})
                    return
                await self._begin(frame, is_text, len(data) + CALL_BYTES, parts)
                del frame, data, document, parts
        except asyncio.CancelledError:
            # `_give_up` cancelled this task; when it ends, the connection is closed.
            if self._writer.is_open:
                raise
        finally:
            unwatch()
            if ending is not None:
                ending.cancel()
            self._is_open = False
            self._writer.close()
            self._account.close()
            self._in_progress.sockets.discard(self._go_away)
            for call in (calls := list(self._calls.values())):
                cancel_once(call)
            if calls:
                await asyncio.wait(calls)
            await self._refusals.stop()

    def _drop(self) -> None:
        """The clients' memory is exceeded, and this connection uses the most."""
        self._writer.abandon(f"the clients of this node use too much memory ({SETTING})")

    def _give_up(self) -> None:
        """The client does not read: end the connection."""
        self._is_open = False
        if self._serving is not None:
            self._serving.cancel()

    async def _go_away(self) -> None:
        self._is_open = False
        await self._send({"type": "websocket.close", "code": GOING_AWAY})

    def _tokens_changed(self) -> None:
        """Close the connection if its token is not valid any longer: its calls and subscriptions end."""
        if self._is_open and self._holder is None and not self._guard.is_valid(self._authorization):
            self._refusals.spawn("websocket", self._end_unauthenticated(UNAUTHENTICATED))

    def _end_ticket(self) -> None:
        if self._is_open:
            self._refusals.spawn("websocket", self._end_unauthenticated(TICKET_ENDED))

    async def _end_unauthenticated(self, code: int) -> None:
        if self._changing_tokens:
            await asyncio.wait(self._changing_tokens)
        if not self._is_open:
            return
        self._is_open = False
        for call in list(self._calls.values()):
            cancel_once(call)
        await self._send({"type": "websocket.close", "code": code})

    def _authenticate(self, route: Route) -> Caller:
        """Who makes a call.

        Raises:
            Refused: `unauthenticated`, `forbidden`.
        """
        if self._holder is not None:
            raise Refused("forbidden", _ONLY_WATCHES)
        return self._json.authenticate(route, self._authorization)

    async def _begin(self, frame: Frame, as_text: bool, held_bytes: int, parts: Parts | None = None) -> None:
        route = self._json.routes.by_name.get(frame.op)
        try:
            if parts is not None and route is None:
                raise Refused("invalid", "nothing can be attached to this")
            if frame.op in (CANCEL, PING):
                # A task that is cancelled before its first step would never answer, and one that has not begun has no feed.
                await asyncio.sleep(0)
                carry_out = self._cancel if frame.op == CANCEL else self._ping
                self._answer_now(frame.id, carry_out(bytes(frame.request)), as_text)
                return
            if (message := self._entry_point.messages.get(frame.op)) is not None:
                await self._deliver(message, bytes(frame.request))
                return
            if frame.id in self._calls:
                raise Refused("invalid", "a call with this `id` is in progress", field="id")
            if len(self._calls) >= CALLS_PER_CONNECTION_MAX:
                raise Refused("over_limit", f"{CALLS_PER_CONNECTION_MAX} calls are in progress on this connection")
            self._in_progress.admit(self._address)
        except Refused as refusal:
            self._answer_now(frame.id, encode_refusal(refusal), as_text)
            return
        subscribes = frame.op in self._entry_point.subscriptions
        work = self._subscribe(frame, as_text) if subscribes else self._call(frame, as_text, parts)
        # A name of its own for each task would be a string for each call.
        task = self._calls[frame.id] = asyncio.create_task(work, name="websocket_call")
        if route is not None and route.outlives_tokens:
            self._changing_tokens.add(task)
            task.add_done_callback(self._changing_tokens.discard)
        self._account.take(held_bytes)
        task.add_done_callback(partial(self._call_ended, frame.id, held_bytes), context=self._context)
        if subscribes:
            self._in_progress.subscriptions.add(task)
            task.add_done_callback(self._in_progress.subscriptions.discard)

    async def _deliver(self, message: _Receivable, data: bytes) -> None:
        request = message.decoder.body(data)
        if request.call in self._calls and request.call not in self._feeds:
            await asyncio.sleep(0)  # its task has not begun
        feed = self._feeds.get(request.call)
        if feed is None or feed.subscription != message.subscription or not feed.deliver(request):
            raise Refused("not_found", f"no {message.subscription} with this id is in progress")

    def _call_ended(self, id: int | str, held_bytes: int, task: asyncio.Task[None]) -> None:
        del self._calls[id]
        self._account.take(-held_bytes)
        self._in_progress.release(self._address)
        report_if_failed("websocket", task)

    def _answer_now(self, id: int | str, answer: EncodedAnswer, as_text: bool) -> None:
        """Answer without holding up the frames that follow, even if the client does not read."""
        self._refusals.spawn("websocket", self._reply(id, answer, as_text))

    def _cancel(self, request: bytes) -> EncodedAnswer:
        try:
            call = _decode_cancel(request).call
        except msgspec.DecodeError as error:
            raise Refused("invalid", f"`call` must be the id of a call: {error}", field="call") from None
        if (task := self._calls.get(call)) is not None:
            cancel_once(task)
        return _cancel_answers.encode(CancelAnswer(cancelled=task is not None))

    def _ping(self, request: bytes) -> EncodedAnswer:
        try:
            ping = _decode_ping(request)
        except msgspec.DecodeError as error:
            raise Refused("invalid", f"`call` must be the id of a subscription, and `ping` a number: {error}") from None
        if (feed := self._feeds.get(ping.call)) is not None:
            feed.last_ping = ping.ping
        return _ping_answers.encode(PingAnswer(pinged=feed is not None))

    async def _call(self, frame: Frame, as_text: bool, parts: Parts | None) -> None:
        started, id = perf_counter(), frame.id
        self._in_progress.calls += 1
        try:
            route = self._json.routes.by_name.get(frame.op)
            if route is None:
                raise Refused("not_found", f"there is no operation {frame.op}")
            await self._in_progress.turns.enter(self._address)
            caller = self._authenticate(route)
            request = route.decoder.body(bytes(frame.request), parts)
            headers = self._headers
            if frame.traceparent:
                headers = (*headers, (b"traceparent", frame.traceparent.encode()))
            del frame, parts  # it keeps the whole message, and the call may wait for long
            answer = await route.carry_out(self._json.find_node, request, caller, "websocket", self._address, headers)
            route.observe(answer.status, perf_counter() - started)
        except Refused as refusal:
            answer = encode_refusal(refusal)
        except asyncio.CancelledError:
            answer = self._cancelled()
        finally:
            self._in_progress.calls -= 1
        if not await self._reply(id, answer, as_text) and answer.undo is not None:
            await answer.undo()

    async def _subscribe(self, frame: Frame, as_text: bool) -> None:
        subscription = self._entry_point.subscriptions[frame.op]
        task = asyncio.current_task()
        assert task is not None
        feed = WebSocketFeed(
            self._writer,
            self._liveness,
            frame.id,
            as_text,
            subscription.events,
            task.cancel,
            self._address,
            self._in_progress.turns,
            self._account.take,
            self._attaches,
        )
        gauge = SUBSCRIPTIONS.labels(frame.op)
        gauge.inc()
        self._feeds[frame.id] = feed
        try:
            request = subscription.decoder.body(bytes(frame.request))
            if self._holder is not None and frame.op != tickets.SUBSCRIPTION:
                raise Refused("forbidden", _ONLY_WATCHES)
            caller = self._holder or self._guard.authenticate(self._authorization)
            if caller is not ANYONE:
                set_caller(caller)
                require_right(subscription.needs, caller, request)
            node = self._json.find_node()
            require_state(node)
            quotas = caller.quotas or _NO_QUOTAS
            feed.count_call = partial(self._count_call, caller)
            with quotas.subscriptions.one(caller.name), self._in_progress.subscriptions_of.one(self._address):
                answer = subscription.answers.encode(await subscription.handle(node, request, feed))
        except Refused as refusal:
            answer = encode_refusal(refusal)
        except asyncio.CancelledError:
            answer = encode_refusal(feed.refusal) if feed.refusal else self._cancelled()
        except Exception:
            log.exception("api.failed", operation=frame.op)
            answer = encode_refusal(Refused("internal", INTERNAL))
        finally:
            gauge.dec()
            del self._feeds[frame.id]
            feed.end()
        await feed.drained()
        await self._reply(frame.id, answer, as_text)

    def _count_call(self, caller: Caller) -> None:
        self._in_progress.count_call(self._address)
        if caller.quotas is not None:
            caller.quotas.rates.take(caller.name)

    def _cancelled(self) -> EncodedAnswer:
        """The answer to a call that was cancelled by its client, or because the node stops.

        Raises:
            CancelledError: the connection is closed, so there is no client to answer.
        """
        if not self._is_open:
            raise asyncio.CancelledError
        return encode_refusal(Refused("cancelled", "the call was cancelled"))

    async def _reply(self, id: int | str, answer: EncodedAnswer, as_text: bool) -> bool:
        """Send an answer. False: the client has disconnected."""
        if not self._is_open:
            return False
        # A problem document contains its status.
        status = b"" if answer.status >= 400 else b'"status":%d,' % answer.status
        data = b'{"id":%b,%b%b' % (_encode(id), status, answer.body[1:])
        if answer.parts:
            return await self._writer.write(attached.message(data, answer.parts), False)
        return await self._writer.write(data, as_text)
