"""Consumes that wait."""

from __future__ import annotations

import asyncio

import pytest

from dss_dev.queue_world import values_of


async def test_a_waiting_consumer_gets_what_is_published(world):
    waiting = await world.later()
    await world.publish("a")
    assert values_of(await waiting) == ["a"]


async def test_first_come_first_served(world):
    waiting = [await world.later() for _ in range(3)]
    await world.publish("a")
    await world.publish("b", "c")
    found = [values_of(await one) for one in waiting]
    assert sorted(found) == [["a"], ["b"], ["c"]]
    assert found[0] == ["a"]


async def test_a_batch_goes_to_one_waiter_that_asked_for_one(world):
    waiting = await world.later(10)
    await world.publish(1, 2, 3)
    assert values_of(await waiting) == [1, 2, 3]


async def test_every_group_has_its_own_waiters(world):
    waiting = [await world.later(group=group) for group in ("one", "two")]
    await world.publish("a")
    assert [values_of(await one) for one in waiting] == [["a"], ["a"]]


async def test_a_wait_that_times_out_gives_the_reason(world):
    waiting = await world.later(timeout_ms=100)
    await world.pass_ms(99)
    await world.pass_ms(1)
    answer = await waiting
    assert (answer["messages"], answer["empty_reason"]) == ([], "no_messages")
    await world.publish("a")
    assert await world.values() == ["a"]
    assert (await world.group_stats())["waiters"] == 0


@pytest.mark.parametrize("how", ["nack", "timeout", "delay", "ack of the key", "gone", "extend"])
async def test_every_way_to_become_ready_wakes_the_waiter(world, how):
    if how == "delay":
        await world.publish("a", delay_ms=50)
        waiting = await world.later()
        await world.pass_ms(50)
    else:
        await world.publish(*(["x", "a"] if how == "ack of the key" else ["a"]), key="k")
        (message,), hang_up = await world.take_by_client(visibility_ms=50)
        waiting = await world.later()
        if how == "nack":
            await world.nack(message)
        elif how == "timeout":
            await world.pass_ms(50)
        elif how == "gone":
            await hang_up()
        elif how == "extend":
            await world.extend(message, 0)
            await world.pass_ms(1)
        else:
            await world.ack(message)
    assert values_of(await waiting) == ["a"]


async def test_a_waiter_that_hung_up_gets_nothing(world):
    gone, waiting = await world.later(), await world.later()
    gone.cancel()
    await asyncio.wait([gone])
    await world.publish("a")
    assert values_of(await waiting) == ["a"]


async def test_messages_of_a_consumer_that_hung_up_come_back_without_counting_an_attempt(world):
    """The connection broke before its answer was received."""
    await world.publish("a")
    _, hang_up = await world.take_by_client()
    await hang_up()
    assert [one["attempt"] for one in await world.take()] == [1]


async def test_hanging_up_gives_back_only_what_is_still_in_flight(world):
    await world.publish("a", "b")
    (first, _), hang_up = await world.take_by_client(2)
    await world.ack(first)
    await hang_up()
    assert await world.values(9) == ["b"]


async def test_a_late_hang_up_does_not_take_a_message_from_another_consumer(world):
    await world.publish("a")
    _, hang_up = await world.take_by_client(visibility_ms=10)
    await world.pass_ms(10)
    await world.take()
    await hang_up()
    assert await world.why_empty() == "all_in_flight"


async def test_a_message_that_becomes_ready_when_the_wait_ends_is_not_lost(world):
    await world.publish("a")
    await world.take(visibility_ms=50)
    waiting = await world.later(timeout_ms=50)
    await world.pass_ms(50)
    found = values_of(await waiting) or await world.values()
    assert found == ["a"]
