"""Calls on topics that are on the engine `redis`, or move: which engine carries them out, and how a node that lags behind is corrected."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager

import msgspec
import pytest

from dss_api.codec import encode_refusal
from dss_api.errors import Refused
from dss_api.liveness import Liveness
from dss_api.request_id import RequestId
from dss_api.routes import Route
from dss_queue import push, subscribers
from dss_queue import routing as routing_module
from dss_queue.core.commands import Ack, Subscribe
from dss_queue.core.engines import EngineClosed, EngineLeft
from dss_queue.core.partitions import PARTITIONS
from dss_queue.core.sns_topics import CreateSnsTopic, Notice, PublishToSns
from dss_queue.core.sns_topics import Subscribe as SubscribeQueue
from dss_queue.core.sqs_queues import CreateQueue
from dss_queue.engine_service import EngineService
from dss_queue.operations import OPERATIONS, ack, consume, publish
from dss_queue.push import subscribe
from dss_queue.redis_engine.engine import RedisEngine
from dss_queue.redis_engine.errors import EngineAway
from dss_queue.routing import Routing
from dss_queue.subscribers import Subscribers

ROUTES = {(operation.method, operation.path): Route(operation) for operation in OPERATIONS}
READY_S = 10.0
#: A wait that a test ends by something else.
LONG_MS = 15_000


class Api:
    """Calls of a node's operations. Fields that a call leaves out are `topic: "t"` and `group: "g"`."""

    def __init__(self, node, service: EngineService) -> None:
        self.node = node
        self.service = service
        self.routing = Routing(node, service)

    async def call(self, method: str, path: str, **fields):
        route = ROUTES[method, path]
        try:
            if route.decoder.reads_query:
                request = msgspec.convert(fields, route.decoder.type, strict=False)
            else:
                request = route.decoder.body(msgspec.json.encode(fields))
            answer = route.encoder.encode(await route.handle(self.node, request))
        except Refused as refused:
            answer = encode_refusal(refused)
        return {"status": answer.status, **msgspec.json.decode(answer.body)}

    async def post(self, name: str, **fields):
        return await self.call("POST", f"/queue/{name}", **{"topic": "t", **fields})

    async def publish(self, *values, **fields):
        """Publish values in one call; the answer."""
        return await self.post("publish", messages=[{"value": value, **fields} for value in values])

    async def take(self, count=10, **fields):
        answer = await self.post("consume", **{"group": "g", "timeout_ms": 0, "max_messages": count, **fields})
        assert answer["status"] == 200, answer
        return answer["messages"]

    async def values(self, *args, **fields):
        return [one["value"] for one in await self.take(*args, **fields)]

    async def finish_all(self, **fields):
        """Take and ack until a consume gets nothing; the values in their order."""
        values = []
        while taken := await self.take(**fields):
            values += [one["value"] for one in taken]
            assert (await self.ack(*taken))["acked"]
        return values

    async def ack(self, *messages, **fields):
        ids, receipts = [one["msg_id"] for one in messages], [one["receipt"] for one in messages]
        return await self.post("ack", group="g", msg_ids=ids, receipts=receipts, **fields)

    async def move(self, engine: str, **settings):
        answer = await self.call("PUT", "/queue/topic", **{"topic": "t", "engine": engine, **settings})
        assert answer["status"] == 200, answer
        return answer

    async def go_away(self):
        """The engine is away until the test says that it is back."""
        await self.service.tasks.stop()
        self.service._become("away", "no server answers")

    def come_back(self):
        self.service._become("ready")

    async def stats(self):
        return await self.call("GET", "/queue/stats", topic="t")


@asynccontextmanager
async def opened(node, url: str):
    service = EngineService(node, url)
    api = Api(node, service)
    await service.start()
    async with asyncio.timeout(READY_S):
        while url and service.state != "ready":  # noqa: ASYNC110  (the service signals no change)
            await asyncio.sleep(0.01)
    try:
        yield api
    finally:
        await service.stop()


@pytest.fixture
def url(valkey):
    return f"redis://127.0.0.1:{valkey.port}"


@pytest.fixture
async def api(node, url):
    async with opened(node, url) as api:
        yield api


@pytest.fixture
def another(api, local_node, url):
    """Makes further nodes, which apply an entry only when they wait for one of their own, or read the log."""
    leader = api.node
    log, apply = [], leader.broker.apply

    def applying(*entry):
        log.append(entry)
        return apply(*entry)

    leader.broker.apply = applying

    class Lagging(local_node):
        applied = 0

        def catch_up(self):
            for command, at_ms, index, origin in log[self.applied :]:
                self.broker.expire(at_ms, index)
                self.broker.apply(command, at_ms, index, origin)
                self.broker.take_events()
            self.applied = len(log)

        async def read_index(self):
            self.catch_up()

        async def submit(self, command, **options):
            self.commands.append(command)
            result = await leader.submit(command, **options)
            self.catch_up()
            return result

    def made():
        node = Lagging()
        node.leader, node.config.cluster_id = leader, leader.config.cluster_id
        return opened(node, url)

    return made


@pytest.fixture
async def lagging(another):
    """A node that lags behind."""
    async with another() as node:
        yield node


@pytest.fixture
async def one_behind(another):
    """One more. Tests let it know the last move but one, while `lagging` knows none."""
    async with another() as node:
        yield node


# ------------------------------------------------------------------ on the engine


