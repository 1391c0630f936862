"""`LockWatch`, against fake nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dss_client import AsyncClient, OverLimit, Unavailable, core, watch
from dss_client.barrier import BarrierSpec, Party
from dss_client.entry import Entry
from dss_client.watch import LockWatch

Make = Callable[..., AsyncClient]
Until = Callable[[Callable[[], Any]], Awaitable[None]]
MakeNode = Callable[[], Awaitable[Any]]

NO_LEADER = {"ok": False, "status": 503, "code": "no_leader", "detail": "no leader is known"}


def state(index: int, *keys: str, more: bool = False) -> dict[str, Any]:
    locks = [{"key": key, "holders": [{"client": "bob", "fencing_token": index}]} for key in keys]
    return {"event": {"kind": "state", "index": index, "locks": locks, "more": more}}


async def test_it_goes_to_another_node_with_the_client(make_node: MakeNode, make_client: Make, until: Until) -> None:
    first, second = await make_node(), await make_node()
    first.answers["locks.watch"], second.answers["locks.watch"] = state(7, "a"), state(9, "b")
    first.answers["cache.get"] = NO_LEADER
    second.answers["cache.get"] = {"ok": True, "value": 1, "found": True, "version": 1, "hit": True, "state": "E"}
    client = make_client(first, second)
    async with LockWatch(client._running(), "") as watch:
        assert (watch.holders, watch.index) == ({"a": {"bob": 7}}, 7)
        # Another call finds out that the node is of no use. The watch must not stay there.
        assert await client.cache.get("key") == 1
        await until(lambda: watch.holders == {"b": {"bob": 9}})
    await until(lambda: second.requests("cancel"))


async def test_it_goes_on_when_the_node_ends(make_node: MakeNode, make_client: Make, until: Until) -> None:
    first, second = await make_node(), await make_node()
    first.answers["locks.watch"], second.answers["locks.watch"] = state(7, "a"), state(9)
    async with LockWatch(make_client(first, second)._running(), "") as watch:
        await first.stop()
        await until(lambda: watch.holders == {})


async def test_watches_that_end_at_once_begin_again_after_pauses_by_chance(
    node: Any, client: AsyncClient, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []

    def pause_s(count: int) -> float:
        failures.append(count)
        return 0.0

    monkeypatch.setattr(watch, "pause_s", pause_s)
    node.answers["locks.watch"] = [{"ok": True}, {"ok": True}, state(7, "a")]
    async with LockWatch(client._running(), ""):
        assert failures == [1, 2]


async def test_a_subscription_that_lasted_goes_on_without_a_pause(
    node: Any, client: AsyncClient, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []
    ahead_s = 0.0
    loop, clock = asyncio.get_running_loop(), core.now

    def pause_s(count: int) -> float:
        # A client of another test may still be looking for its node.
        if asyncio.get_running_loop() is loop:
            failures.append(count)
        return 0.0

    monkeypatch.setattr(core, "now", lambda: clock() + ahead_s)
    monkeypatch.setattr(core, "pause_s", pause_s)
    node.answers["locks.watch"] = state(7, "a")
    async with LockWatch(client._running(), ""):
        for count in (1, 2, 3):
            await until(lambda count=count: len(node.requests("locks.watch")) == count)
            ahead_s += core.LASTED_S
            for connection in list(node.connections):
                connection.transport.abort()
        await until(lambda: len(node.requests("locks.watch")) == 4)
    assert failures == [1, 1, 1]


async def test_the_state_may_come_in_parts(node: Any, client: AsyncClient) -> None:
    node.answers["locks.watch"] = state(7, "a", more=True)
    watch = LockWatch(client._running(), "")
    for event in (state(7, "a", more=True), state(7, "b")):
        watch._on_event(event["event"])
    assert set(watch.holders) == {"a", "b"}


async def test_a_refused_watch(node: Any, client: AsyncClient) -> None:
    node.answers["locks.watch"] = {"ok": False, "status": 429, "code": "over_limit", "limit": "watches_max", "detail": ""}
    with pytest.raises(OverLimit):
        async with LockWatch(client._running(), ""):
            pass


async def test_no_state_in_time(node: Any, make_client: Make) -> None:
    node.answers["locks.watch"] = None
    client = make_client(node, timeout=0.1)
    with pytest.raises(Unavailable):
        async with LockWatch(client._running(), ""):
            pass


async def test_a_barrier_keeps_what_its_watch_has_not_seen(node: Any, client: AsyncClient) -> None:
    """A party that has met is forgotten when its lock is gone, but not while the watch may lag behind the grant of that lock."""
    node.answers["cache.put"] = {"ok": True, "version": 2, "state": "M"}
    watch = LockWatch(client._running(), "barrier/b/")
    watch._on_event(state(20, "barrier/b/here", "barrier/b/other/there")["event"])
    party = Party(client._running(), client.cache, client._owners, BarrierSpec("b", 2, ttl=10, wait=None))
    met = {"here": [1, 0, 5], "gone": [1, 1, 6], "unseen": [1, 2, 21]}
    entry = Entry("barrier/b", {"met": met, "left": {"also gone": 20, "also unseen": 22}, "meetings": 1}, True, 1)
    assert await party._decide(entry, watch, {"new": [2, 0, 30]}, {}, 2)
    (put,) = node.requests("cache.put")
    assert put["value"] == {
        "met": {"here": [1, 0, 5], "unseen": [1, 2, 21], "new": [2, 0, 30]},
        "left": {"also unseen": 22},
        "meetings": 2,
    }
    assert put["if_version"] == 1
    assert list(party._present(watch)) == ["here"]
