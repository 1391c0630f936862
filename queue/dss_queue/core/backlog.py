"""A group's backlog: the messages that it still has to finish, and which of them it can deliver next.

The topic holds the messages; a backlog holds a position in them and the exceptions. `cursor` is the position of the first unkeyed
message that the group has not met. Messages with a key are in one chain per key, of which a group sees only the head: one is in
flight at a time, in publish order. Everything else that can be delivered is in the heap `ready`, by number: heads of chains, and
messages that came back. An entry of the heap is a hint that is checked when it is popped, so nothing is ever searched and removed.
Every step costs at most O(log n).

With `max_per_key`, a consumer gets the head of a chain and the messages after it: a *run*. The key is busy until the last message of the
run has ended. The messages of a run may be finished in any order, but a chain is left in order: one that is finished before the head is
noted in `KeyState.early`, and passed over when the head is finished.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush, nsmallest

import msgspec

from dss_queue.core.account import PENDING_BYTES
from dss_queue.core.records import GONE, Ending, Message
from dss_queue.core.registry import Registry
from dss_queue.core.topic_messages import TopicMessages
from dss_queue.core.window import Chain
from dss_raft.replication.deadlines import NO_TIMER

#: States of a key in a group. Without a record the head of the key's chain is ready.
IDLE, READY, BUSY, WAITING = range(4)
#: Unkeyed messages are trimmed after so many steps of a cursor.
STEPS_PER_TRIM = 64


class KeyState(msgspec.Struct, array_like=True):
    """A routing key in a group that has met it."""

    #: position in the key's chain of the first message that the group is not finished with
    position: int
    #: IDLE (no message), READY (its head is in the heap), BUSY (in flight), WAITING (its head has a delay)
    state: int
    #: redriven messages of this group alone, delivered before the chain's
    extra: list[int] = []
    #: while it is BUSY: messages of it in flight besides one
    more: int = 0
    #: of its chain, behind `position`: messages that the group is finished with
    early: tuple[int, ...] = ()


class Returned(msgspec.Struct):
    """A message that a group has met and must deliver (again). `due_ms`: not before then; 0: it is in the ready heap."""

    message: Message
    backlog: Backlog
    #: deliveries that count
    attempts: int
    history: tuple[Ending, ...]
    serial: int
    #: serial of the last delivery: its consumer may still ack until another one has the message; 0: there was none
    last_serial: int
    due_ms: int = 0
    timer: int = NO_TIMER
    #: pushed deliveries that were not received and did not count
    uncounted: int = 0
    #: when the first delivery that counts began; 0: there was none
    first_ms: int = 0


class Backlog:
    """See the module."""

    def __init__(self, messages: TopicMessages, group: str, registry: Registry, cursor: int) -> None:
        self.messages = messages
        #: the group's name
        self.group = group
        self.cursor = cursor
        self.ready: list[int] = []
        self.keys: dict[str, KeyState] = {}
        self.returned: dict[int, Returned] = {}
        #: messages that the topic has dropped and this group still delivers (redriven, or in flight when retention ended)
        self.private: dict[int, Message] = {}
        #: messages the group is not finished with
        self.pending = len(messages.by_number)
        #: of `returned`, those with a delay
        self.waiting = 0
        self._registry = registry
        self._account = registry.account

    @property
    def delayed(self) -> int:
        """Messages that become ready by themselves, later."""
        return self.waiting + self.messages.hidden

    # -------------------------------------------------------------- delivering

    def take(self) -> Message | None:
        """Take the first message that can be delivered; None when nothing is ready."""
        ready, messages = self.ready, self.messages
        while True:
            fresh = messages.unkeyed.get(self.cursor)
            if ready and (fresh is None or ready[0] < fresh):
                message = self._claim(heappop(ready))
            elif fresh is not None:
                self.cursor += 1
                if not self.cursor % STEPS_PER_TRIM:
                    messages.trim_unkeyed()
                message = messages.by_number.get(fresh)
            else:
                return None
            if message is not None:
                return message

    def _claim(self, number: int) -> Message | None:
        """Check an entry of the heap; None when it is outdated. Its key is busy from now on."""
        message = self.find(number)
        if message is None:
            return None
        if not message.key:
            returned = self.returned.get(number)
            return None if returned is None or returned.due_ms else message
        state = self.keys.get(message.key)
        if state is None:
            chain = self.messages.chains[message.key]
            if chain.get(chain.start) != number:
                return None
            self.keys[message.key] = KeyState(chain.start, BUSY)
            return message
        if state.state != READY or self.head(message.key, state) != number:
            return None
        state.state = BUSY
        return message

    def take_after(self, head: Message, count: int, at_ms: int) -> Iterator[Message]:
        """Take up to `count` messages that follow `head`, which was just taken, in its key. It ends before one that is delayed."""
        key = head.key
        state = self.keys[key]
        chain = self.messages.chains.get(key)
        numbers = list(state.extra)
        if chain is not None:
            following = chain.following(state.position, count + 1 + len(state.early))
            early = set(state.early)
            numbers += [number for number in following if number not in early]
        for number in numbers[1 : count + 1]:
            message = self.find(number)
            assert message is not None
            returned = self.returned.get(number)
            if returned.due_ms if returned is not None else message.ready_ms > at_ms:
                return
            state.more += 1
            yield message

    def find(self, number: int) -> Message | None:
        """The message, retained by the topic or private."""
        if self.private and (message := self.private.get(number)) is not None:
            return message
        return self.messages.by_number.get(number)

    def unmet(self, limit: int) -> list[int]:
        """Some of the messages that the group has not met: the first unkeyed ones, and the first heads of chains."""
        return [*self.messages.unkeyed.following(self.cursor, limit), *nsmallest(limit, self.ready)]

    def unfinished_of(self, key: str, limit: int) -> list[int]:
        """The first retained messages of a key that the group is not finished with."""
        chain, state = self.messages.chains.get(key), self.keys.get(key)
        if chain is None:
            return []
        if state is None:
            return chain.following(chain.start, limit)
        following = chain.following(state.position, limit + len(state.early))
        return [number for number in following if number not in state.early][:limit]

    # ------------------------------------------------------ back, or finished

    def take_back(
        self,
        message: Message,
        attempts: int,
        history: tuple[Ending, ...],
        last_serial: int,
        at_ms: int,
        delay_ms: int,
        uncounted: int,
        first_ms: int,
    ) -> None:
        """A delivery has ended without an ack: deliver the message again, not before `delay_ms` from now."""
        self._hold(message, attempts, history, last_serial, at_ms + delay_ms if delay_ms else 0, uncounted, first_ms)
        if message.key:
            self._offer_head(message.key, self.keys[message.key], at_ms)
        elif not delay_ms:
            heappush(self.ready, message.number)

    def wait_is_over(self, returned: Returned, at_ms: int) -> None:
        """The delay of a message has passed."""
        self.waiting -= 1
        key = returned.message.key
        if key:
            self._offer_head(key, self.keys[key], at_ms)
        else:
            heappush(self.ready, returned.message.number)

    def meet(self, message: Message) -> None:
        """A message without a key becomes ready, although the cursor does not reach it."""
        self._hold(message, 0, (), 0, 0)
        heappush(self.ready, message.number)

    def redriven(self, message: Message, history: tuple[Ending, ...], at_ms: int) -> None:
        """Return a dead letter to this group, ahead of all other messages of its key (one of them is in flight at a time)."""
        number, key = message.number, message.key
        self.private[number] = message
        self.pending += 1
        self._account.add_pending(1)
        self._hold(message, 0, history, 0, 0)
        if not key:
            heappush(self.ready, number)
            return
        state = self.keys.get(key)
        if state is None:
            chain = self.messages.chains.get(key)
            state = self.keys[key] = KeyState(0, IDLE) if chain is None else KeyState(chain.start, READY)
        insort(state.extra, number)
        self._offer_head(key, state, at_ms)

    @property
    def has_plain(self) -> bool:
        """Whether `finish_plain` may be used for messages without a routing key."""
        return not self.private and not self.messages.settings.keep_ms

    def finish_plain(self, messages: Sequence[Message]) -> None:
        """`finish` for several messages without a routing key."""
        count = len(messages)
        self.pending -= count
        self._account.pending -= count
        self._account.used -= count * PENDING_BYTES
        self.messages.finished_plain(messages)

    def finish(self, message: Message, at_ms: int) -> None:
        """The group is finished with a message: the next one of its key becomes ready."""
        number, key = message.number, message.key
        self.pending -= 1
        self._account.pending -= 1
        self._account.used -= PENDING_BYTES
        is_private = bool(self.private) and number in self.private
        passed: list[Message] = []
        if key:
            state = self.keys.get(key)
            if state is None:
                state = self.keys[key] = KeyState(self.messages.chains[key].start, READY)
            if is_private:
                state.extra.remove(number)
            elif self.messages.chains[key].get(state.position) != number:
                state.early = (*state.early, number)
                return
            else:
                passed = self._pass_head(key, state)
            self._offer_head(key, state, at_ms)
        if is_private:
            del self.private[number]
            self.messages.drop_copy(message)
        else:
            self.messages.finished_by_one_more(message)
            for one in passed:
                self.messages.finished_by_one_more(one)

    def _pass_head(self, key: str, state: KeyState) -> list[Message]:
        """The group leaves the first message of a chain. Returns those after it that it was finished with before."""
        state.position += 1
        passed: list[Message] = []
        chain = self.messages.chains[key]
        while state.early and (number := chain.get(state.position)) in state.early:
            assert number is not None
            state.early = tuple(other for other in state.early if other != number)
            state.position += 1
            passed.append(self.messages.by_number[number])
        return passed

    def make_private(self, message: Message, place: int) -> None:
        """The topic drops a message that is in flight: from now on it is this group's alone.

        Args:
            place: how many of its key's private messages come before it.
        """
        number, key = message.number, message.key
        self.private[number] = message
        self.messages.add_copy(message)
        passed: list[Message] = []
        if key:
            state = self.keys[key]
            passed = self._pass_head(key, state)
            state.extra.insert(place, number)
        self.messages.finished_by_one_more(message)
        for one in passed:
            self.messages.finished_by_one_more(one)

    def forget_returned(self, returned: Returned) -> None:
        """The message is finished or dead, and not delivered again."""
        del self.returned[returned.message.number]
        returned.message = GONE
        if returned.due_ms:
            self.waiting -= 1
            self._registry.disarm(returned)

    def is_past(self, message: Message) -> bool:
        """Whether the group has met and finished a message that is neither in flight nor returned.

        For a message without a key, or at the head of its key's chain.
        """
        key = message.key
        if key:
            state = self.keys.get(key)
            return state is not None and state.position > self.messages.chains[key].start
        if message.ready_ms:
            return message.number in self.messages.released
        fresh = self.messages.unkeyed.get(self.cursor)
        return fresh is None or message.number < fresh

    def reset(self, cursor: int) -> None:
        """All messages are gone."""
        for returned in self.returned.values():
            self._registry.disarm(returned)
            self._account.add_endings(-len(returned.history))
            returned.message = GONE
        for message in self.private.values():
            self.messages.drop_copy(message)
        self._account.add_pending(-self.pending)
        self.ready, self.keys, self.returned, self.private = [], {}, {}, {}
        self.pending = self.waiting = 0
        self.cursor = cursor

    def _hold(
        self,
        message: Message,
        attempts: int,
        history: tuple[Ending, ...],
        last_serial: int,
        due_ms: int,
        uncounted: int = 0,
        first_ms: int = 0,
    ) -> None:
        """Record the exceptional state of a message that is to be delivered (again)."""
        registry = self._registry
        serial = registry.next_serial()
        returned = Returned(message, self, attempts, history, serial, last_serial, uncounted=uncounted, first_ms=first_ms)
        self.returned[message.number] = returned
        if due_ms:
            self.waiting += 1
            registry.arm(returned, due_ms)

    # --------------------------------------------------------------------- keys

    def head(self, key: str, state: KeyState) -> int | None:
        """Number of the key's first message that the group is not finished with."""
        if state.extra:
            return state.extra[0]
        chain = self.messages.chains.get(key)
        return None if chain is None else chain.get(state.position)

    def free_key(self, key: str) -> None:
        """A message of this key is no longer in flight."""
        state = self.keys[key]
        if state.more:
            state.more -= 1
        else:
            state.state = IDLE

    def _offer_head(self, key: str, state: KeyState, at_ms: int) -> None:
        """Put the first message of a key into the heap, or let it wait for its delay; leave a busy key alone."""
        if state.state == BUSY:
            return
        number = self.head(key, state)
        if number is None:
            state.state = IDLE
            if key not in self.messages.chains:
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

    def skip(self, key: str) -> None:
        """A new group does not get the first message of a key that it has not skipped yet."""
        state = self.keys.get(key)
        if state is None:
            state = self.keys[key] = KeyState(self.messages.chains[key].start, IDLE)
        state.position += 1

    def chain_is_new(self, key: str, at_ms: int) -> None:
        """A new group comes to the messages of a key."""
        chain, state = self.messages.chains[key], self.keys.get(key)
        if state is not None:
            self._offer_head(key, state, at_ms)
            return
        head = chain.get(chain.start)
        assert head is not None
        self.chain_begins(self.messages.by_number[head], at_ms)

    def past_of(self, chain: Chain) -> list[int]:
        """The messages of a key that the group is finished with and the topic retains."""
        state = self.keys.get(chain.key)
        return [] if state is None else chain.following(chain.start, state.position - chain.start)

    def chain_begins(self, message: Message, at_ms: int) -> None:
        """The first message of a key that has no other in the topic."""
        key = message.key
        state = self.keys.get(key)
        if state is not None:
            state.position = self.messages.chains[key].start
            if state.state == IDLE:
                self._offer_head(key, state, at_ms)
        elif message.ready_ms > at_ms:
            self.keys[key] = state = KeyState(self.messages.chains[key].start, IDLE)
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
