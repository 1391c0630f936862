"""What one consume got is one record, until a step means a part of it. The rest is in test_against_model.py."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from dss_queue.redis_engine.keys import group_keys


@pytest.fixture
def stored(one, valkey):
    """The keys of a group that exist, by the last part of their name."""

    def names(group: str = "g") -> set[str]:
        keys = group_keys(one.topic, 0, group)
        return {key.rpartition(":")[2] for key in keys if valkey.client().exists(key)}

    return names


@pytest.fixture
def commands(one, valkey):
    """How often the steps have called some commands since this test began."""
    client = valkey.client()
    client.config_resetstat()

    def calls(*names: str) -> tuple[int, ...]:
        statistics = client.info("commandstats")
        return tuple(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)

    return calls


async def test_messages_that_are_acked_together_have_no_records(one, stored, commands):
    await one.publish(*range(100))
    got = await one.consume(100)
    assert stored() == {"group", "batches", "handouts", "due"}
    assert (await one.stats())[1][0].in_flight == 100
    assert await one.ack(*got) == [True] * 100
    assert stored() == {"group"}
    assert commands("xtrim", "xdel") == (1, 0)


async def test_a_batch_behind_another_leaves_alone_what_is_before_it(one, commands):
    ids = await one.publish(*range(6))
    first, second = await one.consume(3), await one.consume(3)
    assert await one.ack(*second) == [True] * 3
    assert commands("xtrim", "xdel") == (0, 1)
    assert [line.msg_id for line in await one.views.peek(one.topic)] == ids[:3]
    assert await one.ack(*first) == [True] * 3
    assert (await one.stats())[0].messages == 0


@pytest.mark.parametrize("what", ["delayed", "back", "in flight", "parked"])
async def test_an_ack_of_a_batch_leaves_alone_what_came_before_it_and_is_not_finished(one, what):
    (before,) = await one.publish("before", delay_ms=500 if what == "delayed" else 0, key="k" if what == "parked" else "")
    if what == "parked":
        await one.publish("behind", key="k")
    if what != "delayed":
        (held,) = await one.consume(1)
        if what == "back":
            await one.nack(held, silent=True)
        if what == "in flight":
            await one.engine.extend(one.topic, "g", held.msg_id, held.receipt, one.settings, 5000)
    await one.publish("a", "b")
    got = await one.consume(3)
    batch = [message for message in got if message.msg_id != before]
    # One that came back is delivered with them, so they have records of their own.
    assert await one.ack(*batch) == [True] * 2
    left = await one.views.peek(one.topic)
    assert [bytes(line.value) for line in left] == [b"before", b"behind"][: 2 if what == "parked" else 1]


@pytest.mark.parametrize("with_receipts", [True, False])
async def test_parts_of_a_batch_are_acked_one_by_one(one, stored, with_receipts):
    await one.publish(1, "22", 3)
    got = await one.consume(3)
    for place, message in enumerate(got):
        receipts = [message.receipt] if with_receipts else None
        (answer,) = await one.engine.ack(one.topic, "g", [message.msg_id], receipts, one.settings)
        assert answer.acked
        topic, (group,) = await one.stats()
        assert (topic.messages, group.in_flight) == (2 - place, 2 - place)
    assert (await one.stats())[0].bytes == 0
    assert stored() == {"group"}


async def test_a_batch_is_acked_without_receipts_in_one_step(one, stored, commands):
    await one.publish(*range(5))
    got = await one.consume(5)
    answers = await one.engine.ack(one.topic, "g", [message.msg_id for message in got], None, one.settings)
    assert all(answer.acked for answer in answers)
    assert commands("xtrim", "xdel") == (1, 0)
    assert stored() == {"group"}


@pytest.mark.parametrize("with_receipts", [True, False])
async def test_an_ack_of_parts_of_many_batches_is_several_short_steps(one, stored, commands_of, with_receipts):
    batches = 250
    await one.publish(*range(2 * batches))
    got = [await one.consume(2) for _ in range(batches)]
    count = commands_of(one)
    for place, steps in ((0, 3), (1, 1)):
        some = [batch[place] for batch in got]
        receipts = [message.receipt for message in some] if with_receipts else None
        answers = await one.engine.ack(one.topic, "g", [message.msg_id for message in some], receipts, one.settings)
        assert [answer.acked for answer in answers] == [True] * batches
        assert count.pop("ack") == steps
    assert (await one.stats())[0].messages == 0
    assert stored() == {"group"}


async def test_receipts_of_another_delivery_do_not_mean_a_batch(one):
    await one.publish(*range(4))
    first, second = await one.consume(2), await one.consume(2)
    serial = first[0].receipt.rpartition(".")[2]
    stale = [f"{message.msg_id}.{serial}" for message in second]
    ids = [message.msg_id for message in second]
    answers = await one.engine.ack(one.topic, "g", ids, stale, one.settings)
    assert [answer.code for answer in answers] == ["stale_receipt"] * 2
    assert await one.ack(*first, *second) == [True] * 4


async def test_a_message_of_a_batch_is_given_back_or_extended_alone(one):
    await one.publish(*range(4))
    got = await one.consume(4, visibility_ms=100)
    await one.nack(got[0], silent=True)
    await one.engine.extend(one.topic, "g", got[3].msg_id, got[3].receipt, one.settings, 500)
    assert await one.values(4) == ["0"]
    await one.pass_ms(100)
    await one.pass_ms(20)
    again = await one.consume(4)
    assert [(bytes(message.value), message.attempt) for message in again] == [(b"1", 2), (b"2", 2)]
    assert await one.ack(got[3]) == [True]


async def test_a_batch_whose_time_is_over_comes_back_message_by_message(one):
    await one.publish("a", "bb")
    got = await one.consume(2, visibility_ms=100)
    await one.pass_ms(100)
    await one.pass_ms(20)
    again = await one.consume(2)
    assert [(message.msg_id, message.attempt) for message in again] == [(message.msg_id, 2) for message in got]
    assert await one.ack(*got) == ["stale_receipt"] * 2
    assert await one.ack(*again) == [True] * 2
    assert (await one.stats())[0].bytes == 0


async def test_a_peek_shows_a_batch_as_in_flight(one):
    ids = await one.publish(*range(3))
    got = await one.consume(2, visibility_ms=100)
    lines = await one.views.peek(one.topic, "g")
    assert [(line.msg_id, line.state) for line in lines] == [(ids[0], "in_flight"), (ids[1], "in_flight"), (ids[2], "ready")]
    assert [line.visible_until_ms for line in lines[:2]] == [one.at_ms + 100] * 2
    (line,) = await one.views.peek(one.topic, "g", msg_id=ids[1])
    assert (line.state, line.attempt, line.node) == ("in_flight", 1, "n1")
    receipts = {message.msg_id: message.receipt for message in got}
    assert await one.views.in_flight(one.topic, "g", {**receipts, ids[2]: got[0].receipt}) == set(receipts)
    assert await one.views.in_flight(one.topic, "g", {ids[0]: got[1].receipt}) == set()
    assert await one.views.in_flight(one.topic, "none", receipts) == set()


async def test_a_purge_forgets_batches(one):
    await one.publish(1, 2)
    got = await one.consume(2)
    await one.administration.purge(one.topic)
    assert await one.views.in_flight(one.topic, "g", {message.msg_id: message.receipt for message in got}) == set()
    assert await one.ack(*got) == [False, False]
    assert (await one.stats())[1][0].in_flight == 0
    await one.publish(3)
    assert await one.values(1) == ["3"]


async def test_messages_with_keys_and_headers_are_delivered_with_them(one):
    await one.publish("plain")
    await one.publish("keyed", key="k")
    got = await one.consume(2)
    assert [(bytes(message.value), message.key) for message in got] == [(b"plain", ""), (b"keyed", "k")]
    assert await one.ack(*got) == [True, True]


# ------------------------------------------------------------------ looks that are shared


async def test_consumes_at_the_same_time_share_looks_that_find_nothing(bench, commands_of):
    await bench.publish(1)
    (got,) = await bench.consume()
    await bench.ack(got)
    consumes = 8
    count = commands_of(bench)
    answers = await asyncio.gather(*(bench.consume() for _ in range(consumes)))
    assert answers == ["no_messages"] * consumes
    # Each looks at the partition of its turn. Of the others, it needs only those at which no other one has looked meanwhile.
    assert count["consume"] <= 2 * consumes < 4 * consumes
    count.clear()
    assert await bench.consume() == "no_messages"
    assert count["consume"] == 4, "a consume that begins later looks itself"


@pytest.fixture
def commands_of(monkeypatch):
    """Counts the steps that an engine calls."""

    def counting(bench):
        count: Counter[str] = Counter()
        call = bench.servers.call_and_repeats

        async def counted(step, *args, **fields):
            count[step] += 1
            return await call(step, *args, **fields)

        monkeypatch.setattr(bench.servers, "call_and_repeats", counted)
        return count

    return counting
