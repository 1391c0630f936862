"""What each operation of the engine does, on a real Valkey."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import asdict

from dss_api.errors import Refused
from dss_dev.valkey_server import make_valkey
from dss_queue.core.commands import NewMessage, TopicSettings
from dss_queue.redis_engine import engine, views
from dss_queue.redis_engine.keys import partition_keys
from dss_queue.redis_engine.messages import QueueSettings
from dss_queue.redis_engine.servers import Servers
from dss_queue.redis_engine.wakeups import _Ear


async def waits(bench, count: int) -> None:
    """Until so many consumes wait."""
    while bench.engine.waiting(bench.topic, "g") < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


def code_of(refused) -> str:
    return refused.value.code


# ------------------------------------------------------------------ publish


async def test_each_group_gets_every_message_and_the_last_ack_removes_it(one):
    ids = await one.publish(1, 2)
    first, second = await one.consume(group="g"), await one.consume(group="h")
    assert [message.msg_id for message in first] == [message.msg_id for message in second] == ids
    await one.ack(*first, group="g")
    assert (await one.stats())[0].messages == 2
    await one.ack(*second, group="h")
    topic, groups = await one.stats()
    assert (topic.messages, topic.bytes, topic.published) == (0, 0, 2)
    assert [(group.group, group.ready, group.acked) for group in groups] == [("g", 0, 2), ("h", 0, 2)]


async def test_a_delivery_has_all_fields_of_the_message(one):
    new = NewMessage("", b'{"n": [1, "\\u00e9", "\xc3\xa9"]}', "customer-7", 3, 0, "d-1", b'{"a": "b"}')
    (published,) = await one.engine.publish(one.topic, [new], one.settings)
    (got,) = await one.consume(visibility_ms=5000)
    assert (got.msg_id, bytes(got.value), got.key, bytes(got.headers)) == (published.msg_id, new.value, new.key, new.headers)
    assert (got.attempt, got.published_ms, got.delivered_ms) == (1, one.at_ms, one.at_ms)
    assert (got.first_delivered_ms, got.visible_until_ms) == (one.at_ms, one.at_ms + 5000)
    assert got.receipt.startswith(got.msg_id)


async def test_dedup_ids_of_large_calls_are_forgotten_as_fast_as_they_come(open_bench, valkey):
    async with open_bench(partitions=1, dedup_window_ms=1000) as bench:
        for call in range(5):
            new = [NewMessage("", b"1", "k", 0, 0, f"{call}-{place}", b"") for place in range(300)]
            await bench.engine.publish(bench.topic, new, bench.settings)
            bench.at_ms += 2000
        assert valkey.client().zcard(partition_keys(bench.topic, 0)[2]) == 300


async def test_a_dedup_id_is_stored_once_within_its_window(open_bench):
    async with open_bench(partitions=4, dedup_window_ms=1000) as bench:
        (first,) = await bench.publish(1, dedup_id="d")
        new = [NewMessage("", b"2", "", -1, 0, "d", b""), NewMessage("", b"3", "", -1, 0, "", b"")]
        again, other = await bench.engine.publish(bench.topic, new, bench.settings)
        assert (again.msg_id, again.duplicate, other.duplicate) == (first, True, False)
        twice = [NewMessage("", b"4", "", -1, 0, "e", b"")] * 2
        assert [one.duplicate for one in await bench.engine.publish(bench.topic, twice, bench.settings)] == [False, True]
        await bench.pass_ms(1000)
        assert await bench.publish(5, dedup_id="d") != [first]
        assert (await bench.stats())[0].published == 4


async def test_a_repeat_of_a_publish_stores_nothing(one):
    first = await one.publish(1, 2, token="once")
    assert await one.publish(1, 2, token="once") == first
    assert (await one.stats())[0].published == 2
    new = [NewMessage("", b"3", "", -1, 0, "d", b""), NewMessage("", b"4", "", -1, 0, "", b"")]
    answers = await one.engine.publish(one.topic, new, one.settings, token="dedup")
    assert await one.engine.publish(one.topic, new, one.settings, token="dedup") == answers
    assert [answer.duplicate for answer in answers] == [False, False]


async def test_messages_of_several_partitions_are_refused(bench):
    new = [NewMessage("", b"1", "a", 1, 0, "", b""), NewMessage("", b"2", "b", 2, 0, "", b"")]
    with pytest.raises(Refused) as refused:
        await bench.engine.publish(bench.topic, new, bench.settings)
    assert code_of(refused) == "crosses_slots"
    assert (await bench.stats())[0].published == 0


async def test_settings_that_only_the_log_can_keep_do_not_stop_deliveries(one):
    """A topic that has left gets what is still here, with the settings of the log."""
    await one.publish(1)
    one.settings = TopicSettings(keep_ms=1, dead_letter_topic="d")
    assert await one.values() == ["1"]


async def test_a_full_partition_refuses_messages_and_takes_them_again_after_acks(open_bench):
    async with open_bench(partitions=1, max_bytes=10) as bench:
        await bench.publish("12345", "12345")
        with pytest.raises(Refused) as refused:
            await bench.publish("1")
        assert (code_of(refused), refused.value.extra) == ("over_limit", {"limit": "max_bytes", "maximum": 10})
        found = await bench.consume(1)
        with pytest.raises(Refused):
            await bench.publish("1")
        await bench.ack(*found)
        await bench.publish("1")


# ------------------------------------------------------------------ consume


async def test_why_there_is_nothing(one):
    assert await one.consume() == "no_messages"
    await one.publish(1)
    (got,) = await one.consume()
    assert await one.consume() == "all_in_flight"
    await one.ack(got)
    await one.publish(2, 3, key="k")
    (got,) = await one.consume()
    assert await one.consume() == "key_blocked"
    await one.nack(got, delay_ms=50)
    assert await one.consume() == "delayed"


async def test_messages_of_a_key_come_one_at_a_time_and_in_order(one):
    await one.publish(1, 2, 3, key="k")
    await one.publish("a")
    first, other = await one.consume()
    assert (bytes(first.value), bytes(other.value)) == (b"1", b"a")
    await one.nack(first, delay_ms=20)
    await one.pass_ms(20)
    (again,) = await one.consume()
    assert (again.msg_id, again.attempt) == (first.msg_id, 2)
    await one.ack(again)
    assert await one.values() == ["2"]


async def test_a_run_of_a_key_goes_to_one_consumer(one):
    await one.publish(1, 2, 3, 4, key="k")
    run = await one.consume(max_per_key=3)
    assert [bytes(message.value) for message in run] == [b"1", b"2", b"3"]
    assert await one.consume() == "key_blocked"
    await one.ack(run[1])
    await one.nack(run[0], delay_ms=0)
    again = await one.consume(max_per_key=3)
    assert [(bytes(message.value), message.attempt) for message in again] == [(b"1", 2), (b"3", 1), (b"4", 1)]
    assert await one.ack(run[2]) == ["stale_receipt"]


async def test_a_repeated_attempt_gets_the_same_messages_from_their_partition(bench):
    for value in range(8):
        await bench.publish(value)
    first = await bench.consume(2, attempt_id="a-1")
    for _ in range(5):
        again = await bench.consume(2, attempt_id="a-1")
        assert [(one.msg_id, one.receipt) for one in again] == [(one.msg_id, one.receipt) for one in first]
    await bench.ack(*first)
    other = await bench.consume(2, attempt_id="a-1")
    assert {one.msg_id for one in other}.isdisjoint({one.msg_id for one in first})


async def test_a_message_that_is_not_acked_comes_back_and_finally_is_dead(one):
    await one.publish(1)
    for attempt in (1, 2, 3):
        (got,) = await one.consume(visibility_ms=100)
        assert got.attempt == attempt
        await one.pass_ms(100)
        assert await one.consume() == ("delayed" if attempt < 3 else "no_messages")
        await one.pass_ms(40)
    (dead,) = await one.views.peek(one.topic, "g", dead=True)
    assert (dead.state, dead.reason, dead.attempt) == ("dead", "max_attempts", 3)
    assert [(ending.attempt, ending.reason, ending.node) for ending in dead.history] == [(n, "timeout", "n1") for n in (1, 2, 3)]
    assert await one.administration.redrive(one.topic, "g", dead.msg_id) == 1
    (got,) = await one.consume()
    assert (got.msg_id, got.attempt) == (dead.msg_id, 1)
    await one.ack(got)
    assert (await one.stats())[0].bytes == 0


async def test_a_call_ends_what_is_over_before_it_does_anything(one):
    await one.publish(1)
    (got,) = await one.consume(visibility_ms=100)
    one.at_ms += 100
    assert await one.consume() == "delayed", "the backoff"
    assert await one.ack(got) == [True], "a late ack, before another consumer has it"


async def test_a_delayed_message_waits(one):
    await one.publish(1, delay_ms=50)
    assert await one.consume() == "delayed"
    await one.pass_ms(49)
    assert await one.consume() == "delayed"
    await one.pass_ms(1)
    assert await one.values() == ["1"]


async def test_an_answer_has_no_more_bytes_than_its_limit(one, monkeypatch):
    monkeypatch.setattr("dss_queue.redis_engine.engine.BYTES_PER_CONSUME_MAX", 5)
    await one.publish("123", "456", "789")
    assert await one.values() == ["123", "456"]
    assert await one.values() == ["789"]


# --------------------------------------------------------- ack, nack, extend


async def test_ack_with_stale_unknown_and_repeated_receipts(one):
    await one.publish(1)
    (got,) = await one.consume(visibility_ms=100)
    await one.pass_ms(100)
    await one.pass_ms(10)
    (again,) = await one.consume()
    assert await one.ack(got) == ["stale_receipt"]
    assert await one.ack(again) == [True]
    assert await one.ack(again) == [False]
    for msg_id in ("12-0", "r0-1", "r99-1700000000000000", "r0-1700000000000000"):
        (answer,) = await one.engine.ack(one.topic, "g", [msg_id], None, one.settings)
        assert not answer.acked
    (answer,) = await one.engine.ack(one.topic, "unknown-group", [got.msg_id], None, one.settings)
    assert not answer.acked


async def test_nack_back_silent_and_dead(one):
    await one.publish(1)
    (got,) = await one.consume()
    assert await one.nack(got, silent=True) == (True, False)
    (got,) = await one.consume()
    assert got.attempt == 1
    assert await one.nack(got) == (True, False)
    assert await one.consume() == "delayed", "the backoff"
    await one.pass_ms(10)
    (got,) = await one.consume()
    assert await one.nack(got, dead=True) == (True, True)
    (dead,) = await one.views.peek(one.topic, "g", dead=True)
    assert [ending.reason for ending in dead.history] == ["silent", "nack", "rejected"]
    with pytest.raises(Refused) as refused:
        await one.nack(got)
    assert code_of(refused) == "stale_receipt"


@pytest.fixture
def lose_an_answer(one, monkeypatch):
    """The next step takes effect, and its answer is lost."""
    lane = one.servers.lane(one.servers.primaries[0])
    call, lost = lane.call, []

    async def lossy(*args, **fields):
        answer = await call(*args, **fields)
        if lost:
            lost.pop()
            raise ConnectionResetError
        return answer

    monkeypatch.setattr(lane, "call", lossy)
    return lambda: lost.append(True)


async def test_an_ack_or_nack_whose_answer_is_lost_has_no_known_outcome(one, lose_an_answer):
    await one.publish(1, 2, 3, 4)
    acked, back, dead, other = await one.consume()
    for step in (one.ack(acked, other), one.nack(dead, dead=True)):
        lose_an_answer()
        with pytest.raises(Refused) as refused:
            await step
        assert code_of(refused) == "unknown_outcome"
    lose_an_answer()
    await one.engine.give_back(one.topic, "g", {back.msg_id: back.receipt}, one.settings)
    _, (group,) = await one.stats()
    assert (group.acked, group.dead, group.ready, group.in_flight) == (2, 1, 1, 0)
    (again,) = await one.consume()
    assert await one.ack(back) == ["stale_receipt"], "no answer was lost"
    lose_an_answer()
    with pytest.raises(Refused) as refused:
        await one.nack(again, delay_ms=50)
    assert code_of(refused) == "unknown_outcome"


async def test_extend(one):
    await one.publish(1, 2)
    first, second = await one.consume(visibility_ms=100)
    until = await one.engine.extend(one.topic, "g", first.msg_id, first.receipt, one.settings, 500)
    assert until == one.at_ms + 500
    await one.pass_ms(100)
    await one.pass_ms(10)
    (again,) = await one.consume()
    assert again.msg_id == second.msg_id
    await one.pass_ms(390)
    with pytest.raises(Refused) as refused:
        await one.engine.extend(one.topic, "g", first.msg_id, first.receipt, one.settings, 500)
    assert code_of(refused) == "stale_receipt"


async def test_what_a_consumer_that_left_had_comes_back_without_an_attempt(one):
    await one.publish(1)
    (got,) = await one.consume()
    await one.engine.give_back(one.topic, "g", {got.msg_id: got.receipt}, one.settings)
    (again,) = await one.consume()
    assert (again.msg_id, again.attempt) == (got.msg_id, 1)


# ------------------------------------------------------ retention, purge, …


async def test_an_old_message_is_deleted_without_a_group_and_dead_with_one(open_bench):
    async with open_bench(partitions=1, retention_ms=1000) as bench:
        await bench.publish("old")
        bench.at_ms += 1000
        await bench.publish("new")
        assert (await bench.stats())[0].messages == 1
        await bench.consume(1)
        await bench.publish("unmet", "unmet", key="k")
        bench.at_ms += 1000
        assert await bench.consume() == "no_messages"
        assert [(one.reason, bytes(one.value)) for one in await bench.views.peek(bench.topic, "g", dead=True)] == [
            ("expired", b"new"),
            ("expired", b"unmet"),
            ("expired", b"unmet"),
        ]
        topic, _ = await bench.stats()
        assert (topic.messages, topic.bytes) == (0, len("new" + "unmetk" * 2))
        assert await bench.administration.purge_dead(bench.topic, "g") == 3
        assert (await bench.stats())[0].bytes == 0


async def test_old_messages_of_an_sqs_queue_are_dropped(open_bench):
    async with open_bench(partitions=1, retention_ms=1000) as bench:
        bench.settings = QueueSettings(**asdict(bench.settings))
        await bench.engine.put_group(bench.topic, "g")
        await bench.publish("swept", key="k")
        await bench.pass_ms(1000)
        await bench.publish("met", "met", key="k")
        bench.at_ms += 1000
        assert await bench.consume() == "no_messages"
        await bench.publish("new")
        assert await bench.values() == ["new"]
        topic, (group,) = await bench.stats()
        assert (topic.messages, topic.bytes, group.dead, group.in_flight, group.ready) == (1, len("new"), 0, 1, 0)


async def test_a_sweep_finds_old_messages_that_are_not_consumed(open_bench):
    async with open_bench(partitions=2, retention_ms=1000) as bench:
        await bench.engine.put_group(bench.topic, "g")
        for value in range(4):
            await bench.publish(value)
        await bench.pass_ms(1000)
        topic, (group,) = await bench.stats()
        assert (topic.messages, group.dead, group.dead_total) == (0, 4, {"expired": 4})


async def test_a_sweep_finds_old_messages_behind_many_others(open_bench):
    async with open_bench(partitions=1, retention_ms=1000) as bench:
        await bench.engine.put_group(bench.topic, "g")
        await bench.publish(*range(1100), delay_ms=1500)
        assert await bench.consume() == "delayed"
        await bench.publish("old")
        (got,) = await bench.consume()
        await bench.nack(got, delay_ms=1501)
        await bench.pass_ms(1501)
        _, (group,) = await bench.stats()
        assert (group.ready, group.dead_total) == (1100, {"expired": 1})


async def test_a_purge_deletes_messages_in_all_states_but_no_dead_letters(bench):
    for value in range(8):
        await bench.publish(value, key=f"k{value % 2}")
    (got, *_) = await bench.consume()
    await bench.nack(got, dead=True)
    in_flight = await bench.consume(1)
    assert await bench.administration.purge(bench.topic) == 7
    topic, (group,) = await bench.stats()
    assert (topic.messages, group.ready, group.in_flight, group.dead) == (0, 0, 0, 1)
    assert await bench.ack(*in_flight) == [False]
    await bench.publish("new", key="k0")
    assert await bench.values() == ["new"]


async def test_a_group_may_start_with_the_next_message(bench):
    for value in range(4):
        await bench.publish(value)
    assert await bench.engine.put_group(bench.topic, "g", start="now") == (True, 0)
    assert await bench.engine.put_group(bench.topic, "h") == (True, 4)
    assert await bench.engine.put_group(bench.topic, "h") == (False, 4)
    await bench.publish("next")
    assert await bench.values(group="g") == ["next"]
    with pytest.raises(Refused) as refused:
        await bench.engine.put_group(bench.topic, "i", start="message")
    assert code_of(refused) == "not_on_engine"


async def test_a_deleted_topic_leaves_no_key(bench, valkey):
    await bench.publish(1)
    (got,) = await bench.consume()
    await bench.nack(got, dead=True)
    await bench.publish(2, delay_ms=50, dedup_id="d")
    await bench.consume()
    await bench.administration.delete_topic(bench.topic)
    assert list(valkey.client().scan_iter(f"dss:{{{bench.topic}:*")) == []


async def test_peek_by_id_and_dedup_id(bench):
    (msg_id,) = await bench.publish("v", dedup_id="d", key="k")
    for named in ({"msg_id": msg_id}, {"dedup_id": "d"}):
        (line,) = await bench.views.peek(bench.topic, **named)
        assert (line.msg_id, bytes(line.value), line.key) == (msg_id, b"v", "k")
        assert await bench.views.peek(bench.topic, "unknown-group", **named) == []
    (got,) = await bench.consume(attempt_id="a")
    (line,) = await bench.views.peek(bench.topic, "g", msg_id=msg_id)
    assert (line.state, line.attempt, line.attempt_id, line.node) == ("in_flight", 1, "a", "n1")
    assert (line.delivered_ms, line.visible_until_ms) == (got.delivered_ms, got.visible_until_ms)
    await bench.ack(got)
    assert await bench.views.peek(bench.topic, "g", msg_id=msg_id) == []


async def test_many_messages_in_one_call(one):
    await one.publish(*range(1000))
    found = await one.consume(1000)
    assert [int(bytes(message.value)) for message in found] == list(range(1000))
    assert set(await one.ack(*found)) == {True}
    assert (await one.stats())[0].messages == 0


async def test_a_handout_larger_than_one_step_ends_in_several(one):
    await one.publish(*range(1000))
    await one.consume(1000, visibility_ms=100)
    await one.pass_ms(100)
    await one.pass_ms(10)
    found = await one.consume(1000)
    assert [(int(bytes(message.value)), message.attempt) for message in found] == [(n, 2) for n in range(1000)]


async def test_names_with_braces_are_names(open_bench):
    for name in ("}", "{", "a}b", "%7D", "{a}:0"):
        async with open_bench(partitions=2) as bench:
            bench.topic += name
            await bench.publish(name)
            assert await bench.values(group=name) == [name]


# ---------------------------------------------------------------- long polls


async def test_a_long_poll_is_answered_when_a_message_is_published(bench):
    waiting = asyncio.create_task(bench.values(timeout_ms=20_000))
    await waits(bench, 1)
    await bench.publish("v")
    assert await waiting == ["v"]


async def test_long_polls_are_answered_in_turn(bench):
    waiting = []
    for number in range(3):
        waiting.append(asyncio.create_task(bench.values(1, timeout_ms=20_000)))
        await waits(bench, number + 1)
    await bench.publish("a", "b", "c")
    assert await asyncio.gather(*waiting) == [["a"], ["b"], ["c"]]


async def test_a_long_poll_hears_of_an_ack_that_frees_a_key(bench):
    await bench.publish(1, 2, key="k")
    first = await bench.consume()
    waiting = asyncio.create_task(bench.values(timeout_ms=20_000))
    await waits(bench, 1)
    await bench.ack(*first)
    assert await waiting == ["2"]


async def test_a_long_poll_knows_when_a_message_becomes_ready(open_bench):
    async with open_bench() as bench:
        bench.servers.at_us = lambda: 0  # the time of the server
        await bench.publish("v", delay_ms=50)
        assert await bench.values(timeout_ms=20_000) == ["v"]


async def nack_with_a_delay(bench, got):
    await bench.nack(got, delay_ms=50)


async def extend_to_less(bench, got):
    await bench.engine.extend(bench.topic, "g", got.msg_id, got.receipt, bench.settings, 50)


async def consume_again_for_less(bench, got):
    await bench.consume(attempt_id="a", visibility_ms=50)


@pytest.mark.parametrize("step", [nack_with_a_delay, extend_to_less, consume_again_for_less])
async def test_a_long_poll_of_another_node_learns_that_a_message_becomes_ready_sooner(one, open_bench, step):
    one.servers.at_us = lambda: 0  # the time of the server
    async with open_bench(partitions=1, backoff_ms=10) as other:
        other.topic, other.servers.at_us = one.topic, one.servers.at_us
        await one.publish("v")
        (got,) = await one.consume(visibility_ms=600_000, attempt_id="a")
        waiting = asyncio.create_task(other.values(timeout_ms=20_000))
        await waits(other, 1)
        await step(one, got)
        assert await waiting == ["v"]


async def test_a_long_poll_of_another_node_gets_what_a_consume_made_ready_and_left(one, open_bench):
    async with open_bench(partitions=1) as other:
        other.topic, other.servers.at_us = one.topic, one.servers.at_us
        await one.publish(1, 2, delay_ms=600_000)
        waiting = asyncio.create_task(other.values(timeout_ms=20_000))
        await waits(other, 1)
        one.at_ms += 600_000
        assert await one.values(1) == ["1"]
        assert await waiting == ["2"]


async def test_a_long_poll_ends_without_a_message(bench):
    assert await bench.consume(timeout_ms=20) == "no_messages"
    assert bench.engine.waiting(bench.topic, "g") == 0


async def test_a_consume_that_is_cancelled_while_its_server_is_busy_gives_back(one, monkeypatch):
    await one.publish("v")
    await one.engine.put_group(one.topic, "g")
    lane = one.servers.lane(one.servers.primaries[0])
    sent, may_read, round_trip = asyncio.Event(), asyncio.Event(), lane._round_trip

    async def blocked(connection, batch):
        sent.set()
        await may_read.wait()
        await round_trip(connection, batch)

    monkeypatch.setattr(lane, "_round_trip", blocked)
    consuming = asyncio.create_task(one.consume(visibility_ms=600_000))
    await sent.wait()
    consuming.cancel()
    await asyncio.wait([consuming])
    may_read.set()
    await one.engine.publish(one.topic, [NewMessage("", b"w", "", -1, 0, "", b"")], one.settings)
    await one.engine.close()
    _, (group,) = await one.stats()
    assert (group.in_flight, group.ready) == (0, 2)
    assert [got.attempt for got in await one.consume()] == [1, 1]


async def test_a_long_poll_that_is_cancelled_takes_nothing(bench):
    waiting = asyncio.create_task(bench.consume(timeout_ms=20_000))
    other = asyncio.create_task(bench.values(timeout_ms=20_000))
    await waits(bench, 2)
    waiting.cancel()
    await asyncio.wait([waiting])
    await bench.publish("v")
    assert await other == ["v"]


class Withheld:
    """What the server says on channels, until it is let through."""

    def __init__(self, monkeypatch) -> None:
        self.has_some = asyncio.Event()
        self._messages: list[tuple[_Ear, object]] = []
        self._receive = _Ear._receive
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(_Ear, "_receive", lambda ear, message: self._withhold(ear, message))

    def _withhold(self, ear: _Ear, message: object) -> None:
        self._messages.append((ear, message))
        self.has_some.set()

    def let_through(self) -> None:
        self._monkeypatch.setattr(_Ear, "_receive", self._receive)
        for ear, message in self._messages:
            self._receive(ear, message)


async def test_a_long_poll_ends_in_time_although_no_subscription_is_confirmed(bench, monkeypatch):
    withheld = Withheld(monkeypatch)
    other = asyncio.create_task(bench.values(timeout_ms=20_000))
    await withheld.has_some.wait()
    assert await bench.consume(timeout_ms=20) == "no_messages"
    withheld.let_through()
    await bench.publish("v")
    assert await other == ["v"], "it has subscribed to the same channels"


async def test_a_group_whose_consume_does_not_wait_yet_is_not_forgotten(bench, monkeypatch):
    monkeypatch.setattr(engine, "POLLS_MAX", 1)
    withheld = Withheld(monkeypatch)
    waiting = asyncio.create_task(bench.values(timeout_ms=20_000))
    await withheld.has_some.wait()
    assert await bench.consume(group="h") == "no_messages"
    withheld.let_through()
    await bench.publish("v")
    assert await waiting == ["v"]


async def test_what_a_consumer_gives_back_is_one_step(one, monkeypatch):
    await one.publish(*range(20))
    found = await one.consume(20)
    steps, call = [], one.servers.call_and_repeats

    async def counted(step, *args, **fields):
        steps.append(step)
        return await call(step, *args, **fields)

    monkeypatch.setattr(one.servers, "call_and_repeats", counted)
    await one.engine.give_back(one.topic, "g", {got.msg_id: got.receipt for got in found}, one.settings)
    assert steps == ["nack"]
    assert {got.attempt for got in await one.consume(20)} == {1}


LONG = "x" * 256 * 1024


async def test_a_peek_of_long_messages_has_fewer_of_them_and_leaves_none_out(open_bench):
    async with open_bench(partitions=2) as bench:
        for number in range(40):
            bench.at_ms += 1
            await bench.publish(f'"{number}{LONG}"')
        in_order = [str(number) for number in range(40)]
        for fields in ({}, {"group": "g"}):
            await bench.engine.put_group(bench.topic, "g")
            lines = await bench.views.peek(bench.topic, limit=100, **fields)
            assert 10 <= len(lines) <= 20
            assert [bytes(line.value)[1:].split(b"x")[0].decode() for line in lines] == in_order[: len(lines)]
        for one in await bench.consume(100) + await bench.consume(100):
            await bench.nack(one, dead=True)
        assert 10 <= len(await bench.views.peek(bench.topic, "g", dead=True, limit=100)) <= 20


async def test_a_consume_reads_not_many_more_long_messages_than_it_takes(open_bench):
    with make_valkey() as server:
        servers = Servers(f"redis://127.0.0.1:{server.port}")
        await servers.open()
        async with open_bench() as other:
            bench = type(other)(servers, 1, other.settings)
            await bench.engine.put_group(bench.topic, "g")
            for _ in range(20):
                await bench.publish(*[f'"{LONG}"'] * 10)
            used = server.client().info("memory")["used_memory"]
            assert len(await bench.consume(1000)) == 16
            # All 200 of them would be 50 MiB more.
            assert server.client().info("memory")["used_memory_peak"] - used < 25 * 1024 * 1024
            await servers.close()


async def test_a_consume_that_gets_nothing_writes_nothing(one, valkey):
    def changes() -> int:
        return valkey.client().info("persistence")["rdb_changes_since_last_save"]

    await one.publish(1)
    (got,) = await one.consume()
    await one.ack(got)
    # It reads the state as the ack left it.
    assert await one.consume() == "no_messages"
    before = changes()
    one.at_ms += 1
    assert await one.consume() == "no_messages"
    assert changes() == before


async def test_statistics_read_some_groups_at_the_same_time(one, monkeypatch):
    names = [f"g{number:02}" for number in range(2 * views.GROUPS_AT_ONCE + 1)]
    for name in names:
        await one.engine.put_group(one.topic, name)
    read, running, highest = one.views.group_stats, 0, 0

    async def counted(*args):
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        try:
            return await read(*args)
        finally:
            running -= 1

    monkeypatch.setattr(one.views, "group_stats", counted)
    _, groups = await one.stats()
    assert [group.group for group in groups] == names
    assert highest == views.GROUPS_AT_ONCE
