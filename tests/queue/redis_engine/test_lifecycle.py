"""How partitions open, close and go, and how groups are deleted."""

from __future__ import annotations

import asyncio

import pytest

from dss_api.errors import Refused
from dss_queue.redis_engine import administration
from dss_queue.redis_engine.engine import RedisEngine
from dss_queue.redis_engine.errors import Closed, NoGroup
from dss_queue.redis_engine.keys import group_keys, partition_keys
from dss_queue.redis_engine.lifecycle import InLog


def keys_of(bench, valkey) -> list[str]:
    return [key.decode() for key in valkey.client().scan_iter(f"dss:{{{bench.topic}:*")]


class Log:
    """What the log says of topics: their groups; None: the topic is not on the engine."""

    def __init__(self, *groups: str) -> None:
        self.groups: list[str] | None = list(groups)
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, topic: str) -> InLog | None:
        self.asked += 1
        groups = self.groups
        await self.may_answer.wait()
        return None if groups is None else InLog(groups)


def with_log(bench, log: Log):
    bench.engine = RedisEngine(bench.servers, node="n1", partitions=bench.engine.partitions, groups_in_log=log)
    bench.administration._engine = bench.engine
    return bench


# --------------------------------------------------------------------- opening


async def test_a_topic_opens_with_its_groups_in_the_log(bench):
    with_log(bench, log := Log("a", "b"))
    await asyncio.gather(*(bench.publish(number) for number in range(8)))
    assert log.asked == 1
    stats, groups = await bench.stats()
    assert stats.messages == 8
    assert {group.group: group.ready for group in groups} == {"a": 8, "b": 8}


async def test_a_group_that_consumes_later_gets_what_others_have_acked(one):
    """It was in the log before the first message, so messages wait for it."""
    with_log(one, Log("a", "b"))
    await one.publish(1)
    assert await one.ack(*await one.consume(group="a"), group="a") == [True]
    assert await one.values(group="b") == ["1"]


async def test_a_topic_that_the_log_does_not_have_here_does_not_open(bench, valkey):
    with_log(bench, log := Log())
    log.groups = None
    with pytest.raises(Closed):
        await bench.publish(1)
    with pytest.raises(Closed):
        await bench.engine.put_group(bench.topic, "g")
    assert await bench.consume(timeout_ms=60_000) == "closed"
    client = valkey.client()
    assert all(0 < client.pttl(key) <= 60_000 for key in keys_of(bench, valkey)), "marks of openings go by themselves"
    assert await bench.administration.is_drained(bench.topic)
    await bench.administration.delete_topic(bench.topic)
    assert keys_of(bench, valkey) == []


@pytest.mark.parametrize("end", ["close", "delete_topic"])
async def test_what_ends_while_it_is_opened_does_not_open(bench, valkey, end):
    """The log was asked before, and the answer is out of date: nothing may be stored."""
    with_log(bench, log := Log())
    log.may_answer.clear()
    publishing = asyncio.create_task(bench.publish(1))
    while not log.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await getattr(bench.administration, end)(bench.topic)
    log.may_answer.set()
    with pytest.raises(Closed):
        await publishing
    assert keys_of(bench, valkey) == []


async def test_a_deleted_topic_does_not_come_back(bench, valkey):
    with_log(bench, log := Log("g"))
    await bench.publish(1)
    log.groups = None
    await bench.administration.delete_topic(bench.topic)
    with pytest.raises(Closed):
        await bench.publish(2)
    found = await bench.consume()
    assert found == "closed"
    assert await bench.administration.purge(bench.topic) == 0
    client = valkey.client()
    assert [key for key in keys_of(bench, valkey) if client.pttl(key) < 0] == []


async def test_servers_that_have_lost_everything_open_again(bench, valkey):
    with_log(bench, Log("g"))
    await bench.publish(1)
    client = valkey.client()
    client.delete(*keys_of(bench, valkey))
    await bench.publish(2)
    assert await bench.values() == ["2"]


# --------------------------------------------------------------------- closing


async def test_a_closed_topic_delivers_what_it_has_and_takes_nothing(bench):
    await bench.publish("first", token="once")
    await bench.publish("known", dedup_id="d")
    await bench.engine.put_group(bench.topic, "g")
    await bench.administration.close(bench.topic)
    with pytest.raises(Closed):
        await bench.publish("late")
    assert not await bench.administration.is_drained(bench.topic)
    # What repeats an earlier call is not new.
    assert (await bench.publish("known", dedup_id="d"))[0].startswith("r")
    for _ in range(2):
        (got,) = await bench.consume()
        await bench.ack(got)
    assert await bench.consume(timeout_ms=60_000) == "closed"
    assert await bench.administration.is_drained(bench.topic)