async def test_a_topic_on_the_engine(api):
    await api.move("redis")
    published = await api.post("publish", value={"n": 1}, key="k", headers={"a": "b"})
    assert (published["durability"], published["index"], published["duplicate"]) == ("redis", None, False)
    assert published["msg_id"].startswith("r")
    got = await api.post("consume", group="g", timeout_ms=0)
    assert (got["durability"], got["index"]) == ("redis", None)
    assert (got["msg_id"], got["value"], got["key"], got["headers"]) == (published["msg_id"], {"n": 1}, "k", {"a": "b"})
    named = {"group": "g", "msg_id": got["msg_id"], "receipt": got["receipt"]}
    extended = await api.post("extend", **named, visibility_ms=60_000)
    assert (extended["durability"], extended["index"]) == ("redis", None)
    assert extended["visible_until_ms"] > got["visible_until_ms"]
    nacked = await api.post("nack", **named)
    assert (nacked["nacked"], nacked["dead"], nacked["durability"], nacked["index"]) == (True, False, "redis", None)
    (again,) = await api.take()
    assert again["attempt"] == 2
    acked = await api.ack(again)
    assert (acked["acked"], acked["durability"], acked["index"]) == (True, "redis", None)
    assert acked["results"] == [{"msg_id": again["msg_id"], "acked": True}]
    empty = await api.post("consume", group="g", timeout_ms=0)
    assert (empty["msg_id"], empty["empty_reason"], empty["durability"]) == (None, "no_messages", "redis")


async def test_a_topic_in_the_log(api):
    published = await api.post("publish", value=1)
    assert published["durability"] == "replicated-log"
    assert published["index"] > 0
    got = await api.post("consume", group="g", timeout_ms=0)
    assert (got["durability"], got["value"]) == ("replicated-log", 1)
    assert (await api.post("ack", group="g", msg_id=got["msg_id"]))["durability"] == "replicated-log"


async def test_nothing_of_a_message_is_in_the_log(api):
    await api.move("redis")
    await api.take()
    count = len(api.node.commands)
    await api.publish(1)
    (got,) = await api.take()
    await api.ack(got)
    assert len(api.node.commands) == count


async def test_extend_with_zero_gives_a_message_back(api):
    await api.move("redis")
    await api.publish(1)
    (got,) = await api.take()
    named = {"group": "g", "msg_id": got["msg_id"], "receipt": got["receipt"], "visibility_ms": 0}
    given_back = await api.post("extend", **named)
    assert (given_back["msg_id"], given_back["durability"], given_back["index"]) == (got["msg_id"], "redis", None)
    assert (await api.post("extend", **named))["code"] == "stale_receipt"


async def test_a_stale_receipt(api):
    await api.move("redis")
    await api.publish(1)
    (first,) = await api.take(visibility_ms=1)
    async with asyncio.timeout(60):
        while not (second := await api.take(timeout_ms=LONG_MS)):
            pass
    for name in ("ack", "nack"):
        refused = await api.post(name, group="g", msg_id=first["msg_id"], receipt=first["receipt"])
        assert (refused["status"], refused["code"]) == (409, "stale_receipt"), name
    assert (await api.ack(*second))["acked"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("publish", [{"topic": "other", "value": 1}]), ("release", [{"key": "k", "client": "c"}])],
)
async def test_an_ack_on_the_engine_does_nothing_else_in_the_same_step(api, field, value):
    await api.move("redis")
    await api.publish(1)
    (got,) = await api.take()
    refused = await api.ack(got, **{field: value})
    assert (refused["status"], refused["code"], refused["field"]) == (409, "not_on_engine", field)
    assert (await api.ack(got, publish=[], release=[]))["acked"]


async def test_an_ack_in_the_log_publishes_nothing_on_the_engine(api):
    await api.move("redis")
    await api.post("publish", topic="source", value=1)
    got = await api.post("consume", topic="source", group="g", timeout_ms=0)
    refused = await api.post("ack", topic="source", group="g", msg_id=got["msg_id"], publish=[{"topic": "t", "value": 1}])
    assert (refused["status"], refused["code"], refused["field"]) == (409, "not_on_engine", "publish")
    assert (await api.post("ack", topic="source", group="g", msg_id=got["msg_id"]))["acked"]


async def test_messages_of_several_partitions_are_refused(api):
    await api.move("redis")
    messages = [{"value": 1, "key": str(key)} for key in range(40)]
    refused = await api.post("publish", messages=messages)
    assert (refused["status"], refused["code"]) == (409, "crosses_slots")
    assert (await api.stats())["messages"] == 0


async def test_a_long_poll_gets_a_message_that_is_published_later(api):
    await api.move("redis")
    waiting = asyncio.ensure_future(api.take(timeout_ms=LONG_MS))
    await asyncio.sleep(0)
    await api.publish("late")
    assert [one["value"] for one in await waiting] == ["late"]


async def test_a_repeated_request_takes_effect_once(api, lagging):
    await api.move("redis")
    await lagging.node.read_index()
    request = ROUTES["POST", "/queue/publish"].decoder.body(b'{"topic": "t", "value": 1}')
    once = RequestId("session", 7, 0, b"")
    first = await publish(api.node, request, once)
    second = await publish(lagging.node, request, once)
    assert first.msg_id == second.msg_id
    request = ROUTES["POST", "/queue/consume"].decoder.body(b'{"topic": "t", "group": "g", "timeout_ms": 0}')
    once = RequestId("session", 8, 0, b"")
    first = await consume(api.node, request, once)
    second = await consume(lagging.node, request, once)
    assert (first.msg_id, first.receipt) == (second.msg_id, second.receipt)


