"""Links with TLS next to links without, strangers at a port that speaks TLS, and certificates that change while links work."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from dss_raft.net import links as links_module
from dss_raft.net.certificates import SecretCredentials
from dss_raft.net.tls_handshake import UNVERIFIED_BYTES_MAX
from dss_raft.net.wire import AuthenticatedStream, ForwardFrame

NOWHERE = ("127.0.0.1", 1)


@pytest.fixture
def start_tls(ends, start_node):
    """`await start_tls("a", …)` starts links with TLS."""

    async def start(node_id: str, peers=None, **more):
        return await start_node(node_id, peers or {}, **{"credentials": ends.credentials(node_id), **more})

    return start


@pytest.fixture
async def node(start_tls):
    """All its members are known to use TLS."""
    return await start_tls("b", {"a": NOWHERE}, requires_tls=lambda: True)


async def assert_serves(node, start_tls) -> None:
    """A good peer connects, and its frames arrive."""
    peer = await start_tls("a", {"b": node.address}, requires_tls=lambda: True)
    assert await peer.next_event() == ("up", "b")
    peer.links.send("b", ForwardFrame(b"good"))
    assert (await node.next_frame())[1] == ForwardFrame(b"good")


# ------------------------------------------------------------ with older releases


@pytest.mark.parametrize("older", ["a", "b"])
async def test_a_member_of_an_older_release_is_linked_until_all_know_tls(start_node, start_tls, refusals, older):
    """ "a" dials. The older one refuses TLS and says so in its own way."""
    start = {"a": start_tls, "b": start_tls, older: start_node}
    with capture_logs() as logs:
        b = await start["b"]("b", {"a": NOWHERE})
        a = await start["a"]("a", {"b": b.address})
        assert await a.next_event() == ("up", "b")
        assert await b.next_event() == ("up", "a")
    assert isinstance(a.links._links["b"].stream, AuthenticatedStream)
    assert ("peer_without_tls" in [line["event"] for line in logs]) == (older == "b")
    b.links.send("a", ForwardFrame(b"hello"))
    assert await a.next_frame() == ("b", ForwardFrame(b"hello"))


async def test_a_member_that_was_upgraded_is_linked_with_tls(start_node, start_tls):
    old = await start_node("b", {"a": NOWHERE})
    a = await start_tls("a", {"b": old.address})
    assert await a.next_event() == ("up", "b")
    await old.links.stop()
    assert await a.next_event() == ("down", "b")
    await start_tls("b", {"a": NOWHERE}, listen=old.address)
    assert await a.next_event() == ("up", "b")
    assert not isinstance(a.links._links["b"].stream, AuthenticatedStream)


@pytest.mark.parametrize("older", ["a", "b"])
async def test_when_all_know_tls_no_other_link_is_made(start_node, start_tls, refusals, older):
    start = {"a": start_tls, "b": start_tls, older: start_node}
    requires = {"requires_tls": lambda: True}
    b = await start["b"]("b", {"a": NOWHERE}, **requires)
    a = await start["a"]("a", {"b": b.address}, **requires)
    for _ in range(2):
        await refusals.next("no_tls")
    assert a.events.empty()
    assert b.events.empty()


async def test_somebody_in_between_who_removes_tls_gets_no_link(start_tls, refusals):
    """Neither node requires TLS yet. The one in between answers the first connection as an older release would."""
    b = await start_tls("b", {"a": NOWHERE})

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(4096)
        if first[0] != 0x16:
            there, back = await asyncio.open_connection(*b.address)
            back.write(first)
            await asyncio.gather(pipe(reader, back), pipe(there, writer))
        writer.write(b"\0\0\0\x05DSSP\x0b")
        writer.close()

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(4096):
                sink.write(data)
        sink.close()

    server = await asyncio.start_server(between, "127.0.0.1", 0)
    a = await start_tls("a", {"b": server.sockets[0].getsockname()})
    await refusals.next("no_tls", "refused_by_peer")
    assert a.events.empty()
    assert b.events.empty()
    server.close()


# ------------------------------------------------------------ strangers


async def test_a_node_with_another_secret_is_logged_clearly(node, start_tls, refusals):
    with capture_logs() as logs:
        stranger = await start_tls("a", {"b": node.address}, credentials=SecretCredentials("guess", "c", "a"))
        await refusals.next("wrong_secret", "refused_by_peer")
    lines = {line["reason"]: line["detail"] for line in logs if line["event"] == "peer_refused"}
    assert lines["wrong_secret"] == "the peer does not know the cluster secret: its certificate was made with another one"
    assert lines["refused_by_peer"].endswith("says: unknown ca. Do both nodes have the same DSS_CLUSTER_SECRET?")
    await stranger.links.stop()
    await assert_serves(node, start_tls)


async def test_a_tls_client_without_a_certificate_is_refused(node, start_tls, refusals):
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(*node.address, ssl=client)
    await refusals.next("certificate")
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
        await reader.read()
    writer.close()
    await assert_serves(node, start_tls)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no_tls"),
        (b"\0\0\0\x05DSSP\x0b", "no_tls"),
        (b"\x16\x03\x01\xff\xff" + bytes(100), "malformed"),
        (b"\x16GET / HTTP/1.1", "malformed"),
        ((b"\x16\x03\x01\x40\x00\x01\x01\xff\xff" + bytes(0x4000 - 4)) * 3, "too_large"),
    ],
)
async def test_other_bytes_are_refused_and_told_nothing(node, start_tls, refusals, data, reason):
    reader, writer = await asyncio.open_connection(*node.address)
    writer.write(data)
    await refusals.next(reason)
    with suppress(ConnectionError):  # the rest of what was sent is not read
        said = await reader.read()
        assert len(said) <= 22
        assert b"DSSP\x0b\x93" in said or len(said) <= 7
    writer.close()
    assert len(data) < 2 * UNVERIFIED_BYTES_MAX
    await assert_serves(node, start_tls)


async def test_half_a_handshake_ends_in_time(start_tls, ends, refusals):
    node = await start_tls("b", {"a": NOWHERE}, idle_seconds=0.1)
    reader, writer = await asyncio.open_connection(*node.address)
    writer.write(ends.tls("a", dials="b").greeting())
    await refusals.next("timeout")
    assert await reader.read(1) == b"\x16"
    writer.close()


async def test_many_half_handshakes_do_not_keep_a_good_peer_out(node, start_tls, ends, refusals, monkeypatch):
    monkeypatch.setattr(links_module, "UNAUTHENTICATED_MAX", 5)
    writers = []
    for _ in range(12):
        _, writer = await asyncio.open_connection(*node.address)
        writer.write(ends.tls("a", dials="b").greeting())
        writers.append(writer)
    for _ in range(7):
        await refusals.next("too_many")
    await assert_serves(node, start_tls)
    assert len(node.links._unauthenticated) <= 5
    for writer in writers:
        writer.close()


async def test_a_member_that_breaks_tls_is_disconnected(node, start_tls, ends, refusals):
    reader, writer = await asyncio.open_connection(*node.address)
    dialer = ends.tls("a", dials="b")
    writer.write(dialer.greeting())
    while dialer.stream is None:
        writer.write(dialer.feed(await reader.read(4096)))
    assert await node.next_event() == ("up", "a")
    writer.write(b"\x17\x03\x03\x00\x40" + bytes(64))
    await refusals.next("bad_mac")
    assert await node.next_event() == ("down", "a")
    writer.close()
    await assert_serves(node, start_tls)


# ------------------------------------------------------------ certificates that change


async def test_changed_certificates_count_for_links_that_work(start_tls, ends, monkeypatch):
    """The links are made again. One that is refused now stays down."""
    monkeypatch.setattr(links_module, "REFRESH_TICKS", 1)
    credentials, changes = ends.credentials("b"), []

    async def refresh() -> bool:
        return bool(changes and changes.pop())

    monkeypatch.setattr(credentials, "refresh", refresh)
    b = await start_tls("b", {"a": NOWHERE}, credentials=credentials, idle_seconds=1.0)
    a = await start_tls("a", {"b": b.address})
    assert await a.next_event() == ("up", "b")
    assert await b.next_event() == ("up", "a")
    changes.append(True)
    assert [await b.next_event(), await b.next_event()] == [("down", "a"), ("up", "a")]
    monkeypatch.setattr(credentials, "is_revoked", lambda chain: True)
    changes.append(True)
    assert await b.next_event() == ("down", "a")
    assert [await a.next_event() for _ in range(3)] == [("down", "b"), ("up", "b"), ("down", "b")]
    assert b.events.empty()


async def test_links_work_while_certificates_are_read(start_tls, ends, monkeypatch):
    """A long revocation list takes a while. It is not read twice meanwhile."""
    monkeypatch.setattr(links_module, "REFRESH_TICKS", 1)
    credentials, began, is_read = ends.credentials("b"), [], asyncio.Event()

    async def refresh() -> bool:
        began.append(True)
        await is_read.wait()
        return len(began) == 1

    monkeypatch.setattr(credentials, "refresh", refresh)
    b = await start_tls("b", {"a": NOWHERE}, credentials=credentials, idle_seconds=1.0)
    a = await start_tls("a", {"b": b.address})
    assert await b.next_event() == ("up", "a")
    await asyncio.sleep(0.2)
    a.links.send("b", ForwardFrame(b"meanwhile"))
    assert (await b.next_frame())[1] == ForwardFrame(b"meanwhile")
    assert began == [True]
    is_read.set()
    assert [await b.next_event(), await b.next_event()] == [("down", "a"), ("up", "a")]


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_the_secret_is_changed_in_two_rounds_of_restarts(start_tls, ends, order):
    """In each round the nodes restart one after the other. After each restart the link is up."""

    def credentials(node_id: str, step: int) -> SecretCredentials:
        secret, previous = (("old", ""), ("new", "old"), ("new", ""))[step]
        return SecretCredentials(secret, "c", node_id, previous=previous)

    b = await start_tls("b", {"a": NOWHERE}, credentials=credentials("b", 0))
    a = await start_tls("a", {"b": b.address}, credentials=credentials("a", 0))
    assert await a.next_event() == ("up", "b")
    for step in (1, 2):
        for node_id in order:
            if node_id == "a":
                await a.links.stop()
                a = await start_tls("a", {"b": b.address}, credentials=credentials("a", step))
            else:
                await b.links.stop()
                assert await a.next_event() == ("down", "b")
                b = await start_tls("b", {"a": NOWHERE}, listen=b.address, credentials=credentials("b", step))
            assert await a.next_event() == ("up", "b")
