"""The connection of a coordinator: an asyncio client in a background thread. Its errors become those of tooz."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

import tooz
from tooz import coordination

from dss_client.aio import AsyncClient
from dss_client.background import Background
from dss_client.errors import DssError, Unavailable, UnknownOutcome

T = TypeVar("T")
P = ParamSpec("P")


class Link(Background):
    """Its methods may be called in any thread but the background thread."""

    def __init__(self, client_options: dict[str, Any]) -> None:
        super().__init__(AsyncClient(**client_options))
        self.client = self._client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._run(work)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return self._started(work).submit(work)

    async def check(self, timeout_s: float) -> None:
        """Ask any node for the leader.

        Raises:
            Unavailable: no node can be reached.
        """
        await self._client._running().once("raft.leader", {}, timeout_s)


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Raise errors of the client as tooz's."""
    try:
        yield
    except (Unavailable, UnknownOutcome) as error:
        raise coordination.ToozConnectionError(str(error)) from error
    except DssError as error:
        raise tooz.ToozError(str(error)) from error


def translated(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def wrapper(*arguments: P.args, **fields: P.kwargs) -> T:
        with translating():
            return function(*arguments, **fields)

    return wrapper
