"""Detects a blocked event loop, logs where it is, and ends the process if it stays blocked.

A thread pings the loop and counts its own ticks until the loop answers. When the loop has missed the ticks of `limit_ms`, the stacks of
all threads are written to the log (`node.loop_blocked`). When it has missed as many again, the process ends with exit code 3, so that
its supervisor starts it again: a node with a blocked loop answers no client, and not even a signal.

No clock is used. A process that is stopped (SIGSTOP), or whose machine is suspended, counts no ticks either: its thread waits once,
however long that takes, and the loop answers the next ping. Code that holds the interpreter's lock stops the thread, too. Such a loop
is detected only if the lock is free from time to time.

The loop may be blocked by writing to the log, if no process reads the pipe. So another thread writes the stacks, and the end of the
process does not wait long for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import structlog
from prometheus_client import Counter

log = structlog.get_logger("node")

EXIT_CODE = 3
#: Ticks of the thread in `limit_ms`.
TICKS_PER_LIMIT = 20
#: How long the last lines may take to reach the log.
FLUSH_S = 2.0

BLOCKED = Counter("dss_loop_blocked_total", "How often this node's event loop was blocked for longer than `DSS_WATCHDOG_MS`.")


class Watchdog:
    """A context in which the running event loop is watched.

    Args:
        limit_ms: how long the loop may be blocked; 0: it is not watched.
        end: ends the process.
    """

    def __init__(self, limit_ms: int, end: Callable[[int], object] = os._exit) -> None:
        self._tick_s = limit_ms / 1000 / TICKS_PER_LIMIT
        self._end = end
        self._stopped = threading.Event()
        self._missed = 0
        self._loop: asyncio.AbstractEventLoop
        self._loop_thread = 0
        #: None: the last one
        self._reports: SimpleQueue[tuple[Callable[[], object], threading.Event] | None] = SimpleQueue()

    def __enter__(self) -> Watchdog:
        if self._tick_s:
            self._loop = asyncio.get_running_loop()
            self._loop_thread = threading.get_ident()
            for target, name in ((self._watch, "watchdog"), (self._write_reports, "watchdog-log")):
                threading.Thread(target=target, name=name, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._reports.put(None)

    # ------------------------------------------------------------ in the threads

    def _watch(self) -> None:
        has_answered = threading.Event()
        has_answered.set()
        while not self._stopped.wait(self._tick_s):
            if has_answered.is_set():
                if self._missed >= TICKS_PER_LIMIT:
                    self._report(lambda: log.warning("node.loop_goes_on"), wait_s=0)
                self._missed = 0
                has_answered.clear()
                with suppress(RuntimeError):  # the loop is closed: the process is ending
                    self._loop.call_soon_threadsafe(has_answered.set)
                continue
            self._missed += 1
            if self._missed == TICKS_PER_LIMIT:
                self._show_block()
            elif self._missed == 2 * TICKS_PER_LIMIT:
                self._end_process()
                return

    def _show_block(self) -> None:
        BLOCKED.inc()
        stacks, seconds = self._stacks(), self._missed_s
        self._report(lambda: log.error("node.loop_blocked", seconds=seconds, stack=stacks), wait_s=0)

    @property
    def _missed_s(self) -> float:
        return round(self._missed * self._tick_s, 3)

    def _end_process(self) -> None:
        stacks, seconds = self._stacks(), self._missed_s

        def last_words() -> None:
            log.critical("node.loop_did_not_go_on", seconds=seconds, exit_code=EXIT_CODE, stack=stacks)
            for handler in logging.getLogger().handlers:
                handler.flush()
            sys.stdout.flush()

        self._report(last_words, wait_s=FLUSH_S)
        self._end(EXIT_CODE)

    def _stacks(self) -> str:
        """The stacks of all threads, the loop's first."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != self._loop_thread)
        return "\n".join(
            f"Thread {names.get(ident, ident)}{' (event loop)' if ident == self._loop_thread else ''}:\n"
            + "".join(traceback.format_stack(frame))
            for ident, frame in frames
            if ident != threading.get_ident()
        )

    def _report(self, report: Callable[[], object], wait_s: float) -> None:
        is_written = threading.Event()
        self._reports.put((report, is_written))
        is_written.wait(wait_s)

    def _write_reports(self) -> None:
        while (item := self._reports.get()) is not None:
            report, is_written = item
            with suppress(Exception):
                report()
            is_written.set()
