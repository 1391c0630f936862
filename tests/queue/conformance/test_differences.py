"""What the engines do differently: each test names the row of the table in docs/reference/engines.md that says so."""

from __future__ import annotations

import asyncio

import pytest

from dss_api.liveness import Liveness
from dss_dev.queue_world import differs, keys_of_partitions, values_of
from dss_queue.subscribers import PROBES_MISSED_MAX

ELSEWHERE = "somewhere"


@differs("index")
async def test_every_answer_says_where_its_effect_is(world):
    answers = [await world.done("publish", value=1)]
    for _ in range(2):
        answers.append(await world.consume(visibility_ms=1000))
        answers.append(await world.extend(answers[-1], 1000))
        answers.append(await (world.nack if len(answers) < 4 else world.ack)(answers[-2]))
    answers.append(await world.consume())
    assert {one["status"] for one in answers} == {200}
    assert {one["durability"] for one in answers} == {world.either(log="replicated-log", redis="redis")}
    assert {type(one["index"]) for one in answers} == {world.either(log=int, redis=type(None))}


@differs("request_id")
async def test_repeats_with_a_request_id(world):
    world.open_request_session("session")
    first = await world.done("publish", value="a", key="k", request_id="session:1")
    assert (await world.done("publish", value="a", key="k", request_id="session:1"))["msg_id"] == first["msg_id"]
    reused = await world.post("publish", value="other", key="k", request_id="session:1")
    assert reused.get("code") == world.either(log="request_id_reused", redis=None)
    assert reused.get("msg_id") == world.either(log=None, redis=first["msg_id"]), "nothing more is stored"
    (message,) = await world.take()
    named = {"group": "g", "msg_id": message["msg_id"], "receipt": message["receipt"], "request_id": "session:2"}
    assert (await world.done("ack", **named))["acked"]
    assert (await world.done("ack", **named))["acked"] is world.either(log=True, redis=False)
    await world.pass_ms(61_000)
    await world.publish("b", key="k")
    late = await world.done("publish", value="a", key="k", request_id="session:1")
    assert (late["msg_id"] == first["msg_id"]) is world.either(log=True, redis=False)


# ------------------------------------------------------------- across slots


@differs("crosses_slots")
async def test_messages_with_several_keys_in_one_call(world):
    messages = [{"value": number, "key": key} for number, key in enumerate(keys_of_partitions(2))]
    answer = await world.post("publish", messages=messages)
    assert (answer["status"], answer.get("code")) == world.either(log=(200, None), redis=(409, "crosses_slots"))
    assert await world.retained() == world.either(log=2, redis=0)
    for message in messages:
        await world.publish(message["value"], key=message["key"])


@differs("ack_with_more")
@pytest.mark.parametrize("more", [{"publish": [{"topic": ELSEWHERE, "value": 1}]}, {"release": [{"key": "k", "client": "c"}]}])
async def test_an_ack_that_does_more(world, more):
    await world.publish("a")
    (message,) = await world.take()
    answer = await world.ack(message, **more)
    assert (answer["status"], answer.get("code")) == world.either(log=(200, None), redis=(409, "not_on_engine"))
    assert await world.counts() == world.either(log={}, redis={"in_flight": 1})
    await world.ack(message)
    assert await world.counts() == {}


@differs("ack_with_more")
async def test_an_ack_in_another_topic_that_publishes_here(world):
    await world.call("PUT", "/queue/topic", topic=ELSEWHERE)
    await world.publish("a", topic=ELSEWHERE)
    (message,) = await world.take(topic=ELSEWHERE)
    answer = await world.ack(message, topic=ELSEWHERE, publish=[{"topic": "t", "value": 1}])
    assert (answer["status"], answer.get("code")) == world.either(log=(200, None), redis=(409, "not_on_engine"))
    assert await world.retained() == world.either(log=1, redis=0)
    assert await world.retained(ELSEWHERE) == world.either(log=0, redis=1), "nothing was done"


