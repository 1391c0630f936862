"""What a stranger sends to the peer port is refused, counted and logged. The node stays up, and a good peer connects."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dss_raft import metrics
from dss_raft.net import handshake as handshake_module
from dss_raft.net import links as links_module
from dss_raft.net.handshake import MESSAGE_BYTES_MAX, VERSION
from dss_raft.net.wire import FRAME_BYTES_MAX, ForwardFrame, PingFrame, WireError, with_length

NOWHERE = ("127.0.0.1", 1)


class Stranger:
    """A plain TCP connection to a node's peer port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, node) -> Stranger:
        return cls(*await asyncio.open_connection(*node.address))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def shake(self, handshake) -> None:
        """Go through a handshake as the dialing side."""
        await self.send(handshake.greeting())
        while handshake.stream is None:
            await self.send(handshake.feed(await self.reader.read(4096)))

    async def closed(self) -> bytes:
        """The remaining bytes until the node closes the connection."""
        async with asyncio.timeout(60):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""
            finally:
                self.writer.close()


@pytest.fixture
async def node(start_node):
    return await start_node("b", {"a": NOWHERE})


async def assert_serves(node, start_node) -> None:
    """A good peer connects, and its frames arrive."""
    peer = await start_node("a", {"b": node.address})
    assert await peer.next_event() == ("up", "b")
    peer.links.send("b", ForwardFrame(b"good"))
    while (await node.next_frame())[1] != ForwardFrame(b"good"):
        pass


def all_refusals() -> float:
    return sum(sample.value for metric in metrics.PEER_REFUSED.collect() for sample in metric.samples if "total" in sample.name)


#: how far a stranger gets before it attacks
APPROACHES = {
    "none": {},
    "greeting": {},
    "wrong_secret": {"secret": b"guess"},
    "wrong_cluster": {"cluster_id": "other"},
    "proven": {},
}
attacks = st.one_of(
    st.tuples(st.just("bytes"), st.binary(min_size=1, max_size=3000)),
    st.tuples(st.just("length"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("cut short"), st.integers(1, 30)),
    st.tuples(st.just("flipped"), st.integers(32, 300)),
    st.tuples(st.just("repeated"), st.integers(2, 5)),
)


async def attack(stranger: Stranger, handshake: Any, approach: str, what: str, value: Any) -> None:
    if approach == "proven":
        await stranger.shake(handshake)
    elif approach != "none":
        await stranger.send(handshake.greeting())
    if approach.startswith("wrong"):
        with suppress(WireError):  # this side would itself refuse a node that does not know its secret
            await stranger.send(handshake.feed(await stranger.reader.read(4096)))
    if what == "bytes":
        return await stranger.send(value)
    if what == "length":
        return await stranger.send(struct.pack(">I", value))
    frame = handshake.stream.encode(ForwardFrame(b"once")) if handshake.stream else b"DSSP" * 10
    if what == "cut short":
        return await stranger.send(frame[:-value])
    if what == "flipped":
        bit = value % (len(frame) * 8 - 32) + 32  # not in the length
        return await stranger.send(frame[: bit // 8] + bytes([frame[bit // 8] ^ 1 << bit % 8]) + frame[bit // 8 + 1 :])
    return await stranger.send(frame * value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(approach=st.sampled_from(sorted(APPROACHES)), how=attacks)
async def test_the_node_stays_up_whatever_a_stranger_does(node, ends, approach, how):
    """One node survives all examples: no false frame arrives, no connection of the stranger is left, a good peer is served."""
    before = all_refusals()
    what, value = how
    stranger = await Stranger.connect(node)
    with suppress(OSError):  # the node may close the connection in the middle
        await attack(stranger, ends.handshake("a", dials="b", **APPROACHES[approach]), approach, what, value)
        stranger.writer.write_eof()
    await stranger.closed()
    broken = approach.startswith("wrong") or (approach == "proven" and what in ("flipped", "repeated"))
    too_large = what == "length" and value > (FRAME_BYTES_MAX if approach == "proven" else MESSAGE_BYTES_MAX)
    if broken or too_large:
        assert all_refusals() > before
    heard = [b"once"] * (approach == "proven" and what == "repeated")
    good = await Stranger.connect(node)
    handshake = ends.handshake("a", dials="b")
    await good.shake(handshake)
    await good.send(handshake.stream.encode(ForwardFrame(b"good")))
    while (frame := (await node.next_frame())[1]) != ForwardFrame(b"good"):
        assert frame.group == heard.pop()
    assert not heard
    assert not node.links._unauthenticated
    good.writer.close()
    await good.closed()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack(">I", 2**32 - 1), "too_large"),
        (struct.pack(">I", 2000) + bytes(2000), "too_large"),
        (b"GET / HTTP/1.1\r\n\r\n", "too_large"),
        (struct.pack(">I", 10) + bytes(10), "malformed"),
        (struct.pack(">I", 5) + b"DSSP\x63", "version"),
        (struct.pack(">I", 5) + b"DSSP" + bytes([VERSION]), "malformed"),
    ],
)
async def test_bytes_that_are_not_a_handshake_are_counted_logged_and_answered(node, start_node, refusals, data, reason):
    before = refusals(reason)
    with capture_logs() as logs:
        stranger = await Stranger.connect(node)
        await stranger.send(data)
        assert reason.encode() in await stranger.closed()
    assert refusals(reason) == before + 1
    (line,) = [line for line in logs if line["event"] == "peer_refused"]
    assert (line["reason"], line["log_level"]) == (reason, "warning")
    await assert_serves(node, start_node)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"secret": b"guess"}, "wrong_secret"),
        ({"cluster_id": "other"}, "wrong_cluster"),
    ],
)
async def test_a_node_with_a_wrong_secret_or_of_another_cluster(node, start_node, refusals, other, reason):
    stranger = await start_node("a", {"b": node.address}, **other)
    await refusals.next(reason, "refused_by_peer")
    assert stranger.events.empty()
    assert node.events.empty()
    await stranger.links.stop()
    await assert_serves(node, start_node)


