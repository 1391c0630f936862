"""What a node does once in a few ticks, and not every tick."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dss_raft import members, metrics
from dss_raft.core import Role
from dss_raft.node import TICKS_PER_UPKEEP
from dss_raft.readiness import Readiness


@pytest.mark.parametrize("timeout_ticks", [50, 52, 53])
@pytest.mark.parametrize("first", range(TICKS_PER_UPKEEP))
def test_a_leader_dials_once_in_an_election_timeout(timeout_ticks: int, first: int) -> None:
    dialed: list[int] = []
    core: Any = SimpleNamespace(
        role=Role.LEADER, config=SimpleNamespace(election_ticks_max=timeout_ticks), progress={"b": None}, ticks=0
    )
    links: Any = SimpleNamespace(is_up=lambda peer: False, probe=lambda peer: dialed.append(core.ticks))
    for core.ticks in range(first, timeout_ticks * 20 + first, TICKS_PER_UPKEEP):
        members.dial_unlinked(core, links, TICKS_PER_UPKEEP)
    assert 19 <= len(dialed) <= 21


def test_a_stall_is_noticed_after_the_same_time() -> None:
    core: Any = SimpleNamespace(
        node_id="a",
        leader_id="a",
        role=Role.LEADER,
        last_index=10,
        commit_index=9,
        known_committed=9,
        membership=SimpleNamespace(ids={"a"}),
    )
    calls: Any = SimpleNamespace(is_closing=False, is_session_accepted=True, has_unapplied=True)
    replica: Any = SimpleNamespace(applied_index=9)
    for per_look in (1, TICKS_PER_UPKEEP):
        readiness = Readiness(core, replica, calls, 50, per_look)
        ticks = 0
        while not readiness.not_ready_reason:
            ticks += per_look
            readiness.tick()
        assert 50 < ticks <= 50 + 2 * per_look


def test_late_ticks_are_observed_immediately_and_punctual_ones_together() -> None:
    def observed() -> float:
        return next(s.value for s in metrics.LOOP_DELAY_SECONDS.collect()[0].samples if s.name.endswith("_count"))

    delay, before = metrics.LoopDelay(), observed()
    delay.observe(0.3)
    assert observed() == before + 1
    for _ in range(metrics.PUNCTUAL_KEPT - 1):
        delay.observe(0.0002)
    assert observed() == before + 1
    delay.observe(0.0)
    assert observed() == before + 1 + metrics.PUNCTUAL_KEPT
