"""The retained messages of a topic, in the order in which groups take them.

A message is retained until every group is finished with it; without groups, until it is too old. `Message.done` counts the groups
that are finished with it. With `keep_ms`, a message stays for later groups when every group is finished with it: it is *kept*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Protocol

from dss_queue.core.account import MESSAGE_BYTES, message_bytes
from dss_queue.core.commands import TopicSettings
from dss_queue.core.records import Dead, Message
from dss_queue.core.registry import Registry
from dss_queue.core.window import SLACK_MAX, Chain, Window


class Reader(Protocol):
    """A group, as far as the topic's messages know it."""

    #: position of the first message of `TopicMessages.unkeyed` that the group has not met
    cursor: int

    def chain_ends(self, key: str) -> None:
        """Every group is finished with all messages of a key."""


class TopicMessages:
    """See the module. `topic` is the topic's name."""

    def __init__(self, topic: str, registry: Registry) -> None:
        self.topic = topic
        self.settings = TopicSettings()
        #: a message that is too old is deleted instead of becoming a dead letter
        self.drops_expired = False
        #: all of them by number, in publish order
        self.by_number: dict[int, Message] = {}
        #: those without a routing key and without a delay
        self.unkeyed = Window()
        #: those with a routing key
        self.chains: dict[str, Chain] = {}
        #: those without a routing key whose delay is not over: (ready_ms, number)
        self.hidden_heap: list[tuple[int, int]] = []
        #: those without a routing key whose delay is over, as an ordered set (the values mean nothing)
        self.released: dict[int, None] = {}
        #: the kept ones, as a heap of numbers. One that is gone, or that a later group must finish, is skipped when it is popped.
        self.kept: list[int] = []
        #: called with each message that is kept from now on
        self.on_kept: Callable[[Message], None] = lambda message: None
        #: one for each group of the topic
        self.readers: list[Reader] = []
        #: what `max_bytes` limits: values, keys and headers of retained messages, private messages and dead letters
        self.bytes = 0
        #: number -> how many groups have the message as a private message or a dead letter
        self.copies: dict[int, int] = {}
        self._account = registry.account

    @property
    def hidden(self) -> int:
        """Messages without a routing key whose delay is not over."""
        return len(self.hidden_heap)

    def retain(self, message: Message) -> None:
        """Add a message to those of the topic. Its groups count it themselves."""
        self.by_number[message.number] = message
        key = message.key
        size = len(message.value) + len(key) + len(message.headers)
        self.bytes += size
        self._account.used += MESSAGE_BYTES + size if key.isascii() else message_bytes(message)
        if message.ready_ms:
            self._account.add_delays(1)

    def add_copy(self, one: Message | Dead) -> None:
        """A group has a private message or a dead letter. It shares its value with the other copies, and the retained message."""
        self.bytes += one.size
        others = self.copies.get(one.number, 0)
        self.copies[one.number] = others + 1
        if not others and one.number not in self.by_number:
            self._account.used += message_bytes(one)

    def drop_copy(self, one: Message | Dead) -> None:
        """A group no longer has a private message or a dead letter."""
        self.bytes -= one.size
        others = self.copies[one.number] - 1
        if others:
            self.copies[one.number] = others
            return
        del self.copies[one.number]
        if one.number not in self.by_number:
            self._account.used -= message_bytes(one)

    def trim_unkeyed(self) -> None:
        """Forget the unkeyed messages that every group has met. Without groups, or with `keep_ms`: the first ones that are gone."""
        unkeyed = self.unkeyed
        start = unkeyed.start
        if not self.settings.keep_ms:
            start = min((reader.cursor for reader in self.readers), default=start)
        while (number := unkeyed.get(start)) is not None and number not in self.by_number:
            start += 1
        for reader in self.readers:
            reader.cursor = max(reader.cursor, start)
        unkeyed.forget_before(start)
        if self.settings.keep_ms and unkeyed.end - start > 2 * len(self.by_number) + SLACK_MAX:
            # A message that a group does not finish stays in front of many that are gone.
            self.restart_unkeyed()

    def position_of(self, number: int) -> int:
        """The position of the first unkeyed message from `number` on; -1 for the end."""
        return self.unkeyed.end if number < 0 else self.unkeyed.position_of(number)

    def is_head(self, message: Message) -> bool:
        """Whether a message with a key is the oldest one of its key."""
        chain = self.chains[message.key]
        return chain.get(chain.start) == message.number

    def finished_by_one_more(self, message: Message) -> None:
        """One more group is finished with a message."""
        message.done += 1
        if message.done == len(self.readers):
            (self._keep if self.settings.keep_ms else self.drop)(message)

    def finished_plain(self, messages: Iterable[Message]) -> None:
        """`finished_by_one_more` for messages without a routing key, of a topic that keeps none."""
        by_number, copies, readers = self.by_number, self.copies, len(self.readers)
        dropped = size = 0
        for message in messages:
            message.done += 1
            if message.done != readers:
                continue
            if message.ready_ms or message.number in copies:
                self.drop(message)
                continue
            del by_number[message.number]
            dropped += 1
            size += len(message.value) + len(message.headers)
        self.bytes -= size
        self._account.used -= dropped * MESSAGE_BYTES + size

    def finished_by_all(self, message: Message) -> None:
        """Drop a message, or keep it for later groups."""
        (self._keep if self.settings.keep_ms else self.drop)(message)

    def _keep(self, message: Message) -> None:
        heappush(self.kept, message.number)
        if len(self.kept) > 2 * len(self.by_number) + SLACK_MAX:
            # Groups that come and go finish the same messages several times.
            self.kept = self.kept_numbers()
        self.on_kept(message)

    def drop_kept(self, until_ms: int) -> None:
        """Drop the kept messages that were published at `until_ms` or before."""
        while self.kept and (message := self._oldest_kept()) is not None and message.published_ms <= until_ms:
            heappop(self.kept)
            self.drop(message)

    def _oldest_kept(self) -> Message | None:
        while self.kept:
            message = self.by_number.get(self.kept[0])
            if message is not None and message.done == len(self.readers):
                return message
            heappop(self.kept)
        return None

    def kept_numbers(self) -> list[int]:
        """The kept messages, in publish order."""
        return [n for n in sorted(set(self.kept)) if n in self.by_number and self.by_number[n].done == len(self.readers)]

    @property
    def kept_since_ms(self) -> int:
        """When the oldest kept message was published; 0: there is none."""
        message = self._oldest_kept()
        return 0 if message is None else message.published_ms

    def make_room(self, size: int, limit: int) -> bool:
        """Whether `size` more bytes stay within `limit`. Kept messages give way, the oldest first."""
        while self.bytes + size > limit and (message := self._oldest_kept()) is not None:
            heappop(self.kept)
            self.drop(message)
        return self.bytes + size <= limit

    def restart_unkeyed(self) -> None:
        """Put all unkeyed messages in place again for later groups, those that every group has met too."""
        first = [self.unkeyed.get(reader.cursor) for reader in self.readers]
        self.unkeyed = Window()
        for number, message in self.by_number.items():
            if not message.key and not message.ready_ms:
                self.unkeyed.append(number)
        for reader, unmet in zip(self.readers, first, strict=True):
            reader.cursor = self.unkeyed.end if unmet is None else self.unkeyed.position_of(unmet)

    def drop(self, message: Message) -> None:
        """Retain a message no longer."""
        number, key = message.number, message.key
        del self.by_number[number]
        self._forget_bytes(message)
        if key:
            # Groups finish the messages of a key in order: it is the head.
            chain = self.chains[key]
            chain.forget_before(chain.start + 1)
            if chain.start == chain.end:
                del self.chains[key]
                self._account.add_keys(-1, len(self.readers))
                for reader in self.readers:
                    reader.chain_ends(key)
        elif message.ready_ms:
            self.released.pop(number, None)

    def _forget_bytes(self, message: Message) -> None:
        key = message.key
        size = len(message.value) + len(key) + len(message.headers)
        self.bytes -= size
        if message.number not in self.copies:
            self._account.used -= MESSAGE_BYTES + size if key.isascii() else message_bytes(message)
        if message.ready_ms:
            self._account.add_delays(-1)

    def clear(self) -> None:
        """Drop everything, whatever groups have done with it."""
        for message in self.by_number.values():
            self._forget_bytes(message)
        self._account.add_keys(-len(self.chains), len(self.readers))
        self.by_number, self.chains, self.released, self.hidden_heap, self.kept = {}, {}, {}, [], []
        self.unkeyed.forget_before(self.unkeyed.end)
