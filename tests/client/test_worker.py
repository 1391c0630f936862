"""Publications and workers, against a fake node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dss_client import AsyncClient, AsyncMessage, LockNotHeld, StaleReceipt, UnknownOutcome, WrongUse
from dss_client import queue as queue_module

Make = Callable[..., AsyncClient]
Until = Callable[[Callable[[], Any]], Awaitable[None]]
MakeNode = Callable[[], Awaitable[Any]]

NO_LEADER = {"ok": False, "status": 503, "code": "no_leader", "detail": "no leader is known"}
STALE = {"ok": False, "status": 409, "code": "stale_receipt", "detail": "another consumer has it", "msg_ids": ["1-0"]}
FULL = {"ok": False, "status": 429, "code": "over_limit", "detail": "too many", "limit": "waiters"}
NO_TOPIC = {"ok": False, "status": 404, "code": "not_found", "detail": "there is no such topic"}


def message(number: int, attempt: int = 1, value: Any = None) -> dict[str, Any]:
    return {
        "msg_id": f"{number}-0",
        "value": value,
        "key": "",
        "headers": None,
        "partition": 0,
        "receipt": f"{number}-0.{attempt}",
        "attempt": attempt,
        "published_ms": 1,
        "delivered_ms": 2,
    }


def delivers(node: Any, *messages: dict[str, Any]) -> None:
    """One after the other; then polls wait until they are cancelled."""
    waiting = list(messages)

    def consume(request: Any) -> Any:
        taken = waiting[: request["max_messages"]]
        del waiting[: len(taken)]
        return {"messages": taken} if taken else None

    node.answers["queue.consume"] = consume
    node.answers["queue.ack"] = {"ok": True, "acked": True}
    node.answers["queue.nack"] = {"ok": True, "nacked": True, "dead": False}
    node.answers["queue.extend"] = {"ok": True, "msg_id": "1-0", "visible_until_ms": 1}


async def run_until(worker: Any, condition: Callable[[], bool]) -> None:
    """Run the worker until the condition holds, then stop it."""
    running = asyncio.ensure_future(worker.run(handle_signals=False))
    try:
        async with asyncio.timeout(60):
            while not condition() and not running.done():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            worker.stop()
            await running
    finally:
        running.cancel()


# --------------------------------------------------------------- publish


async def test_publish(node: Any, client: AsyncClient) -> None:
    node.answers["queue.publish"] = {"ok": True, "msg_id": "5-0", "partition": 1, "duplicate": False}
    receipt = await client.topic("orders").publish({"id": 42}, key="customer-7", delay=5)
    assert (receipt.msg_id, receipt.duplicate) == ("5-0", False)
    (request,) = node.requests("queue.publish")
    assert request == {"topic": "orders", "value": {"id": 42}, "key": "customer-7", "delay_ms": 5000, "request_id": "s:1:0"}


async def test_publish_many(node: Any, client: AsyncClient) -> None:
    node.answers["queue.publish"] = {
        "ok": True,
        "messages": [{"msg_id": f"5-{n}", "partition": 1, "duplicate": False} for n in (0, 1)],
    }
    receipts = await client.topic("orders").publish_many(["a", "b"])
    assert [receipt.msg_id for receipt in receipts] == ["5-0", "5-1"]
    assert node.requests("queue.publish")[0]["messages"] == [{"value": "a"}, {"value": "b"}]
    assert await client.topic("orders").publish_many([]) == []


async def test_a_dedup_id_makes_a_repeat_safe(node: Any, client: AsyncClient) -> None:
    published = {"ok": True, "msg_id": "5-0", "partition": 1, "duplicate": True}
    node.answers["requests.open"] = NO_TOPIC
    node.answers["queue.publish"] = [ConnectionError(), published, ConnectionError()]
    assert (await client.topic("orders").publish(1, dedup_id="one")).duplicate
    with pytest.raises(UnknownOutcome):
        await client.topic("orders").publish(1)


# ---------------------------------------------------------------- workers


async def test_messages_are_handled_and_acked(node: Any, client: AsyncClient) -> None:
    delivers(node, *(message(number, value=number) for number in range(1, 11)))
    most = running = 0
    values = []

    @client.worker("orders", group="billing", concurrency=4)
    async def bill(message: AsyncMessage) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        values.append(message.value)

    await run_until(bill, lambda: bill.done == 10)
    assert sorted(values) == list(range(1, 11))
    assert most == 4
    assert {request["receipt"] for request in node.requests("queue.ack")} == {f"{n}-0.1" for n in range(1, 11)}
    polls = node.requests("queue.consume")
    assert len({poll["attempt_id"] for poll in polls}) == len(polls)
    assert not node.requests("queue.extend")


async def test_polls_that_fail_are_repeated_after_pauses_by_chance(
    node: Any, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many workers whose polls fail together do not come back at the same moment."""
    failures = []

    def pause_s(count: int) -> float:
        failures.append(count)
        return 0.0

    monkeypatch.setattr(queue_module, "pause_s", pause_s)
    delivers(node, message(1), message(2))
    consume = node.answers["queue.consume"]
    node.answers["queue.consume"] = [FULL, FULL, lambda _: consume({"max_messages": 1}), FULL, consume]

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None: ...

    await run_until(bill, lambda: bill.done == 2)
    assert failures == [1, 2, 1]