async def test_a_publish_that_is_repeated_after_a_move_is_in_the_log_once(api):
    """The answer was lost, and the topic went to the engine before the client tried again."""
    api.node.open_request_session("session")
    request = ROUTES["POST", "/queue/publish"].decoder.body(b'{"topic": "t", "value": 1}')
    once = RequestId("session", 1, 0, bytes(16))
    first = await publish(api.node, request, once)
    await api.move("redis")
    again = await publish(api.node, request, once)
    assert (again.msg_id, again.durability) == (first.msg_id, "replicated-log")
    assert (await api.stats())["messages"] == 1
    assert (await publish(api.node, request, RequestId("session", 2, 0, bytes(16)))).durability == "redis"


async def test_a_publish_that_the_log_sent_back_is_on_the_engine_once(api, lagging):
    """The node that lagged behind asked the log first. The repeat finds the log's refusal, and then the engine's answer."""
    api.node.open_request_session("session")
    request = ROUTES["POST", "/queue/publish"].decoder.body(b'{"topic": "t", "value": 1}')
    once = RequestId("session", 1, 0, bytes(16))
    await api.move("redis")
    first = await publish(lagging.node, request, once)
    again = await publish(api.node, request, once)
    assert (again.msg_id, again.durability) == (first.msg_id, "redis")
    assert (await api.stats())["messages"] == 1


# ------------------------------------------------------------------ moves


async def test_a_topic_that_comes_is_drained_in_order(api):
    await api.publish("log 1", "log 2", key="k")
    (first,) = await api.take(1)
    await api.move("redis")
    await api.publish("engine 1", "engine 2", key="k")
    assert (await api.stats())["moving_from"] == "raft"
    assert await api.values() == [], "the first message of the key is in flight"
    await api.ack(first)
    assert await api.values(1) == ["log 2"]
    assert await api.values() == []


async def test_a_consume_that_waits_for_the_rest_in_the_log_goes_on_with_the_engine(api):
    await api.publish("log")
    (last,) = await api.take()
    await api.move("redis")
    await api.publish("engine")
    waiting = asyncio.ensure_future(api.take(timeout_ms=LONG_MS))
    while not api.node.waiting:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0)
    await api.ack(last)
    assert [one["value"] for one in await waiting] == ["engine"]


async def test_a_consume_that_waits_when_its_topic_comes(api):
    waiting = asyncio.ensure_future(api.take(timeout_ms=LONG_MS))
    while not api.node.waiting:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0)
    await api.move("redis")
    await api.publish("engine")
    assert [one["value"] for one in await waiting] == ["engine"]


async def test_a_topic_that_leaves_is_drained_in_order(api):
    await api.move("redis")
    await api.publish("engine 1", "engine 2", key="k")
    (first,) = await api.take(1)
    await api.move("raft")
    published = await api.publish("log 1", "log 2", key="k")
    assert (published["durability"], (await api.stats())["moving_from"]) == ("replicated-log", "redis")
    assert await api.values() == [], "the first message of the key is in flight"
    await api.ack(first)
    (second,) = await api.take(1)
    assert second["value"] == "engine 2"
    await api.ack(second)
    assert await api.finish_all() == ["log 1", "log 2"]


async def test_a_consume_that_waits_when_its_topic_leaves(api):
    await api.move("redis")
    waiting = asyncio.ensure_future(api.take(timeout_ms=LONG_MS))
    while not api.routing._waits:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0.001)
    await api.move("raft")
    await api.publish("log")
    assert [one["value"] for one in await waiting] == ["log"]


async def test_a_consume_that_waits_for_the_rest_on_the_engine_goes_on_with_the_log(api, monkeypatch):
    monkeypatch.setattr(routing_module, "LEAVING_LOOK_MS", 20)
    await api.move("redis")
    await api.publish("engine")
    (last,) = await api.take()
    await api.move("raft")
    await api.publish("log")
    waiting = asyncio.ensure_future(api.take(timeout_ms=LONG_MS))
    while not api.routing._waits:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0.001)
    await api.ack(last)
    assert [one["value"] for one in await waiting] == ["log"]


async def test_a_topic_cannot_leave_before_the_log_has_nothing_left_from_before(api):
    await api.publish("log")
    (last,) = await api.take()
    await api.move("redis")
    await api.publish("engine")
    refused = await api.call("PUT", "/queue/topic", topic="t", engine="raft")
    assert (refused["status"], refused["code"], refused["field"]) == (409, "moving", "engine")
    await api.ack(last)
    await api.move("raft")
    assert await api.finish_all() == ["engine"]


async def test_settings_without_an_engine_leave_the_topic_where_it_is(api):
    await api.move("redis")
    await api.publish("a")
    name = api.routing.stay(api.routing.topic("t")).name
    for fields in ({}, {"max_attempts": 0}, {"acks": "primary"}):
        answer = await api.call("PUT", "/queue/topic", topic="t", backoff_ms=5, **fields)
        assert (answer["status"], answer["engine"], answer["acks"], answer["backoff_ms"]) == (200, "redis", "primary", 5)
    assert api.routing.stay(api.routing.topic("t")).name == name
    assert (await api.publish("b"))["durability"] == "redis"
    refused = await api.call("PUT", "/queue/topic", topic="t", keep_ms=1)
    assert (refused["status"], refused["code"], refused["field"]) == (409, "not_on_engine", "keep_ms")
    refused = await api.call("PUT", "/queue/topic", topic="t", acks="replica")
    assert (refused["code"], refused["field"]) == ("not_on_engine", "acks"), "the server has no replica"
    await api.go_away()
    assert (await api.call("PUT", "/queue/topic", topic="t"))["engine"] == "redis", "the servers are not needed for this"


