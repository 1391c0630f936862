"""The Spin model of the coherence protocol: the small configurations have no violation, and every mistake violates its invariant.

`make model` searches the large configurations.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "cache" / "model" / "check.py"
_spec = importlib.util.spec_from_file_location("coherence_model_check", _PATH)
assert _spec is not None
assert _spec.loader is not None
check = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = check
_spec.loader.exec_module(check)

try:
    check.find_compiler()
    MISSING = ""
except check.ToolMissing as error:
    MISSING = str(error)

needs_spin = pytest.mark.skipif(bool(MISSING), reason=MISSING)

REPORT = """
Full statespace search for:
State-vector 96 byte, depth reached 12, errors: 0
    34797 states, stored
unreached in proctype Node
\tcoherence.pml:17, state 690, "i = 0"
\tcoherence.pml:659, state 691, "-end-"
pan: elapsed time 0.2 seconds
"""


@needs_spin
@pytest.mark.parametrize("name", check.QUICK)
def test_a_full_search_of_a_small_configuration_finds_no_violation(name):
    result = check.check_small(check.QUICK[name])
    assert result.result == "no violation"
    assert result.states > 10_000, "the model does too little"


@needs_spin
@pytest.mark.parametrize("name", check.MUTANTS)
def test_every_mistake_violates_its_invariant(name):
    invariant, _ = check.MUTANTS[name]
    assert check.check_mutant(name).violated == invariant


def test_a_report_of_a_full_search_is_accepted():
    result = check.read_report(REPORT, 0)
    assert (result.result, result.states, result.depth) == ("no violation", 34797, 12)
    assert result.unreached == {(17, 690)}


@pytest.mark.parametrize(
    ("report", "return_code"),
    [
        ("error: max search depth too small\n" + REPORT, 0),
        ("pan: out of memory\n" + REPORT, 0),
        ("pan: reached -DMEMLIM bound\n" + REPORT, 0),
        ("Warning: Search not completed\n" + REPORT, 0),
        (REPORT.replace("Full statespace search", "Bit statespace search"), 0),
        (REPORT, 137),
        ("", 0),
    ],
    ids=["depth", "memory", "limit", "not completed", "bits", "killed", "silent"],
)
def test_a_search_that_was_cut_short_is_not_accepted(report, return_code):
    assert check.read_report(report, return_code).result.startswith("CUT SHORT")


def test_a_violation_is_named():
    report = "pan:1: assertion violated no_stale_read (at depth 9)\nWarning: Search not completed\n"
    assert check.read_report(report, 0).violated == "no_stale_read"


def test_without_spin_it_explains_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(check.shutil, "which", lambda tool: None if tool == "spin" else f"/usr/bin/{tool}")
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 2
    assert "apt-get install spin gcc" in capsys.readouterr().err
