"""Bursts of calls and of input are spread over turns of the event loop, in order, and everything else gets its turn in between."""

from __future__ import annotations

import asyncio
import time

import pytest

from dss_api import turns
from dss_api.client_memory import ClientMemory
from dss_api.turns import INPUT_BUDGET_S, LATE_PER_TURN, SLICE_BYTES, TURN_BUDGET_S, InputTurns, Turns

MEMORY = ClientMemory()
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


async def test_cheap_calls_all_begin_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other processes of the machine may hold up this one.
    monkeypatch.setattr(turns, "perf_counter", lambda: 0.0)
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
    await asyncio.wait(tasks, timeout=60)
    assert [task.cancelled() for task in tasks] == [False, True, False, False]


async def test_an_address_with_one_call_does_not_wait_for_the_calls_of_another() -> None:
    turns, order = Turns(), []

    async def call(address: str) -> None:
        await turns.enter(address)
        order.append(address)
        work(TURN_BUDGET_S / 4)

    many = [asyncio.create_task(call("many")) for _ in range(BURST)]
    await asyncio.sleep(0)
    begun = len(order)
    await asyncio.gather(asyncio.create_task(call("one")), *many)
    assert order.index("one") <= begun + 2 * LATE_PER_TURN
    assert len(order) == BURST + 1


class Reader:
    """A connection that may read, or has to wait."""

    def __init__(self, address: str, cost_s: float = 0.0) -> None:
        self.address = address
        self.account = MEMORY.open(lambda: None)
        self.may_read = True
        self.taken = b""
        self._cost_s = cost_s

    def take_input(self, data: bytes) -> None:
        self.taken += data
        work(self._cost_s)

    def pause_input(self) -> None:
        self.may_read = False

    def resume_input(self) -> None:
        self.may_read = True


async def test_small_input_is_taken_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dss_api.turns.perf_counter", lambda: 1.0)
    turns, reader = InputTurns(), Reader("a")
    for _ in range(100):
        turns.deliver(reader, b"x" * SLICE_BYTES)
    assert reader.may_read
    assert len(reader.taken) == 100 * SLICE_BYTES


async def test_input_is_taken_in_order_and_in_slices_and_counted_until_then() -> None:
    turns, readers = InputTurns(), [Reader("a"), Reader("a")]
    data = bytes(range(256)) * (10 * SLICE_BYTES // 256)
    for reader in readers:
        turns.deliver(reader, data)
        assert not reader.may_read
        assert reader.account.bytes == len(data)
    turns.deliver(readers[0], b"end")
    while not all(reader.may_read for reader in readers):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert [reader.taken for reader in readers] == [data + b"end", data]
    assert [reader.account.bytes for reader in readers] == [0, 0]


async def test_expensive_input_leaves_turns_to_others() -> None:
    """Also that of one address to the input of another one."""
    turns, many = InputTurns(), [Reader("many", INPUT_BUDGET_S) for _ in range(20)]
    one = Reader("one")
    for reader in many:
        turns.deliver(reader, b"x" * 10)
    taken = sum(bool(reader.taken) for reader in many)
    assert taken < 5
    turns.deliver(one, b"x")
    heartbeats = 0
    while not all(reader.taken for reader in many):
        await asyncio.sleep(0)
        heartbeats += 1
        if heartbeats == 3:
            assert one.taken
    assert heartbeats > 10


async def test_input_of_a_connection_that_has_ended_is_forgotten() -> None:
    turns, reader = InputTurns(), Reader("a")
    turns.deliver(reader, b"x" * (SLICE_BYTES + 1))
    assert len(turns.forget(reader)) == SLICE_BYTES + 1
    assert turns.forget(reader) == b""
    assert reader.account.bytes == 0
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reader.taken


async def test_a_connection_whose_input_fails_holds_up_no_other() -> None:
    class Broken(Reader):
        def take_input(self, data: bytes) -> None:
            raise RuntimeError("closed")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    turns, readers = InputTurns(), [Broken("a"), Broken("b"), *(Reader("a") for _ in range(10))]
    for reader in readers:
        turns.deliver(reader, b"x" * (SLICE_BYTES + 1))
    for _ in range(50):
        await asyncio.sleep(0)
    assert all(reader.taken for reader in readers[2:])
