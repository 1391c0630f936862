"""Visibility, receipts, attempts, backoff."""

from __future__ import annotations

import pytest


async def test_a_message_comes_again_after_its_visibility_timeout(world):
    await world.publish("a")
    (first,) = await world.take(visibility_ms=100)
    assert first["visible_until_ms"] == world.at_ms + 100
    await world.pass_ms(99)
    assert await world.why_empty() == "all_in_flight"
    await world.pass_ms(1)
    (second,) = await world.take()
    assert (second["msg_id"], second["attempt"]) == (first["msg_id"], 2)
    assert second["receipt"] != first["receipt"]


async def test_the_visibility_is_the_nodes_if_a_consume_names_none(world):
    await world.publish("a")
    (message,) = await world.take()
    assert message["visible_until_ms"] == world.at_ms + 15_000


async def test_an_ack_with_the_receipt_of_an_ended_delivery_is_stale(world):
    await world.publish("a")
    (first,) = await world.take(visibility_ms=10)
    await world.pass_ms(10)
    (second,) = await world.take()
    stale = await world.ack(first)
    assert (stale["status"], stale["code"], stale["msg_ids"]) == (409, "stale_receipt", [first["msg_id"]])
    assert (await world.nack(first))["code"] == "stale_receipt"
    assert (await world.extend(first, 100))["code"] == "stale_receipt"
    assert (await world.ack(second))["acked"] is True


async def test_a_late_ack_counts_until_another_consumer_has_the_message(world):
    await world.publish("a")
    (first,) = await world.take(visibility_ms=10)
    await world.pass_ms(10)
    assert (await world.ack(first))["acked"] is True
    assert await world.why_empty() == "no_messages"


async def test_an_ack_may_be_repeated(world):
    await world.publish("a")
    (message,) = await world.take()
    assert (await world.ack(message, receipt=None))["acked"] is True
    assert (await world.ack(message, receipt=None))["acked"] is False
    assert (await world.ack(message))["acked"] is False


async def test_without_a_receipt_the_delivery_in_flight_is_meant(world):
    await world.publish("a")
    (first,) = await world.take(visibility_ms=10)
    await world.pass_ms(10)
    await world.take(visibility_ms=100)
    assert (await world.extend(first, 500, receipt=None))["visible_until_ms"] == world.at_ms + 500
    assert (await world.nack(first, receipt=None))["nacked"] is True
    assert (await world.nack(first, receipt=None))["nacked"] is False


@pytest.mark.parametrize(
    "msg_id", ["nonsense", "1-", "-1", "1-0x0", "01-0", "1-99999999999", "9" * 60, "r0-1", "r99-1700000000000000"]
)
async def test_an_unknown_id_is_not_an_error(world, msg_id):
    await world.publish("a")
    await world.take()
    assert (await world.post("ack", group="g", msg_id=msg_id))["acked"] is False
    nacked = await world.post("nack", group="g", msg_id=msg_id)
    assert (nacked["nacked"], nacked["dead"]) == (False, False)
    assert (await world.post("extend", group="g", msg_id=msg_id, visibility_ms=10))["code"] == "stale_receipt"


async def test_unknown_topics_and_groups_have_nothing_to_ack(world):
    await world.publish("a")
    (message,) = await world.take()
    assert (await world.ack(message, group="stranger"))["acked"] is False
    assert (await world.ack(message, topic="stranger"))["acked"] is False


async def test_several_acks_in_one_call(world):
    ids = await world.publish("a", "b", "c")
    first, second = await world.take(2, visibility_ms=10)
    await world.take(1, visibility_ms=1000)
    await world.pass_ms(10)
    await world.take(1)
    receipts = [first["receipt"], second["receipt"], second["receipt"], "x"]
    answer = await world.post("ack", group="g", msg_ids=[*ids, "7-7"], receipts=receipts)
    assert (answer["acked"], answer["results"]) == (
        False,
        [
            {"msg_id": ids[0], "acked": False, "code": "stale_receipt"},
            {"msg_id": ids[1], "acked": True},
            {"msg_id": ids[2], "acked": False, "code": "stale_receipt"},
            {"msg_id": "7-7", "acked": False},
        ],
    )
    assert (await world.post("ack", group="g", msg_ids=[ids[0], ids[2]]))["acked"] is True


