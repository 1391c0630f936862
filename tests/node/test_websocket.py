"""Many calls on one WebSocket: the answers are those of HTTP, sent as soon as they are ready."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from structlog.testing import capture_logs

from dss_api import feed as feeds
from dss_api import tickets, websocket
from dss_api.answer import Answer
from dss_api.asgi import state_of
from dss_api.caller import Caller
from dss_api.errors import Refused
from dss_api.in_progress import InProgress
from dss_api.liveness import NoLine
from dss_api.operation import Feed, Message, Subscription
from dss_api.rights import ANY_TOKEN, EVERYTHING, READ
from dss_api.websocket import WebSocketEntryPoint

CLIENT = ("192.0.2.1", 50_000)


class Count(msgspec.Struct, forbid_unknown_fields=True):
    """Count to `to`, then wait or end."""

    to: int
    then: str = "wait"


class Counted(msgspec.Struct):
    n: int


class CountAnswer(Answer, kw_only=True):
    counted: int


async def count(node: Any, request: Count, feed: Feed) -> CountAnswer:
    try:
        for n in range(request.to):
            feed.push(Counted(n))
        if request.then == "refuse":
            raise Refused("session_lost", "gone")
        if request.then == "wait":
            await asyncio.get_running_loop().create_future()
        return CountAnswer(counted=request.to)
    finally:
        # Giving back takes several turns of the loop; a second cancellation must not interrupt it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        node.cancelled.append("count")


class Add(msgspec.Struct, forbid_unknown_fields=True):
    """Add to the sum of the subscription `call`."""

    call: int | str
    n: int = 1


async def add_up(node: Any, request: Count, feed: Feed) -> Answer:
    """Send the sum after each message."""
    total = request.to

    def receive(message: Add) -> None:
        nonlocal total
        feed.count_call()
        total += message.n
        feed.push(Counted(total))

    feed.on_message(receive)
    await feed.turn()
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


SUM = Subscription("demo.sum", Count, add_up, Counted, ANY_TOKEN, "Sum", messages=(Message("demo.sum.add", Add, "Add"),))

COUNT = Subscription("demo.count", Count, count, Counted, ANY_TOKEN, "Count", answer=CountAnswer)


class Peer(NoLine):
    """The client's side of a connection."""

    def __init__(
        self,
        entry_points: Any,
        path: str = "/ws",
        subscription: Subscription = COUNT,
        subprotocols: tuple[str, ...] = (),
        **headers: str,
    ) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        given = [(name.lower().encode(), value.encode()) for name, value in {"Host": "localhost", **headers}.items()]
        scope = {"type": "websocket", "path": path, "headers": given, "query_string": b"", "client": CLIENT}
        scope["subprotocols"] = subprotocols
        self.inbox.put_nowait({"type": "websocket.connect"})
        http = entry_points.http
        #: whether the connection was ended without a close frame
        self.is_aborted = False
        scope["state"] = state_of(self)
        application = WebSocketEntryPoint(
            entry_points.json_fast_path, entry_points.is_host_allowed, http.in_progress, [subscription]
        )
        self.task = asyncio.create_task(application(scope, self.inbox.get, self.outbox.put))

    def abort(self) -> None:
        self.is_aborted = True

    def say(self, text: str | bytes) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text" if isinstance(text, str) else "bytes": text})

    def call(self, id: Any, op: str, **request: Any) -> None:
        self.say(json.dumps({"id": id, "op": op, "request": request}))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            return await self.outbox.get()

    async def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((await self.hear())["text"])
        return answer

    async def leave(self) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await self.task


async def accepted(entry_points: Any, **options: Any) -> Peer:
    peer = Peer(entry_points, **options)
    assert await peer.hear() == {"type": "websocket.accept"}
    return peer


