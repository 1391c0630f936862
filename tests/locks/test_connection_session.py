"""`locks.session`: a session that lasts as long as its connection."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from dss_api.errors import Refused
from dss_locks.answers import SessionEvent
from dss_locks.core.commands import Acquire, CloseSession, KeepSession
from dss_locks.core.state import LockLimits
from dss_locks.subscriptions import keep_session
from dss_locks.watching import LockWatchers
from dss_raft.replication.machine import Origin

LONG_MS = 600_000
#: Shorter than the contract allows, so that the tests need not wait.
SHORT_MS = 3


class Client:
    """A feed whose events can be awaited."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[SessionEvent] = asyncio.Queue()
        self.last_ping: int | None = None

    def push(self, event) -> None:
        self.events.put_nowait(msgspec.json.decode(msgspec.json.encode(event), type=SessionEvent))

    async def next(self) -> SessionEvent:
        async with asyncio.timeout(60):
            return await self.events.get()


@pytest.fixture
async def begin(node):
    watchers = LockWatchers(node)
    tasks = []

    def begin(ttl_ms=LONG_MS):
        client = Client()
        tasks.append(asyncio.create_task(keep_session(node, KeepSession(client="a", ttl_ms=ttl_ms), client)))
        return client, tasks[-1]

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not watchers._sessions


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (the condition is in the table, there is no single event for it)
            await asyncio.sleep(0)


async def test_it_sends_its_id_and_is_renewed_at_a_third_of_its_lease(node, begin):
    client, _ = begin(SHORT_MS)
    started = await client.next()
    assert (started.kind, started.expires_in_ms, started.index) == ("started", SHORT_MS, 1)
    node.at_ms += 2
    renewed = [await client.next() for _ in range(3)]
    assert {(e.kind, e.session, e.expires_in_ms) for e in renewed} == {("renewed", started.session, SHORT_MS)}
    session = node.table.holdings.sessions.by_id[started.session]
    assert node.table.holdings.sessions.deadline_ms(session) == node.at_ms + SHORT_MS


async def test_its_events_name_the_last_ping_that_arrived_before_the_renewal_began(node, begin, monkeypatch):
    """A ping that arrives during a renewal was perhaps sent after the lease began again: it is for the next event."""
    client, _ = begin(SHORT_MS)
    assert (await client.next()).ping is None
    submit = node.submit

    async def ping_meanwhile(command, **fields):
        client.last_ping = (client.last_ping or 0) + 1
        return await submit(command, **fields)

    monkeypatch.setattr(node, "submit", ping_meanwhile)
    client.last_ping = 7
    assert [(await client.next()).ping for _ in range(3)] == [7, 8, 9]


async def test_all_locks_are_released_when_the_connection_closes(node, begin):
    client, task = begin()
    session = (await client.next()).session
    await node.submit(Acquire(key="k", client="a", session=session, lock_delay_ms=5000))
    waiting = asyncio.create_task(node.submit(Acquire(key="k", client="b", wait_ms=1000)))
    await until(lambda: node.futures)
    task.cancel()
    assert (await waiting).code == "", "a closed session must not start a lock delay"
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not node.table.holdings.sessions.by_id


async def test_a_client_that_disconnects_while_the_session_starts_leaves_no_session(node, begin, monkeypatch):
    """The command is on its way and takes effect. No one else would close the session that it starts."""
    may_proceed, submit = asyncio.Event(), node.submit

    async def slow(command, **fields):
        await may_proceed.wait()
        return await submit(command, **fields)

    monkeypatch.setattr(node, "submit", slow)
    _, task = begin()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    may_proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert node.index == 2, "started and closed"
    assert not node.table.holdings.sessions.by_id


async def test_it_ends_with_session_lost(node, begin):
    client, task = begin()
    session = (await client.next()).session
    node.pass_ms(LONG_MS)
    result = await task
    assert (result.code, result.body) == ("session_lost", {"session": session})


async def test_it_ends_if_another_call_closes_the_session(node, begin):
    client, task = begin()
    session = (await client.next()).session
    await node.submit(CloseSession(session=session))
    result = await task
    assert (result.code, result.body) == ("", {"session": session, "closed": True})


async def test_it_ends_if_a_snapshot_no_longer_has_the_session(node, begin):
    client, task = begin()
    await client.next()
    node.catch_up_by_snapshot(lambda table, at_ms, index: table.expire(at_ms + LONG_MS, index))
    assert (await task).code == "session_lost"


async def test_it_continues_if_a_snapshot_has_the_session(node, begin):
    client, task = begin(SHORT_MS)
    await client.next()
    node.catch_up_by_snapshot(
        lambda table, at_ms, index: table.apply(Acquire(key="k", client="b"), at_ms, index, Origin("n2", 1, 1))
    )
    assert (await client.next()).kind == "renewed"
    assert not task.done()


async def test_it_retries_without_a_majority(node, begin):
    client, _ = begin(SHORT_MS)
    await client.next()
    refused = 0

    class NoQuorum(Refused):
        def __init__(self) -> None:
            nonlocal refused
            refused += 1
            super().__init__("no_quorum")

    submit = node.submit

    async def refuse(command, **fields):
        raise NoQuorum

    node.submit = refuse
    await until(lambda: refused == 2)
    node.submit = submit
    while (event := await client.next()).kind != "renewed":
        pass
    assert event.expires_in_ms == SHORT_MS


async def test_too_many_sessions(node, begin):
    node.table.holdings.limits = LockLimits(sessions_per_client_max=1)
    client, _ = begin()
    await client.next()
    second, task = begin()
    result = await task
    assert (result.code, result.body["limit"]) == ("over_limit", "sessions_per_client_max")
    assert second.events.empty()


def test_a_too_short_lease_is_refused():
    with pytest.raises(msgspec.ValidationError, match=r">= 1000.*ttl_ms"):
        msgspec.json.decode(b'{"client": "a", "ttl_ms": 999}', type=KeepSession)
