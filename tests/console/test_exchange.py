"""Leases and reports between nodes, without processes: nothing is sent while no page is open."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dss_console.live import exchange as module
from dss_console.live.exchange import FRESH_S, LEASE_MS, REPORT_S, Exchange
from dss_console.live.messages import Lease, Report, Told, decode, encode


class FakeNode:
    """A node with two peers that keeps what it sends."""

    def __init__(self) -> None:
        self.peers = ["node-2", "node-3"]
        self.sent: list[tuple[str, Any]] = []
        self.silent: dict[str, int | None] = {"node-2": 0, "node-3": 0}

    def on_channel(self, channel: str, callback: Any) -> None:
        self.receive = callback

    def on_peer_up(self, callback: Any) -> None:
        self.peer_is_up = callback

    def on_peer_down(self, callback: Any) -> None:
        self.peer_is_down = callback

    def is_linked(self, peer: str) -> bool:
        return self.silent[peer] is not None

    def silent_ms(self, peer: str) -> int | None:
        return self.silent[peer]

    def send(self, peer: str, channel: str, data: bytes) -> None:
        self.sent.append((peer, decode(data)))

    def take(self, kind: type) -> list[tuple[str, Any]]:
        taken = [(peer, message) for peer, message in self.sent if isinstance(message, kind)]
        self.sent.clear()
        return taken


def make_report(node: str, since: int = 0, events: int = 0, incarnation: int = 1) -> Report:
    told = [Told(since + n + 1, 0, "leader", node, "", "", 1) for n in range(events)]
    return Report(node, incarnation, 0, "0", 1, 0, "", 0, 0, 0, 0, "", 0, 0, 0.0, 0, 0, 0, 0, "", {}, told, {}, [])


class Setting:
    """An exchange on a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.node = FakeNode()
        self.reports = 0
        self.exchange = Exchange(self.node, SimpleNamespace(report=self._report), lambda: self.now_s)  # type: ignore[arg-type]

    def _report(self, since: int, keys: list[str], traced: str) -> Report:
        self.reports += 1
        return make_report("node-1", since)


async def test_a_node_without_viewers_sends_nothing() -> None:
    setting = Setting()
    for peer in setting.node.peers:
        setting.node.peer_is_up(peer)
    assert setting.node.sent == []


async def test_viewers_lease_reports_and_release_them() -> None:
    setting = Setting()
    setting.exchange.is_viewing = True
    setting.exchange.keys = ["k"]
    setting.exchange.renew()
    assert setting.node.take(Lease) == [(peer, Lease(LEASE_MS, 0, ["k"], "")) for peer in ("node-2", "node-3")]
    setting.node.silent["node-3"] = None
    setting.exchange.release()
    assert setting.node.take(Lease) == [("node-2", Lease(-1, 0, ["k"], ""))]
    setting.node.peer_is_up("node-2")
    assert setting.node.sent == [], "no page is open any longer"


async def test_a_leased_node_reports_twice_a_second_until_the_lease_ends(monkeypatch: Any) -> None:
    setting = Setting()
    ticks: asyncio.Queue[float] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        setting.now_s += await ticks.get()

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    for _ in range(5):
        setting.node.receive("node-2", encode(Lease(LEASE_MS, 0, [], "")))
    assert setting.reports == 1, "one viewer gets one report, however often it asks"
    for expected in (2, 3, 4, 5, 6):
        ticks.put_nowait(REPORT_S)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert setting.reports == expected
    for _ in range(4):
        ticks.put_nowait(REPORT_S)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert setting.reports == 6, "the lease was not renewed"


async def test_a_page_that_is_rendered_once_asks_once() -> None:
    setting = Setting()
    looking = asyncio.create_task(setting.exchange.look_once(["k"], ""))
    await asyncio.sleep(0)
    assert setting.node.take(Lease) == [(peer, Lease(0, 0, ["k"], "")) for peer in ("node-2", "node-3")]
    setting.now_s += 0.01
    for peer in setting.node.peers:
        setting.node.receive(peer, encode(make_report(peer)))
    await looking
    setting.node.receive("node-2", encode(Lease(0, 0, [], "")))
    setting.now_s += 1
    await asyncio.sleep(0)
    assert setting.reports == 1


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_cancelled_look_ends_also_when_the_reports_arrive_with_it(turns: int) -> None:
    setting = Setting()
    looking = asyncio.create_task(setting.exchange.look_once(["k"], ""))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    setting.now_s += 0.01
    for peer in setting.node.peers:
        setting.node.receive(peer, encode(make_report(peer)))
    for _ in range(turns):
        await asyncio.sleep(0)
    if looking.cancel():
        with pytest.raises(asyncio.CancelledError):
            await looking


