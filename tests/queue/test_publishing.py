"""Delay, duplicates, limits, transactions."""

from __future__ import annotations

import pytest

from dss_queue.core import administration, publishing
from dss_queue.core.commands import Publish, PutTopic


def publish_result(desk, *messages):
    return desk.do(Publish(messages=list(messages)))


def test_forgotten_dedup_ids_take_no_memory(desk):
    desk.settings(dedup_window_ms=1000)
    desk.publish(0, dedup_id="a")
    desk.pass_ms(500)
    desk.publish(0, dedup_id="b")
    desk.pass_ms(3000)
    desk.pass_ms(3000)
    assert desk.broker.topics["t"].dedup == {}


def test_max_bytes_refuses_and_stores_nothing(desk):
    desk.settings(max_bytes=30)
    desk.publish("x" * 8)
    result = publish_result(desk, desk.message("y" * 8), desk.message("z" * 12))
    assert result.code == "over_limit"
    assert desk.values(9) == ["x" * 8]
    desk.ack("2-0")
    assert publish_result(desk, desk.message("y" * 8), desk.message("z" * 12)).code == ""


def test_topics_and_groups_are_bounded(desk, monkeypatch):
    monkeypatch.setattr(publishing, "TOPICS_MAX", 2)
    monkeypatch.setattr(administration, "GROUPS_PER_TOPIC_MAX", 2)
    desk.publish(0)
    desk.publish(0, topic="second")
    for refused in (
        publish_result(desk, desk.message(0, topic="third")),
        desk.consume(topic="third"),
        desk.do(PutTopic(topic="third")),
    ):
        assert (refused.code, refused.body["limit"], refused.body["maximum"]) == ("over_limit", "topics_max", 2)
    desk.take(group="a")
    desk.take(group="b")
    refused = desk.consume(group="c")
    assert (refused.code, refused.body["limit"], refused.body["maximum"]) == ("over_limit", "groups_per_topic_max", 2)


@pytest.mark.parametrize("with_receipt", [True, False])
def test_a_transaction_acks_and_publishes(desk, with_receipt):
    (msg_id,) = desk.publish("order")
    (message,) = desk.take()
    receipt = message["receipt"] if with_receipt else None
    new = [desk.message("invoice", topic="invoices"), desk.message("parcel", topic="parcels")]
    result = desk.ack(msg_id, receipt, publish=new)
    assert result.body["acked"] is True
    assert len(result.body["published"]) == 2
    assert desk.values(topic="invoices") == ["invoice"]
    assert desk.values(topic="parcels") == ["parcel"]


def test_a_repeated_transaction_publishes_nothing(desk):
    (msg_id,) = desk.publish("order")
    desk.take()
    desk.ack(msg_id, publish=[desk.message("invoice", topic="invoices")])
    again = desk.ack(msg_id, publish=[desk.message("invoice", topic="invoices")])
    assert again.body == {"acked": False, "published": [], "released": []}
    assert desk.values(9, topic="invoices") == ["invoice"]


def test_a_transaction_with_a_stale_receipt_does_nothing(desk):
    (msg_id,) = desk.publish("order")
    (message,) = desk.take(visibility_ms=10)
    desk.pass_ms(10)
    desk.take()
    result = desk.ack(msg_id, message["receipt"], publish=[desk.message("invoice", topic="invoices")])
    assert result.code == "stale_receipt"
    assert "invoices" not in desk.broker.topics


def test_a_transaction_over_a_limit_does_not_ack(desk):
    desk.settings(max_bytes=10)
    desk.topic, order_topic = "orders", desk.topic
    (msg_id,) = desk.publish("order")
    desk.take()
    result = desk.ack(msg_id, publish=[desk.message("x" * 20, topic=order_topic)])
    assert result.code == "over_limit"
    assert desk.ack(msg_id).body == {"acked": True}


def test_a_transaction_wakes_the_waiters_of_the_topics_it_publishes_to(desk):
    assert desk.consume(topic="invoices", timeout_ms=1000) is None
    waiter = desk.origin
    (msg_id,) = desk.publish("order")
    desk.take()
    desk.ack(msg_id, publish=[desk.message("invoice", topic="invoices")])
    assert desk.answers[waiter].body["messages"][0]["value"] == b'"invoice"'
