"""A connection of the listener as Twisted's protocols see it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITransport
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from dss_project.server.taken_over import PageConnection


@implementer(ITransport, IPushProducer)
class TwistedTransport(asyncio.Protocol):
    """To the listener's connection it is a protocol, to Twisted's protocols a transport."""

    def __init__(self, transport: asyncio.Transport, page: PageConnection) -> None:
        self.page = page
        self._transport = transport
        self._producer: Any = None
        self._can_write = True
        self.protocol: Any = None
        self.disconnecting = False

    def start(self, protocol: Any) -> None:
        """Serve the connection with this protocol, which `HTTPFactory` has made."""
        self.protocol = protocol
        if self._transport.get_extra_info("sslcontext") is not None:
            alsoProvides(self, ISSLTransport)
        self._transport.set_protocol(self)
        protocol.makeConnection(self)
        self._transport.resume_reading()

    # ------------------------------------------------------- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def eof_received(self) -> bool:
        """A client that has closed its sending side still gets the page that is due."""
        return bool(self.protocol._channel.requests)

    def pause_writing(self) -> None:
        self._can_write = False
        if self._producer is not None:
            self._producer.pauseProducing()

    def resume_writing(self) -> None:
        self._can_write = True
        if self._producer is not None:
            self._producer.resumeProducing()

    def connection_lost(self, error: Exception | None) -> None:
        protocol, self.protocol, self._producer = self.protocol, None, None
        self.page.closed()
        protocol.connectionLost(Failure(ConnectionLost(str(error)) if error else ConnectionDone()))

    # ------------------------------------------------------------ ITransport

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self._transport.write(b"".join(data))

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._transport.close()

    def abortConnection(self) -> None:
        self.disconnecting = True
        self._transport.abort()

    def getPeer(self) -> Any:
        return _address(self._transport.get_extra_info("peername"))

    def getHost(self) -> Any:
        return _address(self._transport.get_extra_info("sockname"))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """The event loop has set it."""

    # --------------------------------------------------------- flow control

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer
        if not self._can_write:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self._transport.pause_reading()

    def resumeProducing(self) -> None:
        self._transport.resume_reading()

    def stopProducing(self) -> None:
        self.loseConnection()


def _address(name: Any) -> Any:
    return (IPv6Address if ":" in name[0] else IPv4Address)("TCP", *name[:2])
