"""The golden scripts tell the same story as when a person last read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import golden_runner

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_the_story_is_the_same(path: Path) -> None:
    golden = path.read_text()
    assert golden_runner.play(golden) == golden, f"read the difference; if it is meant: {FOLDER.name}/golden_runner.py --rewrite"


def test_every_delicate_scene_has_its_script() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} >= {
        "figure_8",
        "stale_append_reply",
        "vote_persistence",
        "rejoin_with_higher_term",
        "change_around_a_leader_change",
        "snapshot_meets_append",
    }
