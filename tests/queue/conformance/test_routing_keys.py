"""Messages with a routing key come in publish order, one in flight at a time. Other messages do not wait for them."""

from __future__ import annotations


async def test_the_next_message_of_a_key_comes_after_the_ack(world):
    await world.publish(1, 2, key="k")
    await world.publish(3, key="other")
    await world.publish(4)
    found = await world.take_all()
    assert sorted(one["value"] for one in found) == [1, 3, 4]
    assert await world.why_empty() == "key_blocked"
    await world.ack(next(one for one in found if one["value"] == 1))
    assert await world.all_values() == [2]
    assert await world.why_empty() == "all_in_flight"


async def test_a_failed_message_comes_again_before_its_successors(world):
    await world.publish(1, 2, key="k")
    (first,) = await world.take()
    await world.nack(first, delay_ms=100)
    assert await world.why_empty() == "delayed"
    await world.pass_ms(100)
    assert await world.values(9) == [1]


async def test_a_delayed_message_delays_its_successors(world):
    await world.publish(1, key="k", delay_ms=100)
    await world.publish(2, key="k")
    assert await world.why_empty() == "delayed"
    await world.pass_ms(100)
    (first,) = await world.take(9)
    assert first["value"] == 1
    await world.ack(first)
    assert await world.values(9) == [2]


async def test_a_dead_letter_lets_the_next_message_pass(world):
    await world.publish(1, 2, key="k")
    (first,) = await world.take()
    await world.kill(first)
    assert await world.values() == [2]


async def test_a_redriven_message_still_excludes_the_others(world):
    await world.publish(1, 2, 3, key="k")
    (first,) = await world.take()
    await world.kill(first)
    (second,) = await world.take()
    await world.done("redrive", group="g")
    assert await world.why_empty() == "key_blocked"
    await world.ack(second)
    (first,) = await world.take(9)
    assert first["value"] == 1
    await world.ack(first)
    assert await world.values(9) == [3]


async def test_redriven_messages_come_in_publish_order(world):
    ids = await world.publish(1, 2, 3, key="k")
    for _ in range(2):
        (message,) = await world.take()
        await world.kill(message)
    (message,) = await world.take()
    await world.done("redrive", group="g", msg_id=ids[1])
    await world.done("redrive", group="g", msg_id=ids[0])
    for msg_id in (ids[2], ids[0], ids[1]):
        assert message["msg_id"] == msg_id
        assert (await world.ack(message))["acked"] is True
        message = next(iter(await world.take()), None)


async def test_a_late_ack_lets_the_next_message_pass_once(world):
    await world.group("slow")
    await world.publish(1, 2, 3, key="k")
    (first,) = await world.take(visibility_ms=10)
    await world.pass_ms(10)
    assert (await world.ack(first))["acked"] is True
    assert await world.values(9) == [2]
    assert await world.why_empty() == "key_blocked"


async def test_a_group_does_not_block_the_keys_of_another(world):
    await world.publish(1, 2, key="k")
    assert await world.values(group="a") == [1]
    assert await world.values(group="b") == [1]


async def test_the_partition_comes_from_the_key(world):
    first = await world.done("publish", value=1, key="k")
    again = await world.done("publish", value=2, key="k")
    assert 0 <= first["partition"] == again["partition"] < 16


async def test_an_empty_key_is_no_key(world):
    await world.publish(1, 2, key="")
    assert [await world.values(), await world.values()] == [[1], [2]], "neither waits for the other"
