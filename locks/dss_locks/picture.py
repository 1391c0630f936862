"""Draws the waits-for graph as an SVG without scripts, to be embedded in a page. Pure.

A client is drawn below the clients it waits for; clients that wait for no one are at the top. In a queue, each client waits for the
holder and for the client ahead of it. Only the arrow to the client ahead is drawn.

We keep our own layout. Graphviz needs the `dot` program at run time. A layout library would replace only `_levels` and `_corners`:
grandalf draws 200 clients 65,000 pixels wide in seconds, and igraph is a 6 MB binary. The standard library sorts the levels.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
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
    """The SVG of the first `CLIENTS_MAX` clients of `inspection.graph`; "" if no client waits."""
    nodes = {node["client"]: node for node in graph["nodes"][:CLIENTS_MAX]}
    edges = [edge for edge in _shortest(graph["edges"]) if edge["from"] in nodes and edge["to"] in nodes]
    if not nodes:
        return ""
    boxes, height = _corners(_levels(list(nodes), edges))
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
    """Whether the picture leaves out part of the graph."""
    return bool(graph["truncated"]) or len(graph["nodes"]) > CLIENTS_MAX


def _shortest(edges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out edges that another client leads to: if a waits for b and c at a key, and b for c, then a to c is left out."""
    pairs = {(edge["from"], edge["key"], edge["to"]) for edge in edges}
    ahead = {(edge["from"], edge["key"]): edge["to"] for edge in edges if edge["because"] == "waits"}

    def leads_on(edge: dict[str, Any]) -> bool:
        between = ahead.get((edge["from"], edge["key"]), edge["to"])
        return between != edge["to"] and (between, edge["key"], edge["to"]) in pairs

    return [edge for edge in edges if not leads_on(edge)]


def _levels(clients: list[str], edges: list[dict[str, Any]]) -> list[list[str]]:
    """The clients by the length of their longest path to a client that does not wait."""
    waits_for: dict[str, list[str]] = {client: [] for client in clients}
    for edge in edges:
        waits_for[edge["from"]].append(edge["to"])
    sorter = TopologicalSorter(waits_for)
    sorter.prepare()
    order = {client: number for number, client in enumerate(clients)}
    levels = []
    while ready := sorter.get_ready():
        levels.append(sorted(ready, key=order.__getitem__))
        sorter.done(*ready)
    return levels


def _corners(levels: list[list[str]]) -> tuple[dict[str, tuple[int, int]], int]:
    """The upper left corner of each box, and the height of the picture. A level with many clients takes several lines."""
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
        f'<text x="{x + 8}" y="{y + 17}" font-weight="bold">{cut(node["client"], NAME_LENGTH_MAX)}</text>'
        f'<text x="{x + 8}" y="{y + 33}" font-size="11">{state}, holds {held} {"key" if held == 1 else "keys"}</text></g>'
    )


def _arrow(edge: dict[str, Any], waiter: tuple[int, int], other: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = waiter, other
    x1, x2, y2 = x1 + BOX_WIDTH // 2, x2 + BOX_WIDTH // 2, y2 + BOX_HEIGHT
    dashes = ' stroke-dasharray="5 4"' if edge["because"] == "waits" else ""
    what = "holds it" if edge["because"] == "holds" else "is ahead in the queue"
    title = f"{edge['from']} waits for {edge['key']} ({edge['mode']}): {edge['to']} {what}"
    return (
        f'<g><title>{escape(title)}</title><path d="M{x1},{y1} C{x1},{y1 - 40} {x2},{y2 + 40} {x2},{y2}" fill="none" '
        f'stroke="currentColor"{dashes} marker-end="url(#arrow)"/>'
        f'<text x="{(x1 + x2) // 2 + 5}" y="{(y1 + y2) // 2}" font-size="11">{cut(edge["key"], KEY_LENGTH_MAX)}</text></g>'
    )


def cut(text: str, length: int) -> str:
    """The beginning of a text, for a picture in SVG."""
    return escape(text if len(text) <= length else text[: length - 1] + "…")