def test_answers_are_the_same_as_over_http(entry_points: Any) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.call(1, "demo.put", key="a", value={"x": 1})
        peer.call("two", "demo.get", key="")
        peer.call(3, "demo.nothing")
        peer.say(b'{"id": 4, "op": "demo.get", "request": {"key": "a"}}')
        answers = {}
        for _ in range(4):
            message = await peer.hear()
            answer = json.loads(message.get("text") or message["bytes"])
            answers[answer.pop("id")] = answer
        assert answers[1] == {"status": 200, "ok": True, "key": "a", "value": {"x": 1}, "ttl_ms": 100, "force": False, "index": 7}
        assert (answers["two"]["status"], answers["two"]["code"], answers["two"]["field"]) == (400, "invalid", "key")
        assert (answers[3]["status"], answers[3]["code"]) == (404, "not_found")
        assert answers[4]["ok"] is True
        await peer.leave()

    entry_points.run(scene())


def test_a_quick_call_is_answered_before_a_slow_one(entry_points: Any, fake_node: Any) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.call(1, "demo.wait", wait_ms=20_000)
        peer.call(2, "demo.get", key="a")
        assert (await peer.answer())["id"] == 2
        assert entry_points.http.in_progress.calls == 1
        await peer.leave()

    entry_points.run(scene())
    entry_points.run(asyncio.sleep(0))
    assert fake_node.cancelled == ["wait"], "closing the connection cancels its calls"
    assert entry_points.http.in_progress.calls == 0


