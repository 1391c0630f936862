"""A consume whose answer was lost is repeated with the same attempt_id."""

from __future__ import annotations


def ids_and_receipts(messages):
    return [(m["msg_id"], m["receipt"], m["attempt"]) for m in messages]


async def test_a_repeat_gets_the_same_messages_and_receipts(world):
    await world.publish("a", "b", "c")
    first = await world.take(2, attempt_id="try-1")
    assert ids_and_receipts(await world.take(2, attempt_id="try-1")) == ids_and_receipts(first)
    assert await world.values(9) == ["c"]


async def test_a_repeat_gets_the_messages_of_the_first_call_also_if_others_are_ready(world):
    for number in range(12):
        await world.publish(number, key=f"k{number}")
    first = await world.take(2, attempt_id="try-1")
    for _ in range(3):
        assert ids_and_receipts(await world.take(2, attempt_id="try-1")) == ids_and_receipts(first)


async def test_a_repeat_has_the_full_visibility_again(world):
    await world.publish("a")
    await world.take(attempt_id="try-1", visibility_ms=100)
    await world.pass_ms(90)
    (again,) = await world.take(attempt_id="try-1", visibility_ms=100)
    assert again["visible_until_ms"] == world.at_ms + 100


async def test_a_repeat_does_not_get_messages_acked_in_between(world):
    await world.publish("a", "b")
    first, second = await world.take(2, attempt_id="try-1")
    await world.ack(first)
    assert await world.values(2, attempt_id="try-1") == ["b"]
    await world.ack(second)
    await world.publish("c")
    assert await world.values(2, attempt_id="try-1") == ["c"]


async def test_after_the_visibility_timeout_a_repeat_is_a_new_delivery(world):
    await world.publish("a")
    (first,) = await world.take(attempt_id="try-1", visibility_ms=10)
    await world.pass_ms(10)
    (second,) = await world.take(attempt_id="try-1")
    assert second["receipt"] != first["receipt"]
    assert second["attempt"] == 2


async def test_attempt_ids_belong_to_a_group(world):
    await world.publish("a")
    await world.take(group="one", attempt_id="try-1")
    assert await world.values(group="two", attempt_id="try-1") == ["a"]
    assert await world.why_empty(group="two") == "all_in_flight"