async def test_a_repeat_of_a_publish_finds_it_after_the_closing(one):
    first = await one.publish(1, token="once")
    await one.administration.close(one.topic)
    assert await one.publish(1, token="once") == first


async def test_consumers_that_wait_hear_that_nothing_is_left(bench):
    await bench.publish(1)
    (got,) = await bench.consume(visibility_ms=600_000)
    waiting = [asyncio.create_task(bench.consume(timeout_ms=60_000)) for _ in range(3)]
    while bench.engine.waiting(bench.topic, "g") < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await bench.administration.close(bench.topic)
    await bench.ack(got)
    assert await asyncio.gather(*waiting) == ["closed"] * 3


async def test_dead_letters_keep_a_closed_topic(bench):
    await bench.publish("v")
    (got,) = await bench.consume()
    await bench.nack(got, dead=True)
    await bench.administration.close(bench.topic)
    assert await bench.consume() == "closed"
    assert not await bench.administration.is_drained(bench.topic)
    assert await bench.administration.redrive(bench.topic, "g") == 1
    (again,) = await bench.consume()
    await bench.nack(again, dead=True)
    assert await bench.administration.delete_dead(bench.topic, "g", again.msg_id)
    assert not await bench.administration.delete_dead(bench.topic, "g", again.msg_id)
    assert await bench.administration.is_drained(bench.topic)


# ---------------------------------------------------------------------- groups


async def finish(bench, group: str, count: int) -> None:
    found = await bench.consume(count, group=group)
    assert len(found) == count
    assert set(await bench.ack(*found, group=group)) == {True}


@pytest.mark.parametrize("count", [3, 250])
async def test_messages_that_only_a_deleted_group_had_not_finished_go(one, count):
    for group in "abc":
        await one.engine.put_group(one.topic, group)
    await one.publish(*range(count))
    await finish(one, "a", count)
    await finish(one, "b", count - 1)
    await one.administration.delete_group(one.topic, "c")
    stats, groups = await one.stats()
    assert (stats.messages, stats.bytes) == (1, len(str(count - 1)))
    assert {group.group: group.ready for group in groups} == {"a": 0, "b": 1}
    await finish(one, "b", 1)
    assert (await one.stats())[0].messages == 0


@pytest.mark.parametrize("count", [3, 250])
async def test_a_deleted_group_no_longer_counts_for_messages_that_it_had_finished(one, valkey, count):
    for group in "abc":
        await one.engine.put_group(one.topic, group)
    await one.publish(*range(count))
    await finish(one, "c", count)
    await one.administration.delete_group(one.topic, "c")
    await finish(one, "a", count)
    assert (await one.stats())[0].messages == count, "b has not finished them"
    await one.publish("more")
    await finish(one, "a", 1)
    await finish(one, "b", count + 1)
    assert (await one.stats())[0].messages == 0
    assert not valkey.client().exists(partition_keys(one.topic, 0)[4]), "no counts are left"


async def test_a_deleted_group_leaves_no_key_and_begins_anew(one, valkey):
    for group in "ab":
        await one.engine.put_group(one.topic, group)
    await one.publish("dead", "held", "back", key="k")
    await one.publish("later", delay_ms=1000)
    (got,) = await one.consume(1)
    await one.nack(got, dead=True)
    await one.consume(1, group="b")
    await one.consume(1)
    await one.administration.delete_group(one.topic, "g")
    await one.administration.delete_group(one.topic, "a")
    prefix = group_keys(one.topic, 0, "a")[0].removesuffix("group")
    assert [key for key in keys_of(one, valkey) if key.startswith(prefix)] == []
    assert await one.values(group="a") == ["dead"]


async def test_the_last_group_leaves_the_messages_of_the_topic(one):
    await one.publish(1, 2)
    (got, _) = await one.consume(2)
    await one.ack(got)
    await one.administration.delete_group(one.topic, "g")
    assert (await one.stats())[0].messages == 1
    assert await one.values() == ["2"]


