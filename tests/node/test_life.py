"""The order in which a node's process starts and stops, with any server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from channels.layers import get_channel_layer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter
from channels.worker import Worker
from django.conf import settings
from structlog.testing import capture_logs

from dss_api import running
from dss_project import asgi, runtime
from dss_project.http_entry import ANOTHER_SERVER
from dss_project.raft_worker import RaftConsumer, RaftWorker
from dss_project.server.life import live

#: the last steps
END = ("close sockets", "close")

APPLICATION = ProtocolTypeRouter({"channel": ChannelNameRouter({"raft": RaftConsumer.as_asgi()})})


@dataclass
class Stage:
    """A server, a node and calls in progress that only record what happens."""

    happened: list[str] = field(default_factory=list)
    calls: int = 0
    accepting: asyncio.Event = field(default_factory=asyncio.Event)
    stopped_accepting: asyncio.Event = field(default_factory=asyncio.Event)
    on_failure: Any = None
    tls: Any = None
    refusal: Exception | None = None

    async def accept(self, listening: socket.socket) -> None:
        self.happened.append("accept")
        self.accepting.set()

    def stop_accepting(self) -> None:
        self.happened.append("stop accepting")
        self.stopped_accepting.set()

    async def end_subscriptions(self, timeout_s: float) -> None:
        self.happened.append("end subscriptions")

    async def close_sockets(self, timeout_s: float) -> None:
        self.happened.append("close sockets")

    async def close(self, timeout_s: float) -> None:
        self.happened.append("close")

    async def start(self, config: Any, on_failure: Any = None) -> None:
        self.happened.append("start raft")
        self.on_failure = on_failure
        if self.refusal:
            raise self.refusal

    async def stop(self) -> None:
        self.happened.append(f"stop raft with {self.calls} calls")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(runtime, "start", stage.start)
    monkeypatch.setattr(runtime, "stop", stage.stop)
    return stage


async def run(stage: Stage, drain_ms: int = 5000) -> int:
    listening = socket.create_server(("127.0.0.1", 0))
    try:
        return await live(replace(settings.NODE, drain_ms=drain_ms), APPLICATION, stage, stage, listening)  # type: ignore[arg-type]
    finally:
        listening.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


async def test_calls_finish_before_raft_stops(stage: Stage) -> None:
    async def scene() -> None:
        await stage.accepting.wait()
        stage.calls = 1
        os.kill(os.getpid(), signal.SIGTERM)
        await stage.stopped_accepting.wait()
        stage.calls = 0

    actor = asyncio.create_task(scene())
    assert await run(stage) == 0
    assert stage.happened == ["start raft", "accept", "stop accepting", "end subscriptions", "stop raft with 0 calls", *END]
    assert actor.done()


async def test_calls_that_wait_longer_are_answered_by_raft(stage: Stage) -> None:
    async def scene() -> None:
        await stage.accepting.wait()
        stage.calls = 1
        os.kill(os.getpid(), signal.SIGTERM)

    actor = asyncio.create_task(scene())
    assert await run(stage, drain_ms=20) == 0
    assert stage.happened[-3:] == ["stop raft with 1 calls", *END]
    assert actor.done()


async def test_a_node_that_cannot_start_says_why_in_one_line(stage: Stage) -> None:
    stage.refusal = RuntimeError("the log\nbelongs to another node")
    with capture_logs() as events:
        assert await run(stage) == 1
    assert stage.happened == ["start raft"]
    assert [(event["event"], event["why"]) for event in events] == [("node.cannot_start", "the log belongs to another node")]


async def test_a_worker_that_breaks_before_the_node_starts_is_reported(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("no connection to the database")

    monkeypatch.setattr(RaftWorker, "handle", broken)
    with capture_logs() as events:
        assert await run(stage) == 1
    assert stage.happened == []
    assert [(event["event"], event["why"]) for event in events] == [("node.cannot_start", "no connection to the database")]


async def test_a_worker_that_ends_later_stops_the_node(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        await stage.accepting.wait()
        raise RuntimeError("the channel layer is gone")

    monkeypatch.setattr(Worker, "handle", broken)
    assert await run(stage) == 1
    assert stage.happened == ["start raft", "accept", "stop accepting", "stop raft with 0 calls", *END]


async def test_control_messages_reach_the_node(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    transferred = asyncio.Event()

    class Node:
        async def start_election(self, force: bool) -> None:
            asked.append(("start_election", force))

        async def transfer(self, to: str) -> None:
            asked.append(("transfer", to))
            transferred.set()

    async def scene() -> None:
        await stage.accepting.wait()
        await get_channel_layer().send("raft", {"type": "raft.start_election"})
        await get_channel_layer().send("raft", {"type": "raft.transfer", "to": "node-2"})
        await transferred.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(running, "node", Node)
    actor = asyncio.create_task(scene())
    assert await run(stage) == 0
    assert actor.done()
    assert asked == [("start_election", False), ("transfer", "node-2")]


async def test_a_node_that_fails_stops_immediately(stage: Stage) -> None:
    async def scene() -> None:
        await stage.accepting.wait()
        stage.calls = 1
        stage.on_failure(RuntimeError("the disk lies"))

    actor = asyncio.create_task(scene())
    assert await run(stage, drain_ms=600_000) == 1
    assert stage.happened == ["start raft", "accept", "stop accepting", "stop raft with 1 calls", *END]
    assert actor.done()


async def test_nothing_is_left_running(stage: Stage) -> None:
    async def scene() -> None:
        await stage.accepting.wait()
        os.kill(os.getpid(), signal.SIGINT)

    actor = asyncio.create_task(scene())
    await run(stage)
    assert asyncio.all_tasks() - {asyncio.current_task(), actor} == set()


async def test_another_server_refuses_to_start() -> None:
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    inbox.put_nowait({"type": "lifespan.startup"})
    await asgi.application({"type": "lifespan"}, inbox.get, send)
    assert said == [{"type": "lifespan.startup.failed", "message": ANOTHER_SERVER}]


async def test_a_request_that_has_not_come_through_the_listener_is_refused() -> None:
    """A server without the lifespan protocol (`daphne dss_project.asgi:application`) would show pages without their checks."""
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    for path in ("/metrics", "/", "/health"):
        said.clear()
        await asgi.application({"type": "http", "method": "GET", "path": path, "headers": []}, None, send)
        assert said[0]["status"] == 503