@differs("batch_acks")
async def test_an_ack_of_messages_with_several_keys_of_which_a_part_fails(world):
    first, second = keys_of_partitions(2)
    for key in (first, second):
        await world.publish(key, key=key)
    messages = await world.take_all()
    with world.unreachable(second):
        assert (await world.ack(*messages))["code"] == "unknown_outcome"
    assert await world.counts() == world.either(log={"in_flight": 2}, redis={"in_flight": 1})
    await world.ack(*messages)
    assert await world.counts() == {}


# ------------------------------------------------------ topics and groups


@differs("dead_letter_topic")
async def test_a_dead_letter_topic(world):
    answer = await world.try_settings(dead_letter_topic=ELSEWHERE)
    expected = world.either(log=(200, None, None), redis=(409, "not_on_engine", "dead_letter_topic"))
    assert (answer["status"], answer.get("code"), answer.get("field")) == expected
    await world.publish("a")
    (message,) = await world.take()
    await world.kill(message)
    assert await world.dead() == world.either(log=[], redis=[("a", "rejected")])


@differs("dead_letter_topic")
async def test_a_topic_as_the_dead_letter_topic_of_another(world):
    answer = await world.call("PUT", "/queue/topic", topic=ELSEWHERE, dead_letter_topic="t")
    expected = world.either(log=(200, None, None), redis=(409, "not_on_engine", "dead_letter_topic"))
    assert (answer["status"], answer.get("code"), answer.get("field")) == expected


@differs("keep_ms")
async def test_finished_messages_that_are_kept(world):
    answer = await world.try_settings(keep_ms=60_000)
    expected = world.either(log=(200, None, None), redis=(409, "not_on_engine", "keep_ms"))
    assert (answer["status"], answer.get("code"), answer.get("field")) == expected
    await world.publish("a")
    (message,) = await world.take()
    await world.ack(message)
    assert await world.values(group="late") == world.either(log=["a"], redis=[])


@differs("start_at_message")
async def test_a_group_that_starts_at_a_message(world):
    ids = await world.publish(1, 2, 3)
    answer = await world.try_group("from", msg_id=ids[1])
    expected = world.either(log=(200, None, None), redis=(409, "not_on_engine", "msg_id"))
    assert (answer["status"], answer.get("code"), answer.get("field")) == expected


@differs("start_now")
async def test_a_group_that_starts_now_and_a_message_whose_delay_is_not_over(world):
    await world.publish("late", delay_ms=1000)
    assert (await world.group("g", start="now"))["pending"] == world.either(log=1, redis=0)
    await world.pass_ms(1000)
    assert await world.values() == world.either(log=["late"], redis=[])


@differs("max_bytes")
async def test_a_topic_with_a_small_max_bytes(world):
    await world.settings(max_bytes=160)
    answer = await world.post("publish", value="x" * 18, key="k")
    assert (answer["status"], answer.get("code")) == world.either(log=(200, None), redis=(429, "over_limit"))


@differs("dedup_id_of_a_key")
async def test_a_dedup_id_with_several_keys(world):
    first, second = keys_of_partitions(2)
    await world.publish(1, key=first, dedup_id="d")
    assert (await world.done("publish", value=2, key=first, dedup_id="d"))["duplicate"] is True
    assert (await world.done("publish", value=3, key=second, dedup_id="d"))["duplicate"] is world.either(log=True, redis=False)


# ------------------------------------------------------------------ consume


@differs("one_partition")
async def test_a_consume_while_messages_with_several_keys_are_ready(world):
    for key in keys_of_partitions(4):
        await world.publish(key, key=key)
    assert len(await world.take(9)) == world.either(log=4, redis=1)
    assert len(await world.take_all()) == world.either(log=0, redis=3)


