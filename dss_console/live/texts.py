"""How the live view writes numbers, times and links. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode


def number(value: int) -> str:
    """12,345"""
    return f"{value:,}"


def count(value: int, one: str, many: str = "") -> str:
    """1 key, 2 keys"""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def size(value: int) -> str:
    """84 MB"""
    return f"{value // 1_000_000:,} MB" if value >= 1_000_000 else f"{value // 1000:,} kB" if value >= 1000 else f"{value} B"


def time_of_day(at_ms: int) -> str:
    """14:02:11, in UTC"""
    return datetime.fromtimestamp(max(0, at_ms) / 1000, UTC).strftime("%H:%M:%S")


def a_b_and_c(names: Sequence[str]) -> str:
    """a, b and c"""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def lock_link(key: str) -> str:
    return f"/ui/lock?{urlencode({'name': key})}"


def topic_link(topic: str) -> str:
    return f"/ui/topic?{urlencode({'name': topic})}"


def key_link(key: str) -> str:
    return f"/ui/key?{urlencode({'name': key})}"
