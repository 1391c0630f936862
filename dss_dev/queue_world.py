"""The queue as a test of its contract sees it: the operations, and a time that only the test moves.

Which engine has the messages stays hidden. A test that must know it names a difference of the table in docs/reference/engines.md:

    @differs("crosses_slots")
    async def test_…(world):
        assert answer["status"] == world.either(log=200, redis=409)
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from dss_api.codec import encode_refusal
from dss_api.errors import Refused
from dss_api.operation import Feed
from dss_api.request_id import Identified
from dss_api.routes import Route
from dss_queue.core.commands import Subscribe
from dss_queue.core.partitions import ring
from dss_queue.operations import OPERATIONS
from dss_queue.push import subscribe
from dss_queue.subscribers import Subscribers

TABLE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "engines.md"
#: anything that takes longer has failed
PATIENCE_S = 60.0
#: A consume that takes everything asks for so many messages at a time.
BATCH = 100
#: The node's QUEUE_NUM_VNODES.
VNODES = 64

Answer = dict[str, Any]
Message = dict[str, Any]
T = TypeVar("T")
Test = TypeVar("Test", bound=Callable[..., Coroutine[Any, Any, None]])

_ROUTES = {(operation.method, operation.path): Route(operation) for operation in OPERATIONS}


def differs(*ids: str) -> Callable[[Test], Test]:
    """The engines differ in this test, by these rows of the table. The test asks `world.either`."""

    def named(test: Test) -> Test:
        test.differences = frozenset(ids)  # type: ignore[attr-defined]
        return test

    return named


def differences_of(test: object) -> frozenset[str]:
    found: frozenset[str] = getattr(test, "differences", frozenset())
    return found


def table_ids() -> list[str]:
    """The ids of the table's rows, in its order."""
    return re.findall(r"^\| `(\w+)` \|", TABLE.read_text(), re.MULTILINE)


