"""Three nodes of etcd, called through its JSON gateway: no client for asyncio is maintained."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from dss_dev.local_cluster import free_ports
from peers.processes import Processes, find
from peers.work import Work

PROGRAM = "etcd, 3 nodes"
DURABILITY = "fsync on a majority"
NODES = 3


@contextlib.contextmanager
def start(directory: Path) -> Iterator[str]:
    """The URL of a follower or the leader: etcd does not say which.

    Raises:
        NotInstalled: see `find`.
    """
    program = find("etcd", "etcd-server")
    ports = free_ports(2 * NODES)
    clients = [f"http://127.0.0.1:{port}" for port in ports[:NODES]]
    peers = [f"http://127.0.0.1:{port}" for port in ports[NODES:]]
    members = ",".join(f"n{number}={url}" for number, url in enumerate(peers))
    with Processes(directory / "etcd") as processes:
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            flags = {
                "name": f"n{number}",
                "data-dir": f"n{number}",
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": members,
                "log-level": "error",
            }
            processes.start(f"n{number}", [program, *(f"--{name}={value}" for name, value in flags.items())])
        processes.wait_for(ports)
        yield clients[1]


@contextlib.asynccontextmanager
async def works(url: str, callers: int) -> AsyncIterator[list[Work]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=callers)) as session:

        async def call(path: str, **fields: Any) -> dict[str, Any]:
            async with session.post(url + path, json=fields) as answer:
                body: dict[str, Any] = await answer.json()
                if answer.status != 200:
                    raise RuntimeError(f"etcd {path}: {body}")
                return body

        lease = (await call("/v3/lease/grant", TTL=3600))["ID"]
        await call("/v3/kv/put", key=_text("page"), value=_text('{"n":1}'))

        async def lock(caller: int) -> int:
            held = await call("/v3/lock/lock", name=_text(f"lock-{caller}"), lease=lease)
            await call("/v3/lock/unlock", key=held["key"])
            return 1

        async def put(caller: int) -> int:
            await call("/v3/kv/put", key=_text(f"key-{caller}"), value=_text('{"n":1}'))
            return 1

        async def get(caller: int) -> int:
            await call("/v3/kv/range", key=_text("page"))
            return 1

        yield [Work("lock cycle", PROGRAM, lock), Work("put", PROGRAM, put), Work("get", PROGRAM, get)]


def _text(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
