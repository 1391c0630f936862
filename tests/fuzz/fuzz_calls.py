"""Make many hostile calls to three nodes, kill them, start them again, and compare their states.

fuzz_calls.py --calls 200000 [--seed 0] [--release DIRECTORY]     exit code 1 when something went wrong

With --release, the nodes run the code of another checkout, which has its own .venv.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from call_fuzzer import ENVIRONMENT, Fuzzer, summary

from dss_dev.local_cluster import LocalCluster, free_ports
from dss_project.registry import operations, subscriptions

REPORT_EVERY_S = 5.0


class Progress:
    """A line on standard error."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._started = self._shown = time.monotonic()

    def __call__(self, made: int) -> None:
        now = time.monotonic()
        if now - self._shown < REPORT_EVERY_S:
            return
        self._shown = now
        rate = made / (now - self._started)
        left_s = (self._calls - made) / rate
        print(f"{made:,}/{self._calls:,} calls, {rate:,.0f} per second, {left_s:.0f} s left", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000, help="how many calls to make")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other pairs, in another order")
    parser.add_argument("--release", type=Path, help="a checkout whose nodes are tried instead of these")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dss-fuzz-") as directory:
        cluster = LocalCluster(Path(directory), free_ports(3), ENVIRONMENT)
        if options.release:
            command = f"cd {shlex.quote(str(options.release))} && exec .venv/bin/python manage.py node"
            for node in cluster.nodes:
                node._prefix = ("sh", "-c", command)
        fuzzer = Fuzzer(
            cluster,
            operations(),
            subscriptions(),
            calls=options.calls,
            seed=options.seed,
            checks_answers=options.release is None,
            progress=Progress(options.calls),
        )
        fuzzer.run()
    print(f"{summary(fuzzer)}\n{time.monotonic() - started:.0f} s, {len(fuzzer.faults)} faults")
    for fault in fuzzer.faults:
        print(f"- {fault}")
    return 1 if fuzzer.faults else 0


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")
    import django

    django.setup()
    sys.exit(main())
