"""Topics and groups are created on purpose, deleted, and kept for groups that come later."""

from __future__ import annotations

import pytest


async def test_settings_are_replaced_as_a_whole(world):
    await world.settings(max_attempts=5, backoff_ms=7)
    answer = await world.settings(max_attempts=6)
    assert (answer["max_attempts"], answer["backoff_ms"], answer["dedup_window_ms"]) == (6, 0, 300_000)
    assert (await world.stats())["settings"]["max_attempts"] == 6


async def test_settings_apply_to_messages_that_are_there(world):
    await world.publish("a")
    await world.settings(max_attempts=1)
    (message,) = await world.take()
    assert (await world.nack(message))["dead"] is True


async def test_a_deleted_topic_is_gone(world):
    await world.publish(1, 2, 3, key="k")
    await world.publish(4, delay_ms=1000, dedup_id="d")
    (first,) = await world.take()
    await world.kill(first)
    await world.take()
    assert (await world.delete_topic())["deleted"] is True
    assert (await world.stats())["exists"] is False
    assert await world.peek() == []
    assert (await world.delete_topic())["deleted"] is False


async def test_a_deleted_topic_is_new_when_it_is_used_again(world):
    await world.settings(max_attempts=3)
    await world.publish(1, dedup_id="d")
    (message,) = await world.take()
    await world.delete_topic()
    await world.settings()
    await world.publish(2, dedup_id="d")
    assert (await world.ack(message))["acked"] is False
    assert await world.values() == [2]
    assert (await world.stats())["settings"]["max_attempts"] == 20


@pytest.mark.parametrize("what", ["topic", "group"])
async def test_consumes_that_wait_are_refused_when_their_group_is_deleted(world, what):
    waiting = await world.later(attempt_id="a")
    await (world.delete_topic() if what == "topic" else world.delete_group("g"))
    await world.pass_ms(1)
    answer = await waiting
    assert (answer["status"], answer["code"]) == (404, "not_found")


async def test_a_group_from_the_start_and_from_now(world):
    await world.publish(1, 2, 3)
    start = await world.group("start")
    assert (start["created"], start["pending"]) == (True, 3)
    now = await world.group("now", start="now")
    assert (now["created"], now["pending"]) == (True, 0)
    await world.pass_ms(1)
    await world.publish(4)
    assert await world.all_values(group="start") == [1, 2, 3, 4]
    assert await world.all_values(group="now") == [4]
    again = await world.group("now")
    assert (again["created"], again["pending"]) == (False, 1)


async def test_a_group_is_in_the_statistics_before_its_first_consume(world):
    await world.group("b")
    await world.group("a")
    stats = await world.stats()
    assert (sorted(one["group"] for one in stats["groups"]), stats["group_count"]) == (["a", "b"], 2)


async def test_what_only_a_deleted_group_held_back_is_deleted(world):
    await world.group("slow")
    await world.publish(1, 2, key="k")
    await world.publish(3, 4)
    while messages := await world.take_all():
        for message in messages:
            await world.ack(message)
    assert await world.retained() == 4
    await world.take_all(group="slow")
    assert (await world.delete_group("slow"))["deleted"] is True
    await world.pass_ms(1)
    assert await world.retained() == 0
    assert (await world.delete_group("slow"))["deleted"] is False
    assert [one["group"] for one in (await world.stats())["groups"]] == ["g"]


async def test_the_messages_of_the_last_group_are_there_for_the_next(world):
    """Those in flight, too."""
    await world.publish(1, 2, 3)
    (first, _) = await world.take(2)
    await world.ack(first)
    await world.delete_group("g")
    await world.restart()
    assert await world.values(9, group="next") == [2, 3]


async def test_an_ack_to_a_deleted_group_does_nothing(world):
    await world.publish(1)
    (message,) = await world.take()
    await world.delete_group("g")
    assert (await world.ack(message))["acked"] is False
    assert await world.values() == [1]


async def test_a_deleted_group_that_comes_back_is_new(world):
    await world.publish(1)
    (message,) = await world.take()
    await world.kill(message)
    await world.publish(2)
    await world.delete_group("g")
    assert (await world.group("g"))["created"] is True
    assert await world.dead() == []


async def test_the_statistics_of_all_topics_and_of_some(world):
    await world.settings(topic="u", max_attempts=5)
    await world.publish(1, 2)
    await world.publish(3, topic="u")
    await world.take()
    every = await world.call("GET", "/queue/stats")
    assert [(one["topic"], one["messages"]) for one in every["topics"]] == [("t", 2), ("u", 1)]
    some = await world.call("GET", "/queue/stats", topics=["u", "t", "none"], group="g")
    found = [(one["topic"], one["messages"], one["ready"], one["settings"]["max_attempts"]) for one in some["topics"]]
    assert found == [("u", 1, 0, 5), ("t", 2, 1, 20)]