def test_calls_have_a_limit(entry_points: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CALLS_PER_CONNECTION_MAX", 2)

    async def scene() -> None:
        peer = await accepted(entry_points)
        for number in range(3):
            peer.call(number, "demo.wait", wait_ms=20_000)
        answer = await peer.answer()
        assert (answer["id"], answer["code"]) == (2, "over_limit")
        await peer.leave()

    entry_points.run(scene())


def test_calls_and_subscriptions_on_all_connections_of_an_address_have_a_limit(make_entry_points: Any) -> None:
    entry_points = make_entry_points(calls_per_address_max=3)

    async def scene() -> None:
        first, second = await accepted(entry_points), await accepted(entry_points)
        first.call(1, "demo.wait", wait_ms=20_000)
        first.call(2, "demo.count", to=0)
        second.call(3, "demo.wait", wait_ms=20_000)
        second.call(4, "demo.put", key="a", value=1)
        answer = await second.answer()
        assert (answer["id"], answer["code"]) == (4, "over_limit")
        assert "DSS_CALLS_PER_ADDRESS_MAX" in answer["detail"]
        second.call(5, "cancel", call=3)
        assert {(await second.answer())["id"] for _ in range(2)} == {3, 5}
        second.call(6, "demo.put", key="a", value=1)
        assert (await second.answer())["status"] == 200
        await first.leave()
        for number in range(7, 10):
            second.call(number, "demo.wait", wait_ms=20_000)
        second.call(10, "demo.wait", wait_ms=20_000)
        assert (await second.answer())["id"] == 10, "the calls of a closed connection no longer count"
        await second.leave()

    entry_points.run(scene())
    entry_points.http.in_progress.admit(CLIENT[0])


def test_the_account_of_a_connection_counts_calls_and_unread_messages(entry_points: Any) -> None:
    memory = entry_points.http.in_progress.memory

    async def scene() -> None:
        peer = await accepted(entry_points)
        rest = memory.bytes
        peer.call(1, "demo.wait", wait_ms=20_000)
        peer.say('{"id": 2, "op": "demo.wait", "request": {"wait_ms": 20000}' + " " * 50_000 + "}")
        peer.call(3, "demo.put", key="a", value=1)
        await peer.answer()
        assert memory.bytes > rest + 50_000
        for number in (1, 2):
            peer.call(number + 10, "cancel", call=number)
        assert {(await peer.answer())["id"] for _ in range(4)} == {1, 2, 11, 12}
        await asyncio.sleep(0)
        assert memory.bytes == rest
        await peer.leave()
        assert memory.bytes == 0

    entry_points.run(scene())


def test_the_client_that_uses_the_most_memory_is_disconnected(entry_points: Any) -> None:
    memory = entry_points.http.in_progress.memory

    async def scene() -> None:
        small, large = await accepted(entry_points), await accepted(entry_points)
        small.call(1, "demo.wait", wait_ms=20_000)
        large.say(b'{"id": 2, "op": "demo.wait", "request": {"wait_ms": 20000}' + b" " * 50_000 + b"}")
        small.call(3, "demo.put", key="a", value=1)
        assert (await small.answer())["id"] == 3
        memory.bytes_max = memory.bytes
        small.call(4, "demo.put", key="a", value=1)
        assert (await small.answer())["id"] == 4
        await asyncio.wait([large.task], timeout=60)
        assert large.task.done()
        assert (small.is_aborted, large.is_aborted) == (False, True)
        await small.leave()
        assert memory.bytes == 0

    entry_points.run(scene())


def test_a_page_counts_as_a_call_of_its_address(make_entry_points: Any) -> None:
    entry_points = make_entry_points(calls_per_address_max=1)
    in_progress = entry_points.http.in_progress
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "scheme": "http",
        "headers": [],
        "client": CLIENT,
        "state": state_of(Mock()),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    in_progress.admit(CLIENT[0])
    entry_points.run(entry_points.http(scope, receive, send))
    in_progress.release(CLIENT[0])
    entry_points.run(entry_points.http(scope, receive, send))
    assert [message["status"] for message in sent if "status" in message] == [429, 200]


def test_a_subscription_pushes_until_it_ends(entry_points: Any) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.call(1, "demo.count", to=3, then="end")
        assert [await peer.answer() for _ in range(3)] == [{"id": 1, "event": {"n": n}} for n in range(3)]
        assert await peer.answer() == {"id": 1, "status": 200, "ok": True, "counted": 3}
        peer.call(1, "demo.count", to=1, then="refuse")
        assert (await peer.answer())["event"] == {"n": 0}
        assert (await peer.answer())["code"] == "session_lost"
        peer.call(1, "demo.count", to="many")
        answer = await peer.answer()
        assert (answer["code"], answer["field"]) == ("invalid", "to")
        await peer.leave()

    entry_points.run(scene())


def test_a_client_cancels_by_the_id_of_its_call(entry_points: Any, fake_node: Any) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.call("s", "demo.count", to=1)
        assert (await peer.answer())["event"] == {"n": 0}
        peer.call("s", "demo.get", key="a")
        answer = await peer.answer()
        assert (answer["code"], answer["field"]) == ("invalid", "id"), "ids of calls in progress are unique"
        peer.call(1, "cancel", call="s")
        peer.call(2, "cancel", call="s")
        answers = {answer["id"]: answer for answer in [await peer.answer() for _ in range(3)]}
        assert answers[1]["cancelled"]
        assert answers[2]["cancelled"]
        assert (answers["s"]["status"], answers["s"]["code"]) == (499, "cancelled")
        assert fake_node.cancelled == ["count"]
        peer.call(3, "demo.wait", wait_ms=20_000)
        peer.call(4, "cancel", call=3)
        codes = {answer["id"]: answer.get("code") for answer in [await peer.answer() for _ in range(2)]}
        assert codes == {3: "cancelled", 4: None}
        peer.call(5, "cancel", call=3)
        assert not (await peer.answer())["cancelled"]
        peer.call(6, "cancel")
        assert (await peer.answer())["code"] == "invalid"
        await peer.leave()

    entry_points.run(scene())


def test_a_client_pings_a_subscription(entry_points: Any) -> None:
    """The entry point keeps the last number. What events say about it is up to the subscription."""

    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.call("s", "demo.count", to=1)
        peer.call(1, "ping", call="s", ping=17)
        answers = {answer["id"]: answer for answer in [await peer.answer() for _ in range(2)]}
        assert (answers["s"]["event"], answers[1]["status"], answers[1]["pinged"]) == ({"n": 0}, 200, True)
        peer.call(2, "ping", call="nothing", ping=18)
        assert not (await peer.answer())["pinged"]
        for wrong in (
            {"call": "s"},
            {"ping": 1},
            {"call": "s", "ping": -1},
            {"call": "s", "ping": 2**53},
            {"call": "s", "ping": "1"},
        ):
            peer.call(3, "ping", **wrong)
            assert (await peer.answer())["code"] == "invalid"
        await peer.leave()

    entry_points.run(scene())


def test_cancelled_subscriptions_give_back_what_they_hold(entry_points: Any, fake_node: Any) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.call(1, "demo.count", to=0)
        peer.call(2, "demo.count", to=0)
        peer.call(3, "cancel", call=1)
        assert (await peer.answer())["id"] == 3
        await peer.leave()
        assert fake_node.cancelled == ["count", "count"], "cancelled twice, and the cleanup was not interrupted"
        peer = await accepted(entry_points)
        peer.call(1, "demo.count", to=1)
        await peer.answer()
        assert len(entry_points.http.in_progress.subscriptions) == 1
        assert entry_points.http.in_progress.calls == 0, "a stop waits for calls, not for subscriptions"
        await entry_points.http.in_progress.end_subscriptions(5)
        assert len(fake_node.cancelled) == 3
        assert (await peer.answer())["code"] == "cancelled"
        await peer.leave()

    entry_points.run(scene())


def test_a_client_that_does_not_read_loses_the_subscription(entry_points: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BACKLOG_MAX", 10)

    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.call(1, "demo.count", to=11)
        answers = [await peer.answer()]
        while "event" in answers[-1]:
            answers.append(await peer.answer())
        assert answers[-1]["code"] == "over_limit"
        await peer.leave()

    entry_points.run(scene())


@pytest.mark.parametrize("frame", ["{", "[]", '{"op": "demo.get"}', '{"id": 1, "op": "demo.get", "x": 1}', b"\xff"])
def test_a_bad_frame_closes_the_connection(entry_points: Any, frame: str | bytes) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points)
        peer.say(frame)
        assert await peer.hear() == {"type": "websocket.close", "code": websocket.BAD_FRAME}
        await peer.task

    entry_points.run(scene())


def test_refused_connections(make_entry_points: Any) -> None:
    entry_points = make_entry_points(token="s3cret")
    right = "Bearer s3cret"

    async def scene() -> None:
        for code, path, headers in (
            (websocket.UNAUTHENTICATED, "/ws", {}),
            (websocket.UNAUTHENTICATED, "/ws", {"Authorization": "Bearer wrong"}),
            (websocket.FORBIDDEN, "/ws", {"Authorization": right, "Origin": "http://evil.example"}),
            (websocket.FORBIDDEN, "/ws", {"Authorization": right, "Host": "evil.example"}),
            (websocket.NOT_FOUND, "/other", {"Authorization": right}),
        ):
            assert await Peer(entry_points, path, **headers).hear() == {"type": "websocket.close", "code": code}
        peer = await accepted(entry_points, Authorization=right, Origin="http://localhost")
        await peer.leave()

    entry_points.run(scene())


@pytest.mark.parametrize("token", ["", "secret"])
def test_a_connection_of_a_ticket_only_watches_the_cluster(make_entry_points: Any, token: str) -> None:
    """It makes no call, also none that any token may make, and no call that needs no token."""
    entry_points = make_entry_points(token)
    watch = replace(COUNT, name="cluster.watch", needs=READ)

    async def scene() -> None:
        for subscription, code in ((COUNT, "forbidden"), (watch, None)):
            ticket = tickets.PREFIX + tickets.shared().give(Caller("user alice", EVERYTHING))
            peer = Peer(entry_points, subscription=subscription, subprotocols=("dss", ticket))
            assert await peer.hear() == {"type": "websocket.accept", "subprotocol": "dss"}
            peer.call(1, subscription.name, to=1, then="end")
            answer = await peer.answer()
            assert answer.get("code") == code
            if code is None:
                assert answer["event"] == {"n": 0}
                assert (await peer.answer())["counted"] == 1
            for op, request in (("demo.get", {"key": "a"}), ("demo.put", {"key": "a", "value": 1}), ("demo.open", {})):
                peer.call(2, op, **request)
                assert (await peer.answer())["code"] == "forbidden", op
            peer.call(3, "cancel", call=1)
            assert (await peer.answer())["cancelled"] is False
            await peer.leave()

    entry_points.run(scene())


def test_an_event_that_differs_from_its_declaration_ends_the_subscription(entry_points: Any) -> None:
    class Other(msgspec.Struct):
        n: int
        colour: str

    async def count(node: Any, request: Count, feed: Feed) -> Any:
        feed.push(Counted(1))
        feed.push(Other(2, "red"))
        feed.push(Counted(3))
        await asyncio.get_running_loop().create_future()

    async def scene() -> None:
        peer = await accepted(entry_points, subscription=Subscription("demo.count", Count, count, Counted, ANY_TOKEN, "Count"))
        peer.call(1, "demo.count", to=1)
        answers = [await peer.answer()]
        while "event" in answers[-1]:
            answers.append(await peer.answer())
        assert answers[-1]["code"] == "internal"
        assert all(answer["event"] == {"n": 1} for answer in answers[:-1])
        await peer.leave()

    with capture_logs() as events:
        entry_points.run(scene())
    assert [(event["event"], event["fields"]) for event in events] == [("api.undeclared_event", ["colour"])]


def test_a_subscription_takes_messages(entry_points: Any) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points, subscription=SUM)
        peer.call(1, "demo.sum", to=10)
        peer.call(-1, "demo.sum.add", call=1)
        peer.call(-1, "demo.sum.add", call=1, n=5)
        assert [(await peer.answer())["event"]["n"] for _ in range(2)] == [11, 16], "in order, and without an answer of their own"
        peer.call(2, "cancel", call=1)
        assert {(await peer.answer())["id"] for _ in range(2)} == {1, 2}
        await peer.leave()

    entry_points.run(scene())


