"""The queue's state machine alone: commands per second, the cost of a backlog, and the time of a snapshot.

python benchmarks/bench_broker.py                # everything; about a minute
python benchmarks/bench_broker.py --backlog 0    # only the rates
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dss_queue.core.broker import Broker
from dss_queue.core.commands import Ack, Consume, NewMessage, Publish
from dss_raft.replication.machine import Origin

TOPIC, GROUP = "bench", "workers"
PER_ENTRY = 50


class Log:
    """Applies commands, PER_ENTRY per entry; each entry is 1 ms later than the one before."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.applied = 0

    def apply(self, command):
        self.applied += 1
        index = 1 + self.applied // PER_ENTRY
        at_ms = 1_000_000 + index
        if self.applied % PER_ENTRY == 0:
            self.broker.expire(at_ms, index)
            self.broker.take_events()
        return self.broker.apply(command, at_ms, index, Origin("n1", 1, self.applied))


def new_message(number: int, value: bytes, keys: int) -> NewMessage:
    key = f"key-{number % keys}" if keys else ""
    return NewMessage(TOPIC, value, key, number % 16 if keys else -1, 0, "", b"")


def cycle(log: Log, count: int, value: bytes, keys: int = 0) -> None:
    """Publish, consume, ack: one message per command."""
    for number in range(count):
        log.apply(Publish(messages=[new_message(number, value, keys)]))
        result = log.apply(Consume(topic=TOPIC, group=GROUP, timeout_ms=0, visibility_ms=15_000))
        message = result.body["messages"][0]
        log.apply(Ack(topic=TOPIC, group=GROUP, msg_id=message["msg_id"], receipt=message["receipt"]))


def cycle_batches(log: Log, count: int, value: bytes) -> None:
    """The same with 100 messages per command."""
    for start in range(0, count, 100):
        log.apply(Publish(messages=[new_message(start + i, value, 0) for i in range(100)]))
        result = log.apply(Consume(topic=TOPIC, group=GROUP, timeout_ms=0, visibility_ms=15_000, max_messages=100))
        taken = result.body["messages"]
        log.apply(Ack(topic=TOPIC, group=GROUP, msg_ids=[m["msg_id"] for m in taken], receipts=[m["receipt"] for m in taken]))


def rate(count: int, work: Callable[[], None]) -> int:
    """Messages per second of processor time (other processes may be running), the best of three runs."""
    best = 0.0
    for _ in range(3):
        started = time.process_time()
        work()
        best = max(best, count / (time.process_time() - started))
    return round(best)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(broker: Broker, count: int, value_bytes: int, keys: int) -> Log:
    """A backlog of `count` messages that no consumer has taken, each with its own bytes."""
    log = Log(broker)
    filler = "x" * (value_bytes - 12)
    for number in range(count):
        log.apply(Publish(messages=[new_message(number, f'"{number:010d}{filler}"'.encode(), keys)]))
    return log


def measure_backlog(count: int, value_bytes: int, keys: int, cycles: int) -> dict[str, float]:
    gc.collect()
    before = rss_bytes()
    broker = Broker()
    log = fill(broker, count, value_bytes, keys)
    gc.collect()
    per_message = (rss_bytes() - before) / count
    gc.freeze()
    value = b'"' + b"x" * (value_bytes - 2) + b'"'
    cycle(log, 1, value, keys)
    figures = {"rss_bytes_per_message": round(per_message), "cycles_per_s": rate(cycles, lambda: cycle(log, cycles, value, keys))}
    started = time.process_time()
    data = broker.snapshot()
    figures["snapshot_s"] = round(time.process_time() - started, 2)
    figures["snapshot_mib"] = round(len(data) / 2**20)
    restored = Broker()
    started = time.process_time()
    restored.restore(data)
    figures["restore_s"] = round(time.process_time() - started, 2)
    gc.unfreeze()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=50_000, help="messages in each measurement")
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=200)
    options = parser.parse_args()
    value = b'"' + b"x" * (options.value_bytes - 2) + b'"'
    report: dict[str, object] = {"python": sys.version.split()[0], "cycles": options.cycles}
    gc.freeze()
    report["single_per_s"] = rate(options.cycles, lambda: cycle(Log(Broker()), options.cycles, value))
    report["single_with_keys_per_s"] = rate(options.cycles, lambda: cycle(Log(Broker()), options.cycles, value, keys=1000))
    report["batches_of_100_per_s"] = rate(options.cycles, lambda: cycle_batches(Log(Broker()), options.cycles, value))
    if options.backlog:
        for name, keys in (("backlog", 0), ("backlog_with_100000_keys", 100_000)):
            report[name] = {
                "messages": options.backlog,
                **measure_backlog(options.backlog, options.value_bytes, keys, options.cycles),
            }
    report["max_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
