"""A blocked event loop is detected and logged, and ends the process if it stays blocked. A stopped process is left alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dss_project import watchdog
from dss_project.watchdog import BLOCKED, EXIT_CODE, Watchdog

PATIENCE_S = 60


class Log:
    """Records events, and lets a blocked loop wait for one."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._came: dict[str, threading.Event] = {}

    def _add(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))
        self.came(event).set()

    error = warning = critical = _add

    def came(self, event: str) -> threading.Event:
        return self._came.setdefault(event, threading.Event())

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    log = Log()
    monkeypatch.setattr(watchdog, "log", log)
    yield log
    # A late line of this test must not reach the log of the next one.
    for thread in threading.enumerate():
        if thread.name.startswith("watchdog"):
            thread.join(PATIENCE_S)


def planted_block(until: threading.Event) -> None:
    assert until.wait(PATIENCE_S)


async def test_a_blocked_loop_is_logged_and_may_continue(log: Log) -> None:
    ends: list[int] = []
    before = BLOCKED._value.get()
    with Watchdog(1000, ends.append):
        planted_block(log.came("node.loop_blocked"))
        await asyncio.to_thread(log.came("node.loop_goes_on").wait, PATIENCE_S)
    assert log.names == ["node.loop_blocked", "node.loop_goes_on"]
    stack = log.events[0][1]["stack"]
    assert "planted_block" in stack
    assert stack.index("(event loop)") < stack.index("planted_block"), "the loop's thread comes first"
    assert BLOCKED._value.get() == before + 1
    assert not ends


async def test_a_loop_that_stays_blocked_ends_the_process(log: Log) -> None:
    ends: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        ends.append(code)
        ended.set()

    with Watchdog(200, end):
        planted_block(ended)
    assert ends == [EXIT_CODE]
    assert log.names == ["node.loop_blocked", "node.loop_did_not_go_on"]
    assert "planted_block" in log.events[1][1]["stack"]


async def test_a_log_that_is_not_read_does_not_keep_the_process_alive(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "FLUSH_S", 0.0)
    ended = threading.Event()
    log.error = log.critical = lambda *_, **__: planted_block(ended)  # type: ignore[method-assign, assignment]
    with Watchdog(200, lambda code: ended.set()):
        planted_block(ended)


async def test_a_busy_loop_that_answers_is_left_alone(log: Log) -> None:
    with Watchdog(1000, lambda code: None):
        loop = asyncio.get_running_loop()
        until = loop.time() + 2
        while loop.time() < until:  # noqa: ASYNC110  (busy is the point)
            await asyncio.sleep(0)
    assert log.names == []


async def test_it_can_be_turned_off() -> None:
    before = threading.active_count()
    with Watchdog(0):
        assert threading.active_count() == before


async def test_its_threads_end_with_it() -> None:
    with Watchdog(20, lambda code: None):
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("watchdog")]
        assert len(threads) == 2
    for thread in threads:
        await asyncio.to_thread(thread.join, PATIENCE_S)
        assert not thread.is_alive()
