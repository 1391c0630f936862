"""The page of Prometheus metrics, `/metrics`."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

from dss_api import running
from dss_api.codec import EncodedAnswer
from dss_api.errors import Refused
from dss_api.security_headers import NOSNIFF
from dss_queue.engine_numbers import SERVICE, EngineNumbers

PATH = "/metrics"
#: How long a scrape waits for the first numbers of topics on the engine `redis`.
NUMBERS_S = 1.0
_HEADERS = ((b"content-type", CONTENT_TYPE_LATEST.encode()), NOSNIFF)
# The `_created` series would double the page for little use.
disable_created_metrics()


class MetricsPage:
    """Makes the page. It takes some milliseconds, so at most one is made in a turn of the event loop.

    Requests that wait at the same time share it.
    """

    def __init__(self) -> None:
        #: makes the next page
        self._next: asyncio.Task[bytes] | None = None

    async def __call__(self) -> EncodedAnswer:
        with suppress(Refused):
            numbers: EngineNumbers | None = running.node().services.get(SERVICE)
            if numbers is not None:
                await numbers.look(wait_s=NUMBERS_S)
        if self._next is None:
            self._next = asyncio.create_task(self._make())
        # A caller that leaves does not take the page from the others.
        return EncodedAnswer(200, await asyncio.shield(self._next), _HEADERS)

    async def _make(self) -> bytes:
        await asyncio.sleep(0)
        # Requests that arrive from now on get the next page.
        self._next = None
        return generate_latest()
