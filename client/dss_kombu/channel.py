"""A channel: what kombu declares, publishes and consumes on one transport."""

from __future__ import annotations

import base64
import contextlib
import logging
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.utils.uuid import uuid

from dss_client.errors import ClientClosed, DssError, WrongUse
from dss_kombu.contents import Contents
from dss_kombu.deliveries import Consumer, Delivery, raw_message
from dss_kombu.directory import Record
from dss_kombu.fetching import Fetcher
from dss_kombu.options import step_of

log = logging.getLogger("dss_kombu")

#: A header of a message: messages with the same text are delivered in order, one at a time.
KEY_HEADER = "dss_key"
#: What is kept of the properties: those of AMQP, which other transports send, and kombu's own. RabbitMQ drops others, too.
PROPERTIES = frozenset(
    {
        "delivery_mode", "priority", "correlation_id", "reply_to", "expiration", "message_id", "timestamp", "type", "user_id", "app_id",
        "cluster_id", "delivery_info", "delivery_tag", "body_encoding",
    }
)  # fmt: skip
#: `delivery_mode` of messages that may be lost, such as events
TRANSIENT = 1
#: a temporary queue without `x-expires`
EXPIRES_S_DEFAULT = 60.0
#: Larger bodies are compressed: a value has at most 256 KiB, and a canvas of a thousand tasks repeats itself.
COMPRESS_FROM_BYTES = 64 * 1024
COMPRESSED = "zlib"


class Compressed:
    """A codec of bodies: zlib, as base64."""

    def encode(self, body: str | bytes) -> str:
        return base64.b64encode(zlib.compress(body.encode() if isinstance(body, str) else body)).decode()

    def decode(self, text: str) -> bytes:
        return zlib.decompress(base64.b64decode(text))


class QoS(virtual.QoS):
    """Which messages the program has. Settled ones go to the fetcher."""

    def ack(self, delivery_tag: str) -> None:
        self.channel.settle(delivery_tag)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self.channel.refuse(delivery_tag, requeue)
        super().ack(delivery_tag)

    def restore_unacked(self) -> list[Any]:
        self._flush()
        tags = list(self._delivered)
        self._delivered.clear()
        self.channel.give_back(tags)
        return []


