"""`dss lock run`: a command that runs only while a lock is held.

The lock is renewed while the command runs. The command is a process group of its own, so that a signal reaches everything that it has
started. When the lock is lost, the group gets SIGTERM, and SIGKILL some time later. A command in the foreground shares the group of
`dss`; then only the command itself is signalled.

The exit statuses are chosen as those of timeout(1), which scripts know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal
from dss_client import AsyncHeld, AsyncLock, DssError, LockLost, LockTimeout

#: exit statuses of `dss lock run`; any other one is the command's
LOST = 123
NOT_ACQUIRED = 124
FAILED = 125
CANNOT_RUN = 126
NOT_FOUND = 127
#: added to the number of a signal that ended the command
SIGNALLED = 128

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
HANDLED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP)
#: On a terminal, the command in the foreground gets these from it.
FROM_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


@dataclass(frozen=True)
class Options:
    """How to run a command under a lock."""

    keys: Sequence[str]
    command: Sequence[str]
    ttl: float = 30.0
    #: None: without a limit
    wait: float | None = None
    shared: bool = False
    lock_delay: float = 0.0
    #: between SIGTERM and SIGKILL after the lock is lost
    kill_after: float = 5.0
    foreground: bool = False


async def run(cluster: Cluster, terminal: Terminal, options: Options) -> int:
    """Acquire, run, release. Returns the exit status for `dss`."""
    router = _Router()
    with _signals(HANDLED, router):
        return await _run(cluster, terminal, options, router)


class _Router:
    """What a signal does at present. There is no moment at which it would end this process and leave the command alone."""

    def __init__(self) -> None:
        self.handle: Callable[[signal.Signals], object] = lambda number: None

    def __call__(self, number: signal.Signals) -> None:
        self.handle(number)


async def _run(cluster: Cluster, terminal: Terminal, options: Options, router: _Router) -> int:
    lock = cluster.client.locks(
        options.keys, ttl=options.ttl, wait=options.wait, shared=options.shared, lock_delay=options.lock_delay
    )
    acquired = await _acquire(lock, terminal, options, router)
    if isinstance(acquired, int):
        return acquired
    label = ", ".join(options.keys)
    try:
        status = await _Running(acquired, terminal, options).run(router)
    finally:
        if acquired.is_lost:
            with contextlib.suppress(DssError):
                await acquired.release()
    if acquired.is_lost:
        terminal.say(f"the lock {label} was lost; the command was ended")
        return LOST
    try:
        await acquired.release()
    except LockLost as error:
        terminal.say(f"{error.detail}; the command had ended")
        return LOST
    except DssError as error:
        terminal.say(f"the lock {label} could not be released and ends with its lease: {error}")
    return status


async def _acquire(lock: AsyncLock, terminal: Terminal, options: Options, router: _Router) -> AsyncHeld | int:
    """The lock, or the exit status without it."""
    label = ", ".join(options.keys)
    stopped_by: list[signal.Signals] = []
    acquiring = asyncio.ensure_future(_acquire_and_say(lock, terminal, label, options.wait))

    def stop(number: signal.Signals) -> None:
        if number in ENDING:
            stopped_by.append(number)
            acquiring.cancel()
        elif number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    router.handle = stop
    try:
        held = await acquiring
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        return SIGNALLED + stopped_by[0]
    except LockTimeout as error:
        holders = ", ".join(holder["client"] for holder in error.holders)
        terminal.say(f"{label} is held{f' by {holders}' if holders else ''}; the command was not run")
        return NOT_ACQUIRED
    except DssError as error:
        terminal.say(f"{error}; the command was not run")
        return FAILED
    if stopped_by:
        await held.release()
        return SIGNALLED + stopped_by[0]
    return held


async def _acquire_and_say(lock: AsyncLock, terminal: Terminal, label: str, wait: float | None) -> AsyncHeld:
    if await lock.acquire(blocking=False):
        assert lock.held is not None
        return lock.held
    if wait != 0:
        terminal.say(f"waiting for {label} …")
    return await lock.__aenter__()


class _Running:
    """The command while it runs."""

    def __init__(self, held: AsyncHeld, terminal: Terminal, options: Options) -> None:
        self._held = held
        self._terminal = terminal
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, router: _Router) -> int:
        """Run the command to its end. Returns its exit status."""
        early: list[signal.Signals] = []
        router.handle = early.append
        command = self._options.command
        group: dict[str, Any] = {} if self._options.foreground else {"process_group": 0}
        try:
            self._process = await asyncio.create_subprocess_exec(*command, env=self._environment(), **group)
        except FileNotFoundError:
            self._terminal.say(f"command not found: {command[0]}")
            return NOT_FOUND
        except OSError as error:
            self._terminal.say(f"{command[0]} cannot be run: {error.strerror}")
            return CANNOT_RUN
        router.handle = self._forward
        for number in early:
            self._forward(number)
        try:
            with _signals((signal.SIGCHLD,), self._look):
                self._look(signal.SIGCHLD)
                status = await self._ended(self._process)
        finally:
            self._process = None
        return status if status >= 0 else SIGNALLED - status

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """Wait for the end of the command, which comes soon if the lock is lost."""
        ended = asyncio.ensure_future(process.wait())
        lost = asyncio.ensure_future(self._held.lost.wait())
        try:
            await asyncio.wait((ended, lost), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                self._terminal.say(f"the lock {', '.join(self._held.keys)} is lost: ending the command")
                self._signal(signal.SIGTERM)
                killing = asyncio.get_running_loop().call_later(self._options.kill_after, self._signal, signal.SIGKILL)
                await ended
                killing.cancel()
                if not self._options.foreground:
                    # The command has ended, but what it has started may go on.
                    self._signal(signal.SIGKILL)
        finally:
            lost.cancel()
        return ended.result()

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DSS_LOCK_KEY": self._held.keys[0],
            "DSS_FENCING_TOKEN": str(self._held.token),
            "DSS_FENCING_TOKENS": json.dumps(self._held.tokens),
        }

    def _forward(self, number: signal.Signals) -> None:
        if number == signal.SIGTSTP:
            self._stop()
        elif not (self._options.foreground and number in FROM_THE_TERMINAL):
            self._signal(number)

    def _stop(self) -> None:
        """Ctrl-Z: the command must not go on while this process cannot renew the lock."""
        self._signal(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGSTOP)
        # Continued. If the lock is lost by now, the command gets SIGTERM, too.
        self._signal(signal.SIGCONT)

    def _look(self, number: signal.Signals) -> None:
        """Say why a command that wants to read from the terminal does not go on."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            state = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG)
            if state is not None and state.si_status in (signal.SIGTTIN, signal.SIGTTOU):
                self._terminal.say("the command was stopped because it uses the terminal; run it with --foreground")

    def _signal(self, number: signal.Signals) -> None:
        self._send(number)
        if number in ENDING:
            # A command that is stopped gets it when it goes on.
            self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._options.foreground:
                os.kill(self._process.pid, number)
            else:
                os.killpg(self._process.pid, number)


@contextlib.contextmanager
def _signals(numbers: Sequence[signal.Signals], handle: Any) -> Iterator[None]:
    """Call `handle` with the number of a signal that arrives. Signals that are ignored stay ignored, as nohup(1) wants it."""
    loop = asyncio.get_running_loop()
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
