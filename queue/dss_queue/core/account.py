"""The bytes of the queue, by kind. See `dss_raft/replication/limits.py`.

The constants are the memory of the objects around the bytes in CPython, measured and rounded up. They decide which commands are refused,
so changing one requires a new protocol version.

Nothing that makes the queue shrink makes the account grow:

- A message is counted once, and `PENDING_BYTES` more for each group that is not finished with it. They are the group's
  reserve: enough for the delivery in flight, the wait for the next one, or the dead letter.
- A message is counted until the topic and all groups have dropped it. Groups that have it as a dead letter share its value.
- A waiting consume costs more than the delivery that answers it.
- The history of failed deliveries does not grow while the limit is reached: the oldest delivery in it makes room for the latest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dss_api.result import Result
from dss_raft.replication.limits import MIB, StateLimits, text_bytes

if TYPE_CHECKING:
    from dss_queue.core.records import Dead, Message

#: A message, retained by the topic or by a group; its value, key and headers are added.
MESSAGE_BYTES = 288
#: A message in a group that is not finished with it, or that has it as a dead letter.
PENDING_BYTES = 1024
#: A failed delivery in the history of a message.
ENDING_BYTES = 320
#: The delay of a message, until the message is gone.
DELAY_BYTES = 160
#: A dedup_id; its text is added.
DEDUP_BYTES = 256
#: A routing key of retained messages.
KEY_BYTES = 320
#: A routing key of retained messages in one group.
GROUP_KEY_BYTES = 256
#: A topic with its settings; its name is added.
TOPIC_BYTES = 3072
#: A group with its counters; its name is added.
GROUP_BYTES = 2560
#: A consume that waits; its attempt_id is added.
WAITER_BYTES = 640
#: The part of an attempt_id that `PENDING_BYTES` has room for.
ATTEMPT_ID_BYTES = 64

LIMIT = "queue_bytes_max"
QUEUE_BYTES_MAX_DEFAULT = 4096 * MIB


def message_bytes(message: Message | Dead) -> int:
    """The bytes of a message with its value, key and headers."""
    return MESSAGE_BYTES + len(message.value) + len(message.headers) + text_bytes(message.key)


def waiter_bytes(attempt_id: str) -> int:
    """The bytes of a consume that waits."""
    return WAITER_BYTES + text_bytes(attempt_id)


def attempt_bytes(attempt_id: str) -> int:
    """The bytes of an attempt_id that the messages in flight have no room for."""
    return max(0, text_bytes(attempt_id) - ATTEMPT_ID_BYTES)


def new_topic_bytes(name: str) -> int:
    """The bytes of a topic without messages and groups."""
    return TOPIC_BYTES + text_bytes(name)


def new_group_bytes(name: str) -> int:
    """The bytes of a group without messages."""
    return GROUP_BYTES + text_bytes(name)


class Account:
    """The bytes of one broker. `used` is the sum of all kinds; what the other kinds leave of it are messages."""

    __slots__ = (
        "attempts",
        "dead",
        "dedup",
        "delays",
        "endings",
        "groups",
        "keys",
        "limits",
        "maxima",
        "pending",
        "topics",
        "used",
        "waiters",
    )

    def __init__(self, limits: StateLimits) -> None:
        self.limits = limits
        self.maxima = limits.maxima
        self.used = 0
        #: numbers: messages that groups are not finished with, dead letters, failed deliveries, messages with a delay
        self.pending = 0
        self.dead = 0
        self.endings = 0
        self.delays = 0
        #: bytes
        self.keys = 0
        self.dedup = 0
        self.attempts = 0
        self.topics = 0
        self.groups = 0
        self.waiters = 0

    def usage(self) -> dict[str, int]:
        """See `HasUsage`."""
        kinds = {
            "queue_keys": self.keys,
            "queue_delays": self.delays * DELAY_BYTES,
            "queue_dedup": self.dedup,
            "queue_in_flight": self.pending * PENDING_BYTES + self.attempts,
            "queue_dead": self.dead * PENDING_BYTES,
            "queue_history": self.endings * ENDING_BYTES,
            "queue_topics": self.topics,
            "queue_groups": self.groups,
            "queue_waiters": self.waiters,
        }
        return {"queue_messages": self.used - sum(kinds.values()), **kinds}

    def refusal(self, growth: int) -> Result | None:
        """A refusal when `growth` more bytes exceed the limit."""
        return None if self.used + growth <= self.maxima[LIMIT] else self.limits.over_limit(LIMIT)

    # Each of these adds or, with a negative number, takes away.

    def add_pending(self, count: int) -> None:
        self.pending += count
        self.used += count * PENDING_BYTES

    def add_dead(self, count: int) -> None:
        self.dead += count
        self.used += count * PENDING_BYTES

    def add_endings(self, count: int) -> None:
        self.endings += count
        self.used += count * ENDING_BYTES

    def add_delays(self, count: int) -> None:
        self.delays += count
        self.used += count * DELAY_BYTES

    def add_keys(self, count: int, groups: int) -> None:
        """Routing keys of a topic with so many groups."""
        size = count * (KEY_BYTES + groups * GROUP_KEY_BYTES)
        self.keys += size
        self.used += size

    def add_group_keys(self, count: int) -> None:
        """A group of a topic with so many routing keys."""
        self.keys += count * GROUP_KEY_BYTES
        self.used += count * GROUP_KEY_BYTES

    def add_dedup(self, size: int) -> None:
        self.dedup += size
        self.used += size

    def add_attempt(self, size: int) -> None:
        self.attempts += size
        self.used += size

    def add_topic(self, size: int) -> None:
        self.topics += size
        self.used += size

    def add_group(self, size: int) -> None:
        self.groups += size
        self.used += size

    def add_waiter(self, size: int) -> None:
        self.waiters += size
        self.used += size
