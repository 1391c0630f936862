"""For every test: the answers of the real operations have the fields and types that their Structs declare.

Tests that start real processes share one worker, because some of them use fixed ports. The other tests run beside them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dss_dev.answer_check import checked

OPERATIONS = ("health", "ready", "raft.", "locks.", "queue.", "cache.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture(autouse=True)
def _answers_are_as_declared() -> Iterator[None]:
    with checked(OPERATIONS):
        yield
