"""How long the hash of a large state stops the event loop: the fork of the child process, and the delays while the child works.

    python benchmarks/bench_state_hash.py                     # 1,000,000 queued messages of 700 bytes: about 1 GiB of memory
    python benchmarks/bench_state_hash.py --messages 100000

It runs one process without a network: a replica with a filled queue, a timer with a period of one millisecond, and one command after the
other, which makes the kernel copy pages. The pause is the delay of the timer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from dss_project.runtime import state_machines
from dss_queue.core.commands import NewMessage, Publish
from dss_raft.disk.forked import Child
from dss_raft.replication.machine import Origin
from dss_raft.replication.replica import Replica
from dss_raft.replication.state_hash import state_hashes

RESULTS = Path(__file__).parent / "results" / "bench_state_hash.json"
BATCH = 1000
PERIOD_S = 0.001
ROUNDS = 10


def publish(replica: Replica, count: int, size: int) -> None:
    replica.applied_index += 1
    value = b'"%0*d"' % (size - 2, replica.applied_index)
    messages = [NewMessage("bench", b"%s" % value, "", -1, 0, "", b"") for _ in range(count)]
    replica.machines["queue"].apply(Publish(messages=messages), 1_000_000, replica.applied_index, Origin("a", 1, 1))
    replica.take_events()


async def measure(directory: Path, messages: int, size: int) -> dict[str, Any]:
    replica = Replica("a", state_machines())
    for _ in range(0, messages, BATCH):
        publish(replica, BATCH, size)
    gc.collect()
    gc.freeze()
    forks_ms, fork_cpu_ms, children_s, late_ms = [], [], [], []
    for _ in range(ROUNDS):
        began, cpu_began = time.perf_counter(), time.process_time()
        child = Child(lambda: b"".join(state_hashes(replica).values()), directory / "hashes.child", sync=False)
        forks_ms.append((time.perf_counter() - began) * 1000)
        fork_cpu_ms.append((time.process_time() - cpu_began) * 1000)
        ended = asyncio.create_task(child.ended())
        while not ended.done():
            due = time.perf_counter() + PERIOD_S
            await asyncio.sleep(PERIOD_S)
            late_ms.append((time.perf_counter() - due) * 1000)
            publish(replica, 1, size)
        children_s.append(time.perf_counter() - began)
    late_ms.sort()
    return {
        "messages": messages,
        "bytes_a_message": size,
        "resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "fork_cpu_ms": [round(one, 1) for one in sorted(fork_cpu_ms)],
        "fork_ms": [round(one, 1) for one in sorted(forks_ms)],
        "child_s": [round(one, 2) for one in sorted(children_s)],
        "pause_p99_ms": round(late_ms[int(len(late_ms) * 0.99)], 1),
        "pause_max_ms": round(late_ms[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=700)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(Path(directory), options.messages, options.bytes))
    print(json.dumps(result, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"python": platform.python_version(), **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
