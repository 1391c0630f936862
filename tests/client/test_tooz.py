"""The driver of tooz, `dss://`, on a real node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("tooz", reason="tooz is not installed")

import tooz
from tooz import coordination

from dss_dev.local_cluster import LocalCluster
from dss_tooz.names import Names, member_of, to_bytes, to_text

pytestmark = pytest.mark.cluster

Coordinator = Callable[..., Any]


@pytest.fixture
def url(real_node: LocalCluster, token: str, request: pytest.FixtureRequest) -> str:
    return real_node.nodes[0].url.replace("http://", f"dss://:{token}@") + f"/{request.node.name}"


@pytest.fixture
def start(url: str) -> Iterator[Coordinator]:
    """`start(b"member", option=…)`: a coordinator."""
    started: list[Any] = []

    def start(member: bytes, **options: Any) -> Any:
        coordinator = coordination.get_coordinator(url, member, **options)
        coordinator.start()
        started.append(coordinator)
        return coordinator

    yield start
    for coordinator in started:
        if coordinator.is_started:
            coordinator.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_member_without_heartbeat_leaves_its_groups_and_is_no_leader(start: Coordinator) -> None:
    alive, dead = start(b"alive", timeout=60), start(b"dead", timeout=5)
    seen: list[Any] = []
    for one in (dead, alive):
        one.join_group_create(b"workers")
        one.watch_elected_as_leader(b"workers", seen.append)
    dead.run_watchers()
    assert alive.get_leader(b"workers").get() == b"dead"
    assert alive.get_members(b"workers").get() == {b"alive", b"dead"}
    until(lambda: alive.get_members(b"workers").get() == {b"alive"})
    alive.run_watchers()
    assert [event.member_id for event in seen] == [b"dead", b"alive"]
    assert alive.get_leader(b"workers").get() == b"alive"


def test_a_member_joins_again_after_its_session_was_lost(start: Coordinator) -> None:
    member = start(b"member", timeout=3)
    member.join_group_create(b"workers", {"slots": 4})
    until(lambda: not member.get_members(b"workers").get())
    member.heartbeat()
    member.join_group_create(b"others")
    assert member.get_members_with_capabilities(b"workers").get() == {b"member": {"slots": 4}}


def test_a_lock_is_renewed_without_heartbeat(start: Coordinator) -> None:
    first, second = start(b"first", lock_timeout=6), start(b"second")
    lock = first.get_lock(b"key")
    assert lock.acquire()
    assert not second.get_lock(b"key").acquire(blocking=True, timeout=6.5)
    assert lock.is_still_owner()
    assert lock.release()
    assert not lock.is_still_owner()


def test_a_lock_that_was_lost_is_not_acquired(start: Coordinator) -> None:
    first, second = start(b"first", lock_timeout=3), start(b"second")
    lock = first.get_lock(b"key")
    assert lock.acquire()
    assert second.get_lock(b"key").break_()
    until(lambda: not lock.acquired)
    assert not lock.is_still_owner()
    assert not lock.release()
    assert lock.acquire()
    assert lock.acquired
    assert lock.release()
    assert not lock.acquired


def test_shared_locks_exclude_exclusive_ones(start: Coordinator) -> None:
    first, second = start(b"first"), start(b"second")
    shared, also_shared, exclusive = (one.get_lock(b"key") for one in (first, second, second))
    assert shared.acquire(shared=True)
    assert also_shared.acquire(shared=True)
    assert not exclusive.acquire(blocking=False)
    assert shared.release()
    assert also_shared.release()
    assert exclusive.acquire(blocking=False)
    assert exclusive.release()


def test_a_group_with_members_is_not_deleted(start: Coordinator) -> None:
    one, other = start(b"one"), start(b"other")
    one.join_group_create(b"workers")
    with pytest.raises(coordination.GroupNotEmpty):
        other.delete_group(b"workers").get()
    one.stop()
    other.delete_group(b"workers").get()
    assert other.get_groups().get() == []


def test_namespaces_are_apart(start: Coordinator) -> None:
    here, there = start(b"a"), start(b"a", namespace="another")
    here.create_group(b"workers").get()
    assert there.get_groups().get() == []


def test_a_coordinator_that_is_not_started(url: str) -> None:
    coordinator = coordination.get_coordinator(url, b"a")
    with pytest.raises(tooz.ToozError, match="not started"):
        coordinator.get_groups()


@pytest.mark.parametrize(
    ("address", "text"),
    [("dss://host?colour=red", "colour"), ("dss://host?timeout=0", "timeout"), ("dss://host:port", "a URL must be like")],
)
def test_wrong_urls(address: str, text: str) -> None:
    with pytest.raises(tooz.ToozError, match=text):
        coordination.get_coordinator(address, b"a")


def test_no_node() -> None:
    with pytest.raises(coordination.ToozConnectionError):
        coordination.get_coordinator("dss://127.0.0.1:1", b"a").start()


@pytest.mark.parametrize("id", [b"plain", b"with/slash %", "grün".encode(), bytes(range(256))])
def test_ids_are_bytes(id: bytes) -> None:
    assert to_bytes(to_text(id)) == id
    names = Names("shop")
    assert member_of(names.client(id, "run")) == id
    assert names.member(b"group", id).startswith(names.members(b"group"))
