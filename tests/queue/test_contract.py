"""Every line of the queue section of the HTTP contract, through the JSON fast path and through DRF.

With `TEST_CLUSTER_URLS`, at the nodes of a real cluster, also through a WebSocket: see dss_dev/real_entry_points.py.
"""

from __future__ import annotations

import time

import pytest

from dss_dev.real_entry_points import NAMED, URLS, opened
from dss_queue import operations
from dss_raft.config import ValueLimit

LOG = "replicated-log"
VALUE_BYTES_MAX = ValueLimit.value_bytes_max if URLS else 1000


@pytest.fixture(params=NAMED)
def api(request, local_node):
    with opened(request.param, local_node, operations.OPERATIONS, lambda node: len(node.waiting)) as api:
        yield api


def publish(api, *values, topic="t", **fields):
    """Publish values one by one; their ids."""
    return [api.post("/queue/publish", topic=topic, value=value, **fields)[1]["msg_id"] for value in values]


def take(api, **fields):
    """Consume without waiting; the answer."""
    return api.post("/queue/consume", **{"topic": "t", "group": "g", "timeout_ms": 0, **fields})[1]


def pass_ms(api, ms):
    """Wait for `ms` of real time and apply an entry."""
    if api.is_real:
        time.sleep(ms / 1000)
        return
    until = time.monotonic() + ms / 1000
    while time.monotonic() < until:
        api.run(api.node.tick)
    api.run(api.node.tick)


def test_publish(api):
    status, answer, _ = api.post("/queue/publish", topic="t", value={"n": 1}, key="customer-7", headers={"a": "b"})
    assert (status, answer["ok"], answer["duplicate"], answer["index"]) == (200, True, False, api.nth(1))
    msg_id = answer["msg_id"]
    assert msg_id == f"{answer['index']}-0"
    assert 0 <= answer["partition"] < 16
    got = take(api)
    assert (got["msg_id"], got["value"], got["key"], got["headers"]) == (msg_id, {"n": 1}, "customer-7", {"a": "b"})


def test_an_empty_key_is_no_key(api):
    publish(api, 1, 2, key="")
    assert [take(api)["value"], take(api)["value"]] == [1, 2], "neither waits for the other"


def test_publish_with_delay_dedup_and_several_messages(api):
    _, answer, _ = api.post("/queue/publish", topic="t", value=1, dedup_id="d", delay_ms="60000")
    _, again, _ = api.post("/queue/publish", topic="t", value=2, dedup_id="d")
    assert (again["msg_id"], again["duplicate"]) == (answer["msg_id"], True)
    assert take(api)["empty_reason"] == "delayed"
    _, answer, _ = api.post("/queue/publish", topic="t", messages=[{"value": 3, "key": "k"}, {"value": None}])
    assert [one["msg_id"] for one in answer["messages"]] == [f"{answer['index']}-0", f"{answer['index']}-1"]
    assert [one["value"] for one in take(api, max_messages=5)["messages"]] == [3, None]


def test_consume(api):
    (msg_id,) = publish(api, "a")
    status, got, _ = api.post("/queue/consume", topic="t", group="g", visibility_ms="5000", max_messages=None)
    assert (status, got["ok"], got["msg_id"], got["value"], got["attempt"]) == (200, True, msg_id, "a", 1)
    assert got["visible_until_ms"] == got["delivered_ms"] + 5000
    assert got["published_ms"] <= got["delivered_ms"]
    assert got["receipt"].startswith(msg_id)
    assert take(api, group="other")["msg_id"] == msg_id, "each group gets every message"


