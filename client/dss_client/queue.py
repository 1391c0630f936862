"""The queue for asyncio: topics, messages, and the loop of a worker.

A worker takes messages by long polls and extends them while their handlers run. So a message stays with this worker even if the node
that delivered it dies: any other node takes the ack.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from dss_client.clock import now
from dss_client.config import pause_s
from dss_client.connection import Handle
from dss_client.core import LASTED_S, Core, Repeat
from dss_client.errors import (
    Cancelled,
    DssError,
    InternalError,
    NotFound,
    OverLimit,
    StaleReceipt,
    Unavailable,
    UnknownOutcome,
    WrongUse,
)
from dss_client.tracing import Tracing

log = logging.getLogger("dss_client")

#: a node lets a call wait for at most this long
POLL_S_MAX = 20.0
#: a worker asks for at most this many messages in one call
TAKE_MAX = 100
#: after this many seconds without a node that answers, a worker says so again
COMPLAIN_S = 10.0


class Releasable(Protocol):
    """A held lock, of `AsyncClient` or of `Client`."""

    def for_ack(self) -> list[dict[str, Any]]:
        """The locks as `queue.ack` needs them."""

    def released(self) -> None:
        """It is released."""


#: where the messages of a topic are unless its setting `engine` says otherwise; nodes of older releases say nothing else
REPLICATED_LOG = "replicated-log"
#: a topic and a value, or the fields of `queue.publish` with their `topic`
Published = tuple[str, Any] | Mapping[str, Any]


class Receipt(msgspec.Struct, frozen=True):
    """The answer to a publication."""

    msg_id: str
    #: the `dedup_id` was used before; `msg_id` is the earlier message
    duplicate: bool = False
    #: the topic did not exist, and has been created with the default settings
    created: bool = False
    #: what keeps the message: "replicated-log", or "redis" for a topic with `engine: redis`
    durability: str = REPLICATED_LOG


def _receipt(published: Mapping[str, Any], answer: Mapping[str, Any]) -> Receipt:
    durability = answer.get("durability", REPLICATED_LOG)
    return Receipt(published["msg_id"], published["duplicate"], published.get("created", False), durability)


def message_fields(
    value: Any, key: str = "", delay: float = 0, dedup_id: str = "", headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One message for `queue.publish`."""
    if not delay >= 0:
        raise WrongUse(f"`delay` is in seconds, not {delay!r}")
    fields: dict[str, Any] = {"value": value}
    if key:
        fields["key"] = key
    if delay:
        fields["delay_ms"] = max(1, round(delay * 1000))
    if dedup_id:
        fields["dedup_id"] = dedup_id
    if headers:
        fields["headers"] = dict(headers)
    return fields


