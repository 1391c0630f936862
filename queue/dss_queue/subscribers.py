"""The messages that this node's subscriptions hold, and whether their clients are alive.

A subscription holds up to `credit` unfinished messages. An ack or nack at this node makes room immediately. One at another node, or a
visibility timeout, is noticed at this node's next tick by subscriptions that are full, and at the next probe by others. The state of this
node does not have what is on the engine `redis`: a subscription asks the engine, after a call at this node, and at most once a second by
itself.

A client whose host has vanished never closes its connection. While a subscription holds messages, it is probed four times in each
visibility timeout: a client from which nothing came since the last probe gets a ping. If it answers neither this ping nor the next
one, it is *silent*: nothing more is pulled for it, and the messages after which nothing was heard are marked, so that their timeout
does not count as an attempt. The same happens after a message has timed out, until the client is heard again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import structlog

from dss_api.errors import Refused
from dss_api.liveness import Liveness
from dss_api.supervised import Tasks
from dss_queue import engine_endings
from dss_queue.answers import Delivered
from dss_queue.core.broker import Broker
from dss_queue.core.commands import MarkReceived, Subscribe
from dss_queue.core.group import Group
from dss_queue.core.records import message_number, receipt_of
from dss_queue.engine_endings import MARK
from dss_queue.routing import routing_of

if TYPE_CHECKING:
    from dss_raft.node import Node

T = TypeVar("T")

log = structlog.get_logger("queue")

SERVICE = "queue-subscribers"
PROBES_PER_VISIBILITY = 4
PROBE_S_MIN = 0.01
#: A subscription asks the engine about its messages at most this often; calls at this node cause further questions.
ENGINE_LOOK_S = 1.0
#: A client that has answered none of this many probes is silent.
PROBES_MISSED_MAX = 2


class Held(NamedTuple):
    """A message that was pushed and is not finished."""

    receipt: str
    #: `Liveness.signs` when it was pushed
    signs: int
    #: loop time at which its visibility timeout is over, unless it was extended
    due_s: float


class Subscribers:
    """The subscriptions of one node. Created before the node starts."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._broker = cast(Broker, node.machine("queue"))
        self._by_group: dict[tuple[str, str], dict[Subscriber, None]] = {}
        self._full: dict[Subscriber, None] = {}
        self._marking: set[asyncio.Task[None]] = set()
        #: questions to the engine
        self.asking = Tasks()
        node.on_upkeep(self._check_full)
        node.services[SERVICE] = self

    @contextmanager
    def open(self, request: Subscribe, visibility_ms: int, liveness: Liveness) -> Iterator[Subscriber]:
        """A subscriber for the duration of the context."""
        name = (request.topic, request.group)
        subscriber = Subscriber(self, request, visibility_ms, liveness)
        self._by_group.setdefault(name, {})[subscriber] = None
        try:
            yield subscriber
        finally:
            subscriber.close()
            self._full.pop(subscriber, None)
            of_group = self._by_group[name]
            del of_group[subscriber]
            if not of_group:
                del self._by_group[name]

    def settled(self, topic: str, group: str, msg_ids: Iterable[str]) -> None:
        """Deliveries may have ended through a call at this node."""
        for subscriber in self._by_group.get((topic, group), ()):
            subscriber.settled(msg_ids)

    def group(self, topic: str, group: str) -> Group | None:
        """The group in the replicated state."""
        of_topic = self._broker.topics.get(topic)
        return of_topic.groups.get(group) if of_topic is not None else None

    def became_full(self, subscriber: Subscriber, is_full: bool) -> None:
        if is_full:
            self._full[subscriber] = None
        else:
            self._full.pop(subscriber, None)

    def mark(self, command: MarkReceived) -> None:
        """Tell the group. If that fails, the next probe does it again."""
        task = asyncio.create_task(self._mark(command))
        self._marking.add(task)
        task.add_done_callback(self._marking.discard)

    async def _mark(self, command: MarkReceived) -> None:
        with suppress(Refused):
            await self.node.submit(command)

    def _check_full(self) -> None:
        for subscriber in list(self._full):
            subscriber.notice_ends()


