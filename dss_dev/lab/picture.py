"""The stage of a scene: boxes and arrows, which the page draws as an SVG and lists as a table. 480 units wide, for all screens."""

from __future__ import annotations

import msgspec

WIDTH = 480


class Box(msgspec.Struct):
    id: str
    x: int
    y: int
    width: int
    height: int
    title: str
    lines: list[str] = []
    #: "", "accent", "ok", "warn", "bad", "gone", and "M", "E", "S", "I" of cache lines
    tone: str = ""


class Arrow(msgspec.Struct):
    start: str
    end: str
    label: str
    tone: str = ""
    is_dashed: bool = False
    #: between boxes of one row: the curve is below them, and not above
    is_below: bool = False
    #: the label is in the table only: another arrow beside this one shows the same
    is_in_table: bool = False


class Picture(msgspec.Struct):
    #: what it shows, for people who do not see it
    label: str
    height: int
    boxes: list[Box] = []
    arrows: list[Arrow] = []


def row_of(count: int, width: int, gap: int = 15) -> list[int]:
    """The left edges of boxes side by side, in the middle."""
    left = (WIDTH - count * width - (count - 1) * gap) // 2
    return [left + number * (width + gap) for number in range(count)]
