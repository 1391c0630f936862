"""The waits-for graph as a picture: an SVG without script, that a page takes in as it is. Pure.

Whoever waits stands below those it waits for; at the top are those who wait for nobody. In a queue everybody waits for the holder
and for the one ahead; only the arrow to the one ahead is drawn.
"""

from __future__ import annotations

from html import escape
from typing import Any

CLIENTS_MAX = 200
PER_LINE = 6
NAME_LENGTH_MAX = 22
KEY_LENGTH_MAX = 18
BOX_WIDTH, BOX_HEIGHT = 180, 40
GAP_X, GAP_Y = 30, 62
MARGIN = 12

_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z" fill="currentColor"/></marker></defs>'
)


def draw(graph: dict[str, Any]) -> str:
    """The picture of `inspection.graph`, of its first `CLIENTS_MAX` clients; "" when nobody waits."""
    nodes = {node["client"]: node for node in graph["nodes"][:CLIENTS_MAX]}
    edges = [edge for edge in _shortest(graph["edges"]) if edge["from"] in nodes and edge["to"] in nodes]
    if not nodes:
        return ""
    boxes, height = _places(_levels(list(nodes), edges))
    width = MARGIN * 2 + PER_LINE * (BOX_WIDTH + GAP_X) - GAP_X
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Who waits for whom" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="currentColor">',
        _ARROW,
        *(_arrow(edge, boxes[edge["from"]], boxes[edge["to"]]) for edge in edges),
        *(_box(node, *boxes[client]) for client, node in nodes.items()),
        "</svg>",
    ]
    return "".join(parts)


def is_cut(graph: dict[str, Any]) -> bool:
    """True when the picture does not show all."""
    return bool(graph["truncated"]) or len(graph["nodes"]) > CLIENTS_MAX


def _shortest(edges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the arrows past somebody: a waits for b and c at a key, and b for c at the same key."""
    pairs = {(edge["from"], edge["key"], edge["to"]) for edge in edges}
    ahead = {(edge["from"], edge["key"]): edge["to"] for edge in edges if edge["because"] == "waits"}

    def leads_on(edge: dict[str, Any]) -> bool:
        between = ahead.get((edge["from"], edge["key"]), edge["to"])
        return between != edge["to"] and (between, edge["key"], edge["to"]) in pairs

    return [edge for edge in edges if not leads_on(edge)]


def _levels(clients: list[str], edges: list[dict[str, Any]]) -> list[list[str]]:
    """The clients by the length of their longest way to somebody who waits for nobody."""
    level = dict.fromkeys(clients, 0)
    # There is no cycle, so no way is longer than the number of clients; one round for each step of the longest.
    for _ in clients:
        changed = False
        for edge in edges:
            if level[edge["from"]] <= level[edge["to"]] < len(clients):
                level[edge["from"]] = level[edge["to"]] + 1
                changed = True
        if not changed:
            break
    return [[client for client in clients if level[client] == number] for number in sorted(set(level.values()))]


def _places(levels: list[list[str]]) -> tuple[dict[str, tuple[int, int]], int]:
    """Left upper corners, and the height of it all. A level with many clients has several lines."""
    corners: dict[str, tuple[int, int]] = {}
    y = MARGIN
    for level in levels:
        for first in range(0, len(level), PER_LINE):
            for column, client in enumerate(level[first : first + PER_LINE]):
                corners[client] = (MARGIN + column * (BOX_WIDTH + GAP_X), y)
            y += BOX_HEIGHT + GAP_Y
    return corners, y - GAP_Y + MARGIN


def _box(node: dict[str, Any], x: int, y: int) -> str:
    state = "waits" if node["waiting"] else "does not wait"
    held = node["keys_held"]
    colour = "#c47f00" if node["waiting"] else "#2e7d32"
    return (
        f"<g><title>{escape(node['client'])}</title>"
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="{colour}" fill-opacity="0.16" '
        f'stroke="{colour}" stroke-width="1.5"/>'
        f'<text x="{x + 8}" y="{y + 17}" font-weight="bold">{_cut(node["client"], NAME_LENGTH_MAX)}</text>'
        f'<text x="{x + 8}" y="{y + 33}" font-size="11">{state}, holds {held} {"key" if held == 1 else "keys"}</text></g>'
    )


def _arrow(edge: dict[str, Any], waiter: tuple[int, int], other: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = waiter, other
    x1, x2, y2 = x1 + BOX_WIDTH // 2, x2 + BOX_WIDTH // 2, y2 + BOX_HEIGHT
    dashes = ' stroke-dasharray="5 4"' if edge["because"] == "waits" else ""
    what = "holds it" if edge["because"] == "holds" else "is ahead in its queue"
    title = f"{edge['from']} waits for {edge['key']} ({edge['mode']}): {edge['to']} {what}"
    return (
        f'<g><title>{escape(title)}</title><path d="M{x1},{y1} C{x1},{y1 - 40} {x2},{y2 + 40} {x2},{y2}" fill="none" '
        f'stroke="currentColor"{dashes} marker-end="url(#arrow)"/>'
        f'<text x="{(x1 + x2) // 2 + 5}" y="{(y1 + y2) // 2}" font-size="11">{_cut(edge["key"], KEY_LENGTH_MAX)}</text></g>'
    )


def _cut(text: str, length: int) -> str:
    return escape(text if len(text) <= length else text[: length - 1] + "…")
