"""Links on loopback: they come up, carry frames both ways, go down, and come back."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from prometheus_client import REGISTRY

from dss_dev.local_cluster import free_ports
from dss_raft.core.messages import AppendEntries, Entry, EntryKind, TimeoutNow
from dss_raft.net import connection as connection_module
from dss_raft.net import links as links_module
from dss_raft.net.wire import FRAME_BYTES_MAX, AppFrame, ForwardFrame, RaftFrame
from dss_raft.versions import RELEASE, Announced, Supported

NOWHERE = ("127.0.0.1", 1)
SMALL = TimeoutNow(sender="a", to="b", term=1)


@pytest.fixture(params=["tls", "secret"])
def start_node(request, ends, start_node):
    """Links with TLS, and those of releases before it."""

    async def start(node_id: str, *more, **named):
        return await start_node(node_id, *more, **{"credentials": ends.credentials(node_id), **named})

    return start if request.param == "tls" else start_node


@pytest.fixture
def start_pair(start_node):
    """Two nodes whose link is up; "a" dials."""

    async def start(**more):
        b = await start_node("b", {"a": NOWHERE}, **more)
        a = await start_node("a", {"b": b.address}, **more)
        assert await a.next_event() == ("up", "b")
        assert await b.next_event() == ("up", "a")
        return a, b

    return start


async def test_frames_go_both_ways_in_order(start_pair):
    a, b = await start_pair()
    assert (a.links.up_peers(), b.links.is_up("a"), b.links.is_up("c")) == (["b"], True, False)
    sent = [ForwardFrame(b"%d" % number) for number in range(1000)]
    assert all(a.links.send("b", frame) for frame in sent)
    assert b.links.send("a", AppFrame("cache", b"hello"))
    assert [await b.next_frame() for _ in sent] == [("a", frame) for frame in sent]
    assert await a.next_frame() == ("b", AppFrame("cache", b"hello"))


async def test_frames_sent_in_one_turn_go_out_in_one_write(start_pair, monkeypatch):
    a, b = await start_pair()
    writes: list[bytes] = []
    transport = a.links._links["b"]._transport
    monkeypatch.setattr(a.links._links["b"], "_transport", Spy(transport, writes))
    for number in range(50):
        a.links.send("b", ForwardFrame(b"%d" % number))
    assert writes == []
    for _ in range(50):
        await b.next_frame()
    assert len(writes) == 1


class Spy:
    """A transport that records its writes."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


async def test_a_frame_of_many_mebibytes_arrives(start_pair):
    a, b = await start_pair()
    frame = ForwardFrame(bytes(15 * 1024 * 1024))
    assert a.links.send("b", frame)
    assert await b.next_frame() == ("a", frame)
    assert not a.links.send("b", ForwardFrame(bytes(FRAME_BYTES_MAX)))
    assert a.links.send("b", ForwardFrame(b"and the link is still good"))
    assert (await b.next_frame())[1] == ForwardFrame(b"and the link is still good")


async def test_a_frame_to_a_peer_that_is_down_or_unknown_is_dropped(start_node):
    a = await start_node("a", {"b": NOWHERE})
    assert not a.links.send("b", RaftFrame([]))
    assert not a.links.send("nobody", RaftFrame([]))


async def test_the_buffer_for_a_peer_that_does_not_read_is_bounded(start_pair, monkeypatch):
    monkeypatch.setattr(connection_module, "WRITE_BUFFER_BYTES_MAX", 4 * 1024 * 1024)
    a, b = await start_pair()
    b.links._links["a"]._transport.pause_reading()
    taken = 0
    while a.links.send("b", ForwardFrame(bytes(256 * 1024))):
        taken += 1
        assert taken < 200
        await asyncio.sleep(0)
    assert a.links.is_up("b")
    b.links._links["a"]._transport.resume_reading()
    for _ in range(taken):
        await b.next_frame()
    assert a.links.send("b", ForwardFrame(b"again"))


