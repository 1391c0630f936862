"""Waiting for messages without polling: the steps say on a sharded channel of the partition that a group may have something ready.

One connection to each server that is needed listens to all channels of its partitions. When it breaks, or slots move, all that listen
look at their partitions again, because they may have missed something.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable
from functools import partial

from redis.asyncio.connection import Connection

from dss_api.supervised import Tasks
from dss_queue.redis_engine.lane import BROKEN, NotSent, packed
from dss_queue.redis_engine.servers import PAUSE_S_MAX, Servers

#: A silent connection is asked whether it still lives after this time, and given up after another one.
SILENCE_S = 5.0

#: Called with the payload of a message; empty: any group.
Listener = Callable[[str], None]


class Wakeups:
    """See the module."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        #: channel -> listeners by their owners
        self._listeners: dict[str, dict[object, Listener]] = {}
        #: channels without a server: they are tried again and again
        self._missing: set[str] = set()
        self._is_finding = False
        #: address -> what listens there
        self._ears: dict[str, _Ear] = {}
        self._tasks = Tasks()

    async def listen(self, channels: Iterable[str], owner: object, listener: Callable[[str], Listener]) -> None:
        """Call `listener(channel)` with each message from now on. Returns when no later message can be missed, apart from those on servers
        that are away: their channels are listened to when they are back."""
        waits = []
        for channel in channels:
            self._listeners.setdefault(channel, {})[owner] = listener(channel)
            try:
                confirmed = self._ear_of(channel).subscribe(channel)
            except NotSent:
                self._find_again([channel])
                continue
            # One that is away confirms when it is back, and then its partitions are looked at.
            if self._servers.health.can_use(channel):
                waits.append(confirmed)
        # Others may wait for the same confirmations: they go on when this call is cancelled.
        await asyncio.gather(*map(asyncio.shield, waits))

    def forget(self, channels: Iterable[str], owner: object) -> None:
        """This owner no longer listens to these channels."""
        for channel in channels:
            listeners = self._listeners.get(channel, {})
            listeners.pop(owner, None)
            if listeners:
                continue
            self._listeners.pop(channel, None)
            for ear in self._ears.values():
                ear.unsubscribe(channel)

    def _ear_of(self, channel: str) -> _Ear:
        address = self._servers.address_of(channel)
        ear = self._ears.get(address)
        if ear is None:
            ear = self._ears[address] = _Ear(self, address)
            self._tasks.spawn("engine", self._hear(ear))
        return ear

    async def _hear(self, ear: _Ear) -> None:
        """Listen on one connection until it breaks; then its channels listen again, wherever they are."""
        try:
            await ear.run(self._servers.connection(ear.address, timeout_s=None))
        finally:
            if self._ears.get(ear.address) is ear:
                del self._ears[ear.address]
        await self.again(ear.channels)

    async def again(self, channels: Iterable[str]) -> None:
        """Messages on these channels may have been missed: subscribe again, and tell the listeners to look."""
        await asyncio.sleep(PAUSE_S_MAX)
        await self._servers.refresh()
        missing = []
        for channel in [one for one in channels if one in self._listeners]:
            try:
                confirmed = self._ear_of(channel).subscribe(channel)
            except NotSent:
                missing.append(channel)
            else:
                confirmed.add_done_callback(partial(self._listens_again, channel))
        self._find_again(missing)

    def _find_again(self, channels: Iterable[str]) -> None:
        """No server has these channels: try again for as long as that is so."""
        self._missing.update(channels)
        if self._missing and not self._is_finding:
            self._is_finding = True
            self._tasks.spawn("engine", self._find_missing())

    async def _find_missing(self) -> None:
        try:
            while self._missing:
                missing, self._missing = self._missing, set()
                await self.again(missing)
        finally:
            self._is_finding = False

    def _listens_again(self, channel: str, confirmed: asyncio.Future[None]) -> None:
        self.heard(channel, "")

    def heard(self, channel: str, payload: str) -> None:
        for listener in self._listeners.get(channel, {}).values():
            listener(payload)

    def spawn_again(self, channels: Iterable[str]) -> None:
        self._tasks.spawn("engine", self.again(list(channels)))

    async def close(self) -> None:
        self._listeners.clear()
        await self._tasks.stop()


class _Ear:
    """A connection that listens."""

    def __init__(self, owner: Wakeups, address: str) -> None:
        self.address = address
        self.channels: dict[str, asyncio.Future[None]] = {}
        self._owner = owner
        self._to_send: asyncio.Queue[list[bytes]] = asyncio.Queue()
        #: a PING has been sent, and nothing was heard since
        self._is_asked = False

    def subscribe(self, channel: str) -> asyncio.Future[None]:
        """Done when the server has confirmed it, or the connection is lost: then it is repeated, and everything looked at."""
        known = self.channels.get(channel)
        if known is None:
            known = self.channels[channel] = asyncio.get_running_loop().create_future()
            self._to_send.put_nowait(packed(b"SSUBSCRIBE", channel.encode()))
        return known

    def unsubscribe(self, channel: str) -> None:
        known = self.channels.pop(channel, None)
        if known is not None:
            if not known.done():
                known.set_result(None)
            self._to_send.put_nowait(packed(b"SUNSUBSCRIBE", channel.encode()))

    async def run(self, connection: Connection) -> None:
        """Until the connection breaks."""
        sender: asyncio.Future[None] | None = None
        try:
            await connection.connect()
            sender = asyncio.ensure_future(self._send(connection))
            while True:
                message = await connection.read_response(timeout=math.inf)
                self._is_asked = False
                self._receive(message)
        except Exception:
            # Also what is no message: the connection begins again.
            return
        finally:
            if sender is not None:
                sender.cancel()
            await connection.disconnect(nowait=True)
            for known in self.channels.values():
                if not known.done():
                    known.set_result(None)

    async def _send(self, connection: Connection) -> None:
        """Send what is to be sent; ask a silent server whether it still lives."""
        with contextlib.suppress(*BROKEN):
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        command = await self._to_send.get()
                except TimeoutError:
                    if self._is_asked:
                        await connection.disconnect(nowait=True)
                        return
                    self._is_asked = True
                    command = packed(b"PING")
                await connection.send_packed_command([b"".join(command)], check_health=False)

    def _receive(self, message: object) -> None:
        if not isinstance(message, list) or len(message) < 3:
            return
        kind, channel = bytes(message[0]), bytes(message[1] or b"").decode()
        if kind == b"smessage":
            self._owner.heard(channel, bytes(message[2]).decode())
        elif kind == b"ssubscribe":
            known = self.channels.get(channel)
            if known is not None and not known.done():
                known.set_result(None)
        elif kind == b"sunsubscribe" and channel in self.channels:
            # The slot has moved.
            self.channels.pop(channel)
            self._owner.spawn_again([channel])