@pytest.mark.parametrize(
    ("request_fields", "code"),
    [({"call": 7}, "not_found"), ({"n": 1}, "invalid"), ({"call": 1, "n": "x"}, "invalid"), ({"call": 2}, "not_found")],
)
def test_a_message_that_cannot_be_delivered_is_refused(entry_points: Any, request_fields: dict[str, Any], code: str) -> None:
    async def scene() -> None:
        peer = await accepted(entry_points, subscription=SUM)
        peer.call(1, "demo.sum", to=10)
        peer.call(2, "demo.wait", wait_ms=20_000)
        peer.call(-1, "demo.sum.add", **request_fields)
        answer = await peer.answer()
        assert (answer["id"], answer["code"]) == (-1, code)
        peer.call(-1, "demo.sum.add", call=1)
        assert (await peer.answer())["event"] == {"n": 11}
        await peer.leave()

    entry_points.run(scene())


def test_messages_that_make_work_count_as_calls(entry_points: Any) -> None:
    entry_points.http.in_progress = InProgress(calls_per_second_max=2)

    async def scene() -> None:
        peer = await accepted(entry_points, subscription=SUM)
        peer.call(1, "demo.sum", to=10)
        for _ in range(2):
            peer.call(-1, "demo.sum.add", call=1)
        assert (await peer.answer())["event"] == {"n": 11}
        answer = await peer.answer()
        assert (answer["id"], answer["code"]) == (-1, "over_limit")
        await peer.leave()

    entry_points.run(scene())
