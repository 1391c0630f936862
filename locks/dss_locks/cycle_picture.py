"""Draws the cycle of a refused deadlock as an SVG without scripts: the clients in a ring, and the request that was refused in red. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import cos, pi, sin
from typing import Any

from dss_locks.picture import cut

#: Clients that are drawn; a longer cycle is a list.
CLIENTS_MAX = 12
BOX_WIDTH, BOX_HEIGHT = 150, 34
NAME_LENGTH_MAX = 18
KEY_LENGTH_MAX = 16
MARGIN = 8
#: from the middle between two boxes: their arrows are `ARROW_SHIFT` beside it, and the keys beside these
ARROW_SHIFT, LABEL_SHIFT, LABEL_REACH = 14, 20, 128
REFUSED, HELD = "#c62828", "#2e7d32"


def draw_cycle(steps: Sequence[dict[str, Any]]) -> str:
    """The SVG; "" if the cycle is empty or too long to be read as a picture."""
    count = len(steps)
    if not 0 < count <= CLIENTS_MAX:
        return ""
    radius = 120 + 28 * max(0, count - 3)
    ring = [(radius * sin(2 * pi * number / count), -radius * cos(2 * pi * number / count)) for number in range(count)]
    left, top = min(x for x, _ in ring), min(y for _, y in ring)
    # As narrow as it can be: it is read on phones, too.
    width = max(max(x for x, _ in ring) - left + BOX_WIDTH, 2 * LABEL_REACH) + 2 * MARGIN
    height = max(y for _, y in ring) - top + BOX_HEIGHT + 2 * MARGIN
    shift_x = width / 2 - (max(x for x, _ in ring) + left) / 2
    corners = [(x + shift_x, y - top + BOX_HEIGHT / 2 + MARGIN) for x, y in ring]
    arrows = [_arrow(step, corners[number], corners[(number + 1) % count], number == 0) for number, step in enumerate(steps)]
    boxes = [_box(step["client"], *corners[number], number == 0) for number, step in enumerate(steps)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="The cycle" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12" fill="currentColor">'
        f"<defs>{_head('held', 'currentColor')}{_head('refused', REFUSED)}</defs>{''.join(arrows)}{''.join(boxes)}</svg>"
    )


def _head(name: str, colour: str) -> str:
    return (
        f'<marker id="cycle-{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
    )


def _box(client: str, x: float, y: float, is_refused: bool) -> str:
    colour = REFUSED if is_refused else HELD
    return (
        f"<g><title>{escape(client)}</title>"
        f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="{colour}" '
        f'fill-opacity="0.16" stroke="{colour}" stroke-width="1.5"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" font-weight="bold">{cut(client, NAME_LENGTH_MAX)}</text></g>'
    )


def _arrow(step: dict[str, Any], start: tuple[float, float], end: tuple[float, float], is_refused: bool) -> str:
    (x1, y1), (x2, y2) = start, end
    length = max(1.0, ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5)
    # Two clients wait for each other: the arrows are beside each other.
    across_x, across_y = -(y2 - y1) / length, (x2 - x1) / length
    side_x, side_y = across_x * ARROW_SHIFT, across_y * ARROW_SHIFT
    x1, y1 = _edge(x1, y1, x2, y2)
    x2, y2 = _edge(x2, y2, start[0], start[1])
    colour, name = (REFUSED, "refused") if is_refused else ("currentColor", "held")
    dashes = ' stroke-dasharray="5 4"' if step["because"] == "waits" else ""
    what = "holds it" if step["because"] == "holds" else "waits ahead of it"
    title = f"{step['client']} waits for {step['waits_for']}: {step['held_by']} {what}"
    text_x, text_y = (x1 + x2) / 2 + across_x * LABEL_SHIFT, (y1 + y2) / 2 + across_y * LABEL_SHIFT + 4
    anchor = "middle" if abs(across_x) < 0.3 else "start" if across_x > 0 else "end"
    return (
        f'<g><title>{escape(title)}</title><path d="M{x1 + side_x:.0f},{y1 + side_y:.0f} L{x2 + side_x:.0f},{y2 + side_y:.0f}" fill="none" '
        f'stroke="{colour}" stroke-width="1.5"{dashes} marker-end="url(#cycle-{name})"/>'
        f'<text x="{text_x:.0f}" y="{text_y:.0f}" text-anchor="{anchor}" font-size="11">{cut(step["waits_for"], KEY_LENGTH_MAX)}</text></g>'
    )


def _edge(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Where the line to another box leaves the box around (x, y)."""
    dx, dy = to_x - x, to_y - y
    scale = min(
        (BOX_WIDTH / 2 + 4) / abs(dx) if dx else float("inf"),
        (BOX_HEIGHT / 2 + 4) / abs(dy) if dy else float("inf"),
    )
    return (x, y) if scale == float("inf") else (x + dx * scale, y + dy * scale)
