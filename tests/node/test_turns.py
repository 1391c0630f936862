"""A burst of expensive calls is spread over turns of the event loop, in order, and everything else gets its turn in between."""

from __future__ import annotations

import asyncio
import time

from dss_api.turns import LATE_PER_TURN, TURN_BUDGET_S, Turns

BURST = 200


def work(seconds: float) -> None:
    """Keep the loop busy."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def turns_between(cost_s: float) -> tuple[list[int], int]:
    """The order in which a burst of calls ran, and how many turns other work got in the meantime."""
    turns, order, other = Turns(), [], 0
    done = asyncio.Event()

    async def call(number: int) -> None:
        await turns.enter()
        order.append(number)
        work(cost_s)
        if len(order) == BURST:
            done.set()

    async def heartbeat() -> None:
        nonlocal other
        while not done.is_set():
            other += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(heartbeat())
    await asyncio.gather(*(call(number) for number in range(BURST)))
    await beating
    return order, other


async def test_expensive_calls_leave_turns_to_others() -> None:
    order, other = await turns_between(TURN_BUDGET_S / 4)
    assert order == list(range(BURST))
    assert other >= BURST // LATE_PER_TURN // 2


async def test_cheap_calls_all_begin_in_one_turn() -> None:
    order, other = await turns_between(0.0)
    assert order == list(range(BURST))
    assert other <= 5


async def test_a_call_that_is_cancelled_while_it_waits_holds_up_no_other() -> None:
    turns = Turns()

    async def first() -> None:
        await turns.enter()
        work(2 * TURN_BUDGET_S)

    async def later() -> None:
        await turns.enter()

    tasks = [asyncio.create_task(one()) for one in (first, later, later, later)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks, timeout=20)
    assert [task.cancelled() for task in tasks] == [False, True, False, False]
