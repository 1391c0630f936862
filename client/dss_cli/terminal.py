"""Where a command prints: results to standard output, and what it waits for to standard error.

A result is a table or lines for people, or with `--json` one JSON document on one line. A table is drawn by rich on a terminal.
Elsewhere it is plain text, with columns separated by two or more spaces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

#: longer values are cut in a table; JSON has all of them
CELL_CHARACTERS = 50
#: what stands out on a terminal
STYLES = {
    "leader": "bold green",
    "candidate": "yellow",
    "learner": "yellow",
    "no answer": "bold red",
    "M": "yellow",
    "E": "green",
    "S": "green",
}


class Console(Protocol):
    """What is needed of rich's console."""

    def print(self, shown: Any, /) -> Any: ...


class Terminal:
    """The output of one command.

    Args:
        write: prints a line of the result.
        say: prints a line about the work.
        is_json: results are JSON.
        console: draws tables; None: they are plain.
    """

    def __init__(
        self, write: Callable[[str], Any], say: Callable[[str], Any], is_json: bool = False, console: Console | None = None
    ) -> None:
        self.write = write
        self.say = say
        self.is_json = is_json
        self.console = console

    def json(self, document: Any) -> None:
        """One document, on one line."""
        self.write(to_json(document))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; only its head if there are no rows."""
        if self.console is None:
            self.write(plain_table(head, rows))
        else:
            self.console.print(rich_table(head, rows, STYLES))


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def rich_table(head: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str]) -> Any:
    """The same table for a terminal: long cells are folded instead of the whole line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        table.add_column(Text(name), overflow="fold", no_wrap=False)
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    return table


def duration(ms: float | None) -> str:
    """A duration for people: "850 ms", "12.3 s", "4 min", "3 h", "2 d"."""
    if ms is None:
        return ""
    if ms < 1000:
        return f"{round(ms)} ms"
    seconds = ms / 1000
    for unit, size, limit in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < limit * size:
            return f"{seconds / size:.3g} {unit}" if unit == "s" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def short(text: str) -> str:
    """A text for a cell of a table."""
    return text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}…"


def clock_time(at_ms: int) -> str:
    """A time in UTC, to the millisecond."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(" ", "milliseconds").removesuffix("+00:00")


def minute(at_ms: int | None) -> str:
    """A time in UTC, to the minute; "" for none."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%F %R}" if at_ms else ""


def size(count: int) -> str:
    """A number of bytes for people: "812 B", "3.4 KiB"."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB"
