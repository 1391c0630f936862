"""Empties a cluster between two tests. Calls are made through the public API only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dss_client import AsyncClient, Client
from dss_client.watch import LockWatch

ROWS = 1000


def purge(janitor: Client, urls: Sequence[str], token: str) -> None:
    """Delete all locks, topics and cached values.

    Args:
        urls: of all nodes: each knows which keys it has cached.
    """
    janitor._run(_purge(janitor._client, urls, token))


async def _purge(dss: AsyncClient, urls: Sequence[str], token: str) -> None:
    await asyncio.gather(_release_locks(dss), _delete_topics(dss))
    if len(urls) == 1:
        await _delete_cached(dss, dss)
        return
    for url in urls:
        async with AsyncClient(url, token) as node:
            await _delete_cached(dss, node)


async def _release_locks(dss: AsyncClient) -> None:
    async with LockWatch(dss._running(), "") as watch:
        held = [(key, client) for key, holders in watch.holders.items() for client in holders]
    # A release by the holder's name: after a forced one, the key would keep its lock delay.
    await asyncio.gather(*(dss.call("locks.release", key=key, client=client) for key, client in held))


async def _delete_topics(dss: AsyncClient) -> None:
    answer = await dss.call("queue.stats")
    await asyncio.gather(*(dss.call("queue.topic_delete", topic=topic["topic"]) for topic in answer["topics"]))


async def _delete_cached(dss: AsyncClient, node: AsyncClient) -> None:
    while True:
        lines: list[dict[str, Any]] = (await node.call("cache.lines", limit=ROWS))["lines"]
        await asyncio.gather(*(dss.cache.delete(line["key"]) for line in lines))
        if len(lines) < ROWS:
            return