async def test_a_deletion_that_was_interrupted_goes_on(one):
    for group in "abc":
        await one.engine.put_group(one.topic, group)
    await one.publish(*range(250))

    async def step(name: str) -> None:
        await one.servers.call("delete_group", partition_keys(one.topic, 0) + group_keys(one.topic, 0, name), name)

    await step("c")
    # A group that is being deleted takes no calls, and others go on: up to here, they need not wait for it.
    with pytest.raises(NoGroup):
        await one.servers.call("consume", partition_keys(one.topic, 0) + group_keys(one.topic, 0, "c"))
    await finish(one, "a", 250)
    await finish(one, "b", 50)
    assert (await one.stats())[0].messages == 200
    await one.administration.delete_group(one.topic, "b")
    stats, groups = await one.stats()
    assert ([group.group for group in groups], stats.messages, stats.bytes) == (["a"], 0, 0)


async def test_a_group_that_comes_back_while_it_is_deleted_begins_anew(one):
    for group in "ab":
        await one.engine.put_group(one.topic, group)
    await one.publish(*range(250))
    await finish(one, "b", 250)
    await one.servers.call("delete_group", partition_keys(one.topic, 0) + group_keys(one.topic, 0, "b"), "b")
    await finish(one, "b", 250)
    await finish(one, "a", 250)
    assert (await one.stats())[0].messages == 0


async def test_a_purge_in_the_middle_of_a_deletion(one):
    for group in "ab":
        await one.engine.put_group(one.topic, group)
    await one.publish(*range(250))
    await one.servers.call("delete_group", partition_keys(one.topic, 0) + group_keys(one.topic, 0, "b"), "b")
    assert await one.administration.purge(one.topic) > 0
    await one.publish("new")
    await one.administration.delete_group(one.topic, "b")
    await finish(one, "a", 1)
    stats = (await one.stats())[0]
    assert (stats.messages, stats.bytes) == (0, 0)


async def test_a_group_at_a_given_message_is_refused(bench):
    with pytest.raises(Refused) as refused:
        await bench.engine.put_group(bench.topic, "g", start="r0-0000000000000001")
    assert (refused.value.code, refused.value.extra) == ("not_on_engine", {"field": "start"})


# ---------------------------------------------------------------- sweeps, rates


async def test_a_sweep_says_when_something_is_due(one):
    sweep = one.administration.sweep
    await one.publish(1, 2)
    await one.consume(1, visibility_ms=5000)
    swept = await sweep(one.topic, one.settings, ["g"])
    assert (swept.next_in_ms, swept.did_something, swept.has_other_groups) == (5000, False, False)
    one.at_ms += 5000
    assert (await sweep(one.topic, one.settings, ["g"])).did_something
    assert (await sweep(one.topic, one.settings, ["g", "h"])).has_other_groups
    assert (await sweep(one.topic, one.settings, [])).has_other_groups


async def test_a_sweep_deletes_old_messages_without_groups(open_bench):
    async with open_bench(partitions=1, retention_ms=1000) as bench:
        await bench.publish(*range(1500))
        swept = await bench.administration.sweep(bench.topic, bench.settings)
        assert 0 < swept.next_in_ms <= 1000
        bench.at_ms += 2000
        assert (await bench.administration.sweep(bench.topic, bench.settings)).next_in_ms == 0, "there is more to do"
        await bench.administration.sweep(bench.topic, bench.settings)
        stats = (await bench.stats())[0]
        assert (stats.messages, stats.bytes) == (0, 0)


async def test_a_topic_that_is_not_open_is_left_alone(bench, valkey):
    swept = await bench.administration.sweep(bench.topic, bench.settings, ["g"])
    assert (swept.did_something, swept.has_other_groups) == (False, False)
    assert keys_of(bench, valkey) == []


async def test_rates_are_those_of_the_last_full_ten_seconds(bench):
    bench.at_ms = 1_700_000_000_000
    await bench.publish(*range(20))
    found = await bench.consume(20)
    await bench.ack(*found[:10])
    for pass_ms, rates in ((0, (0, 0, 0)), (10_000, (2, 2, 1)), (10_000, (0, 0, 0))):
        bench.at_ms += pass_ms
        stats, (group,) = await bench.stats()
        assert (stats.publish_per_second, group.deliver_per_second, group.ack_per_second) == rates


async def test_publishes_with_a_number_are_known_among_many_others(bench, monkeypatch):
    monkeypatch.setattr(administration, "PUBLISHES_SEARCHED", (2, 5))
    for number in range(4):
        await bench.publish(number, key="k")
    assert not await bench.administration.knows_requests(bench.topic)
    bench.topic += "numbered"
    await bench.publish("numbered", key="k", token="s:1:0")
    for number in range(4):
        await bench.publish(number, key="k")
    assert await bench.administration.knows_requests(bench.topic)
    bench.topic += "too many to know"
    for number in range(5):
        await bench.publish(number, key="k")
    assert await bench.administration.knows_requests(bench.topic)
