"""The retained messages of a topic, in the order in which groups take them.

A message is retained until every group is finished with it; without groups, until it is too old. `Message.done` counts the groups
that are finished with it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

from dss_queue.core.commands import TopicSettings
from dss_queue.core.records import Message
from dss_queue.core.registry import Registry
from dss_queue.core.window import Chain, Window


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
        #: one for each group of the topic
        self.readers: list[Reader] = []
        #: of retained messages, private messages and dead letters
        self.bytes = 0
        self._registry = registry

    @property
    def hidden(self) -> int:
        """Messages without a routing key whose delay is not over."""
        return len(self.hidden_heap)

    def add_bytes(self, count: int) -> None:
        """Account for memory, here and in the broker's total."""
        self.bytes += count
        self._registry.bytes += count

    def trim_unkeyed(self) -> None:
        """Forget the unkeyed messages that every group has met or, without groups, those that are gone."""
        unkeyed = self.unkeyed
        start = min((reader.cursor for reader in self.readers), default=unkeyed.start)
        while (number := unkeyed.get(start)) is not None and number not in self.by_number:
            start += 1
        for reader in self.readers:
            reader.cursor = max(reader.cursor, start)
        unkeyed.forget_before(start)

    def position_of(self, number: int) -> int:
        """After a restore: the position of an unkeyed message; -1 for the end."""
        unkeyed = self.unkeyed
        return unkeyed.end if number < 0 else bisect_left(unkeyed.following(0, unkeyed.end), number)

    def is_head(self, message: Message) -> bool:
        """Whether a message with a key is the oldest one of its key."""
        chain = self.chains[message.key]
        return chain.get(chain.start) == message.number

    def finished_by_one_more(self, message: Message) -> None:
        """One more group is finished with a message. After the last group it is dropped."""
        message.done += 1
        if message.done == len(self.readers):
            self.drop(message)

    def drop(self, message: Message) -> None:
        """Retain a message no longer."""
        number, key = message.number, message.key
        del self.by_number[number]
        self.add_bytes(-message.size)
        if key:
            # Groups finish the messages of a key in order: it is the head.
            chain = self.chains[key]
            chain.forget_before(chain.start + 1)
            if chain.start == chain.end:
                del self.chains[key]
                for reader in self.readers:
                    reader.chain_ends(key)
        elif message.ready_ms:
            self.released.pop(number, None)

    def clear(self) -> None:
        """Drop everything, whatever groups have done with it."""
        self.add_bytes(-sum(message.size for message in self.by_number.values()))
        self.by_number, self.chains, self.released, self.hidden_heap = {}, {}, {}, []
        self.unkeyed.forget_before(self.unkeyed.end)
