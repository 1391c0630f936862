"""The near clients of a running cache: what is answered, what waits for them, and what their leases depend on."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dss_api.caller import Caller, set_caller
from dss_api.client_memory import ClientMemory
from dss_api.errors import Refused
from dss_api.feed import WebSocketFeed
from dss_api.rights import Access
from dss_api.websocket_writer import WebSocketWriter
from dss_cache import near, peers
from dss_cache import operations as ops
from dss_cache.answers import LinesAnswer
from dss_cache.core.commands import (
    Delete,
    LinesQuery,
    NearConfirm,
    NearFetch,
    NearRenew,
    NearRequest,
    PutRequest,
)
from dss_cache.core.leases import MARGIN, RATE_ERROR
from dss_cache.subscriptions import near as subscribe


class FakeFeed:
    """The client's side of a subscription, without a connection."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.events: list[dict[str, Any]] = []
        self.receive: Any = None
        self.refusal: Refused | None = None
        self.token = 0
        self.held_bytes = 0
        self.task: asyncio.Task[Any]

    def push(self, event):
        self.events.append(msgspec.json.decode(msgspec.json.encode(event)))

    def on_message(self, receive):
        self.receive = receive

    def count_call(self):
        if self.refusal is not None:
            raise self.refusal

    def hold(self, count):
        self.held_bytes += count

    def has_room(self, length):
        return True

    async def room(self, length):
        pass

    async def turn(self):
        await asyncio.sleep(0)

    def take(self):
        taken, self.events = self.events, []
        return taken

    async def renew(self, seq=0):
        self.token += 1
        self.receive(NearRenew(call=1, token=self.token, seq=seq))
        await self.cluster.settle()

    def confirm(self, seq):
        self.receive(NearConfirm(call=1, seq=seq))

    async def fetch(self, *keys, evicted=()):
        self.token += 1
        self.receive(NearFetch(call=1, token=self.token, keys=list(keys), evicted=list(evicted)))
        await self.cluster.settle()

    async def end(self):
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.fixture
async def connect(cluster):
    feeds = []

    async def connect(node="n1", who=None, **fields):
        feed = FakeFeed(cluster)
        if who is not None:
            set_caller(who)
        feed.task = asyncio.create_task(subscribe(cluster.nodes[node], NearRequest(**fields), feed))
        feeds.append(feed)
        await cluster.settle()
        return feed

    yield connect
    for feed in feeds:
        await feed.end()


async def put(cluster, key, value, node="n2"):
    request = PutRequest(key=key, value=msgspec.Raw(msgspec.json.encode(value)))
    return (await ops.put(cluster.nodes[node], request)).body["version"]


@pytest.fixture
async def client(cluster, connect):
    """A client of n1 with a lease; it holds `a`, whose value is 1."""
    await put(cluster, "a", 1)
    feed = await connect()
    await feed.renew()
    await feed.fetch("a")
    feed.take()
    return feed


async def begin(cluster, coroutine):
    task = asyncio.create_task(coroutine)
    await cluster.settle()
    return task


async def tick(cluster):
    cluster.tick()
    await cluster.settle()


async def test_a_client_gets_a_lease_and_values(cluster, connect):
    version = await put(cluster, "a", {"x": 1})
    feed = await connect()
    await feed.renew()
    await feed.fetch("a", "none", "a")
    value = {"key": "a", "value": {"x": 1}, "found": True, "version": version, "install": True}
    none = {"key": "none", "value": None, "found": False, "version": 0, "install": False}
    assert feed.take() == [
        {"opened": {"node": "n1", "lease_ms": 300, "keys_max": 100}},
        {"token": 1, "lease_ms": 300},
        {"token": 2, "fetched": [value, none, value]},
    ]


async def test_a_put_waits_until_the_client_has_confirmed(cluster, client):
    putting = await begin(cluster, put(cluster, "a", 2))
    assert client.take() == [{"seq": 1, "drop": ["a"]}]
    assert not putting.done()
    client.confirm(1)
    await cluster.settle()
    assert putting.done()


