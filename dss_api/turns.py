"""Spreads calls and input over turns of the event loop, so that a burst does not delay heartbeats and other clients.

Every call that is ready runs in the same turn of the loop. A thousand calls of 10 ms each would be one turn of ten seconds without a
heartbeat. So calls begin only until a turn has lasted for a while, and the rest begin in the following turns. Addresses take turns, too:
a client that has one call does not wait for the thousand calls of another one.

Input is limited in the same way. If a thousand connections sent megabytes or thousands of small messages each, parsing them in one turn
would take many seconds, and the watchdog would end the node. So input is parsed in slices, for a limited time in each turn. The rest
waits, and nothing more is read from its connection in the meantime.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Protocol

from dss_api.client_memory import Account

#: After this time in a turn, further calls begin in a later turn.
TURN_BUDGET_S = 0.02
#: How many of the calls that had to wait begin in one turn: their duration is not known in advance.
LATE_PER_TURN = 8
#: Input is taken in slices of this length: thousands of messages fit in one read.
SLICE_BYTES = 16 * 1024
#: After this time in a turn, further input is taken in a later turn.
INPUT_BUDGET_S = 0.02


class Turns:
    """Lets calls begin. One object for all entry points of a node."""

    def __init__(self) -> None:
        #: when the first call of the current turn began; 0.0: none has yet
        self._began = 0.0
        #: address -> its calls, in order of arrival; the first address is next
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def enter(self, address: str = "") -> None:
        """Return when a call of this address may begin: now, in most turns."""
        now = perf_counter()
        if not self._began:
            self._began = now
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif self._waiting or now - self._began > TURN_BUDGET_S:
            future = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(address, deque()).append(future)
            await future

    def _next_turn(self) -> None:
        self._began = 0.0
        waiting = self._waiting
        begun = 0
        while waiting and begun < LATE_PER_TURN:
            address = next(iter(waiting))
            calls = waiting.pop(address)
            future = calls.popleft()
            if calls:
                waiting[address] = calls
            if not future.done():
                future.set_result(None)
                begun += 1
        if waiting:
            self._began = perf_counter()
            asyncio.get_running_loop().call_soon(self._next_turn)


class Reader(Protocol):
    """A connection whose input can wait for a later turn."""

    address: str
    account: Account

    def take_input(self, data: bytes) -> None:
        """Parse this input."""

    def pause_input(self) -> None:
        """Stop reading until `resume_input`."""

    def resume_input(self) -> None:
        """Read again, unless there is another reason to wait."""


class InputTurns:
    """Lets connections take their input. One object for all entry points of a node."""

    def __init__(self) -> None:
        #: when the first input of the current turn was taken; 0.0: none has been yet
        self._began = 0.0
        #: address -> its connections with what they have read; the first one of the first address is next
        self._waiting: dict[str, dict[Reader, bytes]] = {}

    def deliver(self, reader: Reader, data: bytes) -> None:
        """Let the connection take what it has read: now, in most turns."""
        now = perf_counter()
        if not self._began:
            self._began = now
            asyncio.get_running_loop().call_soon(self._next_turn)
        if self._waiting or len(data) > SLICE_BYTES or now - self._began > INPUT_BUDGET_S:
            reader.pause_input()
            reader.account.take(len(data))
            readers = self._waiting.setdefault(reader.address, {})
            readers[reader] = readers.get(reader, b"") + data
        else:
            reader.take_input(data)

    def forget(self, reader: Reader) -> bytes:
        """Forget a connection that has ended or is handed over. Returns the input that it has not taken."""
        readers = self._waiting.get(reader.address, {})
        data = readers.pop(reader, b"")
        if not readers:
            self._waiting.pop(reader.address, None)
        reader.account.take(-len(data))
        return data

    def _next_turn(self) -> None:
        if not self._waiting:
            self._began = 0.0
            return
        self._began = perf_counter()
        asyncio.get_running_loop().call_soon(self._next_turn)
        while self._waiting and perf_counter() - self._began < INPUT_BUDGET_S:
            self._take_slice()

    def _take_slice(self) -> None:
        """Let the next connection of the next address take a slice. Both then go to the end of their queues."""
        address = next(iter(self._waiting))
        readers = self._waiting.pop(address)
        reader = next(iter(readers))
        data = readers.pop(reader)
        rest = data[SLICE_BYTES:]
        if rest:
            readers[reader] = rest
        if readers:
            self._waiting[address] = readers
        reader.account.take(len(rest) - len(data))
        reader.take_input(data[:SLICE_BYTES])
        if not rest:
            reader.resume_input()