async def test_to_the_engine_and_back_several_times(api):
    expected = []
    for turn in range(3):
        for engine in ("raft", "redis"):
            value = f"{engine} {turn}"
            await api.publish(value, key="k")
            expected.append(value)
            assert await api.finish_all() == [value]
            await api.move("redis" if engine == "raft" else "raft")
        stay = api.routing.stay(api.routing.topic("t"))
        await api.service.administration().close(stay.name)
        assert await api.service.administration().is_drained(stay.name)
        await api.node.submit(EngineLeft(topic="t", incarnation=stay.use.incarnation))
    assert (await api.stats())["groups"][0]["acked"] == 3


async def test_a_batch_with_messages_of_both(api):
    await api.publish("log")
    (of_log,) = await api.take()
    await api.move("redis")
    await api.call("PUT", "/queue/group", topic="t", group="g")
    await api.publish("engine")
    stay = api.routing.stay(api.routing.topic("t"))
    taken = await api.service.engine().consume(stay.name, "g", stay.settings, visibility_ms=1000)
    of_engine = msgspec.to_builtins(taken.messages[0], builtin_types=(msgspec.Raw,))
    answer = await api.ack(of_engine, of_log)
    assert [one["msg_id"] for one in answer["results"]] == [of_engine["msg_id"], of_log["msg_id"]]
    assert (answer["acked"], answer["durability"]) == (True, "redis")
    assert answer["index"] > 0
    again = await api.ack(of_log, of_engine)
    assert [one["acked"] for one in again["results"]] == [False, False]


async def test_a_dedup_id_is_known_after_the_move(api):
    first = await api.publish("log", dedup_id="d")
    await api.move("redis")
    answer = await api.post("publish", messages=[{"value": 1}, {"value": 2, "dedup_id": "d"}, {"value": 3}])
    assert [one["duplicate"] for one in answer["messages"]] == [False, True, False]
    assert answer["messages"][1]["msg_id"] == first["messages"][0]["msg_id"]


# ------------------------------------------------------------------ nodes that lag behind


async def test_a_node_that_does_not_know_yet_that_a_topic_came(api, lagging):
    await api.move("redis")
    assert lagging.routing.topic("t") is None
    published = await lagging.publish("one")
    assert published["durability"] == "redis"
    assert await api.values() == ["one"]


async def test_a_consume_at_a_node_that_does_not_know_yet_that_a_topic_came(api, lagging):
    await api.move("redis")
    await api.publish("one")
    assert await lagging.values() == ["one"]


@pytest.mark.parametrize(
    ("name", "fields", "answer"),
    [
        ("ack", {}, {"acked": True}),
        ("nack", {}, {"nacked": True, "dead": False}),
        ("extend", {"visibility_ms": 60_000}, {}),
        ("extend", {"visibility_ms": 0}, {}),
    ],
)
async def test_the_end_of_a_delivery_at_a_node_that_does_not_know_yet_that_a_topic_came(api, lagging, name, fields, answer):
    await api.move("redis")
    await api.publish(1)
    (one,) = await api.take()
    assert lagging.routing.topic("t") is None
    found = await lagging.post(name, group="g", msg_id=one["msg_id"], receipt=one["receipt"], **fields)
    assert found["status"] == 200
    assert found["durability"] == "redis"
    assert answer.items() <= found.items()


async def test_a_node_that_does_not_know_yet_that_a_topic_left_publishes_nothing_on_the_engine(api, lagging):
    await api.move("redis")
    await lagging.publish("engine", key="k")
    await api.move("raft")
    await api.publish("log 1", key="k")
    published = await lagging.publish("log 2", key="k")
    assert published["durability"] == "replicated-log"
    assert await api.finish_all() == ["engine", "log 1", "log 2"]


@pytest.mark.parametrize(
    ("name", "fields", "answer"),
    [
        ("ack", {}, {"acked": True}),
        ("nack", {}, {"nacked": True, "dead": False}),
        ("extend", {"visibility_ms": 60_000}, {}),
    ],
)
async def test_the_end_of_a_delivery_at_a_node_that_knows_an_earlier_stay(api, lagging, name, fields, answer):
    """There, the message is not known, and an ack that says so would bring it back."""
    await api.move("redis")
    await lagging.node.read_index()
    use = api.routing.topic("t").engine
    await api.move("raft")
    await api.take()
    await api.node.submit(EngineLeft(topic="t", incarnation=use.incarnation))
    await api.move("redis")
    await api.publish(1)
    (one,) = await api.take()
    assert lagging.routing.topic("t").engine == use
    found = await lagging.post(name, group="g", msg_id=one["msg_id"], receipt=one["receipt"], **fields)
    assert found["status"] == 200, found
    assert answer.items() <= found.items()
    if name == "ack":
        again = await lagging.post(name, group="g", msg_id=one["msg_id"], receipt=one["receipt"])
        assert again["acked"] is False


async def test_a_batch_of_both_at_a_node_that_does_not_know_yet_that_a_topic_came(api, lagging):
    await api.publish("log")
    logged = await api.take()
    await api.ack(*logged)
    await api.move("redis")
    await api.publish("engine")
    held = await api.take()
    answer = await lagging.ack(*held, *logged)
    assert [(one["msg_id"], one["acked"]) for one in answer["results"]] == [
        (held[0]["msg_id"], True),
        (logged[0]["msg_id"], False),
    ]
    assert not sum(isinstance(one, Ack) for one in lagging.node.commands[1:]), "the log was asked once"


async def publish_alone(node):
    return await node.post("publish", value="log 1", key="k")


async def publish_with_an_ack(node):
    (got,) = await node.take(topic="source")
    new = {"topic": "t", "value": "log 1", "key": "k"}
    return await node.post("ack", topic="source", group="g", msg_id=got["msg_id"], receipt=got["receipt"], publish=[new])


