"""What a program does in a benchmark, and how a slice of it is measured."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

#: does its work once: `await once(caller)` with the number of the caller. Returns how many units that were; 0: there is no more to do
Once = Callable[[int], Awaitable[int]]


@dataclass(frozen=True)
class Work:
    """One cell of the table.

    Attributes:
        name: of the row.
        program: of the column.
        fill: publishes this many messages, for work that consumes them.
    """

    name: str
    program: str
    once: Once
    fill: Callable[[int], Awaitable[None]] | None = None


@dataclass(frozen=True)
class Slice:
    """Attributes:
    per_s: units of work a second.
    median_ms: time of a unit.
    """

    per_s: float
    median_ms: float


async def run(work: Work, callers: int, seconds: float, expected_per_s: float = 5000) -> Slice:
    """Let `callers` do this work for `seconds`, or until there is nothing left to do."""
    if work.fill is not None:
        await work.fill(int(expected_per_s * seconds * 1.3) + 200 * callers)
    done = 0
    times: list[float] = []
    began = ended = time.perf_counter()
    until = began + seconds

    async def caller(number: int) -> None:
        nonlocal done, ended
        before = time.perf_counter()
        while before < until:
            units = await work.once(number)
            if not units:
                return
            after = time.perf_counter()
            times.append((after - before) / units)
            done += units
            before = ended = after

    await asyncio.gather(*(caller(number) for number in range(callers)))
    if not times:
        raise RuntimeError(f"{work.program}, {work.name}: nothing was done")
    return Slice(done / (ended - began), statistics.median(times) * 1000)