def test_the_reason_of_an_empty_answer(api):
    status, answer, _ = api.post("/queue/consume", topic="t", group="g", timeout_ms=0)
    assert (status, answer["ok"], answer["msg_id"], answer["empty_reason"]) == (200, True, None, "no_messages")
    publish(api, 1)
    take(api)
    assert take(api)["empty_reason"] == "all_in_flight"
    publish(api, 2, 3, topic="keyed", key="k")
    take(api, topic="keyed")
    assert take(api, topic="keyed")["empty_reason"] == "key_blocked"
    publish(api, 4, topic="late", delay_ms=60_000)
    assert take(api, topic="late")["empty_reason"] == "delayed"


def test_a_long_poll_is_answered_when_a_message_is_published(api):
    waiting = api.later("/queue/consume", topic="t", group="g", timeout_ms=20_000)
    (msg_id,) = publish(api, "a")
    api.join()
    ((status, got, _),) = waiting
    assert (status, got["msg_id"], got["value"]) == (200, msg_id, "a")


def test_a_repeated_attempt_gets_the_same_messages(api):
    publish(api, 1, 2, 3)
    first = take(api, attempt_id="a-1", max_messages=2)
    again = take(api, attempt_id="a-1", max_messages=2)
    assert [(one["msg_id"], one["receipt"]) for one in again["messages"]] == [
        (one["msg_id"], one["receipt"]) for one in first["messages"]
    ]
    assert take(api)["value"] == 3


def test_ack(api):
    (msg_id,) = publish(api, 1)
    got = take(api)
    fields = {"topic": "t", "group": "g", "msg_id": msg_id}
    status, answer, _ = api.post("/queue/ack", **fields, receipt=got["receipt"])
    assert (status, answer) == (200, {"ok": True, "durability": LOG, "acked": True, "index": api.nth(3)})
    status, answer, _ = api.post("/queue/ack", **fields)
    assert (status, answer["ok"], answer["acked"]) == (200, True, False)
    ids = publish(api, 2, 3)
    take(api, max_messages=2)
    _, answer, _ = api.post("/queue/ack", topic="t", group="g", msg_ids=ids)
    assert (answer["acked"], [one["acked"] for one in answer["results"]]) == (True, [True, True])


def test_an_ack_with_a_stale_receipt(api):
    (msg_id,) = publish(api, 1)
    got = take(api, visibility_ms=1)
    pass_ms(api, 2)
    other = take(api)
    assert (other["msg_id"], other["attempt"]) == (msg_id, 2)
    status, answer, _ = api.post("/queue/ack", topic="t", group="g", msg_id=msg_id, receipt=got["receipt"])
    assert (status, answer["ok"], answer["code"]) == (409, False, "stale_receipt")
    assert api.post("/queue/ack", topic="t", group="g", msg_id=msg_id, receipt=other["receipt"])[1]["acked"]


def test_an_ack_that_publishes(api):
    (msg_id,) = publish(api, 1)
    take(api)
    _, answer, _ = api.post("/queue/ack", topic="t", group="g", msg_id=msg_id, publish=[{"topic": "next", "value": 2}])
    assert (answer["acked"], answer["published"][0]["duplicate"], answer["released"]) == (True, False, [])
    assert take(api, topic="next")["value"] == 2


def test_nack(api):
    (msg_id,) = publish(api, 1)
    take(api)
    status, answer, _ = api.post("/queue/nack", topic="t", group="g", msg_id=msg_id)
    assert (status, answer["ok"], answer["nacked"], answer["dead"]) == (200, True, True, False)
    assert take(api)["attempt"] == 2
    api.post("/queue/nack", topic="t", group="g", msg_id=msg_id, delay_ms=60_000)
    assert take(api)["empty_reason"] == "delayed"
    (other,) = publish(api, 2)
    take(api)
    assert api.post("/queue/nack", topic="t", group="g", msg_id=other, dead="true")[1]["dead"] is True
    (dead,) = api.get("/queue/peek?topic=t&group=g&dead=true")[1]["messages"]
    assert (dead["msg_id"], dead["reason"]) == (other, "rejected")
    assert [ending["reason"] for ending in dead["history"]] == ["rejected"]