async def test_a_failed_attempt_comes_back_later(node: Any, client: AsyncClient) -> None:
    delivers(node, message(1), message(2, attempt=4))

    @client.worker("orders", group="billing", backoff=2)
    async def bill(message: AsyncMessage) -> None:
        raise ValueError("broken")

    await run_until(bill, lambda: bill.failed == 2 and len(node.requests("queue.nack")) == 2)
    first, second = node.requests("queue.nack")
    assert 1000 <= first["delay_ms"] <= 2000
    assert 8000 <= second["delay_ms"] <= 16000
    assert bill.done == 0
    assert not node.requests("queue.ack")


async def test_a_handler_may_settle_the_message(node: Any, client: AsyncClient) -> None:
    delivers(node, message(1), message(2))
    node.answers["queue.ack"] = {"ok": True, "acked": True, "published": [{"msg_id": "9-0", "partition": 0, "duplicate": False}]}
    node.answers["locks.acquire"] = {"ok": True, "fencing_token": 7, "expires_in_ms": 30_000, "reentrant": False}
    published = []

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        if message.msg_id == "2-0":
            await message.nack(dead=True)
            return
        async with client.lock("k") as held:
            published.extend(
                await message.ack(publish=[("invoices", 1), {"topic": "log", "value": 2, "key": "x"}], release=[held])
            )
        with pytest.raises(LockNotHeld):
            await held.release()

    await run_until(bill, lambda: bill.done == 2)
    (ack,) = node.requests("queue.ack")
    assert ack["publish"] == [{"topic": "invoices", "value": 1}, {"topic": "log", "value": 2, "key": "x"}]
    assert [(one["key"], one["fencing_token"]) for one in ack["release"]] == [("k", 7)]
    assert ack["request_id"]
    assert [receipt.msg_id for receipt in published] == ["9-0"]
    assert not node.requests("locks.release")
    assert node.requests("queue.nack")[0]["dead"]


async def test_it_is_extended_while_the_handler_runs(node: Any, client: AsyncClient) -> None:
    delivers(node, message(1))

    @client.worker("orders", group="billing", visibility=3)
    async def bill(message: AsyncMessage) -> None:
        began_s = asyncio.get_running_loop().time()
        while len(node.requests("queue.extend")) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert asyncio.get_running_loop().time() - began_s >= 1.5
        assert message.remaining > 0

    await run_until(bill, lambda: bill.done == 1)
    assert len(node.requests("queue.extend")) == 2
    assert node.requests("queue.extend")[0]["visibility_ms"] == 3000