async def test_a_put_through_the_clients_own_node_waits_too(cluster, client):
    putting = await begin(cluster, put(cluster, "a", 2, node="n1"))
    assert client.take() == [{"seq": 1, "drop": ["a"]}]
    assert not putting.done()
    await client.renew(seq=1)
    await tick(cluster)
    assert putting.done()
    assert client.take() == [{"token": 3, "lease_ms": 300}]


async def test_no_node_shows_the_new_value_before_the_client_has_confirmed(cluster, client):
    putting = await begin(cluster, put(cluster, "a", 2))
    reading = [await begin(cluster, ops.get(cluster.nodes[node], ops.GetRequest(key="a"))) for node in ("n1", "n2", "n3")]
    await client.fetch("a")
    assert not any(task.done() for task in (putting, *reading))
    assert client.take() == [{"seq": 1, "drop": ["a"]}]
    client.confirm(1)
    await cluster.settle()
    await tick(cluster)
    assert [bytes(task.result().value) for task in reading] == [b"2"] * 3
    assert putting.done()
    [fetched] = client.take()
    assert fetched["fetched"][0]["value"] == 2


async def test_reads_that_wait_for_the_same_ask_once(cluster, client, monkeypatch):
    monkeypatch.setattr("dss_cache.peers.ASK_AGAIN_S", 10.0)
    monkeypatch.setattr("dss_cache.peers.ASKED_S", 9.0, raising=False)
    writer = cluster.nodes["n2"]
    putting = await begin(cluster, put(cluster, "a", 2))
    sent = []
    send = writer.send

    def spy(peer, channel, payload):
        if isinstance(peers._decode(payload[1:]), peers.Wanted):
            sent.append(peer)
        send(peer, channel, payload)

    monkeypatch.setattr(writer, "send", spy)
    reading = [await begin(cluster, ops.get(writer, ops.GetRequest(key="a"))) for _ in range(20)]
    assert not any(task.done() for task in reading)
    assert sent == ["n1"]
    # A link that is new has lost what was asked before.
    cluster.caches["n2"].peers._peer_is_up("n1")
    sent.clear()
    reading.append(await begin(cluster, ops.get(writer, ops.GetRequest(key="a"))))
    assert sent == ["n1"]
    client.confirm(1)
    await cluster.settle()
    assert [bytes(task.result().value) for task in reading] == [b"2"] * 21
    assert putting.done()


async def test_a_deletion_is_a_write(cluster, client):
    deleting = await begin(cluster, ops.delete(cluster.nodes["n2"], Delete(key="a")))
    assert client.take() == [{"seq": 1, "drop": ["a"]}]
    assert not deleting.done()
    client.confirm(1)
    await cluster.settle()
    assert deleting.done()


async def test_a_client_that_stalls_delays_a_put_by_its_lease_and_is_dropped(cluster, client):
    putting = await begin(cluster, put(cluster, "a", 2))
    cluster.now += 0.3
    await tick(cluster)
    assert not putting.done()
    cluster.now += 0.3 * RATE_ERROR + 0.001
    await tick(cluster)
    assert putting.done()
    with pytest.raises(Refused) as refused:
        await client.task
    assert refused.value.code == "request_timeout"
    assert cluster.caches["n1"].near.clients.count == 0


async def test_a_renewal_without_confirmation_does_not_delay_a_put(cluster, client):
    cluster.now += 0.1
    putting = await begin(cluster, put(cluster, "a", 2))
    await client.renew()
    cluster.now += 0.204
    await tick(cluster)
    assert putting.done()


async def test_a_client_whose_connection_is_lost_delays_a_put_by_its_lease(cluster, client):
    await client.end()
    putting = await begin(cluster, put(cluster, "a", 2))
    assert not putting.done()
    assert client.take() == []
    cluster.now += 0.304
    await tick(cluster)
    assert putting.done()


