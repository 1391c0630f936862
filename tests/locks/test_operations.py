"""What the doors call: commands go through the node, reads are linearizable, metrics move."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from dss_api.errors import Refused
from dss_locks import metrics, operations
from dss_locks.core.commands import Acquire, CheckToken, ForceRelease, GraphQuery, Release, Renew, StatusQuery


@pytest.fixture
def moved():
    """How far a metric moved since the test began."""

    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels) or 0

    names = ("lock_acquire_total", "lock_release_total", "lock_expired_total", "lock_deadlock_total", "lock_wait_seconds_count")
    before = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name in (*names, "lock_held_seconds_count")
    }
    return lambda name, **labels: value(name, **labels) - before.get((name, tuple(sorted(labels.items()))), 0)


async def test_every_result_of_acquire_is_counted(node, moved):
    await operations.acquire(node, Acquire(key="k", client="a"))
    await operations.acquire(node, Acquire(key="k", client="a"))
    await operations.acquire(node, Acquire(key="k", client="b", mode="shared"))
    assert moved("lock_acquire_total", mode="exclusive", result="granted") == 1
    assert moved("lock_acquire_total", mode="exclusive", result="reentrant") == 1
    assert moved("lock_acquire_total", mode="shared", result="held") == 1
    assert moved("lock_wait_seconds_count") == 2


async def test_a_deadlock_is_counted_and_answered(node, moved):
    await operations.acquire(node, Acquire(key="k1", client="a"))
    await operations.acquire(node, Acquire(key="k2", client="b"))
    waiting = asyncio.ensure_future(operations.acquire(node, Acquire(key="k2", client="a", wait_ms=1000)))
    await asyncio.sleep(0)
    result = await operations.acquire(node, Acquire(key="k1", client="b", wait_ms=1000))
    assert (result.code, result.body["deadlock"]) == ("deadlock", True)
    assert moved("lock_deadlock_total") == 1
    await operations.release(node, Release(key="k2", client="b"))
    assert (await waiting).code == ""


async def test_a_caller_who_hangs_up_is_counted_as_cancelled(node, moved):
    await operations.acquire(node, Acquire(key="k", client="a"))
    waiting = asyncio.ensure_future(operations.acquire(node, Acquire(key="k", client="b", wait_ms=1000)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert moved("lock_acquire_total", mode="exclusive", result="cancelled") == 1


async def test_a_refusal_of_the_node_passes_through(node, moved):
    node.refusal = Refused("no_quorum")
    with pytest.raises(Refused, match="no_quorum"):
        await operations.acquire(node, Acquire(key="k", client="a"))
    with pytest.raises(Refused, match="no_quorum"):
        await operations.release(node, Release(key="k", client="a"))
    assert moved("lock_acquire_total", mode="exclusive", result="failed") == 1
    assert moved("lock_release_total", result="failed") == 1


async def test_releases_are_counted_by_what_they_did(node, moved):
    await operations.acquire(node, Acquire(key="k", client="a"))
    assert (await operations.release(node, Release(key="k", client="a"))).body["released"]
    await operations.release(node, Release(key="k", client="a"))
    await operations.acquire(node, Acquire(key="k", client="b"))
    await operations.release(node, Release(key="k", client="a", fencing_token=1))
    await operations.force_release(node, ForceRelease(key="k", reason="test"))
    for result in ("released", "not_held", "not_holder", "forced"):
        assert moved("lock_release_total", result=result) == 1


async def test_reads_are_linearizable_unless_local_is_asked_for(node):
    await operations.acquire(node, Acquire(key="k", client="a"))
    assert (await operations.status(node, StatusQuery(key="k"))).body["locked"]
    assert (await operations.check(node, CheckToken(key="k", fencing_token=1))).body == {"valid": True, "current": 1}
    assert (await operations.graph(node, GraphQuery())).body["edges"] == []
    assert node.reads == 3
    await operations.status(node, StatusQuery(key="k", consistency="local"))
    await operations.graph(node, GraphQuery(consistency="local"))
    assert node.reads == 3


async def test_renewing(node):
    await operations.acquire(node, Acquire(key="k", client="a"))
    assert (await operations.renew(node, Renew(key="k", client="a", ttl_ms=500))).body["expires_in_ms"] == 500


async def test_gauges_show_the_table_and_the_leader_counts_how_holds_end(node, moved):
    metrics.attach(node)
    await operations.acquire(node, Acquire(key="k1", client="a", ttl_ms=100))
    await operations.acquire(node, Acquire(key="k2", client="a", ttl_ms=200, mode="shared"))
    assert REGISTRY.get_sample_value("lock_held", {"mode": "exclusive"}) == 1
    assert REGISTRY.get_sample_value("lock_held", {"mode": "shared"}) == 1
    node.pass_ms(100)
    assert (moved("lock_expired_total"), moved("lock_held_seconds_count")) == (1, 1)
    await operations.acquire(node, Acquire(keys=["k3", "k4"], client="a"))
    await operations.release(node, Release(keys=["k3", "k4"], client="a"))
    assert (moved("lock_expired_total"), moved("lock_held_seconds_count")) == (1, 3)
    node.is_leader = False
    node.pass_ms(100)
    assert (moved("lock_expired_total"), moved("lock_held_seconds_count")) == (1, 3), "each node applies it, one counts it"
    assert REGISTRY.get_sample_value("lock_held", {"mode": "exclusive"}) == 0
