"""Calls over HTTP, for networks in which a WebSocket does not pass. A call costs several times as much as on a WebSocket."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from dss_client.config import Config, Node
from dss_client.connection import (
    ATTACHED_TYPE,
    Answer,
    CannotConnect,
    Handle,
    NoAnswer,
    NotSent,
    decode,
    encode_attached,
    with_attached,
)
from dss_client.errors import Unencodable, refusal
from dss_client.operations import OPERATIONS
from dss_client.tls import trouble_of

CONNECTIONS_MAX = 64


class HttpConnection:
    """Kept connections to one node."""

    def __init__(self, node: Node, config: Config) -> None:
        self.url = node.url
        headers = {"Accept": f"application/json, {ATTACHED_TYPE}", "User-Agent": "dss-client"}
        if config.token:
            headers["Authorization"] = f"Bearer {config.token}"
        self._client = httpx.AsyncClient(
            base_url=node.url,
            headers=headers,
            timeout=httpx.Timeout(None, connect=config.connect_timeout_s),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            trust_env=False,
            verify=config.tls or True,
        )
        self._tracing = config.tracing
        self._is_open = True
        self._calls: dict[int, asyncio.Task[httpx.Response]] = {}
        self._cancelled: set[int] = set()
        self._last_id = 0
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, node: Node, config: Config) -> HttpConnection:
        """Check that a node answers.

        Raises:
            CannotConnect: none does.
        """
        connection = cls(node, config)
        try:
            await connection.check()
        except BaseException:
            connection.close()
            raise
        return connection

    async def check(self) -> None:
        """Ask for the leader: that shows whether this is a node, and whether the token is right.

        Raises:
            CannotConnect, Refused.
        """
        try:
            response = await self._client.get("/raft/leader", timeout=5.0)
        except httpx.TimeoutException:
            raise CannotConnect("no answer in time") from None
        except httpx.HTTPError as error:
            tls_error = _tls_error(error)
            if tls_error is not None:
                raise CannotConnect(
                    trouble_of(tls_error), is_wrong=isinstance(tls_error, ssl.SSLCertVerificationError)
                ) from error
            raise CannotConnect(str(error) or type(error).__name__) from error
        try:
            answer = decode(response.content)
        except msgspec.MsgspecError:
            answer = {}
        if response.status_code in (401, 403) and "code" in answer:
            raise refusal(response.status_code, answer)
        if "leader_id" not in answer and "code" not in answer:
            raise CannotConnect(f"this is no node: it answers with {response.status_code}", is_wrong=True)

    @property
    def is_open(self) -> bool:
        return self._is_open

    async def call(self, operation: str, fields: Mapping[str, Any], timeout_s: float, handle: Handle | None) -> Answer:
        if not self._is_open:
            raise NotSent
        method, path = OPERATIONS[operation]
        if method in ("GET", "DELETE"):
            given = dict(fields)
            for name in list(given):
                if f"{{{name}}}" in path:
                    path = path.replace(f"{{{name}}}", quote(str(given.pop(name)), safe=""))
            query = {
                name: [_as_text(one) for one in value] if isinstance(value, list) else _as_text(value)
                for name, value in given.items()
            }
            request = self._client.build_request(method, path, params=query)
        else:
            body, parts = encode_attached(fields)
            if parts:
                body = with_attached(body, parts)
            request = self._client.build_request(
                method, path, content=body, headers={"Content-Type": ATTACHED_TYPE if parts else "application/json"}
            )
        if self._tracing is not None:
            request.headers.update(self._tracing.context())
        self._last_id = id = self._last_id + 1
        task = self._calls[id] = asyncio.ensure_future(self._client.send(request))
        if handle is not None:
            handle.sent(self, id)
        try:
            async with asyncio.timeout(timeout_s):
                response = await task
            answer = decode(response.content)
        except asyncio.CancelledError:
            if id in self._cancelled:
                return {"ok": False, "status": 499, "code": "cancelled", "detail": "the call was cancelled"}
            task.cancel()
            raise
        except TimeoutError:
            raise NoAnswer("no answer in time") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NotSent(str(error)) from None
        except httpx.HTTPError as error:
            raise NoAnswer(f"the connection ended: {error}") from None
        except msgspec.MsgspecError:
            raise NoAnswer("the answer is not one of a node") from None
        finally:
            task.cancel()
            del self._calls[id]
            self._cancelled.discard(id)
            if handle is not None:
                handle.sent(None, 0)
            if not self._is_open and not self._calls:
                self.close()
        answer["status"] = response.status_code
        return answer

    def cancel(self, id: int) -> None:
        task = self._calls.get(id)
        if task is not None:
            self._cancelled.add(id)
            task.cancel()

    def retire(self) -> None:
        self._is_open = False
        if not self._calls:
            self.close()

    def close(self) -> None:
        self._is_open = False
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._client.aclose())

    def drop(self) -> None:
        self._is_open = False


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The error of TLS that httpx has wrapped."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise Unencodable(f"a field of the query string cannot be {type(value).__name__}")
    return str(value)
