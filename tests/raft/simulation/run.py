"""Search for bugs: run many seeds of the simulated world, or replay one with a readable trace.

run.py --seeds 2000 [--first 0] [--jobs 2]     exit code 1 when a seed fails; failing seeds are appended to regressions.txt
run.py --seed 17                               prints everything that happens in seed 17
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from sim_world import HAPPENINGS, Outcome, World

REGRESSIONS = Path(__file__).with_name("regressions.txt")
#: one in this many seeds is run twice and must give the same trace hash
TWICE_EVERY = 50


def run_seed(seed: int) -> Outcome:
    """Run one seed, and some seeds a second time to check determinism."""
    outcome = World(seed).run()
    if not outcome.failed and seed % TWICE_EVERY == 0:
        again = World(seed).run()
        if again.trace_hash != outcome.trace_hash:
            outcome.failed = "determinism"
            outcome.detail = f"determinism: trace hashes {outcome.trace_hash} and {again.trace_hash}"
    return outcome


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes, in any order."""
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=8)


def regressions() -> list[int]:
    """Seeds that have failed before."""
    if not REGRESSIONS.exists():
        return []
    lines = (line.split("#")[0].strip() for line in REGRESSIONS.read_text().splitlines())
    return [int(line) for line in lines if line]


def replay(seed: int) -> int:
    """Print the trace of one seed."""
    world = World(seed, trace=print)
    print(world.profile)
    outcome = world.run()
    print(f"seed {seed}: {outcome.detail or 'clean'}; {outcome.events} events, trace hash {outcome.trace_hash & 0xFFFFFFFF:08x}")
    return 1 if outcome.failed else 0


def hunt(first: int, count: int, jobs: int) -> int:
    """Run seeds with a progress bar. Returns the exit code."""
    started = time.perf_counter()
    done = 0
    totals = dict.fromkeys(("events", "commits", "leaders", "restores", "reads", "answered", "configurations"), 0)
    happened: Counter[str] = Counter()
    failures: list[Outcome] = []
    bar = sys.stderr.isatty() or count >= 1000
    for outcome in run_seeds(range(first, first + count), jobs):
        done += 1
        for name in totals:
            totals[name] += getattr(outcome, name)
        happened.update(outcome.happened)
        if outcome.failed:
            failures.append(outcome)
            print(f"seed {outcome.seed}: {outcome.detail}", flush=True)
        if bar and (done % max(1, count // 200) == 0 or done == count):
            show_progress(done, count, totals["events"], len(failures), time.perf_counter() - started)
    seconds = time.perf_counter() - started
    events = totals["events"]
    if bar:
        print(file=sys.stderr)
    print(
        f"{'no violation' if not failures else f'{len(failures)} VIOLATIONS'} in {done:,} seeds, {totals.pop('events'):,} events "
        f"({', '.join(f'{value:,} {name}' for name, value in totals.items())})"
    )
    print(f"on the way: {', '.join(f'{name} {happened[name]:,}' for name in HAPPENINGS)}")
    print(f"{seconds:.0f} s, {events / seconds / jobs:,.0f} events/s per process")
    if failures:
        known = set(regressions())
        with REGRESSIONS.open("a") as file:
            for outcome in failures:
                if outcome.seed not in known:
                    file.write(f"{outcome.seed}  # {outcome.detail}\n")
    return 1 if failures else 0


def show_progress(done: int, count: int, events: int, failures: int, seconds: float) -> None:
    """A bar on standard error."""
    width = 30
    filled = width * done // count
    bar = "#" * filled + "." * (width - filled)
    left = seconds / done * (count - done)
    print(
        f"\r[{bar}] {done:,}/{count:,} seeds, {events:,} events, {failures} failed, {left:.0f} s left ",
        end="",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use (default: all cores)")
    parser.add_argument("--seed", type=int, help="replay this one seed with a trace")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    return hunt(options.first, options.seeds, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
