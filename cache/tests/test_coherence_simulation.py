"""The promise under an adversary: a get that starts after an answered put never returns an older value, and no read goes back.

The simulated cluster runs the real directory, lines, leases and near caches. Every flaw that the design guards against is put back in,
one at a time, and must be found: otherwise the simulation would prove nothing.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from dss_cache.simulation import KEYS, Adversary, Flaws, Simulation, StaleRead

STEPS = 200
#: For each flaw, a seed with which the adversary finds it: a search from there on ends soon.
FOUND_WITH = {
    "no_lease_check": 20,
    "deposed_leader_grants": 2905,
    "revoke_without_waiting": 19,
    "new_leader_does_not_wait": 19,
    "grant_ignores_index": 18,
    "grant_while_revoking": 92,
    "join_without_lease": 29,
    "writer_not_in_must": 17,
    "revoked_node_keeps_lines": 255,
    "snapshot_keeps_lines": 1651,
    "lease_counts_from_grant": 205,
    "older_memory_is_good_enough": 1513,
    "absence_serves_all": 49,
}
SEEDS_MAX = 4000


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_no_read_is_stale_and_all_calls_end(start):
    answered = 0
    for seed in range(start, start + 100):
        simulation = Simulation()
        Adversary(simulation, seed).run(STEPS)
        simulation.calm_down()
        assert simulation.is_quiet, f"seed {seed}: something waits for ever"
        answered += simulation.reads_answered
    assert answered > 4000, "the adversary lets too little happen"


@pytest.mark.parametrize("flaw", [field.name for field in dataclasses.fields(Flaws)])
def test_every_flaw_is_found(flaw):
    first = FOUND_WITH.get(flaw, 0)
    for seed in [*range(first, first + 20), *range(SEEDS_MAX)]:
        simulation = Simulation(Flaws(**{flaw: True}))
        try:
            Adversary(simulation, seed).run(STEPS)
        except StaleRead:
            return
    pytest.fail("not found")


NODES = st.sampled_from(["n1", "n2", "n3"])
KEY = st.sampled_from(KEYS)


class Promise(RuleBasedStateMachine):
    """The same steps in an order that Hypothesis chooses, and shortens when it finds something."""

    def __init__(self) -> None:
        super().__init__()
        self.simulation = Simulation()

    @rule(node=NODES, key=KEY, ttl_ms=st.sampled_from([0, 0, 500]))
    def put(self, node, key, ttl_ms):
        self.simulation.put(node, key, ttl_ms)

    @rule(node=NODES, key=KEY)
    def delete(self, node, key):
        self.simulation.delete(node, key)

    @rule(node=NODES, key=KEY)
    def get(self, node, key):
        self.simulation.get(node, key)

    @rule(node=NODES)
    def read_on(self, node):
        for step in (self.simulation.poke, self.simulation.fill, self.simulation.land):
            step(node)

    @rule(count=st.integers(1, 8))
    @precondition(lambda self: self.simulation.proposed)
    def commit(self, count):
        self.simulation.commit(count)

    @rule(node=NODES, count=st.integers(1, 20))
    def apply(self, node, count):
        self.simulation.apply(node, count)

    @rule(which=st.integers(0, 50), times=st.integers(1, 5))
    @precondition(lambda self: self.simulation.messages)
    def deliver(self, which, times):
        for _ in range(times):
            self.simulation.deliver(which)

    @rule(which=st.integers(0, 50))
    @precondition(lambda self: self.simulation.messages)
    def drop(self, which):
        self.simulation.drop(which)

    @rule(node=NODES)
    def renew_and_confirm(self, node):
        self.simulation.renew(node)
        self.simulation.deliver(-1)
        self.simulation.confirm(self.simulation.leader)

    @rule(node=NODES)
    def tick(self, node):
        self.simulation.tick(node)

    @rule(node=NODES)
    def gossip(self, node):
        self.simulation.gossip(node)

    @rule(milliseconds=st.integers(1, 1500))
    def advance(self, milliseconds):
        self.simulation.advance(milliseconds / 1000)

    @rule(node=NODES, key=KEY)
    def write_back(self, node, key):
        self.simulation.write_back(node, key)

    @rule(key=KEY)
    def lose(self, key):
        self.simulation.lose(key)

    @rule(node=NODES)
    def pause(self, node):
        self.simulation.pause(node)

    @rule(node=NODES)
    def resume(self, node):
        self.simulation.resume(node)

    @rule(node=NODES, snapshot_of=st.sampled_from(["", "n1", "n2", "n3"]))
    def restart(self, node, snapshot_of):
        self.simulation.restart(node, snapshot_of)

    @rule(node=NODES, snapshot_of=NODES)
    def restore(self, node, snapshot_of):
        self.simulation.restore(node, snapshot_of)

    @rule(node=NODES, kept=st.integers(0, 5))
    def lead(self, node, kept):
        self.simulation.lead(node, kept)

    @rule(node=NODES)
    def learn_leader(self, node):
        self.simulation.learn_leader(node)

    def teardown(self):
        self.simulation.calm_down()
        assert self.simulation.is_quiet, "something waits for ever"


Promise.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_the_promise = Promise.TestCase
