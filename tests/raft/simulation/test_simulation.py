"""Seeds of the simulated world: clean, deterministic, and not empty. SIM_SEEDS sets how many."""

from __future__ import annotations

import os

import pytest
import run
from sim_world import HAPPENINGS, RARE, World

SEEDS = int(os.environ.get("SIM_SEEDS", "500"))
#: each of these seeds finds a leader that stamps with its own wall clock
WALL_CLOCK_SEEDS = (13, 43, 56, 57)
JOBS = int(os.environ.get("SIM_JOBS", "2"))


def test_seeds_are_clean_and_something_happened_in_them() -> None:
    outcomes = list(run.run_seeds(range(SEEDS), JOBS))
    failed = [f"run.py --seed {outcome.seed}: {outcome.detail}" for outcome in outcomes if outcome.failed]
    assert not failed, "\n".join(failed[:10])
    # a world without load would be clean, too
    for happened in ("commits", "leaders", "restores", "reads", "answered", "configurations"):
        assert sum(getattr(outcome, happened) for outcome in outcomes) > SEEDS / 4, happened
    # and so would one without faults of network, disks and clocks
    for name in HAPPENINGS:
        assert sum(outcome.happened[name] for outcome in outcomes) > SEEDS / (1000 if name in RARE else 100), name


def test_a_wall_clock_that_is_wrong_by_days_does_no_harm() -> None:
    """Seeds in which a leader's clock is wrong, and set, while session commands are applied; some of the thousands above, by number."""
    outcomes = [World(seed).run() for seed in WALL_CLOCK_SEEDS]
    assert sum(outcome.happened["wall clock set"] for outcome in outcomes) > len(outcomes)
    assert not [outcome.detail for outcome in outcomes if outcome.failed]


@pytest.mark.parametrize("seed", run.regressions())
def test_a_seed_that_failed_once_stays_clean(seed: int) -> None:
    outcome = World(seed).run()
    assert not outcome.failed, outcome.detail


def test_the_same_seed_gives_the_same_trace() -> None:
    stories: list[list[str]] = [[], []]
    hashes = [World(3, trace=story.append).run().trace_hash for story in stories]
    assert stories[0] == stories[1]
    assert hashes[0] == hashes[1] == World(3).run().trace_hash
