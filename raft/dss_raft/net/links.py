"""Peer links: one authenticated TCP connection between this node and each other member.

The node with the smaller id dials, and the other one accepts. The other one dials only when it suspects that it was removed
(`probe`). A newer connection of a peer replaces the older one, which the peer has closed or lost. Frames sent on a link that is
down are lost: Raft sends again, and so does everything above it.

Frames sent to a peer within one turn of the event loop go out in one write. A link on which nothing arrives for `idle_seconds` is
dropped, because the other machine may have disappeared. Long before, after `silent_seconds`, the peer does not count as up. Each side
sends a ping when it has sent nothing else for a tick or two, so that a working link is never silent that long. Idle time is counted
in ticks of a timer, not with a clock: a node that was paused reads what has arrived before it suspects a peer.

Links use mutual TLS. Until the cluster's version says that all members know it, a member that does not is linked with the handshake of the
older releases: the dialer tries TLS first, each time. With certificates of an operator's authority, that handshake is never used.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
from collections.abc import Callable
from contextlib import suppress

import structlog

from dss_api.supervised import Tasks
from dss_raft import metrics
from dss_raft.net.certificates import Credentials
from dss_raft.net.connection import IDLE_TICKS, AnyHandshake, PeerConnection
from dss_raft.net.handshake import NONCE_BYTES, Handshake
from dss_raft.net.refusal_log import RefusalLog
from dss_raft.net.tls_handshake import Acceptance, TlsHandshake
from dss_raft.net.wire import AnyFrame, Reason, WireError
from dss_raft.versions import FIRST_ANNOUNCED, Announced, Supported

log = structlog.get_logger("raft.links")
metrics.show_refusal_reasons(Reason)

#: Accepted connections that are not authenticated yet; above this limit, the oldest is closed.
UNAUTHENTICATED_MAX = 64
REDIAL_SECONDS_MIN = 0.05
REDIAL_SECONDS_MAX = 1.0
CONNECT_SECONDS_MAX = 2.0
#: A working link is silent for two ticks at most, and for a little longer when a node is busy.
SILENT_TICKS_MIN = 4
#: A connection that lasted for so many ticks was no failure.
LASTING_TICKS = 4
#: Certificate files are looked at so often.
REFRESH_TICKS = 8


class PeerLinks:
    """The links of one node. All methods and callbacks run in the loop's thread.

    Args:
        listen: address of the peer port; port 0: any free port (see `port`).
        peers: the other members' ids and addresses.
        on_frame: called with (peer id, frame) for each frame, in order.
        on_up, on_down: called with the peer's id, always alternating.
        has_left: whether this node knows for certain that a node is not a member.
        accepts: whether a node with this id may connect; by default, those in `peers` may.
        versions: what this node announces in its handshakes.
        on_conflict: called with an authenticated peer's id and versions, with which this node must not link.
        credentials: for TLS; None: links use the handshake of the older releases.
        requires_tls: whether all members are known to use TLS.
        idle_seconds: a link is dropped when nothing arrives for this time.
        silent_seconds: a peer is not up when nothing has arrived from it for this time (four pings at least).
    """

    def __init__(
        self,
        *,
        node_id: str,
        cluster_id: str,
        secret: bytes,
        listen: tuple[str, int],
        peers: dict[str, tuple[str, int]],
        on_frame: Callable[[str, AnyFrame], None],
        on_up: Callable[[str], None],
        on_down: Callable[[str], None],
        has_left: Callable[[str], bool] = lambda peer_id: False,
        accepts: Callable[[str], bool] | None = None,
        versions: Callable[[], Announced] = lambda: FIRST_ANNOUNCED,
        on_conflict: Callable[[str, Announced], None] = lambda peer_id, versions: None,
        credentials: Credentials | None = None,
        requires_tls: Callable[[], bool] = lambda: False,
        idle_seconds: float = 5.0,
        silent_seconds: float = 1.0,
    ) -> None:
        self.port = listen[1]
        self.on_frame = on_frame
        self._node_id = node_id
        self._cluster_id = cluster_id
        self._secret = secret
        self._listen = listen
        self._on_up = on_up
        self._on_down = on_down
        self._has_left = has_left
        self._accepts = accepts or (lambda peer_id: peer_id in self._peers)
        self._versions = versions
        self._on_conflict = on_conflict
        self._credentials = credentials
        self._requires_tls = requires_tls
        self._refreshing: asyncio.Task[None] | None = None
        self._ticks = 0
        self._tick_seconds = idle_seconds / IDLE_TICKS
        self._silent_ticks = max(SILENT_TICKS_MIN, math.ceil(silent_seconds / self._tick_seconds))
        self._peers = {peer_id: address for peer_id, address in peers.items() if peer_id != node_id}
        self._links: dict[str, PeerConnection] = {}
        #: when something last arrived from peers whose link is down
        self._heard_s: dict[str, float] = {}
        self._unauthenticated: dict[PeerConnection, None] = {}
        self._dialers: dict[str, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._refusals = RefusalLog()
        self._idle_ms = int(idle_seconds * 1000)
        #: unreachable peers that have been logged already
        self._unreachable: set[str] = set()
        self._tasks = Tasks()
        #: authenticated peers whose last answer was that this node is not a member
        self.disowned_by: set[str] = set()

    # -- starting and stopping -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and start to dial. Raises OSError when the port cannot be bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: PeerConnection(self), *self._listen)
        self.port = self._server.sockets[0].getsockname()[1]
        self._ticker = loop.call_later(self._tick_seconds, self._tick)
        for peer_id in self._peers:
            self._begin_to_dial(peer_id)

    async def stop(self) -> None:
        """Send what is queued, close every link and stop listening."""
        if self._ticker is not None:
            self._ticker.cancel()
        self._tasks.cancel()
        if self._server is not None:
            self._server.close()
        connections = [*self._links.values(), *self._unauthenticated]
        for connection in connections:
            connection.close()
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=1.0)
        for connection in connections:
            connection.abort()
        await self._tasks.stop()
        if self._server is not None:
            await self._server.wait_closed()

    # -- use -------------------------------------------------------------------------------------------------------------------

    def send(self, peer_id: str, frame: AnyFrame) -> bool:
        """Queue a frame, best effort. False: it was dropped (link down, peer too slow, frame over the limit)."""
        link = self._links.get(peer_id)
        return link is not None and link.send(frame)

    def is_up(self, peer_id: str) -> bool:
        """True when something has arrived from the peer within `silent_seconds`."""
        link = self._links.get(peer_id)
        return link is not None and link.ticks_without_data <= self._silent_ticks

    def silent_ms(self, peer_id: str) -> int | None:
        """For how long nothing has arrived from the peer, on this link or an earlier one, in steps of a tick; None if nothing ever has."""
        link = self._links.get(peer_id)
        if link is not None:
            return round(link.ticks_without_data * self._tick_seconds * 1000)
        heard_s = self._heard_s.get(peer_id)
        return None if heard_s is None else round((asyncio.get_running_loop().time() - heard_s) * 1000)

    def supported_by(self, peer_id: str) -> Supported | None:
        """The cluster versions that a peer supports; None unless it is up."""
        if not self.is_up(peer_id):
            return None
        versions = self._links[peer_id].versions
        return None if versions is None else versions.supported

    def up_peers(self) -> list[str]:
        return sorted(filter(self.is_up, self._links))

    def probe(self, peer_id: str) -> None:
        """Dial once a peer that should have dialed this node: it may refuse this node (`disowned_by`)."""
        if peer_id in self._peers and peer_id not in self._links and peer_id not in self._dialers:
            self.disowned_by.discard(peer_id)
            self._tasks.spawn("peer_link", self._dial(peer_id))

    @property
    def peers(self) -> dict[str, tuple[str, int]]:
        """The other members and their addresses, linked or not."""
        return dict(self._peers)

    def add_peer(self, peer_id: str, address: tuple[str, int]) -> None:
        """A member was added, or its address has changed."""
        if peer_id == self._node_id or self._peers.get(peer_id) == address:
            return
        if peer_id in self._peers:
            self.remove_peer(peer_id)
        self._peers[peer_id] = address
        if self._server is not None:
            self._begin_to_dial(peer_id)

    def remove_peer(self, peer_id: str) -> None:
        """A member was removed: send what is queued, close its link, and refuse it from now on."""
        self._peers.pop(peer_id, None)
        dialer = self._dialers.pop(peer_id, None)
        if dialer is not None:
            dialer.cancel()
        link = self._links.get(peer_id)
        if link is not None:
            link.close()
            self.lost(link)
        self._heard_s.pop(peer_id, None)

    # -- dialing ---------------------------------------------------------------------------------------------------------------

    def _begin_to_dial(self, peer_id: str) -> None:
        if self._node_id < peer_id:
            self._dialers[peer_id] = self._tasks.keep("peer_link", lambda: self._keep_dialing(peer_id))

    async def _keep_dialing(self, peer_id: str) -> None:
        pause = REDIAL_SECONDS_MIN
        while True:
            if await self._dial(peer_id):
                pause = REDIAL_SECONDS_MIN  # the connection lasted for a while: no reason to back off
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, REDIAL_SECONDS_MAX)

    async def _dial(self, peer_id: str) -> bool:
        """Run one connection until it ends. True when it was authenticated and lasted for a while."""
        connection = await self._connect(peer_id, with_tls=self._credentials is not None)
        if connection is not None and connection.is_without_tls and peer_id in self._peers:
            connection = await self._connect(peer_id, with_tls=False)
        return connection is not None and connection.ticks >= LASTING_TICKS and connection.stream is not None

    async def _connect(self, peer_id: str, with_tls: bool) -> PeerConnection | None:
        """Run one connection until it ends. None: nothing listens there."""
        host, port = self._peers[peer_id]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                _, connection = await loop.create_connection(lambda: PeerConnection(self, peer_id, with_tls), host, port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError; UnicodeError: the host name is invalid
            if peer_id not in self._unreachable:
                log.info("peer_unreachable", peer=peer_id, address=f"{host}:{port}", error=str(error) or "timed out")
            self._unreachable.add(peer_id)
            return None
        try:
            await connection.closed
        finally:
            connection.close()
        return connection

    # -- called by the connections ---------------------------------------------------------------------------------------------

    def opened(self, connection: PeerConnection) -> AnyHandshake:
        """A TCP connection was opened; the other side is not authenticated yet."""
        accepted = [other for other in self._unauthenticated if other.dials is None]
        if connection.dials is None and len(accepted) >= UNAUTHENTICATED_MAX:
            accepted[0].refuse(WireError(Reason.TOO_MANY, f"more than {UNAUTHENTICATED_MAX} unauthenticated connections"))
        self._unauthenticated[connection] = None
        if self._credentials is None:
            return self._secret_handshake(connection.dials)
        if connection.dials is not None:
            dials, with_tls = connection.dials, connection.with_tls
            return self._tls_handshake(self._credentials, dials) if with_tls else self._secret_handshake(dials)
        credentials = self._credentials
        return Acceptance(
            lambda: self._tls_handshake(credentials, None), self._secret_handshake if self._may_be_without_tls else None
        )

    @property
    def _may_be_without_tls(self) -> bool:
        """Whether this node links with nodes that do not know TLS."""
        return self._credentials is None or (self._credentials.accepts_secret and not self._requires_tls())

    def _tls_handshake(self, credentials: Credentials, dials: str | None) -> TlsHandshake:
        return TlsHandshake(
            node_id=self._node_id,
            cluster_id=self._cluster_id,
            credentials=credentials,
            dials=dials,
            versions=self._versions(),
            refuses=self._refuses,
        )

    def _secret_handshake(self, dials: str | None = None) -> Handshake:
        return Handshake(
            node_id=self._node_id,
            cluster_id=self._cluster_id,
            secret=self._secret,
            nonce=os.urandom(NONCE_BYTES),
            dials=dials,
            versions=self._versions(),
            refuses=self._refuses,
            can_tls=self._credentials is not None,
        )

    def _refuses(self, peer_id: str) -> Reason | None:
        if self._accepts(peer_id):
            return None
        return Reason.NO_MEMBER if self._has_left(peer_id) else Reason.UNKNOWN_PEER

    def authenticated(self, connection: PeerConnection) -> None:
        """The handshake has succeeded."""
        self._unauthenticated.pop(connection, None)
        self._unreachable.discard(connection.peer_id)
        self.disowned_by.discard(connection.peer_id)
        older = self._links.get(connection.peer_id)
        if older is not None:
            older.abort()
            self.lost(older)
        self._links[connection.peer_id] = connection
        self._on_up(connection.peer_id)

    def lost(self, connection: PeerConnection) -> None:
        """The connection is closed or is being closed."""
        self._unauthenticated.pop(connection, None)
        if self._links.get(connection.peer_id) is connection:
            del self._links[connection.peer_id]
            silent_s = connection.ticks_without_data * self._tick_seconds
            self._heard_s[connection.peer_id] = asyncio.get_running_loop().time() - silent_s
            self._on_down(connection.peer_id)

    def refused(self, connection: PeerConnection, error: WireError) -> None:
        """The other side broke the protocol, or refused this node. The connection is being closed."""
        if error.reason is Reason.NO_TLS and connection.dials is not None and connection.with_tls and self._may_be_without_tls:
            connection.is_without_tls = True
            log.info("peer_without_tls", peer=connection.dials, address=connection.address)
            return
        metrics.peer_refused(error.reason)
        if error.reason is Reason.NO_MEMBER and connection.dials is not None:
            self.disowned_by.add(connection.peer_id)
        self._refusals.write(error, connection)
        if error.reason is Reason.VERSION and connection.is_authenticated and connection.versions is not None:
            self._on_conflict(connection.peer_id, connection.versions)

    def configure(self, sock: socket.socket) -> None:
        """Send small frames without delay, and drop the connection when bytes stay unacknowledged for the idle time."""
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._idle_ms)

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)
        for connection in [*self._links.values(), *self._unauthenticated]:
            connection.tick()
        self._ticks += 1
        is_refreshing = self._refreshing is not None and not self._refreshing.done()
        if self._ticks % REFRESH_TICKS == 0 and self._credentials is not None and not is_refreshing:
            self._refreshing = self._tasks.spawn("peer_link", self._refresh(self._credentials))

    async def _refresh(self, credentials: Credentials) -> None:
        if await credentials.refresh():
            self._relink()

    def _relink(self) -> None:
        """Close all links: they are made again, with the certificates that count now."""
        for connection in [*self._links.values(), *self._unauthenticated]:
            connection.close()
