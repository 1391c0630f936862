"""The viewers of one node: how many there may be, and how they are served."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from dss_api.caller import Caller, set_caller
from dss_api.errors import Refused
from dss_api.rights import OF_GROUP
from dss_console.live import view as module
from dss_console.live.requests import WatchCluster
from dss_console.live.view import VIEWERS_PER_CALLER_MAX, LiveView, Viewer
from dss_queue import engine_numbers


class Node:
    """What a live view needs of a node to have viewers."""

    def __init__(self) -> None:
        self.peers: list[str] = []
        numbers = SimpleNamespace(want=lambda shown=(): None)
        self.services: dict[str, Any] = {engine_numbers.SERVICE: numbers}

    def machine(self, name: str) -> Any:
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *arguments: None
        raise AttributeError(name)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> LiveView:
    monkeypatch.setattr(module, "Reporter", lambda node, cache: SimpleNamespace(recorder=None))
    return LiveView(Node(), SimpleNamespace(lines=None))  # type: ignore[arg-type]


HEAD = WatchCluster(head=True)


def feed_of(address: str) -> Any:
    return SimpleNamespace(backlog=0, push=lambda event: None, address=address)


FEED = feed_of("192.0.2.1")


async def test_the_loop_has_a_turn_between_two_viewers(live: LiveView, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for all viewers together could take longer than an election timeout."""
    monkeypatch.setattr(module, "PUSH_S", 0)
    turns: list[str] = []
    done = asyncio.Event()

    def push(viewer: Viewer, moment: Any) -> None:
        turns.append("push")
        asyncio.get_running_loop().call_soon(turns.append, "turn")
        if turns.count("push") == 3:
            done.set()

    monkeypatch.setattr(live, "_push", push)
    with live.viewer(HEAD, FEED) as first, live.viewer(HEAD, FEED) as second, live.viewer(HEAD, FEED) as third:
        for viewer in (first, second, third):
            viewer.sent["verdict"] = "shown"
        serving = asyncio.create_task(live._serve())
        await done.wait()
        serving.cancel()
        assert turns[:5] == ["push", "turn", "push", "turn", "push"]


def watch(live: LiveView, stack: ExitStack, address: str, count: int) -> None:
    for _ in range(count):
        stack.enter_context(live.viewer(HEAD, feed_of(address)))


async def test_one_caller_leaves_views_for_others(live: LiveView) -> None:
    with ExitStack() as stack:
        watch(live, stack, "192.0.2.1", VIEWERS_PER_CALLER_MAX)
        with pytest.raises(Refused, match="over_limit"):
            watch(live, stack, "192.0.2.1", 1)
        watch(live, stack, "192.0.2.2", 1)
        # A caller with a name is counted by it, wherever it is.
        for name in ("user alice", "user bob"):
            set_caller(Caller(name, OF_GROUP["viewer"]))
            for number in range(VIEWERS_PER_CALLER_MAX):
                watch(live, stack, f"198.51.100.{number}", 1)
            with pytest.raises(Refused, match="over_limit"):
                watch(live, stack, "203.0.113.1", 1)
    with live.viewer(HEAD, FEED):
        pass