def test_extend(api):
    (msg_id,) = publish(api, 1)
    got = take(api, visibility_ms=1000)
    fields = {"topic": "t", "group": "g", "msg_id": msg_id}
    status, answer, _ = api.post("/queue/extend", **fields, visibility_ms=60_000)
    assert status == 200
    assert answer["visible_until_ms"] >= got["delivered_ms"] + 60_000
    api.post("/queue/ack", **fields)
    status, answer, _ = api.post("/queue/extend", **fields, visibility_ms=60_000)
    assert (status, answer["code"]) == (409, "stale_receipt")


def test_extend_by_nothing_gives_the_message_back(api):
    (msg_id,) = publish(api, 1)
    got = take(api)
    fields = {"topic": "t", "group": "g", "msg_id": msg_id, "receipt": got["receipt"], "visibility_ms": 0}
    status, answer, _ = api.post("/queue/extend", **fields)
    assert (status, answer["msg_id"]) == (200, msg_id)
    assert answer["visible_until_ms"] >= got["delivered_ms"]
    assert api.post("/queue/extend", **fields)[1]["code"] == "stale_receipt"
    again = take(api)
    assert (again["attempt"], again["first_delivered_ms"]) == (2, got["first_delivered_ms"])


def test_a_run_of_one_key(api):
    ids = publish(api, 1, 2, 3, key="k")
    run = take(api, max_messages=10, max_per_key="2")["messages"]
    assert [one["value"] for one in run] == [1, 2]
    assert take(api, max_messages=10, max_per_key=2)["empty_reason"] == "key_blocked"
    api.post("/queue/nack", topic="t", group="g", msg_id=ids[0])
    assert [one["value"] for one in take(api, max_messages=10, max_per_key=10)["messages"]] == [1, 2, 3]


def test_dead_letters_move_to_the_dead_letter_topic(api):
    status, answer, _ = api.put("/queue/topic", topic="t", max_attempts=0, dead_letter_topic="dead")
    assert (status, answer["max_attempts"], answer["dead_letter_topic"]) == (200, 0, "dead")
    (msg_id,) = publish(api, 1)
    take(api)
    assert api.post("/queue/nack", topic="t", group="g", msg_id=msg_id, dead=True)[1]["dead"] is True
    moved = take(api, topic="dead")
    assert (moved["value"], moved["headers"]["dss-dead-msg-id"]) == (1, msg_id)
    assert api.get("/queue/stats?topic=t")[1]["settings"]["dead_letter_topic"] == "dead"


def test_settings_that_the_engine_redis_cannot_have_are_refused(api):
    for wrong, refused in (
        ({"engine": "redis", "keep_ms": 1000}, (409, "not_on_engine", "keep_ms")),
        ({"engine": "redis", "dead_letter_topic": "dead"}, (409, "not_on_engine", "dead_letter_topic")),
        ({"acks": "fsync"}, (400, "invalid", "acks")),
        ({"engine": "etcd"}, (400, "invalid", "engine")),
    ):
        status, answer, _ = api.put("/queue/topic", topic="t", **wrong)
        assert (status, answer["code"], answer["field"]) == refused
    assert api.get("/queue/stats?topic=t")[1]["exists"] is False
    for plain in ({}, {"max_attempts": 0}):
        assert api.put("/queue/topic", topic="t", **plain)[1]["engine"] == "raft"
    settings = api.get("/queue/stats?topic=t")[1]["settings"]
    assert (settings["engine"], settings["acks"]) == ("raft", "primary")


def test_stats(api):
    publish(api, 1, 2, 3)
    publish(api, 4, delay_ms=60_000)
    take(api)
    got = take(api)
    api.post("/queue/nack", topic="t", group="g", msg_id=got["msg_id"], dead=True)
    status, answer, _ = api.get("/queue/stats?topic=t")
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
    topics = [line["topic"] for line in api.get("/queue/stats")[1]["topics"]]
    assert "t" in topics if api.is_real else topics == ["t"]


