"""The entry points as clients see them, for a node that a test makes: the same call through the JSON fast path and DRF.

`Api` is what a test of the contract uses; real_entry_points.py implements it for the nodes of a real cluster.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import msgspec
from django.test import Client

from dss_api import running
from dss_api.guard import Guard
from dss_api.http_limits import HttpLimits
from dss_api.json_fast_path import JsonFastPath
from dss_api.operation import Operation
from dss_dev import in_memory_http

#: anything that takes longer has failed
PATIENCE_S = 60
BODY_BYTES_MAX = 100_000

#: status, the decoded document, headers in lower case
Reply = tuple[int, dict[str, Any], dict[str, str]]


class Api(ABC):
    """Calls through one entry point."""

    #: the nodes are processes, and their time is real
    is_real = False
    #: answers have headers
    has_headers = True
    #: a GET without fields gets a form for them
    shows_forms = False

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def call(self, method: str, path_and_query: str, body: bytes) -> Reply:
        """One call."""

    @abstractmethod
    def later(self, path: str, **fields: Any) -> list[Reply]:
        """Start a call and return once it waits at the node; after `join` the list contains its answer."""

    def nth(self, number: int) -> Any:
        """The index in the answer to the call that is entry `number` of the log if no other client makes entries."""
        return number

    def about(self, ms: int) -> Any:
        """A time that has passed, or is left, if calls themselves take no time."""
        return ms

    def post(self, path: str, **fields: Any) -> Reply:
        return self.call("POST", path, msgspec.json.encode(fields))

    def put(self, path: str, **fields: Any) -> Reply:
        return self.call("PUT", path, msgspec.json.encode(fields))

    def get(self, path_and_query: str) -> Reply:
        return self.call("GET", path_and_query, b"")

    def delete(self, path_and_query: str) -> Reply:
        return self.call("DELETE", path_and_query, b"")

    def _start(self, path: str, fields: dict[str, Any]) -> list[Reply]:
        answers: list[Reply] = []
        thread = threading.Thread(target=lambda: answers.append(self.post(path, **fields)))
        thread.start()
        self._threads.append(thread)
        return answers

    def join(self) -> None:
        """Wait until the calls made `later` are answered."""
        for thread in self._threads:
            thread.join(PATIENCE_S)


class EntryPoint(Api):
    """Calls to a node in the event loop of another thread.

    Args:
        node: where the next call goes; a test with several of them changes it.
        waiting: how many calls wait there.
    """

    def __init__(
        self, node: Any, operations: Sequence[Operation], loop: asyncio.AbstractEventLoop, waiting: Callable[[], int]
    ) -> None:
        super().__init__()
        self.node = node
        self._operations = operations
        self._loop = loop
        self._waiting = waiting

    def run(self, act: Callable[[], Any]) -> Any:
        """Run a function in the node's event loop."""

        async def in_loop() -> Any:
            result = act()
            return await result if isinstance(result, Awaitable) else result

        return asyncio.run_coroutine_threadsafe(in_loop(), self._loop).result(PATIENCE_S)

    def later(self, path: str, **fields: Any) -> list[Reply]:
        before = self.run(self._waiting)
        answers = self._start(path, fields)

        async def until_it_waits() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while self._waiting() == before:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        self.run(until_it_waits)
        return answers


class JsonEntryPoint(EntryPoint):
    """The JSON fast path."""

    def call(self, method: str, path_and_query: str, body: bytes) -> Reply:
        json = JsonFastPath(self._operations, lambda: self.node, Guard())
        headers = [("content-type", "application/json")] if body else []
        limits = HttpLimits(body_bytes_max=BODY_BYTES_MAX)
        reply = self.run(lambda: in_memory_http.call(json, method, path_and_query, body, headers, limits))
        status, received, answer = reply
        return status, msgspec.json.decode(answer), received


class DrfEntryPoint(EntryPoint):
    """Django and DRF's views."""

    def call(self, method: str, path_and_query: str, body: bytes) -> Reply:
        content = {"content_type": "application/json"} if body else {}
        response = Client(headers={"Host": "localhost"}).generic(method, path_and_query, body, **content)
        document = msgspec.json.decode(response.content)
        return response.status_code, document, {name.lower(): text for name, text in response.items()}


#: name, for the ids of tests -> class
ENTRY_POINTS: dict[str, type[EntryPoint]] = {"json": JsonEntryPoint, "drf": DrfEntryPoint}


@contextmanager
def opened(
    kind: str, make_node: Callable[[], Any], operations: Sequence[Operation], waiting: Callable[[Any], int]
) -> Iterator[EntryPoint]:
    """An entry point to the node that `make_node` makes in its event loop. `waiting` counts the calls that wait at the node."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:

        async def make() -> Any:
            return make_node()

        node = asyncio.run_coroutine_threadsafe(make(), loop).result(PATIENCE_S)
        entry_point = ENTRY_POINTS[kind](node, operations, loop, lambda: waiting(node))
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(running, "node", side_effect=lambda: entry_point.node))
            stack.enter_context(mock.patch.object(running, "loop", return_value=loop))
            yield entry_point
            entry_point.join()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
