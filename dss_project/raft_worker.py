"""The background worker of a node: a Channels worker in which Raft runs.

The worker starts the node in its own task, so that Raft's timers and peer links run there, beside the web server and in the same event
loop. It then listens on the channel `raft` for control messages. Raft's objects live in `runtime.py`, not in the consumer: Channels
replaces a consumer that raises. Nothing that a client waits for passes through the channel layer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from channels.consumer import AsyncConsumer
from channels.layers import get_channel_layer
from channels.worker import Worker

from dss_api import running
from dss_api.errors import Refused
from dss_project import runtime
from dss_project.config import NodeConfig

log = structlog.get_logger("raft")

CHANNEL = "raft"


class RaftWorker(Worker):  # type: ignore[misc]
    """Runs the node of this process.

    Args:
        application: the ASGI application that has the channel `raft`.
    """

    def __init__(self, config: NodeConfig, application: Any) -> None:
        super().__init__(application, [CHANNEL], get_channel_layer())
        loop = asyncio.get_running_loop()
        self._config = config
        self._started: asyncio.Future[None] = loop.create_future()
        #: done if the node has started and cannot continue
        self.failed: asyncio.Future[BaseException] = loop.create_future()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the worker. Returns when the node runs.

        Raises:
            Exception: the reason why the node cannot start.
        """
        self._task = asyncio.create_task(self.arun())
        self._task.add_done_callback(self._ended)
        await self._started

    async def handle(self) -> None:
        """Start the node, then handle control messages. Channels calls this."""
        await runtime.start(self._config, self._report_failure)
        self._started.set_result(None)
        log.info("raft.worker_started", channel=CHANNEL)
        await super().handle()

    async def stop(self) -> None:
        """Stop the node, then the worker."""
        await runtime.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _report_failure(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Report an unexpected end: the node must not run without its worker."""
        if task.cancelled():
            return
        error = task.exception() or RuntimeError(f"the worker of the channel {CHANNEL} has ended")
        if self._started.done():
            log.error("raft.worker_ended", why=str(error))
            self._report_failure(error)
        else:
            self._started.set_exception(error)


class RaftConsumer(AsyncConsumer):  # type: ignore[misc]
    """Control messages on the channel `raft`, for Django code of this process.

    `{"type": "raft.start_election"}` makes this node campaign. `{"type": "raft.transfer", "to": "node-2"}` moves leadership; an empty
    `to` lets the leader choose. The sender gets no answer, so a refusal is logged.
    """

    async def raft_start_election(self, message: dict[str, Any]) -> None:
        try:
            await running.node().start_election(force=False)
        except Refused as refusal:
            log.warning("raft.control_refused", message=message["type"], why=str(refusal))

    async def raft_transfer(self, message: dict[str, Any]) -> None:
        try:
            await running.node().transfer(message.get("to", ""))
        except Refused as refusal:
            log.warning("raft.control_refused", message=message["type"], why=str(refusal))
