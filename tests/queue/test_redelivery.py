"""Visibility, receipts, attempts, backoff."""

from __future__ import annotations

import pytest


def test_a_message_comes_again_after_its_visibility_timeout(desk):
    desk.publish("a")
    (first,) = desk.take(visibility_ms=100)
    assert first["visible_until_ms"] == desk.at_ms + 100
    desk.pass_ms(99)
    assert desk.why_empty() == "all_in_flight"
    desk.pass_ms(1)
    (second,) = desk.take()
    assert (second["msg_id"], second["attempt"]) == (first["msg_id"], 2)
    assert second["receipt"] != first["receipt"]


def test_an_ack_with_the_receipt_of_an_ended_delivery_is_stale(desk):
    desk.publish("a")
    (first,) = desk.take(visibility_ms=10)
    desk.pass_ms(10)
    (second,) = desk.take()
    stale = desk.ack(first["msg_id"], first["receipt"])
    assert (stale.code, stale.body["msg_ids"]) == ("stale_receipt", [first["msg_id"]])
    assert desk.nack(first["msg_id"], first["receipt"]).code == "stale_receipt"
    assert desk.extend(first["msg_id"], 100, first["receipt"]).code == "stale_receipt"
    assert desk.ack(second["msg_id"], second["receipt"]).body == {"acked": True}


def test_a_late_ack_counts_until_another_consumer_has_the_message(desk):
    desk.publish("a")
    (first,) = desk.take(visibility_ms=10)
    desk.pass_ms(10)
    assert desk.ack(first["msg_id"], first["receipt"]).body == {"acked": True}
    assert desk.why_empty() == "no_messages"


def test_an_ack_may_be_repeated(desk):
    (msg_id,) = desk.publish("a")
    (message,) = desk.take()
    assert desk.ack(msg_id).body == {"acked": True}
    assert desk.ack(msg_id).body == {"acked": False}
    assert desk.ack(msg_id, message["receipt"]).body == {"acked": False}


@pytest.mark.parametrize("msg_id", ["nonsense", "1-", "-1", "1-0x0", "01-0", "1-99999999999", "9" * 60])
def test_an_unknown_id_is_not_an_error(desk, msg_id):
    desk.publish("a")
    desk.take()
    assert desk.ack(msg_id).body == {"acked": False}
    assert desk.nack(msg_id).body == {"nacked": False, "dead": False}
    assert desk.extend(msg_id, 10).code == "stale_receipt"


def test_unknown_topics_and_groups_have_nothing_to_ack(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    assert desk.ack(msg_id, group="stranger").body == {"acked": False}
    assert desk.ack(msg_id, topic="stranger").body == {"acked": False}


def test_several_acks_in_one_call(desk):
    ids = desk.publish("a", "b", "c")
    taken = desk.take(2, visibility_ms=10)
    desk.take(1, visibility_ms=1000)
    desk.pass_ms(10)
    desk.take(1)
    result = desk.ack(None, msg_ids=[*ids, "7-7"], receipts=[taken[0]["receipt"], taken[1]["receipt"], taken[1]["receipt"], "x"])
    assert result.body == {
        "acked": False,
        "results": [
            {"msg_id": ids[0], "acked": False, "code": "stale_receipt"},
            {"msg_id": ids[1], "acked": True},
            {"msg_id": ids[2], "acked": False, "code": "stale_receipt"},
            {"msg_id": "7-7", "acked": False},
        ],
    }
    assert desk.ack(None, msg_ids=[ids[0], ids[2]]).body["acked"] is True


def test_a_nack_returns_the_message_now_or_after_its_delay(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    assert desk.nack(msg_id).body == {"nacked": True, "dead": False}
    assert desk.take()[0]["attempt"] == 2
    desk.nack(msg_id, delay_ms=50)
    assert desk.why_empty() == "delayed"
    desk.pass_ms(50)
    assert desk.take()[0]["attempt"] == 3


def test_backoff_doubles_for_nacks_and_timeouts(desk):
    desk.settings(backoff_ms=10)
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.nack(msg_id)
    desk.pass_ms(9)
    assert desk.why_empty() == "delayed"
    desk.pass_ms(1)
    desk.take(visibility_ms=5)
    desk.pass_ms(5)
    desk.pass_ms(19)
    assert desk.why_empty() == "delayed"
    desk.pass_ms(1)
    assert desk.take()[0]["attempt"] == 3


def test_a_delay_of_zero_overrides_the_backoff(desk):
    desk.settings(backoff_ms=1000)
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.nack(msg_id, delay_ms=0)
    assert desk.values() == ["a"]


def test_a_silent_nack_does_not_count_as_an_attempt(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.nack(msg_id, silent=True)
    assert desk.take()[0]["attempt"] == 1


def test_extend_restarts_the_visibility_timeout(desk):
    (msg_id,) = desk.publish("a")
    desk.take(visibility_ms=100)
    desk.pass_ms(90)
    assert desk.extend(msg_id, 100).body == {"msg_id": msg_id, "visible_until_ms": desk.at_ms + 100}
    desk.pass_ms(99)
    assert desk.why_empty() == "all_in_flight"
    desk.pass_ms(1)
    assert desk.values() == ["a"]


def test_extend_may_shorten_the_visibility_timeout(desk):
    (msg_id,) = desk.publish("a")
    desk.take(visibility_ms=1000)
    desk.extend(msg_id, 10)
    desk.pass_ms(10)
    assert desk.values() == ["a"]


def test_a_new_leader_gives_every_delivery_its_full_visibility(desk):
    desk.publish("a")
    desk.take(visibility_ms=100)
    desk.at_ms += 5000
    desk.broker.rearm(desk.at_ms, desk.index)
    desk.pass_ms(99)
    assert desk.why_empty() == "all_in_flight"
    desk.pass_ms(1)
    assert desk.values() == ["a"]
