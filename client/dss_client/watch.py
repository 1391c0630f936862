"""Who holds the keys with a prefix, kept up to date by the cluster's `locks.watch`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import TracebackType
from typing import Any, Self

from dss_client.clock import now
from dss_client.config import pause_s
from dss_client.connection import Handle
from dss_client.core import LASTED_S, Core, Repeat
from dss_client.errors import DssError, Unavailable, WrongUse

log = logging.getLogger("dss_client")

OPERATION = "locks.watch"
#: A subscription has no end. Its call is repeated at another node when the connection ends.
WATCH_S = 1e7


class LockWatch:
    """The holders of all keys that begin with a prefix. For `async with`.

    The state of the watch is that of one node: it may lag behind the cluster, but it is never older than the moment at which the
    context was entered.

    Attributes:
        holders: for each key that is held, the fencing token of each holder.
        index: the Raft index of the last change that is in `holders`.

    Raises:
        WrongUse: the client calls over HTTP.
    """

    def __init__(self, core: Core, prefix: str) -> None:
        if core.config.transport != "websocket":
            raise WrongUse('this needs `transport="websocket"`: over HTTP, a client cannot watch locks')
        self.holders: dict[str, dict[str, int]] = {}
        self.index = 0
        self._core = core
        self._prefix = prefix
        self._coming: dict[str, dict[str, int]] = {}
        self._has_changed = asyncio.Event()
        self._is_complete = False
        self._error: DssError | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._follow())
        self._core.keep(self._task)
        try:
            while not self._is_complete:
                if not await self.changed(self._core.config.timeout_s) and not self._is_complete:
                    raise Unavailable("no node told in time who holds the locks")
        except BaseException:
            self._task.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()

    async def changed(self, timeout_s: float | None = None) -> bool:
        """Wait until something has changed since the last call. False: nothing did in time.

        Raises:
            DssError: a node refuses the watch.
        """
        with contextlib.suppress(TimeoutError):
            # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the result.
            async with asyncio.timeout(timeout_s):
                await self._has_changed.wait()
        if self._error is not None:
            raise self._error
        has_changed = self._has_changed.is_set()
        self._has_changed.clear()
        return has_changed

    async def _follow(self) -> None:
        failures = 0
        while True:
            began = now()
            try:
                await self._core.call(
                    OPERATION,
                    {"prefix": self._prefix},
                    Repeat.READ,
                    wait_s=WATCH_S,
                    handle=Handle(self._on_event),
                    is_traced=False,
                )
            except Unavailable as error:
                log.warning("locks cannot be watched: %s", error)
            except DssError as error:
                self._error = error
                self._has_changed.set()
                return
            failures = 1 if now() - began > LASTED_S else failures + 1
            await asyncio.sleep(pause_s(failures))

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind in ("state", "resync"):
            for lock in event.get("locks") or ():
                holders = {holder["client"]: holder["fencing_token"] for holder in lock["holders"]}
                if holders:
                    self._coming[lock["key"]] = holders
            if event.get("more"):
                return
            self.holders, self._coming = self._coming, {}
            self._is_complete = True
        elif kind == "granted":
            self.holders.setdefault(event["key"], {})[event["client"]] = event["fencing_token"]
        elif kind in ("released", "lost"):
            holders = self.holders.get(event["key"], {})
            holders.pop(event["client"], None)
            if not holders:
                self.holders.pop(event["key"], None)
        elif kind != "delay_ended":
            self.index = event["index"]
            return
        self.index = event["index"]
        self._has_changed.set()