async def test_a_client_without_a_lease_delays_nothing(cluster, connect):
    await put(cluster, "a", 1)
    feed = await connect()
    await feed.fetch("a")
    feed.take()
    await put(cluster, "a", 2)
    assert feed.take() == [{"seq": 1, "drop": ["a"]}]


async def test_an_unconfirmed_write_holds_back_later_ones_of_this_node_only(cluster, client):
    await begin(cluster, put(cluster, "a", 2))
    await put(cluster, "b", 1)
    await ops.get(cluster.nodes["n3"], ops.GetRequest(key="b"))
    await put(cluster, "b", 2)
    get = await begin(cluster, ops.get(cluster.nodes["n1"], ops.GetRequest(key="b")))
    assert get.done()
    putting = await begin(cluster, put(cluster, "b", 3))
    assert not putting.done(), "confirmations are cumulative"
    client.confirm(1)
    await cluster.settle()
    assert putting.done()


async def test_a_grant_comes_after_the_drops_of_what_was_applied(cluster, client):
    service = cluster.caches["n1"]
    service.near.clients.written("a", 10**18, cluster.now)
    await client.renew()
    assert client.take() == [{"seq": 1, "drop": ["a"]}, {"token": 3, "lease_ms": 300}]


async def test_a_lease_is_not_longer_than_what_remains_of_the_nodes(cluster, client):
    lease = cluster.caches["n1"].near.lease
    lease.valid_until = cluster.now + 0.1205
    await client.renew()
    assert client.take() == [{"token": 3, "lease_ms": 120}]


async def test_a_node_without_a_lease_renews_its_own_first(cluster, client):
    cluster.now += 2
    await client.renew()
    assert client.take() == [{"token": 3, "lease_ms": 300}]


async def test_a_node_that_gets_no_lease_refuses(cluster, client):
    cluster.now += 2
    cluster.refusal = Refused("no_leader", "none")
    await client.renew()
    [event] = client.take()
    assert (event["token"], event["problem"]["code"]) == (3, "no_leader")


async def test_of_several_renewals_that_wait_the_latest_is_answered(cluster, client):
    cluster.now += 2
    for token in (7, 8, 9):
        client.receive(NearRenew(call=1, token=token))
    await cluster.settle()
    assert client.take() == [{"token": 9, "lease_ms": 300}]


async def test_the_lease_of_a_client_is_over_when_its_node_can_be_revoked(cluster, client):
    """The client counts from its request, with the margin; the node from the grant; the leader from its own grant, before both."""
    node = cluster.caches["n1"]
    granted_by_leader = cluster.caches["n1"].peers.granted.ends_at("n1")
    cluster.now = node.near.lease.valid_until - 0.2
    await client.renew()
    [grant] = client.take()
    assert cluster.now + grant["lease_ms"] / 1000 * (1 - RATE_ERROR - MARGIN) < node.near.lease.valid_until < granted_by_leader


async def test_a_client_asks_for_a_shorter_lease(cluster, connect):
    feed = await connect(lease_ms=50)
    await feed.renew()
    assert feed.take() == [{"opened": {"node": "n1", "lease_ms": 50, "keys_max": 100}}, {"token": 1, "lease_ms": 50}]
    feed = await connect(lease_ms=5000)
    assert feed.take()[0]["opened"]["lease_ms"] == 300


async def test_the_first_grant_waits_until_the_log_has_the_length(cluster, connect):
    feed = await connect()
    feed.take()
    cluster.nodes["n1"].is_held = True
    await feed.renew()
    assert feed.take() == []
    cluster.nodes["n1"].is_held = False
    cluster.apply_all()
    await cluster.settle()
    assert feed.take() == [{"token": 1, "lease_ms": 300}]
    assert cluster.nodes["n3"].directory.client_lease_ms == {"n1": 300}
    await feed.renew()
    other = await connect()
    await other.renew()
    assert sum(type(command).__name__ == "AgreeClientLease" for command, *_ in cluster.log) == 1