async def test_another_consumer_has_it(node: Any, client: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    delivers(node, message(1), message(2))
    node.answers["queue.ack"] = [STALE, {"ok": True, "acked": True}]

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        pass

    await run_until(bill, lambda: bill.done == 1)
    assert "another consumer got 1-0" in caplog.text


async def test_another_consumer_has_what_the_handler_acks(
    node: Any, client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    delivers(node, message(1))
    node.answers["queue.ack"] = STALE

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        await message.ack()

    await run_until(bill, lambda: "another consumer got 1-0" in caplog.text)
    assert (bill.done, bill.failed) == (0, 0)
    assert not node.requests("queue.nack")


async def test_the_topic_is_deleted_while_the_worker_waits(node: Any, client: AsyncClient) -> None:
    delivers(node, message(2))
    deliver = node.answers["queue.consume"]
    node.answers["queue.consume"] = [{"messages": [message(1)]}, NO_TOPIC, deliver]

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        pass

    await run_until(bill, lambda: bill.done == 2)


async def test_a_stopped_worker_lets_its_handlers_finish(node: Any, client: AsyncClient) -> None:
    delivers(node, message(1))
    begun = asyncio.Event()

    @client.worker("orders", group="billing", concurrency=2)
    async def bill(message: AsyncMessage) -> None:
        begun.set()
        await asyncio.sleep(0.1)

    await run_until(bill, begun.is_set)
    assert bill.done == 1
    assert len(node.requests("queue.ack")) == 1


async def test_a_handler_that_does_not_finish_gives_its_message_back(node: Any, client: AsyncClient) -> None:
    delivers(node, message(1))
    begun = asyncio.Event()

    @client.worker("orders", group="billing", grace=0.05)
    async def bill(message: AsyncMessage) -> None:
        begun.set()
        await asyncio.sleep(60)

    await run_until(bill, begun.is_set)
    assert node.requests("queue.nack")[0]["silent"]


async def test_messages_that_cross_the_stop_are_given_back(node: Any, client: AsyncClient, until: Until) -> None:
    delivers(node)

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        raise AssertionError

    # The node answers the poll although the worker cancels it.
    node.answers["cancel"] = {"ok": True, "cancelled": False}
    running = asyncio.ensure_future(bill.run(handle_signals=False))
    await until(lambda: node.requests("queue.consume"))
    (connection,) = node.connections
    bill.stop()
    await until(lambda: node.requests("cancel"))
    call = node.requests("cancel")[0]["call"]
    await connection.send(json.dumps({"id": call, "status": 200, "messages": [message(1)]}))
    async with asyncio.timeout(60):
        await running
    assert node.requests("queue.nack")[0]["silent"]


async def test_the_poll_goes_on_at_another_node(make_node: MakeNode, make_client: Make) -> None:
    first, second = await make_node(), await make_node()
    delivers(first, message(1))
    delivers(second, message(2))
    first.answers["queue.ack"] = ConnectionError()
    client = make_client(first, second)

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        pass

    await run_until(bill, lambda: bill.done == 2)
    assert {ack["msg_id"] for ack in second.requests("queue.ack")} == {"1-0", "2-0"}


async def test_no_node_for_a_while(node: Any, make_client: Make) -> None:
    delivers(node, message(1))
    deliver = node.answers["queue.consume"]
    node.answers["queue.consume"] = [NO_LEADER] * 6 + [deliver]
    client = make_client(node, timeout=0.5)

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        pass

    await run_until(bill, lambda: bill.done == 1)


async def test_the_cluster_refuses_the_worker(node: Any, client: AsyncClient) -> None:
    node.answers["queue.consume"] = NO_TOPIC

    @client.worker("orders", group="billing")
    async def bill(message: AsyncMessage) -> None:
        pass

    with pytest.raises(Exception, match="no such topic"):
        async with asyncio.timeout(60):
            await bill.run(handle_signals=False)


async def test_a_stale_receipt_of_the_handler_itself(node: Any, client: AsyncClient) -> None:
    delivers(node, message(1))
    node.answers["queue.ack"] = STALE
    (taken,) = await client.topic("orders").consume("billing")
    with pytest.raises(StaleReceipt):
        await taken.ack()
    assert taken.is_settled


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"concurrency": 1001}, {"visibility": 0}])
async def test_wrong_options(client: AsyncClient, options: dict[str, Any]) -> None:
    with pytest.raises(WrongUse):
        client.worker("orders", group="billing", **options)
    with pytest.raises(WrongUse):
        await client.topic("orders").publish(1, delay=-1)


async def test_a_handler_is_a_coroutine_function(client: AsyncClient) -> None:
    with pytest.raises(WrongUse):
        client.worker("orders", group="billing")(lambda message: None)  # type: ignore[arg-type, return-value]
