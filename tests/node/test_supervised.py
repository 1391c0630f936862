"""The exception of a background task is logged and counted, and a task that must keep running is started again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from dss_api import supervised
from dss_api.supervised import FAILURES, Tasks


def failures(name: str) -> float:
    return FAILURES.labels(name)._value.get()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "PAUSE_S_MIN", 0.0)


async def fail() -> None:
    raise OSError("no space")


async def test_an_exception_of_a_task_is_logged_counted_and_given_to_its_owner() -> None:
    tasks, told, before = Tasks(), [], failures("control")
    with capture_logs() as events:
        await asyncio.wait([tasks.spawn("control", fail(), told.append)])
        await asyncio.sleep(0)
    assert failures("control") == before + 1
    assert [(event["event"], event["task"], event["error"]) for event in events] == [
        ("node.task_failed", "control", "OSError: no space")
    ]
    assert [str(error) for error in told] == ["no space"]


async def test_a_task_that_ends_well_or_is_cancelled_is_no_failure() -> None:
    tasks, before = Tasks(), failures("control")
    with capture_logs() as events:
        await tasks.spawn("control", asyncio.sleep(0))
        tasks.spawn("control", asyncio.sleep(3600))
        await tasks.stop()
    assert events == []
    assert failures("control") == before


@pytest.mark.parametrize("raises", [True, False])
async def test_a_task_that_must_not_end_is_started_again(raises: bool) -> None:
    tasks, before = Tasks(), failures("control")
    runs = 0
    goes_on = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            if raises:
                raise ValueError("broken")
            return
        goes_on.set()
        await asyncio.sleep(3600)

    with capture_logs():
        task: asyncio.Task[Any] = tasks.keep("control", work)
        await goes_on.wait()
        await tasks.stop()
    assert task.cancelled()
    assert failures("control") == before + 3


async def test_the_pause_before_a_new_start_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "PAUSE_S_MIN", 0.1)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            raise asyncio.CancelledError

    monkeypatch.setattr(supervised.asyncio, "sleep", sleep)
    with capture_logs():
        await asyncio.wait([Tasks().keep("control", fail)])
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
