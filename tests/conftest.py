"""Every test: the answers of the real operations have the fields and types that their Structs declare."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dss_dev.answer_check import checked

OPERATIONS = ("health", "ready", "raft.", "locks.", "queue.", "cache.")


@pytest.fixture(autouse=True)
def _answers_are_as_declared() -> Iterator[None]:
    with checked(OPERATIONS):
        yield
