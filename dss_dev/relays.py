"""A relay between clients and a node: a test can cut the connections through it, and restore them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Any, Self

CHUNK_BYTES = 65536


class Relay:
    """Passes bytes on to a port of this machine, in both directions. A context manager; it has a thread of its own.

    Args:
        to_ports: a connection goes to the first of them that accepts it.

    Attributes:
        port: where clients connect.
    """

    def __init__(self, *to_ports: int) -> None:
        self.port = 0
        self._to_ports = to_ports
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._may_pass = asyncio.Event()
        self._may_pass.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.abort()
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Pass nothing on. The connections stay open, as they do if the network drops packets."""
        self._loop.call_soon_threadsafe(self._may_pass.clear)

    def restore(self) -> None:
        """Pass on everything that came meanwhile."""
        self._loop.call_soon_threadsafe(self._may_pass.set)

    def abort(self) -> None:
        """End all connections."""

        def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for port in self._to_ports[:-1]:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        return await asyncio.open_connection("127.0.0.1", self._to_ports[-1])

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._may_pass.wait()
            to_reader, to_writer = await self._connect()
            self._writers.add(to_writer)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, to_writer))
                    group.create_task(self._pass(to_reader, writer))
            except* OSError:
                pass
            finally:
                self._writers.discard(to_writer)
                to_writer.transport.abort()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._may_pass.wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
        raise ConnectionResetError
