"""The operations as an entry point calls them: decoded requests, encoded answers, and what is counted."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from prometheus_client import REGISTRY

from dss_api.codec import encode_refusal
from dss_api.errors import Refused
from dss_api.routes import Route
from dss_queue import metrics
from dss_queue.core.commands import Consume, Publish
from dss_queue.operations import OPERATIONS

BY_PATH = {(operation.method, operation.path): Route(operation) for operation in OPERATIONS}


async def call(node, path, body=None, method="POST", query=b""):
    """The decoded JSON of the answer."""
    route = BY_PATH[method, path]
    try:
        decoder = route.decoder
        request = decoder.query(query) if decoder.reads_query else decoder.body(msgspec.json.encode(body))
        answer = route.encoder.encode(await route.handle(node, request))
    except Refused as refused:
        answer = encode_refusal(refused)
    return {"status": answer.status, **msgspec.json.decode(answer.body)}


def sample(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0


async def test_publish_consume_ack(node):
    published = await call(node, "/queue/publish", {"topic": "t", "value": {"n": [1, 2.5, None]}, "key": "k"})
    assert published["ok"] is True
    assert published["duplicate"] is False
    assert published["index"] > 0
    got = await call(node, "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 1000})
    assert (got["msg_id"], got["value"], got["key"]) == (published["msg_id"], {"n": [1, 2.5, None]}, "k")
    assert (got["attempt"], got["partition"], got["headers"]) == (1, published["partition"], None)
    assert got["visible_until_ms"] == got["delivered_ms"] + 15_000
    acked = await call(node, "/queue/ack", {"topic": "t", "group": "g", "msg_id": got["msg_id"], "receipt": got["receipt"]})
    assert (acked["ok"], acked["acked"]) == (True, True)


async def test_a_value_arrives_as_the_bytes_that_were_sent(node):
    body = b'{"topic": "t", "value": {"big": 12345678901234567890123, "x": 1.10,  "e": "\\u00e9"}}'
    route = BY_PATH["POST", "/queue/publish"]
    await route.handle(node, route.decoder.body(body))
    route = BY_PATH["POST", "/queue/consume"]
    answer = route.encoder.encode(await route.handle(node, route.decoder.body(b'{"topic": "t", "group": "g"}')))
    assert b'{"big": 12345678901234567890123, "x": 1.10,  "e": "\\u00e9"}' in answer.body


async def test_an_empty_topic(node):
    got = await call(node, "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": "20"})
    assert (got["status"], got["ok"], got["msg_id"], got["value"]) == (200, True, None, None)
    assert got["empty_reason"] == "no_messages"
    many = await call(node, "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 0, "max_messages": 5})
    assert (many["messages"], many["empty_reason"]) == ([], "no_messages")


async def test_batches(node):
    published = await call(
        node,
        "/queue/publish",
        {"topic": "t", "messages": [{"value": 1, "headers": {"a": "b"}}, {"value": None, "dedup_id": "x"}, {"value": 3}]},
    )
    assert len(published["messages"]) == 3
    got = await call(node, "/queue/consume", {"topic": "t", "group": "g", "max_messages": "2"})
    assert [m["value"] for m in got["messages"]] == [1, None]
    assert got["messages"][0]["headers"] == {"a": "b"}
    acked = await call(node, "/queue/ack", {"topic": "t", "group": "g", "msg_ids": [m["msg_id"] for m in got["messages"]]})
    assert acked["acked"] is True


async def test_defaults_come_from_the_node(node):
    await call(node, "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 0})
    command = node.commands[-1]
    assert isinstance(command, Consume)
    assert (command.visibility_ms, command.max_messages) == (15_000, 1)
    await call(node, "/queue/publish", {"topic": "t", "value": 1, "key": "customer-7"})
    command = node.commands[-1]
    assert isinstance(command, Publish)
    assert command.messages[0].partition >= 0


async def test_a_stale_receipt_is_a_problem(node):
    await call(node, "/queue/publish", {"topic": "t", "value": 1})
    first = await call(node, "/queue/consume", {"topic": "t", "group": "g", "visibility_ms": 1})
    second = await call(node, "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 1000})
    assert second["attempt"] == 2
    problem = await call(node, "/queue/ack", {"topic": "t", "group": "g", "msg_id": first["msg_id"], "receipt": first["receipt"]})
    assert (problem["status"], problem["code"], problem["ok"]) == (409, "stale_receipt", False)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/queue/publish", {"value": 1}, "topic"),
        ("/queue/publish", {"topic": "t"}, "value"),
        ("/queue/publish", {"topic": "", "value": 1}, "topic"),
        ("/queue/publish", {"topic": "t\n", "value": 1}, "topic"),
        ("/queue/publish", {"topic": "é" * 300, "value": 1}, "topic"),
        ("/queue/publish", {"topic": "t", "value": 1, "key": "é" * 300}, "key"),
        ("/queue/publish", {"topic": "t", "value": 1, "delay_ms": -1}, "delay_ms"),
        ("/queue/publish", {"topic": "t", "value": 1, "colour": "red"}, "colour"),
        ("/queue/publish", {"topic": "t", "messages": []}, "messages"),
        ("/queue/publish", {"topic": "t", "messages": [{"key": "k"}]}, "messages[0].value"),
        ("/queue/publish", {"topic": "t", "value": 1, "messages": [{"value": 1}]}, "messages"),
        ("/queue/publish", {"topic": "t", "value": 1, "headers": {"a": "x" * 9000, "b": "x" * 9000}}, "headers"),
        ("/queue/consume", {"topic": "t"}, "group"),
        ("/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 20_001}, "timeout_ms"),
        ("/queue/consume", {"topic": "t", "group": "g", "timeout_ms": "soon"}, "timeout_ms"),
        ("/queue/consume", {"topic": "t", "group": "g", "visibility_ms": 0}, "visibility_ms"),
        ("/queue/consume", {"topic": "t", "group": "g", "max_messages": 1001}, "max_messages"),
        ("/queue/ack", {"topic": "t", "group": "g"}, "msg_id"),
        ("/queue/ack", {"topic": "t", "group": "g", "msg_ids": ["1-0"], "receipts": []}, "receipts"),
        (
            "/queue/ack",
            {"topic": "t", "group": "g", "msg_ids": ["1-0", "2-0", "1-0"], "receipts": ["1:1", "2:1", "1:2"]},
            "msg_ids",
        ),
        ("/queue/ack", {"topic": "t", "group": "g", "msg_id": "1-0", "publish": [{"value": 1}]}, "publish[0].topic"),
        ("/queue/nack", {"topic": "t", "group": "g", "msg_id": 5}, "msg_id"),
        ("/queue/extend", {"topic": "t", "group": "g", "msg_id": "1-0"}, "visibility_ms"),
        ("/queue/purge", {"topic": "t", "group": "g"}, "group"),
    ],
)
async def test_bad_input_names_the_field(node, path, body, field):
    problem = await call(node, path, body)
    assert (problem["status"], problem["code"], problem.get("field")) == (400, "invalid", field), problem
    assert not node.commands


@pytest.mark.parametrize("body", [{"value": "x" * 1000}, {"messages": [{"value": 1}, {"value": "x" * 1000}]}])
async def test_a_value_that_is_too_large_is_refused(node, body):
    problem = await call(node, "/queue/publish", {"topic": "t", **body})
    assert (problem["status"], problem["code"]) == (413, "too_large")
    assert not node.commands


async def test_over_limit_is_answered_and_nothing_is_stored(node):
    await call(node, "/queue/topic", {"topic": "t", "max_bytes": 3}, method="PUT")
    problem = await call(node, "/queue/publish", {"topic": "t", "value": 12345})
    assert (problem["status"], problem["code"]) == (429, "over_limit")
    assert not node.broker.topics["t"].messages.by_number


async def test_settings_are_replaced_as_a_whole(node):
    await call(node, "/queue/topic", {"topic": "t", "max_attempts": 5, "backoff_ms": 7}, method="PUT")
    answer = await call(node, "/queue/topic", {"topic": "t", "max_attempts": 6}, method="PUT")
    assert (answer["max_attempts"], answer["backoff_ms"], answer["dedup_window_ms"]) == (6, 0, 300_000)


async def test_stats_and_peek(node):
    for value in (1, 2, 3):
        await call(node, "/queue/publish", {"topic": "t", "value": value, "headers": {"n": str(value)}})
    await call(node, "/queue/consume", {"topic": "t", "group": "g"})
    got = await call(node, "/queue/consume", {"topic": "t", "group": "g"})
    await call(node, "/queue/nack", {"topic": "t", "group": "g", "msg_id": got["msg_id"], "dead": True})
    stats = await call(node, "/queue/stats", method="GET", query=b"topic=t")
    (group,) = stats["groups"]
    assert {name: group[name] for name in ("group", "ready", "delayed", "in_flight", "dead")} == {
        "group": "g",
        "ready": 1,
        "delayed": 0,
        "in_flight": 1,
        "dead": 1,
    }
    assert group["oldest_age_ms"] >= 0
    every = await call(node, "/queue/stats", method="GET")
    assert [line["topic"] for line in every["topics"]] == ["t"]
    peeked = await call(node, "/queue/peek", method="GET", query=b"topic=t&group=g")
    assert [(m["value"], m["state"]) for m in peeked["messages"]] == [(1, "in_flight"), (3, "ready")]
    dead = await call(node, "/queue/peek", method="GET", query=b"topic=t&group=g&dead=true")
    assert [(m["value"], m["headers"], m["reason"]) for m in dead["messages"]] == [(2, {"n": "2"}, "rejected")]
    assert [m["value"] for m in (await call(node, "/queue/peek", method="GET", query=b"topic=t&limit=1"))["messages"]] == [1]
    unknown = await call(node, "/queue/stats", method="GET", query=b"topic=nowhere")
    assert (unknown["status"], unknown["exists"], unknown["groups"]) == (200, False, [])


async def test_stats_of_several_topics(node):
    for topic, value in (("t", 1), ("t", 2), ("u", 3), ("v", 4)):
        published = await call(node, "/queue/publish", {"topic": topic, "value": value})
        assert published.get("created", False) == (value != 2)
    await call(node, "/queue/consume", {"topic": "t", "group": "g"})
    await call(node, "/queue/topic", {"topic": "t", "max_attempts": 5}, method="PUT")
    answer = await call(node, "/queue/stats", method="GET", query=b"topics=u&topics=t&topics=none&topics=t&group=g")
    found = [(line["topic"], line["messages"], line["ready"], line["settings"]["max_attempts"]) for line in answer["topics"]]
    assert found == [("u", 1, 0, 20), ("t", 2, 1, 5)]
    for query in (b"topics=t&topic=u", b"topics=", b"group=g", b"topics=" + 257 * "\u00e9".encode()):
        assert (await call(node, "/queue/stats", method="GET", query=query))["code"] == "invalid", query


async def test_a_consumer_that_hangs_up_takes_no_message(node):
    route = BY_PATH["POST", "/queue/consume"]
    request = route.decoder.body(b'{"topic": "t", "group": "g", "timeout_ms": 20000}')
    waiting = asyncio.ensure_future(route.handle(node, request))
    await asyncio.sleep(0)
    cancelled = sample("queue_consume_total", topic="t", result="cancelled")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert sample("queue_consume_total", topic="t", result="cancelled") == cancelled + 1
    await call(node, "/queue/publish", {"topic": "t", "value": 1})
    assert (await call(node, "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 0}))["attempt"] == 1


async def test_each_metric_counts_its_event(node):
    metrics.attach(node)
    topic = "figures"

    def figures():
        return {
            "published": sample("queue_publish_total", topic=topic),
            "delivered": sample("queue_consume_total", topic=topic, result="message"),
            "empty": sample("queue_consume_total", topic=topic, result="empty"),
            "redelivered": sample("queue_redeliver_total", topic=topic),
            "in flight": sample("queue_inflight", topic=topic),
            "depth": sample("queue_depth", topic=topic),
            "dead": sample("queue_dead_total", reason="rejected"),
            "deliveries": sample("queue_deliver_seconds_count"),
        }

    async def moved(path, **body):
        before = figures()
        answer = await call(node, path, {"topic": topic, **body})
        after = figures()
        return answer, {name: after[name] - before[name] for name in after if after[name] != before[name]}

    assert (await moved("/queue/publish", messages=[{"value": 1, "dedup_id": "x"}] * 2))[1] == {"published": 1, "depth": 1}
    got, change = await moved("/queue/consume", group="g", timeout_ms=0)
    assert change == {"delivered": 1, "in flight": 1, "deliveries": 1}
    assert (await moved("/queue/consume", group="g", timeout_ms=0))[1] == {"empty": 1}
    assert (await moved("/queue/nack", group="g", msg_id=got["msg_id"]))[1] == {"in flight": -1}
    got, change = await moved("/queue/consume", group="g", timeout_ms=0)
    assert change == {"delivered": 1, "redelivered": 1, "in flight": 1}
    assert (await moved("/queue/nack", group="g", msg_id=got["msg_id"], dead=True))[1] == {
        "in flight": -1,
        "depth": -1,
        "dead": 1,
    }


def test_topic_labels_are_bounded():
    counters = [metrics.of_topic(f"many-{n}") for n in range(metrics.TOPIC_LABELS_MAX + 50)]
    assert counters[-1] is counters[-2]
    assert counters[-1] is metrics._others