async def test_events_come_once_also_after_a_restart() -> None:
    setting = Setting()
    remote = setting.exchange.remote("node-2")
    for told in (make_report("node-2", 0, 3), make_report("node-2", 1, 3), make_report("node-2", 0, 1, incarnation=2)):
        setting.node.receive("node-2", encode(told))
    assert [event.seq for event in remote.events] == [1, 2, 3, 4, 1]


async def test_silence_is_counted_from_the_last_word_of_any_kind() -> None:
    setting = Setting()
    setting.node.silent["node-2"] = None
    setting.now_s += 7
    assert setting.exchange.silent_ms("node-2") == 7000, "nothing has arrived since the start"
    setting.node.silent["node-2"] = 4000
    assert setting.exchange.silent_ms("node-2") == 4000
    setting.node.receive("node-2", encode(make_report("node-2")))
    assert setting.exchange.silent_ms("node-2") == 0
    setting.now_s += 2
    assert setting.exchange.silent_ms("node-2") == 2000
    setting.node.peer_is_down("node-2")
    assert setting.exchange.silent_ms("node-2") == 2000, "a link that is given up is no sign of life"
    setting.node.receive("node-2", b"\x01\xff garbage")


async def looked(setting: Setting, keys: list[str], traced: str = "", *, answers: bool = True) -> int:
    """How many members a page asks."""
    looking = asyncio.create_task(setting.exchange.look_once(keys, traced))
    await asyncio.sleep(0)
    asked = setting.node.take(Lease)
    for peer, _ in asked if answers else ():
        setting.node.receive(peer, encode(make_report(peer)))
    if answers:
        await looking
    else:
        looking.cancel()
    return len(asked)


async def test_pages_share_a_report_that_is_new_and_has_what_they_show() -> None:
    setting = Setting()
    assert await looked(setting, ["k", "l"]) == 2
    for _ in range(20):
        setting.now_s += FRESH_S / 30
        assert await looked(setting, ["k"]) == 0
    assert await looked(setting, ["other"]) == 2, "the report does not have this key"
    assert await looked(setting, ["k"]) == 2
    assert await looked(setting, ["k"], "k") == 2, "it does not have the changes of this key"
    assert await looked(setting, ["k"], "k") == 0
    assert await looked(setting, ["k"]) == 0
    setting.now_s += FRESH_S + 0.01
    assert await looked(setting, ["k"]) == 2, "it is old"


async def test_a_page_waits_for_the_report_that_another_has_asked_for() -> None:
    setting = Setting()
    assert await looked(setting, ["k"], answers=False) == 2
    setting.now_s += FRESH_S / 2
    second = asyncio.create_task(setting.exchange.look_once(["k"], ""))
    await asyncio.sleep(0)
    assert setting.node.take(Lease) == []
    assert not second.done()
    for peer in setting.node.peers:
        setting.node.receive(peer, encode(make_report(peer)))
    await second


async def test_a_report_for_viewers_is_good_for_a_page_that_shows_the_same() -> None:
    setting = Setting()
    setting.exchange.is_viewing, setting.exchange.keys = True, ["k"]
    assert await looked(setting, ["k", "l"]) == 2
    setting.now_s += 0.01
    for peer in setting.node.peers:
        setting.node.receive(peer, encode(make_report(peer)))
    assert await looked(setting, ["k"]) == 0
    assert await looked(setting, ["k", "l"]) == 2, "the last report was for the viewers"
    setting.exchange.keys = ["l"]
    setting.exchange.renew()
    setting.exchange.release()
    setting.node.take(Lease)
    assert await looked(setting, ["k"]) == 2, "a report for these viewers may have arrived meanwhile"