class AsyncMessage:
    """A delivered message."""

    def __init__(self, core: Callable[[], Core], topic: str, group: str, fields: Mapping[str, Any], visible_until: float) -> None:
        self._core = core
        self.topic = topic
        self.group = group
        self.msg_id: str = fields["msg_id"]
        self.value: Any = fields["value"]
        self.key: str = fields.get("key") or ""
        self.headers: dict[str, str] = dict(fields.get("headers") or {})
        #: 1 for the first delivery
        self.attempt: int = fields["attempt"]
        self.published_ms: int = fields["published_ms"]
        self.delivered_ms: int = fields["delivered_ms"]
        #: the beginning of the first delivery to the group; 0: the node is too old to say
        self.first_delivered_ms: int = fields.get("first_delivered_ms", 0)
        self.receipt: str = fields["receipt"]
        #: whether it was acked or nacked, or another consumer has it
        self.is_settled = False
        self._visible_until = visible_until

    def __repr__(self) -> str:
        return f"<message {self.msg_id} of {self.topic} for {self.group}, attempt {self.attempt}>"

    @property
    def remaining(self) -> float:
        """For how many seconds no other consumer gets it, by this client's clock."""
        return max(0.0, self._visible_until - now())

    async def ack(self, publish: Iterable[Published] = (), release: Iterable[Releasable] = ()) -> list[Receipt]:
        """The group has finished this message. In the same step, publish further messages and release locks: all of it, or nothing.

        Raises:
            StaleReceipt: another consumer has it now.
            NotHolder: a lock is lost.
        """
        locks = list(release)
        fields = self._named()
        messages = [_to_publish(one) for one in publish]
        if messages:
            fields["publish"] = messages
        if locks:
            fields["release"] = [one for lock in locks for one in lock.for_ack()]
        repeat = Repeat.NUMBERED_IF_POSSIBLE if messages or locks else Repeat.HARMLESS
        answer = await self._settle("queue.ack", fields, repeat)
        for lock in locks:
            lock.released()
        return [_receipt(one, answer) for one in answer.get("published", ())]

    async def nack(self, delay: float | None = None, dead: bool = False, silent: bool = False) -> None:
        """The attempt failed. The message is delivered again after `delay` seconds, or after the topic's backoff.

        Args:
            dead: make it a dead letter now.
            silent: the attempt does not count.

        Raises:
            StaleReceipt: another consumer has it now.
        """
        fields = self._named()
        if delay is not None:
            fields["delay_ms"] = round(delay * 1000)
        if dead:
            fields["dead"] = True
        if silent:
            fields["silent"] = True
        await self._settle("queue.nack", fields, Repeat.HARMLESS)

    async def extend(self, visibility: float) -> None:
        """No other consumer gets it for this many seconds from now. With 0 it is given back now, and the attempt counts.

        Raises:
            StaleReceipt: another consumer has it now.
        """
        sent = now()
        fields = {**self._named(), "visibility_ms": round(visibility * 1000)}
        await self._core().call("queue.extend", fields, Repeat.HARMLESS, timeout_s=max(0.1, self.remaining))
        self.is_settled = self.is_settled or not fields["visibility_ms"]
        self._visible_until = sent + visibility

    async def _settle(self, operation: str, fields: dict[str, Any], repeat: Repeat) -> dict[str, Any]:
        try:
            answer = await self._core().call(operation, fields, repeat)
        except StaleReceipt:
            self.is_settled = True
            raise
        self.is_settled = True
        return answer

    def _named(self) -> dict[str, Any]:
        return {"topic": self.topic, "group": self.group, "msg_id": self.msg_id, "receipt": self.receipt}


def _to_publish(one: Published) -> dict[str, Any]:
    if isinstance(one, Mapping):
        if "topic" not in one or "value" not in one:
            raise WrongUse("a message to publish is (topic, value), or has the fields `topic` and `value`")
        given = dict(one)
        topic = given.pop("topic")
        try:
            return {"topic": topic, **message_fields(**given)}
        except TypeError as error:
            raise WrongUse(f"a message to publish has a field that it cannot have: {error}") from None
    topic, value = one
    return {"topic": topic, "value": value}


