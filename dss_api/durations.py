"""Durations as people read them."""

from __future__ import annotations


def duration_text(ms: int) -> str:
    """A duration as people read it: `350 ms`, `12.3 s`, `4 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms // 100 / 10:g} s"
    seconds = ms // 1000
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if not hours:
        return f"{minutes} min {seconds % 60} s"
    return f"{days:,} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"