async def test_the_link_to_a_restarted_peer_comes_back(start_pair, start_node):
    a, b = await start_pair()
    port = b.links.port
    await b.links.stop()
    assert await b.next_event() == ("down", "a")
    assert await a.next_event() == ("down", "b")
    assert not a.links.send("b", RaftFrame([]))
    again = await start_node("b", {"a": NOWHERE}, listen=("127.0.0.1", port))
    assert await a.next_event() == ("up", "b")
    assert await again.next_event() == ("up", "a")


async def test_a_node_that_starts_before_its_peer_keeps_dialing(start_node):
    address = ("127.0.0.1", *free_ports(1))
    a = await start_node("a", {"b": address})
    await asyncio.sleep(0.2)  # a few refused attempts
    await start_node("b", {"a": NOWHERE}, listen=address)
    assert await a.next_event() == ("up", "b")


async def test_a_newer_connection_of_a_peer_replaces_the_older_one(start_pair, start_node):
    older, b = await start_pair()
    newer = await start_node("a", {"b": b.address})
    assert await newer.next_event() == ("up", "b")
    assert await older.next_event() == ("down", "b")
    assert [await b.next_event(), await b.next_event()] == [("down", "a"), ("up", "a")]


async def test_members_are_added_and_removed(start_node):
    b = await start_node("b")
    a = await start_node("a")
    a.links.add_peer("b", b.address)
    b.links.add_peer("a", NOWHERE)
    assert await a.next_event() == ("up", "b")
    assert await b.next_event() == ("up", "a")
    b.links.remove_peer("a")
    assert not b.links.is_up("a")
    assert await b.next_event() == ("down", "a")
    assert await a.next_event() == ("down", "b")
    b.links.add_peer("a", NOWHERE)
    assert await a.next_event() == ("up", "b")
    a.links.remove_peer("b")
    assert await a.next_event() == ("down", "b")


async def test_the_last_frames_of_a_stopping_node_arrive(start_pair):
    a, b = await start_pair()
    a.links.send("b", ForwardFrame(b"goodbye"))
    await a.links.stop()
    assert await b.next_frame() == ("a", ForwardFrame(b"goodbye"))


async def test_a_silent_link_is_kept_alive_by_pings(start_pair):
    a, b = await start_pair(idle_seconds=0.2)
    await asyncio.sleep(1.0)
    assert a.events.empty()
    assert b.events.empty()
    assert a.frames.empty(), "pings are the links' own business"


async def test_a_peer_that_disappeared_silently_is_dropped(start_pair):
    a, b = await start_pair(idle_seconds=0.2)
    b.links._ticker.cancel()  # b hangs: no ping, no close
    b.links._links["a"]._transport.pause_reading()
    assert await a.next_event() == ("down", "b")
    assert a.links.silent_ms("b") >= 200, "the end of the link is no sign of life"
    assert a.links.silent_ms("c") is None


async def test_a_port_in_use_is_an_error_at_start(start_node):
    b = await start_node("b")
    with pytest.raises(OSError, match="in use"):
        await start_node("c", listen=b.address)