class AsyncTopic:
    """A topic."""

    def __init__(self, core: Callable[[], Core], name: str) -> None:
        self._core = core
        self.name = name

    @property
    def tracing(self) -> Tracing | None:
        return self._core().config.tracing

    async def publish(
        self, value: Any, key: str = "", delay: float = 0, dedup_id: str = "", headers: Mapping[str, str] | None = None
    ) -> Receipt:
        """Store a message for every group.

        Args:
            key: messages that share one reach a group in order, one in flight at a time.
            delay: hide it for this many seconds.
            dedup_id: a second message with the same one is not stored, within the topic's window.
        """
        fields = {"topic": self.name, **message_fields(value, key, delay, dedup_id, headers)}
        answer = await self._core().call("queue.publish", fields, Repeat.NUMBERED_IF_POSSIBLE if dedup_id else Repeat.NUMBERED)
        return _receipt(answer, answer)

    async def publish_many(self, values: Iterable[Any], key: str = "", delay: float = 0) -> list[Receipt]:
        """Store a message for each value: all of them, or none."""
        messages = [message_fields(value, key, delay) for value in values]
        if not messages:
            return []
        fields = {"topic": self.name, "messages": messages}
        answer = await self._core().call("queue.publish", fields, Repeat.NUMBERED)
        return [_receipt(one, answer) for one in answer["messages"]]

    async def consume(
        self,
        group: str,
        max_messages: int = 1,
        wait: float = 0,
        visibility: float = 15,
        handle: Handle | None = None,
        consumer: str = "",
        *,
        max_per_key: int = 1,
    ) -> list[AsyncMessage]:
        """Take messages and hide them from the rest of the group for `visibility` seconds.

        Args:
            wait: how many seconds to wait for the first one, at most 20.
            max_per_key: how many messages of one key may be among them.
            handle: cancels the call.
            consumer: with what the `attempt_id` of the messages begins in `peek`, before a dot.
        """
        wait = min(wait, POLL_S_MAX)
        fields = {
            "topic": self.name,
            "group": group,
            "max_messages": max_messages,
            "timeout_ms": round(wait * 1000),
            "visibility_ms": round(visibility * 1000),
            # A repeat gets the messages of a lost answer.
            "attempt_id": f"{consumer}.{uuid.uuid4().hex[:16]}" if consumer else uuid.uuid4().hex,
        }
        if max_per_key != 1:
            fields["max_per_key"] = max_per_key
        sent = now()
        answer = await self._core().call(
            "queue.consume", fields, Repeat.HARMLESS, wait_s=wait, handle=handle, is_traced=handle is None
        )
        return [AsyncMessage(self._core, self.name, group, one, sent + visibility) for one in answer.get("messages", ())]

    async def peek(
        self, limit: int = 10, group: str = "", dead: bool = False, *, msg_id: str = "", dedup_id: str = ""
    ) -> list[dict[str, Any]]:
        """Messages of the topic, without taking them; with `group` those that it has not finished, or its dead letters.

        Args:
            msg_id, dedup_id: only this message.
        """
        fields: dict[str, Any] = {"topic": self.name, "limit": limit}
        fields |= {name: id for name, id in (("msg_id", msg_id), ("dedup_id", dedup_id)) if id}
        if group:
            fields["group"] = group
        if dead:
            fields["dead"] = True
        return list((await self._core().call("queue.peek", fields, Repeat.READ))["messages"])

    async def stats(self) -> dict[str, Any]:
        """See `queue.stats` of the API."""
        return await self._core().call("queue.stats", {"topic": self.name}, Repeat.READ)

    async def stats_of(self, topics: Sequence[str], group: str = "", *, is_local: bool = False) -> list[dict[str, Any]]:
        """A line for each of these topics that exists: see `queue.stats` of the API with `topics`.

        Args:
            group: `ready` is the number of its messages that are ready.
            is_local: what the node knows, without asking the cluster.
        """
        fields: dict[str, Any] = {"topics": list(topics), "group": group}
        if is_local:
            fields["consistency"] = "local"
        return list((await self._core().call("queue.stats", fields, Repeat.READ, is_traced=not is_local))["topics"])


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker works."""

    topic: str
    group: str
    #: this many handlers run at a time
    concurrency: int = 1
    #: a message is hidden for this many seconds and extended every third of them
    visibility: float = 15.0
    #: seconds before the second attempt, doubled with each further one
    backoff: float = 1.0
    backoff_max: float = 300.0
    #: how many seconds running handlers have when the worker is stopped
    grace: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 1000:
            raise WrongUse(f"`concurrency` is 1 to 1000, not {self.concurrency}")
        if not self.visibility >= 0.1:
            raise WrongUse(f"`visibility` is in seconds and at least 0.1, not {self.visibility}")

    def delay_s(self, attempt: int) -> float:
        """Before the next attempt: between half of the backoff and all of it."""
        return random.uniform(0.5, 1.0) * min(self.backoff * 2.0 ** min(attempt - 1, 30), self.backoff_max)


class WorkerLoop:
    """Takes messages and has them handled, until it is stopped.

    Args:
        handle: handles a message; an error means that the attempt failed.

    Attributes:
        done: handled and acked messages.
        failed: failed attempts.
    """

    def __init__(self, topic: AsyncTopic, options: WorkerOptions, handle: Callable[[AsyncMessage], Awaitable[None]]) -> None:
        self._topic = topic
        self.options = options
        self._handle = handle
        self.done = 0
        self.failed = 0
        self._running: dict[asyncio.Task[None], AsyncMessage] = {}
        self._stopping = asyncio.Event()
        self._poll: Handle | None = None

    async def run(self) -> None:
        """Work until `stop`, then let the running handlers finish within the grace period.

        Raises:
            DssError: the cluster refuses this consumer.
        """
        try:
            await self._take_messages()
        finally:
            await self._drain()

    def stop(self) -> None:
        """Take no more messages."""
        self._stopping.set()
        if self._poll is not None:
            self._poll.cancel()

    async def _take_messages(self) -> None:
        failures = 0
        complain_at = 0.0
        #: A topic that does not exist ends the worker, but one that is deleted later may come back.
        has_polled = False
        while not self._stopping.is_set():
            free = self.options.concurrency - len(self._running)
            if free <= 0:
                stopped = asyncio.ensure_future(self._stopping.wait())
                await asyncio.wait({stopped, *self._running}, return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                continue
            self._poll = Handle()
            began = now()
            try:
                messages = await self._topic.consume(
                    self.options.group, min(free, TAKE_MAX), POLL_S_MAX, self.options.visibility, self._poll
                )
            except Cancelled:
                continue
            except (Unavailable, UnknownOutcome, OverLimit, InternalError, NotFound) as error:
                if isinstance(error, NotFound) and not has_polled:
                    raise
                if now() >= complain_at:
                    log.warning("worker of %s: %s", self._topic.name, error)
                    complain_at = now() + COMPLAIN_S
                failures = 1 if now() - began > LASTED_S else failures + 1
                await asyncio.sleep(pause_s(failures))
                continue
            finally:
                self._poll = None
            has_polled = True
            failures = 0
            for message in messages:
                task = asyncio.ensure_future(self._work(message))
                self._running[task] = message
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("worker of %s: %s", self._topic.name, error, exc_info=error)

    async def _drain(self) -> None:
        if self._running:
            await asyncio.wait(set(self._running), timeout=self.options.grace)
        late = dict(self._running)
        for task, message in late.items():
            log.warning("worker of %s: %s is given back, because the handler has not finished", self._topic.name, message.msg_id)
            task.cancel()
        if late:
            await asyncio.wait(set(late))

    async def _work(self, message: AsyncMessage) -> None:
        extending = asyncio.ensure_future(self._extend(message))
        try:
            if self._stopping.is_set():
                await self._give_back(message)
                return
            try:
                await self._traced(message)
            except asyncio.CancelledError:
                await self._give_back(message)
                return
            except StaleReceipt:
                raise
            except Exception as error:
                await self._fail(message, error)
                return
            if not message.is_settled:
                await message.ack()
            self.done += 1
        except StaleReceipt:
            log.warning("worker of %s: another consumer got %s while it was handled", self._topic.name, message.msg_id)
        except (Unavailable, UnknownOutcome) as error:
            log.warning("worker of %s: %s: %s", self._topic.name, message.msg_id, error)
        finally:
            extending.cancel()

    async def _traced(self, message: AsyncMessage) -> None:
        tracing = self._topic.tracing
        with (
            contextlib.nullcontext()
            if tracing is None
            else tracing.process(message.topic, message.group, message.msg_id, message.attempt, message.headers)
        ):
            await self._handle(message)

    async def _fail(self, message: AsyncMessage, error: Exception) -> None:
        self.failed += 1
        if message.is_settled:
            log.error("worker of %s: %s failed after it was settled", self._topic.name, message.msg_id, exc_info=error)
            return
        delay_s = self.options.delay_s(message.attempt)
        log.error(
            "worker of %s: attempt %d at %s failed; next one in %.1f s",
            self._topic.name,
            message.attempt,
            message.msg_id,
            delay_s,
            exc_info=error,
        )
        await message.nack(delay_s)

    async def _give_back(self, message: AsyncMessage) -> None:
        if not message.is_settled:
            await message.nack(silent=True)

    async def _extend(self, message: AsyncMessage) -> None:
        """Extend the message until it is settled."""
        while True:
            await asyncio.sleep(self.options.visibility / 3)
            if message.is_settled:
                return
            try:
                await message.extend(self.options.visibility)
            except StaleReceipt:
                # The handler's own ack will say so.
                return
            except DssError as error:
                log.warning("worker of %s: %s cannot be extended: %s", self._topic.name, message.msg_id, error)