async def publish_once(node):
    request = ROUTES["POST", "/queue/publish"].decoder.body(b'{"topic": "t", "value": "log 1", "key": "k"}')
    once = RequestId("session", 1, 0, bytes(16))
    first = await publish(node.node, request, once)
    again = await publish(node.node, request, once)
    assert first.msg_id == again.msg_id
    return {"status": 200, "durability": again.durability}


async def ack_once(node):
    (got,) = await node.take(topic="source")
    new = {"topic": "t", "value": "log 1", "key": "k"}
    fields = {"topic": "source", "group": "g", "msg_id": got["msg_id"], "receipt": got["receipt"], "publish": [new]}
    request = ROUTES["POST", "/queue/ack"].decoder.body(msgspec.json.encode(fields))
    once = RequestId("session", 1, 0, bytes(16))
    first = await ack(node.node, request, once)
    again = await ack(node.node, request, once)
    assert first.body["published"] == again.body["published"] != []
    return {"status": 200, "durability": "replicated-log"}


async def publish_on_sns(node):
    for command in (
        CreateQueue(topic="t"),
        CreateSnsTopic(sns_topic="news"),
        SubscribeQueue(sns_topic="news", queue="t", attributes={"RawMessageDelivery": "true"}),
    ):
        # The node that makes these calls knows all moves.
        await node.node.leader.submit(command)
    command = PublishToSns(sns_topic="news", notices=[Notice("log 1", {}, {}, {})])
    assert not (await node.routing.submit(command)).code
    return {"status": 200, "durability": "replicated-log"}


@pytest.mark.parametrize("way", [publish_alone, publish_with_an_ack, publish_once, ack_once, publish_on_sns])
async def test_a_node_two_moves_behind_overtakes_nothing(api, lagging, one_behind, way):
    """It knows neither that the topic came to the engine nor that it left. Another node knows the first, and would publish there."""
    api.node.open_request_session("session")
    await api.post("publish", topic="source", value=1)
    await api.move("redis")
    await one_behind.node.read_index()
    await api.publish("engine", key="k")
    await api.move("raft")
    assert (lagging.routing.topic("t"), one_behind.routing.topic("t").is_on_engine) == (None, True)
    answer = await way(lagging)
    assert (answer["status"], answer["durability"]) == (200, "replicated-log"), answer
    assert (await one_behind.post("publish", value="log 2", key="k"))["durability"] == "replicated-log"
    assert await api.finish_all() == ["engine", "log 1", "log 2"]


async def test_many_calls_close_the_engine_once(api):
    await api.move("redis")
    await api.move("raft")
    answers = await asyncio.gather(*(api.post("publish", value=number) for number in range(20)), api.take())
    assert {one["durability"] for one in answers[:-1]} == {"replicated-log"}
    assert sum(isinstance(one, EngineClosed) for one in api.node.commands) == 1


