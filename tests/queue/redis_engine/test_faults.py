"""Faults of the engine's servers: each is named with what to change, and ends by itself when it is mended.

The servers are real. A call that meets a fault before the service knows of it is refused, too.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from redis import Redis
from redis.exceptions import RedisError

from dss_api.errors import Refused
from dss_dev.local_cluster import free_ports
from dss_dev.valkey_server import CHANGE_S, Server, make_valkey, wait_until
from dss_project.certificates import make_authority, make_certificate
from dss_queue.answers import Delivered
from dss_queue.core.commands import NewMessage, TopicSettings
from dss_queue.core.topic_commands import PutGroup
from dss_queue.engine_service import EngineService
from dss_queue.redis_engine import probe
from dss_queue.redis_engine.slots import SlotTable

PASSWORD = "geheim"
#: What docs/how-to/engine.md gives a user.
RIGHTS = (
    "~dss:* resetchannels &dss:* -@all +@read +@write +@pubsub +@connection +fcall +function|list +function|load +info +wait"
    " +waitaof +cluster|info +cluster|slots +asking +time"
)
SETTINGS = TopicSettings()


@dataclass
class World:
    """A server, and the user that the engine has there."""

    server: Server
    other_port: int

    @property
    def admin(self) -> Redis:
        return self.server.client

    @property
    def url(self) -> str:
        return f"redis://dss:{PASSWORD}@127.0.0.1:{self.server.port}"

    def user(self, *rules: str) -> None:
        self.admin.execute_command("ACL", "SETUSER", "dss", *rules)

    def create_user(self) -> None:
        self.user("on", f">{PASSWORD}", *RIGHTS.split())

    def config(self, name: str, value: str) -> None:
        self.admin.config_set(name, value)

    def lose_disk(self) -> None:
        """A directory has the name of the snapshot, so the next one fails, and the server takes no changes."""
        (self.server.directory / "dump.rdb").unlink(missing_ok=True)
        (self.server.directory / "dump.rdb").mkdir()
        self.admin.bgsave()
        self._wait(lambda: self.admin.info("persistence")["rdb_last_bgsave_status"] == "err")

    def find_disk(self) -> None:
        (self.server.directory / "dump.rdb").rmdir()
        self.admin.bgsave()
        self._wait(lambda: self.admin.info("persistence")["rdb_last_bgsave_status"] == "ok")

    def _wait(self, holds: Callable[[], bool]) -> None:
        wait_until(holds, CHANGE_S, self.server.log_tail)

    def fill_disk(self) -> None:
        """The append-only file is on a full disk."""
        first, second = (self.server.directory / "appendonlydir" / f"appendonly.aof.{number}.incr.aof" for number in (1, 2))
        self.config("appendonly", "yes")
        self._wait(first.exists)
        second.symlink_to("/dev/full")
        self.admin.bgrewriteaof()
        self._wait(lambda: not first.exists())
        self.admin.set("unsaved", 1)
        self._wait(lambda: self.admin.info("persistence")["aof_last_write_status"] == "err")

    def empty_disk(self) -> None:
        self.admin.bgrewriteaof()
        self._wait(lambda: self.admin.info("persistence")["aof_last_write_status"] == "ok")

    def flush_library(self) -> None:
        self.user("-function|load")
        self.admin.function_flush("SYNC")

    def load_slowly(self) -> None:
        """The server starts again, and takes its time to load its data."""
        self.admin.mset({f"more{number}": "x" * 1000 for number in range(2000)})
        self.admin.save()
        self.server.kill()
        with self.server._configuration.open("a") as file:
            file.write("key-load-delay 20000\nloading-process-events-interval-bytes 1024\n")
        self.server.start()

    def load_fast(self) -> None:
        def is_set() -> bool:
            try:
                self.config("key-load-delay", "0")
            except (RedisError, OSError):
                return False
            return True

        self._wait(is_set)

    def restart(self) -> None:
        self.server.start()
        self.server.wait_started()


@dataclass(frozen=True)
class Fault:
    name: str
    bring: Callable[[World], None]
    mend: Callable[[World], None]
    state: str
    #: in the reason
    named: str


FAULTS = [
    Fault(
        "a changed password",
        lambda world: world.user("resetpass", ">other"),
        lambda world: world.user("resetpass", f">{PASSWORD}"),
        "unfit",
        "refuses the user or the password of DSS_ENGINE_URL",
    ),
    Fault(
        "a deleted user",
        lambda world: world.admin.execute_command("ACL", "DELUSER", "dss"),
        World.create_user,
        "unfit",
        "refuses the user or the password of DSS_ENGINE_URL",
    ),
    Fault("no right to call", lambda world: world.user("-fcall"), World.create_user, "unfit", "'fcall'"),
    Fault("no right to write", lambda world: world.user("-@write"), World.create_user, "unfit", "the engine needs"),
    Fault("no right to keys", lambda world: world.user("resetkeys", "~other:*"), World.create_user, "unfit", "the engine needs"),
    Fault("no right to channels", lambda world: world.user("resetchannels"), World.create_user, "unfit", "the engine needs"),
    Fault("no right to load", World.flush_library, World.create_user, "unfit", "'function|load'"),
    Fault("no snapshot", World.lose_disk, World.find_disk, "unfit", "MISCONF"),
    Fault("a full disk", World.fill_disk, World.empty_disk, "unfit", "No space left on device"),
    Fault(
        "too few replicas",
        lambda world: world.config("min-replicas-to-write", "1"),
        lambda world: world.config("min-replicas-to-write", "0"),
        "unfit",
        "min-replicas-to-write",
    ),
    Fault(
        "a demoted primary",
        lambda world: world.admin.replicaof("127.0.0.1", str(world.other_port)),
        lambda world: world.admin.replicaof("no", "one"),
        "unfit",
        "is a replica",
    ),
    Fault(
        "another policy",
        lambda world: world.config("maxmemory-policy", "allkeys-lru"),
        lambda world: world.config("maxmemory-policy", "noeviction"),
        "unfit",
        "`maxmemory-policy noeviction`",
    ),
    Fault("loading", World.load_slowly, World.load_fast, "away", "loading"),
    Fault("killed", lambda world: world.server.kill(), World.restart, "away", "does not answer"),
    Fault("hung", lambda world: world.server.pause(), lambda world: world.server.resume(), "away", "does not answer"),
]


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    with make_valkey() as other:
        (port,) = free_ports(1)
        server = Server(tmp_path / "server", port, {"port": str(port), "save": "3600 1"})
        server.start()
        try:
            server.wait_started()
            world = World(server, other.port)
            world.create_user()
            # A restart keeps it.
            with server._configuration.open("a") as file:
                file.write(f"user dss on >{PASSWORD} {RIGHTS}\n")
            yield world
        finally:
            server.resume()
            server.kill()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def publish(service: EngineService) -> None:
    topic = service._node.broker.topics["t"]
    message = NewMessage("", b"1", "", -1, 0, "", b"")
    await service.engine().publish(service.name_of(topic), [message], SETTINGS)


async def publish_until(service: EngineService, state: str, named: str = "") -> None:
    """Publish again and again until the service is in a state; meanwhile calls may be refused, and nothing else happens."""
    async with asyncio.timeout(60):
        while service.state != state or named not in service.detail:
            try:
                await publish(service)
            except Refused as refused:
                if refused.code not in ("engine_away", "unknown_outcome") or PASSWORD in refused.detail:
                    raise
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_of_a_server_is_named_and_ends_when_it_is_mended(start, world, fault):
    service = await start(world.url)
    await until(lambda: service.state == "ready")
    await publish(service)
    await asyncio.to_thread(fault.bring, world)
    await publish_until(service, fault.state, fault.named)
    assert str(world.server.port) in service.detail
    assert PASSWORD not in service.detail
    with pytest.raises(Refused) as refused:
        await publish(service)
    assert (refused.value.code, refused.value.detail) == ("engine_away", service.detail)
    await asyncio.to_thread(fault.mend, world)
    await publish_until(service, "ready")
    await publish(service)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_fault_that_is_there_at_the_start(start, world, fault):
    await asyncio.to_thread(fault.bring, world)
    service = await start(world.url)
    await until(lambda: service.state == fault.state and fault.named in service.detail)
    assert PASSWORD not in service.detail
    await asyncio.to_thread(fault.mend, world)
    await until(lambda: service.state == "ready")
    await publish(service)


async def test_a_server_that_wants_a_password(start):
    with make_valkey() as server:
        client = server.client()
        client.config_set("requirepass", PASSWORD)
        service = await start(f"redis://127.0.0.1:{server.port}")
        await until(lambda: service.state == "unfit")
        assert "refuses the user or the password of DSS_ENGINE_URL" in service.detail
        client.config_set("requirepass", "")
        await until(lambda: service.state == "ready")
        await publish(service)
        # The connections that are open go on; new ones are refused.
        client.config_set("requirepass", PASSWORD)
        await publish_until(service, "unfit", "refuses the user or the password")
        with pytest.raises(Refused, match="engine_away"):
            await publish(service)


async def test_a_server_that_has_lost_its_data(start, tmp_path):
    (port,) = free_ports(1)
    server = Server(tmp_path / "server", port, {"port": str(port), "save": '""'})
    server.start()
    try:
        server.wait_started()
        service = await start(f"redis://127.0.0.1:{port}")
        await until(lambda: service.state == "ready")
        name = service.name_of(service._node.broker.topics["t"])
        await service._node.submit(PutGroup(topic="t", group="g"))

        async def consume() -> list[Delivered]:
            return (await service.engine().consume(name, "g", SETTINGS, visibility_ms=60_000)).messages

        await service.engine().put_group(name, "g")
        await publish(service)
        (held,) = await consume()
        server.kill()
        await until(lambda: service.state == "away")
        server.start()
        await until(lambda: service.state == "ready")
        # What was in flight is over; neither an ack nor a nack fails.
        (acked,) = await service.engine().ack(name, "g", [held.msg_id], [held.receipt], SETTINGS)
        assert not acked.acked
        assert await service.engine().nack(name, "g", held.msg_id, held.receipt, SETTINGS) == (False, False)
        with pytest.raises(Refused, match="stale_receipt"):
            await service.engine().extend(name, "g", held.msg_id, held.receipt, SETTINGS, 1000)
        # The topic goes on empty, with its groups.
        assert await consume() == []
        await publish(service)
        assert len(await consume()) == 1
    finally:
        server.kill()


async def test_a_certificate_of_another_authority(start, tmp_path):
    for name in ("mine", "other"):
        make_authority(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    files = tmp_path / "server.pem", tmp_path / "server-key.pem"
    make_certificate(*files, (tmp_path / "other.pem", tmp_path / "other.key"), ("127.0.0.1",))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    service = await start(f"rediss://:{PASSWORD}@127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'mine.pem'}")
    await until(lambda: service.state == "unfit")
    assert f"127.0.0.1:{port} has a certificate that is not accepted" in service.detail
    server.close()


async def test_a_cluster_whose_nodes_name_an_address_that_does_not_answer(start, tmp_path):
    (port, elsewhere) = free_ports(2)
    settings = {"cluster-enabled": "yes", "cluster-announce-port": str(elsewhere)}
    server = Server(tmp_path / "server", port, {"port": str(port), "cluster-port": str(port + 1000), **settings})
    server.start()
    try:
        server.wait_started()
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        service = await start(f"redis+cluster://127.0.0.1:{port}")
        await until(lambda: service.state == "away")
        assert f":{elsewhere} does not answer" in service.detail
        with pytest.raises(Refused, match=f"engine_away.*{elsewhere}"):
            await publish(service)
    finally:
        server.kill()


@pytest.mark.parametrize(
    "answer", [":1", "*-1", "$-1", "+OK", "$3\r\nabc", "*0", "*1\r\n*1\r\n:1", "?", "-ERR no", "-", "$9999999999\r\nx"]
)
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_server_that_answers_everything_in_the_same_way(start, monkeypatch, scheme, answer):
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.5)
    failures: list[Exception] = []
    monkeypatch.setattr("dss_api.supervised.report_failure", lambda name, error: failures.append(error))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100_000):
            writer.write((answer + "\r\n").encode() * max(1, data.count(b"*")))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    service = await start(f"{scheme}://127.0.0.1:{port}")
    await until(lambda: service.state in ("away", "unfit"))
    assert f"127.0.0.1:{port}" in service.detail
    assert failures == []
    server.close()


@pytest.mark.parametrize(
    "answer", [b"", b"\xff", 1, None, [], [1], [[]], [[0, 5]], [[0, 16384, [b"a", 1]]], [["x", 1, [b"a", 1]]], [[0, 1, b"a"]]]
)
def test_a_table_of_slots_that_cannot_be_used(answer):
    with pytest.raises((ValueError, TypeError, IndexError)):
        SlotTable(answer, "a:1")
