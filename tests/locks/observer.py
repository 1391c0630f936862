"""What somebody knows who sees every event of the lock table and nothing else. If it is the truth, no event is missing or told twice."""

from __future__ import annotations

from dss_locks.core.holdings import MODES


class Observer:
    def __init__(self) -> None:
        #: (key, client) -> mode, token
        self.holders: dict[tuple[str, str], tuple[str, int]] = {}
        #: (key, place) -> client, mode
        self.waiters: dict[tuple[str, int], tuple[str, str]] = {}
        self.delayed: set[str] = set()

    def see(self, event) -> None:
        hold, place = (event.key, event.client), (event.key, event.place)
        if event.kind == "queued":
            assert place not in self.waiters
            self.waiters[place] = (event.client, event.mode)
        elif event.kind == "dequeued":
            assert self.waiters.pop(place) == (event.client, event.mode)
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
        """Forget everything, and go on from this state (`LockEvent.locks`)."""
        self.holders = {(lock["key"], h["client"]): (h["mode"], h["fencing_token"]) for lock in locks for h in lock["holders"]}
        self.waiters = {(lock["key"], w["place"]): (w["client"], w["mode"]) for lock in locks for w in lock["waiters"]}
        self.delayed = {lock["key"] for lock in locks if lock["delay"]}

    def check(self, table) -> None:
        """Compare with the table itself."""
        assert self.holders == {(h.key, h.client): (MODES[h.exclusive], h.token) for h in table.holdings.all()}
        places = {(key, p.rank): (p.client, MODES[p.exclusive]) for p in table.waiters.all() for key in p.keys}
        assert self.waiters == places
        assert self.delayed == set(table.holdings.delays.by_key)
