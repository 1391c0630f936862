"""Spreads calls over turns of the event loop, so that a burst of expensive calls does not delay heartbeats and other clients.

Every call that is ready runs in the same turn of the loop. A thousand calls of 10 ms each would be one turn of ten seconds without a
heartbeat. So calls begin only until a turn has lasted for a while, and the rest begin in the following turns, in order of arrival.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

#: After this time in a turn, further calls begin in a later turn.
TURN_BUDGET_S = 0.02
#: How many of the calls that had to wait begin in one turn: their duration is not known in advance.
LATE_PER_TURN = 8


class Turns:
    """Lets calls begin. One object for all entry points of a node."""

    def __init__(self) -> None:
        #: when the first call of the current turn began; 0.0: none has yet
        self._began = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Return when a call may begin: now, in most turns."""
        now = perf_counter()
        if not self._began:
            self._began = now
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif self._waiting or now - self._began > TURN_BUDGET_S:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def _next_turn(self) -> None:
        self._began = 0.0
        waiting = self._waiting
        begun = 0
        while waiting and begun < LATE_PER_TURN:
            future = waiting.popleft()
            if not future.done():
                future.set_result(None)
                begun += 1
        if waiting:
            self._began = perf_counter()
            asyncio.get_running_loop().call_soon(self._next_turn)
