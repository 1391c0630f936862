"""A node's process from start to stop, the same under either server.

The order at a stop: take no more connections, end subscriptions, let calls under way finish, stop Raft (which answers those that
still wait), give those answers a moment to leave, say goodbye to WebSockets, close. A signal during that hurries it on.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any, Protocol

import structlog
from channels.layers import get_channel_layer
from channels.worker import Worker

from dss_project import runtime
from dss_project.config import NodeConfig
from dss_project.consumers import RaftConsumer, StartSignal
from dss_project.frontdoor import FrontDoor

log = structlog.get_logger("node")

#: Raft's stop writes back, hands leadership over and closes its files; longer means that something hangs.
STOP_TIMEOUT_S = 15.0
#: After Raft has stopped, its last answers get so long to leave.
LAST_ANSWERS_S = 1.0
POLL_S = 0.01


class WebServer(Protocol):
    """What `live` needs of a server."""

    async def accept(self, listening: socket.socket) -> None:
        """Serve connections from this socket."""

    def stop_accepting(self) -> None:
        """Close the listening socket; connections stay."""

    async def close(self) -> None:
        """Close the connections."""


async def live(config: NodeConfig, application: Any, front: FrontDoor, server: WebServer, listening: socket.socket) -> int:
    """Run the node until it is told to stop, or fails. Returns the process's exit code."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    started = RaftConsumer.signal = StartSignal()
    worker = await _listen_on_channel(application, started)
    try:
        await started.outcome
    except Exception as error:
        listening.close()
        log.error("node.cannot_start", why=_one_line(error))
        await _end(worker)
        return 1
    await server.accept(listening)
    log.info("node.serving", url=config.url, listening=f"{config.rpc_host}:{config.rpc_port}", server=config.server)
    stopped = loop.create_task(stop.wait())
    await asyncio.wait((stopped, started.failed), return_when=asyncio.FIRST_COMPLETED)
    has_failed = started.failed.done()
    log.info("node.stopping", calls_under_way=front.calls_under_way, because="failure" if has_failed else "signal")
    stop.set()
    server.stop_accepting()
    if not has_failed:
        await front.end_subscriptions(config.drain_ms / 1000)
        await _until_idle(front, config.drain_ms / 1000, hurry)
    clean = await _stop_raft()
    await _until_idle(front, LAST_ANSWERS_S, hurry)
    await front.close_sockets()
    # As above: written in the next turn.
    await asyncio.sleep(POLL_S)
    await server.close()
    await _end(worker, stopped)
    log.info("node.stopped")
    return 0 if clean and not has_failed else 1


async def _listen_on_channel(application: Any, started: StartSignal) -> asyncio.Task[None]:
    """Let Channels' worker make the consumer that starts Raft. Whatever ends the consumer or the worker first is told as well."""

    async def told(scope: Any, receive: Any, send: Any) -> None:
        try:
            await application(scope, receive, send)
        except Exception as error:
            started.report_no_start(error)
            raise

    def ended(worker: asyncio.Task[None]) -> None:
        if worker.cancelled():
            return
        error = worker.exception() or RuntimeError("the worker of the channel `raft` has ended")
        if started.outcome.done():
            log.error("node.deaf_to_its_channel", why=_one_line(error))
        started.report_no_start(error)

    layer = get_channel_layer()
    worker = asyncio.create_task(Worker(told, ["raft"], layer).arun())
    worker.add_done_callback(ended)
    await layer.send("raft", {"type": "raft.start"})
    return worker


async def _until_idle(front: FrontDoor, timeout_s: float, hurry: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    # Asked again and again, but only during a stop: an event would cost every call.
    while front.calls_under_way and not hurry.is_set() and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    # What was answered in this turn is written in the next.
    await asyncio.sleep(POLL_S)


async def _stop_raft() -> bool:
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await runtime.stop()
    except TimeoutError:
        log.error("node.stop_timed_out", seconds=STOP_TIMEOUT_S)
        return False
    except Exception:
        log.exception("node.stop_failed")
        return False
    return True


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these tasks and whatever else still runs, and wait until all are gone."""
    rest = {*tasks, *asyncio.all_tasks()} - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.wait(rest, timeout=LAST_ANSWERS_S) if rest else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
