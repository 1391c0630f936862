"""Delay, duplicates, limits."""

from __future__ import annotations

import pytest


async def test_a_delayed_message_is_hidden_from_every_group(world):
    await world.publish("a", delay_ms=100)
    assert await world.why_empty() == "delayed"
    await world.pass_ms(99)
    assert await world.why_empty(group="other") == "delayed"
    await world.pass_ms(1)
    assert await world.values() == ["a"]
    assert await world.values(group="other") == ["a"]
    assert await world.values(group="new") == ["a"]


async def test_a_delayed_message_does_not_hold_back_others(world):
    await world.publish("late", delay_ms=100)
    await world.publish("now")
    assert await world.all_values() == ["now"]


async def test_a_dedup_id_is_remembered_for_the_window(world):
    await world.settings(dedup_window_ms=1000)
    (first,) = await world.publish("a", dedup_id="order-1")
    await world.pass_ms(999)
    again = await world.done("publish", value="b", dedup_id="order-1")
    assert (again["msg_id"], again["duplicate"]) == (first, True)
    await world.pass_ms(1)
    assert (await world.done("publish", value="c", dedup_id="order-1"))["duplicate"] is False
    assert await world.values(9) == ["a", "c"]


async def test_a_duplicate_of_an_acked_message_is_still_a_duplicate(world):
    await world.publish("a", dedup_id="x")
    (message,) = await world.take()
    await world.ack(message)
    assert (await world.done("publish", value="a", dedup_id="x"))["duplicate"] is True


async def test_duplicates_inside_one_call(world):
    messages = [{"value": "a", "dedup_id": "x"}, {"value": "b", "dedup_id": "x"}, {"value": "c"}]
    answer = await world.done("publish", messages=messages)
    assert [one["duplicate"] for one in answer["messages"]] == [False, True, False]
    assert answer["messages"][0]["msg_id"] == answer["messages"][1]["msg_id"]
    assert await world.values(9) == ["a", "c"]


async def test_without_a_window_no_dedup_id_is_remembered(world):
    await world.settings(dedup_window_ms=0)
    for value in ("a", "b"):
        assert (await world.done("publish", value=value, dedup_id="x"))["duplicate"] is False
    assert await world.all_values() == ["a", "b"]


async def test_messages_of_one_call_have_different_ids(world):
    assert len({*await world.publish(*range(50)), *await world.publish(*range(50))}) == 100


async def test_headers_belong_to_their_message(world):
    await world.done("publish", messages=[{"value": 1, "headers": {"n": "1"}}, {"value": 2}, {"value": 3, "headers": {"n": "3"}}])
    assert [one["headers"] for one in await world.take(3)] == [{"n": "1"}, None, {"n": "3"}]


@pytest.mark.parametrize("fields", [{"value": "x" * 1000}, {"messages": [{"value": 1}, {"value": "x" * 1000}]}])
async def test_a_value_that_is_too_large_is_refused(world, fields):
    answer = await world.post("publish", **fields)
    assert (answer["status"], answer["code"], answer["field"]) == (413, "too_large", "value")
    assert await world.retained() == 0


async def fill(world):
    """Publish messages of 20 bytes with the key `k` until one is refused; their number, and the refusal."""
    for count in range(100):
        answer = await world.post("publish", value="x" * 17, key="k")
        if answer["status"] != 200:
            return count, answer
    raise AssertionError("the topic is never full")


async def test_a_full_topic_refuses_messages_until_some_are_acked(world):
    await world.settings(max_bytes=400)
    count, refused = await fill(world)
    assert (refused["status"], refused["code"], refused["limit"]) == (429, "over_limit", "max_bytes")
    assert await world.retained() == count
    (message,) = await world.take(9)
    await world.ack(message)
    await world.publish("y" * 17, key="k")


async def test_a_call_that_does_not_fit_stores_nothing(world):
    await world.settings(max_bytes=400)
    count, _ = await fill(world)
    (message,) = await world.take()
    await world.ack(message)
    two = [{"value": "y" * 17, "key": "k"}] * 2
    assert (await world.post("publish", messages=two))["code"] == "over_limit"
    assert await world.retained() == count - 1


async def test_a_duplicate_needs_no_space(world):
    await world.settings(max_bytes=400)
    await world.publish("x", key="k", dedup_id="a")
    await fill(world)
    assert (await world.done("publish", value="x", key="k", dedup_id="a"))["duplicate"] is True


async def test_dead_letters_count_towards_max_bytes(world):
    await world.settings(max_bytes=400)
    await fill(world)
    (message,) = await world.take()
    await world.kill(message)
    assert (await world.post("publish", value="x" * 17, key="k"))["code"] == "over_limit"
    await world.done("purge", dead=True)
    await world.publish("x" * 17, key="k")