def test_peek_takes_nothing(api):
    publish(api, 1, 2)
    status, answer, _ = api.get("/queue/peek?topic=t&limit=1")
    assert (status, [one["value"] for one in answer["messages"]]) == (200, [1])
    take(api)
    assert [one["state"] for one in api.get("/queue/peek?topic=t&group=g")[1]["messages"]] == ["in_flight", "ready"]
    assert take(api)["attempt"] == 1


def test_topic(api):
    status, answer, _ = api.put("/queue/topic", topic="t", max_attempts=2, backoff_ms="5", max_bytes=20)
    expected = {"max_attempts": 2, "backoff_ms": 5, "retention_ms": 7 * 24 * 3600 * 1000, "dedup_window_ms": 300_000}
    assert status == 200
    assert {**answer, **expected, "topic": "t", "max_bytes": 20} == answer
    _, answer, _ = api.put("/queue/topic", topic="t")
    assert (answer["max_attempts"], answer["backoff_ms"]) == (20, 0)


def test_a_message_is_dead_after_max_attempts_until_redrive(api):
    api.put("/queue/topic", topic="t", max_attempts=2)
    (msg_id,) = publish(api, 1)
    take(api, visibility_ms=1)
    pass_ms(api, 2)
    assert take(api)["attempt"] == 2
    assert api.post("/queue/nack", topic="t", group="g", msg_id=msg_id)[1]["dead"] is True
    (dead,) = api.get("/queue/peek?topic=t&group=g&dead=true")[1]["messages"]
    assert (dead["reason"], [ending["reason"] for ending in dead["history"]]) == ("max_attempts", ["timeout", "nack"])
    assert take(api)["msg_id"] is None
    status, answer, _ = api.post("/queue/redrive", topic="t", group="g")
    assert (status, answer["redriven"]) == (200, 1)
    got = take(api)
    assert (got["msg_id"], got["attempt"]) == (msg_id, 1)


def test_purge(api):
    publish(api, 1, 2)
    status, answer, _ = api.post("/queue/purge", topic="t")
    assert (status, answer["purged"]) == (200, 2)
    assert take(api)["empty_reason"] == "no_messages"


def test_a_full_topic_refuses_messages(api):
    api.put("/queue/topic", topic="t", max_bytes=4)
    publish(api, "ab")
    status, answer, headers = api.post("/queue/publish", topic="t", value="c")
    assert (status, answer["ok"], answer["code"]) == (429, False, "over_limit")
    assert not api.has_headers or int(headers["retry-after"]) >= 1
    assert [one["value"] for one in api.get("/queue/peek?topic=t")[1]["messages"]] == ["ab"]


def test_one_message_that_is_too_large_refuses_the_whole_call(api):
    status, answer, _ = api.post("/queue/publish", topic="t", messages=[{"value": 1}, {"value": "x" * VALUE_BYTES_MAX}])
    assert (status, answer["code"], answer["field"]) == (413, "too_large", "value")
    assert api.is_real or not api.node.commands


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
        ("post", "/queue/extend", {"topic": "t", "group": "g", "msg_id": "1-0", "visibility_ms": -1}, "visibility_ms"),
        ("put", "/queue/topic", {"topic": "t", "max_attempts": -1}, "max_attempts"),
        ("put", "/queue/topic", {"topic": "t", "dead_letter_topic": "t"}, "dead_letter_topic"),
        ("post", "/queue/consume", {"topic": "t", "group": "g", "max_per_key": 0}, "max_per_key"),
        ("put", "/queue/topic", {"topic": "t", "keep_ms": -1}, "keep_ms"),
        ("put", "/queue/group", {"topic": "t"}, "group"),
        ("put", "/queue/group", {"topic": "t", "group": "g", "start": "last"}, "start"),
        ("put", "/queue/group", {"topic": "t", "group": "g", "start": "now", "msg_id": "1-0"}, "start"),
        ("put", "/queue/settings", {"create_topics": 3}, "create_topics"),
        ("post", "/queue/redrive", {"topic": "t"}, "group"),
        ("post", "/queue/purge", {}, "topic"),
    ],
)
def test_a_refusal_of_bad_input_names_the_field(api, method, path, fields, field):
    status, answer, headers = getattr(api, method)(path, **fields)
    assert (status, answer["ok"], answer["code"], answer["field"]) == (400, False, "invalid", field)
    assert not api.has_headers or headers["content-type"].startswith("application/problem+json")
    assert api.is_real or not api.node.commands


