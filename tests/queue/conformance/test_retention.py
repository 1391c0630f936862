"""Retention of messages that no consumer takes, and purge."""

from __future__ import annotations

DAY_MS = 24 * 3600 * 1000


async def test_without_a_group_old_messages_are_dropped_and_counted(world):
    await world.settings(retention_ms=10_000)
    await world.publish("a", key="k")
    await world.publish("b", key="k")
    await world.pass_ms(5000)
    await world.publish("c", key="k")
    await world.pass_ms(6000)
    assert await world.values(9) == ["c"]
    stats = await world.stats()
    assert (stats["messages"], stats["expired"]) == (1, 2)
    await world.pass_ms(DAY_MS)


async def test_old_messages_become_dead_letters_of_known_groups(world):
    """They are never dropped silently."""
    await world.settings(retention_ms=10_000)
    for group in ("g", "quick"):
        await world.group(group)
    await world.publish("a")
    await world.publish("b", key="k")
    for message in await world.take_all(group="quick"):
        await world.ack(message, group="quick")
    await world.pass_ms(11_000)
    assert sorted(await world.dead()) == [("a", "expired"), ("b", "expired")]
    assert await world.dead("quick") == []
    assert await world.why_empty() == "no_messages"
    assert await world.retained() == 0


async def test_a_returned_message_becomes_a_dead_letter_with_its_history(world):
    await world.settings(retention_ms=10_000)
    await world.publish("a", key="k")
    await world.publish("b")
    assert len(await world.take_all(visibility_ms=10)) == 2
    await world.pass_ms(10)
    await world.pass_ms(11_000)
    assert sorted(await world.dead()) == [("a", "expired"), ("b", "expired")]
    assert [[end["reason"] for end in one["history"]] for one in await world.peek(group="g", dead=True)] == [["timeout"]] * 2
    assert (await world.done("redrive", group="g"))["redriven"] == 2
    assert await world.all_values() == ["a", "b"], "a redrive begins again"


async def test_an_old_message_in_flight_may_still_be_finished(world):
    await world.settings(retention_ms=10_000)
    await world.publish("a")
    await world.publish("b", key="k")
    messages = await world.take_all(visibility_ms=20_000)
    await world.pass_ms(11_000)
    for message in messages:
        assert (await world.ack(message))["acked"] is True
    assert await world.dead() == []
    assert await world.counts() == {}


async def test_a_message_with_a_delay_longer_than_the_retention_is_kept(world):
    await world.settings(retention_ms=10_000)
    await world.publish("a", delay_ms=30_000)
    await world.pass_ms(20_000)
    await world.pass_ms(10_000)
    assert await world.values() == ["a"]


async def test_messages_behind_a_long_delay_are_kept_until_their_turn(world):
    await world.settings(retention_ms=10_000)
    await world.group("g")
    await world.publish("a", "b", key="k", delay_ms=30_000)
    await world.publish("c", key="k")
    await world.pass_ms(20_000)
    assert await world.dead() == []
    await world.pass_ms(10_000)
    assert await world.values(9) == ["a"]
    assert await world.dead() == []


async def test_a_shorter_retention_applies_to_messages_that_are_there(world):
    await world.group("g")
    await world.publish("a")
    await world.pass_ms(20_000)
    await world.settings(retention_ms=10_000)
    await world.pass_ms(1000)
    assert await world.dead() == [("a", "expired")]
    assert await world.retained() == 0


async def test_purge_deletes_everything_except_dead_letters(world):
    await world.publish("a", "b", key="k")
    await world.publish("c", key="k")
    await world.publish("d", key="k", delay_ms=100)
    (first,) = await world.take()
    await world.kill(first)
    (held,) = await world.take()
    assert (await world.done("purge"))["purged"] == 3
    assert await world.why_empty() == "no_messages"
    assert (await world.ack(held))["acked"] is False
    await world.pass_ms(DAY_MS)
    await world.publish("e", key="k")
    await world.publish("f")
    assert await world.all_values() == ["e", "f"]
    assert await world.dead() == [("a", "rejected")]


async def test_a_waiter_survives_a_purge(world):
    waiting = await world.later()
    await world.done("purge")
    await world.publish("a")
    assert [one["value"] for one in (await waiting)["messages"]] == ["a"]
