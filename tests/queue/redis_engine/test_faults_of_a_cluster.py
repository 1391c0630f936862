"""Faults of single servers of a Cluster: the partitions on the others go on, and a hung server holds up no later call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.crc import key_slot

from dss_api.errors import Refused
from dss_dev.local_cluster import free_ports
from dss_dev.valkey_cluster import ValkeyCluster
from dss_queue import engine_service
from dss_queue.core.commands import NewMessage, TopicSettings
from dss_queue.engine_service import EngineService
from dss_queue.redis_engine.keys import partition_keys

SETTINGS = TopicSettings()
PARTITIONS = 16


@pytest.fixture(autouse=True)
def short_grace(monkeypatch, short_pauses):
    monkeypatch.setattr(engine_service, "CLUSTER_GRACE_S", 0.2)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Topic:
    """The topic of a service."""

    def __init__(self, service: EngineService) -> None:
        self.service = service
        self.name = service.name_of(service._node.broker.topics["t"])

    def port_of(self, partition: int) -> int:
        address = self.service._servers.address_of(partition_keys(self.name, partition)[0])
        return int(address.rpartition(":")[2])

    async def publish(self, partition: int | None = None) -> None:
        key = "" if partition is None else "k"
        new = NewMessage("", b"1", key, -1 if partition is None else partition, 0, "", b"")
        await self.service.engine().publish(self.name, [new], SETTINGS)

    async def consume(self, count: int = 1, timeout_ms: int = 0, attempt_id: str = "") -> int:
        answer = await self.service.engine().consume(
            self.name,
            "g",
            SETTINGS,
            visibility_ms=60_000,
            max_messages=count,
            timeout_ms=timeout_ms,
            max_per_key=count,
            attempt_id=attempt_id,
        )
        return len(answer.messages)


async def opened(start, cluster: ValkeyCluster) -> Topic:
    service = await start(cluster.url)
    await until(lambda: service.state == "ready")
    topic = Topic(service)
    await service.engine().put_group(topic.name, "g")
    return topic


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_the_partitions_on_other_servers_go_on(start, tmp_path, how):
    settings = {"cluster-require-full-coverage": "no"}
    with ValkeyCluster(tmp_path, replicas=0, settings=settings) as cluster:
        topic = await opened(start, cluster)
        service = topic.service
        port = topic.port_of(0)
        for partition in range(PARTITIONS):
            await topic.publish(partition)
        # This call may have been sent before it is known.
        getattr(cluster.server(port), how)()
        call = asyncio.create_task(topic.publish(0))
        await until(lambda: service.state == "away")
        with pytest.raises(Refused, match=r"engine_away|unknown_outcome"):
            await call
        assert f":{port} " in service.detail
        assert "the partitions on 2 of 3 servers go on" in service.detail
        there = [one for one in range(PARTITIONS) if topic.port_of(one) != port]
        assert 0 < len(there) < PARTITIONS
        # Messages without a key are published where it is possible.
        for _ in range(PARTITIONS):
            await topic.publish()
        taken = 0
        while taken < len(there) + PARTITIONS:
            # As consumes of the Python client, each has an attempt_id.
            taken += await topic.consume(100, attempt_id=f"a{taken}")
        # A consume that would get nothing does not say that there is nothing.
        for timeout_ms, attempt_id in ((0, ""), (20, ""), (0, "b"), (20, "b")):
            with pytest.raises(Refused, match="engine_away"):
                await topic.consume(timeout_ms=timeout_ms, attempt_id=attempt_id)
        for partition in range(PARTITIONS):
            if partition in there:
                await topic.publish(partition)
            else:
                with pytest.raises(Refused, match="engine_away"):
                    await topic.publish(partition)
        # Refused at once: nothing was sent.
        assert not [address for address, _ in service._servers._lanes if address.endswith(f":{port}")]
        if how == "kill":
            await asyncio.to_thread(cluster.start, port)
        else:
            cluster.server(port).resume()
        await until(lambda: service.state == "ready")
        await topic.publish(0)


async def waiting_poll(topic: Topic, attempt_id: str = "") -> asyncio.Task[int]:
    """A consume that waits."""
    poll = asyncio.create_task(topic.consume(timeout_ms=600_000, attempt_id=attempt_id))
    await until(lambda: poll.done() or topic.service.engine().waiting(topic.name, "g") > 0)
    return poll


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_long_poll_waits_for_messages_on_the_servers_that_are_up(start, tmp_path, how):
    settings = {"cluster-require-full-coverage": "no"}
    with ValkeyCluster(tmp_path, replicas=0, settings=settings) as cluster:
        topic = await opened(start, cluster)
        service = topic.service
        port = topic.port_of(0)
        elsewhere = iter([one for one in range(PARTITIONS) if topic.port_of(one) != port])
        poll = await waiting_poll(topic)
        # It goes away while the poll waits.
        getattr(cluster.server(port), how)()
        await until(lambda: service.state == "away")
        await topic.publish(next(elsewhere))
        assert await poll == 1
        # It is away when the poll begins.
        for attempt_id in ("", "a"):
            poll = await waiting_poll(topic, attempt_id)
            await topic.publish(next(elsewhere))
            assert await poll == 1
        # It comes back while the poll waits.
        poll = await waiting_poll(topic)
        if how == "kill":
            await asyncio.to_thread(cluster.start, port)
        else:
            cluster.server(port).resume()
        await until(lambda: service.state == "ready")
        await topic.publish(0)
        assert await poll == 1
        assert await topic.consume(timeout_ms=20) == 0


async def test_a_long_poll_gets_what_was_on_a_server_that_comes_back(start, tmp_path):
    with ValkeyCluster(tmp_path, replicas=0, settings={"cluster-require-full-coverage": "no"}) as cluster:
        topic = await opened(start, cluster)
        await topic.publish(0)
        port = topic.port_of(0)
        cluster.server(port).pause()
        await until(lambda: topic.service.state == "away")
        polls = [await waiting_poll(topic) for _ in range(2)]
        cluster.server(port).resume()
        done, _ = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        assert [await one for one in done] == [1]
        # The other one goes on as usual.
        await topic.publish()
        assert [await one for one in polls] == [1, 1]


async def test_a_long_poll_goes_on_while_slots_have_no_primary(start, tmp_path):
    with ValkeyCluster(tmp_path, replicas=0, settings={"cluster-require-full-coverage": "no"}) as cluster:
        topic = await opened(start, cluster)
        service = topic.service
        elsewhere = iter(range(1, PARTITIONS))
        slot, port = key_slot(partition_keys(topic.name, 0)[0].encode()), topic.port_of(0)
        for one in cluster.running:
            cluster.server(one).client.execute_command("CLUSTER", "DELSLOTS", slot)
        with pytest.raises(Refused, match="engine_away"):
            await topic.publish(0)
        await until(lambda: service.state == "away")
        assert "1 slots of the Cluster have no primary; the partitions on 3 of 3 servers go on" in service.detail
        for attempt_id in ("", "a"):
            poll = await waiting_poll(topic, attempt_id)
            # Whatever the order in which it looks, and listens.
            await topic.publish(next(elsewhere))
            assert await poll == 1
        poll = await waiting_poll(topic)
        cluster.server(port).client.execute_command("CLUSTER", "ADDSLOTS", slot)
        await until(lambda: service.state == "ready")
        await topic.publish(0)
        assert await poll == 1


async def test_long_polls_are_refused_when_all_servers_are_away(start, tmp_path):
    with ValkeyCluster(tmp_path, replicas=0, settings={"cluster-require-full-coverage": "no"}) as cluster:
        topic = await opened(start, cluster)
        cluster.kill(topic.port_of(0))
        await until(lambda: topic.service.state == "away")
        polls = [await waiting_poll(topic) for _ in range(2)]
        assert not any(one.done() for one in polls)
        for port in cluster.running:
            cluster.kill(port)
        for one in polls:
            with pytest.raises(Refused, match="engine_away"):
                await one
        await until(lambda: not topic.service.is_usable)
        with pytest.raises(Refused, match="engine_away"):
            await topic.consume(timeout_ms=600_000)


async def test_a_replica_of_a_hung_primary_is_found(start, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_service, "CLUSTER_GRACE_S", 60)
    with ValkeyCluster(tmp_path) as cluster:
        topic = await opened(start, cluster)
        port = topic.port_of(0)
        cluster.server(port).pause()
        try:
            async with asyncio.timeout(60):
                while topic.port_of(0) == port:
                    try:
                        await topic.publish(0)
                    except Refused as refused:
                        if refused.code not in ("unknown_outcome", "engine_away"):
                            raise
            await topic.publish(0)
        finally:
            cluster.server(port).resume()


async def test_a_slot_that_is_said_to_be_at_an_address_that_does_not_answer(start, tmp_path):
    """A node names an address that only other nodes reach, or a server that has gone."""
    with ValkeyCluster(tmp_path, replicas=0) as cluster:
        topic = await opened(start, cluster)
        service = topic.service
        (elsewhere,) = free_ports(1)
        slot = key_slot(partition_keys(topic.name, 0)[0].encode())
        table = service._servers.slots
        owner = table.owners[slot]
        table.owners[slot] = f"127.0.0.1:{elsewhere}"
        # The call finds the right one by itself.
        await topic.publish(0)
        assert service._servers.slots.owners[slot] == owner


async def test_a_user_that_one_server_refuses(start, tmp_path):
    with ValkeyCluster(tmp_path, replicas=0) as cluster:
        topic = await opened(start, cluster)
        port = topic.port_of(0)
        client = cluster.server(port).client
        client.execute_command("ACL", "SETUSER", "default", "-fcall")
        await until(lambda: topic.service.state == "unfit")
        assert "'fcall'" in topic.service.detail
        await topic.publish()
        with pytest.raises(Refused, match="engine_away"):
            await topic.publish(0)
        client.execute_command("ACL", "SETUSER", "default", "+fcall")
        await until(lambda: topic.service.state == "ready")
        await topic.publish(0)
