"""How long do snapshots of the backing store `django` block the event loop? `python benchmarks/bench_cache_store.py [--lines 200000]`

A table with that many values is dumped and loaded into an empty one while a timer with a period of one millisecond runs in the event
loop. The delay of the timer is the pause that any other call would have seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import django
import uvloop

RESULTS = Path(__file__).parent / "results" / "bench_cache_store.json"
PERIOD_S = 0.001
BATCH = 10_000


async def paused_ms(work: Awaitable[Any], pauses: list[float]) -> Any:
    """The result of `work`. The delays of the timer are added to `pauses`."""

    async def watch() -> None:
        while True:
            due = time.perf_counter() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            pauses.append((time.perf_counter() - due) * 1000)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0.05)
    try:
        return await work
    finally:
        await asyncio.sleep(0.05)
        watcher.cancel()


async def measure(lines: int, size: int) -> dict[str, Any]:
    from django.db import connections

    from dss_cache.backing_store import Stored
    from dss_cache.django_app.django_store import DjangoStore
    from dss_cache.django_app.models import StoredValue

    def make_table(alias: str) -> None:
        with connections[alias].schema_editor() as editor:
            editor.create_model(StoredValue)
        connections[alias].close()

    stores = {}
    for alias in ("source", "target"):
        await asyncio.to_thread(make_table, alias)
        stores[alias] = DjangoStore(alias)
    value = b'"' + b"x" * (size - 2) + b'"'
    for start in range(0, lines, BATCH):
        await stores["source"].write([Stored(f"user/{number}", number + 1, value) for number in range(start, start + BATCH)])
    figures: dict[str, Any] = {"lines": lines, "bytes_a_value": size}

    async def timed(name: str, work: Awaitable[Any]) -> Any:
        pauses: list[float] = []
        began = time.perf_counter()
        result = await paused_ms(work, pauses)
        spent = time.perf_counter() - began - 0.1
        pauses.sort()
        figures[name] = {
            "seconds": round(spent, 2),
            "pause_p99_ms": round(pauses[int(len(pauses) * 0.99)], 1),
            "pause_max_ms": round(pauses[-1], 1),
        }
        return result

    async def nothing() -> None:
        await asyncio.sleep(0.5)

    await timed("nothing", nothing())
    data = memoryview(b"".join(await timed("dump", stores["source"].dump())))
    figures["dump_bytes"] = len(data)
    await timed("load", stores["target"].load(data))
    await timed("load again", stores["target"].load(data))
    last = await stores["target"].read(f"user/{lines - 1}")
    assert last is not None
    assert last.version == lines
    for store in stores.values():
        await store.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--bytes", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["DSS_DATA_DIR"] = directory
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")
        django.setup()
        from django.db import connections

        for alias in ("source", "target"):
            connections.databases[alias] = {**connections.databases["default"], "NAME": Path(directory) / f"{alias}.sqlite3"}
        figures = uvloop.run(measure(options.lines, options.bytes))
    for name, values in figures.items():
        print(f"{name:16} {values}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"python": platform.python_version(), "cpus": os.cpu_count(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
