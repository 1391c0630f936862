"""A small HTTP client for the commands at a terminal: goes on to the next node when one does not answer."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 5.0
CONNECT_TIMEOUT_S = 3.0
#: What a node may take for a call beyond the time that the call itself waits.
ANSWER_TIMEOUT_S = 15.0
#: Tried again, here or at another node; everything else is an answer.
TRY_AGAIN = (429, 503)


class CallFailed(Exception):
    """A node refused the call, and would refuse it again.

    Args:
        code: the problem's stable code.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({code})")
        self.status = status
        self.code = code


class Stopped(Exception):
    """`Client.stop` was called."""


class _Problem(msgspec.Struct):
    code: str = ""
    detail: str = ""


class Client:
    """Calls one of several nodes, over one kept connection. One thread calls; any thread may `stop`.

    Args:
        urls: service addresses, "http://127.0.0.1:8101"; the first that answers is kept.
        token: for `Authorization: Bearer`; "" for none.

    Raises:
        ValueError: an address is not like http://host:port.
    """

    def __init__(self, urls: Sequence[str], token: str = "") -> None:
        self._nodes = [_address(url) for url in urls]
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection: http.client.HTTPConnection | None = None
        self._stopping = threading.Event()

    def post(self, path: str, body: Any, answer: type[Any], wait_ms: int = 0, patience_s: float | None = None) -> Any:
        """Call until a node answers. A call that may have reached a node is sent again: it must bear a repeat.

        Args:
            answer: what the answer is decoded into.
            wait_ms: how long the call itself waits.
            patience_s: give up after so long without an answer; None: never.

        Raises:
            CallFailed: refused.
            OSError: no node answered in time.
            Stopped: by `stop`.
        """
        data = msgspec.json.encode(body)
        deadline = None if patience_s is None else time.monotonic() + patience_s
        pause_s = PAUSE_S_MIN
        while True:
            if self._stopping.is_set():
                raise Stopped
            try:
                status, answered = self._exchange(path, data, wait_ms)
                if status == 200:
                    return msgspec.json.decode(answered, type=answer)
                problem = _problem(answered)
                if status not in TRY_AGAIN:
                    raise CallFailed(status, problem.code, problem.detail or f"status {status}")
                trouble: OSError = OSError(f"{problem.detail or status}")
            except (OSError, http.client.HTTPException) as error:
                trouble = error if isinstance(error, OSError) else OSError(f"no HTTP answer: {error!r}")
            self.close()
            self._nodes.append(self._nodes.pop(0))
            if deadline is not None and time.monotonic() + pause_s > deadline:
                raise trouble
            self._stopping.wait(pause_s)
            pause_s = min(pause_s * 2, PAUSE_S_MAX)

    def stop(self) -> None:
        """End the call in progress, and refuse further ones. The node sees the connection close and gives messages back."""
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

    def _exchange(self, path: str, data: bytes, wait_ms: int) -> tuple[int, bytes]:
        if self._connection is None:
            node = self._nodes[0]
            self._connection = http.client.HTTPConnection(node.hostname or "", node.port, timeout=CONNECT_TIMEOUT_S)
            self._connection.connect()
        connection = self._connection
        connection.sock.settimeout(wait_ms / 1000 + ANSWER_TIMEOUT_S)
        connection.request("POST", path, data, self._headers)
        response = connection.getresponse()
        return response.status, response.read()


def _address(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"an address must be like http://127.0.0.1:8101, not {url!r}")
    return parts


def _problem(body: bytes) -> _Problem:
    try:
        return msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        return _Problem()
