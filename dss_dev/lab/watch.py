"""The lab's live view of the cluster: one `cluster.watch` subscription at a node that runs, and the parts that it has sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from dss_dev.local_cluster import LocalNode

#: without an event for this long, another node is asked; events arrive twice a second
SILENT_S = 2.0
OPEN_S = 5.0
RETRY_S = 0.3


class LiveView:
    """See the module.

    Args:
        candidates: the nodes to ask, the best first.
        changed: is called after each event.
    """

    def __init__(self, candidates: Callable[[], Sequence[LocalNode]], changed: Callable[[dict[str, Any]], None]) -> None:
        self._candidates = candidates
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self.request: dict[str, str] = {}
        #: the latest of each part of `cluster.watch`
        self.parts: dict[str, Any] = {}
        self._heard = 0.0

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self._heard < SILENT_S

    def watch(self, request: dict[str, str] | None) -> None:
        """Subscribe with this request; None: not at all."""
        if self._task is not None and request == self.request:
            return
        self.stop()
        if request is not None:
            self.request = request
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        turn = 0
        while True:
            nodes = self._candidates()
            if nodes:
                with suppress(OSError, TimeoutError, WebSocketException, ValueError):
                    await self._follow(nodes[turn % len(nodes)])
            turn += 1
            await asyncio.sleep(RETRY_S)

    async def _follow(self, node: LocalNode) -> None:
        options: dict[str, Any] = {"additional_headers": node.credentials, "open_timeout": OPEN_S, "close_timeout": 0.5}
        if node.tls is not None:
            options["ssl"] = node.tls
        async with connect(node.websocket_url, **options) as socket:
            await socket.send(json.dumps({"id": 1, "op": "cluster.watch", "request": self.request}))
            while node in self._candidates():
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the result.
                async with asyncio.timeout(SILENT_S):
                    frame = json.loads(await socket.recv())
                if event := frame.get("event"):
                    self._heard = time.monotonic()
                    if event["kind"] == "state":
                        self.parts = {}
                    self.parts |= event
                    self._changed(event)
                elif frame.get("status", 0) >= 400:
                    raise ValueError(frame.get("detail"))
