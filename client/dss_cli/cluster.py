"""The cluster that a command talks to."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from dss_cli.find_cluster import without_repeats
from dss_client import AsyncClient
from dss_client.config import Config, Transport
from dss_client.core import Core, Repeat

TIMEOUT_S = 15.0
#: how long a node may take to tell its state
ASK_S = 3.0


class CommandFailed(Exception):
    """The command cannot do this. The text is one line for the operator."""


class Cluster:
    """The nodes at some addresses, for the time of one command. Use it in `async with`.

    Args:
        urls: each may answer.
        say: gets a line when a node does not answer, and when a call is repeated.
        timeout_s: how long to look for a node that carries out a call.
        tls: for https addresses.

    Raises:
        WrongUse: an address or the token cannot be used.
    """

    def __init__(
        self,
        urls: Sequence[str],
        token: str,
        say: Callable[[str], Any],
        timeout_s: float = TIMEOUT_S,
        transport: Transport = "websocket",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.urls = list(urls)
        self.token = token
        self.timeout_s = timeout_s
        self._transport: Transport = transport
        self._tls = tls
        self.client = AsyncClient(self.urls, token, timeout=timeout_s, transport=transport, tls=tls)
        self._nodes: dict[str, OneNode] = {}
        self._log = _Said(without_repeats(say))

    async def __aenter__(self) -> Self:
        self._log.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in self._nodes.values():
            await node.close()
        await self.client.aclose()
        self._log.end()

    async def call(self, operation: str, **fields: Any) -> dict[str, Any]:
        """Call any node, until one carries it out. Fields that are None are left out.

        Raises:
            DssError
        """
        return _without_frame(await self.client.call(operation, **_given(fields)))

    async def call_again(self, operation: str, **fields: Any) -> dict[str, Any]:
        """As `call`, for a call that is harmless to repeat because of its fields.

        Raises:
            DssError
        """
        core = self.client._running()
        return _without_frame(await core.call(operation, _given(fields), Repeat.HARMLESS))

    def at(self, url: str) -> OneNode:
        """One of the nodes."""
        if url not in self._nodes:
            self._nodes[url] = OneNode([url], self.token, self._transport, self._tls)
        return self._nodes[url]

    def any(self) -> OneNode:
        """The first node that can be reached, for several calls to the same one."""
        key = ",".join(self.urls)
        if key not in self._nodes:
            self._nodes[key] = OneNode(self.urls, self.token, self._transport, self._tls)
        return self._nodes[key]


class OneNode:
    """The first of some nodes that can be reached. Each call is sent once."""

    def __init__(self, urls: Sequence[str], token: str, transport: Transport, tls: ssl.SSLContext | None) -> None:
        self._config = Config.read(urls, token, name=None, timeout=TIMEOUT_S, transport=transport, tls=tls)
        self._core: Core | None = None

    @property
    def tls(self) -> ssl.SSLContext | None:
        """For connections to https addresses."""
        return self._config.tls

    async def call(self, operation: str, timeout_s: float = ASK_S, **fields: Any) -> dict[str, Any]:
        """Call this node once. Fields that are None are left out.

        Raises:
            DssError
        """
        if self._core is None:
            self._core = Core(self._config)
        return _without_frame(await self._core.once(operation, _given(fields), timeout_s))

    async def close(self) -> None:
        if self._core is not None:
            await self._core.close()


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _without_frame(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer as over HTTP."""
    answer.pop("status", None)
    answer.pop("_repeated", None)
    return answer


class _Said(logging.Handler):
    """Shows the log of the client library to the operator, but not that of other clients in this process, which have other threads."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        super().__init__(logging.DEBUG)
        self._say = say
        self._thread = 0
        self._loggers = {logging.getLogger("dss_client"): logging.WARNING, logging.getLogger("dss_client.retries"): logging.DEBUG}

    def begin(self) -> None:
        self._thread = threading.get_ident()
        for logger, level in self._loggers.items():
            logger.setLevel(level)
            logger.propagate = False
            logger.addHandler(self)

    def end(self) -> None:
        for logger in self._loggers:
            logger.removeHandler(self)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._say(record.getMessage())