async def test_a_node_with_near_clients_in_the_log_waits_for_their_leases(cluster, client):
    assert cluster.nodes["n1"].opening_delay() == pytest.approx(0.3 * (1 + RATE_ERROR))
    assert cluster.nodes["n2"].opening_delay() == 0


async def test_a_restart_waits_no_longer_than_a_lease_of_the_node_itself(cluster, client):
    directory = cluster.nodes["n1"].directory
    directory.client_lease_ms["n1"] = 60_000
    assert cluster.nodes["n1"].opening_delay() == pytest.approx(directory.lease_ms / 1000 * (1 + RATE_ERROR))


async def test_a_renewal_that_fails_unexpectedly_is_answered_and_the_next_one_works(cluster, connect, monkeypatch):
    feed = await connect()
    feed.take()
    peers = cluster.caches["n1"].peers
    monkeypatch.setattr(peers, "renew", lambda: 1 / 0)
    monkeypatch.setattr(cluster.caches["n1"].near, "grant", lambda *_: 0)
    await feed.renew()
    [event] = feed.take()
    assert event["problem"]["code"] == "internal"
    monkeypatch.undo()
    await feed.renew()
    [event] = feed.take()
    assert event["lease_ms"] > 0


async def test_a_value_that_is_not_in_a_readable_line_is_used_once(cluster, connect, monkeypatch):
    await put(cluster, "a", 1)
    feed = await connect()
    feed.take()
    monkeypatch.setattr(cluster.caches["n1"].near, "may_install", lambda *_: False)
    await feed.fetch("a")
    [event] = feed.take()
    assert event["fetched"][0]["value"] == 1
    assert event["fetched"][0]["install"] is False
    assert cluster.caches["n1"].near.clients.keys == 0


async def test_the_keys_of_a_waiting_fetch_count_as_the_clients_until_it_is_answered(cluster, connect, monkeypatch):
    feed = await connect()
    feed.take()
    answer = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(cluster.caches["n1"].reader, "read_many", lambda keys, bytes_max: answer)
    await feed.fetch("a" * 500, "b" * 500)
    assert feed.held_bytes > 2000
    answer.set_exception(Refused("no_leader", "no leader"))
    await cluster.settle()
    assert feed.take()[0]["problem"]["code"] == "no_leader"
    assert feed.held_bytes == 0


async def test_a_fetch_that_a_write_overtakes_is_not_installed(cluster, connect):
    await put(cluster, "a", 1)
    feed = await connect()
    await feed.renew()
    feed.take()
    reading = feed.cluster.caches["n1"].reader
    read_many = reading.read_many

    async def overtaken(keys, bytes_max):
        found = await read_many(keys, bytes_max)
        await put(cluster, "a", 2)
        return found

    reading.read_many = overtaken
    await feed.fetch("a")
    [event] = feed.take()
    assert event["fetched"][0]["value"] == 1
    assert event["fetched"][0]["install"] is False


async def test_a_revoked_node_flushes_its_clients(cluster, client):
    cluster.cut("n1")
    cluster.elect("n2")
    putting = await begin(cluster, put(cluster, "a", 2))
    for _ in range(30):
        cluster.now += 0.1
        await tick(cluster)
    assert putting.done(), "n1 was revoked"
    client.take()
    cluster.heal()
    await cluster.settle()
    assert [event for event in client.take() if "flush" in event or "drop" in event] == [{"seq": 1, "drop": ["a"]}]
    assert cluster.caches["n1"].near.clients.keys == 0


