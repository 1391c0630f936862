"""The golden scripts give the same output as when a person last reviewed them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import golden_runner

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_output_is_unchanged(path: Path) -> None:
    golden = path.read_text()
    assert golden_runner.play(golden) == golden, (
        f"review the difference; if it is intended: {FOLDER.name}/golden_runner.py --rewrite"
    )


def test_every_difficult_case_has_a_script() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} >= {
        "figure_8",
        "stale_append_reply",
        "vote_persistence",
        "rejoin_with_higher_term",
        "change_around_a_leader_change",
        "snapshot_meets_append",
    }
