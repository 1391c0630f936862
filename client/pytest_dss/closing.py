"""Closes an asyncio client when its test is over."""

from __future__ import annotations

import contextlib
from typing import Any

from dss_client import AsyncClient, DssError


def close(client: AsyncClient) -> None:
    """With pytest-asyncio, the event loop is still open, but does not run now. With anyio, it is closed."""
    core = client._core
    if core is None:
        return
    if not core.loop.is_closed() and not core.loop.is_running():
        with contextlib.suppress(DssError):
            core.loop.run_until_complete(client.aclose())
        return
    # What it holds at the node is deleted with everything else.
    core.drop()
    for connection in list(core._connections):
        transport: Any = getattr(connection, "_transport", None)
        if hasattr(transport, "_sock"):
            # Its socket was closed by `drop`. Without this, it would warn that no loop has closed it.
            transport._sock = None