async def test_messages_that_are_too_long_together_go_in_several_frames(start_pair):
    """What a leader has for one peer in one turn may be more than a frame."""
    a, b = await start_pair()
    entries = [Entry(index, 1, EntryKind.COMMANDS, bytes(FRAME_BYTES_MAX // 3)) for index in range(5)]
    names = {"sender": "a", "to": "b", "term": 1, "prev_index": 0, "prev_term": 0, "commit": 0}
    messages = [AppendEntries(**names, entries=[entry]) for entry in entries]
    assert a.links.send("b", RaftFrame(list(messages)))
    arrived = []
    while len(arrived) < len(messages):
        arrived += (await b.next_frame())[1].messages
    assert arrived == messages


async def test_a_frame_that_cannot_be_sent_is_dropped_counted_and_logged_once(start_pair):
    a, b = await start_pair()
    message = AppendEntries(
        sender="a",
        to="b",
        term=1,
        prev_index=0,
        prev_term=0,
        commit=0,
        entries=[Entry(1, 1, EntryKind.COMMANDS, bytes(FRAME_BYTES_MAX))],
    )
    before = REGISTRY.get_sample_value("raft_frames_dropped_total", {"reason": "too_large"})
    with structlog.testing.capture_logs() as logs:
        for _ in range(5):
            assert not a.links.send("b", RaftFrame([message, SMALL]))
    assert (await b.next_frame())[1] == RaftFrame([SMALL]), "the other messages of the turn arrive"
    assert REGISTRY.get_sample_value("raft_frames_dropped_total", {"reason": "too_large"}) == before + 5
    assert [entry["event"] for entry in logs] == ["frame_too_large"]
    assert a.links.is_up("b")


async def test_a_listener_that_fails_does_not_stop_the_dialer(start_node):
    def fail(peer_id: str) -> None:
        failed.append(peer_id)
        raise RuntimeError("a bug")

    failed: list[str] = []
    b = await start_node("b", {"a": NOWHERE})
    a = await start_node("a", {"b": b.address})
    assert await a.next_event() == ("up", "b")
    a.links._on_down = fail
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    await b.links.stop()
    await start_node("b", {"a": NOWHERE}, listen=b.address)
    assert await a.next_event() == ("up", "b")
    assert failed == ["b"]
    a.links._on_down = lambda peer_id: None


async def test_a_silent_peer_is_not_up_although_its_link_is(start_pair):
    """As after SIGSTOP: the connection stays, nothing arrives. The link is dropped much later."""
    a, b = await start_pair(idle_seconds=2.0, silent_seconds=0.1)
    link = a.links._links["b"]
    for _ in range(links_module.SILENT_TICKS_MIN):
        link.tick()
    assert a.links.is_up("b")
    link.tick()
    assert (a.links.is_up("b"), a.links.up_peers()) == (False, [])
    assert a.links._links["b"] is link, "it is linked"
    b.links.send("a", ForwardFrame(b"a word"))
    await a.next_frame()
    assert a.links.is_up("b")


async def test_a_working_link_is_never_silent(start_pair):
    """Pings keep both sides up when nothing else is sent."""
    a, b = await start_pair(idle_seconds=0.5, silent_seconds=0.0)
    for _ in range(2 * connection_module.IDLE_TICKS):
        await asyncio.sleep(a.links._tick_seconds)
        assert a.links.is_up("b")
        assert b.links.is_up("a")


async def test_a_node_knows_what_a_linked_peer_supports(start_node, start_pair):
    old = Announced(Supported(1, 1), 1)
    b = await start_node("b", {"a": ("127.0.0.1", 1)}, versions=lambda: old)
    a = await start_node("a", {"b": b.address})
    assert await a.next_event() == ("up", "b")
    assert await b.next_event() == ("up", "a")
    assert (a.links.supported_by("b"), b.links.supported_by("a"), a.links.supported_by("c")) == (old.supported, RELEASE, None)
    await b.links.stop()
    assert await a.next_event() == ("down", "b")
    assert a.links.supported_by("b") is None


async def test_nodes_whose_versions_do_not_fit_report_it_on_both_sides(start_node, refusals):
    old, new = Announced(Supported(1, 1), 1), Announced(Supported(1, 2), 2)
    reported: asyncio.Queue[tuple[str, Announced]] = asyncio.Queue()
    report = {"on_conflict": lambda peer, versions: reported.put_nowait((peer, versions))}
    b = await start_node("b", {"a": ("127.0.0.1", 1)}, versions=lambda: new, **report)
    a = await start_node("a", {"b": b.address}, versions=lambda: old, **report)
    async with asyncio.timeout(60):
        assert sorted([await reported.get(), await reported.get()]) == [("a", old), ("b", new)]
    await refusals.next("version")
    assert a.events.empty()
    assert b.events.empty()
