"""Many calls on one WebSocket: the answers are those of HTTP, and come as they are ready."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from dss_api import feed as feeds
from dss_api import websocket as socket
from dss_api.answer import Answer
from dss_api.errors import Refused
from dss_api.operation import Feed, Subscription
from dss_api.websocket import WebSocketEntryPoint


class Count(msgspec.Struct, forbid_unknown_fields=True):
    """Count to `to`, and then wait or be over."""

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
        # What gives back waits for its answer: a second cancellation must not cut that short.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        node.cancelled.append("count")


COUNT = Subscription("demo.count", Count, count, Counted, "Count", answer=CountAnswer)


class Peer:
    """A client's end of the connection."""

    def __init__(self, doors: Any, path: str = "/ws", subscription: Subscription = COUNT, **headers: str) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        given = [(name.lower().encode(), value.encode()) for name, value in {"Host": "localhost", **headers}.items()]
        scope = {"type": "websocket", "path": path, "headers": given, "query_string": b""}
        self.inbox.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(
            WebSocketEntryPoint(doors.lane_app, doors.front_app.is_host_allowed, doors.front_app.in_progress, [subscription])(
                scope, self.inbox.get, self.outbox.put
            )
        )

    def say(self, text: str | bytes) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text" if isinstance(text, str) else "bytes": text})

    def call(self, id: Any, op: str, **request: Any) -> None:
        self.say(json.dumps({"id": id, "op": op, "request": request}))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return await self.outbox.get()

    async def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((await self.hear())["text"])
        return answer

    async def leave(self) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await self.task


async def accepted(doors: Any, **options: Any) -> Peer:
    peer = Peer(doors, **options)
    assert await peer.hear() == {"type": "websocket.accept"}
    return peer


def test_an_answer_is_the_one_of_http(doors: Any) -> None:
    async def scene() -> None:
        peer = await accepted(doors)
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

    doors.run(scene())


def test_answers_overtake_each_other(doors: Any, fake_node: Any) -> None:
    async def scene() -> None:
        peer = await accepted(doors)
        peer.call(1, "demo.wait", wait_ms=20_000)
        peer.call(2, "demo.get", key="a")
        assert (await peer.answer())["id"] == 2
        assert doors.front_app.in_progress.calls == 1
        await peer.leave()

    doors.run(scene())
    doors.run(asyncio.sleep(0))
    assert fake_node.cancelled == ["wait"], "who leaves takes the calls that wait along"
    assert doors.front_app.in_progress.calls == 0


def test_calls_have_a_limit(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "CALLS_PER_CONNECTION_MAX", 2)

    async def scene() -> None:
        peer = await accepted(doors)
        for number in range(3):
            peer.call(number, "demo.wait", wait_ms=20_000)
        answer = await peer.answer()
        assert (answer["id"], answer["code"]) == (2, "over_limit")
        await peer.leave()

    doors.run(scene())


def test_a_subscription_pushes_until_it_is_over(doors: Any) -> None:
    async def scene() -> None:
        peer = await accepted(doors)
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

    doors.run(scene())


def test_a_client_cancels_by_the_id_of_its_call(doors: Any, fake_node: Any) -> None:
    async def scene() -> None:
        peer = await accepted(doors)
        peer.call("s", "demo.count", to=1)
        assert (await peer.answer())["event"] == {"n": 0}
        peer.call("s", "demo.get", key="a")
        answer = await peer.answer()
        assert (answer["code"], answer["field"]) == ("invalid", "id"), "two calls of one id cannot be told apart"
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

    doors.run(scene())


def test_who_leaves_or_stops_gives_back_first(doors: Any, fake_node: Any) -> None:
    async def scene() -> None:
        peer = await accepted(doors)
        peer.call(1, "demo.count", to=0)
        peer.call(2, "demo.count", to=0)
        peer.call(3, "cancel", call=1)
        assert (await peer.answer())["id"] == 3
        await peer.leave()
        assert fake_node.cancelled == ["count", "count"], "cancelled twice, yet not cut short"
        peer = await accepted(doors)
        peer.call(1, "demo.count", to=1)
        await peer.answer()
        assert len(doors.front_app.in_progress.subscriptions) == 1
        assert doors.front_app.in_progress.calls == 0, "a stop does not wait for it as it does for a call"
        await doors.front_app.in_progress.end_subscriptions(5)
        assert len(fake_node.cancelled) == 3
        assert (await peer.answer())["code"] == "cancelled"
        await peer.leave()

    doors.run(scene())


def test_who_does_not_read_loses_the_subscription(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "BACKLOG_MAX", 10)

    async def scene() -> None:
        peer = await accepted(doors)
        peer.call(1, "demo.count", to=11)
        answers = [await peer.answer()]
        while "event" in answers[-1]:
            answers.append(await peer.answer())
        assert answers[-1]["code"] == "over_limit"
        await peer.leave()

    doors.run(scene())


@pytest.mark.parametrize("frame", ["{", "[]", '{"op": "demo.get"}', '{"id": 1, "op": "demo.get", "x": 1}', b"\xff"])
def test_a_bad_frame_closes(doors: Any, frame: str | bytes) -> None:
    async def scene() -> None:
        peer = await accepted(doors)
        peer.say(frame)
        assert await peer.hear() == {"type": "websocket.close", "code": socket.BAD_FRAME}
        await peer.task

    doors.run(scene())


def test_who_may_not_connect(make_doors: Any) -> None:
    doors = make_doors(token="s3cret")
    right = "Bearer s3cret"

    async def scene() -> None:
        for code, path, headers in (
            (socket.UNAUTHENTICATED, "/ws", {}),
            (socket.UNAUTHENTICATED, "/ws", {"Authorization": "Bearer wrong"}),
            (socket.FORBIDDEN, "/ws", {"Authorization": right, "Origin": "http://evil.example"}),
            (socket.FORBIDDEN, "/ws", {"Authorization": right, "Host": "evil.example"}),
            (socket.NOT_FOUND, "/other", {"Authorization": right}),
        ):
            assert await Peer(doors, path, **headers).hear() == {"type": "websocket.close", "code": code}
        peer = await accepted(doors, Authorization=right, Origin="http://localhost")
        await peer.leave()

    doors.run(scene())


def test_an_event_that_differs_from_its_declaration_ends_the_subscription(doors: Any) -> None:
    class Other(msgspec.Struct):
        n: int
        colour: str

    async def count(node: Any, request: Count, feed: Feed) -> Any:
        feed.push(Counted(1))
        feed.push(Other(2, "red"))
        feed.push(Counted(3))
        await asyncio.get_running_loop().create_future()

    async def scene() -> None:
        peer = await accepted(doors, subscription=Subscription("demo.count", Count, count, Counted, "Count"))
        peer.call(1, "demo.count", to=1)
        answers = [await peer.answer()]
        while "event" in answers[-1]:
            answers.append(await peer.answer())
        assert answers[-1]["code"] == "internal"
        assert all(answer["event"] == {"n": 1} for answer in answers[:-1])
        await peer.leave()

    with capture_logs() as events:
        doors.run(scene())
    assert [(event["event"], event["fields"]) for event in events] == [("api.undeclared_event", ["colour"])]
