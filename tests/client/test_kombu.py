"""The transport of kombu, `dss://`, on a real node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

kombu = pytest.importorskip("kombu")

import dss_kombu  # noqa: E402
from dss_client import AsyncClient, Client, Refused, WrongUse  # noqa: E402
from dss_client.dss_url import DssUrl  # noqa: E402
from dss_client.errors import ClientClosed, DssError, Unavailable  # noqa: E402
from dss_dev.local_cluster import LocalCluster  # noqa: E402
from dss_kombu import publishing  # noqa: E402
from dss_kombu.contents import Contents  # noqa: E402
from dss_kombu.directory import Directory, Source  # noqa: E402
from dss_kombu.fetching import Fetcher  # noqa: E402
from dss_kombu.options import Options, step_of  # noqa: E402
from dss_kombu.publishing import Publication, Publisher  # noqa: E402

pytestmark = pytest.mark.cluster

assert dss_kombu

Connect = Callable[..., Any]


@pytest.fixture
def connect(real_node: LocalCluster, token: str, request: pytest.FixtureRequest) -> Iterator[Connect]:
    """`connect(option=…)`: a connection; each test has names of its own."""
    with contextlib.ExitStack() as stack:

        def connect(**options: Any) -> Any:
            url = real_node.nodes[0].url.replace("http://", f"dss://:{token}@") + f"/{request.node.name}"
            return stack.enter_context(kombu.Connection(url, transport_options=options))

        yield connect


@pytest.fixture
def dss(real_node: LocalCluster, token: str) -> Iterator[Client]:
    with Client(real_node.nodes[0].url, token) as client:
        yield client


def publish(connection: Any, queue: Any, *bodies: Any, **options: Any) -> None:
    producer = kombu.Producer(connection.default_channel, serializer="json")
    for body in bodies:
        producer.publish(body, exchange=queue.exchange, routing_key=queue.routing_key or queue.name, declare=[queue], **options)


class Receiver:
    """A consumer that keeps what it gets, and does not ack it by itself."""

    def __init__(self, connection: Any, *queues: Any, prefetch: int = 0, no_ack: bool = False) -> None:
        self.messages: list[Any] = []
        self._connection = connection
        self.channel = connection.channel()
        options: dict[str, Any] = {"prefetch_count": prefetch} if prefetch else {}
        self._consumer = kombu.Consumer(
            self.channel, list(queues), on_message=self.messages.append, accept=["json"], no_ack=no_ack, **options
        )
        self._consumer.consume()

    def wait(self, count: int, timeout: float = 60) -> list[Any]:
        """The bodies, as soon as there are so many."""
        while len(self.messages) < count:
            self._connection.drain_events(timeout=timeout)
        return [message.payload for message in self.messages]

    def nothing_comes(self) -> bool:
        with contextlib.suppress(socket.timeout):
            self._connection.drain_events(timeout=0.3)
            return False
        return True


def test_a_message_is_legible_in_the_topic(connect: Connect, dss: Client) -> None:
    connection = connect()
    publish(connection, kombu.Queue("jobs"), {"order": 42})
    (message,) = dss.topic("kombu@test_a_message_is_legible_in_the_topic/queue/jobs").peek()
    assert message["value"]["body"] == '{"order": 42}'


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_large_message_is_compressed(connect: Connect, serializer: str) -> None:
    """A value has at most 256 KiB."""
    connection = connect()
    queue = kombu.Queue("jobs")
    body = {"text": "grün" * 200_000}
    producer = kombu.Producer(connection.default_channel, serializer=serializer)
    producer.publish(body, routing_key="jobs", declare=[queue])
    message = queue(connection.default_channel).get(accept=["json", "pickle"])
    assert message.payload == body
    message.ack()


def test_requeue_gives_back_at_once_and_counts_as_an_attempt(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("jobs")
    publish(connection, queue, "a")
    receiver = Receiver(connection, queue)
    receiver.wait(1)
    assert not receiver.messages[0].delivery_info["redelivered"]
    for number in range(1, 10):
        receiver.wait(number)
        receiver.messages[-1].requeue()
    receiver.wait(10)
    assert receiver.messages[-1].delivery_info["redelivered"]
    receiver.messages[-1].ack()


def test_prefetch_limits_what_a_consumer_has(connect: Connect) -> None:
    connection = connect()
    queues = [kombu.Queue("jobs"), kombu.Queue("more")]
    for queue in queues:
        publish(connection, queue, 1, 2, 3)
    receiver = Receiver(connection, *queues, prefetch=2)
    receiver.wait(2)
    assert receiver.nothing_comes()
    other = Receiver(connection, *queues)
    assert len(other.wait(4)) == 4
    for message in [*receiver.messages, *other.messages]:
        message.ack()


def test_closing_a_channel_gives_back_what_was_not_acked(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("jobs")
    publish(connection, queue, 1, 2)
    receiver = Receiver(connection, queue)
    receiver.wait(2)
    receiver.messages[0].ack()
    receiver.channel.close()
    other = Receiver(connection, queue)
    assert other.wait(1) == [2]
    # It does not count as an attempt.
    assert not other.messages[0].delivery_info["redelivered"]


def test_a_message_is_kept_as_long_as_its_consumer_lives(connect: Connect) -> None:
    queue = kombu.Queue("jobs")
    first, second = connect(visibility_timeout=5), connect(visibility_timeout=5)
    publish(first, queue, 1)
    receiver = Receiver(first, queue)
    receiver.wait(1)
    other = Receiver(second, queue)
    with pytest.raises(socket.timeout):
        second.drain_events(timeout=5.5)
    receiver.messages[0].requeue()
    receiver.channel.close()
    other.wait(1)
    other.messages[0].ack()


def test_a_message_that_was_fetched_alone_is_kept(connect: Connect) -> None:
    queue = kombu.Queue("jobs")
    first, second = connect(visibility_timeout=5), connect(visibility_timeout=5)
    publish(first, queue, 1)
    message = queue(first.default_channel).get()
    other = Receiver(second, queue)
    with pytest.raises(socket.timeout):
        second.drain_events(timeout=5.5)
    message.requeue()
    other.wait(1)
    other.messages[0].ack()


CONSUMER = """
import sys, kombu, dss_kombu
with kombu.Connection(sys.argv[1], transport_options={"visibility_timeout": 1}) as connection:
    with connection.Consumer([kombu.Queue("jobs")], callbacks=[lambda body, message: print("received", flush=True)]):
        while True:
            connection.drain_events()
