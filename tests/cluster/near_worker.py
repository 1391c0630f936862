"""A program with near caches that test_near_under_faults.py starts, stops and forks.

`near_worker.py URLS LOG NAME NEAR`: NEAR is "near", "plain" (no near cache), or "broken" (its near cache does not look at the lease). It
reads and writes in threads until its standard input ends. A line "fork" makes a child that goes on for a second, and until it has read
from its near cache. Each line of LOG is what a client wants to write, or an operation that was answered; a child writes to a log of its
own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable

from dss_client import Client, DssError, near

KEYS = ("a", "b", "c", "d")
THREADS = 2
WRITE_SHARE = 0.01
PACE_S = 0.008
CHILD_S = 1.0
#: a child that has not read from its near cache after this time never will
PATIENCE_S = 45.0


def read_without_lease(self: near.Holding, key: str) -> near.Copy | None:
    held = self._copies.get(key)
    self.hits += held is not None
    return held and held[0]


class Log:
    def __init__(self, path: str) -> None:
        # Without a buffer, which a fork would double.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def write(self, *fields: object) -> None:
        self._file.write(json.dumps(fields).encode() + b"\n")


def work(client: Client, log: Log, name: str, is_over: Callable[[], bool]) -> None:
    chance = random.Random(name)
    for turn in itertools.count():
        if is_over():
            return
        key = chance.choice(KEYS)
        asked_s = time.monotonic()
        try:
            if chance.random() < WRITE_SHARE:
                value = f"{name}.{turn}"
                log.write("wants", value, asked_s)
                version, is_write, is_hit = client.cache.put(key, value), True, False
            else:
                entry = client.cache.entry(key)
                value, version, is_write, is_hit = entry.value, entry.version, False, entry.hit
            log.write("did", key, name, is_write, version, value, asked_s, time.monotonic(), is_hit)
        except DssError:
            time.sleep(0.02)
        time.sleep(PACE_S)


def child(client: Client, path: str, name: str) -> None:
    began = time.monotonic()

    def is_over() -> bool:
        lived_s = time.monotonic() - began
        # A program without a near cache, and one that is broken on purpose, need no hits.
        has_hit = client.near_cache is None or client.near_cache.statistics().hits > 0
        return lived_s > PATIENCE_S or (lived_s > CHILD_S and has_hit)

    work(client, Log(path), name, is_over)
    os._exit(0)


def main(urls: str, path: str, name: str, kind: str) -> None:
    if kind == "broken":
        near.Holding.read = read_without_lease  # type: ignore[method-assign]
    client = Client(urls, timeout=5, near_cache=kind != "plain")
    log, is_over = Log(path), threading.Event()
    threads = [threading.Thread(target=work, args=(client, log, f"{name}.{number}", is_over.is_set)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    children = []
    for _ in sys.stdin:
        number = len(children)
        if not (pid := os.fork()):
            child(client, f"{path}.{number}", f"{name}.child-{number}")
        children.append(pid)
    is_over.set()
    for thread in threads:
        thread.join()
    for pid in children:
        os.waitpid(pid, 0)
    statistics = client.near_cache.statistics() if client.near_cache is not None else None
    print(name, statistics, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
