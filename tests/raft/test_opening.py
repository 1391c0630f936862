"""When a started node may open its session."""

from __future__ import annotations

import asyncio

import pytest

from dss_api.errors import Refused
from dss_raft.opening import SessionOpening


class Reads:
    """Reads that the test answers."""

    def __init__(self):
        self.futures = []

    def read(self):
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]


@pytest.fixture
def reads():
    return Reads()


async def test_a_node_without_anything_to_wait_for_opens_immediately(reads):
    assert SessionOpening(reads).is_allowed()
    assert not reads.futures


async def test_the_log_is_asked_only_when_the_node_has_applied_all_of_it(reads):
    asked = []
    opening = SessionOpening(reads, [lambda: asked.append(1) or 0.0], 10.0, lambda: 10.0)
    assert not opening.is_allowed()
    assert not opening.is_allowed()
    assert len(reads.futures) == 1
    assert not asked
    reads.futures[0].set_result(1)
    assert opening.is_allowed()
    assert opening.is_allowed()
    assert len(asked) == 1


async def test_the_longest_delay_counts_from_the_opening_of_the_store(reads):
    now = [10.0]
    opening = SessionOpening(reads, [lambda: 0.0, lambda: 0.303], 10.0, lambda: now[0])
    assert not opening.is_allowed()
    reads.futures[0].set_result(1)
    now[0] = 10.3
    assert not opening.is_allowed()
    now[0] = 10.31
    assert opening.is_allowed()


async def test_a_read_that_was_refused_is_repeated(reads):
    opening = SessionOpening(reads, [lambda: 0.0], 10.0, lambda: 10.0)
    assert not opening.is_allowed()
    reads.futures[0].set_exception(Refused("not_ready", "stopped"))
    assert not opening.is_allowed()
    reads.futures[1].set_result(1)
    assert opening.is_allowed()


async def test_while_too_many_reads_wait_it_asks_later(reads, monkeypatch):
    def full():
        raise Refused("over_limit", "too many reads wait")

    opening = SessionOpening(reads, [lambda: 0.0], 10.0, lambda: 10.0)
    monkeypatch.setattr(reads, "read", full)
    assert not opening.is_allowed()
    monkeypatch.undo()
    assert not opening.is_allowed()
    reads.futures[0].set_result(1)
    assert opening.is_allowed()
