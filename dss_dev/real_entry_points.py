"""The entry points of a real cluster, for the tests of the contract.

`TEST_CLUSTER_URLS` names its nodes. Then tests/{locks,queue,cache}/test_contract.py call them instead of a node in their own process:

    TEST_CLUSTER_URLS=http://127.0.0.1:8101,http://127.0.0.1:8102,http://127.0.0.1:8103 python -m pytest tests/queue/test_contract.py

The token and the certificates come from the variables of the client (`DSS_TOKEN`, `DSS_CA_FILE`, `DSS_CLIENT_CERT_FILE`, …). The calls of
a test go to the nodes in turn. Tests share the cluster, so the names that a test sends get a prefix of its own, and answers lose it.
"""

from __future__ import annotations

import html
import http.client
import itertools
import os
import re
import secrets
import ssl
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from dss_api.operation import Operation
from dss_client.tls import default_context
from dss_dev import entry_points
from dss_dev.answer_check import check
from dss_dev.entry_points import ENTRY_POINTS, PATIENCE_S, Api, Reply
from dss_dev.websocket import WebSocket, connect

URLS = [url.strip() for url in os.environ.get("TEST_CLUSTER_URLS", "").split(",") if url.strip()]
#: fields whose texts are names that all clients of a cluster share
NAMES = {"client", "dead_letter_topic", "key", "keys", "prefix", "topic"}
POLL_S = 0.01
_RUN = secrets.token_hex(3)
_numbers = itertools.count(1)
_PAGE = re.compile(r"response-info.*?<b>HTTP (\d+)(.*?)</span>(\{.*?)</pre>", re.DOTALL)
_PAGE_HEADER = re.compile(r"<b>([\w-]+):</b> <span class=\"lit\">(.*?)</span>")
_TAGS = re.compile(r"<[^>]*>")


class _Index:
    """Equal to any index after those before."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, indexes: list[int]) -> None:
        self._indexes = indexes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int):
            return NotImplemented
        if other != self._indexes[-1]:
            self._indexes.append(other)
        return self._indexes == sorted(self._indexes)


class _About:
    """Equal to any time that a call on a busy machine may show instead of `ms`."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and 0 <= other <= self.ms + 1000 * PATIENCE_S


class RealApi(Api):
    """Calls to the nodes at `URLS`, in turn."""

    is_real = True

    def __init__(self, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.prefix = f"{_RUN}-{next(_numbers)}-"
        self._operations = {(operation.method, operation.path): operation for operation in operations}
        #: the number of the node that gets the next call
        self.next = 0
        self._own = threading.local()
        self._stack = ExitStack()
        self._indexes = [0]
        token = os.environ.get("DSS_TOKEN", "")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.tls = default_context() if URLS[0].startswith("https") else None

    @abstractmethod
    def _exchange(self, url: str, operation: Operation, path_and_query: str, body: bytes) -> Reply:
        """One call to one node."""

    def nth(self, number: int) -> Any:
        return _Index(self._indexes)

    def about(self, ms: int) -> Any:
        return _About(ms)

    @property
    def nodes(self) -> list[str]:
        """The ids of the nodes, in the order of `URLS`."""
        found = []
        for url in URLS:
            connection = _http_connection(url, self.tls)
            connection.request("GET", "/raft/leader", headers=self.headers)
            found.append(msgspec.json.decode(connection.getresponse().read())["node"])
            connection.close()
        return found

    def call(self, method: str, path_and_query: str, body: bytes) -> Reply:
        """One call to the next node. Names in the body get no prefix."""
        path, _, query = path_and_query.partition("?")
        operation = self._operations[method, path]
        if query:
            fields = parse_qsl(query, keep_blank_values=True)
            query = urlencode([(name, self._prefixed(name, text)) for name, text in fields])
        url, self.next = URLS[self.next], (self.next + 1) % len(URLS)
        status, answer, headers = self._exchange(url, operation, f"{path}?{query}" if query else path, body)
        wrong = check(operation.answer, status, msgspec.json.encode(answer))
        assert not wrong, wrong
        without_prefix = msgspec.json.encode(answer).decode().replace(self.prefix, "")
        return status, msgspec.json.decode(without_prefix), headers

    def post(self, path: str, **fields: Any) -> Reply:
        return super().post(path, **self._with_prefix(fields))

    def put(self, path: str, **fields: Any) -> Reply:
        return super().put(path, **self._with_prefix(fields))

    def later(self, path: str, **fields: Any) -> list[Reply]:
        answers = self._start(path, fields)
        deadline = time.monotonic() + PATIENCE_S
        while not answers and not self._waits(path, fields):
            assert time.monotonic() < deadline, "the call does not wait"
            time.sleep(POLL_S)
        return answers

    def _waits(self, path: str, fields: dict[str, Any]) -> bool:
        if path == "/queue/consume":
            groups = self.get(f"/queue/stats?topic={fields['topic']}")[1]["groups"]
            return any(group["waiters"] for group in groups if group["group"] == fields["group"])
        waiters = self.get(f"/lock/status?key={fields['key']}")[1]["waiters"]
        return fields["client"] in [waiter["client"] for waiter in waiters]

    def _with_prefix(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: self._prefixed(name, value) for name, value in fields.items()}

    def _prefixed(self, name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self._prefixed(name, one) for one in value]
        if isinstance(value, dict) and name in ("items", "messages", "publish", "release"):
            return self._with_prefix(value)
        return self.prefix + value if name in NAMES and isinstance(value, str) and value else value

    def _connection(self, url: str, opened: Callable[[], Any]) -> Any:
        """The connection of this thread to a node."""
        connections = self._own.__dict__
        if url not in connections:
            connections[url] = opened()
        return connections[url]

    def close(self) -> None:
        """Close all connections."""
        self._stack.close()


class RealJson(RealApi):
    """HTTP with JSON."""

    def _exchange(self, url: str, operation: Operation, path_and_query: str, body: bytes) -> Reply:
        status, answer, headers = self._http(url, operation.method, path_and_query, body, "application/json")
        return status, msgspec.json.decode(answer), headers

    def _http(self, url: str, method: str, path: str, body: bytes, accept: str) -> tuple[int, bytes, dict[str, str]]:
        connection = self._connection(url, lambda: self._stack.enter_context(closing(_http_connection(url, self.tls))))
        content = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body or None, {**self.headers, **content, "Accept": accept})
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): text for name, text in response.getheaders()}


