"""Every line of the queue section of the HTTP contract, through the fast lane and through DRF."""

from __future__ import annotations

import time

import pytest

from dss_dev.entry_points import ENTRY_POINTS, opened
from dss_queue import operations


@pytest.fixture(params=ENTRY_POINTS)
def door(request, local_node):
    with opened(request.param, local_node, operations.OPERATIONS, lambda node: len(node.waiting)) as door:
        yield door


def publish(door, *values, topic="t", **fields):
    """Publish values one by one; their ids."""
    return [door.post("/queue/publish", topic=topic, value=value, **fields)[1]["msg_id"] for value in values]


def take(door, **fields):
    """The answer of a consume that does not wait."""
    return door.post("/queue/consume", **{"topic": "t", "group": "g", "timeout_ms": 0, **fields})[1]


def pass_ms(door, ms):
    """So much later, an entry is applied: the node's clock is the machine's."""
    until = time.monotonic() + ms / 1000
    while time.monotonic() < until:
        door.run(door.node.tick)
    door.run(door.node.tick)


def test_publish(door):
    status, answer, _ = door.post("/queue/publish", topic="t", value={"n": 1}, key="customer-7", headers={"a": "b"})
    assert (status, answer["ok"], answer["duplicate"], answer["index"]) == (200, True, False, 1)
    assert answer["msg_id"] == "1-0"
    assert 0 <= answer["partition"] < 16
    got = take(door)
    assert (got["msg_id"], got["value"], got["key"], got["headers"]) == ("1-0", {"n": 1}, "customer-7", {"a": "b"})


def test_an_empty_key_is_none(door):
    publish(door, 1, 2, key="")
    assert [take(door)["value"], take(door)["value"]] == [1, 2], "neither waits for the other"


def test_publish_later_once_and_several(door):
    _, answer, _ = door.post("/queue/publish", topic="t", value=1, dedup_id="d", delay_ms="60000")
    _, again, _ = door.post("/queue/publish", topic="t", value=2, dedup_id="d")
    assert (again["msg_id"], again["duplicate"]) == (answer["msg_id"], True)
    assert take(door)["empty_reason"] == "delayed"
    _, answer, _ = door.post("/queue/publish", topic="t", messages=[{"value": 3, "key": "k"}, {"value": None}])
    assert [one["msg_id"] for one in answer["messages"]] == [f"{answer['index']}-0", f"{answer['index']}-1"]
    assert [one["value"] for one in take(door, max_messages=5)["messages"]] == [3, None]


def test_consume(door):
    (msg_id,) = publish(door, "a")
    status, got, _ = door.post("/queue/consume", topic="t", group="g", visibility_ms="5000", max_messages=None)
    assert (status, got["ok"], got["msg_id"], got["value"], got["attempt"]) == (200, True, msg_id, "a", 1)
    assert got["visible_until_ms"] == got["delivered_ms"] + 5000
    assert got["published_ms"] <= got["delivered_ms"]
    assert got["receipt"].startswith(msg_id)
    assert take(door, group="other")["msg_id"] == msg_id, "each group gets every message"


def test_why_nothing_comes(door):
    status, answer, _ = door.post("/queue/consume", topic="t", group="g", timeout_ms=0)
    assert (status, answer["ok"], answer["msg_id"], answer["empty_reason"]) == (200, True, None, "no_messages")
    publish(door, 1)
    take(door)
    assert take(door)["empty_reason"] == "all_in_flight"
    publish(door, 2, 3, topic="keyed", key="k")
    take(door, topic="keyed")
    assert take(door, topic="keyed")["empty_reason"] == "key_blocked"
    publish(door, 4, topic="late", delay_ms=60_000)
    assert take(door, topic="late")["empty_reason"] == "delayed"


def test_a_long_poll_is_answered_when_a_message_comes(door):
    waiting = door.later("/queue/consume", topic="t", group="g", timeout_ms=20_000)
    (msg_id,) = publish(door, "a")
    door.join()
    ((status, got, _),) = waiting
    assert (status, got["msg_id"], got["value"]) == (200, msg_id, "a")


def test_a_repeated_attempt_gets_the_same_messages(door):
    publish(door, 1, 2, 3)
    first = take(door, attempt_id="a-1", max_messages=2)
    again = take(door, attempt_id="a-1", max_messages=2)
    assert [(one["msg_id"], one["receipt"]) for one in again["messages"]] == [
        (one["msg_id"], one["receipt"]) for one in first["messages"]
    ]
    assert take(door)["value"] == 3


