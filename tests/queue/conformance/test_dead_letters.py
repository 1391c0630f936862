"""Messages that fail too often are kept with their history. They never disappear."""

from __future__ import annotations


async def test_after_max_attempts_a_message_is_a_dead_letter_with_its_history(world):
    await world.settings(max_attempts=3)
    (msg_id,) = await world.publish("a", key="k", headers={"a": "b"})
    (message,) = await world.take()
    await world.pass_ms(7)
    await world.nack(message)
    for _ in range(2):
        await world.take(visibility_ms=10)
        await world.pass_ms(10)
    assert await world.why_empty() == "no_messages"
    (dead,) = await world.peek(group="g", dead=True)
    assert (dead["msg_id"], dead["reason"], dead["attempt"], dead["state"]) == (msg_id, "max_attempts", 3, "dead")
    assert (dead["value"], dead["key"], dead["headers"], dead["dead_ms"]) == ("a", "k", {"a": "b"}, world.at_ms)
    assert [(end["attempt"], end["reason"], end["node"]) for end in dead["history"]] == [
        (1, "nack", "n1"),
        (2, "timeout", "n1"),
        (3, "timeout", "n1"),
    ]
    assert dead["history"][0]["ended_ms"] - dead["history"][0]["delivered_ms"] == 7
    assert (await world.group_stats())["dead_total"] == {"max_attempts": 1}


async def test_the_default_is_twenty_attempts(world):
    await world.publish("a")
    for attempt in range(1, 21):
        (message,) = await world.take()
        assert message["attempt"] == attempt
        assert (await world.nack(message))["dead"] == (attempt == 20)


async def test_without_a_limit_no_number_of_attempts_makes_a_dead_letter(world):
    await world.settings(max_attempts=0)
    await world.publish("a")
    for attempt in range(1, 31):
        (message,) = await world.take()
        assert message["attempt"] == attempt
        assert (await world.nack(message))["dead"] is False


async def test_a_nack_with_dead_makes_a_dead_letter_immediately(world):
    await world.publish("a")
    (message,) = await world.take()
    answer = await world.nack(message, dead=True)
    assert (answer["nacked"], answer["dead"]) == (True, True)
    assert await world.dead() == [("a", "rejected")]


async def test_a_dead_letter_belongs_to_one_group_only(world):
    await world.publish("a")
    (others,) = await world.take(group="other")
    (message,) = await world.take()
    await world.kill(message)
    assert await world.dead("other") == []
    assert (await world.ack(others, group="other"))["acked"] is True
    assert await world.dead() == [("a", "rejected")]


async def test_the_ack_of_a_dead_message_is_stale(world):
    await world.settings(max_attempts=1)
    await world.publish("a")
    (message,) = await world.take(visibility_ms=10)
    await world.pass_ms(10)
    assert (await world.ack(message))["code"] == "stale_receipt"


async def test_redrive_returns_dead_letters_with_their_attempts_reset(world):
    await world.settings(max_attempts=1)
    ids = await world.publish("a", "b")
    for message in await world.take(2):
        await world.nack(message)
    assert (await world.done("redrive", group="g", msg_id=ids[1]))["redriven"] == 1
    (second,) = await world.take(9)
    assert (second["msg_id"], second["attempt"]) == (ids[1], 1)
    assert (await world.done("redrive", group="g"))["redriven"] == 1
    assert (await world.done("redrive", group="g"))["redriven"] == 0
    (first,) = await world.take(9)
    assert first["msg_id"] == ids[0]
    await world.ack(first)
    await world.ack(second)
    stats = await world.stats()
    assert (stats["messages"], stats["bytes"], stats["dead"]) == (0, 0, 0)


async def test_a_redriven_message_is_that_of_its_group_only(world):
    await world.publish("a")
    (others,) = await world.take(group="other")
    (message,) = await world.take()
    await world.kill(message)
    await world.ack(others, group="other")
    await world.done("redrive", group="g")
    assert await world.values(group="other") == []
    assert await world.values() == ["a"]


async def test_redrive_serves_waiting_consumers(world):
    (msg_id,) = await world.publish("a")
    (message,) = await world.take()
    await world.kill(message)
    waiting = await world.later()
    await world.done("redrive", group="g")
    assert [one["msg_id"] for one in (await waiting)["messages"]] == [msg_id]


async def test_dead_letters_can_be_purged_by_group(world):
    await world.publish("a")
    taken = {group: (await world.take(group=group))[0] for group in ("one", "two")}
    for group, message in taken.items():
        await world.kill(message, group=group)
    assert (await world.done("purge", dead=True, group="one"))["purged"] == 1
    assert (await world.done("purge", dead=True))["purged"] == 1
    stats = await world.stats()
    assert (stats["messages"], stats["bytes"], stats["dead"]) == (0, 0, 0)


async def test_there_is_nothing_to_redrive_or_purge_in_an_unknown_group(world):
    await world.publish("a")
    assert (await world.done("redrive", group="stranger"))["redriven"] == 0
    assert (await world.done("redrive", group="stranger", msg_id="1-0"))["redriven"] == 0
    assert (await world.done("purge", dead=True, group="stranger"))["purged"] == 0
