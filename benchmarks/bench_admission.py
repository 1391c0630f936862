"""What the check before the log costs for each command: encoding alone, and encoding with the check, measured in turns.

    .venv/bin/python benchmarks/bench_admission.py

Prints microseconds per command, each the best of many short rounds: a round that something else on the machine has disturbed says
nothing about the check.
"""

from __future__ import annotations

from time import perf_counter

from dss_cache.core.commands import Fetch, Incr, Put
from dss_cache.core.directory import Directory
from dss_locks.core.commands import Acquire, Release
from dss_locks.core.table import LockTable
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Ack, Consume, NewMessage, Publish
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import encode_command

ROUNDS = 2001
CALLS = 50

VALUE = b'"' + b"x" * 98 + b'"'
COMMANDS = {
    "locks.acquire": Acquire(key="orders/4711", client="worker-1", ttl_ms=30_000),
    "locks.release": Release(key="orders/4711", client="worker-1", fencing_token=123_456),
    "cache.put, 100 bytes": Put(key="orders/4711", value=VALUE),
    "cache.put, 100 KB": Put(key="orders/4711", value=VALUE * 1000),
    "cache.incr": Incr(key="orders/4711"),
    "cache.fetch": Fetch(keys=["orders/4711"]),
    "queue.publish, 100 bytes": Publish(messages=[NewMessage("orders", VALUE, "", -1, 0, "", b"")]),
    "queue.publish, 100 messages": Publish(messages=[NewMessage("orders", VALUE, "", -1, 0, "", b"")] * 100),
    "queue.consume": Consume(topic="orders", group="billing", visibility_ms=15_000),
    "queue.ack": Ack(topic="orders", group="billing", msg_id="4711-0", receipt="4711-0-1"),
}


def main() -> None:
    admission = Admission((*LockTable.commands, *Broker.commands, *Directory.commands))
    print(f"{'command':30}{'encode':>10}{'checked':>10}{'more':>10}")
    for name, command in COMMANDS.items():
        plain, checked = [], []
        calls = CALLS if "100 messages" not in name else 1
        for _ in range(ROUNDS):
            for encode, times in ((encode_command, plain), (admission.encode, checked)):
                began = perf_counter()
                for _ in range(calls):
                    encode(command)
                times.append((perf_counter() - began) / calls * 1e6)
        best, best_checked = min(plain), min(checked)
        print(f"{name:30}{best:10.2f}{best_checked:10.2f}{best_checked - best:10.2f}")


if __name__ == "__main__":
    main()