async def test_a_restored_snapshot_flushes_the_clients(cluster, client):
    service = cluster.caches["n1"]
    service.before_restore()
    await cluster.settle()
    assert client.take() == [{"seq": 1, "flush": True}]
    reported = service.near.acknowledgements.applied["n1"]
    await service.load(memoryview(b""))
    assert service.near.acknowledgements.applied["n1"] == reported, "the client may still read what it holds"
    putting = await begin(cluster, put(cluster, "a", 2))
    assert not putting.done()
    client.confirm(1)
    await cluster.settle()
    assert putting.done()


async def test_what_the_client_evicted_costs_no_message(cluster, client):
    await client.fetch("b", evicted=["a"])
    client.take()
    await put(cluster, "a", 2)
    assert client.take() == []


async def test_a_client_that_holds_too_many_keys_is_flushed(cluster, client):
    for number in range(100):
        await put(cluster, f"k{number}", number)
    await client.fetch(*(f"k{number}" for number in range(100)))
    flush, fetched = client.take()
    assert flush == {"seq": 1, "flush": True}
    assert all(item["install"] for item in fetched["fetched"])
    assert cluster.caches["n1"].near.clients.holders("a") == 0


async def test_each_fetched_key_needs_the_right(cluster, connect):
    await put(cluster, "mine/a", 1)
    feed = await connect(who=Caller("token", Access(["cache:mine/:read"]), owner="t"))
    feed.take()
    await feed.fetch("mine/a")
    await feed.fetch("mine/a", "other")
    fetched, refused = feed.take()
    assert fetched["fetched"][0]["value"] == 1
    assert refused["problem"]["code"] == "forbidden"


async def test_fetches_count_as_calls(cluster, client):
    client.refusal = Refused("over_limit", "too many calls")
    await client.fetch("a")
    [event] = client.take()
    assert event["problem"]["code"] == "over_limit"


async def test_fetches_in_progress_are_limited(cluster, client):
    cluster.nodes["n1"].is_held = True
    for number in range(near.FETCHES_MAX + 1):
        await client.fetch(f"k{number}")
    [event] = client.take()
    assert event["problem"]["limit"] == "near_fetches_max"
    cluster.nodes["n1"].is_held = False
    cluster.apply_all()
    await cluster.settle(200)
    assert len(client.take()) == near.FETCHES_MAX


async def test_a_fetch_that_fails_is_a_problem(cluster, client):
    cluster.refusal = Refused("no_leader", "none")
    await client.fetch("unknown")
    [event] = client.take()
    assert event["problem"]["code"] == "no_leader"


async def test_a_fetch_that_fails_unexpectedly_is_answered_too(cluster, client, monkeypatch):
    async def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(cluster.caches["n1"].reader, "read_many", fail)
    await client.fetch("b")
    (event,) = client.take()
    assert (event["token"], event["problem"]["code"]) == (client.token, "internal")


async def test_too_many_bytes_are_refused(cluster, client, monkeypatch):
    monkeypatch.setattr(near, "BYTES_PER_FETCH_MAX", 1)
    await client.fetch("a", "a")
    [event] = client.take()
    assert event["problem"]["code"] == "too_large"


class SlowClient:
    """Takes the next event when the test says so."""

    def __init__(self, unread_bytes_max):
        self.events = []
        self.is_given_up = False
        self._turns = asyncio.Semaphore(0)
        memory = ClientMemory()
        self.account = memory.open(lambda: None)
        writer = WebSocketWriter(self._send, self._end, self._end, self.account, unread_bytes_max)
        encoder = SimpleNamespace(name="cache.near", encode=lambda event, attaches: (msgspec.json.encode(event), []))
        self.feed = WebSocketFeed(writer, None, 1, False, encoder, self._end, hold=self.account.take)

    def _end(self):
        self.is_given_up = True

    async def _send(self, message):
        await self._turns.acquire()
        self.events.append(msgspec.json.decode(message["bytes"])["event"])

    def read(self):
        self._turns.release()