@pytest.mark.parametrize("has_left", [False, True])
async def test_a_node_that_is_not_a_member(start_node, refusals, has_left):
    """Both know the secret. Only a node that knows for certain is believed."""
    node = await start_node("b", {"a": NOWHERE}, has_left=lambda peer: has_left)
    asking = await start_node("aa", {"b": node.address})
    await refusals.next("no_member" if has_left else "unknown_peer")
    if has_left:
        await refusals.next("no_member")
    else:
        await refusals.next("refused_by_peer")
    assert asking.links.disowned_by == ({"b"} if has_left else set())
    assert node.events.empty()


@pytest.mark.parametrize("reason", ["unknown_peer", "no_member", "delete all data"])
async def test_a_stranger_at_a_peers_address_cannot_say_that_this_node_was_removed(start_node, refusals, reason):
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(with_length(handshake_module.PREFIX + msgspec.msgpack.encode(handshake_module.Refusal(reason))))
        writer.close()

    server = await asyncio.start_server(stranger, "127.0.0.1", 0)
    with capture_logs() as logs:
        a = await start_node("a", {"b": server.sockets[0].getsockname()})
        for _ in range(3):
            await refusals.next("refused_by_peer")
        assert a.links.disowned_by == set()
        server.close()
    said = [line for line in logs if line["event"] == "peer_refused"]
    assert said
    assert not any(line["authenticated"] for line in said)
    assert "delete" not in str(said)


async def test_many_strangers_do_not_end_the_connections_that_this_node_dials(start_node, ends, refusals, monkeypatch):
    monkeypatch.setattr(links_module, "UNAUTHENTICATED_MAX", 3)
    may_answer = asyncio.Event()
    dialed = asyncio.Event()

    async def slow_peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialed.set()
        side = ends.handshake("b")
        greeting = await reader.read(4096)
        await may_answer.wait()
        writer.write(side.feed(greeting))
        writer.write(side.feed(await reader.read(4096)))

    server = await asyncio.start_server(slow_peer, "127.0.0.1", 0)
    a = await start_node("a", {"b": server.sockets[0].getsockname()})
    await dialed.wait()
    strangers = [await Stranger.connect(a) for _ in range(10)]
    for _ in range(7):
        await refusals.next("too_many")
    may_answer.set()
    assert await a.next_event() == ("up", "b")
    for stranger in strangers:
        stranger.writer.close()
    server.close()


