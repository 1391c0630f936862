"""Elections, semaphores, barriers and rate limits, on one real node. What crashes do to them is in test_recipes_under_faults.py."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from dss_client import (
    AsyncClient,
    BarrierTimeout,
    Client,
    Deadlock,
    Invalid,
    LockHeld,
    LockLost,
    LockNotHeld,
    LockTimeout,
    NotSupportedYet,
    RateLimited,
    WrongUse,
    acquiring,
)
from dss_dev.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster
Until = Callable[[Callable[[], Any]], Awaitable[None]]


@pytest.fixture(scope="module")
def url(real_node: LocalCluster) -> str:
    return real_node.nodes[0].url


@pytest.fixture(scope="module")
def dss(url: str, token: str) -> Iterator[Client]:
    with Client(url, token, name="test") as client:
        yield client


@pytest.fixture
async def adss(url: str, token: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url, token, name="test") as client:
        yield client


async def waiters(dss: AsyncClient, key: str, count: int) -> None:
    """Wait until a key has this many waiters."""
    async with asyncio.timeout(60):
        while (await dss.call("locks.status", key=key))["waiter_count"] != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -------------------------------------------------------------- election


def test_an_election(dss: Client) -> None:
    election = dss.election("scheduler", value="10.0.0.7:9000")
    assert election.leader() is None
    with election as term:
        leader = dss.election("scheduler").leader()
        assert leader is not None
        assert (leader.name, leader.value, leader.token) == (term.name, "10.0.0.7:9000", term.token)
        assert not term.lost.is_set()
        with pytest.raises(WrongUse, match="elected already"):
            election.campaign()
    assert election.leader() is None
    assert election.term is None
    with pytest.raises(LockNotHeld):
        election.resign()


def test_a_candidate_that_is_not_elected(dss: Client) -> None:
    def campaign(results: list[Any]) -> None:
        results.append(dss.election("not elected").campaign(wait=0))

    results: list[Any] = []
    with dss.election("not elected") as first:
        thread = threading.Thread(target=campaign, args=(results,))
        thread.start()
        thread.join()
        with pytest.raises(Deadlock, match="through another"):
            dss.election("not elected").campaign(wait=1)
    second = dss.election("not elected")
    assert results == [False]
    assert second.campaign()
    assert second.term is not None
    assert second.term.token > first.token
    # Another thread may end the term.
    thread = threading.Thread(target=second.resign)
    thread.start()
    thread.join()
    assert second.leader() is None


async def test_candidates_are_elected_in_order_and_observed(adss: AsyncClient) -> None:
    elected: list[str] = []
    seen: list[str] = []

    async def candidate(value: str) -> None:
        async with adss.election("in order", value=value) as term:
            elected.append(value)
            assert not term.lost.is_set()
            # Until the observer has seen it
            async with asyncio.timeout(60):
                while value not in seen:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    async def observer() -> None:
        async for leader in adss.election("in order").observe():
            seen.append(leader.value if leader else "-")

    observing = asyncio.ensure_future(observer())
    tasks = []
    first = adss.election("in order", value="0")
    assert await first.campaign()
    for number in range(1, 4):
        tasks.append(asyncio.ensure_future(candidate(str(number))))
        await waiters(adss, "election/in order", number)
    assert len(await first.candidates()) == 3
    await first.resign()
    await asyncio.gather(*tasks)
    assert elected == ["1", "2", "3"]
    async with asyncio.timeout(60):
        while seen[-1] != "-":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    observing.cancel()
    assert [value for value in seen if value != "-"] == ["0", "1", "2", "3"]


def test_an_observer_without_asyncio(dss: Client) -> None:
    observer = dss.election("observed").observe()
    assert next(observer) is None
    with dss.election("observed", value="me"):
        leader = next(observer)
        assert leader is not None
        assert leader.value == "me"
    assert next(observer) is None
    observer.close()


async def test_a_candidate_keeps_its_place(adss: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wait takes several calls. Each takes over the place of the one before."""
    monkeypatch.setattr(acquiring, "WAIT_S_MAX", 2.0)
    first = adss.election("long")
    assert await first.campaign()
    elected = []

    async def candidate(number: int) -> None:
        async with adss.election("long"):
            elected.append(number)

    tasks = []
    for number in range(3):
        tasks.append(asyncio.ensure_future(candidate(number)))
        await waiters(adss, "election/long", number + 1)
    names = await first.candidates()
    places = [waiter["place"] for waiter in (await adss.call("locks.status", key="election/long"))["waiters"]]
    await asyncio.sleep(3.5)
    assert await first.candidates() == names
    status = await adss.call("locks.status", key="election/long")
    assert [waiter["place"] for waiter in status["waiters"]] == places
    await first.resign()
    await asyncio.gather(*tasks)
    assert elected == [0, 1, 2]
    assert await first.leader() is None
    assert not adss._owners.used