class Subscriber:
    """The unfinished messages of one subscription, and its client. See the module."""

    def __init__(self, subscribers: Subscribers, request: Subscribe, visibility_ms: int, liveness: Liveness) -> None:
        self._subscribers = subscribers
        self._request = request
        self._liveness = liveness
        self._loop = asyncio.get_running_loop()
        self._visibility_s = visibility_ms / 1000
        self._probe_s = max(self._visibility_s / PROBES_PER_VISIBILITY, PROBE_S_MIN)
        #: by msg_id
        self.held: dict[str, Held] = {}
        #: of `held`, those that the group knows as not received
        self._marked: dict[str, str] = {}
        self._is_silent = False
        self._probes_missed = 0
        self._signs = 0
        #: messages about which the engine is to be asked; True: because of a call at this node
        self._to_ask: dict[str, bool] = {}
        self._is_asking = False
        #: loop time before which the engine is asked only because of calls
        self._ask_again_s = 0.0
        self._probe_timer: asyncio.TimerHandle | None = None
        #: set while there is room and the client is not silent
        self._may_pull = asyncio.Event()
        self._may_pull.set()
        self._pulling: asyncio.Task[Any] | None = None

    # ------------------------------------------------------------------- pulling

    async def room(self) -> int:
        """Wait until it may hold more messages. Returns how many, at least one."""
        await self._may_pull.wait()
        return self._request.credit - len(self.held)

    async def pull(self, call: Coroutine[Any, Any, T]) -> T | None:
        """Make a call that waits for messages. None: it was cancelled, because the client is silent."""
        pulling: asyncio.Task[T] = asyncio.create_task(call)
        self._pulling = pulling
        try:
            return await pulling
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                return None
            raise
        finally:
            self._pulling = None

    async def is_there(self, messages: Sequence[Delivered]) -> bool:
        """Whether the client may get these messages. It is probed first if one of them has just timed out, or if it is silent."""
        if not self._liveness.can_ping or not (self._is_silent or any(one.msg_id in self.held for one in messages)):
            return True
        for message in messages:
            self.held.pop(message.msg_id, None)
        self._fall_silent()
        try:
            async with asyncio.timeout(self._probe_s):
                await self._may_pull.wait()
        except TimeoutError:
            return False
        return True

    def take(self, messages: Sequence[Delivered]) -> None:
        """These messages are pushed now."""
        signs, due_s = self._liveness.signs, self._loop.time() + self._visibility_s
        for message in messages:
            self.held[message.msg_id] = Held(message.receipt, signs, due_s)
        if self._probe_timer is None and self._liveness.can_ping:
            self._signs, self._probes_missed = signs, 0
            self._probe_timer = self._loop.call_later(self._probe_s, self._probe)
        self._update()

    def settled(self, msg_ids: Iterable[str]) -> None:
        """Deliveries of these messages may have ended through a call at this node."""
        of_engine = {msg_id: True for msg_id in msg_ids if msg_id in self.held and msg_id.startswith(MARK)}
        if of_engine:
            self._ask_engine(of_engine)
        self._drop_settled(msg_ids)

    def _drop_settled(self, msg_ids: Iterable[str]) -> list[str]:
        """Forget those of these messages that it no longer holds, as this node knows. Returns them."""
        group = self._subscribers.group(self._request.topic, self._request.group)
        dropped = []
        for msg_id in msg_ids:
            held = self.held.get(msg_id)
            if held is not None and not msg_id.startswith(MARK) and not _is_in_flight(group, msg_id, held.receipt):
                self._drop(msg_id)
                dropped.append(msg_id)
        if dropped:
            self._update()
        return dropped

    def _drop(self, msg_id: str) -> None:
        del self.held[msg_id]
        self._marked.pop(msg_id, None)

    def _ask_engine(self, msg_ids: dict[str, bool]) -> None:
        self._to_ask.update(msg_ids)
        if not self._is_asking:
            self._is_asking = True
            self._subscribers.asking.spawn("engine", self._drop_ended())

    async def _drop_ended(self) -> None:
        """Forget the messages that it no longer holds, as the engine says."""
        topic, group = self._request.topic, self._request.group
        try:
            while self._to_ask:
                asked, self._to_ask = self._to_ask, {}
                now, held = self._loop.time(), {msg_id: self.held[msg_id] for msg_id in asked if msg_id in self.held}
                receipts = {msg_id: one.receipt for msg_id, one in held.items()}
                is_overdue = any(one.due_s <= now for one in held.values())
                ended = await engine_endings.ended(routing_of(self._subscribers.node), topic, group, receipts, is_overdue)
                for msg_id in ended:
                    if self.held.get(msg_id) is held[msg_id]:
                        self._drop(msg_id)
                self._update()
                by_themselves = [msg_id for msg_id in ended if not asked[msg_id]]
                if await engine_endings.are_unfinished(routing_of(self._subscribers.node), topic, group, by_themselves):
                    self._fall_silent()
        except Refused:
            # The engine is away.
            return
        finally:
            self._is_asking = False

    def _update(self) -> None:
        is_full = len(self.held) >= self._request.credit
        if is_full or self._is_silent:
            self._may_pull.clear()
        else:
            self._may_pull.set()
        self._subscribers.became_full(self, is_full)

    # ------------------------------------------------------------------- the client

    def notice_ends(self) -> None:
        """Forget deliveries that ended without a call at this node. After a timeout, the client gets more only after a sign of life."""
        if self._loop.time() >= self._ask_again_s and (of_engine := {id: False for id in self.held if id.startswith(MARK)}):
            self._ask_again_s = self._loop.time() + ENGINE_LOOK_S
            self._ask_engine(of_engine)
        dropped = self._drop_settled(list(self.held))
        group = self._subscribers.group(self._request.topic, self._request.group)
        if any(_has_come_back(group, msg_id) for msg_id in dropped):
            self._fall_silent()

    def close(self) -> None:
        """The subscription ends."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._liveness.forget(self._heard)

    def _probe(self) -> None:
        self._probe_timer = None
        self.notice_ends()
        if not self.held:
            return
        self._probe_timer = self._loop.call_later(self._probe_s, self._probe)
        if self._liveness.signs != self._signs:
            self._signs, self._probes_missed = self._liveness.signs, 0
            return
        self._probes_missed += 1
        if self._probes_missed < PROBES_MISSED_MAX:
            self._liveness.ping()
            return
        self._fall_silent()
        unheard = {
            id: one.receipt
            for id, one in self.held.items()
            if one.signs == self._liveness.signs and not id.startswith(MARK)  # the engine has no such mark
        }
        self._mark({id: receipt for id, receipt in unheard.items() if not self._is_marked(id)}, False)
        self._marked.update(unheard)

    def _fall_silent(self) -> None:
        if not self._liveness.can_ping:
            return
        self._liveness.ping()
        if self._is_silent:
            return
        log.info("queue.subscriber_silent", topic=self._request.topic, group=self._request.group)
        self._is_silent = True
        self._liveness.when_heard(self._heard)
        self._update()
        if self._pulling is not None:
            self._pulling.cancel()

    def _heard(self) -> None:
        self._is_silent = False
        self._probes_missed = 0
        marked, self._marked = self._marked, {}
        self._mark({id: receipt for id, receipt in marked.items() if id in self.held}, True)
        self._update()

    def _mark(self, receipts: dict[str, str], received: bool) -> None:
        if receipts:
            self._subscribers.mark(
                MarkReceived(
                    topic=self._request.topic,
                    group=self._request.group,
                    msg_ids=list(receipts),
                    receipts=list(receipts.values()),
                    received=received,
                )
            )

    def _is_marked(self, msg_id: str) -> bool:
        group = self._subscribers.group(self._request.topic, self._request.group)
        delivery = group.in_flight.get(message_number(msg_id)) if group is not None else None
        return delivery is not None and not delivery.received


def _is_in_flight(group: Group | None, msg_id: str, receipt: str) -> bool:
    """True while the delivery of this receipt is in flight."""
    delivery = group.in_flight.get(message_number(msg_id)) if group is not None else None
    return delivery is not None and receipt == receipt_of(msg_id, delivery.serial)


def _has_come_back(group: Group | None, msg_id: str) -> bool:
    """Whether the group still has to finish a message, after a delivery of it has ended."""
    if group is None:
        return False
    number = message_number(msg_id)
    return number in group.in_flight or number in group.backlog.returned or number in group.dead
