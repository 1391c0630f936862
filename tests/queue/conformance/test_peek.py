"""`peek`: messages without taking them, and what a group has done with one message."""

from __future__ import annotations

import pytest


async def states(world, *msg_ids, **query):
    """The state of each message in the group; "" if it has finished it."""
    found = [await world.peek(group="g", msg_id=one, **query) for one in msg_ids]
    return [lines[0]["state"] if lines else "" for lines in found]


async def test_a_peek_takes_nothing(world):
    await world.publish(1, 2, headers={"a": "b"})
    assert [one["value"] for one in await world.peek(limit=1)] == [1]
    await world.take()
    found = await world.peek(group="g")
    assert [(one["value"], one["state"], one["headers"]) for one in found] == [
        (1, "in_flight", {"a": "b"}),
        (2, "ready", {"a": "b"}),
    ]
    assert [one["attempt"] for one in await world.take()] == [1]


@pytest.mark.parametrize("key", ["", "k"])
@pytest.mark.parametrize("restarts", [False, True])
async def test_the_life_of_messages(world, key, restarts):
    first, second, third = await world.publish(0, 1, 2, key=key)
    assert await states(world, first) == [""], "the group does not exist yet"
    (got,) = await world.take()
    if restarts:
        await world.restart()
    assert await states(world, first, second, third) == ["in_flight", "ready", "ready"]
    await world.ack(got)
    if restarts:
        await world.restart()
    assert await states(world, first, second, third) == ["", "ready", "ready"]
    (got,) = await world.take()
    await world.nack(got, delay_ms=1000)
    assert await states(world, first, second, third) == ["", "delayed", "ready"]
    await world.pass_ms(1000)
    (got,) = await world.take()
    await world.kill(got)
    if restarts:
        await world.restart()
    assert await states(world, first, got["msg_id"]) == ["", "dead"]
    assert (await states(world, first, second, third, dead=True)).count("dead") == 1


async def test_a_delayed_message(world):
    await world.group("g")
    (delayed,) = await world.publish(1, delay_ms=5000)
    assert await states(world, delayed) == ["delayed"]
    assert [one["delayed_for_ms"] for one in await world.peek()] == [5000]
    await world.pass_ms(5000)
    assert await states(world, delayed) == ["ready"]


async def test_a_message_in_flight_tells_which_consume_got_it(world):
    (msg_id,) = await world.publish(1)
    await world.take(attempt_id="worker-1.a", visibility_ms=5000)
    (line,) = await world.peek(group="g", msg_id=msg_id)
    assert (line["attempt"], line["attempt_id"], line["node"]) == (1, "worker-1.a", "n1")
    assert (line["delivered_ms"], line["visible_until_ms"]) == (world.at_ms, world.at_ms + 5000)


async def test_a_peek_of_all_keys_is_in_publish_order(world):
    for number in range(8):
        await world.publish(number, key=f"k{number}")
        await world.pass_ms(1)
    assert [one["value"] for one in await world.peek()] == list(range(8))
    assert [one["value"] for one in await world.peek(limit=3)] == [0, 1, 2]


async def test_a_peek_at_all_that_a_group_has_not_finished(world):
    """In publish order: those behind others of their key, those that are delayed, and those whose turn has come."""
    await world.group("g")
    for number, key in enumerate(["k", "k", "", "k", "other", ""]):
        await world.publish(number, key=key)
        await world.pass_ms(1)
    await world.publish(6, delay_ms=5000)
    await world.publish(7, key="k", delay_ms=5000)
    (first,) = await world.take()
    found = await world.peek(group="g")
    assert [one["value"] for one in found] == list(range(8))
    states = [*6 * ["ready"], "delayed", "delayed"]
    states[first["value"]] = "in_flight"
    assert [one["state"] for one in found] == states
    assert [one["value"] for one in await world.peek(group="g", limit=4)] == [0, 1, 2, 3]
    await world.ack(first)
    left = [number for number in range(8) if number != first["value"]]
    assert [one["value"] for one in await world.peek(group="g", limit=4)] == left[:4]


async def test_a_peek_at_a_run_that_was_finished_out_of_order(world):
    await world.publish(*range(5), key="k")
    run = await world.take(3, max_per_key=3)
    await world.ack(run[1])
    found = await world.peek(group="g")
    assert [(one["value"], one["state"]) for one in found] == [(0, "in_flight"), (2, "in_flight"), (3, "ready"), (4, "ready")]


async def test_by_dedup_id(world):
    await world.settings(dedup_window_ms=60_000, retention_ms=60_000)
    await world.publish("one", dedup_id="a")
    await world.publish("two", dedup_id="b")
    assert [one["value"] for one in await world.peek(dedup_id="b")] == ["two"]
    assert await world.peek(dedup_id="c") == []
    await world.group("g")
    await world.pass_ms(62_000)
    assert await world.peek(dedup_id="b") == [], "too old"


@pytest.mark.parametrize("msg_id", ["1-9", "x", "01-0", "9" * 60, "r0-1", "r99-1700000000000000"])
async def test_ids_that_no_message_has(world, msg_id):
    await world.publish(1)
    await world.group("g")
    assert await states(world, msg_id) == [""]
    assert await world.peek(msg_id=msg_id) == []


async def test_an_unknown_topic_or_group_has_no_messages(world):
    await world.publish(1)
    assert await world.peek(topic="stranger") == []
    assert await world.peek(group="stranger") == []
    assert await world.peek(group="stranger", dead=True) == []
    assert (await world.stats("stranger"))["exists"] is False


async def test_both_ids_are_refused(world):
    answer = await world.call("GET", "/queue/peek", topic="t", msg_id="1-0", dedup_id="a")
    assert (answer["status"], answer["code"]) == (400, "invalid")


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_message_that_was_acked_late_is_not_unfinished(world, key):
    await world.group("other")
    await world.publish("a", key=key)
    (message,) = await world.take(visibility_ms=10)
    await world.pass_ms(10)
    assert [one["state"] for one in await world.peek(group="g")] == ["ready"]
    await world.ack(message)
    assert await world.peek(group="g") == []
