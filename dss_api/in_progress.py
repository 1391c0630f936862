"""The calls in progress on this node's entry points, so that the node can end them in order when it stops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from dss_api.client_memory import ClientMemory
from dss_api.errors import Refused
from dss_api.quotas import InUse, Limit, Rates
from dss_api.turns import InputTurns, Turns


class InProgress:
    """Calls, subscriptions and WebSocket connections that are open now.

    Args:
        calls_per_address_max: maximum number of calls and subscriptions of one address.
        memory: the accounts of all connections.
        calls_per_second_max: calls that one address may begin in a second; 0: unlimited.
        subscriptions_per_address_max: subscriptions of one address; 0: unlimited.
    """

    def __init__(
        self,
        calls_per_address_max: int = 10_000,
        memory: ClientMemory | None = None,
        calls_per_second_max: int = 0,
        subscriptions_per_address_max: int = 0,
    ) -> None:
        self.turns = Turns()
        self.input_turns = InputTurns()
        self.memory = memory or ClientMemory()
        self._rates = (
            Rates(Limit("calls_per_second_per_address_max", "DSS_CALLS_PER_SECOND_PER_ADDRESS_MAX", calls_per_second_max))
            if calls_per_second_max
            else None
        )
        #: subscriptions of each address
        self.subscriptions_of = InUse(
            Limit("subscriptions_per_address_max", "DSS_SUBSCRIPTIONS_PER_ADDRESS_MAX", subscriptions_per_address_max)
        )
        self._per_address_max = calls_per_address_max
        self._per_address: Counter[str] = Counter()
        #: calls that are not answered yet, including those on WebSockets
        self.calls = 0
        #: subscriptions on WebSockets; a stopping node ends them instead of waiting for them
        self.subscriptions: set[asyncio.Task[None]] = set()
        #: how to close each open WebSocket
        self.sockets: set[Callable[[], Awaitable[None]]] = set()

    def admit(self, address: str) -> None:
        """Count a call or a subscription of a client at this address, until `release`.

        Raises:
            Refused: `over_limit` when too many are in progress, or began in the last second.
        """
        self.count_call(address)
        if self._per_address[address] >= self._per_address_max:
            raise Refused(
                "over_limit", f"{address} already has {self._per_address_max} calls in progress (DSS_CALLS_PER_ADDRESS_MAX)"
            )
        self._per_address[address] += 1

    def count_call(self, address: str) -> None:
        """A message to a subscription makes work like a call.

        Raises:
            Refused: `over_limit` when too many began in the last second.
        """
        if self._rates is not None:
            self._rates.take(address)

    def release(self, address: str) -> None:
        """Count it as answered or cancelled."""
        self._per_address[address] -= 1
        if not self._per_address[address]:
            del self._per_address[address]

    def call_begins(self, address: str) -> None:
        """`admit` a call over HTTP, which a stopping node waits for."""
        self.admit(address)
        self.calls += 1

    def call_ended(self, address: str) -> None:
        """It is answered or cancelled."""
        self.calls -= 1
        self.release(address)

    async def end_subscriptions(self, timeout_s: float) -> None:
        """Cancel every subscription, so that it gives back what it holds while the node still runs."""
        ending = list(self.subscriptions)
        for task in ending:
            cancel_once(task)
        if ending:
            await asyncio.wait(ending, timeout=timeout_s)

    async def close_sockets(self, timeout_s: float) -> None:
        """Close every WebSocket with a code that says that the node is stopping. uvicorn's `send` waits for clients that do not read."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(close() for close in self.sockets), return_exceptions=True)


def cancel_once(task: asyncio.Task[Any]) -> None:
    """Cancel `task` unless it was cancelled before: a second cancellation would interrupt the cleanup in its `finally`."""
    if not task.cancelling():
        task.cancel()