async def test_a_candidate_that_gives_up_leaves_nothing(adss: AsyncClient, until: Until) -> None:
    async with adss.election("given up"):
        waiting = asyncio.ensure_future(adss.election("given up").campaign())
        await waiters(adss, "election/given up", 1)
        waiting.cancel()
        await waiters(adss, "election/given up", 0)
    await until(lambda: not adss._owners.used)


def test_a_term_that_is_taken_away(dss: Client) -> None:
    election = dss.election("taken", ttl=0.6)
    term = election.__enter__()
    dss.call("locks.force_release", key="election/taken", reason="test", by="test")
    assert term.lost.wait(60)
    with pytest.raises(LockLost):
        election.__exit__(None, None, None)


# ------------------------------------------------------------- semaphore


def test_no_more_than_the_permits(dss: Client) -> None:
    semaphore = dss.semaphore("three", 3, wait=30)
    now, most, tokens = 0, 0, []
    guard = threading.Lock()
    are_all_taken = threading.Event()

    def work() -> None:
        nonlocal now, most
        for _ in range(3):
            with semaphore as permit:
                with guard:
                    now += 1
                    most = max(most, now)
                    tokens.append((permit.keys[0], permit.token))
                    if now == 3:
                        are_all_taken.set()
                are_all_taken.wait(60)
                time.sleep(0.02)
                with guard:
                    now -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 24
    assert most == 3
    # The tokens of each permit grow.
    for key in {key for key, _ in tokens}:
        of_key = [token for name, token in tokens if name == key]
        assert of_key == sorted(set(of_key))
    assert semaphore.holders() == {}


def test_permits_of_one_thread(dss: Client) -> None:
    semaphore = dss.semaphore("two", 2)
    with semaphore as first, semaphore as second:
        assert {*first.keys, *second.keys} == {"semaphore/two/1", "semaphore/two/2"}
        assert semaphore.holders() == {first.keys[0]: first.name, second.keys[0]: second.name}
        with pytest.raises(LockHeld) as caught:
            semaphore.acquire(wait=0)
        assert {holder["fencing_token"] for holder in caught.value.holders} == {first.token, second.token}
        with pytest.raises(Deadlock, match="all permits"):
            semaphore.acquire()
    permit = semaphore.acquire(wait=0)
    permit.release()
    with pytest.raises(LockNotHeld):
        permit.release()


