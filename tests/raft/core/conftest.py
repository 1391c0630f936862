"""Fixtures of raft_harness, which the mutants and the golden scripts use, too."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from raft_harness import Cluster, Lone


@pytest.fixture
def make_cluster() -> Callable[..., Cluster]:
    return Cluster


@pytest.fixture
def cluster() -> Cluster:
    """Three voters a, b, c."""
    return Cluster("abc")


@pytest.fixture
def lone() -> Lone:
    return Lone()