class RealPages(RealJson):
    """The pages of DRF. A page shows the answer, and the headers that a program would get."""

    shows_forms = True

    def _exchange(self, url: str, operation: Operation, path_and_query: str, body: bytes) -> Reply:
        status, page, headers = self._http(url, operation.method, path_and_query, body, "text/html")
        shown = _PAGE.search(page.decode())
        assert shown is not None, page
        assert int(shown[1]) == status
        assert headers["content-type"].startswith("text/html")
        answer = msgspec.json.decode(html.unescape(_TAGS.sub("", shown[3])))
        return status, answer, {**headers, **{name.lower(): html.unescape(text) for name, text in _PAGE_HEADER.findall(shown[2])}}


class RealWebSocket(RealApi):
    """One WebSocket to each node."""

    has_headers = False

    def _exchange(self, url: str, operation: Operation, path_and_query: str, body: bytes) -> Reply:
        connection: WebSocket = self._connection(url, lambda: self._connect(url))
        request = body or msgspec.json.encode(dict(parse_qsl(path_and_query.partition("?")[2], keep_blank_values=True)))
        connection.send(b'{"id": 1, "op": "%b", "request": %b}' % (operation.name.encode(), request), text=True)
        answer = msgspec.json.decode(connection.recv(timeout=PATIENCE_S))
        assert answer.pop("id") == 1
        status = answer["status"] if not answer["ok"] else answer.pop("status")
        return status, answer, {}

    def _connect(self, url: str) -> WebSocket:
        address = f"ws{url.removeprefix('http')}/ws"
        return self._stack.enter_context(
            connect(address, ssl=self.tls, additional_headers=self.headers, max_size=None, proxy=None)
        )


def _http_connection(url: str, tls: ssl.SSLContext | None) -> http.client.HTTPConnection:
    address = urlsplit(url)
    assert address.hostname is not None
    if tls is None:
        return http.client.HTTPConnection(address.hostname, address.port, timeout=PATIENCE_S)
    return http.client.HTTPSConnection(address.hostname, address.port, timeout=PATIENCE_S, context=tls)


REAL: dict[str, type[RealApi]] = {"json": RealJson, "drf": RealPages, "websocket": RealWebSocket}
#: for the parameters of a test of the contract
NAMED = list(REAL) if URLS else list(ENTRY_POINTS)


@contextmanager
def opened(
    kind: str, make_node: Callable[[], Any], operations: Sequence[Operation], waiting: Callable[[Any], int]
) -> Iterator[Api]:
    """An entry point to the cluster that `TEST_CLUSTER_URLS` names; without it, see `entry_points.opened`."""
    if not URLS:
        with entry_points.opened(kind, make_node, operations, waiting) as in_process:
            yield in_process
        return
    api = REAL[kind](operations)
    try:
        yield api
        api.join()
    finally:
        api.close()
