"""`max_per_key`: several messages of one routing key go to one consumer together, a run. The order of the key is kept."""

from __future__ import annotations

import pytest


def values(messages):
    return [message["value"] for message in messages]


async def run(world, count=10, per_key=10, **fields):
    return await world.take(count, max_per_key=per_key, **fields)


async def test_a_run_is_delivered_in_order(world):
    await world.publish(*range(30), key="k")
    assert values(await run(world)) == list(range(10))
    assert await world.why_empty(max_per_key=10) == "key_blocked"


async def test_by_default_one_message_of_a_key_is_in_flight(world):
    await world.publish(1, 2, key="k")
    assert await world.values(10) == [1]


async def test_a_run_ends_at_max_per_key_and_other_messages_follow(world):
    await world.publish(1, 2, 3, key="k")
    await world.publish(4, 5, key="other")
    await world.publish(6)
    assert await world.all_values(max_per_key=2) == [1, 2, 4, 5, 6]


async def test_the_next_run_comes_when_all_of_the_first_are_done(world):
    await world.publish(1, 2, 3, key="k")
    first, second = await run(world, 2)
    await world.ack(first)
    assert await world.why_empty(max_per_key=10) == "key_blocked"
    await world.ack(second)
    assert values(await run(world)) == [3]


async def test_messages_of_a_run_may_be_acked_in_any_order(world):
    await world.publish(1, 2, 3, 4, key="k")
    messages = await run(world, 3)
    for message in (messages[2], messages[1]):
        assert (await world.ack(message))["acked"]
        assert not (await world.ack(message))["acked"], "a repeat"
    assert (await world.group_stats())["ready"] == 1
    await world.restart()
    await world.ack(messages[0])
    assert values(await run(world)) == [4]
    assert await world.retained() == 1


async def test_a_nack_takes_along_what_follows(world):
    await world.publish(1, 2, 3, key="k")
    first, second, _ = await run(world)
    await world.nack(second)
    assert await world.why_empty(max_per_key=10) == "key_blocked", "the first one is still in flight"
    await world.ack(first)
    assert [(one["value"], one["attempt"]) for one in await run(world)] == [(2, 2), (3, 1)]


async def test_a_consumer_can_still_ack_what_went_back_behind_a_nack(world):
    await world.publish(1, 2, 3, key="k")
    first, second, _ = await run(world)
    await world.nack(first, delay_ms=100)
    assert (await world.ack(second))["acked"]
    assert await world.why_empty(max_per_key=10) == "delayed"
    await world.pass_ms(100)
    assert values(await run(world)) == [1, 3]


async def test_after_a_timeout_all_that_is_late_comes_again_and_counts(world):
    await world.publish(1, 2, 3, key="k")
    _, _, third = await run(world, visibility_ms=1000)
    await world.extend(third, 5000)
    await world.pass_ms(1000)
    assert [(one["value"], one["attempt"]) for one in await run(world)] == [(1, 2), (2, 2), (3, 1)]
    assert [one["history"][0]["reason"] for one in await world.peek(group="g")] == ["timeout", "timeout", "behind"]


async def test_a_dead_letter_leaves_the_rest_of_the_run_with_its_consumer(world):
    await world.publish(1, 2, 3, key="k")
    first, second, third = await run(world)
    await world.kill(second)
    assert (await world.ack(third))["acked"]
    await world.done("redrive", group="g")
    assert await world.why_empty(max_per_key=10) == "key_blocked"
    await world.ack(first)
    assert values(await run(world)) == [2]


async def test_a_consumer_that_hangs_up_gives_the_run_back(world):
    await world.publish(1, 2, 3, key="k")
    _, hang_up = await world.take_by_client(10, max_per_key=10)
    await hang_up()
    assert [(one["value"], one["attempt"]) for one in await run(world)] == [(1, 1), (2, 1), (3, 1)]


async def test_a_run_ends_before_a_delayed_message(world):
    await world.publish(1, key="k")
    await world.publish(2, key="k", delay_ms=100)
    await world.publish(3, key="k")
    (first,) = await run(world)
    assert first["value"] == 1
    await world.ack(first)
    await world.pass_ms(100)
    assert values(await run(world)) == [2, 3]


async def test_a_waiting_consume_gets_a_run(world):
    waiting = await world.later(10, max_per_key=10)
    await world.publish(1, 2, key="k")
    assert values((await waiting)["messages"]) == [1, 2]


async def test_a_repeated_attempt_gets_the_same_run(world):
    await world.publish(1, 2, 3, key="k")
    first = await run(world, 2, attempt_id="a")
    assert [one["receipt"] for one in await run(world, 2, attempt_id="a")] == [one["receipt"] for one in first]


async def test_each_group_has_its_own_runs(world):
    await world.publish(1, 2, 3, key="k")
    await world.group("other")
    first, second, _ = await run(world)
    await world.ack(second)
    others = await run(world, group="other")
    assert values(others) == [1, 2, 3]
    for message in others:
        await world.ack(message, group="other")
    assert await world.retained() >= 2, "the third is in flight, and the group leaves those of a key in order"
    await world.ack(first)
    assert await world.retained() == 1


async def test_a_purge_ends_runs(world):
    await world.publish(1, 2, key="k")
    await run(world)
    await world.done("purge")
    await world.publish(3, 4, key="k")
    assert values(await run(world)) == [3, 4]


@pytest.mark.parametrize("per_key", [1, 3])
async def test_messages_without_a_key_are_no_run(world, per_key):
    await world.publish(1, 2, 3)
    first, _, _ = await run(world, per_key=per_key)
    await world.nack(first)
    assert values(await run(world)) == [1]