def test_ack(door):
    (msg_id,) = publish(door, 1)
    got = take(door)
    fields = {"topic": "t", "group": "g", "msg_id": msg_id}
    status, answer, _ = door.post("/queue/ack", **fields, receipt=got["receipt"])
    assert (status, answer) == (200, {"ok": True, "acked": True, "index": 3})
    status, answer, _ = door.post("/queue/ack", **fields)
    assert (status, answer["ok"], answer["acked"]) == (200, True, False)
    ids = publish(door, 2, 3)
    take(door, max_messages=2)
    _, answer, _ = door.post("/queue/ack", topic="t", group="g", msg_ids=ids)
    assert (answer["acked"], [one["acked"] for one in answer["results"]]) == (True, [True, True])


def test_an_ack_that_comes_too_late(door):
    (msg_id,) = publish(door, 1)
    got = take(door, visibility_ms=1)
    pass_ms(door, 2)
    other = take(door)
    assert (other["msg_id"], other["attempt"]) == (msg_id, 2)
    status, answer, _ = door.post("/queue/ack", topic="t", group="g", msg_id=msg_id, receipt=got["receipt"])
    assert (status, answer["ok"], answer["code"]) == (409, False, "stale_receipt")
    assert door.post("/queue/ack", topic="t", group="g", msg_id=msg_id, receipt=other["receipt"])[1]["acked"]


def test_an_ack_that_publishes(door):
    (msg_id,) = publish(door, 1)
    take(door)
    _, answer, _ = door.post("/queue/ack", topic="t", group="g", msg_id=msg_id, publish=[{"topic": "next", "value": 2}])
    assert (answer["acked"], answer["published"][0]["duplicate"], answer["released"]) == (True, False, [])
    assert take(door, topic="next")["value"] == 2


def test_nack(door):
    (msg_id,) = publish(door, 1)
    take(door)
    status, answer, _ = door.post("/queue/nack", topic="t", group="g", msg_id=msg_id)
    assert (status, answer["ok"], answer["nacked"], answer["dead"]) == (200, True, True, False)
    assert take(door)["attempt"] == 2
    door.post("/queue/nack", topic="t", group="g", msg_id=msg_id, delay_ms=60_000)
    assert take(door)["empty_reason"] == "delayed"
    (other,) = publish(door, 2)
    take(door)
    assert door.post("/queue/nack", topic="t", group="g", msg_id=other, dead="true")[1]["dead"] is True
    (dead,) = door.get("/queue/peek?topic=t&group=g&dead=true")[1]["messages"]
    assert (dead["msg_id"], dead["reason"]) == (other, "rejected")
    assert [ending["reason"] for ending in dead["history"]] == ["rejected"]


def test_extend(door):
    (msg_id,) = publish(door, 1)
    got = take(door, visibility_ms=1000)
    fields = {"topic": "t", "group": "g", "msg_id": msg_id}
    status, answer, _ = door.post("/queue/extend", **fields, visibility_ms=60_000)
    assert status == 200
    assert answer["visible_until_ms"] >= got["delivered_ms"] + 60_000
    door.post("/queue/ack", **fields)
    status, answer, _ = door.post("/queue/extend", **fields, visibility_ms=60_000)
    assert (status, answer["code"]) == (409, "stale_receipt")


def test_stats(door):
    publish(door, 1, 2, 3)
    publish(door, 4, delay_ms=60_000)
    take(door)
    got = take(door)
    door.post("/queue/nack", topic="t", group="g", msg_id=got["msg_id"], dead=True)
    status, answer, _ = door.get("/queue/stats?topic=t")
    (group,) = answer["groups"]
    assert (status, answer["topic"], answer["exists"], group["group"]) == (200, "t", True, "g")
    assert {name: group[name] for name in ("ready", "delayed", "in_flight", "dead")} == {
        "ready": 1,
        "delayed": 1,
        "in_flight": 1,
        "dead": 1,
    }
    assert group["oldest_age_ms"] >= 0
    assert {"deliver_per_second", "ack_per_second"} <= group.keys()
    assert [line["topic"] for line in door.get("/queue/stats")[1]["topics"]] == ["t"]


def test_peek_takes_nothing(door):
    publish(door, 1, 2)
    status, answer, _ = door.get("/queue/peek?topic=t&limit=1")
    assert (status, [one["value"] for one in answer["messages"]]) == (200, [1])
    take(door)
    assert [one["state"] for one in door.get("/queue/peek?topic=t&group=g")[1]["messages"]] == ["in_flight", "ready"]
    assert take(door)["attempt"] == 1


