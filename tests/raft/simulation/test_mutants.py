"""Every planted bug falls to the checker meant for it: the simulator's known seeds, and a directed test where there is one."""

from __future__ import annotations

import mutants
import pytest
from component_mutants import COMPONENT_MUTANTS, ComponentMutant
from sim_mutant_list import MUTANTS, Mutant

#: fresh seeds, for when a change of the simulator has made the known ones harmless
FRESH_SEEDS = 400


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_the_bug_is_found(mutant: Mutant) -> None:
    verdict = mutants.judge(mutant, FRESH_SEEDS)
    assert verdict.killed, f"not found by {verdict.missing}; alarms {dict(verdict.alarms)} in {verdict.seeds} seeds"


@pytest.mark.parametrize("mutant", COMPONENT_MUTANTS, ids=[mutant.name for mutant in COMPONENT_MUTANTS])
def test_the_bug_outside_the_core_is_found(mutant: ComponentMutant) -> None:
    verdict = mutants.judge_component(mutant)
    assert verdict.killed, f"not found by {verdict.missing}"