@differs("order_without_key")
async def test_the_order_of_messages_without_a_key(world):
    for number in range(40):
        await world.publish(number)
    got = [message["value"] for message in await world.take_all()]
    in_order = list(range(40))
    assert sorted(got) == in_order
    assert (got == in_order) is world.either(log=True, redis=False)


@differs("run_on_the_way")
async def test_a_run_of_messages_that_are_far_from_each_other(world):
    messages = [{"value": 1, "key": "k"}, *({"value": number} for number in (2, 3, 4)), {"value": 5, "key": "k"}]
    await world.done("publish", messages=messages)
    assert await world.values(3, max_per_key=3) == world.either(log=[1, 5, 2], redis=[1, 2, 3])


@differs("repeat_of_a_wait")
async def test_a_repeat_of_a_consume_that_still_waits(world):
    first = await world.later(attempt_id="a")
    second = asyncio.create_task(world.post("consume", group="g", timeout_ms=20_000, max_messages=1, attempt_id="a"))
    if world.either(log=True, redis=False):
        assert values_of(await first) == []
        await world.publish("a")
        assert values_of(await second) == ["a"]
        return
    await world.publish("a", "b")
    assert [values_of(await first), values_of(await second)] == [["a"], ["a"]]


@differs("old_in_flight")
async def test_an_old_message_in_flight_that_is_given_back(world):
    await world.settings(retention_ms=10_000)
    await world.publish("a")
    (message,) = await world.take(visibility_ms=20_000)
    await world.pass_ms(11_000)
    assert (await world.nack(message))["nacked"] is True
    assert await world.values() == world.either(log=["a"], redis=[])
    assert await world.dead() == world.either(log=[], redis=[("a", "expired")])


@differs("old_behind")
async def test_an_old_message_behind_one_that_was_delayed_for_long(world):
    await world.settings(retention_ms=10_000)
    await world.group("g")
    await world.publish("a", key="k", delay_ms=30_000)
    await world.publish("b", key="k")
    await world.pass_ms(30_000)
    (first,) = await world.take(9)
    await world.ack(first)
    assert await world.values() == world.either(log=["b"], redis=[])
    assert await world.dead() == world.either(log=[], redis=[("b", "expired")])


@differs("delayed_count")
async def test_the_number_of_messages_whose_delay_is_not_over(world):
    await world.group("g")
    await world.publish("a", delay_ms=1000)
    assert await world.counts() == world.either(log={"delayed": 1}, redis={"ready": 1})
    assert await world.why_empty() == "delayed"
    assert await world.counts() == {"delayed": 1}


@differs("peek_of_long_messages")
async def test_a_peek_at_long_messages(world):
    world._node.config.value_bytes_max = 256 * 1024
    await world.group("g")
    ids = [msg_id for number in range(12) for msg_id in await world.publish(f"{number}{'x' * 250_000}", key="k")]
    found = [one["msg_id"] for one in await world.peek()]
    assert found == ids[: len(found)]
    assert len(found) == world.either(log=12, redis=9)
    assert len(await world.peek(msg_id=ids[11])) == 1


class SilentClient:
    """A subscriber whose host has vanished: it answers no ping."""

    backlog = 0

    def __init__(self) -> None:
        self.pings = 0
        self.is_silent = asyncio.Event()
        self.liveness = Liveness(self)

    def watch(self, on_data) -> None: ...

    def ping(self) -> None:
        self.pings += 1
        if self.pings == PROBES_MISSED_MAX:
            self.is_silent.set()

    def push(self, event) -> None: ...

    async def drained(self) -> None: ...


@differs("not_received")
async def test_a_pushed_message_whose_subscriber_has_vanished(world):
    client = SilentClient()
    subscription = world.subscribe(client, visibility_ms=200)
    await world.publish("a")
    await client.is_silent.wait()
    while (await world.group_stats())["waiters"]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await world.pass_ms(200)
    (message,) = await world.take()
    assert message["attempt"] == world.either(log=1, redis=2)
    subscription.cancel()
    await asyncio.wait([subscription])
