"""The thread in which every job of a store runs."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator

import pytest

from dss_raft.disk.store_thread import StoreThread


@pytest.fixture
async def thread() -> AsyncIterator[StoreThread]:
    thread = StoreThread(asyncio.get_running_loop())
    yield thread
    thread.close()


class Gate:
    """A job that runs until it is opened."""

    def __init__(self) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.begun.set()
        self.opened.wait()

    async def is_reached(self) -> None:
        await asyncio.to_thread(self.begun.wait)


async def test_jobs_run_in_one_other_thread_in_their_order(thread: StoreThread) -> None:
    ran: list[int] = []
    idents = await asyncio.gather(
        *(thread.run(lambda number=number: ran.append(number) or threading.get_ident()) for number in range(100))
    )
    assert ran == list(range(100))
    assert set(idents) - {threading.get_ident()} == {idents[0]}


async def test_an_error_reaches_who_waits_and_the_next_job_runs(thread: StoreThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.run(divmod, 1, 0)
    with pytest.raises(SystemExit):
        await thread.run(exit)
    assert await thread.run(divmod, 7, 2) == (3, 1)


async def test_a_job_that_was_given_up_before_it_begins_is_left_out(thread: StoreThread) -> None:
    gate, ran = Gate(), []
    first, second, third = thread.run(gate.pass_through), thread.run(ran.append, 2), thread.run(ran.append, 3)
    await gate.is_reached()
    second.cancel()
    gate.opened.set()
    await third
    assert first.done()
    assert ran == [3]


async def test_a_job_that_was_given_up_while_it_runs_does_no_harm(thread: StoreThread) -> None:
    gate = Gate()
    running = thread.run(gate.pass_through)
    await gate.is_reached()
    running.cancel()
    gate.opened.set()
    assert await thread.run(lambda: "next") == "next"


async def test_an_idle_thread_holds_nothing_of_its_last_job(thread: StoreThread) -> None:
    class Batch:
        pass

    batch = Batch()
    seen = weakref.ref(batch)
    await thread.run(id, batch)
    del batch
    # The thread lets go of a job just after it has reported the result.
    while seen() is not None:
        gc.collect()
        await asyncio.sleep(0)


async def test_closing_waits_for_the_jobs_that_were_given(thread: StoreThread) -> None:
    ran: list[int] = []
    last = [thread.run(ran.append, number) for number in range(10)][-1]
    thread.close()
    assert ran == list(range(10))
    await last
    with pytest.raises(RuntimeError, match="closed"):
        thread.run(ran.append, 11)


def test_a_loop_that_is_gone_does_not_end_the_thread() -> None:
    loop = asyncio.new_event_loop()
    thread, gate, ran = StoreThread(loop), Gate(), []
    thread.run(gate.pass_through)
    thread.run(ran.append, 2)
    gate.begun.wait()
    loop.close()
    gate.opened.set()
    thread.close()
    assert ran == [2]
