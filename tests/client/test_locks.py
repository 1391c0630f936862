"""Leases, renewals and losses, against a fake node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dss_client import AsyncClient, Deadlock, LockHeld, LockLost, LockNotHeld, LockTimeout, Unavailable, WrongUse, acquiring
from dss_client import held as held_module

Make = Callable[..., AsyncClient]
Until = Callable[[Callable[[], Any]], Awaitable[None]]
MakeNode = Callable[[], Awaitable[Any]]

NO_LEADER = {"ok": False, "status": 503, "code": "no_leader", "detail": "no leader is known"}
LOST = {"ok": False, "status": 409, "code": "lock_lost", "detail": "the lease has ended", "keys": ["k"]}
HOLDER = {"key": "k", "client": "bob", "mode": "exclusive", "fencing_token": 3, "expires_in_ms": 100}


def granted(ttl_ms: int | None, **more: Any) -> dict[str, Any]:
    return {"ok": True, "fencing_token": 7, "expires_in_ms": ttl_ms, "reentrant": False, **more}


class Clock:
    """The clock of leases, which a test can put forward."""

    def __init__(self) -> None:
        self._now = held_module.now
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return self._now() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (held_module, acquiring):
        monkeypatch.setattr(module, "now", clock)
    return clock


def grants(node: Any, ttl_ms: int | None) -> None:
    node.answers["locks.acquire"] = node.answers["locks.renew"] = granted(ttl_ms)
    node.answers["locks.release"] = {"ok": True, "released": True}


async def test_a_lock_is_acquired_and_released(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    async with client.lock("k", ttl=30, wait=5) as held:
        assert held.token == 7
        assert held.tokens == {"k": 7}
        assert 20 < (held.remaining or 0) < 29.71
        assert not held.lost.is_set()
    (acquire,) = node.requests("locks.acquire")
    assert (acquire["key"], acquire["ttl_ms"], 1000 < acquire["wait_ms"] <= 5000) == ("k", 30_000, True)
    assert node.requests("locks.release") == [{"key": "k", "client": acquire["client"], "fencing_token": 7}]
    assert not node.requests("locks.renew")


async def test_several_locks_in_one_step(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    node.answers["locks.acquire"] = granted(30_000, fencing_tokens={"a": 7, "b": 7})
    async with client.locks(["a", "b"], shared=True) as held:
        assert held.for_ack() == [{"key": key, "client": held.name, "fencing_token": 7} for key in "ab"]
    (acquire,) = node.requests("locks.acquire")
    assert (acquire["keys"], acquire["mode"]) == (["a", "b"], "shared")
    assert node.requests("locks.release") == [{"keys": ["a", "b"], "client": held.name, "fencing_token": 7}]


async def test_it_is_renewed_at_a_third_of_the_lease(node: Any, client: AsyncClient, until: Until) -> None:
    grants(node, 30_000)
    loop = asyncio.get_running_loop()
    async with client.lock("k", ttl=30) as held:
        for number in (1, 2):
            timer = held._timer
            assert timer
            assert 5 < timer.when() - loop.time() <= 10
            # It fires.
            timer.cancel()
            held._begin_renewal()
            await until(lambda timer=timer: held._timer is not timer)
            assert len(node.requests("locks.renew")) == number
        assert not held.lost.is_set()
    assert node.requests("locks.renew") == 2 * [{"key": "k", "client": held.name, "fencing_token": 7, "ttl_ms": 30_000}]


async def test_the_lease_counts_from_sending(node: Any, client: AsyncClient) -> None:
    grants(node, 1000)

    def slowly(request: Any) -> Any:
        time.sleep(0.2)
        return granted(1000, waited_ms=100)

    node.answers["locks.acquire"] = slowly
    async with client.lock("k", ttl=1, renew=False) as held:
        # 990 ms after sending, plus what it waited
        assert (held.remaining or 0) < 0.99 + 0.1 - 0.2


async def test_an_answer_that_was_long_on_its_way_is_renewed_first(node: Any, client: AsyncClient, clock: Clock) -> None:
    grants(node, 30_000)

    def slowly(request: Any) -> Any:
        clock.ahead_s += 20
        return granted(30_000)

    node.answers["locks.acquire"] = slowly
    async with client.lock("k", ttl=30) as held:
        assert len(node.requests("locks.renew")) == 1
        assert (held.remaining or 0) > 20


@pytest.mark.parametrize("renew", [True, False])
async def test_a_lock_that_is_lost_before_its_answer_is_acquired_again(
    node: Any, client: AsyncClient, clock: Clock, renew: bool
) -> None:
    grants(node, 20_000)

    def slowly(request: Any) -> Any:
        clock.ahead_s += 12
        return granted(20_000)

    node.answers["locks.acquire"] = [slowly, granted(20_000)]
    node.answers["locks.renew"] = [LOST, granted(20_000)]
    async with client.lock("k", ttl=20, wait=20, renew=renew) as held:
        assert not held.lost.is_set()
    assert len(node.requests("locks.acquire")) == 2


async def test_a_lock_whose_first_renewal_gets_no_answer_is_acquired_again(node: Any, client: AsyncClient) -> None:
    grants(node, 900)

    def slowly(request: Any) -> Any:
        time.sleep(0.6)
        return granted(900)

    node.answers["locks.acquire"] = [slowly, granted(30_000)]
    node.answers["locks.renew"] = None
    async with client.lock("k", ttl=0.9, renew=False) as held:
        assert (held.remaining or 0) > 20


async def test_it_is_lost_before_the_lease_ends(node: Any, client: AsyncClient) -> None:
    grants(node, 900)
    node.answers["locks.renew"] = None
    lock = client.lock("k", ttl=0.9)
    before_s = held_module.now()
    held = await lock.__aenter__()
    assert held._until is not None
    assert before_s + 0.6 < held._until < held_module.now() + 0.9
    async with asyncio.timeout(20):
        await held.lost.wait()
    assert held.lost.is_set()
    with pytest.raises(LockLost, match="the lease is over"):
        await lock.__aexit__(None, None, None)
    assert node.requests("locks.release")


@pytest.mark.parametrize("renew", [True, False])
async def test_a_lease_that_ends_during_a_pause_is_lost(node: Any, client: AsyncClient, renew: bool) -> None:
    """The timer of its renewal fires too late."""
    grants(node, 300)
    lock = client.lock("k", ttl=0.3, renew=renew)
    held = await lock.acquire() and lock.held
    assert held
    time.sleep(0.4)  # noqa: ASYNC251
    async with asyncio.timeout(60):
        await held.lost.wait()
    assert not client._owners.held


async def test_an_answer_to_the_renewal_that_comes_after_the_lease_does_not_save_it(
    node: Any, client: AsyncClient, clock: Clock
) -> None:
    grants(node, 30_000)

    def slowly(request: Any) -> Any:
        clock.ahead_s += 30
        return granted(30_000)

    node.answers["locks.renew"] = slowly
    lock = client.lock("k", ttl=30)
    assert await lock.acquire()
    held = lock.held
    assert held
    held._begin_renewal()
    async with asyncio.timeout(60):
        await held.lost.wait()
    assert not client._owners.held


@pytest.mark.parametrize("renew", [True, False])
async def test_a_lease_that_is_made_longer_too_late_is_lost(node: Any, client: AsyncClient, clock: Clock, renew: bool) -> None:
    grants(node, 30_000)

    def slowly(request: Any) -> Any:
        clock.ahead_s += 30
        return granted(60_000)

    node.answers["locks.renew"] = slowly
    for make_longer in ("extend", "reacquire"):
        lock = client.lock("k", ttl=30, renew=renew)
        assert await lock.acquire()
        held = lock.held
        assert held
        with pytest.raises(LockLost, match="the lease is over"):
            await (held.extend(30) if make_longer == "extend" else held.reacquire())


async def test_a_node_without_leader_does_not_lose_it(node: Any, client: AsyncClient, until: Until) -> None:
    grants(node, 30_000)
    node.answers["locks.renew"] = [NO_LEADER, NO_LEADER, granted(60_000)]
    async with client.lock("k", ttl=30) as held:
        held._begin_renewal()
        await until(lambda: (held.remaining or 0) > 30)
        assert not held.lost.is_set()


async def test_a_renewal_goes_to_another_node_in_time(make_node: MakeNode, make_client: Make, until: Until) -> None:
    first, second = await make_node(), await make_node()
    grants(first, 6000)
    grants(second, 60_000)
    client = make_client(first, second)
    async with client.lock("k", ttl=6) as held:
        first.stop_reading()
        held._begin_renewal()
        await until(lambda: (held.remaining or 0) > 10)
        assert not held.lost.is_set()
        assert second.requests("locks.renew")


async def test_the_node_says_that_it_is_lost(node: Any, client: AsyncClient) -> None:
    grants(node, 6000)
    node.answers["locks.renew"] = LOST
    node.answers["locks.release"] = {"ok": True, "released": False}
    lock = client.lock("k", ttl=6)
    held = await lock.__aenter__()
    held._begin_renewal()
    async with asyncio.timeout(60):
        await held.lost.wait()
    with pytest.raises(LockLost, match="the lease has ended"):
        await lock.__aexit__(None, None, None)
    assert len(node.requests("locks.renew")) == 1


async def test_it_was_taken_away(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    node.answers["locks.release"] = {"ok": True, "released": False}
    with pytest.raises(LockLost, match="taken away"):
        async with client.lock("k"):
            pass


NOT_HOLDER = {"ok": False, "status": 409, "code": "not_holder", "detail": "another client has it", "keys": ["k"]}


@pytest.mark.parametrize("answer", [{"ok": True, "released": False}, NOT_HOLDER], ids=["free", "another holder"])
async def test_the_first_release_may_have_worked(node: Any, client: AsyncClient, answer: Any) -> None:
    grants(node, 30_000)
    node.answers["locks.release"] = [ConnectionError(), answer]
    async with client.lock("k"):
        pass
    node.answers["locks.release"] = answer
    with pytest.raises(LockLost):
        async with client.lock("k"):
            pass


async def test_an_error_of_the_block_is_not_replaced(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    node.answers["locks.release"] = {"ok": True, "released": False}
    with pytest.raises(ZeroDivisionError) as caught:
        async with client.lock("k"):
            _ = 1 / 0
    assert "taken away" in caught.value.__notes__[0]


async def test_a_paused_process_sees_the_loss_immediately(
    node: Any, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants(node, 30_000)
    lock = client.lock("k")
    held = await lock.__aenter__()
    ahead = held_module.now() + 29.8
    monkeypatch.setattr(held_module, "now", lambda: ahead)
    assert held.lost.is_set()
    with pytest.raises(LockLost):
        await lock.extend(5)
    with pytest.raises(LockLost):
        await lock.release()


async def test_a_lock_without_lease(node: Any, client: AsyncClient) -> None:
    grants(node, None)
    async with client.lock("k", ttl=None) as held:
        assert held.remaining is None
        with pytest.raises(WrongUse, match="no lease"):
            await held.extend(1)
    assert node.requests("locks.acquire")[0]["ttl_ms"] == 0


async def test_it_is_held_by_another_client(node: Any, client: AsyncClient) -> None:
    node.answers["locks.acquire"] = {"ok": False, "status": 423, "code": "held", "holders": [HOLDER], "position": 1}
    lock = client.lock("k", wait=0)
    assert not await lock.acquire()
    assert not await lock.acquire(blocking=False)
    assert lock.token is None
    with pytest.raises(LockHeld) as caught:
        async with lock:
            pass
    assert caught.value.holders == [HOLDER]
    assert isinstance(caught.value, LockTimeout)


async def test_a_long_wait_takes_several_calls(node: Any, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquiring, "WAIT_S_MAX", 0.05)
    timeout = {"ok": False, "status": 423, "code": "wait_timeout", "holders": [HOLDER], "position": 1}
    node.answers["locks.acquire"] = [timeout, timeout, granted(30_000)]
    node.answers["locks.release"] = {"ok": True, "released": True}
    async with client.lock("k", wait=None):
        pass
    waits_ms = [request["wait_ms"] for request in node.requests("locks.acquire")]
    # A call is repeated if its answer is late.
    assert len(waits_ms) >= 3
    assert set(waits_ms) == {50}


async def test_extend_and_reacquire(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    node.answers["locks.renew"] = lambda request: granted(request["ttl_ms"])
    async with client.lock("k", ttl=30) as held:
        assert await held.extend(10)
        assert 31 < (held.remaining or 0) < 40
        assert await held.reacquire()
        assert 20 < (held.remaining or 0) < 30
        assert await held.extend(5, replace_ttl=True)
        assert (held.remaining or 0) < 5


async def test_after_the_release(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    lock = client.lock("k")
    async with lock as held:
        pass
    for use in (held.release, lambda: held.extend(1), held.reacquire, lock.release, lambda: lock.extend(1)):
        with pytest.raises(LockNotHeld):
            await use()
    assert not await held.owned()
    assert not held.lost.is_set()
    # The object can be used again.
    assert await lock.acquire()
    await lock.release()


async def test_a_release_in_the_block(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    async with client.lock("k") as held:
        await held.release()
    assert len(node.requests("locks.release")) == 1


async def test_one_object_holds_one_grant(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    lock = client.lock("k")
    async with lock:
        with pytest.raises(WrongUse, match="make another one"):
            await lock.acquire()


async def test_a_task_does_not_wait_for_itself(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    async with client.lock("k") as outer:
        with pytest.raises(Deadlock) as caught:
            await client.lock("k").acquire()
        assert caught.value.cycle[0]["held_by"] == outer.name
        # Without waiting, the node decides, and it sees another owner.
        inner = client.lock("k")
        await inner.acquire(blocking=False)
        await inner.release()
    first, second = node.requests("locks.acquire")
    assert first["client"] != second["client"]


async def test_owners_are_tasks(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)

    async def two() -> None:
        async with client.lock("a"), client.lock("b"):
            pass

    await asyncio.gather(two(), two())
    names = [request["client"] for request in node.requests("locks.acquire")]
    assert len(set(names)) == 2
    assert sorted(names.count(name) for name in set(names)) == [2, 2]


async def test_a_cancelled_wait_leaves_nothing(node: Any, client: AsyncClient, until: Until) -> None:
    node.answers["locks.acquire"] = None
    node.answers["locks.release"] = {"ok": True, "released": False}
    waiting = asyncio.ensure_future(client.lock("k").acquire())
    await until(lambda: node.requests("locks.acquire"))
    waiting.cancel()
    await asyncio.wait({waiting})
    await until(lambda: node.requests("locks.release"))
    assert node.requests("cancel")
    assert node.requests("locks.release")[0]["client"] == node.requests("locks.acquire")[0]["client"]
    await until(lambda: not client._owners.used)


async def test_no_node_for_the_lock(node: Any, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    node.answers["locks.acquire"] = NO_LEADER
    # The pause before the second attempt would end after the deadline.
    monkeypatch.setattr("dss_client.core.pause_s", lambda count: 3600.0)
    with pytest.raises(Unavailable):
        await client.lock("k", wait=0).acquire()
    assert not client._owners.used


async def test_a_closed_client_releases_its_locks(node: Any, client: AsyncClient) -> None:
    grants(node, 30_000)
    lock = client.lock("k")
    await lock.acquire()
    await client.aclose()
    assert len(node.requests("locks.release")) == 1


@pytest.mark.parametrize("options", [{"ttl": 0}, {"ttl": -1}, {"wait": -1}])
async def test_wrong_options(client: AsyncClient, options: dict[str, Any]) -> None:
    with pytest.raises(WrongUse):
        client.lock("k", **options)
    with pytest.raises(WrongUse):
        client.locks([])