async def test_a_call_that_ends_does_not_end_the_closing_for_others(api):
    await api.move("redis")
    await api.move("raft")
    first = asyncio.ensure_future(api.post("publish", value=1))
    while not api.routing._closing:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0)
    second = asyncio.ensure_future(api.post("publish", value=2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)["durability"] == "replicated-log"
    assert await api.values() == [2]


async def test_a_topic_that_leaves_while_the_engine_is_away(api, lagging):
    """Until the engine is closed, a message in the log could overtake one of the engine; after that, only consumers wait for it."""
    await api.move("redis")
    await api.publish("engine", key="k")
    await api.move("raft")
    await api.post("publish", topic="source", value=1)
    (got,) = await api.take(topic="source")
    new = {"topic": "t", "value": 1}
    transaction = {"topic": "source", "group": "g", "msg_id": got["msg_id"], "publish": [new]}
    for node in (api, lagging):
        await node.go_away()
        for refused in (await node.publish("log", key="k"), await node.post("ack", **transaction)):
            assert (refused["status"], refused["code"]) == (503, "engine_away")
    assert not api.node.broker.topics["t"].messages.by_number
    api.come_back()
    await api.take()
    await api.go_away()
    assert (await api.publish("log", key="k"))["durability"] == "replicated-log"
    assert (await api.post("consume", group="g", timeout_ms=0))["code"] == "engine_away"


async def test_a_topic_leaves_an_engine_that_came_back_empty(api, valkey):
    """The way out when the servers are gone for good: what the log has stays, and what they had is lost."""
    await api.move("redis")
    await api.publish("lost", key="k")
    await api.move("raft")
    await api.go_away()
    assert (await api.publish("log 1", key="k"))["code"] == "engine_away"
    valkey.client().flushall()
    api.come_back()
    await api.publish("log 1", "log 2", key="k")
    assert await api.finish_all() == ["log 1", "log 2"]
    stay = api.routing.stay(api.routing.topic("t"))
    assert await api.service.administration().is_drained(stay.name)


async def test_what_is_published_after_a_deletion_is_not_deleted(api, lagging):
    """The node still knows the topic that was deleted. Its partitions are there until the leader deletes them."""
    await api.move("redis")
    await lagging.node.read_index()
    await lagging.publish("old")
    answer = await api.call("DELETE", "/queue/topic", topic="t")
    assert answer["purged"] == 1
    await api.publish("new 1")
    assert (await lagging.publish("new 2"))["durability"] == "replicated-log"
    assert await api.values() == ["new 1", "new 2"]


async def test_a_deletion_closes_only_what_it_deletes(api, monkeypatch):
    """The keys of earlier topics of this name stay for a minute or more."""
    closed = []
    administration = api.service.administration()

    async def close(name):
        closed.append(name)

    monkeypatch.setattr(administration, "close", close)
    names = []
    for _ in range(5):
        await api.move("redis")
        names.append(api.routing.stay(api.routing.topic("t")).name)
        await api.call("DELETE", "/queue/topic", topic="t")
    assert len(api.routing._broker.registry.abandoned) == 5
    # The one before is closed again: a repeat of a deletion whose node has gone must close it.
    assert Counter(closed) == {**dict.fromkeys(names[:-1], 2), names[-1]: 1}


async def test_a_node_that_does_not_know_yet_that_a_topic_was_deleted(api, lagging):
    await api.move("redis")
    await lagging.publish("old")
    name = api.routing.stay(api.routing.topic("t")).name
    await api.call("DELETE", "/queue/topic", topic="t")
    await api.service.administration().delete_topic(name)
    published = await lagging.publish("new")
    assert published["durability"] == "replicated-log"
    assert await api.values() == ["new"]
    assert not await api.service.administration().groups(name)


async def test_a_consume_at_a_node_that_does_not_know_yet_that_a_topic_was_deleted(api, lagging):
    await api.move("redis")
    await lagging.publish("old")
    await lagging.take(1)
    name = api.routing.stay(api.routing.topic("t")).name
    await api.call("DELETE", "/queue/topic", topic="t")
    await api.service.administration().delete_topic(name)
    await api.publish("new")
    assert await lagging.values() == ["new"]


# ------------------------------------------------------------------ groups


async def test_a_consume_on_the_engine_does_not_declare_its_group(api):
    """A topic that nothing uses any more is deleted with such groups, as one that was never on the engine."""
    await api.move("redis")
    await api.publish("a")
    assert await api.finish_all() == ["a"]
    await api.call("PUT", "/queue/group", topic="t", group="h")
    groups = api.routing.topic("t").groups
    assert {name: group.declared for name, group in groups.items()} == {"g": False, "h": True}


async def test_each_group_gets_every_message(api):
    await api.call("PUT", "/queue/group", topic="t", group="h")
    await api.move("redis")
    await api.publish(1)
    assert await api.finish_all() == [1]
    assert await api.values(group="h") == [1]


async def test_a_group_that_starts_now(api):
    await api.move("redis")
    await api.publish(1)
    made = await api.call("PUT", "/queue/group", topic="t", group="late", start="now")
    assert (made["created"], made["pending"]) == (True, 0)
    made = await api.call("PUT", "/queue/group", topic="t", group="early")
    assert (made["created"], made["pending"]) == (True, 1)
    assert await api.values(group="late") == []


async def test_a_group_does_not_start_at_a_message(api):
    await api.move("redis")
    refused = await api.call("PUT", "/queue/group", topic="t", group="g", msg_id="r1-0000000000000001")
    assert (refused["code"], refused["field"]) == ("not_on_engine", "msg_id")


async def test_a_deleted_group_does_not_come_back_through_a_consume_that_waits(api):
    await api.move("redis")
    for group in ("g", "h"):
        await api.take(group=group)
    await api.publish(1, 2, 3)
    assert len(await api.finish_all()) == 3
    # The engine is quicker than the look at all waits.
    api.node.tick_listeners.remove(api.routing._look_at_waits)
    waiting = asyncio.create_task(api.post("consume", group="g", timeout_ms=LONG_MS))
    name = api.routing.stay(api.routing.topic("t")).name
    while not api.service.engine().waiting(name, "g"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert (await api.call("DELETE", "/queue/group", topic="t", group="g"))["deleted"]
    assert (await waiting)["code"] == "not_found"
    assert await api.service.administration().groups(name) == ["h"]


async def test_a_consume_waits_for_the_rest_on_the_engine_while_a_server_is_away(api, monkeypatch):
    monkeypatch.setattr(routing_module, "LEAVING_LOOK_MS", 20)
    await api.move("redis")
    await api.publish("engine")
    (last,) = await api.take()
    await api.move("raft")
    await api.publish("log")
    look, refused = RedisEngine.consume, []

    async def look_where_it_can(self, *args, **fields):
        answer = await look(self, *args, **fields)
        if len(refused) < 3:
            refused.append("a server is away")
            raise EngineAway(refused[-1])
        return answer

    monkeypatch.setattr(RedisEngine, "consume", look_where_it_can)
    waiting = asyncio.ensure_future(api.take(timeout_ms=LONG_MS))
    while len(refused) < 3 and not waiting.done():  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0.001)
    await api.ack(last)
    assert [one["value"] for one in await waiting] == ["log"]


@pytest.mark.parametrize("look_ms", [10, LONG_MS])
async def test_a_deleted_group_does_not_come_back_while_its_topic_leaves(api, monkeypatch, look_ms):
    monkeypatch.setattr(routing_module, "LEAVING_LOOK_MS", look_ms)
    await api.move("redis")
    for group in ("g", "h"):
        await api.take(group=group)
    await api.publish(1)
    # It stays in flight, so the group is not finished on the engine.
    assert len(await api.take()) == 1
    await api.move("raft")
    api.node.tick_listeners.remove(api.routing._look_at_waits)
    waiting = asyncio.create_task(api.post("consume", group="g", timeout_ms=LONG_MS))
    name = api.routing.stay(api.routing.topic("t")).name
    while not api.service.engine().waiting(name, "g"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert (await api.call("DELETE", "/queue/group", topic="t", group="g"))["deleted"]
    assert (await waiting)["code"] == "not_found"
    assert await api.service.administration().groups(name) == ["h"]
    assert list(api.routing.topic("t").groups) == ["h"]


@pytest.mark.parametrize("path", ["/queue/group", "/queue/topic"])
async def test_a_consume_that_waits_is_refused_when_its_group_or_topic_is_deleted(api, path):
    await api.move("redis")
    waiting = asyncio.ensure_future(api.post("consume", group="g", timeout_ms=LONG_MS))
    while not api.routing._waits:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0.001)
    fields = {"topic": "t", "group": "g"} if path.endswith("group") else {"topic": "t"}
    assert (await api.call("DELETE", path, **fields))["deleted"]
    assert (await waiting)["code"] == "not_found"


# ------------------------------------------------------------------ both engines


async def test_statistics_are_those_of_both(api):
    await api.publish(1, 2)
    await api.take(1)
    await api.move("redis")
    await api.call("PUT", "/queue/group", topic="t", group="g")
    await api.publish(3, 4, 5)
    stats = await api.stats()
    assert (stats["messages"], stats["published"], stats["engine"]) == (5, 5, {"state": "ready", "detail": ""})
    (group,) = stats["groups"]
    assert (group["ready"], group["in_flight"]) == (4, 1)
    (line,) = (await api.call("GET", "/queue/stats", topics=["t"], group="g"))["topics"]
    assert (line["messages"], line["ready"], line["settings"]["engine"]) == (5, 4, "redis")
    (line,) = (await api.call("GET", "/queue/stats"))["topics"]
    assert (line["messages"], line["moving_from"]) == (5, "raft")


async def test_peek_shows_both_in_their_order(api):
    await api.publish(1)
    await api.take()
    await api.move("redis")
    await api.publish(2, headers={"a": "b"})
    lines = (await api.call("GET", "/queue/peek", topic="t"))["messages"]
    assert [one["value"] for one in lines] == [1, 2]
    assert lines[1]["headers"] == {"a": "b"}
    (one,) = (await api.call("GET", "/queue/peek", topic="t", limit=1))["messages"]
    assert one["value"] == 1
    for line in lines:
        (found,) = (await api.call("GET", "/queue/peek", topic="t", msg_id=line["msg_id"]))["messages"]
        assert found["value"] == line["value"]


async def test_lines_about_topics_read_no_groups(api, monkeypatch):
    await api.move("redis")
    await api.publish(1, 2)
    for group in ("g", "h", "i"):
        await api.call("PUT", "/queue/group", topic="t", group=group)
    for one in await api.take(1):
        await api.post("nack", group="g", msg_id=one["msg_id"], receipt=one["receipt"], dead=True)
    views, asked = api.service.views(), Counter()
    call = views._servers.call

    async def counted(step, keys, *args, **options):
        asked[step] += 1
        return await call(step, keys, *args, **options)

    monkeypatch.setattr(views._servers, "call", counted)
    (line,) = (await api.call("GET", "/queue/stats"))["topics"]
    assert (line["messages"], line["dead"], line["group_count"]) == (2, 1, 3)
    assert asked == {"stats": PARTITIONS, "dead_count": PARTITIONS}
    asked.clear()
    (line,) = (await api.call("GET", "/queue/stats", topics=["t"], group="h"))["topics"]
    assert (line["dead"], line["ready"]) == (1, 2)
    assert asked == {"stats": PARTITIONS, "dead_count": PARTITIONS, "group_stats": PARTITIONS}
    asked.clear()
    await api.call("DELETE", "/queue/topic", topic="t")
    assert asked["group_stats"] == 0


async def test_dead_letters_of_both(api):
    await api.publish("log")
    (one,) = await api.take()
    await api.post("nack", group="g", msg_id=one["msg_id"], dead=True)
    await api.move("redis")
    await api.publish("engine")
    (two,) = await api.take()
    assert (await api.post("nack", group="g", msg_id=two["msg_id"], receipt=two["receipt"], dead=True))["dead"]
    dead = (await api.call("GET", "/queue/peek", topic="t", group="g", dead=True))["messages"]
    assert [line["value"] for line in dead] == ["log", "engine"]
    assert (await api.post("redrive", group="g", msg_id=two["msg_id"]))["redriven"] == 1
    (two,) = await api.take()
    await api.post("nack", group="g", msg_id=two["msg_id"], receipt=two["receipt"], dead=True)
    assert (await api.post("redrive", group="g"))["redriven"] == 2
    assert await api.finish_all() == ["log", "engine"]


async def test_purge_deletes_both(api):
    await api.publish("log")
    await api.take()
    await api.move("redis")
    await api.publish(1, 2)
    assert (await api.post("purge"))["purged"] == 3
    assert await api.values() == []
    assert (await api.stats())["messages"] == 0


async def test_deleting_a_topic_counts_its_messages_on_the_engine(api):
    await api.move("redis")
    await api.publish(1, 2)
    assert (await api.call("DELETE", "/queue/topic", topic="t"))["purged"] == 2
    assert (await api.stats())["exists"] is False


# ------------------------------------------------------------------ away


async def test_a_node_without_an_engine(node):
    async with opened(node, "") as api:
        refused = await api.call("PUT", "/queue/topic", topic="t", engine="redis")
        assert (refused["status"], refused["code"]) == (503, "engine_away")
        assert "DSS_ENGINE_URL" in refused["detail"]
        assert (await api.stats())["exists"] is False


async def test_an_engine_that_is_away_stops_only_its_topics(api):
    await api.move("redis")
    await api.publish("kept")
    (held,) = await api.take()
    await api.publish("kept too")
    await api.go_away()
    named = {"group": "g", "msg_id": held["msg_id"], "receipt": held["receipt"]}
    calls = {
        "publish": {"value": 1},
        "consume": {"group": "g"},
        "ack": named,
        "nack": named,
        "extend": {**named, "visibility_ms": 1000},
        "redrive": {"group": "g"},
        "purge": {},
    }
    for name, fields in calls.items():
        refused = await api.post(name, **fields)
        assert (refused["status"], refused["code"], refused["detail"]) == (503, "engine_away", "no server answers"), name
    for method, fields in (("PUT", {}), ("DELETE", {})):
        refused = await api.call(method, "/queue/group", topic="t", group="h", **fields)
        assert refused["code"] == "engine_away"
    stats = await api.stats()
    assert (stats["messages"], stats["engine"]) == (0, {"state": "away", "detail": "no server answers"})
    assert (await api.post("publish", topic="other", value=1))["status"] == 200
    assert (await api.post("consume", topic="other", group="g", timeout_ms=0))["value"] == 1
    api.come_back()
    assert (await api.ack(held))["acked"]
    assert await api.values() == ["kept too"]


async def test_a_node_that_stops_ends_the_waits_on_the_engine(api):
    await api.move("redis")
    waiting = asyncio.ensure_future(api.post("consume", group="g", timeout_ms=LONG_MS))
    while not api.routing._waits:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0.001)
    api.routing.withdraw()
    assert (await waiting)["code"] == "stopping"
    assert (await api.post("consume", group="g", timeout_ms=LONG_MS))["code"] == "stopping"


