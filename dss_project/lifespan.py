"""ASGI's lifespan protocol: servers that support it start and stop the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from django.conf import settings

from dss_api.json_fast_path import Receive, Scope, Send
from dss_project.raft_worker import RaftWorker
from dss_project.watchdog import Watchdog


class Lifespan:
    """The ASGI application for `lifespan`.

    Args:
        find_application: returns the application that has the channel `raft`.
        end_traces: sends the last spans.
    """

    def __init__(self, find_application: Any, end_traces: Callable[[], None] | None = None) -> None:
        self._find_application = find_application
        self._end_traces = end_traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with Watchdog(settings.NODE.watchdog_ms):
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        worker = RaftWorker(settings.NODE, self._find_application())
        try:
            await worker.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await worker.stop()
        if self._end_traces is not None:
            await asyncio.to_thread(self._end_traces)
        await send({"type": "lifespan.shutdown.complete"})