def test_a_topic_is_deleted(api):
    publish(api, 1, 2)
    status, answer, _ = api.delete("/queue/topic?topic=t")
    assert (status, answer) == (200, {"ok": True, "deleted": True, "purged": 2, "index": api.nth(3)})
    assert api.get("/queue/stats?topic=t")[1]["exists"] is False
    status, answer, _ = api.delete("/queue/topic?topic=t")
    assert (status, answer["deleted"], answer["purged"]) == (200, False, 0)


def test_a_group_is_created_and_deleted(api):
    (first, _) = publish(api, 1, 2)
    status, answer, _ = api.put("/queue/group", topic="t", group="g", msg_id=first)
    assert (status, answer) == (200, {"ok": True, "created": True, "pending": 2, "index": api.nth(3)})
    status, answer, _ = api.put("/queue/group", topic="t", group="late", start="now")
    assert (status, answer["created"], answer["pending"]) == (200, True, 0)
    assert api.put("/queue/group", topic="t", group="g")[1]["created"] is False
    assert take(api, group="late")["empty_reason"] == "no_messages"
    status, answer, _ = api.put("/queue/group", topic="t", group="new", msg_id="x")
    assert (status, answer["code"], answer["field"]) == (400, "invalid", "msg_id")
    status, answer, _ = api.delete("/queue/group?topic=t&group=g")
    assert (status, answer["ok"], answer["deleted"]) == (200, True, True)
    assert api.delete("/queue/group?topic=t&group=g")[1]["deleted"] is False
    assert [one["group"] for one in api.get("/queue/stats?topic=t")[1]["groups"]] == ["late"]


def test_a_consume_that_waits_ends_when_its_topic_is_deleted(api):
    waiting = api.later("/queue/consume", topic="t", group="g", timeout_ms=20_000)
    api.delete("/queue/topic?topic=t")
    api.join()
    ((status, answer, _),) = waiting
    assert (status, answer["code"]) == (404, "not_found")


def test_topics_are_not_created_by_using_them_where_that_is_forbidden(api):
    try:
        status, answer, _ = api.put("/queue/settings", create_topics=False)
        assert (status, answer) == (200, {"ok": True, "create_topics": False, "index": api.nth(1)})
        status, answer, _ = api.post("/queue/publish", topic="typo", value=1)
        assert (status, answer["code"]) == (404, "not_found")
        assert "create_topics" in answer["detail"]
        assert api.post("/queue/consume", topic="typo", group="g")[0] == 404
        assert api.put("/queue/group", topic="typo", group="g")[0] == 404
        assert api.get("/queue/stats")[1]["create_topics"] is False
        assert api.put("/queue/topic", topic="t", keep_ms=60_000)[1]["keep_ms"] == 60_000
        publish(api, 1)
    finally:
        assert api.put("/queue/settings", create_topics=True)[1]["create_topics"] is True


def test_every_operation_of_the_queue_is_tested_here():
    """Every operation has a test in this file."""
    calls = {"publish", "consume", "ack", "nack", "extend", "stats", "peek", "topic", "group", "settings", "redrive", "purge"}
    assert {operation.path for operation in operations.OPERATIONS} == {f"/queue/{call}" for call in calls}