def test_topic(door):
    status, answer, _ = door.put("/queue/topic", topic="t", max_attempts=2, backoff_ms="5", max_bytes=20)
    expected = {"max_attempts": 2, "backoff_ms": 5, "retention_ms": 7 * 24 * 3600 * 1000, "dedup_window_ms": 300_000}
    assert status == 200
    assert {**answer, **expected, "topic": "t", "max_bytes": 20} == answer
    _, answer, _ = door.put("/queue/topic", topic="t")
    assert (answer["max_attempts"], answer["backoff_ms"]) == (20, 0)


def test_at_the_limit_of_attempts_a_message_is_dead_and_redrive_brings_it_back(door):
    door.put("/queue/topic", topic="t", max_attempts=2)
    (msg_id,) = publish(door, 1)
    take(door, visibility_ms=1)
    pass_ms(door, 2)
    assert take(door)["attempt"] == 2
    assert door.post("/queue/nack", topic="t", group="g", msg_id=msg_id)[1]["dead"] is True
    (dead,) = door.get("/queue/peek?topic=t&group=g&dead=true")[1]["messages"]
    assert (dead["reason"], [ending["reason"] for ending in dead["history"]]) == ("max_attempts", ["timeout", "nack"])
    assert take(door)["msg_id"] is None
    status, answer, _ = door.post("/queue/redrive", topic="t", group="g")
    assert (status, answer["redriven"]) == (200, 1)
    got = take(door)
    assert (got["msg_id"], got["attempt"]) == (msg_id, 1)


def test_purge(door):
    publish(door, 1, 2)
    status, answer, _ = door.post("/queue/purge", topic="t")
    assert (status, answer["purged"]) == (200, 2)
    assert take(door)["empty_reason"] == "no_messages"


def test_a_full_topic_takes_nothing(door):
    door.put("/queue/topic", topic="t", max_bytes=4)
    publish(door, "ab")
    status, answer, headers = door.post("/queue/publish", topic="t", value="c")
    assert (status, answer["ok"], answer["code"]) == (429, False, "over_limit")
    assert int(headers["retry-after"]) >= 1
    assert [one["value"] for one in door.get("/queue/peek?topic=t")[1]["messages"]] == ["ab"]


def test_a_message_that_is_too_large_takes_nothing(door):
    status, answer, _ = door.post("/queue/publish", topic="t", messages=[{"value": 1}, {"value": "x" * 1000}])
    assert (status, answer["code"], answer["field"]) == (413, "too_large", "value")
    assert not door.node.commands


@pytest.mark.parametrize(
    ("method", "path", "fields", "field"),
    [
        ("post", "/queue/publish", {"value": 1}, "topic"),
        ("post", "/queue/publish", {"topic": "t"}, "value"),
        ("post", "/queue/publish", {"topic": "t\n", "value": 1}, "topic"),
        ("post", "/queue/publish", {"topic": "t", "value": 1, "delay_ms": -1}, "delay_ms"),
        ("post", "/queue/publish", {"topic": "t", "messages": [{"key": "k"}]}, "messages[0].value"),
        ("post", "/queue/consume", {"topic": "t"}, "group"),
        ("post", "/queue/consume", {"topic": "t", "group": "g", "timeout_ms": 20_001}, "timeout_ms"),
        ("post", "/queue/consume", {"topic": "t", "group": "g", "colour": "red"}, "colour"),
        ("post", "/queue/ack", {"topic": "t", "group": "g"}, "msg_id"),
        (
            "post",
            "/queue/ack",
            {"topic": "t", "group": "g", "msg_id": "1-0", "release": [{"key": "k"}]},
            "release[0].client",
        ),
        ("post", "/queue/nack", {"topic": "t", "group": "g", "msg_id": ""}, "msg_id"),
        ("post", "/queue/extend", {"topic": "t", "group": "g", "msg_id": "1-0", "visibility_ms": 0}, "visibility_ms"),
        ("put", "/queue/topic", {"topic": "t", "max_attempts": 0}, "max_attempts"),
        ("post", "/queue/redrive", {"topic": "t"}, "group"),
        ("post", "/queue/purge", {}, "topic"),
    ],
)
def test_bad_input_is_refused_by_the_name_of_the_field(door, method, path, fields, field):
    status, answer, headers = getattr(door, method)(path, **fields)
    assert (status, answer["ok"], answer["code"], answer["field"]) == (400, False, "invalid", field)
    assert headers["content-type"].startswith("application/problem+json")
    assert not door.node.commands


def test_every_call_of_the_queue_is_called_here():
    """A new operation gets a test above."""
    calls = {"publish", "consume", "ack", "nack", "extend", "stats", "peek", "topic", "redrive", "purge"}
    assert {operation.path for operation in operations.OPERATIONS} == {f"/queue/{call}" for call in calls}
