"""Lines: eviction of the least recently used, pinned M lines, limits in number and bytes, reports of every transition."""

from __future__ import annotations

import pytest

from dss_cache.core.lines import EVICTION_SCAN_MAX, LINE_OVERHEAD_BYTES, Lines


@pytest.fixture
def changes():
    return []


@pytest.fixture
def lines(changes):
    return Lines(items_max=3, bytes_max=1_000_000, on_change=lambda *change: changes.append(change))


def install(lines, key, state="S", value=b"1", version=1):
    return lines.install(key, state, version, value, {}, True, 0.0, "fetched")


def test_the_least_recently_used_line_is_evicted(lines):
    for key in "abc":
        install(lines, key)
    lines.used("a")
    install(lines, "d")
    assert [key for key, _ in lines.recent_first()] == ["d", "a", "c"]
    assert lines.evictions == 1


def test_a_modified_line_stays_and_requests_a_write_back(lines):
    install(lines, "m", "M")
    for key in "abc":
        install(lines, key)
    assert lines.get("m") is not None
    assert lines.get("a") is None
    assert lines.wants_write_back


def test_only_modified_lines_exceed_the_limit(lines):
    for number in range(EVICTION_SCAN_MAX * 2):
        install(lines, f"m{number}", "M")
    assert len(lines) == EVICTION_SCAN_MAX * 2
    for number in range(EVICTION_SCAN_MAX * 2):
        lines.change(f"m{number}", lines.get(f"m{number}"), "E", "written back")
    install(lines, "s")
    assert len(lines) == 3


def test_bytes_are_limited(changes):
    lines = Lines(items_max=100, bytes_max=3 * (LINE_OVERHEAD_BYTES + 100), on_change=lambda *change: changes.append(change))
    for key in "abcd":
        install(lines, key, value=b"x" * 90)
    assert len(lines) == 3
    assert lines.bytes <= lines.bytes_max
    assert install(lines, "e", value=b"x" * 10_000) is None, "it is larger than the limit"
    assert lines.bytes == 0


def test_bytes_return_to_zero(lines):
    install(lines, "a", value=b"12345")
    install(lines, "a", value=b"1")
    install(lines, "b")
    lines.drop("a", "put")
    lines.flush("revoked")
    assert (lines.bytes, len(lines)) == (0, 0)


def test_transitions_are_reported_with_their_reason(lines, changes):
    install(lines, "a", "E")
    lines.change("a", lines.get("a"), "S", "fetched by n2")
    lines.change("a", lines.get("a"), "S", "fetched by n3")
    lines.drop("a", "put on n2")
    assert lines.drop("a", "put on n2") is False
    assert changes == [
        ("a", "I", "E", "fetched", 1),
        ("a", "E", "S", "fetched by n2", 1),
        ("a", "S", "I", "put on n2", 1),
    ]
