"""What the lists of the admin show of the lock table. The generators run in the node's event loop, a slice in each turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from dss_admin.live_rows import STEPS_PER_TURN
from dss_admin.texts import moment
from dss_locks.core import inspection
from dss_locks.core.account import Meta
from dss_locks.core.holdings import MODES
from dss_locks.core.state import RefusedDeadlock
from dss_locks.core.table import LockTable
from dss_locks.core.waiters import Positions
from dss_locks.django_app.models import DeadlockRow, ForcedRow

#: Maximum steps of a request's chain in the list. `GET /lock/status` shows more.
CHAIN_STEPS_MAX = 10


class HeldLock(msgspec.Struct, frozen=True, gc=False):
    """A client that holds a key."""

    key: str
    client: str
    exclusive: bool
    fencing_token: int
    expires_in_ms: int | None
    age_ms: int
    waiting: int
    session: str
    lock_delay_ms: int
    stored_meta: Meta | None

    @property
    def row_id(self) -> str:
        # With the token: a newer grant of the same client is another row.
        return f"{self.fencing_token}.{len(self.client)}.{self.client}.{self.key}"

    @property
    def mode(self) -> str:
        return MODES[self.exclusive]

    @property
    def meta(self) -> str:
        return json.dumps(self.stored_meta.value(), ensure_ascii=False) if self.stored_meta is not None else ""


def take_locks(table: LockTable, now_ms: int) -> Iterator[HeldLock | None]:
    """The holders of every key."""
    for key in list(table.locks):
        lock = table.locks.get(key)
        if lock is None or not lock.holder_count():
            yield None
            continue
        waiting = len(lock.queue) if lock.queue is not None else 0
        for hold in lock.holds():
            # The session of a hold that has ended between two slices may be gone.
            has_ended = hold.session and hold.session not in table.holdings.sessions.by_id
            expires_in_ms = 0 if has_ended else table.holdings.expires_in_ms(hold, now_ms)
            age_ms = max(0, now_ms - hold.granted_ms)
            yield HeldLock(
                key,
                hold.client,
                hold.exclusive,
                hold.token,
                expires_in_ms,
                age_ms,
                waiting,
                hold.session,
                hold.lock_delay_ms,
                hold.meta,
            )


class TakenWaiter(msgspec.Struct, frozen=True, gc=False):
    """A waiting request."""

    place: int
    client: str
    all_keys: tuple[str, ...]
    exclusive: bool
    position: int
    blockers: tuple[str, ...]
    age_ms: int
    gives_up_in_ms: int
    nodes: str

    @property
    def row_id(self) -> str:
        return str(self.place)

    @property
    def keys(self) -> str:
        return ", ".join(self.all_keys)

    @property
    def mode(self) -> str:
        return MODES[self.exclusive]

    @property
    def waits_for(self) -> str:
        return self.blockers[0] if self.blockers else ""

    @property
    def chain(self) -> str:
        return " → ".join((self.client, *self.blockers))


def take_waiters(table: LockTable, now_ms: int) -> Iterator[TakenWaiter | None]:
    """Every waiting request, in order of arrival of the first call."""
    seen = set()
    positions = Positions(table.locks)
    for step, caller in enumerate(list(table.waiters.by_origin.values())):
        if not step % STEPS_PER_TURN:
            # A queue is read once for each slice, because it may change between two slices.
            positions = Positions(table.locks)
        waiter = caller.waiter
        if not waiter.callers or waiter.rank in seen:
            yield None
            continue
        seen.add(waiter.rank)
        shown = inspection.waiter_row(waiter, 0, now_ms)
        blockers = tuple(step["held_by"] for step in inspection.chain(table, waiter, CHAIN_STEPS_MAX))
        nodes = ", ".join(dict.fromkeys(one.origin.node for one in waiter.callers))
        yield TakenWaiter(
            waiter.rank,
            waiter.client,
            tuple(waiter.keys),
            waiter.exclusive,
            positions.of(waiter),
            blockers,
            shown["age_ms"],
            shown["gives_up_in_ms"],
            nodes,
        )


class TakenDelay(msgspec.Struct, frozen=True, gc=False):
    """The lock delay of a key."""

    key: str
    lost_by: str
    keeps_out: str
    left_ms: int
    delay_ms: int


def take_delays(table: LockTable, now_ms: int) -> Iterator[TakenDelay | None]:
    """Every lock delay."""
    for key in list(table.holdings.delays.by_key):
        shown = inspection.delay_row(table, key, now_ms)
        yield TakenDelay(key, **shown) if shown is not None else None


class TakenSession(msgspec.Struct, frozen=True, gc=False):
    """A client session."""

    session: str
    client: str
    ttl_ms: int
    expires_in_ms: int
    key_count: int
    some_keys: tuple[str, ...]

    @property
    def keys(self) -> str:
        more = self.key_count - len(self.some_keys)
        return ", ".join(self.some_keys) + (f" and {more:,} more" if more else "")


#: Keys of a session in the list.
SESSION_KEYS_SHOWN_MAX = 10


def take_sessions(table: LockTable, now_ms: int) -> Iterator[TakenSession | None]:
    """Every client session."""
    sessions = table.holdings.sessions
    for session in list(sessions.by_id.values()):
        if session.id not in sessions.by_id:
            yield None
            continue
        some_keys = tuple(islice(session.keys, SESSION_KEYS_SHOWN_MAX))
        expires_in_ms = sessions.expires_in_ms(session.id, now_ms)
        yield TakenSession(session.id, session.client, session.ttl_ms, expires_in_ms, len(session.keys), some_keys)


def forced_rows(audit: list[dict[str, Any]]) -> list[ForcedRow]:
    """The audit list, latest first."""
    return [
        ForcedRow(
            row_id=f"{line['index']}.{len(line['client'])}.{line['client']}.{line['key']}",
            at=moment(line.pop("at_ms")),
            **{name: line[name] for name in ("key", "client", "fencing_token", "by", "reason")},
        )
        for line in audit
    ]


def deadlock_rows(taken: list[RefusedDeadlock]) -> list[DeadlockRow]:
    """The refused deadlocks, latest first."""
    return [
        DeadlockRow(
            row_id=f"{one.index}.{number}",
            at=moment(one.at_ms),
            client=one.client,
            keys=", ".join(one.keys),
            mode=one.mode,
            length=one.length,
            cycle=cycle_text(one),
            steps=one.cycle,
        )
        for number, one in reversed(list(enumerate(taken)))
    ]


def cycle_text(one: RefusedDeadlock) -> str:
    """ "a waits for k (held by b); b waits for …" """
    steps = [
        f"{step['client']} waits for {step['waits_for']}, {'held by' if step['because'] == 'holds' else 'behind'} {step['held_by']}"
        for step in one.cycle
    ]
    more = one.length - len(steps)
    return "\n".join([*steps, *([f"and {more:,} more clients"] if more else ())])
