"""A lock table driven by log entries, and a fake node."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dss_api.errors import Refused
from dss_api.result import Result
from dss_locks.core import refusals
from dss_locks.core.commands import Acquire, ForceRelease, ForceReleaseGrant, Release, Renew
from dss_locks.core.state import LockChanged, LockLimits
from dss_locks.core.table import LockTable
from dss_raft.replication.commands import Command
from dss_raft.replication.machine import Event, Origin, Resolved


class Harness:
    """Applies one entry per call, as the replica would, and records the answers.

    `at_ms` changes only when a test changes it. The index grows with every entry.
    """

    def __init__(self, limits: LockLimits | None = None) -> None:
        self.table = LockTable(limits)
        self.index = 0
        self.at_ms = 1_000_000
        self.seq = 0
        #: the answers to calls that have waited
        self.answers: dict[Origin, Result] = {}
        self.changes: list[LockChanged] = []
        self.events: list[Event] = []

    def entry(self, *commands: Command, node: str = "n1") -> list[Result | Origin]:
        """Apply one entry with several commands. The outcome of a command that waits is its origin."""
        self.index += 1
        deadline_ms = self.table.next_deadline_ms()
        if deadline_ms is not None and deadline_ms <= self.at_ms:
            self.table.expire(self.at_ms, self.index)
        outcomes: list[Result | Origin] = []
        for command in commands:
            self.seq += 1
            origin = Origin(node, 1, self.seq)
            result = self.table.apply(command, self.at_ms, self.index, origin)
            outcomes.append(origin if result is None else result)
        self.collect()
        return outcomes

    def collect(self) -> None:
        for event in self.table.take_events():
            self.events.append(event)
            if isinstance(event, Resolved):
                assert event.waiter not in self.answers, "answered twice"
                self.answers[event.waiter] = event.result
            elif isinstance(event, LockChanged):
                self.changes.append(event)

    def acquire(self, client: str, *keys: str, node: str = "n1", **fields: Any) -> Any:
        names = {"key": keys[0]} if len(keys) == 1 else {"keys": list(keys)}
        (outcome,) = self.entry(Acquire(client=client, **names, **fields), node=node)
        return outcome

    def shared(self, client: str, *keys: str, **fields: Any) -> Any:
        return self.acquire(client, *keys, mode="shared", **fields)

    def release(self, client: str, *keys: str, **fields: Any) -> Any:
        names = {"key": keys[0]} if len(keys) == 1 else {"keys": list(keys)}
        (outcome,) = self.entry(Release(client=client, **names, **fields))
        return outcome

    def renew(self, client: str, *keys: str, **fields: Any) -> Any:
        names = {"key": keys[0]} if len(keys) == 1 else {"keys": list(keys)}
        (outcome,) = self.entry(Renew(client=client, **names, **fields))
        return outcome

    def force(self, key: str, reason: str = "it hangs", **fields: Any) -> Any:
        command = ForceReleaseGrant if "fencing_token" in fields else ForceRelease
        (outcome,) = self.entry(command(key=key, reason=reason, **fields))
        return outcome

    def cancel(self, origin: Origin) -> None:
        self.index += 1
        self.table.cancel(origin, self.at_ms, self.index)
        self.collect()

    def new_leader(self, after_ms: int = 0) -> None:
        self.index += 1
        self.at_ms += after_ms
        self.table.rearm(self.at_ms, self.index)
        deadline_ms = self.table.next_deadline_ms()
        if deadline_ms is not None and deadline_ms <= self.at_ms:
            self.table.expire(self.at_ms, self.index)
        self.collect()

    def restart_node(self, node: str) -> None:
        self.index += 1
        self.table.node_restarted(node, self.at_ms, self.index)
        self.collect()

    def pass_ms(self, ms: int) -> None:
        """Let time pass: the leader proposes an empty entry."""
        self.at_ms += ms
        self.entry()

    def holders(self, key: str) -> list[tuple[str, str]]:
        return [(h["client"], h["mode"]) for h in refusals.holders(self.table.holdings, key, self.at_ms, 100)]

    def queue(self, key: str) -> list[str]:
        lock = self.table.locks.get(key)
        return [waiter.client for waiter in lock.queue or ()] if lock is not None else []

    def reload(self) -> None:
        """Continue from a snapshot, as a node that was far behind does."""
        state = encoded(self.table)
        self.table = LockTable(self.table.holdings.limits)
        self.table.restore(state)


class FakeNode:
    """A cluster of one node, where each command is an entry."""

    def __init__(self) -> None:
        self.table = LockTable()
        self.index, self.at_ms = 0, 1000
        self.reads = 0
        self.is_leader = True
        self.unusable_reason = ""
        self.refusal: Refused | None = None
        self.futures: dict[Origin, asyncio.Future[Result]] = {}
        self.listeners = defaultdict(list)
        self.replacement_listeners = []
        self.services = {}

    def machine(self, name):
        assert name == "locks"
        return self.table

    @property
    def applied_index(self):
        return self.index

    def now_ms(self):
        return self.at_ms

    def on_event(self, event_type, callback):
        self.listeners[event_type].append(callback)

    def on_state_replaced(self, callback):
        self.replacement_listeners.append(callback)

    async def read_index(self):
        self.reads += 1

    async def submit(self, command, *, timeout_ms=5000, wait_ms=0, once=None):
        if self.refusal:
            raise self.refusal
        self.index += 1
        origin = Origin("n1", 1, self.index)
        result = self.table.apply(command, self.at_ms, self.index, origin)
        self.publish()
        if result is not None:
            return Result(result.body, result.code, self.index)
        future = self.futures[origin] = asyncio.get_running_loop().create_future()
        try:
            return await future
        except asyncio.CancelledError:
            self.index += 1
            self.table.cancel(origin, self.at_ms, self.index)
            self.publish()
            raise

    def pass_ms(self, ms):
        self.at_ms += ms
        self.index += 1
        self.table.expire(self.at_ms, self.index)
        self.publish()

    def catch_up_by_snapshot(self, act):
        """Receive a snapshot of the table after `act`, instead of the entries of `act`."""
        copy = LockTable()
        copy.restore(encoded(self.table))
        self.index += 1
        act(copy, self.at_ms, self.index)
        self.table.restore(encoded(copy))
        for listener in self.replacement_listeners:
            listener()

    def publish(self):
        for event in self.table.take_events():
            if isinstance(event, Resolved):
                self.futures.pop(event.waiter).set_result(Result(event.result.body, event.result.code, self.index))
            for listener in self.listeners[type(event)]:
                listener(event, self.index)


def encoded(table: LockTable) -> Any:
    """The snapshot, encoded and decoded."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(table.snapshot()))


@pytest.fixture(scope="session")
def fake_node() -> type[FakeNode]:
    """For tests that run their own event loop."""
    return FakeNode


@pytest.fixture
async def node() -> FakeNode:
    return FakeNode()


@pytest.fixture(scope="session")
def harness() -> type[Harness]:
    """For tests that create many tables."""
    return Harness


@pytest.fixture
def locks() -> Harness:
    return Harness()


@pytest.fixture
def limited() -> Callable[..., Harness]:
    return lambda **limits: Harness(LockLimits(**limits))