def test_a_wait_for_a_permit_ends(dss: Client) -> None:
    results: list[Any] = []

    def wait() -> None:
        try:
            dss.semaphore("one", 1).acquire(wait=0.1)
        except LockTimeout as error:
            results.append(error)

    with dss.semaphore("one", 1) as permit:
        # One of them is first in line, and the other one behind it.
        threads = [threading.Thread(target=wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [error.holders[0]["fencing_token"] for error in results] == [permit.token] * 2
    assert dss.semaphore("one", 1).acquire(wait=0).keys == ("semaphore/one/1",)


async def test_permits_are_given_in_order(adss: AsyncClient) -> None:
    given: list[int] = []
    semaphore = adss.semaphore("in order", 2, wait=30)
    first, second = await semaphore.acquire(), await semaphore.acquire()

    async def wait(number: int) -> None:
        async with semaphore:
            given.append(number)
            await asyncio.sleep(0.02)

    tasks = []
    for number in range(4):
        tasks.append(asyncio.ensure_future(wait(number)))
        # The first one in line waits for no lock.
        await waiters(adss, "semaphore/in order/queue", number)
    while not (await adss.call("locks.status", key="semaphore/in order/queue"))["locked"]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    # A newcomer that does not wait does not overtake them.
    await first.release()
    await second.release()
    await asyncio.gather(*tasks)
    assert given == [0, 1, 2, 3]


async def test_the_first_in_line_gives_up(adss: AsyncClient) -> None:
    semaphore = adss.semaphore("given up", 1, wait=30)
    permit = await semaphore.acquire()
    first = asyncio.ensure_future(semaphore.acquire())
    while not (await adss.call("locks.status", key="semaphore/given up/queue"))["locked"]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    second = asyncio.ensure_future(semaphore.acquire())
    await waiters(adss, "semaphore/given up/queue", 1)
    first.cancel()
    await waiters(adss, "semaphore/given up/queue", 0)
    await permit.release()
    async with asyncio.timeout(60):
        await (await second).release()


# -------------------------------------------------------------- barriers


def test_a_barrier_can_be_used_again(dss: Client) -> None:
    barrier = dss.barrier("rounds", 3, wait=20)
    assert barrier.parties == 3
    rounds: list[list[int]] = [[] for _ in range(4)]
    numbers: list[list[int]] = [[] for _ in range(4)]

    def work() -> None:
        for number in range(4):
            rounds[number].append(sum(map(len, rounds)))
            numbers[number].append(barrier.wait())
            # No party is in an earlier round.
            assert len(rounds[number]) == 3

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sorted(of_round) for of_round in numbers] == [[0, 1, 2]] * 4


async def test_more_parties_than_meet(adss: AsyncClient) -> None:
    barrier = adss.barrier("pairs", 2, wait=20)
    numbers = await asyncio.gather(*(barrier.wait() for _ in range(6)))
    assert sorted(numbers) == [0, 0, 0, 1, 1, 1]
    # What is stored does not grow.
    barrier = adss.barrier("pairs", 1)
    for _ in range(3):
        assert await barrier.wait() == 0
    value = await adss.cache.get("barrier/pairs")
    assert len(value["met"]) <= 2
    assert value["meetings"] == 6


async def test_a_party_that_gives_up_does_not_count(adss: AsyncClient) -> None:
    barrier = adss.barrier("given up", 3)
    with pytest.raises(BarrierTimeout) as caught:
        await barrier.wait(wait=0.05)
    assert caught.value.present == 1
    two = [asyncio.ensure_future(barrier.wait(wait=20)) for _ in range(2)]
    await asyncio.sleep(0.2)
    assert not any(task.done() for task in two)
    assert sorted([await barrier.wait(wait=20), *await asyncio.gather(*two)]) == [0, 1, 2]


async def test_a_cancelled_party_does_not_count(adss: AsyncClient) -> None:
    barrier = adss.barrier("cancelled", 2)
    task = asyncio.ensure_future(barrier.wait())
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait({task})
    with pytest.raises(BarrierTimeout):
        await barrier.wait(wait=0.3)


async def test_giving_up_and_meeting_at_the_same_time(adss: AsyncClient) -> None:
    """Either both have met, or none has."""
    for round in range(20):
        barrier = adss.barrier(f"race {round}", 2)
        tasks = [asyncio.ensure_future(barrier.wait(wait=wait)) for wait in (0.02, 0.03)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert len({isinstance(result, BarrierTimeout) for result in results}) == 1, results


def test_a_double_barrier(dss: Client) -> None:
    inside: list[int] = []
    after: list[int] = []

    def work(number: int) -> None:
        with dss.double_barrier("block", 3, wait=20) as party:
            assert party.token > 0
            inside.append(number)
            time.sleep(0.05 * number)
        after.append(len(inside))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert after == [3, 3, 3]


def test_a_failed_block_does_not_keep_the_others(dss: Client) -> None:
    def fail() -> None:
        try:
            with dss.double_barrier("failing", 2, wait=20):
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    thread = threading.Thread(target=fail)
    thread.start()
    barrier = dss.double_barrier("failing", 2, wait=20)
    barrier.enter()
    with pytest.raises(WrongUse):
        barrier.enter()
    barrier.leave()
    with pytest.raises(WrongUse):
        barrier.leave()
    thread.join()


# ------------------------------------------------------------ rate limit


def test_a_rate_limit(dss: Client) -> None:
    limit = dss.rate_limit("slow", 1, per=100, burst=3)
    assert [limit.try_acquire() for _ in range(4)] == [True, True, True, False]
    with pytest.raises(RateLimited) as caught:
        limit.acquire(wait=1)
    assert 90 < caught.value.retry_after <= 100
    with pytest.raises(RateLimited) as caught:
        limit.acquire(2, wait=1)
    assert 190 < caught.value.retry_after <= 200
    with pytest.raises(WrongUse):
        limit.acquire(4)


async def test_tasks_share_the_rate(adss: AsyncClient, url: str, token: str) -> None:
    """40 calls, of which 20 may come immediately, take about a second at a rate of 20 for each second."""
    async with AsyncClient(url, token) as other:
        limits = [client.rate_limit("shared", 20, wait=None) for client in (adss, other)]
        started = time.monotonic()
        await asyncio.gather(*(limit.try_acquire() for limit in limits))
        await asyncio.gather(*(limits[number % 2].acquire() for number in range(38)))
        took = time.monotonic() - started
    assert took > 0.8


async def test_tokens_come_back(adss: AsyncClient) -> None:
    limit = adss.rate_limit("fast", 50, burst=1)
    started = time.monotonic()
    for _ in range(6):
        await limit.acquire()
    assert time.monotonic() - started > 0.09


async def test_a_node_that_does_not_tell_the_time(node: Any, client: AsyncClient) -> None:
    node.answers["cache.get"] = {"ok": True, "value": None, "found": False, "version": 0, "hit": False, "state": "I"}
    with pytest.raises(NotSupportedYet):
        await client.rate_limit("x", 1).acquire()


# ---------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    "make",
    [
        lambda dss: dss.semaphore("x", 0),
        lambda dss: dss.semaphore("x", 1001),
        lambda dss: dss.semaphore("x", 1, ttl=0),
        lambda dss: dss.barrier("x", 0),
        lambda dss: dss.election("x", ttl=-1),
        lambda dss: dss.rate_limit("x", 0),
        lambda dss: dss.rate_limit("x", 1, burst=0),
        lambda dss: dss.semaphore("x", 1).acquire(wait=-1),
    ],
)
def test_wrong_arguments(dss: Client, make: Callable[[Client], Any]) -> None:
    with pytest.raises(WrongUse):
        make(dss)


def test_a_name_that_is_no_key(dss: Client) -> None:
    with pytest.raises(Invalid):
        dss.election("x" * 600).campaign()


def test_over_http(url: str, token: str) -> None:
    with Client(url, token, transport="http") as dss:
        with dss.election("over http") as term:
            assert term.token > 0
        assert dss.rate_limit("over http", 1).try_acquire()
        with dss.semaphore("over http", 1), pytest.raises(WrongUse, match="websocket"):
            dss.semaphore("over http", 1).acquire(wait=0)
        with pytest.raises(WrongUse, match="websocket"):
            dss.barrier("over http", 1).wait()
        with pytest.raises(WrongUse, match="websocket"):
            next(dss.election("over http").observe())
