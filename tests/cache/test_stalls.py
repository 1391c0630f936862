"""If the event loop stalls for longer than a lease, reads take longer, but no read loops without end.

A test could not stop a loop that does not yield. But the loop reads the clock, which raises if it is read too often.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from dss_api.errors import Refused
from dss_cache import operations as ops
from dss_cache.backing_store import Stored
from dss_cache.core.commands import GetManyRequest, IncrRequest, PutRequest
from dss_cache.reading import FETCHES_MAX

LOOKS_AT_CLOCK_MAX = 20_000


@pytest.fixture
def watched_cluster(fake_cluster):
    """A cluster whose clock raises if it is read too often."""

    class WatchedCluster(fake_cluster):
        looks = 0
        _now = 0.0

        @property
        def now(self) -> float:
            self.looks += 1
            if self.looks > LOOKS_AT_CLOCK_MAX:
                raise AssertionError("a loop does not end")
            return self._now

        @now.setter
        def now(self, value: float) -> None:
            self._now = value

    return WatchedCluster


async def put_all(cluster: Any, node: str, keys: list[str]) -> None:
    for number, key in enumerate(keys):
        await ops.put(cluster.nodes[node], PutRequest(key=key, value=msgspec.Raw(b"%d" % number)))


@pytest.mark.parametrize("node", ["n1", "n2"])
@pytest.mark.parametrize("count", [1, 5])
async def test_bursts_of_reads_end_although_each_lease_is_over_before_it_is_used(watched_cluster, node: str, count: int) -> None:
    cluster = watched_cluster()
    lease = cluster.caches[node].near.lease
    keys = [f"k{number}" for number in range(count)]
    await put_all(cluster, node, keys)
    await ops.mget(cluster.nodes[node], GetManyRequest(keys=keys))
    cluster.pass_s(2.0)
    await cluster.settle()
    stalls = 0

    def stall() -> None:
        nonlocal stalls
        if lease.valid_until > cluster.now:
            cluster.now = lease.valid_until + 0.1
            stalls += 1

    # In every turn of the loop a read begins, also between the end of a renewal and the callbacks of its task.
    bursts = []
    for _ in range(100):
        asyncio.get_running_loop().call_soon(stall)
        bursts.append(asyncio.create_task(ops.mget(cluster.nodes[node], GetManyRequest(keys=keys))))
        await asyncio.sleep(0)
    for answer in await asyncio.gather(*bursts):
        assert [msgspec.json.decode(item.value) for item in answer.items] == list(range(count))
    assert stalls > 2


async def test_a_read_of_many_keys_is_one_task(cluster) -> None:
    keys = [f"k{number}" for number in range(90)]
    await put_all(cluster, "n1", keys)
    cluster.pass_s(2.0)
    await cluster.settle()
    before = len(asyncio.all_tasks())
    read = asyncio.create_task(ops.mget(cluster.nodes["n1"], GetManyRequest(keys=keys)))
    most = 0
    while not read.done():
        await asyncio.sleep(0)
        most = max(most, len(asyncio.all_tasks()) - before)
    assert most <= 3, "the read, its fetch, and the renewal of the lease"


async def test_a_value_that_is_lost_and_written_again_all_the_time_is_refused(cluster) -> None:
    await put_all(cluster, "n1", ["k"])
    await cluster.caches["n1"].write_back._write_due()
    cluster.caches["n1"].lines.flush("test")
    directory = cluster.nodes["n1"].directory
    reads = 0

    async def lost_and_written_again(key: str) -> Stored | None:
        nonlocal reads
        reads += 1
        if reads > 100:
            raise AssertionError("a loop does not end")
        await put_all(cluster, "n2", ["k"])
        await cluster.caches["n2"].write_back._write_due()
        await cluster.settle()
        assert not directory.records["k"].dirty
        return None

    cluster.store.read = lost_and_written_again
    with pytest.raises(Refused) as refusal:
        await cluster.caches["n3"].reader.read("k")
    assert refusal.value.code == "unknown_outcome"
    assert reads == FETCHES_MAX


async def test_an_increment_that_never_finds_the_version_it_read_has_no_effect_and_says_so(cluster) -> None:
    service = cluster.caches["n1"]
    await put_all(cluster, "n1", ["k"])
    reads = 0
    read_many = service.read_many

    async def read_and_write_again(keys: list[str]) -> Any:
        nonlocal reads
        reads += 1
        if reads > 100:
            raise AssertionError("a loop does not end")
        found = await read_many(keys)
        await put_all(cluster, "n2", ["k"])
        await cluster.caches["n2"].write_back._write_due()
        return found

    await service.write_back._write_due()
    service.read_many = read_and_write_again
    with pytest.raises(Refused) as refusal:
        await ops.incr(cluster.nodes["n1"], IncrRequest(key="k", delta=1))
    assert refusal.value.code == "over_limit"
    assert reads == ops.INCR_READS_MAX
    assert (await cluster.caches["n2"].reader.read("k")).value == b"0"
