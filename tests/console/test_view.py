"""The viewers of one node: how many there may be, and how they are served."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dss_console.live import view as module
from dss_console.live.requests import WatchCluster
from dss_console.live.view import LiveView, Viewer


class Node:
    """What a live view needs of a node to have viewers."""

    def __init__(self) -> None:
        self.peers: list[str] = []
        self.services: dict[str, Any] = {}

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
FEED: Any = SimpleNamespace(backlog=0, push=lambda event: None)


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