class World(ABC):
    """Calls of a node's operations. Fields that a call leaves out are `topic: "t"` and `group: "g"`.

    Args:
        node: imitates a node; it has `now_ms`, which the world replaces by its own time.
        differences: the rows of the table that the test names.
    """

    #: for `PUT /queue/topic`
    engine: str

    def __init__(self, node: Any, differences: frozenset[str]) -> None:
        self._node = node
        self._differences = differences
        self._has_asked = False
        self.at_ms = 1_700_000_000_000
        node.now_ms = lambda: self.at_ms

    def either(self, *, log: T, redis: T) -> T:
        """What is expected of the engine of this world."""
        if not self._differences:
            raise AssertionError("the engines may only differ in a test that names a difference: @differs(…)")
        self._has_asked = True
        return log if self.engine == "raft" else redis

    def check_differences(self) -> None:
        """After the test: it differed if it says so."""
        if self._differences and not self._has_asked:
            raise AssertionError(f"the engines do not differ in this test, which names {sorted(self._differences)}")

    @abstractmethod
    async def pass_ms(self, duration_ms: int) -> None:
        """Let time pass, and the engine notice it."""

    @abstractmethod
    async def restart(self) -> None:
        """The node starts again, with what is stored."""

    @abstractmethod
    def unreachable(self, key: str) -> AbstractContextManager[None]:
        """For calls about messages with this key, whose outcome is not known then."""

    # ------------------------------------------------------------------- calls

    async def call(self, method: str, path: str, **fields: Any) -> Answer:
        """The decoded answer, with its `status`."""
        route = _ROUTES[method, path]
        try:
            request = self._request(route, fields)
            arguments = (request.request, request.id) if isinstance(request, Identified) else (request,)
            answer = route.encoder.encode(await route.handle(self._node, *arguments))
        except Refused as refused:
            answer = encode_refusal(refused)
        return {"status": answer.status, **msgspec.json.decode(answer.body)}

    @staticmethod
    def _request(route: Route, fields: dict[str, Any]) -> Any:
        if not route.decoder.reads_query:
            return route.decoder.body(msgspec.json.encode(fields))
        texts = {name: "true" if value is True else value for name, value in fields.items()}
        return route.decoder.query(urlencode(texts, doseq=True).encode())

    def open_request_session(self, session: str) -> None:
        """Calls may have a `request_id` of this session."""
        self._node.open_request_session(session)

    async def post(self, name: str, **fields: Any) -> Answer:
        return await self.call("POST", f"/queue/{name}", **{"topic": "t", **fields})

    async def done(self, name: str, **fields: Any) -> Answer:
        """The answer of a POST that must not be refused."""
        return _accepted(await self.post(name, **fields))

    async def publish(self, *values: Any, topic: str = "t", **fields: Any) -> list[str]:
        """Publish values with the same fields in one call; their msg_ids."""
        messages = [{"value": value, **fields} for value in values]
        return [one["msg_id"] for one in (await self.done("publish", topic=topic, messages=messages))["messages"]]

    async def consume(self, **fields: Any) -> Answer:
        """A consume, which does not wait unless `timeout_ms` is given."""
        return await self.done("consume", **{"group": "g", "timeout_ms": 0, **fields})

    async def take(self, count: int = 1, **fields: Any) -> list[Message]:
        """The messages that one consume gets now."""
        messages: list[Message] = (await self.consume(max_messages=count, **fields))["messages"]
        return messages

    async def take_all(self, **fields: Any) -> list[Message]:
        """All messages that are ready now, by as many consumes as it takes: each may get those of one partition."""
        found: list[Message] = []
        while messages := await self.take(BATCH, **fields):
            found += messages
        return found

    async def values(self, count: int = 1, **fields: Any) -> list[Any]:
        """The values of the messages that one consume gets now."""
        return [message["value"] for message in await self.take(count, **fields)]

    async def all_values(self, **fields: Any) -> list[Any]:
        """The values of all messages that are ready now, sorted: those of different keys have no order."""
        return sorted(message["value"] for message in await self.take_all(**fields))

    async def why_empty(self, **fields: Any) -> str:
        """The reason that an empty consume gives."""
        answer = await self.consume(**fields)
        if answer["msg_id"] is not None:
            raise AssertionError(f"it got a message: {answer}")
        reason: str = answer["empty_reason"]
        return reason

    async def later(self, count: int = 1, *, group: str = "g", topic: str = "t", **fields: Any) -> asyncio.Task[Answer]:
        """A consume that waits; it has begun to wait, or has ended. The task has its answer, also of a refusal."""
        before = (await self.group_stats(group, topic))["waiters"]
        fields = {"timeout_ms": 20_000, "topic": topic, "group": group, "max_messages": count, **fields}
        waiting = asyncio.create_task(self.post("consume", **fields))
        async with asyncio.timeout(PATIENCE_S):
            while not waiting.done() and (await self.group_stats(group, topic))["waiters"] == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return waiting

    async def take_by_client(self, count: int = 1, **fields: Any) -> tuple[list[Message], Callable[[], Awaitable[None]]]:
        """As `take`; also what happens when the client disconnects before the answer could be sent."""
        route = _ROUTES["POST", "/queue/consume"]
        request = self._request(route, {"topic": "t", "group": "g", "timeout_ms": 0, "max_messages": count, **fields})
        result = await route.handle(self._node, request)
        assert route.undo is not None
        messages: list[Message] = msgspec.json.decode(route.encoder.encode(result).body)["messages"]
        return messages, partial(route.undo, self._node, request, result)

    def subscribe(self, feed: Feed, **fields: Any) -> asyncio.Task[Any]:
        """Push messages to the feed until the task is cancelled."""
        Subscribers(self._node)
        return asyncio.create_task(subscribe(self._node, Subscribe(**{"topic": "t", "group": "g", **fields}), feed))

    async def ack(self, *messages: Message, **fields: Any) -> Answer:
        """Ack messages with their receipts; the answer, also of a refusal."""
        return await self.post("ack", **{"group": "g", **_named(messages), **fields})

    async def nack(self, message: Message, **fields: Any) -> Answer:
        return await self.post("nack", **{"group": "g", **_named((message,)), **fields})

    async def extend(self, message: Message, visibility_ms: int, **fields: Any) -> Answer:
        return await self.post("extend", **{"group": "g", **_named((message,)), "visibility_ms": visibility_ms, **fields})

    async def kill(self, message: Message, **fields: Any) -> None:
        """Make a message a dead letter."""
        assert (await self.nack(message, dead=True, **fields))["dead"]

    # ---------------------------------------------------------- topics, groups

    async def try_settings(self, *, topic: str = "t", **fields: Any) -> Answer:
        """Replace a topic's settings, but not its engine; the answer, also of a refusal."""
        return await self.call(
            "PUT", "/queue/topic", topic=topic, **({"engine": "redis"} if self.engine == "redis" else {}), **fields
        )

    async def settings(self, **fields: Any) -> Answer:
        """As `try_settings`; they must not be refused."""
        return _accepted(await self.try_settings(**fields))

    async def try_group(self, group: str, *, topic: str = "t", **fields: Any) -> Answer:
        """Create a group; the answer, also of a refusal."""
        return await self.call("PUT", "/queue/group", topic=topic, group=group, **fields)

    async def group(self, group: str, **fields: Any) -> Answer:
        """As `try_group`; it must not be refused."""
        return _accepted(await self.try_group(group, **fields))

    async def delete_group(self, group: str, *, topic: str = "t") -> Answer:
        return _accepted(await self.call("DELETE", "/queue/group", topic=topic, group=group))

    async def delete_topic(self, topic: str = "t") -> Answer:
        return _accepted(await self.call("DELETE", "/queue/topic", topic=topic))

    async def stats(self, topic: str = "t") -> Answer:
        return _accepted(await self.call("GET", "/queue/stats", topic=topic))

    async def group_stats(self, group: str = "g", topic: str = "t") -> Answer:
        """The group's part of the statistics; all zero if it does not exist yet."""
        groups: list[Answer] = (await self.stats(topic))["groups"]
        return next((one for one in groups if one["group"] == group), dict.fromkeys(COUNTS, 0))

    async def counts(self, group: str = "g") -> dict[str, int]:
        """How many messages the group has in each state, those with none left out."""
        found = await self.group_stats(group)
        return {name: found[name] for name in ("ready", "delayed", "in_flight", "dead") if found[name]}

    async def peek(self, **fields: Any) -> list[Message]:
        messages: list[Message] = _accepted(await self.call("GET", "/queue/peek", **{"topic": "t", "limit": 100, **fields}))[
            "messages"
        ]
        return messages

    async def dead(self, group: str = "g") -> list[tuple[Any, str]]:
        """The dead letters of a group, each with its reason."""
        return [(one["value"], one["reason"]) for one in await self.peek(group=group, dead=True)]

    async def retained(self, topic: str = "t") -> int:
        """Messages that the topic still has."""
        count: int = (await self.stats(topic))["messages"]
        return count


#: Of a group's statistics.
COUNTS = ("ready", "delayed", "in_flight", "dead", "waiters", "delivered", "redelivered", "acked")


def values_of(answer: Answer) -> list[Any]:
    """The values in the answer of a consume with `max_messages`."""
    return [message["value"] for message in _accepted(answer)["messages"]]


def keys_of_partitions(count: int) -> list[str]:
    """A key for each of so many partitions."""
    found: dict[int, str] = {}
    for key in map(str, range(1000)):
        found.setdefault(ring(VNODES).partition_of(key), key)
    return list(found.values())[:count]


def _accepted(answer: Answer) -> Answer:
    if answer["status"] != 200:
        raise AssertionError(f"refused: {answer}")
    return answer


def _named(messages: tuple[Message, ...]) -> dict[str, Any]:
    """The fields that name deliveries."""
    if len(messages) == 1:
        return {"msg_id": messages[0]["msg_id"], "receipt": messages[0]["receipt"]}
    return {"msg_ids": [one["msg_id"] for one in messages], "receipts": [one["receipt"] for one in messages]}
