"""Takes the messages of a channel's consumers, and keeps them until they are settled. All of it runs in the background thread.

A node pushes: for each source, one `queue.consume` waits there until there is a message. The messages belong to this program and not to its
connection, so that they stay with it when a node dies. They are extended as long as they are not settled, for days if need be, and come
back one visibility timeout after this program was killed.

Only as many messages are taken as the channel's prefetch limit allows. If several waiting calls get more, the surplus is given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from dss_client.aio import AsyncClient
from dss_client.clock import now
from dss_client.config import pause_s
from dss_client.connection import Handle
from dss_client.core import LASTED_S, Repeat
from dss_client.errors import Cancelled, DssError, StaleReceipt
from dss_client.queue import POLL_S_MAX, AsyncMessage
from dss_kombu.deliveries import Consumer, Delivery, is_current, properties_of, routing_key_of
from dss_kombu.directory import Directory, Source

log = logging.getLogger("dss_kombu")

#: in one call
TAKE_MAX = 100
ACK_MAX = 500
#: without a prefetch limit, this many messages wait for the program
BUFFERED_MAX = 100
COMPLAIN_S = 10.0
#: how many messages are extended in a second at most: a program that holds more has a longer visibility timeout
EXTENDS_PER_S = 200
EXTENDS_AT_ONCE = 50
VISIBILITY_S_MAX = 3600.0
#: how often expired temporary queues are looked for
SWEEP_S = 60.0


class Fetcher:
    """The messages of one channel.

    Args:
        hand_over: gets deliveries; called in the background thread.
        declare_again: declares a temporary queue that was deleted, with its bindings.
    """

    def __init__(
        self,
        client: AsyncClient,
        directory: Directory,
        visibility_s: float,
        hand_over: Callable[[list[Delivery]], None],
        declare_again: Callable[[str], Any],
    ) -> None:
        self._client = client
        self._directory = directory
        self._visibility_s = visibility_s
        self._hand_over = hand_over
        self._declare_again = declare_again
        self._consumers: dict[str, Consumer] = {}
        self._turn = 0
        self._unsettled: dict[str, Delivery] = {}
        self._next_tag = 0
        #: how many were handed over, but not yet seen by the program
        self.buffered = 0
        #: 0: no limit
        self.prefetch = 0
        self._changed = asyncio.Event()
        self._handles: set[Handle] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_fetching = self._is_keeping = False
        self._acks: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._acking: asyncio.Task[None] | None = None
        self._giving: set[asyncio.Task[None]] = set()
        self._complain_at = 0.0

    # ------------------------------------------------------------ control

    def set_prefetch(self, count: int) -> None:
        self.prefetch = count
        self._changed.set()

    def seen(self, count: int) -> None:
        """The program has taken this many deliveries."""
        self.buffered -= count
        self._changed.set()

    async def add(self, consumer: Consumer) -> None:
        self._consumers[consumer.queue] = consumer
        self._interrupt()
        self._start_keeping()
        if not self._is_fetching:
            self._is_fetching = True
            self._tasks.append(asyncio.ensure_future(self._fetch()))

    def _start_keeping(self) -> None:
        if not self._is_keeping:
            self._is_keeping = True
            self._tasks.append(asyncio.ensure_future(self._keep()))

    async def remove(self, queue: str, buffered: Iterable[str]) -> None:
        """Take no more messages of this queue, and give back those that the program has not seen."""
        self._consumers.pop(queue, None)
        self._interrupt()
        tags = list(buffered)
        self.seen(len(tags))
        await self.give_back(tags)

    async def close(self) -> None:
        """Take no more messages. Send all acks, and give back what is not settled."""
        self._consumers.clear()
        self._interrupt()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.give_back(list(self._unsettled))
        if self._giving:
            await asyncio.wait(self._giving)
        while self._acking is not None:
            await asyncio.wait({self._acking})

    def _interrupt(self) -> None:
        self._changed.set()
        for handle in list(self._handles):
            handle.cancel()

    # --------------------------------------------------------------- take

    async def get(self, queue: str, no_ack: bool, message_ttl_ms: int | None) -> Delivery | None:
        """One message, without waiting."""
        if not no_ack:
            self._start_keeping()
        while True:
            for source in await self._directory.sources(queue):
                messages = await self._client.topic(source.topic).consume(source.group, 1, 0, self._visibility_s)
                if messages:
                    found = await self._accept(Consumer(queue, no_ack, None, message_ttl_ms), source, messages)
                    if not found:
                        break
                    return found[0]
            else:
                return None

    def _free(self) -> int:
        if self.prefetch:
            return min(self.prefetch - len(self._unsettled), TAKE_MAX)
        return BUFFERED_MAX - self.buffered

    async def _fetch(self) -> None:
        failures = 0
        while True:
            self._changed.clear()
            free = self._free()
            if not self._consumers or free <= 0:
                await self._changed.wait()
                continue
            began = now()
            try:
                await self._take(free)
                failures = 0
            except Cancelled:
                continue
            except DssError as error:
                if now() >= self._complain_at:
                    log.warning("no messages can be taken now: %s", error)
                    self._complain_at = now() + COMPLAIN_S
                failures = 1 if now() - began > LASTED_S else failures + 1
                await asyncio.sleep(pause_s(failures))
            except Exception:
                # A bug: it must not stop the consumer silently.
                log.exception("taking messages failed")
                await asyncio.sleep(1.0)

    async def _take(self, free: int) -> None:
        sources = await self._sources()
        if len(sources) > 1:
            batch: list[Delivery] = []
            try:
                for consumer, source in sources:
                    batch += await self._consume(consumer, source, free - len(batch), 0)
                    if len(batch) >= free:
                        break
            finally:
                self._deliver(batch)
            if batch:
                return
        polls = [asyncio.ensure_future(self._poll(consumer, source, free)) for consumer, source in sources]
        try:
            await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # They end soon: with a message, or with `Cancelled`.
            for handle in list(self._handles):
                handle.cancel()
            results = await asyncio.gather(*polls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Cancelled):
                raise result

    async def _sources(self) -> list[tuple[Consumer, Source]]:
        """Of all queues, each time beginning with another one."""
        consumers = list(self._consumers.values())
        self._turn += 1
        first = self._turn % len(consumers)
        found = []
        for consumer in consumers[first:] + consumers[:first]:
            found += [(consumer, source) for source in await self._directory.sources(consumer.queue)]
        return found

    async def _poll(self, consumer: Consumer, source: Source, free: int) -> None:
        self._deliver(await self._consume(consumer, source, free, POLL_S_MAX))

    async def _consume(self, consumer: Consumer, source: Source, count: int, wait_s: float) -> list[Delivery]:
        handle = Handle()
        self._handles.add(handle)
        try:
            topic = self._client.topic(source.topic)
            messages = await topic.consume(source.group, count, wait_s, self._visibility_s, handle)
        finally:
            self._handles.discard(handle)
        return await self._accept(consumer, source, messages)

    async def _accept(self, consumer: Consumer, source: Source, messages: list[AsyncMessage]) -> list[Delivery]:
        """Settle the messages that the program must not get, and keep the rest."""
        deliveries = []
        for message in messages:
            properties = properties_of(message)
            if properties is None:
                log.error("%s becomes a dead letter: it was not published by kombu", message)
                await self._nack_one(message, {"dead": True})
                continue
            if not is_current(message, properties, consumer.message_ttl_ms) or not source.takes(routing_key_of(properties)):
                self._ack(message)
                continue
            self._next_tag += 1
            delivery = Delivery(f"{id(self):x}.{self._next_tag}", consumer.queue, message, self._visibility_s)
            if consumer.no_ack:
                self._ack(message)
            else:
                self._unsettled[delivery.tag] = delivery
            deliveries.append(delivery)
        return deliveries

    def _deliver(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        room = self.prefetch + sum(1 for one in deliveries if one.tag in self._unsettled) - len(self._unsettled)
        kept: list[Delivery] = []
        surplus: list[Delivery] = []
        for delivery in deliveries:
            is_wanted = delivery.queue in self._consumers and (
                not self.prefetch or room > 0 or delivery.tag not in self._unsettled
            )
            (kept if is_wanted else surplus).append(delivery)
            room -= 1
        if surplus:
            giving = asyncio.ensure_future(self.give_back([one.tag for one in surplus]))
            self._giving.add(giving)
            giving.add_done_callback(self._giving.discard)
        if kept:
            self.buffered += len(kept)
            self._hand_over(kept)

    # ------------------------------------------------------------- settle

    def ack(self, tag: str) -> None:
        delivery = self._unsettled.pop(tag, None)
        if delivery is not None:
            self._changed.set()
            self._ack(delivery.message)

    def _ack(self, message: AsyncMessage) -> None:
        """Acks go out together: while a call is in progress, the next ones wait."""
        message.is_settled = True
        self._acks.setdefault((message.topic, message.group), []).append((message.msg_id, message.receipt))
        if self._acking is None:
            self._acking = asyncio.ensure_future(self._send_acks())

    async def _send_acks(self) -> None:
        try:
            while self._acks:
                source = next(iter(self._acks))
                done: dict[str, str] = {}
                left = []
                for msg_id, receipt in self._acks.pop(source):
                    # A call names a message once. An expired delivery of it has another receipt.
                    if msg_id in done or len(done) == ACK_MAX:
                        left.append((msg_id, receipt))
                    else:
                        done[msg_id] = receipt
                if left:
                    self._acks[source] = left
                topic, group = source
                fields = {"topic": topic, "group": group, "msg_ids": list(done), "receipts": list(done.values())}
                try:
                    answer = await self._client._running().call("queue.ack", fields, Repeat.HARMLESS)
                    stale = [one["msg_id"] for one in answer.get("results", ()) if one.get("code")]
                    if stale:
                        log.warning("%s: another consumer got %s while this program was working on it", topic, ", ".join(stale))
                except DssError as error:
                    log.warning("%s: %d messages that are done will be delivered again: %s", topic, len(done), error)
        finally:
            self._acking = None

    async def reject(self, tag: str, requeue: bool) -> None:
        """The program refuses a message: any consumer gets it now, and the attempt counts; or it becomes a dead letter."""
        await self._nack([tag], {"delay": 0} if requeue else {"dead": True})

    async def give_back(self, tags: Iterable[str]) -> None:
        """Return messages to their queues, where any consumer gets them now. It does not count as an attempt."""
        await self._nack(tags, {"delay": 0, "silent": True})

    async def _nack(self, tags: Iterable[str], how: dict[str, Any]) -> None:
        deliveries = [delivery for tag in tags if (delivery := self._unsettled.pop(tag, None)) is not None]
        self._changed.set()
        await asyncio.gather(*(self._nack_one(delivery.message, how) for delivery in deliveries))

    async def _nack_one(self, message: AsyncMessage, how: dict[str, Any]) -> None:
        try:
            await message.nack(**how)
        except StaleReceipt:
            pass
        except DssError as error:
            log.warning("%s comes back after its visibility timeout: %s", message, error)

    # --------------------------------------------------------------- keep

    async def _keep(self) -> None:
        """Extend the messages, and keep the temporary queues."""
        touch_at: dict[str, float] = {}
        sweep_at = now() + SWEEP_S
        while True:
            await asyncio.sleep(self._visibility_s / 6)
            try:
                await self._extend_all()
                await self._touch(touch_at)
                if now() >= sweep_at:
                    sweep_at = now() + SWEEP_S
                    await self._directory.sweep()
            except DssError as error:
                log.debug("temporary queues are not kept now: %s", error)
            except Exception:
                # A bug: without this task, all messages would come back.
                log.exception("keeping messages failed")

    async def _extend_all(self) -> None:
        visibility_s = self.visibility_s(len(self._unsettled))
        due = [one for one in self._unsettled.values() if one.message.remaining < one.visibility_s * 2 / 3]
        for start in range(0, len(due), EXTENDS_AT_ONCE):
            await asyncio.gather(*(self._extend(one, visibility_s) for one in due[start : start + EXTENDS_AT_ONCE]))

    async def _touch(self, touch_at: dict[str, float]) -> None:
        for consumer in list(self._consumers.values()):
            if consumer.ttl is not None and now() >= touch_at.get(consumer.queue, 0.0):
                touch_at[consumer.queue] = now() + consumer.ttl / 4
                if not await self._directory.touch(consumer.queue, consumer.ttl):
                    await self._declare_again(consumer.queue)

    def visibility_s(self, count: int) -> float:
        """For how long this many messages are hidden: each is extended after a third of it."""
        return max(self._visibility_s, min(3 * count / EXTENDS_PER_S, VISIBILITY_S_MAX))

    async def _extend(self, delivery: Delivery, visibility_s: float) -> None:
        if delivery.message.is_settled:
            return
        try:
            await delivery.message.extend(visibility_s)
            delivery.visibility_s = visibility_s
        except StaleReceipt:
            # Its ack would be refused, too.
            self._unsettled.pop(delivery.tag, None)
            log.warning("another consumer got %s while this program was working on it", delivery.message)
        except DssError as error:
            log.warning("%s cannot be extended: %s", delivery.message, error)
