"""Plant each bug of the two lists, and print which check finds it. The exit code is 1 if a mutant survives.

mutants.py [--seeds 300] [--jobs 2] [--only text]     try a mutant on its known seeds, then on new ones
mutants.py --rates --seeds 400                        also print how many of these seeds kill it
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import component_mutants
import pytest
import sim_mutant_list
import sim_mutants
from component_mutants import COMPONENT_MUTANTS, ComponentMutant
from sim_mutant_list import MUTANTS, Mutant

SCENARIO = "scenario"
COMPONENT_TEST = "test"
ALL = (*MUTANTS, *COMPONENT_MUTANTS)


@dataclass
class Verdict:
    """The result of one mutant."""

    name: str
    #: check -> how often it failed; including checks that are not meant for this mutant
    alarms: Counter[str] = field(default_factory=Counter)
    #: what should have found the mutant but has not: the scenario, a seed
    missing: list[str] = field(default_factory=list)
    first_seed: int = -1
    seeds: int = 0

    @property
    def killed(self) -> bool:
        """True when everything that is meant for it has found it."""
        return not self.missing


def judge(mutant: Mutant, seeds: int, rates: bool = False) -> Verdict:
    """Run its scenario, then seeds until a check that is meant for the mutant has killed it (with `rates`: all seeds)."""
    verdict = Verdict(mutant.name)
    with sim_mutants.planted(mutant) as world:
        if mutant.scenario:
            _play(mutant, verdict)
        # new seeds are for a mutant without scenario and known seeds, or whose known seeds no longer kill it
        wanted = bool(mutant.seeds) or not mutant.scenario
        for seed in [*mutant.seeds, *range(seeds)]:
            if not rates and (not wanted or verdict.first_seed >= 0):
                break
            verdict.seeds += 1
            outcome = world.World(seed).run()
            if outcome.failed:
                verdict.alarms[outcome.failed] += 1
                if outcome.failed in mutant.checks and verdict.first_seed < 0:
                    verdict.first_seed = seed
        if wanted and verdict.first_seed < 0:
            verdict.missing.append("a seed")
    return verdict


def judge_component(mutant: ComponentMutant) -> Verdict:
    """Run the tests that are meant for the mutant."""
    missing = component_mutants.survived(mutant)
    return Verdict(mutant.name, Counter({COMPONENT_TEST: len(mutant.tests) - len(missing)}), missing)


def _play(mutant: Mutant, verdict: Verdict) -> None:
    directed_test = sim_mutants.scenario(mutant.scenario)
    try:
        directed_test()
    except (Exception, pytest.fail.Exception):
        verdict.alarms[SCENARIO] += 1
    else:
        verdict.missing.append(mutant.scenario)


def _judge(arguments: tuple[int, int, bool]) -> Verdict:
    number, seeds, rates = arguments
    mutant = ALL[number]
    return judge(mutant, seeds, rates) if isinstance(mutant, Mutant) else judge_component(mutant)


def table(verdicts: list[Verdict]) -> str:
    """A table of mutants and checks: X: killed by a check that is meant for it; x: another check that failed."""
    names = sorted({check for verdict in verdicts for check in verdict.alarms})
    width = max(len(verdict.name) for verdict in verdicts)
    wanted = {mutant.name: mutant.checks for mutant in MUTANTS} | {mutant.name: (COMPONENT_TEST,) for mutant in COMPONENT_MUTANTS}
    lines = [" " * width + "  seeds  first  " + "  ".join(names)]
    for verdict in verdicts:
        cells = []
        for check in names:
            count = verdict.alarms[check]
            mark = "X" if check == SCENARIO or check in wanted[verdict.name] else "x"
            cells.append((f"{mark}{count}" if count else ".").center(len(check)))
        first = str(verdict.first_seed) if verdict.first_seed >= 0 else "-"
        alive = "" if verdict.killed else f"  SURVIVED {', '.join(verdict.missing)}"
        lines.append(f"{verdict.name:<{width}}  {verdict.seeds:>5}  {first:>5}  {'  '.join(cells)}{alive}")
    return "\n".join(lines)


def refresh(verdicts: list[Verdict]) -> None:
    """Write the seeds that were found into the list, where it has seeds already."""
    path = Path(sim_mutant_list.__file__)
    blocks = path.read_text().split("    Mutant(\n")
    for verdict in verdicts:
        for number, block in enumerate(blocks):
            if block.lstrip().startswith(f'"{verdict.name}"') and verdict.first_seed >= 0:
                blocks[number] = re.sub(r"seeds=\(\d+,\)", f"seeds=({verdict.first_seed},)", block)
    path.write_text("    Mutant(\n".join(blocks))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300, help="fresh seeds for each mutant, at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to use (default: all cores)")
    parser.add_argument("--only", default="", help="only mutants whose name has this text in it")
    parser.add_argument("--rates", action="store_true", help="do not stop at the first kill")
    parser.add_argument("--refresh", action="store_true", help="replace known seeds that have lost their effect")
    options = parser.parse_args()
    chosen = [number for number, mutant in enumerate(ALL) if options.only in mutant.name]
    started = time.perf_counter()
    work = [(number, options.seeds, options.rates) for number in chosen]
    verdicts = []
    with multiprocessing.Pool(options.jobs) as pool:
        for verdict in pool.imap(_judge, work):
            verdicts.append(verdict)
            if sys.stderr.isatty():
                print(f"\r{len(verdicts)}/{len(chosen)} mutants", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(table(verdicts))
    if options.refresh:
        refresh(verdicts)
    survivors = [verdict.name for verdict in verdicts if not verdict.killed]
    print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} mutants killed in {time.perf_counter() - started:.0f} s")
    for name in survivors:
        print(f"SURVIVED: {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
