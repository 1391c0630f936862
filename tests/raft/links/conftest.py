"""Helpers of the peer links' tests: handshakes without a network, and real links on loopback."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable

import pytest
import uvloop
from prometheus_client import REGISTRY

from dss_dev.patience import PATIENCE_S
from dss_raft import metrics
from dss_raft.net.certificates import Credentials, SecretCredentials
from dss_raft.net.handshake import Handshake
from dss_raft.net.links import PeerLinks
from dss_raft.net.tls_handshake import TlsHandshake
from dss_raft.net.wire import AnyFrame, AuthenticatedStream

SECRET = b"the cluster's secret"
OF_SECRET = functools.partial(SecretCredentials, SECRET.decode())
_nonces = itertools.count(1)


class Ends:
    """Both ends of a connection without a network."""

    @staticmethod
    def handshake(node_id: str, dials: str | None = None, cluster_id: str = "c", secret: bytes = SECRET, **more) -> Handshake:
        nonce = next(_nonces).to_bytes(32, "big")
        return Handshake(node_id=node_id, cluster_id=cluster_id, secret=secret, nonce=nonce, dials=dials, **more)

    @staticmethod
    def credentials(node_id: str, cluster_id: str = "c") -> Credentials:
        """Made from the cluster's secret."""
        return OF_SECRET(cluster_id, node_id)

    @classmethod
    def tls(
        cls, node_id: str, dials: str | None = None, cluster_id: str = "c", credentials: Credentials | None = None, **more
    ) -> TlsHandshake:
        credentials = credentials or cls.credentials(node_id, cluster_id)
        return TlsHandshake(node_id=node_id, cluster_id=cluster_id, credentials=credentials, dials=dials, **more)

    @staticmethod
    def shake(dialer: Handshake, acceptor: Handshake) -> list[bytes]:
        """Run a complete handshake. Returns what was sent."""
        sent = [dialer.greeting()]
        sides = itertools.cycle((acceptor, dialer))
        while sent[-1]:
            sent.append(next(sides).feed(sent[-1]))
        return sent

    @classmethod
    def streams(cls) -> tuple[AuthenticatedStream, AuthenticatedStream]:
        dialer, acceptor = cls.handshake("a", dials="b"), cls.handshake("b")
        cls.shake(dialer, acceptor)
        assert dialer.stream is not None
        assert acceptor.stream is not None
        return dialer.stream, acceptor.stream


class Node:
    """Real links, and what they have reported, which tests can await."""

    def __init__(
        self, node_id: str, peers: dict[str, tuple[str, int]], listen: tuple[str, int] = ("127.0.0.1", 0), **more
    ) -> None:
        self.frames: asyncio.Queue[tuple[str, AnyFrame]] = asyncio.Queue()
        self.events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        arguments = {"cluster_id": "c", "secret": SECRET, **more}
        self.links = PeerLinks(
            node_id=node_id,
            listen=listen,
            peers=peers,
            on_frame=lambda peer, frame: self.frames.put_nowait((peer, frame)),
            on_up=lambda peer: self.events.put_nowait(("up", peer)),
            on_down=lambda peer: self.events.put_nowait(("down", peer)),
            **arguments,
        )

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.links.port

    async def next_event(self) -> tuple[str, str]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.events.get()

    async def next_frame(self) -> tuple[str, AnyFrame]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.frames.get()


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The tests of the links run on asyncio's loop and on uvloop, which nodes use if they can."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def ends() -> type[Ends]:
    return Ends


@pytest.fixture
async def start_node():
    """`await start_node("a", {"b": address}, …)` starts links, which are stopped at the end of the test."""
    started: list[Node] = []

    async def start(node_id: str, peers: dict[str, tuple[str, int]] | None = None, **more) -> Node:
        node = Node(node_id, peers or {}, **more)
        await node.links.start()
        started.append(node)
        return node

    yield start
    for node in started:
        await node.links.stop()


class Refusals:
    """The counter `raft_peer_refused_total`: `refusals(reason)` reads it, `await refusals.next(…)` waits for one of each."""

    def __init__(self) -> None:
        self._counted: asyncio.Queue[str] = asyncio.Queue()
        self._count = metrics.peer_refused

    def count(self, reason: str) -> None:
        self._count(reason)
        self._counted.put_nowait(str(reason))

    def __call__(self, reason: str) -> float:
        return REGISTRY.get_sample_value("raft_peer_refused_total", {"reason": reason}) or 0.0

    async def next(self, *reasons: str) -> None:
        awaited = set(reasons)
        async with asyncio.timeout(PATIENCE_S):
            while awaited:
                awaited.discard(await self._counted.get())


@pytest.fixture
def refusals(monkeypatch) -> Refusals:
    refusals = Refusals()
    monkeypatch.setattr(metrics, "peer_refused", refusals.count)
    return refusals
