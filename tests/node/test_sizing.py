"""The sizing guide shows what `make bench-memory` has measured, and the state's account covers it."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "benchmarks/results/bench_memory.json").read_text())["rows"]
GUIDE = (ROOT / "docs/explanation/sizing.md").read_text()


def test_the_table_is_the_measurement() -> None:
    table = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| ([\d,]*) \| ([\d,]*) \|$", GUIDE, flags=re.MULTILINE)
    shown = {kind: [int(text.replace(",", "")) for text in sizes if text] for kind, *sizes in table}
    assert shown == {kind: list(sizes.values()) for kind, sizes in ROWS.items()}


def test_limits_count_at_least_what_objects_take() -> None:
    """Otherwise, a node could need more memory than its limits say. Lines are in memory only, and are counted roughly."""
    for kind, sizes in ROWS.items():
        if "snapshot" in sizes:
            assert sizes["counted"] >= sizes["memory"], kind
