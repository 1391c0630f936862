"""A small HTTP client for commands at a terminal. If a node does not answer, it tries the next one."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 5.0
CONNECT_TIMEOUT_S = 3.0
#: how long a node may take for a call, in addition to the time that the call itself waits
ANSWER_TIMEOUT_S = 15.0
#: statuses after which the call is sent again, to this node or another
TRY_AGAIN = (429, 503)
#: these refusals say that the call had no effect
NO_EFFECT = ("no_leader", "no_quorum", "not_ready", "over_limit", "stopping")
_WAITING_FOR = {"no_leader": "a leader", "no_quorum": "a majority of the nodes"}


class CallFailed(Exception):
    """A node refused the call, and would refuse it again.

    Args:
        code: the problem's stable code; "" when the answer was not a problem of this API.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({code})" if code else detail)
        self.status = status
        self.code = code


class Stopped(Exception):
    """`Client.stop` was called."""


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


class Client:
    """Calls one of several nodes over one kept connection. One thread calls; any thread may `stop`.

    Args:
        urls: service addresses, "http://127.0.0.1:8101"; the first that answers is kept.
        token: for `Authorization: Bearer`; "" for none.
        say: gets a line when the client tries another node, and when it waits.

    Raises:
        ValueError: an address is not like http://host:port.
    """

    def __init__(self, urls: Sequence[str], token: str = "", say: Callable[[str], None] = lambda line: None) -> None:
        self._nodes = [_address(url) for url in urls]
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._say = say
        self._connection: http.client.HTTPConnection | None = None
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        """The node that gets the next call."""
        return self._nodes[0].geturl()

    def post(self, path: str, body: Any, answer: type[Any], wait_ms: int = 0, patience_s: float | None = None) -> Any:
        """`call` with POST."""
        return self.call("POST", path, body, answer, wait_ms=wait_ms, patience_s=patience_s)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        answer: type[Any] = dict[str, Any],
        *,
        wait_ms: int = 0,
        patience_s: float | None = None,
        may_repeat: bool = True,
    ) -> Any:
        """Call until a node answers.

        Args:
            answer: the type that the answer is decoded into.
            wait_ms: how long the call itself waits.
            patience_s: how long to try without an answer; each node is tried once anyway. None: without a limit.
            may_repeat: whether to repeat a call that may have reached a node.

        Raises:
            CallFailed: refused.
            OSError: no node answered in time.
            Stopped: by `stop`.
        """
        data = None if body is None else msgspec.json.encode(body)
        deadline = None if patience_s is None else time.monotonic() + patience_s
        pause_s = PAUSE_S_MIN
        failures = 0
        refusal: OSError | None = None
        is_refused_in_round = False
        while True:
            if self._stopping.is_set():
                raise Stopped
            url, is_sent, code = self.url, False, ""
            trouble: OSError
            try:
                self._connect()
                is_sent = True
                status, answered = self._exchange(method, path, data, wait_ms)
                if status == 200:
                    return _decoded(answered, answer)
                problem = _problem(answered)
                code = problem.code
                if status not in TRY_AGAIN or not (may_repeat or code in NO_EFFECT):
                    raise CallFailed(status, code, problem.detail or f"status {status}")
                is_refused_in_round = True
                trouble = refusal = OSError(f"{url}: {problem.detail or f'status {status}'}")
            except OSError as error:
                trouble = OSError(f"No answer from {url}: {error.strerror or error}")
            except http.client.HTTPException as error:
                trouble = OSError(f"No HTTP answer from {url} ({type(error).__name__})")
            self.close()
            if self._stopping.is_set():
                raise Stopped
            if is_sent and not code and not may_repeat:
                raise trouble
            failures += 1
            self._nodes.append(self._nodes.pop(0))
            if deadline is not None and failures >= len(self._nodes) and time.monotonic() + pause_s > deadline:
                raise refusal or trouble
            if code in _WAITING_FOR:
                self._say(f"waiting for {_WAITING_FOR[code]} …")
            elif failures < len(self._nodes):
                self._say(f"{trouble}; trying {self.url}")
            elif failures % len(self._nodes) == 0:
                self._say(f"{refusal}; retrying …" if is_refused_in_round else "no node answers yet; retrying …")
            self._stopping.wait(pause_s)
            if failures % len(self._nodes) == 0:
                pause_s = min(pause_s * 2, PAUSE_S_MAX)
                is_refused_in_round = False

    def stop(self) -> None:
        """End the call in progress and refuse further ones. The node sees the connection close and takes messages back."""
        self._stopping.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        if self._connection is None:
            node = self._nodes[0]
            self._connection = http.client.HTTPConnection(node.hostname or "", node.port, timeout=CONNECT_TIMEOUT_S)
            self._connection.connect()

    def _exchange(self, method: str, path: str, data: bytes | None, wait_ms: int) -> tuple[int, bytes]:
        connection = self._connection
        assert connection is not None
        connection.sock.settimeout(wait_ms / 1000 + ANSWER_TIMEOUT_S)
        connection.request(method, path, data, self._headers)
        response = connection.getresponse()
        return response.status, response.read()


def _address(url: str) -> SplitResult:
    parts = urlsplit(url.rstrip("/"))
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"an address must be like http://127.0.0.1:8101, not {url!r}")
    return parts


def _decoded(body: bytes, answer: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=answer)
    except msgspec.MsgspecError as error:
        raise CallFailed(200, "", f"the answer is not one of this API: {error}") from None


def _problem(body: bytes) -> _Problem:
    try:
        return msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        return _Problem()
