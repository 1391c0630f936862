"""What `dss` prints on a terminal, and how it writes durations and sizes."""

from __future__ import annotations

import io
from typing import cast

import pytest
from rich.console import Console

from dss_cli import queues
from dss_cli.cluster import Cluster
from dss_cli.terminal import Terminal, duration, plain_table, short, size

HEAD = ("NODE", "STATE", "ADDRESS", "")
ROWS = [
    ("node-1", "leader", "http://127.0.0.1:8101", ""),
    (
        "node-2",
        "no answer",
        "http://10.0.0.2:8102",
        "its state differs from that of node-1, node-3: see docs/how-to/state-differs.md",
    ),
    ("node-3", "follower", "http://[::1]:8103", "[bold]no markup[/bold]"),
]


def printed(width: int) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, highlight=False, markup=False, emoji=False)
    Terminal(print, print, console=console).table(HEAD, ROWS)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_a_table_fits_the_terminal_and_loses_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    lines = printed(width).replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    for cell in (cell for row in ROWS for cell in row[:3]):
        assert cell.replace(" ", "") in text
    assert "[bold]nomarkup[/bold]" in text


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32mleader" in printed(100)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in printed(100)


def test_a_table_that_is_piped_is_plain_columns() -> None:
    assert plain_table(("A", "LONG"), [("x", "y"), ("long", "")]).splitlines() == ["A     LONG", "x     y", "long"]


def test_durations_and_sizes_for_people() -> None:
    durations = [None, 0, 850, 12_345, 119_999, 240_000, 3 * 3_600_000, 5 * 86_400_000]
    assert [duration(ms) for ms in durations] == ["", "0 ms", "850 ms", "12.3 s", "120 s", "4 min", "3 h", "5 d"]
    sizes = [0, 812, 3500, 5 * 2**20, 2**30, 2**41]
    assert [size(count) for count in sizes] == ["0 B", "812 B", "3.42 KiB", "5 MiB", "1 GiB", "2 TiB"]
    assert short("x" * 60) == "x" * 49 + "…"


async def test_a_topic_that_moves_and_whose_engine_is_away() -> None:
    answer = {
        "exists": True,
        "messages": 1,
        "bytes": 1,
        "publish_per_second": 0.0,
        "groups": [],
        "settings": {"engine": "raft"},
        "moving_from": "redis",
        "engine": {"state": "away", "detail": "a:1 does not answer"},
    }

    class Answering:
        async def call(self, operation: str, **fields: str) -> dict[str, object]:
            return answer

    lines: list[str] = []
    await queues.show(cast(Cluster, Answering()), Terminal(lines.append, print), "t")
    assert lines[-2:] == [
        "moves from redis to raft",
        "all numbers are those of the log: the engine redis is away (a:1 does not answer)",
    ]
