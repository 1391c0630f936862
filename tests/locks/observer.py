"""Rebuilds the lock table from its events. If the result matches the table, no event is missing or sent twice."""

from __future__ import annotations

from dss_locks.core.holdings import MODES


class Observer:
    def __init__(self) -> None:
        #: (key, client) -> mode, token
        self.holders: dict[tuple[str, str], tuple[str, int]] = {}
        #: (key, id of the queue entry) -> client, mode
        self.waiters: dict[tuple[str, int], tuple[str, str]] = {}
        self.delayed: set[str] = set()

    def see(self, event) -> None:
        hold, entry = (event.key, event.client), (event.key, event.place)
        if event.kind == "queued":
            assert entry not in self.waiters
            self.waiters[entry] = (event.client, event.mode)
        elif event.kind == "dequeued":
            assert self.waiters.pop(entry) == (event.client, event.mode)
            assert event.reason
        elif event.kind == "granted":
            assert (hold in self.holders) == (event.reason != "")
            self.holders[hold] = (event.mode, event.fencing_token)
        elif event.kind in ("released", "lost"):
            assert self.holders.pop(hold) == (event.mode, event.fencing_token)
            assert event.kind == "lost" or not event.delay_ms
            if event.delay_ms:
                self.delayed.add(event.key)
        elif event.kind == "delay_ended":
            self.delayed.remove(event.key)
        else:
            assert (event.kind, event.reason) == ("refused", "deadlock")

    def begin(self, locks) -> None:
        """Forget everything, and continue from this state (`LockEvent.locks`)."""
        self.holders = {(lock["key"], h["client"]): (h["mode"], h["fencing_token"]) for lock in locks for h in lock["holders"]}
        self.waiters = {(lock["key"], w["place"]): (w["client"], w["mode"]) for lock in locks for w in lock["waiters"]}
        self.delayed = {lock["key"] for lock in locks if lock["delay"]}

    def check(self, table) -> None:
        """Compare with the table."""
        assert self.holders == {(h.key, h.client): (MODES[h.exclusive], h.token) for h in table.holdings.all()}
        waiters = {(key, w.rank): (w.client, MODES[w.exclusive]) for w in table.waiters.all() for key in w.keys}
        assert self.waiters == waiters
        assert self.delayed == set(table.holdings.delays.by_key)