@pytest.mark.parametrize("is_hit", [True, False])
async def test_large_answers_wait_until_a_slow_client_has_read_those_before(cluster, is_hit):
    fetches = [[f"{token}/{number}" for number in range(10)] for token in range(8)]
    for key in itertools.chain(*fetches):
        await put(cluster, key, "x" * 900, "n1" if is_hit else "n2")
    client = SlowClient(unread_bytes_max=40_000)
    serving = asyncio.create_task(subscribe(cluster.nodes["n1"], NearRequest(), client.feed))
    await cluster.settle()
    for token, keys in enumerate(fetches):
        client.feed.deliver(NearFetch(call=1, token=token, keys=keys))
    await cluster.settle(400)
    assert not client.is_given_up
    while len(client.events) < 1 + len(fetches):
        assert client.account.bytes >= 9_000 * (len(fetches) - len(client.events))
        client.read()
        await cluster.settle()
    answers = {event["token"]: [item["key"] for item in event["fetched"]] for event in client.events[1:]}
    assert answers == dict(enumerate(fetches))
    await cluster.settle()
    assert client.account.bytes == 0
    serving.cancel()
    await asyncio.wait([serving])


async def test_renewals_in_quick_succession_count_as_calls(cluster, client):
    client.refusal = Refused("over_limit", "too many calls")
    cluster.now += 2 * near.RENEW_S_MIN
    await client.renew()
    with pytest.raises(Refused):
        await client.renew()
    cluster.now += 2 * near.RENEW_S_MIN
    await client.renew()


async def test_confirmations_of_nothing_count_as_calls(cluster, client):
    client.refusal = Refused("over_limit", "too many calls")
    putting = await begin(cluster, put(cluster, "a", 2))
    with pytest.raises(Refused):
        client.confirm(2)
    client.confirm(1)
    await cluster.settle()
    assert putting.done()
    with pytest.raises(Refused):
        client.confirm(1)


async def test_the_number_of_clients_is_limited(cluster, connect):
    for _ in range(10):
        await connect()
    feed = await connect()
    with pytest.raises(Refused) as refused:
        await feed.task
    assert refused.value.extra["limit"] == "near_clients_max"


async def test_an_older_cluster_version_has_no_near_clients(cluster, connect, monkeypatch):
    monkeypatch.setattr(cluster.nodes["n1"].replica, "cluster_version", 4)
    feed = await connect()
    with pytest.raises(Refused) as refused:
        await feed.task
    assert refused.value.code == "not_supported_yet"


async def test_a_stopping_node_ends_the_subscriptions(cluster, client, connect):
    cluster.caches["n1"].near_server.close()
    with pytest.raises(Refused) as refused:
        await client.task
    assert refused.value.code == "stopping"
    feed = await connect()
    with pytest.raises(Refused):
        await feed.task


async def test_lines_show_how_many_clients_hold_a_key(cluster, client):
    async def shown():
        result = await ops.lines(cluster.nodes["n2"], LinesQuery(key="a"))
        return {row["node"]: (row["state"], row["clients"]) for row in result.body["lines"]}

    assert await shown() == {"n1": ("S", 1), "n2": ("S", 0), "n3": ("I", 0)}
    cluster.caches["n1"].lines.drop("a", "evicted")
    assert await shown() == {"n1": ("I", 1), "n2": ("S", 0), "n3": ("I", 0)}
    result = await ops.lines(cluster.nodes["n2"], LinesQuery(key="a"))
    msgspec.convert(result.body, LinesAnswer)


async def test_a_process_acknowledges_nothing_before_its_session_is_open(make_cluster):
    """Clients of the earlier process may hold leases until then: found by the simulation."""
    cluster = make_cluster()
    near = cluster.caches["n1"].near
    near.is_open = cluster.nodes["n1"].is_session_open = False
    await put(cluster, "a", 1)
    assert "n1" not in near.acknowledgements.applied
    cluster.nodes["n1"].is_session_open = True
    await tick(cluster)
    assert near.acknowledgements.applied["n1"] == near.applied > 0