# ------------------------------------------------------------------ subscriptions


class Feed:
    """A client that reads everything immediately."""

    backlog = 0

    def __init__(self) -> None:
        self.liveness = Liveness()
        self.events = asyncio.Queue()

    def push(self, event) -> None:
        self.events.put_nowait(event)

    async def drained(self) -> None: ...

    async def message(self):
        async with asyncio.timeout(READY_S):
            event = await self.events.get()
        return json.loads(bytes(event.value)), {"msg_id": event.msg_id, "receipt": event.receipt, "attempt": event.attempt}


@pytest.fixture
async def subscribed(api, monkeypatch):
    monkeypatch.setattr(subscribers, "ENGINE_LOOK_S", 0.02)
    Subscribers(api.node)

    @asynccontextmanager
    async def open_(**fields):
        feed = Feed()
        task = asyncio.create_task(subscribe(api.node, Subscribe(topic="t", group="g", **fields), feed))
        try:
            yield feed
        finally:
            task.cancel()
            await asyncio.wait((task,))

    return open_


async def test_a_subscription_gets_messages_up_to_its_credit(api, subscribed):
    await api.move("redis")
    async with subscribed(credit=2) as feed:
        for value in (1, 2, 3):
            await api.publish(value, key="one partition")
        await api.publish(4)
        first = await feed.message()
        second = await feed.message()
        assert sorted((first[0], second[0])) == [1, 4], "one message of the key at a time"
        assert feed.events.empty()
        await api.ack(first[1])
        await feed.message()
        await api.ack(second[1])


