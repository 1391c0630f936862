"""Search for bugs: run many seeds of the simulated world, or replay one with a readable trace.

run.py --seeds 2000 [--first 0] [--jobs 2]     exit code 1 when a seed fails; failing seeds are appended to regressions.txt
run.py --seeds 100000 --resume sim.json        the same; after an interruption the same command continues
run.py --seed 17                               prints everything that happens in seed 17
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from sim_world import HAPPENINGS, Outcome, World

REGRESSIONS = Path(__file__).with_name("regressions.txt")
#: one in this many seeds is run twice and must give the same trace hash
TWICE_EVERY = 50
#: seeds between two writes of the file of `--resume`
BLOCK = 500
#: seeds between two collections of garbage
COLLECT_EVERY = 10
#: what is added up over all seeds
COUNTED = ("events", "commits", "leaders", "restores", "reads", "answered", "configurations")


class Hunt(msgspec.Struct):
    """How far a search is: the contents of the file of `--resume`."""

    first: int
    count: int
    done: int = 0
    seconds: float = 0.0
    totals: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    happened: dict[str, int] = msgspec.field(default_factory=dict)
    failures: list[str] = msgspec.field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        for name in self.totals:
            self.totals[name] += getattr(outcome, name)
        self.happened = dict(Counter(self.happened) + outcome.happened)
        if outcome.failed:
            self.failures.append(f"seed {outcome.seed}: {outcome.detail}")


def run_seed(seed: int) -> Outcome:
    """Run one seed, and some seeds a second time to check determinism."""
    outcome = World(seed).run()
    if not outcome.failed and seed % TWICE_EVERY == 0:
        again = World(seed).run()
        if again.trace_hash != outcome.trace_hash:
            outcome.failed = "determinism"
            outcome.detail = f"determinism: trace hashes {outcome.trace_hash} and {again.trace_hash}"
    return outcome


def _run_in_pool(seed: int) -> Outcome:
    """Worlds consist of cycles; a collection of garbage now and then costs less than many while they run."""
    gc.disable()
    outcome = run_seed(seed)
    if seed % COLLECT_EVERY == 0:
        gc.collect()
    return outcome


def run_seeds(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """Yield the outcomes, in any order. With one job and in a pool alike, worlds run in processes of their own."""
    with multiprocessing.Pool(jobs, initializer=gc.freeze) as pool:
        yield from pool.imap_unordered(_run_in_pool, seeds, chunksize=8)


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


def search(hunt: Hunt, jobs: int, file: Path | None) -> int:
    """Run what is left of these seeds, with a progress bar. Returns the exit code."""
    bar = sys.stderr.isatty() or hunt.count >= 1000
    known = set(regressions())
    began, before = time.perf_counter(), hunt.seconds
    while hunt.done < hunt.count:
        start = hunt.first + hunt.done
        end = min(start + BLOCK, hunt.first + hunt.count)
        for outcome in run_seeds(range(start, end), jobs):
            hunt.add(outcome)
            hunt.done += 1
            if outcome.failed:
                print(hunt.failures[-1], flush=True)
                if outcome.seed not in known:
                    with REGRESSIONS.open("a") as regressions_file:
                        regressions_file.write(f"{outcome.seed}  # {outcome.detail}\n")
            hunt.seconds = before + time.perf_counter() - began
            if bar and (hunt.done % max(1, hunt.count // 200) == 0 or hunt.done == hunt.count):
                show_progress(hunt)
        if file is not None:
            written = file.with_suffix(".new")
            written.write_bytes(msgspec.json.encode(hunt))
            written.rename(file)
    if bar:
        print(file=sys.stderr)
    report(hunt, jobs)
    return 1 if hunt.failures else 0


def report(hunt: Hunt, jobs: int) -> None:
    """What all seeds have shown."""
    totals, failures, events = dict(hunt.totals), len(hunt.failures), hunt.totals["events"]
    print(
        f"{f'{failures} VIOLATIONS' if failures else 'no violation'} in {hunt.done:,} seeds, {totals.pop('events'):,} events "
        f"({', '.join(f'{value:,} {name}' for name, value in totals.items())})"
    )
    print(f"on the way: {', '.join(f'{name} {hunt.happened.get(name, 0):,}' for name in HAPPENINGS)}")
    print(
        f"{hunt.seconds:.0f} s, {events / hunt.seconds / jobs:,.0f} events/s and {hunt.done / hunt.seconds / jobs:.1f} seeds/s per process"
    )


def show_progress(hunt: Hunt) -> None:
    """A bar on standard error."""
    width = 30
    filled = width * hunt.done // hunt.count
    bar = "#" * filled + "." * (width - filled)
    left = hunt.seconds / hunt.done * (hunt.count - hunt.done)
    print(
        f"\r[{bar}] {hunt.done:,}/{hunt.count:,} seeds, {hunt.totals['events']:,} events, {len(hunt.failures)} failed, {left:.0f} s left ",
        end="",
        file=sys.stderr,
        flush=True,
    )


def begin(first: int, count: int, file: Path | None) -> Hunt:
    """A new search, or the one in `file`."""
    if file is None or not file.exists():
        return Hunt(first, count)
    found = msgspec.json.decode(file.read_bytes(), type=Hunt)
    if found.first != first or found.done > count:
        raise SystemExit(f"{file} is about seeds from {found.first} on, of which {found.done} are done: remove it to begin again")
    found.count = count
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use (default: all cores)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep the results in this file, and continue with them")
    parser.add_argument("--seed", type=int, help="replay this one seed with a trace")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    return search(begin(options.first, options.seeds, options.resume), options.jobs, options.resume)


if __name__ == "__main__":
    sys.exit(main())
