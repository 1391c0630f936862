"""Calls to one server: those that are made at the same time share a round trip and the wait for its replicas or its disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError, ResponseError

from dss_api.supervised import Tasks
from dss_queue.core.commands import Acks

#: What a broken connection raises. uvloop raises RuntimeError when one that its peer has reset is written to. Bytes that are no answer
#: raise others, such as ValueError: they mean the same.
BROKEN = (RedisError, OSError, RuntimeError)
CONNECTIONS_MAX = 4
#: Calls in one round trip.
BATCH_MAX = 64
#: Bytes in one round trip, unless a single call has more.
BATCH_BYTES_MAX = 4 * 1024 * 1024
#: The pause before replicas are asked whether a change is on their disks: the first one, and the longest one. They answer with what was on
#: the disk when they were asked, and by themselves only once a second.
FSYNC_S_MIN, FSYNC_S_MAX = 0.002, 0.064
#: How long one such question may take. The server may end it up to a tenth of a second later.
ASK_MS = 1
#: How long a call waits for those before it. While a server hangs, each round trip takes until the timeout of its connection.
QUEUED_S_MAX = 5.0


class NotSent(Disconnected):
    """The server could not be reached, so it has not got the call."""


class NotConfirmed(Exception):
    """The change is in the memory of the primary. Replicas or disks have not confirmed it in time."""


class Call:
    """A command, and the future of its answer."""

    __slots__ = ("acks", "answer", "asking", "command", "size", "until")

    def __init__(self, command: list[bytes], acks: Acks, asking: bool, answer: asyncio.Future[Any]) -> None:
        self.command = command
        self.size = sum(map(len, command))
        self.acks: Acks = acks
        self.asking = asking
        self.answer = answer
        #: loop time after which it is not sent
        self.until = answer.get_loop().time() + QUEUED_S_MAX

    def answered(self, answer: Any) -> None:
        if not self.answer.done():
            if isinstance(answer, Exception):
                self.answer.set_exception(answer)
            else:
                self.answer.set_result(answer)


class Lane:
    """The calls to one server.

    Args:
        connect: makes a connection that is not open yet.
        replicas_min: replicas that must confirm a change with `acks` other than `primary`; 0 for a server without replicas.
        confirm_ms: how long they may take.
    """

    def __init__(self, connect: Callable[[], Connection], replicas_min: int, confirm_ms: int) -> None:
        self._connect = connect
        self._confirmations: dict[Acks, list[bytes]] = {
            "replica": packed(b"WAIT", b"%d" % replicas_min, b"%d" % confirm_ms),
            "fsync": packed(b"WAITAOF", b"1", b"%d" % replicas_min, b"%d" % ASK_MS),
        }
        self._replicas_min = replicas_min
        self._confirm_s = confirm_ms / 1000
        self._calls: deque[Call] = deque()
        self._idle: list[Connection] = []
        self._busy = 0
        self._tasks = Tasks()

    async def call(self, command: list[bytes], acks: Acks = "primary", *, asking: bool = False) -> Any:
        """The answer to a command.

        Raises:
            NotConfirmed, NotSent: see there.
            ResponseError: the server's.
            redis.exceptions.ConnectionError: the outcome is not known.
        """
        call = Call(command, acks, asking, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        if self._busy < CONNECTIONS_MAX:
            self._busy += 1
            self._tasks.spawn("engine", self._work())
        return await call.answer

    @property
    def is_idle(self) -> bool:
        """Whether it has no calls."""
        return not self._busy and not self._calls

    async def close(self) -> None:
        """End what runs; calls that wait fail."""
        await self._tasks.stop()
        for connection in self._idle:
            await connection.disconnect(nowait=True)
        self._idle.clear()
        self._fail(self._calls, NotSent("closed"))
        self._calls.clear()

    async def _work(self) -> None:
        connection: Connection | None = None
        try:
            connection = self._idle.pop() if self._idle else self._connect()
            while batch := self._next_batch():
                await self._round_trip(connection, batch)
        except Exception as error:
            if connection is not None:
                raise
            # There can be none, for example because a file with certificates cannot be read.
            self._fail(self._calls, _not_sent(error))
            self._calls.clear()
        finally:
            self._busy -= 1
            if connection is not None:
                self._idle.append(connection)

    def _next_batch(self) -> list[Call]:
        batch: list[Call] = []
        size = 0
        now = asyncio.get_running_loop().time()
        while self._calls and len(batch) < BATCH_MAX:
            call = self._calls[0]
            if batch and size + call.size > BATCH_BYTES_MAX:
                break
            self._calls.popleft()
            if call.until < now:
                call.answered(NotSent("earlier calls take too long"))
            elif not call.answer.done():  # or its caller has gone
                size += call.size
                batch.append(call)
        return batch

    async def _round_trip(self, connection: Connection, batch: list[Call]) -> None:
        wanted: list[Acks] = [acks for acks in self._confirmations if any(call.acks == acks for call in batch)]
        sent: list[bytes] = []
        for call in batch:
            if call.asking:
                sent += packed(b"ASKING")
            sent += call.command
        if "replica" in wanted:
            sent += self._confirmations["replica"]
        try:
            if was_closed(connection):
                await connection.disconnect(nowait=True)
            if not connection.is_connected:
                await connection.connect()
        except Exception as error:
            await connection.disconnect(nowait=True)
            self._fail(batch, _not_sent(error))
            return
        except BaseException:
            self._fail(batch, NotSent("interrupted"))
            raise
        try:
            await connection.send_packed_command([b"".join(sent)], check_health=False)
            answers = []
            for call in batch:
                if call.asking:
                    await _read(connection)
                answer = await _read(connection)
                answers.append(answer)
                if call.acks == "primary" or isinstance(answer, Exception):
                    call.answered(answer)
            if "replica" in wanted:
                self._confirmed("replica", await _read(connection), batch, answers)
            if "fsync" in wanted:
                self._confirmed("fsync", await self._on_disks(connection), batch, answers)
        except Exception as error:
            await connection.disconnect(nowait=True)
            self._fail(batch, error if isinstance(error, RedisError) else Disconnected(_reason(error)))
        except BaseException:
            await connection.disconnect(nowait=True)
            self._fail(batch, Disconnected("interrupted"))
            raise

    async def _on_disks(self, connection: Connection) -> Any:
        """How many disks have what this connection has changed: the primary's and those of replicas; or an exception."""
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + self._confirm_s, FSYNC_S_MIN
        question = b"".join(self._confirmations["fsync"])
        while True:
            await asyncio.sleep(pause_s)
            await connection.send_packed_command([question], check_health=False)
            confirmed = await _read(connection)
            if isinstance(confirmed, Exception) or self._are_on_disks(*confirmed) or loop.time() > until:
                return confirmed
            pause_s = min(2 * pause_s, FSYNC_S_MAX)

    def _are_on_disks(self, local: int, replicas: int) -> bool:
        return local >= 1 and replicas >= self._replicas_min

    def _confirmed(self, acks: Acks, answer: Any, batch: list[Call], answers: list[Any]) -> None:
        if isinstance(answer, Exception):
            missing = str(answer)
        elif acks == "replica":
            missing = "" if answer >= self._replicas_min else f"{answer} of {self._replicas_min} replicas have confirmed"
        else:
            local, replicas = answer
            is_complete = self._are_on_disks(local, replicas)
            missing = "" if is_complete else f"{local} of 1 and {replicas} of {self._replicas_min} disks have confirmed"
        for call, result in zip(batch, answers, strict=True):
            if call.acks == acks:
                call.answered(NotConfirmed(missing) if missing else result)

    @staticmethod
    def _fail(calls: list[Call] | deque[Call], error: Exception) -> None:
        for call in calls:
            call.answered(error)


def was_closed(connection: Connection) -> bool:
    """Whether the server has closed an idle connection: a call on it would get no answer, and its outcome would not be known."""
    reader = connection._reader  # the public way is to read, with a timeout
    return reader is not None and (reader.at_eof() or reader.exception() is not None)


def _not_sent(error: Exception) -> NotSent:
    failure = NotSent(_reason(error))
    failure.__cause__ = error
    return failure


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, BROKEN) else f"no answer that can be read: {type(error).__name__}: {error}"


async def _read(connection: Connection) -> Any:
    try:
        return await connection.read_response(disconnect_on_error=True)
    except ResponseError as error:
        return error


def packed(*words: bytes) -> list[bytes]:
    """A command as the servers read it."""
    return [b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)]