async def test_acks_of_messages_with_different_keys_in_one_call(world):
    for number in range(8):
        await world.publish(number, key=f"k{number}")
    messages = await world.take_all()
    answer = await world.ack(*messages)
    assert answer["acked"] is True
    assert [one["msg_id"] for one in answer["results"]] == [message["msg_id"] for message in messages]
    assert await world.retained() == 0


async def test_a_nack_returns_the_message_now_or_after_its_delay(world):
    await world.publish("a")
    (message,) = await world.take()
    answer = await world.nack(message)
    assert (answer["nacked"], answer["dead"]) == (True, False)
    (message,) = await world.take()
    assert message["attempt"] == 2
    await world.nack(message, delay_ms=50)
    assert await world.why_empty() == "delayed"
    await world.pass_ms(50)
    assert [one["attempt"] for one in await world.take()] == [3]


async def test_backoff_doubles_for_nacks_and_timeouts(world):
    await world.settings(backoff_ms=10)
    await world.publish("a")
    (message,) = await world.take()
    await world.nack(message)
    await world.pass_ms(9)
    assert await world.why_empty() == "delayed"
    await world.pass_ms(1)
    await world.take(visibility_ms=5)
    await world.pass_ms(5)
    await world.pass_ms(19)
    assert await world.why_empty() == "delayed"
    await world.pass_ms(1)
    assert [one["attempt"] for one in await world.take()] == [3]


async def test_a_delay_of_zero_overrides_the_backoff(world):
    await world.settings(backoff_ms=1000)
    await world.publish("a")
    (message,) = await world.take()
    await world.nack(message, delay_ms=0)
    assert await world.values() == ["a"]


async def test_a_silent_nack_does_not_count_as_an_attempt(world):
    await world.publish("a")
    (message,) = await world.take()
    await world.nack(message, silent=True)
    assert [one["attempt"] for one in await world.take()] == [1]


async def test_extend_restarts_the_visibility_timeout(world):
    await world.publish("a")
    (message,) = await world.take(visibility_ms=100)
    await world.pass_ms(90)
    answer = await world.extend(message, 100)
    assert (answer["msg_id"], answer["visible_until_ms"]) == (message["msg_id"], world.at_ms + 100)
    await world.pass_ms(99)
    assert await world.why_empty() == "all_in_flight"
    await world.pass_ms(1)
    assert await world.values() == ["a"]


async def test_extend_may_shorten_the_visibility_timeout(world):
    await world.publish("a")
    (message,) = await world.take(visibility_ms=1000)
    await world.extend(message, 10)
    await world.pass_ms(10)
    assert await world.values() == ["a"]


async def test_extend_by_nothing_gives_the_message_back(world):
    await world.publish("a")
    (message,) = await world.take()
    answer = await world.extend(message, 0)
    assert (answer["msg_id"], answer["visible_until_ms"]) == (message["msg_id"], world.at_ms)
    assert (await world.extend(message, 0))["code"] == "stale_receipt"
    await world.pass_ms(10)
    (again,) = await world.take()
    assert (again["attempt"], again["first_delivered_ms"]) == (2, message["first_delivered_ms"])


async def test_the_first_delivery_that_a_consumer_got_is_remembered(world):
    await world.publish("a")
    _, hang_up = await world.take_by_client()
    await hang_up()
    await world.pass_ms(10)
    (first,) = await world.take(visibility_ms=1000)
    assert first["first_delivered_ms"] == world.at_ms, "a delivery that no consumer got does not count"
    await world.pass_ms(1000)
    await world.restart()
    (again,) = await world.take()
    assert (again["first_delivered_ms"], again["attempt"]) == (first["first_delivered_ms"], 2)
