"""Subscriptions: events that a node sends over a WebSocket until one side ends it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from dss_cli.cluster import Cluster
from dss_client import Unavailable
from dss_client.config import Node
from dss_client.errors import refusal
from dss_client.websocket import ANSWER_BYTES_MAX, PATH

CONNECT_S = 3.0


async def events(cluster: Cluster, operation: str, **fields: Any) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a subscription at the first node that can be reached.

    Raises:
        Refused
        Unavailable: no node can be reached, or the connection has ended.
    """
    headers = {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
    url, tls = await _reachable(cluster)
    try:
        async with connect(
            f"ws{url.removeprefix('http')}{PATH}",
            ssl=tls,
            additional_headers=headers,
            open_timeout=CONNECT_S,
            max_size=ANSWER_BYTES_MAX,
        ) as connection:
            await connection.send(msgspec.json.encode({"id": 1, "op": operation, "request": fields}), text=True)
            async for text in connection:
                frame: dict[str, Any] = msgspec.json.decode(text)
                if "event" not in frame:
                    raise refusal(frame.get("status", 0), frame)
                yield frame["event"]
    except (OSError, InvalidHandshake, ConnectionClosed) as error:
        raise Unavailable(f"{operation}: {url}: {error}", {url: str(error)}) from None
    raise Unavailable(f"{operation}: {url} closed the connection", {url: "it closed the connection"})


async def _reachable(cluster: Cluster) -> tuple[str, ssl.SSLContext | None]:
    """The address of a node that answers, and accepts the token; for https, also the TLS context."""
    trouble: Unavailable | None = None
    for url in cluster.urls:
        address = Node.parse(url)
        node = cluster.at(url)
        try:
            await node.call("raft.leader")
            return address.url, node.tls if address.is_secure else None
        except Unavailable as error:
            trouble = error
    raise trouble or Unavailable("there is no address")
