"""Groups, order, and which consumer has a message."""

from __future__ import annotations


async def test_each_group_gets_every_message(world):
    await world.group("billing")
    await world.publish("a", "b")
    assert await world.values(5, group="billing") == ["a", "b"]
    assert await world.values(5, group="shipping") == ["a", "b"]


async def test_within_a_group_only_one_consumer_has_a_message(world):
    await world.publish("a", "b")
    assert await world.values() == ["a"]
    assert await world.values() == ["b"]
    assert await world.why_empty() == "all_in_flight"


async def test_a_delivery_has_all_fields_of_the_message(world):
    value = {"n": [1, 2.5, None], "text": "\u00e9\u4e16"}
    published = await world.done("publish", value=value, key="customer-7", headers={"a": "b"})
    answer = await world.consume(visibility_ms=5000)
    assert (answer["msg_id"], answer["value"], answer["key"], answer["headers"]) == (
        published["msg_id"],
        value,
        "customer-7",
        {"a": "b"},
    )
    assert (answer["partition"], answer["attempt"], answer["published_ms"]) == (published["partition"], 1, world.at_ms)
    assert (answer["delivered_ms"], answer["first_delivered_ms"]) == (world.at_ms, world.at_ms)
    assert answer["visible_until_ms"] == world.at_ms + 5000


async def test_a_message_without_headers_and_key(world):
    await world.publish(None)
    (message,) = await world.take()
    assert (message["value"], message["key"], message["headers"]) == (None, "", None)


async def test_a_new_group_starts_at_the_oldest_retained_message(world):
    """A message that every known group has acked is gone. One in flight or not yet taken is retained."""
    await world.publish("done", "in flight", "returned", "fresh")
    done, _, returned = await world.take(3)
    await world.ack(done)
    await world.nack(returned)
    assert await world.values(9, group="late") == ["in flight", "returned", "fresh"]
    assert await world.retained() == 3


async def test_a_new_group_gets_each_message_once_beside_a_fast_and_a_slow_group(world):
    await world.group("slow")
    await world.publish(1, 2, 3)
    await world.take(2, group="quick")
    assert await world.values(9, group="late") == [1, 2, 3]
    assert await world.why_empty(group="late") == "all_in_flight"


async def test_a_message_is_dropped_when_the_last_group_has_acked_it(world):
    for group in ("one", "two"):
        await world.group(group)
    await world.publish("a")
    for group in ("one", "two"):
        assert await world.retained() == 1
        (message,) = await world.take(group=group)
        await world.ack(message, group=group)
    stats = await world.stats()
    assert (stats["messages"], stats["bytes"], stats["published"]) == (0, 0, 1)


async def test_without_a_group_messages_are_retained(world):
    await world.publish("a")
    await world.pass_ms(3600_000)
    assert await world.values() == ["a"]


async def test_a_batch_is_handed_out_in_publish_order(world):
    await world.publish(*range(10))
    assert await world.values(4) == [0, 1, 2, 3]
    assert await world.values(100) == [4, 5, 6, 7, 8, 9]


async def test_messages_of_many_calls_and_keys_are_all_delivered(world):
    for number in range(20):
        await world.publish(number, key=f"k{number % 7}" if number % 2 else "")
    seen = []
    while messages := await world.take_all():
        seen += [message["value"] for message in messages]
        for message in messages:
            await world.ack(message)
    assert sorted(seen) == list(range(20))
    assert await world.counts() == {}


async def test_what_a_group_has_done_is_counted(world):
    await world.publish(1, 2, 3, 4)
    one, two, _ = await world.take(3, visibility_ms=100)
    await world.ack(one)
    await world.kill(two)
    await world.pass_ms(100)
    await world.take(1)
    assert await world.counts() == {"ready": 1, "in_flight": 1, "dead": 1}
    found = await world.group_stats()
    assert (found["delivered"], found["redelivered"], found["acked"]) == (4, 1, 1)
    assert (found["dead_total"], found["waiters"]) == ({"rejected": 1}, 0)
    assert found["oldest_age_ms"] == 100
