"""Bars in SVG, for the README: light and dark, no library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

WIDTH, LABEL, VALUE = 860, 210, 80
BAR, GAP, TITLE = 16, 6, 34
_STYLE = """
.paper { fill: #fff } text { font: 12px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 13px }
.bar { fill: #8c959f } .ours { fill: #0969da } .value { font-variant-numeric: tabular-nums }
@media (prefers-color-scheme: dark) { .paper { fill: #0d1117 } text { fill: #e6edf3 } .bar { fill: #6e7681 } .ours { fill: #58a6ff } }
"""


def bars(groups: Mapping[str, Mapping[str, float]], ours: str, title: str) -> str:
    """A chart with one group of bars for each key, on a logarithmic scale.

    Args:
        groups: group -> label -> value.
        ours: labels that begin with this are emphasized.
        title: for people who cannot see it.
    """
    values = [value for group in groups.values() for value in group.values()]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    scale = (WIDTH - LABEL - VALUE) / max(1, high - low)
    parts = []
    y = 4
    for name, group in groups.items():
        parts.append(f'<text class="title" x="0" y="{y + 18}">{escape(name)}</text>')
        y += TITLE - GAP
        for label, value in group.items():
            length = max(2.0, (math.log10(value) - low) * scale)
            kind = "bar ours" if label.startswith(ours) else "bar"
            parts.append(
                f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
                f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'
                f'<text class="value" x="{LABEL + length + 6:.1f}" y="{y + 12}">{value:,.0f}</text>'
            )
            y += BAR + GAP
        y += GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{escape(title)}">'
    paper = f'<rect class="paper" width="{WIDTH}" height="{y}"/>'
    return f"{head}<style>{_STYLE}</style>{paper}{''.join(parts)}</svg>\n"