class Channel(virtual.Channel):
    """See the module."""

    QoS = QoS
    supports_fanout = True
    codecs = {**virtual.Channel.codecs, COMPRESSED: Compressed()}

    def __init__(self, connection: Any, **options: Any) -> None:
        super().__init__(connection, **options)
        self._link = connection.link
        self._directory = self._link.directory
        self._contents = Contents(self._link.client, self._directory)
        #: temporary queues that were declared here: how, and their bindings
        self._temporary: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]]]] = {}
        self._auto_delete: set[str] = set()
        self._consumed: set[str] = set()
        self._message_ttls: dict[str, int] = {}
        self._fetcher: Fetcher | None = None

    # --------------------------------------------------------- exchanges

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        type = type or "direct"
        exchange = exchange or f"amq.{type}"
        if passive:
            if self._link.run(self._directory.exchange(exchange)) is None:
                raise _not_found("exchange", exchange, "Channel.exchange_declare")
            return
        if type not in self.exchange_types:
            raise ChannelError(f"there is no exchange type {type!r}", (40, 10), "Channel.exchange_declare", "503")
        found = self._link.run(self._directory.declare_exchange(exchange, type))
        if found != type:
            raise virtual.base.NotEquivalentError(f"exchange {exchange!r} has the type {found!r}, not {type!r}")

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        self._link.run(self._directory.delete_exchange(exchange))

    def get_exchanges(self) -> list[str]:
        return []

    # ------------------------------------------------------------ queues

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        queue = queue or f"amq.gen-{uuid()}"
        arguments = arguments or {}
        if passive:
            if self._link.run(self._directory.queue(queue)) is None:
                raise _not_found("queue", queue, "Channel.queue_declare")
            return queue_declare_ok_t(queue, self._size(queue), 0)
        expires_s = arguments["x-expires"] / 1000 if arguments.get("x-expires") else None
        if expires_s is None and (exclusive or auto_delete):
            expires_s = EXPIRES_S_DEFAULT
        fields = {"has_priorities": bool(arguments.get("x-max-priority")), "expires_s": expires_s}
        record = self._link.run(self._directory.declare_queue(queue, **fields))
        if record["ttl"]:
            self._temporary.setdefault(queue, (fields, []))
            if auto_delete or exclusive:
                self._auto_delete.add(queue)
        if arguments.get("x-message-ttl"):
            self._message_ttls[queue] = int(arguments["x-message-ttl"])
        return queue_declare_ok_t(queue, self._size(queue), 0)

    def prepare_queue_arguments(self, arguments: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
        """The names of RabbitMQ: `x-max-priority`, `x-expires`, `x-message-ttl`."""
        found: dict[str, Any] = to_rabbitmq_queue_arguments(arguments or {}, **options)
        return found

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **options: Any) -> None:
        if if_empty and self._size(queue):
            return
        self._temporary.pop(queue, None)
        self._auto_delete.discard(queue)
        self._link.run(self._directory.delete_queue(queue))

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        binding = self._binding(queue, exchange, routing_key, arguments)
        self._link.run(self._directory.bind(*binding))
        if queue in self._temporary and binding not in self._temporary[queue][1]:
            self._temporary[queue][1].append(binding)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        binding = self._binding(queue, exchange, routing_key, arguments)
        _, exchange, _, key, pattern = binding
        self._link.run(self._directory.unbind(queue, exchange, key, pattern))
        if queue in self._temporary:
            bindings = self._temporary[queue][1]
            bindings[:] = [one for one in bindings if one != binding]

    def list_bindings(self) -> list[tuple[str, str, str]]:
        return []

    def _binding(
        self, queue: str, exchange: str | None, routing_key: str, arguments: dict[str, Any] | None
    ) -> tuple[str, str, str, str, Any]:
        """(queue, exchange, type of the exchange, key, pattern)."""
        exchange = exchange or "amq.direct"
        type = self._type_of(exchange)
        key, pattern, _ = self.exchange_types[type].prepare_bind(queue, exchange, routing_key, arguments)
        return queue, exchange, type, key, pattern

    def _type_of(self, exchange: str) -> str:
        record = self._link.run(self._directory.exchange(exchange))
        return "direct" if record is None else str(record["type"])

    async def _declare_again(self, queue: str) -> None:
        """In the background thread."""
        if queue in self._temporary:
            fields, bindings = self._temporary[queue]
            await self._directory.declare_queue(queue, **fields)
            for binding in list(bindings):
                await self._directory.bind(*binding)

    def _size(self, queue: str) -> int:
        return int(self._link.run(self._contents.count(queue)))

    def _purge(self, queue: str) -> int:
        return int(self._link.run(self._contents.purge(queue)))

    # ----------------------------------------------------------- publish

    def encode_body(self, body: Any, encoding: str | None = None) -> tuple[Any, str | None]:
        """Text stays readable, for `peek` and the admin; bytes become base64, and large bodies are compressed."""
        if len(body) >= COMPRESS_FROM_BYTES:
            return self.codecs[COMPRESSED].encode(body), COMPRESSED
        if isinstance(body, str):
            return body, "utf-8"
        found: tuple[Any, str | None] = super().encode_body(body, "base64")
        return found

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **options: Any) -> None:
        self._inplace_augment_message(message, exchange, routing_key)
        message["properties"] = {name: value for name, value in message["properties"].items() if name in PROPERTIES}
        if not exchange:
            self._put(routing_key, message)
            return
        record: Record = self._link.run(self._directory.exchange(exchange)) or {"type": "direct", "bindings": [], "groups": []}
        queues = self.exchange_types[record["type"]].lookup(record["bindings"], exchange, routing_key, None)
        if not queues and not record["groups"] and self.deadletter_queue:
            queues = {self.deadletter_queue}
        for queue in sorted(queues):
            self._put(queue, message)
        if record["groups"]:
            self._publish(self._directory.exchange_topic(exchange), message)

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        step = 0
        if priority := message["properties"].get("priority"):
            record = self._link.run(self._directory.queue(queue))
            if record is not None and record["priorities"]:
                step = step_of(priority)
        self._publish(self._directory.topic(queue, step), message)

    def _publish(self, topic: str, message: dict[str, Any]) -> None:
        key = (message.get("headers") or {}).get(KEY_HEADER) or ""
        if not isinstance(key, str):
            raise WrongUse(f"the header `{KEY_HEADER}` is a text, not {key!r}")
        if message["properties"].get("delivery_mode") == TRANSIENT and not key:
            self._link.publish_transient(topic, message)
        else:
            self._link.publish(topic, message, key)

    # ----------------------------------------------------------- consume

    @property
    def fetcher(self) -> Fetcher:
        if self._fetcher is None:
            self._fetcher = self._link.run(self._make_fetcher())
        return self._fetcher

    async def _make_fetcher(self) -> Fetcher:
        transport = self.connection

        def hand_over(deliveries: list[Delivery]) -> None:
            transport.inbox.put([(self, delivery) for delivery in deliveries])

        visibility_s = self._link.options.visibility_timeout
        fetcher = Fetcher(self._link.client, self._directory, visibility_s, hand_over, self._declare_again)
        fetcher.set_prefetch(self.qos.prefetch_count)
        self._link.fetchers.add(fetcher)
        transport.fetchers.add(fetcher)
        return fetcher

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **options: Any) -> None:
        super().basic_consume(queue, no_ack, callback, consumer_tag, **options)
        self._consumed.add(queue)
        self._link.run(self.fetcher.add(self._consumer(queue, no_ack)))

    def _consumer(self, queue: str, no_ack: bool) -> Consumer:
        record = self._link.run(self._directory.queue(queue))
        ttl = None if record is None else record["ttl"]
        return Consumer(queue, no_ack, ttl, self._message_ttls.get(queue))

    def basic_cancel(self, consumer_tag: str) -> None:
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is None or queue in self._active_queues:
            return
        unseen = self.connection.inbox.remove(lambda item: item[0] is self and item[1].queue == queue)
        self._link.run(self.fetcher.remove(queue, [delivery.tag for _, delivery in unseen]))

    def basic_get(self, queue: str, no_ack: bool = False, **options: Any) -> Any:
        delivery = self._link.run(self.fetcher.get(queue, no_ack, self._message_ttls.get(queue)))
        if delivery is None:
            return None
        message = self.Message(raw_message(delivery), channel=self)
        if not no_ack:
            self.qos.append(message, message.delivery_tag)
        return message

    def receive(self, delivery: Delivery) -> None:
        """Pass a delivery on to its consumer."""
        self.connection._deliver(raw_message(delivery), delivery.queue)

    def seen(self, count: int) -> None:
        """The program has taken this many deliveries, so there is room for others."""
        if self._fetcher is not None and not self.closed:
            self._link.post(self._fetcher.seen, count)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        if self._fetcher is not None:
            self._link.post(self._fetcher.set_prefetch, prefetch_count)

    def settle(self, tag: str) -> None:
        if self._fetcher is not None and not self._link.is_inherited:
            self._link.post(self._fetcher.ack, tag)

    def refuse(self, tag: str, requeue: bool) -> None:
        """Requeue a message, or make it a dead letter."""
        if self._fetcher is not None and not self._link.is_inherited:
            self._run_if_open(self._fetcher.reject(tag, requeue))

    def give_back(self, tags: list[str]) -> None:
        if self._fetcher is not None and tags and not self._link.is_inherited:
            self._run_if_open(self._fetcher.give_back(tags))

    def _run_if_open(self, work: Coroutine[Any, Any, None]) -> None:
        # A connection that is closed has given back everything.
        with contextlib.suppress(ClientClosed):
            self._link.run(work)

    def after_reply_message_received(self, queue: str) -> None:
        self.queue_delete(queue)

    def close(self) -> None:
        """Give back what is not acked, and delete the temporary queues that were consumed here."""
        if self.closed:
            return
        if self._link.is_inherited:
            self._forget_consumers()
        consumed = self._consumed & self._auto_delete
        transport = self.connection
        super().close()
        if self._fetcher is not None:
            transport.inbox.remove(lambda item: item[0] is self)
            self._link.run(self._fetcher.close())
            self._link.fetchers.discard(self._fetcher)
            transport.fetchers.discard(self._fetcher)
        try:
            for queue in sorted(consumed):
                self._link.run(self._contents.delete_unused(queue))
        except DssError as error:
            # The other channels of the connection are closed, too. These queues expire without consumers.
            log.warning("temporary queues are not deleted now: %s", error)

    def _forget_consumers(self) -> None:
        """In the child of a fork, where the parent goes on with them."""
        self._consumers.clear()
        self._consumed.clear()
        self._fetcher = None


def _not_found(kind: str, name: str, method: str) -> ChannelError:
    return ChannelError(f"NOT_FOUND - no {kind} {name!r}", (50, 10), method, "404")
