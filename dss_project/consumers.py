"""Channels' part in a node: control messages. Raft's objects live in runtime.py, because a consumer that raises is made anew."""

from __future__ import annotations

import asyncio
from typing import Any

from channels.consumer import AsyncConsumer
from django.conf import settings

from dss_project import runtime


class StartSignal:
    """Lets whoever sent `raft.start` wait for its outcome."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def report_start(self, node: Any) -> None:
        """The node runs."""
        self.outcome.set_result(node)

    def report_no_start(self, error: BaseException) -> None:
        """The node does not run, and will not. Told again, it changes nothing."""
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def report_failure(self, error: BaseException) -> None:
        """The node ran and must not go on."""
        if not self.failed.done():
            self.failed.set_result(error)


class RaftConsumer(AsyncConsumer):
    """Listens on the channel `raft`."""

    #: set by the server's command before it sends `raft.start`
    signal: StartSignal | None = None

    async def raft_start(self, message: dict[str, Any]) -> None:
        """Start the node of this process."""
        signal = type(self).signal
        try:
            node = await runtime.start(settings.NODE, signal.report_failure if signal else None)
        except Exception as error:
            if signal is None:
                raise
            signal.report_no_start(error)
        else:
            if signal is not None:
                signal.report_start(node)

    async def raft_stop(self, message: dict[str, Any]) -> None:
        """Stop it."""
        await runtime.stop()
