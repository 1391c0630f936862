"""A budget for the memory that a node's clients use: what they have sent, what waits for them, and their connections.

Limits of one connection cannot protect a node: thousands of connections, each within its limits, can hold gigabytes. So every
connection has an account of what the node keeps for it, in bytes. When all accounts together exceed the budget, the connections
with the largest accounts are ended, until a tenth of the budget is free. Clients that send and read normally have small accounts.

The memory of an ended connection is free only when the event loop has closed it. Calls that waited for the same event are answered in one
turn of the loop, before that. So until then, a large answer that does not fit beside that memory ends its own connection, unsent.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import structlog
from prometheus_client import Counter, Gauge

log = structlog.get_logger("api")

SETTING = "DSS_CLIENT_BYTES_MAX"
BYTES_MAX_DEFAULT = 1024 * 1024 * 1024
#: After a tenth is free again, the next search for large accounts is far away.
GOAL = 0.9
#: Minimum interval between two lines in the log. The metric counts every connection.
LOG_SECONDS_MIN = 1.0
#: What an open connection is counted as, with its buffers in the process.
CONNECTION_BYTES = 16 * 1024
#: The same for a connection that the web server has taken over: its objects are larger, and it may hold a page.
TAKEN_OVER_BYTES = 64 * 1024
#: Answers up to this length are sent while the memory of ended connections is not free yet.
SHORT_ANSWER_BYTES = 64 * 1024
#: Counted for each call or subscription in addition to its request.
CALL_BYTES = 4 * 1024

BYTES = Gauge("dss_client_bytes", f"Bytes that clients' connections, requests and unread answers use; at most `{SETTING}`.")
ENDED = Counter("dss_client_memory_ended_total", f"Connections that were ended because `{SETTING}` was exceeded.")


class Account:
    """What the node keeps for one connection.

    Args:
        drop: gives up what the account counts, and ends the connection in the next turn of the event loop: it may be in the middle
            of a request. The account is closed before.
    """

    __slots__ = ("_ending", "_memory", "bytes", "drop")

    def __init__(self, memory: ClientMemory, drop: Callable[[], None]) -> None:
        self._memory = memory
        self.bytes = 0
        #: bytes of `ClientMemory.ending`, and where they count
        self._ending: tuple[ClientMemory, int] | None = None
        self.drop = drop

    def take(self, count: int) -> None:
        """Count `count` more bytes; fewer, if it is negative. If that exceeds the budget, the largest accounts are closed."""
        memory = self._memory
        self.bytes += count
        memory.bytes += count
        if memory.bytes > memory.bytes_max:
            memory.relieve()

    def has_room_now(self, count: int) -> bool:
        """Whether an answer of this length may be sent before the memory of ended connections is free."""
        memory = self._memory
        return not memory.ending or count <= SHORT_ANSWER_BYTES or memory.bytes + memory.ending + count <= memory.bytes_max

    def admits(self, count: int) -> bool:
        """As `has_room_now`. False: the connection ends."""
        if not self.has_room_now(count):
            self.end()
            return False
        return True

    def end(self) -> None:
        """End the connection. What is counted so far is free when `close` is called for it."""
        memory, ending = self._memory, self.bytes
        if memory is _NOWHERE:
            return
        self.close()
        self._ending = (memory, ending)
        memory.ending += ending
        self.drop()
        ENDED.inc()

    def close(self) -> None:
        """Stop counting. Later changes of this account are ignored."""
        if self._ending is not None:
            memory, ending = self._ending
            memory.ending -= ending
            self._ending = None
        self._memory.bytes -= self.bytes
        self._memory.accounts.discard(self)
        self._memory = _NOWHERE
        self.bytes = 0


class Share:
    """A part of an account that is measured as a whole instead of being counted up and down: what the web server keeps."""

    __slots__ = ("_account", "_bytes")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._bytes = 0

    def set(self, count: int) -> None:
        """Set this part to `count` bytes."""
        change = count - self._bytes
        if change:
            self._bytes = count
            self._account.take(change)


class ClientMemory:
    """The accounts of a node's clients. See the module.

    Args:
        bytes_max: the budget.
    """

    def __init__(self, bytes_max: int = BYTES_MAX_DEFAULT) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        #: of connections that were ended, and that the event loop has not closed yet
        self.ending = 0
        self.accounts: set[Account] = set()
        #: connections were ended; the heap has holes
        self.was_relieved = False
        self._logged_s = float("-inf")

    def open(self, drop: Callable[[], None]) -> Account:
        """An account for a new connection."""
        account = Account(self, drop)
        self.accounts.add(account)
        return account

    def relieve(self) -> None:
        """Close the largest accounts and end their connections, until a tenth of the budget is free."""
        goal = int(self.bytes_max * GOAL)
        ended = 0
        for account in sorted(self.accounts, key=lambda one: one.bytes, reverse=True):
            if self.bytes <= goal:
                break
            account.end()
            ended += 1
        self.was_relieved = True
        now = monotonic()
        if now - self._logged_s > LOG_SECONDS_MIN:
            self._logged_s = now
            log.warning("api.client_memory_full", connections_ended=ended, bytes_max=self.bytes_max, setting=SETTING)


class _Nowhere(ClientMemory):
    """Where closed accounts count: nothing follows from it."""

    def relieve(self) -> None:
        self.bytes = 0


_NOWHERE = _Nowhere()
