"""Texts and values that the lists of several subsystems show."""

from __future__ import annotations

from datetime import UTC, datetime


def count(number: int, one: str, more: str) -> str:
    """ "1 lock", "2,000 locks"."""
    return f"{number:,} {one if number == 1 else more}"


def moment(at_ms: int) -> datetime:
    """A stamp in milliseconds since 1970 as a time that Django shows."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def moment_if_any(at_ms: int) -> datetime | None:
    """`moment`; None for 0, which means never."""
    return moment(at_ms) if at_ms else None
