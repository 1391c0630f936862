"""Closes an asyncio client when its test is over. Its event loop may still be open, but does not run now."""

from __future__ import annotations

import contextlib

from dss_client import AsyncClient, DssError


def close(client: AsyncClient) -> None:
    core = client._core
    if core is None:
        return
    if core.loop.is_closed() or core.loop.is_running():
        # What it holds is deleted with everything else.
        core.drop()
        return
    with contextlib.suppress(DssError):
        core.loop.run_until_complete(client.aclose())
