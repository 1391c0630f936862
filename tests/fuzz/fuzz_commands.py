"""Run many random commands through the state machines of two replicas.

fuzz_commands.py --commands 1000000 [--first 0] [--jobs 2]     exit code 1 when a seed fails
fuzz_commands.py --seed 17                                     one seed
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from typing import NamedTuple

from command_world import CommandWorld, Diverged

COMMANDS_PER_SEED = 5000


class Outcome(NamedTuple):
    """How one seed ended."""

    seed: int
    failure: str
    count: Counter[str]
    codes: Counter[str]
    entries: int
    restores: int


def run_seed(seed: int) -> Outcome:
    """Run one seed."""
    world = CommandWorld(seed)
    failure = ""
    try:
        world.run(COMMANDS_PER_SEED)
    except Diverged as error:
        failure = f"{error}" + (f" ({type(error.__cause__.__cause__).__name__})" if error.__cause__ else "")
    return Outcome(seed, failure, world.count, world.codes, world.index, world.restores)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=100_000, help="how many commands to make")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use (default: all cores)")
    parser.add_argument("--seed", type=int, help="run this one seed")
    options = parser.parse_args()
    seeds = (
        [options.seed]
        if options.seed is not None
        else range(options.first, options.first + -(-options.commands // COMMANDS_PER_SEED))
    )
    started = time.perf_counter()
    count: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    failures: list[Outcome] = []
    entries = restores = done = 0
    with multiprocessing.Pool(min(options.jobs, len(seeds))) as pool:
        for outcome in pool.imap_unordered(run_seed, seeds):
            done += 1
            count += outcome.count
            codes += outcome.codes
            entries += outcome.entries
            restores += outcome.restores
            if outcome.failure:
                failures.append(outcome)
                print(f"seed {outcome.seed}: {outcome.failure}", flush=True)
            left_s = (time.perf_counter() - started) / done * (len(seeds) - done)
            text = f"\r{done:,}/{len(seeds):,} seeds, {count.total():,} commands, {len(failures)} failed, {left_s:.0f} s left "
            print(text, end="", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - started
    print(file=sys.stderr)
    print(
        f"{count.total():,} commands in {entries:,} entries, {restores:,} restores, {seconds:.0f} s: "
        f"{len(failures)} seeds of {len(seeds):,} failed"
    )
    print("commands:", ", ".join(f"{name} {number:,}" for name, number in count.most_common()))
    print("results:", ", ".join(f"{name} {number:,}" for name, number in codes.most_common()))
    return 1 if failures else 0


if __name__ == "__main__":
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")
    django.setup()
    sys.exit(main())
