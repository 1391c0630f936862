"""A consumer that runs a command for each message.

Up to `concurrency` commands run at a time. Each gets the value on its standard input. Its message is extended while it runs, and acked
when it exits with 0. Otherwise the message goes back with a delay that doubles with each attempt. On a stop, running commands have some
time to finish. Then they are terminated, and their messages go back without counting the attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dss_cli.cluster import Cluster
from dss_client import (
    AsyncMessage,
    Cancelled,
    DssError,
    InternalError,
    OverLimit,
    StaleReceipt,
    Unavailable,
    UnknownOutcome,
    WrongUse,
)
from dss_client.clock import now
from dss_client.config import pause_s
from dss_client.connection import Handle
from dss_client.core import LASTED_S

#: Between SIGTERM and SIGKILL.
KILL_AFTER_S = 5.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a worker."""

    topic: str
    group: str
    command: Sequence[str]
    concurrency: int = 1
    visibility_ms: int = 15_000
    timeout_ms: int = 10_000
    #: delay after the first failure, doubled for each further one
    backoff_ms: int = 1000
    backoff_ms_max: int = 300_000
    #: how long running commands may continue after a stop
    grace_s: float = 30.0
    #: end after this many messages; 0: never
    limit: int = 0
    #: end when no message is ready
    until_empty: bool = False
    #: pass a JSON string to the command as plain text
    text: bool = False

    def __post_init__(self) -> None:
        for name in ("concurrency", "visibility_ms"):
            if getattr(self, name) < 1:
                raise WrongUse(f"--{name.replace('_', '-')} must be at least 1")


class CommandWorker:
    """See the module.

    Args:
        report: prints a line.
    """

    def __init__(self, cluster: Cluster, options: Options, report: Callable[[str], Any]) -> None:
        self.options = options
        self.done = 0
        self.failed = 0
        self._topic = cluster.client.topic(options.topic)
        self._report = report
        self._taken = 0
        #: polls in a row that failed
        self._failures = 0
        self._polls: set[Handle] = set()
        self._stopping = asyncio.Event()
        self._terminating = asyncio.Event()

    async def run(self, *, handle_signals: bool = True) -> None:
        """Work until stopped, or until `limit` or `until_empty` ends it.

        Args:
            handle_signals: SIGTERM and SIGINT stop it.

        Raises:
            DssError: a node refuses the calls of this consumer.
        """
        loop = asyncio.get_running_loop()
        handled = []
        for number in SIGNALS if handle_signals else ():
            # Another thread than the main one cannot handle signals.
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
                handled.append(number)
        works = [asyncio.ensure_future(self._work()) for _ in range(self.options.concurrency)]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_EXCEPTION)
            if any(work.done() and work.exception() is not None for work in works):
                self.stop()
            await asyncio.gather(*works)
        finally:
            await asyncio.wait(works)
            for number in handled:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Take no more messages and let running commands finish within the grace period. A second call terminates them immediately."""
        if self._stopping.is_set():
            self._terminating.set()
            return
        self._stopping.set()
        asyncio.get_running_loop().call_later(self.options.grace_s, self._terminating.set)
        for poll in self._polls:
            poll.cancel()

    async def _work(self) -> None:
        while not self._stopping.is_set() and self._may_take():
            message = await self._take()
            if message is not None:
                await self._handle(message)
                continue
            self._taken -= 1
            if self.options.until_empty:
                return

    def _may_take(self) -> bool:
        if self.options.limit and self._taken >= self.options.limit:
            return False
        self._taken += 1
        return True

    async def _take(self) -> AsyncMessage | None:
        """A message; None if none is ready, or the worker is stopping."""
        options, poll = self.options, Handle()
        wait_s = 0.0 if options.until_empty else options.timeout_ms / 1000
        self._polls.add(poll)
        began = now()
        try:
            messages = await self._topic.consume(options.group, 1, wait_s, options.visibility_ms / 1000, poll)
            self._failures = 0
            return messages[0] if messages else None
        except Cancelled:
            return None
        except (Unavailable, UnknownOutcome, OverLimit, InternalError) as error:
            if options.until_empty:
                raise
            self._report(f"{error}; trying again")
            self._failures = 1 if now() - began > LASTED_S else self._failures + 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s(self._failures)):
                    await self._stopping.wait()
            return None
        finally:
            self._polls.discard(poll)

    # ------------------------------------------------------------- one message

    async def _handle(self, message: AsyncMessage) -> None:
        code: int | None = None
        extending = asyncio.ensure_future(self._extend(message))
        try:
            if not self._stopping.is_set():
                code = await self._run_command(message)
        except OSError as error:
            self._report(f"{message.msg_id}: the command cannot be run: {error}")
        try:
            await self._settle(message, code)
        except DssError as error:
            self._report(f"{message.msg_id}: {error}")
        finally:
            extending.cancel()

    async def _settle(self, message: AsyncMessage, code: int | None) -> None:
        if code == 0:
            await message.ack()
            self.done += 1
            return
        if self._terminating.is_set() or (code is None and self._stopping.is_set()):
            self._report(f"{message.msg_id}: given back, because this consumer is stopping")
            await message.nack(silent=True)
            return
        self.failed += 1
        delay_ms = min(self.options.backoff_ms << min(message.attempt - 1, 32), self.options.backoff_ms_max)
        ended = "could not run" if code is None else f"ended with {code}"
        self._report(f"{message.msg_id}: attempt {message.attempt} {ended}; next attempt in {delay_ms} ms")
        await message.nack(delay_ms / 1000)

    async def _run_command(self, message: AsyncMessage) -> int:
        """Run the command until it ends. Returns the exit code."""
        process = await asyncio.create_subprocess_exec(
            *self.options.command, stdin=asyncio.subprocess.PIPE, env=self._environment(message), start_new_session=True
        )
        # A command that does not read its input must not block the worker: `communicate` does not mind.
        running = asyncio.ensure_future(process.communicate(self._input(message)))
        terminating = asyncio.ensure_future(self._terminating.wait())
        await asyncio.wait((running, terminating), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            _signal_group(process.pid, signal.SIGTERM)
            await asyncio.wait((running,), timeout=KILL_AFTER_S)
            if not running.done():
                _signal_group(process.pid, signal.SIGKILL)
        terminating.cancel()
        await running
        assert process.returncode is not None
        return process.returncode

    async def _extend(self, message: AsyncMessage) -> None:
        """Extend the visibility every third of it, until it is too late: another consumer may have the message."""
        visibility_s = self.options.visibility_ms / 1000
        while True:
            await asyncio.sleep(visibility_s / 3)
            try:
                await message.extend(visibility_s)
            except StaleReceipt as error:
                self._report(f"{message.msg_id}: cannot be extended: {error}")
                return
            except DssError as error:
                self._report(f"{message.msg_id}: {error}")

    def _input(self, message: AsyncMessage) -> bytes:
        if self.options.text and isinstance(message.value, str):
            return message.value.encode()
        return msgspec.json.encode(message.value)

    def _environment(self, message: AsyncMessage) -> dict[str, str]:
        return {
            **os.environ,
            "DSS_MESSAGE_ID": message.msg_id,
            "DSS_MESSAGE_TOPIC": self.options.topic,
            "DSS_MESSAGE_GROUP": self.options.group,
            "DSS_MESSAGE_KEY": message.key,
            "DSS_MESSAGE_ATTEMPT": str(message.attempt),
            "DSS_MESSAGE_HEADERS": msgspec.json.encode(message.headers).decode(),
        }


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the command and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
