"""A node's process from start to stop, the same for both servers.

The order of a stop: accept no more connections, end subscriptions, wait for calls in progress, stop Raft (which answers the calls that
still wait), wait until these answers are sent, close WebSockets, close connections. A second signal ends the waits for calls.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any, Protocol

import structlog

from dss_api import guard
from dss_api.in_progress import InProgress
from dss_api.tls import ServerTls
from dss_project.access import announce
from dss_project.config import NodeConfig
from dss_project.raft_worker import RaftWorker
from dss_project.watchdog import Watchdog

log = structlog.get_logger("node")

#: Raft writes back, hands leadership over and closes its files. A stop that takes longer hangs.
STOP_TIMEOUT_S = 15.0
#: How long to wait for the last answers after Raft has stopped.
LAST_ANSWERS_S = 1.0
POLL_S = 0.01


class WebServer(Protocol):
    """The part of a server that `live` uses."""

    #: None: it speaks HTTP
    tls: ServerTls | None

    async def accept(self, listening: socket.socket) -> None:
        """Serve connections from this socket."""

    def stop_accepting(self) -> None:
        """Close the listening socket. Connections stay open."""

    async def close(self, timeout_s: float) -> None:
        """Close the connections."""


async def live(config: NodeConfig, application: Any, in_progress: InProgress, server: WebServer, listening: socket.socket) -> int:
    """Run the node until a signal or a failure. Returns the process's exit code."""
    with Watchdog(config.watchdog_ms):
        return await _live(config, application, in_progress, server, listening)


async def _live(
    config: NodeConfig, application: Any, in_progress: InProgress, server: WebServer, listening: socket.socket
) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    worker = RaftWorker(config, application)
    try:
        await worker.start()
    except Exception as error:
        listening.close()
        log.error("node.cannot_start", why=_one_line(error))
        await _end()
        return 1
    await server.accept(listening)
    if server.tls is not None:
        loop.add_signal_handler(signal.SIGHUP, server.tls.reload)
    announce(config, guard.shared(), log)
    log.info("node.serving", url=config.url, listening=f"{config.rpc_host}:{config.rpc_port}", server=config.server)
    stopped = loop.create_task(stop.wait())
    await asyncio.wait((stopped, worker.failed), return_when=asyncio.FIRST_COMPLETED)
    has_failed = worker.failed.done()
    log.info("node.stopping", calls_in_progress=in_progress.calls, because="failure" if has_failed else "signal")
    stop.set()
    server.stop_accepting()
    if not has_failed:
        await in_progress.end_subscriptions(config.drain_ms / 1000)
        await _until_idle(in_progress, config.drain_ms / 1000, hurry)
    clean = await _stop_raft(worker)
    await _until_idle(in_progress, LAST_ANSWERS_S, hurry)
    await in_progress.close_sockets(LAST_ANSWERS_S)
    # As in `_until_idle`: sent in the next turn.
    await asyncio.sleep(POLL_S)
    await server.close(LAST_ANSWERS_S)
    await _end(stopped)
    log.info("node.stopped")
    return 0 if clean and not has_failed else 1


async def _until_idle(in_progress: InProgress, timeout_s: float, hurry: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    # Polled, but only during a stop; an event would slow down every call.
    while in_progress.calls and not hurry.is_set() and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    # What was answered in this turn of the event loop is sent in the next.
    await asyncio.sleep(POLL_S)


async def _stop_raft(worker: RaftWorker) -> bool:
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await worker.stop()
    except TimeoutError:
        log.error("node.stop_timed_out", seconds=STOP_TIMEOUT_S)
        return False
    except Exception:
        log.exception("node.stop_failed")
        return False
    return True


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these and all other tasks, and wait until they have ended."""
    rest = {*tasks, *asyncio.all_tasks()} - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.wait(rest, timeout=LAST_ANSWERS_S) if rest else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