"""


def test_messages_of_a_consumer_that_is_killed_come_back(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("jobs")
    publish(connection, queue, 1)
    command = [sys.executable, "-c", CONSUMER, connection.as_uri(include_password=True)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as consumer:
        assert consumer.stdout is not None
        assert consumer.stdout.readline() == "received\n"
        consumer.kill()
    other = Receiver(connection, queue)
    other.wait(1)
    assert other.messages[0].delivery_info["redelivered"]
    other.messages[0].ack()


def test_the_child_of_a_fork_leaves_the_messages_to_its_parent(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("jobs")
    publish(connection, queue, 1)
    receiver = Receiver(connection, queue)
    receiver.wait(1)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            receiver.messages[0].requeue()
            connection.release()
        os._exit(0)
    os.waitpid(child, 0)
    other = Receiver(connect(), queue)
    assert other.nothing_comes()
    receiver.messages[0].ack()


def test_connections_with_the_same_options_share_a_link(connect: Connect) -> None:
    first, second, other = connect(), connect(), connect(visibility_timeout=7)
    for connection in (first, second):
        connection.connect()
    link = first.transport.link
    assert second.transport.link is link
    assert other.transport.link is not link
    first.release()
    link.check(5)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            mine = connect().transport.link
            mine.check(5)
            os._exit(0 if mine is not link else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    second.release()
    with pytest.raises(ClientClosed):
        link.check(5)
    publish(second, kombu.Queue("jobs"), 1)
    assert second.transport.link is not link


@pytest.mark.parametrize("error", [Unavailable("the cluster is away"), RuntimeError("a fault")], ids=["unavailable", "fault"])
def test_a_connection_that_is_closed_while_the_cluster_is_away_takes_no_more_messages(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(self: Contents, source: Source) -> Any:
        raise error

    first, second = connect(), connect()
    receivers = [Receiver(first, kombu.Queue(name, auto_delete=True), no_ack=True) for name in ("one", "two")]
    second.connect()
    link = second.transport.link
    assert first.transport.link is link
    assert len(link.fetchers) == len(receivers)
    monkeypatch.setattr(Contents, "_stats", fail)
    with contextlib.nullcontext() if isinstance(error, DssError) else pytest.raises(RuntimeError):
        first.release()
    assert not link.fetchers
    assert list(link.users) == [second.transport]


def test_messages_of_several_threads_share_a_call_and_are_refused_one_by_one(
    connect: Connect, dss: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = 12
    connections = [connect() for _ in range(threads)]
    too_large = threads // 2
    batches: list[int] = []
    first_is_sent, all_wait = threading.Event(), asyncio.Event()
    publish_batch, add = Publisher._publish, Publisher.add

    def count(self: Publisher, publication: Publication) -> None:
        add(self, publication)
        if sum(map(len, self._pending.values())) == threads - 1:
            all_wait.set()

    async def when_all_wait(self: Publisher, topic: str, batch: list[Publication]) -> None:
        batches.append(len(batch))
        first_is_sent.set()
        await all_wait.wait()
        await publish_batch(self, topic, batch)

    def publish_one(number: int) -> None:
        if number:
            first_is_sent.wait()
        body = os.urandom(300_000).hex() if number == too_large else str(number)
        connections[number].default_channel.basic_publish(connections[number].default_channel.prepare_message(body), "", "jobs")

    monkeypatch.setattr(publishing, "CALLS_MAX", 1)
    monkeypatch.setattr(Publisher, "add", count)
    monkeypatch.setattr(Publisher, "_publish", when_all_wait)
    with ThreadPoolExecutor(threads) as pool:
        outcomes = [pool.submit(publish_one, number) for number in range(threads)]
        refused = [number for number, outcome in enumerate(outcomes) if outcome.exception() is not None]
    assert refused == [too_large]
    assert isinstance(outcomes[too_large].exception(), Refused)
    # By halves: of 11 messages, one is found in four steps at most, each of them two calls.
    assert batches[:2] == [1, threads - 1]
    assert len(batches) <= 2 + 2 * 4
    topic = dss.topic(connections[0].transport.link.directory.topic("jobs"))
    stored = sorted(int(message["value"]["body"]) for message in topic.peek(limit=100))
    assert stored == [number for number in range(threads) if number != too_large]


def test_rejected_messages_are_dead_letters(connect: Connect, dss: Client) -> None:
    connection = connect()
    queue = kombu.Queue("jobs")
    publish(connection, queue, 1)
    receiver = Receiver(connection, queue)
    receiver.wait(1)
    receiver.messages[0].reject()
    topic = connection.transport.link.directory.topic("jobs")
    assert len(dss.topic(topic).peek(group="workers", dead=True)) == 1


def test_messages_with_a_key_come_one_at_a_time(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("jobs")
    publish(connection, queue, 1, 2, headers={"dss_key": "customer-7"})
    publish(connection, queue, 3, headers={"dss_key": "customer-8"})
    receiver = Receiver(connection, queue)
    assert sorted(receiver.wait(2)) == [1, 3]
    assert receiver.nothing_comes()
    next(message for message in receiver.messages if message.payload == 1).ack()
    assert receiver.wait(3)[-1] == 2


def test_a_key_is_a_text(connect: Connect) -> None:
    with pytest.raises(WrongUse, match="dss_key"):
        publish(connect(), kombu.Queue("jobs"), 1, headers={"dss_key": 7})


def test_priorities_only_for_queues_that_have_them(connect: Connect) -> None:
    connection = connect()
    plain, urgent = kombu.Queue("plain"), kombu.Queue("urgent", max_priority=9)
    for queue in (plain, urgent):
        for number, priority in enumerate((0, 9, 3, 6)):
            publish(connection, queue, number, priority=priority)
    assert Receiver(connection, plain, no_ack=True).wait(4) == [0, 1, 2, 3]
    assert Receiver(connection, urgent, no_ack=True).wait(4) == [1, 3, 2, 0]


def test_a_publisher_that_does_not_know_the_priorities_reaches_the_queue(connect: Connect) -> None:
    """The declarations of two programs differ: the queue has priorities for both."""
    connection, other = connect(), connect()
    receiver = Receiver(connection, kombu.Queue("jobs", max_priority=9), no_ack=True)
    publish(other, kombu.Queue("jobs"), 1, priority=9)
    assert receiver.wait(1) == [1]


def test_temporary_queues_of_a_fanout_exchange_are_groups_of_one_topic(connect: Connect, dss: Client) -> None:
    connection = connect()
    exchange = kombu.Exchange("news", type="fanout")
    durable = kombu.Queue("kept", exchange)
    queues = [kombu.Queue(f"reader-{number}", exchange, auto_delete=True, durable=False) for number in range(3)]
    receivers = [Receiver(connection, queue, no_ack=True) for queue in queues]
    publish(connection, durable, "extra")
    topic = connection.transport.link.directory.exchange_topic("news")
    assert {group["group"] for group in dss.topic(topic).stats()["groups"]} == {"reader-0", "reader-1", "reader-2"}
    assert dss.topic(topic).stats()["published"] == 1
    assert [receiver.wait(1) for receiver in receivers] == [["extra"]] * 3
    assert Receiver(connection, durable, no_ack=True).wait(1) == ["extra"]
    receivers[0].channel.close()
    assert {group["group"] for group in dss.topic(topic).stats()["groups"]} == {"reader-1", "reader-2"}


def test_an_auto_delete_queue_is_deleted_with_its_last_consumer(connect: Connect) -> None:
    connection, other = connect(), connect()
    queue = kombu.Queue("shared", auto_delete=True)
    first, second = Receiver(connection, queue), Receiver(other, queue)
    publish(connection, queue, 1)
    with contextlib.suppress(socket.timeout):
        first.wait(1, timeout=1)
    first.channel.close()
    assert second.wait(1) == [1]
    second.messages[0].ack()
    second.channel.close()
    with pytest.raises(kombu.exceptions.ChannelError, match="no queue"):
        connection.default_channel.queue_declare("shared", passive=True)


def test_a_temporary_queue_of_a_topic_exchange_gets_what_matches(connect: Connect) -> None:
    connection = connect()
    exchange = kombu.Exchange("events", type="topic")
    tasks = Receiver(connection, kombu.Queue("t", exchange, routing_key="task.#", auto_delete=True), no_ack=True)
    both = Receiver(connection, kombu.Queue("b", exchange, routing_key="#", auto_delete=True), no_ack=True)
    producer = kombu.Producer(connection.default_channel, exchange, serializer="json")
    for key in ("worker.online", "task.sent"):
        producer.publish(key, routing_key=key, delivery_mode="transient")
    assert both.wait(2) == ["worker.online", "task.sent"]
    assert tasks.wait(1) == ["task.sent"]


def test_nothing_is_stored_for_an_exchange_without_queues(connect: Connect, dss: Client) -> None:
    connection = connect()
    kombu.Producer(connection.default_channel, kombu.Exchange("silent", type="fanout")).publish("x")
    assert not dss.topic(connection.transport.link.directory.exchange_topic("silent")).stats()["exists"]


def test_a_transient_message_without_json_form_is_refused_by_its_publisher(connect: Connect) -> None:
    channel = connect().default_channel
    message = channel.prepare_message("text", headers={"odd": object()}, properties={"delivery_mode": 1})
    with pytest.raises(TypeError):
        channel.basic_publish(message, "", "jobs")


def test_properties_that_amqp_does_not_know_are_dropped(connect: Connect) -> None:
    channel = connect().default_channel
    message = channel.prepare_message("text", properties={"correlation_id": "7", "odd": object()})
    channel.basic_publish(message, "", "jobs")
    received = channel.basic_get("jobs", no_ack=True)
    assert received.properties["correlation_id"] == "7"
    assert "odd" not in received.properties


def test_a_message_that_kombu_did_not_publish_is_a_dead_letter(connect: Connect, dss: Client) -> None:
    connection = connect()
    queue = kombu.Queue("jobs")
    topic = dss.topic(connection.transport.link.directory.topic("jobs"))
    topic.publish({"no": "properties"})
    publish(connection, queue, 1)
    receiver = Receiver(connection, queue, no_ack=True)
    assert receiver.wait(1) == [1]
    assert [message["value"] for message in topic.peek(group="workers", dead=True)] == [{"no": "properties"}]


def test_size_and_purge(connect: Connect) -> None:
    connection = connect()
    queue = kombu.Queue("jobs", max_priority=9)
    publish(connection, queue, 1, 2)
    publish(connection, queue, 3, priority=9)
    bound = queue(connection.default_channel)
    assert bound.queue_declare(passive=True).message_count == 3
    assert bound.purge() == 3
    assert bound.get() is None


def test_a_queue_or_an_exchange_that_does_not_exist(connect: Connect) -> None:
    channel = connect().default_channel
    with pytest.raises(kombu.exceptions.ChannelError, match="no queue 'missing'"):
        channel.queue_declare("missing", passive=True)
    with pytest.raises(kombu.exceptions.ChannelError, match="no exchange 'missing'"):
        channel.exchange_declare("missing", passive=True)


def test_unbind(connect: Connect) -> None:
    connection = connect()
    exchange = kombu.Exchange("orders", type="direct")
    queue = kombu.Queue("jobs", exchange, routing_key="new")(connection.default_channel)
    queue.declare()
    queue.unbind_from(exchange, "new")
    kombu.Producer(connection.default_channel, exchange, serializer="json").publish(1, routing_key="new")
    assert queue.get() is None


def test_the_token_is_not_shown(connect: Connect, token: str) -> None:
    connection = connect()
    assert token not in connection.as_uri()
    assert token in connection.as_uri(include_password=True)


def test_the_namespace_is_a_part_of_the_prefix() -> None:
    assert Options.read(DssUrl.parse("dss://host"), {}).prefix == "kombu"
    assert Options.read(DssUrl.parse("dss://host/shop"), {"prefix": "celery"}).prefix == "celery@shop"


def test_an_alternative_url_is_taken_when_the_first_has_no_node(real_node: LocalCluster, token: str) -> None:
    place = real_node.nodes[0].url.removeprefix("http://")
    with kombu.Connection(f"dss://127.0.0.1:1/elsewhere;dss://:{token}@{place}/shop") as connection:
        connection.ensure_connection(max_retries=2, interval_start=0)
        assert connection.transport.options.prefix == "kombu@shop"
        connection.transport.link.check(5)


def test_unknown_and_wrong_options(real_node: LocalCluster) -> None:
    with pytest.raises(WrongUse, match="colour"):
        kombu.Connection("dss://127.0.0.1?colour=red").transport  # noqa: B018
    with pytest.raises(WrongUse, match="visibility_timeout"):
        kombu.Connection("dss://127.0.0.1", transport_options={"visibility_timeout": 0}).transport  # noqa: B018


@pytest.mark.parametrize(("priority", "step"), [(None, 0), (0, 0), (2, 0), (3, 3), (8, 6), (9, 9), (255, 9), (-1, 0), ("x", 0)])
def test_levels_of_priorities(priority: Any, step: int) -> None:
    assert step_of(priority) == step


async def test_expired_temporary_queues_are_deleted(real_node: LocalCluster, token: str) -> None:
    async with AsyncClient(real_node.nodes[0].url, token) as client:
        directory = Directory(client, Options(prefix="sweep"))
        for queue in ("alive", "gone"):
            await directory.declare_queue(queue, has_priorities=False, expires_s=10)
            await directory.bind(queue, "news", "fanout", "", None)
            await directory.bind(queue, "orders", "direct", "new", None)
        await client.cache.delete("sweep/queue/gone")
        assert await directory.sweep() == ["gone"]
        assert await directory.exchange("news") == {"type": "fanout", "bindings": [], "groups": ["alive"]}
        assert await directory.exchange("orders") == {"type": "direct", "bindings": [["new", None, "alive"]], "groups": []}
        stats = await client.topic("sweep/exchange/news").stats()
        assert [group["group"] for group in stats["groups"]] == ["alive"]
        assert await directory.sweep() == []
        # Its consumer is there after all.
        assert not await directory.touch("gone", 60)


def test_a_group_takes_what_one_of_its_patterns_matches() -> None:
    source = Source("t", "g", ("^a$", r"^b\..*?$"))
    assert [source.takes(key) for key in ("a", "b.c", "c")] == [True, True, False]
    assert Source("t", "g").takes("anything")


async def test_the_more_messages_a_program_has_the_longer_they_are_hidden(real_node: LocalCluster, token: str) -> None:
    """So that extending them never takes all of the node."""
    async with AsyncClient(real_node.nodes[0].url, token) as client:
        fetcher = Fetcher(client, Directory(client, Options()), 30, lambda deliveries: None, lambda queue: None)
        assert fetcher.visibility_s(1) == 30
        assert fetcher.visibility_s(2000) == 30
        assert fetcher.visibility_s(10_000) == 150
        assert fetcher.visibility_s(10**6) == 3600
