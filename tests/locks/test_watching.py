"""`locks.watch`: the state at an index, then every later change."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_api.errors import Refused
from dss_locks import watching
from dss_locks.answers import LockEvent
from dss_locks.core.commands import Acquire, CloseSession, ForceRelease, Release, StartSession, Watch
from dss_locks.core.holdings import MODES
from dss_locks.core.state import LockChanged
from dss_locks.subscriptions import watch
from dss_locks.watching import LockWatchers
from dss_raft.replication.machine import Origin

_spec = importlib.util.spec_from_file_location("observer", Path(__file__).with_name("observer.py"))
observer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(observer)


class Client:
    """A feed, and the state that a client builds from it."""

    def __init__(self) -> None:
        self.events: list[LockEvent] = []
        self.view = observer.Observer()
        self.state: list[dict] | None = None
        self.index = 0
        self.resyncs = 0
        self.errors: list[AssertionError] = []

    def push(self, event) -> None:
        try:
            self.take(event)
        except AssertionError as error:
            # If it were raised here, it would end the call that changed the table, and the test would not see it.
            self.errors.append(error)

    def take(self, event) -> None:
        event = msgspec.json.decode(msgspec.json.encode(event), type=LockEvent)
        self.events.append(event)
        if event.kind not in ("state", "resync"):
            assert self.state is None, "a change between two parts of the state"
            assert event.index > self.index, "older than the state"
            self.view.see(event)
            return
        self.state = [*(self.state or []), *msgspec.to_builtins(event.locks)]
        if not event.more:
            self.view.begin(self.state)
            self.index, self.state = event.index, None
            self.resyncs += event.kind == "resync"

    def changes(self):
        return [(e.kind, e.key, e.client, e.reason) for e in self.events if e.kind not in ("state", "resync")]


@pytest.fixture
def watchers(node):
    return LockWatchers(node)


@pytest.fixture
async def begin(node, watchers):
    tasks, clients = [], []

    async def begin(**fields) -> Client:
        client = Client()
        clients.append(client)
        tasks.append(asyncio.create_task(watch(node, Watch(**fields), client)))
        await turns()
        return client

    begin.tasks, begin.clients = tasks, clients
    yield begin
    assert [client.errors for client in clients if client.errors] == []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not watchers._watches
    for index in (watchers._by_key, watchers._by_client, watchers._by_prefix, watchers._lengths):
        assert not index, "not cleaned up"


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_the_state_comes_first_and_then_the_changes(node, begin):
    granted = await node.submit(Acquire(key="k", client="a"))
    waiting = asyncio.create_task(node.submit(Acquire(key="k", client="b", wait_ms=1000)))
    await turns()
    client = await begin(key="k")
    (state,) = client.events
    assert (state.kind, state.index, state.more) == ("state", node.index, False)
    (lock,) = msgspec.to_builtins(state.locks)
    assert [(h["client"], h["fencing_token"]) for h in lock["holders"]] == [("a", granted.index)]
    assert [(w["client"], w["place"]) for w in lock["waiters"]] == [("b", 1)]
    await node.submit(Release(key="k", client="a"))
    assert client.changes() == [("released", "k", "a", ""), ("dequeued", "k", "b", "granted"), ("granted", "k", "b", "")]
    assert [e.index for e in client.events[1:]] == [node.index] * 3
    await waiting


async def test_the_state_includes_named_keys_that_are_free(begin):
    client = await begin(keys=["k1", "k2"])
    assert [(lock.key, lock.locked) for lock in client.events[0].locks] == [("k1", False), ("k2", False)]


async def test_a_key_that_is_named_twice_is_watched_once(node, begin):
    client = await begin(keys=["k", "k"])
    await node.submit(Acquire(key="k", client="a"))
    assert client.changes() == [("granted", "k", "a", "")]
    (task,) = begin.tasks
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_watch_gets_only_the_changes_that_it_watches(node, begin):
    clients = {
        "key": await begin(key="orders/1"),
        "keys": await begin(keys=["orders/2", "bills/1"]),
        "prefix": await begin(prefix="orders/"),
        "all": await begin(prefix=""),
        "client": await begin(client="b"),
    }
    for key, client in (("orders/1", "a"), ("orders/2", "b"), ("bills/1", "a"), ("bills/2", "b"), ("orders", "a")):
        await node.submit(Acquire(key=key, client=client))
    changed = {name: [e.key for e in client.events[1:]] for name, client in clients.items()}
    assert changed == {
        "key": ["orders/1"],
        "keys": ["orders/2", "bills/1"],
        "prefix": ["orders/1", "orders/2"],
        "all": ["orders/1", "orders/2", "bills/1", "bills/2", "orders"],
        "client": ["orders/2", "bills/2"],
    }


async def test_the_state_of_a_client_is_what_it_holds_and_waits_for(node, begin):
    await node.submit(Acquire(key="k1", client="a", mode="shared"))
    await node.submit(Acquire(key="k1", client="b", mode="shared"))
    await node.submit(Acquire(key="k2", client="b"))
    waiting = asyncio.create_task(node.submit(Acquire(key="k2", client="a", wait_ms=1000)))
    await turns()
    client = await begin(client="a")
    assert client.view.holders.keys() == {("k1", "a")}
    assert list(client.view.waiters.values()) == [("a", "exclusive")]
    waiting.cancel()
    await turns()
    assert client.changes() == [("dequeued", "k2", "a", "cancelled")]


async def test_the_event_of_a_forced_release_has_its_reason(node, begin):
    await node.submit(Acquire(key="k", client="a", lock_delay_ms=500))
    client = await begin(client="a")
    await node.submit(ForceRelease(key="k", reason="it hangs"))
    event = client.events[-1]
    assert (event.kind, event.reason, event.detail, event.delay_ms) == ("lost", "forced", "it hangs", 500)


async def test_catching_up_from_a_snapshot_is_a_resync(node, begin):
    await node.submit(Acquire(key="k1", client="a"))
    client = await begin(prefix="k")
    other = await begin(key="other")
    node.catch_up_by_snapshot(
        lambda table, at_ms, index: table.apply(Acquire(key="k2", client="b"), at_ms, index, Origin("n2", 1, 1))
    )
    # The next entry follows immediately. Its event must not be sent before the state.
    await node.submit(Release(key="k2", client="b"))
    await turns()
    assert [e.kind for e in client.events] == ["state", "resync"]
    assert client.view.holders.keys() == {("k1", "a")}
    assert other.resyncs == 1
    await node.submit(Release(key="k1", client="a"))
    assert client.view.holders == {}


@pytest.fixture
async def watch_slowly(node, watchers, begin, monkeypatch):
    """Start to watch a table of three keys, and stop while its state has been read only in part."""
    monkeypatch.setattr(watching, "SCAN_KEYS", 1)
    for key in ("k1", "k2", "k3"):
        await node.submit(Acquire(key=key, client="a"))

    async def watch_slowly(**fields) -> Client:
        client = Client()
        begin.clients.append(client)
        begin.tasks.append(asyncio.create_task(watch(node, Watch(**fields), client)))
        await turns(2)
        assert client.events == []
        return client

    return watch_slowly


@pytest.mark.parametrize("what", [{"prefix": "k"}, {"client": "b"}])
async def test_a_key_acquired_while_the_state_is_read_is_in_it(node, watch_slowly, what):
    await node.submit(Acquire(key="k0", client="b"))
    client = await watch_slowly(**what)
    await node.submit(Acquire(key="k9", client="b"))
    await turns()
    assert [e.kind for e in client.events] == ["state"]
    assert {("k0", "b"), ("k9", "b")} <= client.view.holders.keys()


async def test_a_key_released_while_the_state_is_read_is_not_in_it(node, watch_slowly):
    client = await watch_slowly(prefix="k")
    await node.submit(Release(key="k1", client="a"))
    await turns()
    assert [lock.key for lock in client.events[0].locks] == ["k2", "k3"]


async def test_a_snapshot_that_arrives_while_the_state_is_read(node, watch_slowly):
    client = await watch_slowly(prefix="k")
    node.catch_up_by_snapshot(
        lambda table, at_ms, index: table.apply(Acquire(key="k9", client="b"), at_ms, index, Origin("n2", 1, 1))
    )
    await turns()
    assert [e.kind for e in client.events] == ["state"]
    assert ("k9", "b") in client.view.holders


async def test_the_state_includes_keys_with_a_lock_delay(node, begin):
    await node.submit(Acquire(key="k", client="a", lock_delay_ms=500))
    await node.submit(ForceRelease(key="k", reason="test"))
    client = await begin(prefix="k")
    assert client.view.delayed == {"k"}
    node.pass_ms(500)
    assert client.changes() == [("delay_ended", "k", "a", "")]


async def test_the_state_is_linearizable_unless_local_is_asked_for(node, begin):
    await begin(key="k")
    assert node.reads == 1
    await begin(key="k", consistency="local")
    assert node.reads == 1


async def test_a_large_state_comes_in_parts(node, begin, monkeypatch):
    monkeypatch.setattr(watching, "PART_ROWS", 4)
    for number in range(5):
        await node.submit(Acquire(key=f"k{number}", client="a"))
    client = await begin(prefix="k")
    assert [(len(e.locks), e.more) for e in client.events] == [(2, True), (2, True), (1, False)]
    assert len(client.view.holders) == 5


async def test_too_much_to_begin_with_is_refused(node, watchers, monkeypatch):
    monkeypatch.setattr(watching, "STATE_ROWS_MAX", 3)
    for number in range(2):
        await node.submit(Acquire(key=f"k{number}", client="a"))
    client = Client()
    with pytest.raises(Refused) as refused:
        await watch(node, Watch(prefix=""), client)
    assert (refused.value.code, refused.value.extra["limit"]) == ("over_limit", "state_rows_max")
    assert client.events == []


async def test_watches_of_a_node_are_limited(node, begin, monkeypatch):
    monkeypatch.setattr(watching, "WATCHES_MAX", 1)
    await begin(key="k")
    with pytest.raises(Refused) as refused:
        await watch(node, Watch(key="k"), Client())
    assert (refused.value.code, refused.value.extra["limit"]) == ("over_limit", "watches_max")


def test_the_documented_event_has_every_field_of_the_pushed_one():
    assert set(LockChanged.__struct_fields__) < set(LockEvent.__struct_fields__)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "not none"),
        ({"key": "a", "prefix": ""}, "not key and prefix"),
        ({"client": "x" * 129 + "ä" * 200}, "`client` is longer than 512 bytes"),
    ],
)
def test_a_watch_names_exactly_one_thing(fields, words):
    with pytest.raises(ValueError, match=words):
        Watch(**fields)


names = st.sampled_from(["a1", "a2", "a3", "b1", "b2"])
clients = st.sampled_from(["a", "b", "c"])
modes = st.sampled_from(["shared", "exclusive"])
commands = st.one_of(
    st.builds(
        lambda client, keys, mode, ttl, wait, delay, session: Acquire(
            client=client, keys=keys, mode=mode, ttl_ms=ttl, wait_ms=wait, lock_delay_ms=delay, session=session
        ),
        clients,
        st.lists(names, min_size=1, max_size=2, unique=True),
        modes,
        st.sampled_from([0, 50, 500]),
        st.sampled_from([0, 100, 1000]),
        st.sampled_from([0, 0, 70]),
        st.sampled_from(["", "", "1.1", "2.1"]),
    ),
    st.builds(lambda client, key: Release(client=client, key=key), clients, names),
    st.builds(lambda key: ForceRelease(key=key, reason="test"), names),
    st.builds(lambda client: StartSession(client=client, ttl_ms=100), clients),
    st.builds(lambda session: CloseSession(session=session), st.sampled_from(["1.1", "2.1"])),
)
watches = st.one_of(
    st.builds(lambda key: Watch(key=key), names),
    st.builds(lambda prefix: Watch(prefix=prefix), st.sampled_from(["", "a", "a1", "z"])),
    st.builds(lambda client: Watch(client=client), clients),
)
steps = st.lists(
    st.one_of(commands, commands, watches, st.sampled_from([30, 60, "turn", "turn", "snapshot", "cancel"])), max_size=30
)


@settings(max_examples=300)
@given(steps=steps)
def test_state_and_changes_together_are_always_the_truth(fake_node, steps):
    """No change is missing or sent twice, in whatever turn of the event loop it happens."""

    async def scene(node) -> None:
        LockWatchers(node)
        watching_clients, calls = [], []
        for step in steps:
            if isinstance(step, Watch):
                client = Client()
                watching_clients.append((step, client, asyncio.create_task(watch(node, step, client))))
            elif isinstance(step, int):
                node.pass_ms(step)
            elif step == "turn":
                await asyncio.sleep(0)
            elif step == "snapshot":
                node.catch_up_by_snapshot(lambda table, at_ms, index: table.expire(at_ms + 40, index))
            elif step == "cancel":
                if calls:
                    calls[-1].cancel()
            else:
                calls.append(asyncio.create_task(node.submit(step)))
        await turns(20)
        for request, client, _ in watching_clients:
            assert not client.errors
            check(node.table, request, client.view)
        for task in [task for *_, task in watching_clients] + calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching, "SCAN_KEYS", 1)
        patch.setattr(watching, "PART_ROWS", 2)
        asyncio.run(scene(fake_node()))


def check(table, request, view) -> None:
    def is_watched(key, client) -> bool:
        if request.prefix is not None:
            return key.startswith(request.prefix)
        return client == request.client if request.client is not None else key == request.key

    holders = {(h.key, h.client): (MODES[h.exclusive], h.token) for h in table.holdings.all() if is_watched(h.key, h.client)}
    assert view.holders == holders
    assert view.waiters == {
        (key, waiter.rank): (waiter.client, MODES[waiter.exclusive])
        for waiter in table.waiters.all()
        for key in waiter.keys
        if is_watched(key, waiter.client)
    }
    if request.client is None:
        assert view.delayed == {key for key in table.holdings.delays.by_key if is_watched(key, "")}