async def test_an_ack_at_another_node_makes_room(api, lagging, subscribed):
    await api.move("redis")
    async with subscribed(credit=1) as feed:
        await api.publish(1, 2)
        value, first = await feed.message()
        assert value == 1
        await lagging.node.read_index()
        assert (await lagging.ack(first))["acked"]
        assert (await feed.message())[0] == 2


async def test_a_visibility_timeout_makes_room(api, subscribed):
    await api.move("redis")
    async with subscribed(credit=1, visibility_ms=50) as feed:
        await api.publish("slow")
        _, first = await feed.message()
        value, again = await feed.message()
        assert (value, first["attempt"], again["attempt"]) == ("slow", 1, 2)


async def test_an_ack_with_a_stale_receipt_makes_no_room(api, subscribed):
    await api.move("redis")
    async with subscribed(credit=1) as feed:
        await api.publish(1, 2)
        _, first = await feed.message()
        stale = await api.post("ack", group="g", msg_id=first["msg_id"], receipt=f"{first['msg_id']}.0000000000000001")
        assert stale["code"] == "stale_receipt"
        await api.post("publish", topic="other", value=1)
        assert feed.events.empty()
        await api.ack(first)
        assert (await feed.message())[0] == 2


async def test_the_end_of_a_subscription_gives_messages_back(api, subscribed):
    await api.move("redis")
    async with subscribed(credit=2) as feed:
        await api.publish(1, 2)
        await feed.message()
        await feed.message()
    assert sorted((one["value"], one["attempt"]) for one in await api.take(timeout_ms=LONG_MS)) == [(1, 1), (2, 1)]


async def test_a_subscription_follows_its_topic(api, subscribed):
    async with subscribed(credit=1) as feed:
        await api.publish("log 1")
        _, first = await feed.message()
        await api.move("redis")
        await api.publish("engine", key="k")
        await api.ack(first)
        value, second = await feed.message()
        assert value == "engine"
        await api.move("raft")
        await api.publish("log 2", key="k")
        await api.ack(second)
        assert (await feed.message())[0] == "log 2"


async def test_a_subscription_waits_while_the_engine_is_away(api, subscribed, monkeypatch):
    monkeypatch.setitem(push.PAUSES_S, "engine_away", 0.01)
    await api.move("redis")
    await api.publish(1)
    await api.go_away()
    async with subscribed(credit=1) as feed:
        await asyncio.sleep(0)
        api.come_back()
        assert (await feed.message())[0] == 1


async def test_a_subscription_ends_with_its_group(api, subscribed):
    await api.move("redis")
    feed = Feed()
    subscription = asyncio.create_task(subscribe(api.node, Subscribe(topic="t", group="g"), feed))
    while not api.routing._waits:  # noqa: ASYNC110  (nothing else tells)
        await asyncio.sleep(0.001)
    await api.call("DELETE", "/queue/group", topic="t", group="g")
    assert (await subscription).code == "not_found"
