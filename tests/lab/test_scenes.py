"""A scene that is left removes what it has made; and a step accepts only what is right."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from dss_dev.lab import lab as lab_module
from dss_dev.lab.access import Access
from dss_dev.lab.desk import Desk
from dss_dev.lab.lab import Lab, Said
from dss_dev.lab.relays import Relays
from dss_dev.lab.scenes.election import Election
from dss_dev.lab.scenes.scene import Ask, Tell
from dss_dev.lab.server import Site
from dss_dev.local_cluster import LocalNode

IDS = ("node-1", "node-2", "node-3")


class Locks:
    """In place of the cluster: who has which lock, and the calls that wait for one."""

    def __init__(self) -> None:
        self.holders: dict[str, str] = {}
        #: set when a wait may go on
        self._released = threading.Condition()
        self.waiting: set[str] = set()

    def call(self, node: LocalNode, method: str, path: str, body: Any) -> Said:
        with self._released:
            if path == "/lock/acquire":
                key, client = body["key"], body["client"]
                if body.get("wait_ms") and client == "bob":
                    return Said(409, {"deadlock": True, "code": "deadlock"})
                if body.get("wait_ms"):
                    self.waiting.add(key)
                    assert self._released.wait_for(lambda: key not in self.holders, 60)
                    self.waiting.discard(key)
                self.holders[key] = client
            elif path == "/lock/release" and self.holders.get(body["key"]) == body["client"]:
                del self.holders[body["key"]]
                self._released.notify_all()
            elif path.startswith("/lock/status"):
                return Said(200, {"waiters": list(self.waiting)})
            return Said(200, {"fencing_token": 7})


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Locks:
    locks = Locks()
    monkeypatch.setattr(lab_module, "_call", locks.call)
    monkeypatch.setattr(LocalNode, "is_ready", lambda node: True)
    return locks


@pytest.fixture
def site(locks: Locks, tmp_path: Path) -> Site:
    desk = Desk([])
    desk.states = dict.fromkeys(IDS, "running")
    nodes = [LocalNode(name, 1, {}, tmp_path / "log") for name in IDS]
    return Site(Lab(nodes, desk, cast(Relays, SimpleNamespace(cut_off=set()))), Access(1), lambda: None)


async def take(site: Site, count: int) -> None:
    """Take so many steps of the present scene."""
    for number in range(count + 1):
        async with asyncio.timeout(60):
            while site.scene is None or site.scene.is_busy:
                await site.lab.wait_for_change(site.lab.version, 20)
        assert site.scene.problem == ""
        if number < count:
            assert site.scene.step(None)


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_a_scene_that_is_left_midway_keeps_no_locks(site: Site, locks: Locks, steps: int) -> None:
    await site._begin("deadlock")
    await take(site, steps)
    assert set(locks.holders) == {"lab/A", "lab/B"}
    await site.leave()
    assert site.scene is None
    assert site._tidying is not None
    await site._tidying
    assert locks.holders == {}, "also not the lock that alice waited for"


async def test_the_page_says_that_a_scene_was_not_removed(site: Site, locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    async def restore() -> None:
        raise OSError("node-2 does not start")

    await site._begin("deadlock")
    await take(site, 1)
    with monkeypatch.context() as patched:
        patched.setattr(site.lab, "restore", restore)
        await site.leave()
        assert site._tidying is not None
        await asyncio.wait([site._tidying])
    assert site._tidying.exception() is None
    said = msgspec.json.decode(site._state())["left_over"]
    assert said.startswith("What the scene “Deadlock” has made")
    assert "node-2 does not start" in said
    await site._begin("deadlock")
    await take(site, 0)
    assert site.left_over == ""
    assert locks.holders == {}
    await site.close()


async def test_the_next_scene_begins_when_the_one_before_is_removed(site: Site, locks: Locks) -> None:
    await site._begin("deadlock")
    await take(site, 2)
    await site._begin("deadlock")
    await take(site, 0)
    assert locks.holders == {}
    await site.close()


async def test_the_lab_ends_without_waiting_for_the_cluster(site: Site, locks: Locks) -> None:
    await site._begin("deadlock")
    await take(site, 1)
    await site.close()
    assert set(locks.holders) == {"lab/A", "lab/B"}


class Won:
    """In place of the lab: node-2 wins the election after node-1."""

    ids = list(IDS)

    def __init__(self) -> None:
        self.done: list[str] = []

    async def leader(self, among: Any = None) -> tuple[str, int]:
        return ("node-2", 3) if among else ("node-1", 2)

    async def until_voted(self, candidate: str, term: int) -> list[str]:
        return ["node-3"]

    async def until_level(self, node_ids: list[str], leader: str) -> None:
        self.done.append(f"level {' '.join(node_ids)}")

    async def act(self, action: str, node_id: str) -> None:
        self.done.append(f"{action} {node_id}")

    async def call(self, *call: Any, **options: Any) -> Said:
        return Said(200, {})

    def changed(self) -> None:
        pass


async def test_who_can_lead_is_all_that_can_and_not_the_one_that_did() -> None:
    lab = Won()
    script = Election(cast(Lab, lab)).play()
    asked: Ask | Tell = await anext(script)
    while not (isinstance(asked, Ask) and "can lead" in asked.question):
        asked = await anext(script)
    told = await anext(script)
    assert isinstance(told, Tell)
    assert [asked.options[number] for number in told.right] == ["either of the two"]
    assert lab.done == ["level node-2 node-3", "kill node-1"], "both logs are equal, so both can"
    await script.aclose()
