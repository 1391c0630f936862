"""A consumer group of a topic: what it has still to do, in whose hands a message is, and what happens when that ends.

The topic holds the messages; a group holds a place in them and the exceptions. Messages without a routing key lie in the
topic's lane, and `cursor` is the first one this group has not met. Messages with a key lie in a chain per key, of which a
group sees the head only: one in flight at a time, in publish order. What can be delivered besides the lane stands in the heap
`ready`, by number: heads of chains, and what came back. An entry of the heap is a hint: it is checked when it comes up, so that
nothing is ever searched and removed. Every step costs O(log n) at most.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from heapq import heappop, heappush, nsmallest
from typing import TYPE_CHECKING, Any

import msgspec

from dss_queue.core.commands import BYTES_PER_CONSUME_MAX
from dss_queue.core.records import (
    HISTORY_MAX,
    Dead,
    DeadLettered,
    Delivery,
    Ending,
    Handout,
    Message,
    Rate,
    Returned,
    Waiter,
    message_id,
    receipt_of,
)
from dss_raft.replication.machine import Origin

if TYPE_CHECKING:
    from dss_queue.core.registry import Registry
    from dss_queue.core.topic import Topic

#: States of a key in a group. Without a record the head of the key's chain is ready.
IDLE, READY, BUSY, WAITING = range(4)
#: The lane is told how far groups are after so many steps.
STEPS_PER_TRIM = 64
BACKOFF_MS_MAX = 3_600_000


class KeyState(msgspec.Struct, array_like=True):
    """A routing key in a group that has met it."""

    #: position in the key's chain of the first message that the group is not finished with
    position: int
    #: IDLE (no message), READY (its head is in the heap), BUSY (in flight), WAITING (its head has a delay)
    state: int
    #: messages that are this group's alone, before the chain's: redriven ones
    extra: list[int] = []


class Counters(msgspec.Struct, array_like=True):
    """Totals of a group since it exists."""

    delivered: int = 0
    redelivered: int = 0
    acked: int = 0
    #: dead letters ever, by reason
    dead: dict[str, int] = {}
    deliver_rate: Rate = msgspec.field(default_factory=Rate)
    ack_rate: Rate = msgspec.field(default_factory=Rate)


class Group:
    """See the module. `Topic.add_group` makes one."""

    def __init__(self, topic: Topic, name: str, registry: Registry, cursor: int) -> None:
        self.topic = topic
        self.name = name
        self.cursor = cursor
        self.ready: list[int] = []
        self.keys: dict[str, KeyState] = {}
        self.in_flight: dict[int, Delivery] = {}
        self.returned: dict[int, Returned] = {}
        self.dead: dict[int, Dead] = {}
        #: messages that the topic has let go and this group still delivers (redriven, or in flight when retention ended)
        self.private: dict[int, Message] = {}
        #: first come, first served; the first one is live
        self.waiters: deque[Waiter] = deque()
        #: answered consumes by their attempt_id, while their messages are in flight
        self.replays: dict[str, Handout] = {}
        #: waiting consumes by their attempt_id
        self.waiting_attempts: dict[str, Waiter] = {}
        #: messages the group is not finished with
        self.pending = len(topic.messages)
        #: of `returned`, those with a delay
        self.waiting = 0
        self.counters = Counters()
        self._registry = registry

    @property
    def delayed(self) -> int:
        """Messages that become ready by themselves, later."""
        return self.waiting + self.topic.hidden

    def empty_reason(self) -> str:
        """Why there is nothing to deliver now."""
        in_flight, delayed = len(self.in_flight), self.delayed
        if in_flight and self.pending > in_flight + delayed:
            return "key_blocked"
        if delayed:
            return "delayed"
        return "all_in_flight" if in_flight else "no_messages"

    # -------------------------------------------------------------- handing out

    def hand_out(
        self, origin: Origin, attempt_id: str, messages_max: int, visibility_ms: int, at_ms: int
    ) -> list[dict[str, Any]]:
        """Deliver up to `messages_max` messages to the caller of `origin`; the answer's list, empty when nothing is ready."""
        message = self._next()
        if message is None:
            return []
        handout = Handout(origin=origin, attempt_id=attempt_id, group=self, numbers=[], live=0)
        answers: list[dict[str, Any]] = []
        size = 0
        while message is not None:
            answers.append(self._deliver(message, handout, visibility_ms, at_ms))
            if len(answers) == messages_max:
                break
            size += message.size
            if size > BYTES_PER_CONSUME_MAX:
                break
            message = self._next()
        handout.live = len(answers)
        self._registry.handouts[origin] = handout
        if attempt_id:
            self.replays[attempt_id] = handout
        self.counters.delivered += len(answers)
        self.counters.deliver_rate.add(at_ms, len(answers))
        return answers

    def hand_out_again(self, handout: Handout, origin: Origin, visibility_ms: int, at_ms: int) -> list[dict[str, Any]]:
        """The answer to a repeat of an attempt: what of it is still in flight, with the same receipts and its full visibility."""
        registry = self._registry
        del registry.handouts[handout.origin]
        handout.origin = origin
        registry.handouts[origin] = handout
        answers = []
        for number in handout.numbers:
            delivery = self.in_flight.get(number)
            if delivery is not None and delivery.handout is handout:
                self.extend(delivery, visibility_ms, at_ms)
                answers.append(self._answer(delivery))
        return answers

    def _deliver(self, message: Message, handout: Handout, visibility_ms: int, at_ms: int) -> dict[str, Any]:
        registry, number = self._registry, message.number
        returned = self.returned.pop(number, None) if self.returned else None
        attempt, history = 1, ()
        if returned is not None:
            attempt, history = returned.attempts + 1, returned.history  # type: ignore[assignment]
            if attempt > 1:
                self.counters.redelivered += 1
        delivery = Delivery(message, registry.next_serial(), attempt, at_ms, visibility_ms, handout, history)
        self.in_flight[number] = delivery
        handout.numbers.append(number)
        registry.timers.arm(delivery, at_ms + visibility_ms)
        return self._answer(delivery)

    def _answer(self, delivery: Delivery) -> dict[str, Any]:
        message = delivery.message
        msg_id = message_id(message.number)
        return {
            "msg_id": msg_id,
            "value": message.value,
            "key": message.key,
            "headers": message.headers,
            "partition": message.partition,
            "receipt": receipt_of(msg_id, delivery.serial),
            "attempt": delivery.attempt,
            "delivered_ms": delivery.delivered_ms,
            "visible_until_ms": delivery.due_ms,
            "published_ms": message.published_ms,
        }

    def _next(self) -> Message | None:
        """Take the first message that can be delivered."""
        ready, topic = self.ready, self.topic
        while True:
            fresh = topic.lane.get(self.cursor)
            if ready and (fresh is None or ready[0] < fresh):
                message = self._claim(heappop(ready))
            elif fresh is not None:
                self.cursor += 1
                if not self.cursor % STEPS_PER_TRIM:
                    topic.trim_lane()
                message = topic.messages.get(fresh)
            else:
                return None
            if message is not None:
                return message

    def _claim(self, number: int) -> Message | None:
        """Check an entry of the heap; None when it is outdated. A key is busy from here on."""
        message = self.find(number)
        if message is None:
            return None
        if not message.key:
            returned = self.returned.get(number)
            return None if returned is None or returned.due_ms else message
        state = self.keys.get(message.key)
        if state is None:
            chain = self.topic.chains[message.key]
            if chain.get(chain.start) != number:
                return None
            self.keys[message.key] = KeyState(chain.start, BUSY)
            return message
        if state.state != READY or self.head(message.key, state) != number:
            return None
        state.state = BUSY
        return message

    def find(self, number: int) -> Message | None:
        """The message, whoever holds it."""
        if self.private and (message := self.private.get(number)) is not None:
            return message
        return self.topic.messages.get(number)

    def unmet(self, limit: int) -> list[int]:
        """Some of the messages that the group has not met: the first of the lane, and the first heads of chains."""
        return [*self.topic.lane.following(self.cursor, limit), *nsmallest(limit, self.ready)]

    # -------------------------------------------------------- ends of a delivery

    def acked(self, delivery: Delivery, at_ms: int) -> None:
        """The consumer is done with the message."""
        self._close(delivery)
        self._finish(delivery.message, at_ms)
        self.counters.acked += 1
        self.counters.ack_rate.add(at_ms)

    def acked_late(self, returned: Returned, at_ms: int) -> None:
        """Done after all: it had come back, and nobody else got it yet."""
        self._forget_returned(returned)
        self._finish(returned.message, at_ms)
        self.counters.acked += 1
        self.counters.ack_rate.add(at_ms)

    def failed(self, delivery: Delivery, reason: str, at_ms: int, delay_ms: int | None = None) -> None:
        """The attempt counts: back to the queue after `delay_ms` (None: the topic's backoff), or to the dead letters.

        A message is also dead when `reason` is "rejected".
        """
        self._close(delivery)
        settings = self.topic.settings
        history = _with_ending(delivery, reason, at_ms)
        if reason == "rejected" or delivery.attempt >= settings.max_attempts:
            why = "rejected" if reason == "rejected" else "max_attempts"
            self._bury(delivery.message, delivery.attempt, history, why, at_ms)
            return
        if delay_ms is None:
            delay_ms = min(settings.backoff_ms << min(delivery.attempt - 1, 32), BACKOFF_MS_MAX)
        self._take_back(delivery, delivery.attempt, history, at_ms, delay_ms)

    def gave_back(self, delivery: Delivery, reason: str, at_ms: int, delay_ms: int = 0) -> None:
        """Back to the queue as if it had not been delivered: the attempt does not count."""
        self._close(delivery)
        self._take_back(delivery, delivery.attempt - 1, _with_ending(delivery, reason, at_ms), at_ms, delay_ms)

    def extend(self, delivery: Delivery, visibility_ms: int, at_ms: int) -> None:
        """Hidden for `visibility_ms` from now."""
        delivery.visibility_ms = visibility_ms
        self._registry.timers.arm(delivery, at_ms + visibility_ms)

    def wait_is_over(self, returned: Returned, at_ms: int) -> None:
        """The delay of a message has passed."""
        self.waiting -= 1
        key = returned.message.key
        if key:
            self._offer_head(key, self.keys[key], at_ms)
        else:
            heappush(self.ready, returned.message.number)

    def _close(self, delivery: Delivery) -> None:
        registry, handout = self._registry, delivery.handout
        message = delivery.message
        del self.in_flight[message.number]
        registry.timers.disarm(delivery)
        if message.key:
            self.keys[message.key].state = IDLE
        handout.live -= 1
        if not handout.live:
            del registry.handouts[handout.origin]
            if handout.attempt_id and self.replays.get(handout.attempt_id) is handout:
                del self.replays[handout.attempt_id]

    def _take_back(self, delivery: Delivery, attempts: int, history: tuple[Ending, ...], at_ms: int, delay_ms: int) -> None:
        message = delivery.message
        self._hold(message, attempts, history, delivery.serial, at_ms + delay_ms if delay_ms else 0)
        if message.key:
            self._offer_head(message.key, self.keys[message.key], at_ms)
        elif not delay_ms:
            heappush(self.ready, message.number)

    def _hold(self, message: Message, attempts: int, history: tuple[Ending, ...], last_serial: int, due_ms: int) -> None:
        """Remember what is special about a message that is to be delivered (again)."""
        registry = self._registry
        returned = Returned(message, self, attempts, history, registry.next_serial(), last_serial)
        self.returned[message.number] = returned
        if due_ms:
            self.waiting += 1
            registry.timers.arm(returned, due_ms)

    def _forget_returned(self, returned: Returned) -> None:
        del self.returned[returned.message.number]
        if returned.due_ms:
            self.waiting -= 1
            self._registry.timers.disarm(returned)

    def _finish(self, message: Message, at_ms: int) -> None:
        """The group is finished with a message: the next one of its key has its turn."""
        number, key = message.number, message.key
        self.pending -= 1
        if key:
            state = self.keys.get(key)
            if state is None:
                state = self.keys[key] = KeyState(self.topic.chains[key].start, READY)
            if self.private and number in self.private:
                state.extra.remove(number)
            else:
                state.position += 1
            self._offer_head(key, state, at_ms)
        if self.private and number in self.private:
            del self.private[number]
            self.topic.add_bytes(-message.size)
        else:
            self.topic.finished_by_one_more(message)

    # --------------------------------------------------------------------- keys

    def head(self, key: str, state: KeyState) -> int | None:
        if state.extra:
            return state.extra[0]
        chain = self.topic.chains.get(key)
        return None if chain is None else chain.get(state.position)

    def _offer_head(self, key: str, state: KeyState, at_ms: int) -> None:
        """Put the first message of a key into the heap, or let it wait for its delay; a busy key is left alone."""
        if state.state == BUSY:
            return
        number = self.head(key, state)
        if number is None:
            state.state = IDLE
            if key not in self.topic.chains:
                del self.keys[key]
            return
        message = self.find(number)
        assert message is not None
        returned = self.returned.get(number)
        if returned is None and message.ready_ms > at_ms:
            self._hold(message, 0, (), 0, message.ready_ms)
            state.state = WAITING
        elif returned is not None and returned.due_ms:
            state.state = WAITING
        else:
            state.state = READY
            heappush(self.ready, number)

    def chain_begins(self, message: Message, at_ms: int) -> None:
        """The first message of a key that has no other in the topic."""
        key = message.key
        state = self.keys.get(key)
        if state is not None:
            state.position = self.topic.chains[key].start
            if state.state == IDLE:
                self._offer_head(key, state, at_ms)
        elif message.ready_ms > at_ms:
            self.keys[key] = state = KeyState(self.topic.chains[key].start, IDLE)
            self._offer_head(key, state, at_ms)
        else:
            heappush(self.ready, message.number)

    def chain_grows(self, key: str, at_ms: int) -> None:
        """One more message of a key that has others."""
        state = self.keys.get(key)
        if state is not None and state.state == IDLE:
            self._offer_head(key, state, at_ms)

    def chain_ends(self, key: str) -> None:
        """All groups are finished with all messages of a key."""
        state = self.keys.get(key)
        if state is not None and state.state == IDLE:
            del self.keys[key]

    # ------------------------------------------- dead letters, delays, retention

    def _bury(self, message: Message, attempts: int, history: tuple[Ending, ...], reason: str, at_ms: int) -> None:
        dead = Dead(
            message.number,
            message.key,
            message.partition,
            message.value,
            message.headers,
            message.published_ms,
            at_ms,
            attempts,
            reason,
            history,
        )
        self.dead[message.number] = dead
        self._registry.events.append(DeadLettered(self.topic.name, self.name, reason))
        self.counters.dead[reason] = self.counters.dead.get(reason, 0) + 1
        self.topic.add_bytes(dead.size)
        self._finish(message, at_ms)

    def redrive(self, number: int, at_ms: int) -> None:
        """A dead letter goes back to the queue: before everything else of its key, which keeps its one-at-a-time."""
        dead = self.dead.pop(number)
        message = Message(number, dead.key, dead.partition, dead.value, dead.headers, dead.published_ms, 0)
        # Its bytes were the dead letter's and are the private message's now.
        self.private[number] = message
        self.pending += 1
        self._hold(message, 0, dead.history, 0, 0)
        key = message.key
        if not key:
            heappush(self.ready, number)
            return
        state = self.keys.get(key)
        if state is None:
            chain = self.topic.chains.get(key)
            state = self.keys[key] = KeyState(0, IDLE) if chain is None else KeyState(chain.start, READY)
        insort(state.extra, number)
        self._offer_head(key, state, at_ms)

    def forget_dead(self) -> int:
        """Throw the dead letters away; how many there were."""
        count = len(self.dead)
        self.topic.add_bytes(-sum(dead.size for dead in self.dead.values()))
        self.dead = {}
        return count

    def meet(self, message: Message) -> None:
        """A message without a key that does not come by the lane is ready."""
        self._hold(message, 0, (), 0, 0)
        heappush(self.ready, message.number)

    def is_finished_with(self, message: Message) -> bool:
        """For a message without a key, or at the head of its key's chain."""
        number, key = message.number, message.key
        if number in self.in_flight or number in self.returned:
            return bool(self.private) and number in self.private
        if key:
            state = self.keys.get(key)
            return state is not None and state.position > self.topic.chains[key].start
        if message.ready_ms:
            return number in self.topic.released
        fresh = self.topic.lane.get(self.cursor)
        return fresh is None or number < fresh

    def outlived(self, message: Message, at_ms: int) -> None:
        """The topic lets go of a message for its age: dead for this group, or its own while somebody works on it."""
        number, key = message.number, message.key
        if number in self.in_flight:
            # The topic's bytes no longer count it, this group's private copy does.
            self.private[number] = message
            self.topic.add_bytes(message.size)
            if key:
                state = self.keys[key]
                state.position += 1
                state.extra.insert(0, number)
            self.topic.finished_by_one_more(message)
            return
        returned = self.returned.get(number)
        attempts, history = (returned.attempts, returned.history) if returned is not None else (0, ())
        if returned is not None:
            self._forget_returned(returned)
        self._bury(message, attempts, history, "expired", at_ms)

    def reset(self, cursor: int) -> None:
        """Everything but dead letters and waiters is gone."""
        registry = self._registry
        for delivery in list(self.in_flight.values()):
            self._close(delivery)
        for returned in self.returned.values():
            registry.timers.disarm(returned)
        self.topic.add_bytes(-sum(message.size for message in self.private.values()))
        self.ready, self.keys, self.returned, self.private = [], {}, {}, {}
        self.pending = self.waiting = 0
        self.cursor = cursor


def _with_ending(delivery: Delivery, reason: str, at_ms: int) -> tuple[Ending, ...]:
    ending = Ending(delivery.attempt, delivery.delivered_ms, at_ms, reason, delivery.handout.origin.node)
    return (*delivery.history[-HISTORY_MAX + 1 :], ending)
