"""A handler of aiohttp that answers a constant: what HTTP itself costs in Python."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp

from dss_dev.local_cluster import free_ports
from peers.processes import Processes
from peers.work import Work

PROGRAM = "bare aiohttp"
DURABILITY = "none"
_SERVER = """
import sys, uvloop
from aiohttp import web
ANSWER = {"ok": True, "value": {"n": 1}, "found": True, "hit": True, "version": 1, "state": "E", "node": "node-1"}
async def get(request):
    await request.json()
    return web.json_response(ANSWER)
async def application():
    app = web.Application()
    app.router.add_post("/get", get)
    return app
uvloop.install()
web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


@contextlib.contextmanager
def start(directory: Path) -> Iterator[str]:
    """Its URL."""
    (port,) = free_ports(1)
    with Processes(directory / "aiohttp") as processes:
        processes.start("aiohttp", [sys.executable, "-c", _SERVER, str(port)])
        processes.wait_for([port])
        yield f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def works(url: str, callers: int) -> AsyncIterator[list[Work]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=callers)) as session:

        async def get(caller: int) -> int:
            async with session.post(f"{url}/get", json={"key": "page"}) as answer:
                await answer.json()
            return 1

        yield [Work("get", PROGRAM, get)]
