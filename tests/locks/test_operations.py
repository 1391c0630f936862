"""The operations: commands go through the node, reads are linearizable, metrics count."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from dss_api.errors import Refused
from dss_locks import metrics, operations
from dss_locks.core.commands import Acquire, CheckToken, ForceReleaseRequest, GraphQuery, Release, Renew, StatusQuery


@pytest.fixture
def increase():
    """How much a metric has increased since the test began."""

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


async def test_every_result_of_acquire_is_counted(node, increase):
    await operations.acquire(node, Acquire(key="k", client="a"))
    await operations.acquire(node, Acquire(key="k", client="a"))
    await operations.acquire(node, Acquire(key="k", client="b", mode="shared"))
    assert increase("lock_acquire_total", mode="exclusive", result="granted") == 1
    assert increase("lock_acquire_total", mode="exclusive", result="reentrant") == 1
    assert increase("lock_acquire_total", mode="shared", result="held") == 1
    assert increase("lock_wait_seconds_count") == 2


async def test_a_deadlock_is_counted_and_answered(node, increase):
    await operations.acquire(node, Acquire(key="k1", client="a"))
    await operations.acquire(node, Acquire(key="k2", client="b"))
    waiting = asyncio.ensure_future(operations.acquire(node, Acquire(key="k2", client="a", wait_ms=1000)))
    await asyncio.sleep(0)
    result = await operations.acquire(node, Acquire(key="k1", client="b", wait_ms=1000))
    assert (result.code, result.body["deadlock"]) == ("deadlock", True)
    assert increase("lock_deadlock_total") == 1
    await operations.release(node, Release(key="k2", client="b"))
    assert (await waiting).code == ""


async def test_a_disconnected_caller_is_counted_as_cancelled(node, increase):
    await operations.acquire(node, Acquire(key="k", client="a"))
    waiting = asyncio.ensure_future(operations.acquire(node, Acquire(key="k", client="b", wait_ms=1000)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert increase("lock_acquire_total", mode="exclusive", result="cancelled") == 1


async def test_a_refusal_by_the_node_is_passed_on(node, increase):
    node.refusal = Refused("no_quorum")
    with pytest.raises(Refused, match="no_quorum"):
        await operations.acquire(node, Acquire(key="k", client="a"))
    with pytest.raises(Refused, match="no_quorum"):
        await operations.release(node, Release(key="k", client="a"))
    assert increase("lock_acquire_total", mode="exclusive", result="failed") == 1
    assert increase("lock_release_total", result="failed") == 1


async def test_releases_are_counted_by_result(node, increase):
    await operations.acquire(node, Acquire(key="k", client="a"))
    assert (await operations.release(node, Release(key="k", client="a"))).body["released"]
    await operations.release(node, Release(key="k", client="a"))
    await operations.acquire(node, Acquire(key="k", client="b"))
    await operations.release(node, Release(key="k", client="a", fencing_token=1))
    await operations.force_release(node, ForceReleaseRequest(key="k", reason="test"))
    for result in ("released", "not_held", "not_holder", "forced"):
        assert increase("lock_release_total", result=result) == 1


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


async def test_gauges_show_the_table_and_the_leader_counts_how_holds_end(node, increase):
    metrics.attach(node)
    await operations.acquire(node, Acquire(key="k1", client="a", ttl_ms=100))
    await operations.acquire(node, Acquire(key="k2", client="a", ttl_ms=200, mode="shared"))
    assert REGISTRY.get_sample_value("lock_held", {"mode": "exclusive"}) == 1
    assert REGISTRY.get_sample_value("lock_held", {"mode": "shared"}) == 1
    node.pass_ms(100)
    assert (increase("lock_expired_total"), increase("lock_held_seconds_count")) == (1, 1)
    await operations.acquire(node, Acquire(keys=["k3", "k4"], client="a"))
    await operations.release(node, Release(keys=["k3", "k4"], client="a"))
    assert (increase("lock_expired_total"), increase("lock_held_seconds_count")) == (1, 3)
    node.is_leader = False
    node.pass_ms(100)
    assert (increase("lock_expired_total"), increase("lock_held_seconds_count")) == (1, 3), (
        "every node applies it, but only the leader counts it"
    )
    assert REGISTRY.get_sample_value("lock_held", {"mode": "exclusive"}) == 0
