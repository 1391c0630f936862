"""The log of refused connections, which no stranger can fill."""

from __future__ import annotations

import asyncio

import structlog

from dss_raft.net.connection import PeerConnection
from dss_raft.net.wire import Reason, WireError

log = structlog.get_logger("raft.links")

#: Minimum interval between two log lines for the same reason of refusal. The metric counts every refusal.
LOG_SECONDS_MIN = 1.0


class RefusalLog:
    """Logs refusals: each reason at most once per `LOG_SECONDS_MIN`, with the number of suppressed ones."""

    def __init__(self) -> None:
        self._last: dict[Reason, float] = {}
        self._suppressed: dict[Reason, int] = {}

    def write(self, error: WireError, connection: PeerConnection) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._last.get(error.reason, -LOG_SECONDS_MIN) < LOG_SECONDS_MIN:
            self._suppressed[error.reason] = self._suppressed.get(error.reason, 0) + 1
            return
        self._last[error.reason] = now
        log.warning(
            "peer_refused",
            reason=error.reason.value,
            detail=error.detail,
            address=connection.address,
            peer=connection.peer_id,
            authenticated=connection.is_authenticated,
            suppressed=self._suppressed.pop(error.reason, 0),
        )
