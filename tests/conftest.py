"""For every test: the answers of the real operations have the fields and types that their Structs declare.

For the two workers of `make test`: the tests of a file that starts real processes stay in one worker, where they share their nodes, and
all files that use the ports of `make run` are in one worker.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dss_dev.answer_check import checked

OPERATIONS = ("health", "ready", "raft.", "locks.", "queue.", "cache.")


#: files whose tests use the ports of `make run`, or look for a cluster there
ON_FIXED_PORTS = (
    "test_command_line",
    "test_compose",
    "test_find_cluster",
    "test_local_members",
    "test_members",
    "test_readme",
    "test_runbooks",
    "test_startup",
)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ON_FIXED_PORTS:
            item.add_marker(pytest.mark.xdist_group("fixed ports"))
        elif item.get_closest_marker("cluster") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def _answers_are_as_declared() -> Iterator[None]:
    with checked(OPERATIONS):
        yield