async def test_a_handshake_and_then_garbage(node, start_node, ends, refusals):
    before = refusals("bad_mac")
    stranger = await Stranger.connect(node)
    await stranger.shake(ends.handshake("a", dials="b"))
    assert await node.next_event() == ("up", "a")
    await stranger.send(struct.pack(">I", 100) + bytes(100))
    await stranger.closed()
    assert await node.next_event() == ("down", "a")
    assert refusals("bad_mac") == before + 1
    await assert_serves(node, start_node)


async def test_a_frame_that_was_changed_dropped_or_repeated(node, start_node, ends, refusals):
    for change, reason in (
        (lambda first, second: first[:-1] + b"!" + second, "bad_mac"),
        (lambda first, second: second, "replay"),
        (lambda first, second: first + first, "replay"),
    ):
        before = refusals(reason)
        stranger = await Stranger.connect(node)
        dialer = ends.handshake("a", dials="b")
        await stranger.shake(dialer)
        await stranger.send(change(dialer.stream.encode(ForwardFrame(b"one")), dialer.stream.encode(ForwardFrame(b"two"))))
        await stranger.closed()
        assert refusals(reason) == before + 1
    await assert_serves(node, start_node)


async def test_a_replayed_connection(node, start_node, ends, refusals):
    recorded = []
    stranger = await Stranger.connect(node)
    dialer = ends.handshake("a", dials="b")
    recorded.append(dialer.greeting())
    await stranger.send(recorded[0])
    recorded.append(dialer.feed(await stranger.reader.read(4096)))
    await stranger.send(recorded[1])
    dialer.feed(await stranger.reader.read(4096))
    recorded.append(dialer.stream.encode(ForwardFrame(b"delete everything")))
    await stranger.send(recorded[2])
    assert (await node.next_frame())[1] == ForwardFrame(b"delete everything")
    stranger.writer.close()

    before = refusals("wrong_secret")
    again = await Stranger.connect(node)
    for data in recorded:
        await again.send(data)
    await again.closed()
    assert refusals("wrong_secret") == before + 1
    assert node.frames.empty()
    await assert_serves(node, start_node)


async def test_a_huge_length_after_the_handshake(node, start_node, ends, refusals):
    before = refusals("too_large")
    stranger = await Stranger.connect(node)
    await stranger.shake(ends.handshake("a", dials="b"))
    await stranger.send(struct.pack(">I", FRAME_BYTES_MAX + 1))
    await stranger.closed()
    assert refusals("too_large") == before + 1
    await assert_serves(node, start_node)


async def test_a_silent_stranger_is_disconnected(start_node, refusals):
    node = await start_node("b", {"a": NOWHERE}, idle_seconds=0.1)
    stranger = await Stranger.connect(node)
    await stranger.send(b"\0")
    await refusals.next("timeout")
    await stranger.closed()


async def test_many_strangers_do_not_keep_a_good_peer_out(node, start_node, refusals, monkeypatch):
    monkeypatch.setattr(links_module, "UNAUTHENTICATED_MAX", 5)
    before = refusals("too_many")
    strangers = [await Stranger.connect(node) for _ in range(12)]
    await strangers[0].closed()
    await assert_serves(node, start_node)
    assert refusals("too_many") >= before + 7
    for stranger in strangers:
        stranger.writer.close()


async def test_many_refusals_are_all_counted_and_rarely_logged(node, refusals):
    before = refusals("malformed")
    with capture_logs() as logs:
        for _ in range(50):
            stranger = await Stranger.connect(node)
            await stranger.send(struct.pack(">I", 3) + b"bad")
            await stranger.closed()
    assert refusals("malformed") == before + 50
    assert 1 <= len([line for line in logs if line["event"] == "peer_refused"]) < 10


async def test_an_impostor_at_a_peers_address_is_not_believed(start_node, ends, refusals):
    """The impostor listens at the address of "b", without the secret."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        side = ends.handshake("b", secret=b"guess")
        writer.write(side.feed(await reader.read(4096)))
        await reader.read(4096)
        writer.write(side._proof())
        await reader.read()
        writer.close()

    server = await asyncio.start_server(impostor, "127.0.0.1", 0)
    a = await start_node("a", {"b": server.sockets[0].getsockname()})
    await refusals.next("wrong_secret")
    assert a.events.empty()
    assert not a.links.send("b", PingFrame())
    server.close()
