"""The queue's promises as lists and loops, without regard to speed: tests compare the broker and the engine `redis` with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dss_raft.replication.machine import Origin

#: Settings of the topic whose queue this is, and a limit that the tests lower so that they reach it.
MAX_ATTEMPTS = 3
BACKOFF_MS = 10
UNCOUNTED_MAX = 1


@dataclass
class Entry:
    """A message in one group."""

    number: int
    key: str
    ready_ms: int
    status: str = "ready"  # ready, flight, waiting, done, dead
    due_ms: int = 0
    attempts: int = 0
    receipt: str | None = None
    private: bool = False
    visibility_ms: int = 0
    handout: Any = None
    received: bool = True
    uncounted: int = 0

    @property
    def open(self) -> bool:
        return self.status not in ("done", "dead")


@dataclass
class Waiting:
    origin: Origin
    group: str
    due_ms: int
    visibility_ms: int
    count: int
    attempt_id: str
    per_key: int = 1


@dataclass
class Handout:
    origin: Origin
    attempt_id: str
    group: str
    entries: list[Entry] = field(default_factory=list)


class NaiveQueue:
    """See the module."""

    def __init__(self) -> None:
        self.at = 0
        self.numbers: list[tuple[int, str, int]] = []  # retained: number, key, ready_ms
        self.groups: dict[str, dict[int, Entry]] = {}
        self.waiters: list[Waiting] = []
        self.answers: dict[Origin, Any] = {}
        self.published = 0
        self.keeps = False
        #: new messages are on the engine `redis`, which is not part of this model
        self.is_on_engine = False
        #: the topic has left the engine, which may still get messages: the log gets none
        self.is_closing = False

    @property
    def is_elsewhere(self) -> bool:
        """The log takes no messages."""
        return self.is_on_engine or self.is_closing

    def leave_engine(self) -> None:
        """The topic is moved back to the log, if it is on the engine."""
        self.is_closing |= self.is_on_engine
        self.is_on_engine = False

    def publish(self, number: int, key: str, delay_ms: int) -> None:
        ready_ms = self.at + delay_ms if delay_ms else 0
        self.numbers.append((number, key, ready_ms))
        self.published += 1
        for entries in self.groups.values():
            entries[number] = Entry(number, key, ready_ms)

    def group(self, name: str, start: int = 0) -> dict[int, Entry]:
        if name not in self.groups:
            entries = self.groups[name] = {n: Entry(n, key, ready_ms) for n, key, ready_ms in self.numbers}
            behind_delayed: set[str] = set()
            for entry in entries.values():
                if entry.number >= start or entry.key in behind_delayed:
                    continue
                if entry.ready_ms <= self.at:
                    entry.status = "done"
                elif entry.key:
                    behind_delayed.add(entry.key)
            self.drop_finished()
            self.settle()
        return self.groups[name]

    def delete_group(self, name: str) -> None:
        for w in [w for w in self.waiters if w.group == name]:
            self.waiters.remove(w)
            self.answers[w.origin] = "not_found"
        del self.groups[name]
        self.drop_finished()

    def drop_finished(self) -> None:
        if self.groups and not self.keeps:
            groups = self.groups.values()
            self.numbers = [line for line in self.numbers if not all(self.has_left(g, line[0]) for g in groups)]

    def has_left(self, entries: dict[int, Entry], number: int) -> bool:
        """A group leaves the messages of a key in order, also if it finished a later one first."""
        key = entries[number].key
        of_key = [e for e in entries.values() if e.number <= number and e.key == key] if key else [entries[number]]
        return not any(e.open and not e.private for e in of_key)

    def head(self, name: str, key: str) -> Entry | None:
        """The only message of a key that may be delivered next; None while one is in flight."""
        entries = [e for e in self.groups[name].values() if e.key == key and e.open]
        if any(e.status == "flight" for e in entries):
            return None
        return min(entries, key=lambda e: (not e.private, e.number), default=None)

    def settle(self) -> None:
        """The head of a key waits until its delay is over."""
        for name in self.groups:
            for key in ("a", "b"):
                head = self.head(name, key)
                if head is not None and head.status == "ready" and head.ready_ms > self.at:
                    head.status, head.due_ms = "waiting", head.ready_ms

    def available(self, name: str) -> list[Entry]:
        return [
            e
            for e in sorted(self.groups[name].values(), key=lambda e: e.number)
            if e.status == "ready" and e.ready_ms <= self.at and (not e.key or self.head(name, e.key) is e)
        ]

    def goes_on_with_engine(self, name: str) -> bool:
        """The group has finished what was published before the topic went to the engine."""
        return self.is_on_engine and not any(e.open for e in self.groups[name].values())

    def reason(self, name: str) -> str:
        entries = [e for e in self.groups[name].values() if e.open]
        flight = sum(e.status == "flight" for e in entries)
        delayed = self.delayed(name)
        if flight and len(entries) > flight + delayed:
            return "key_blocked"
        return "delayed" if delayed else "all_in_flight" if flight else "no_messages"

    def delayed(self, name: str) -> int:
        entries = self.groups[name].values()
        return sum(e.status == "waiting" or (e.status == "ready" and not e.key and e.ready_ms > self.at) for e in entries)

    def handout_of(self, w: Waiting) -> Handout:
        """For the messages that a consume gets."""
        return Handout(w.origin, w.attempt_id, w.group)

    def hand_out(self, w: Waiting) -> list[Entry]:
        handout = self.handout_of(w)
        while len(handout.entries) < w.count and (available := self.available(w.group)):
            for entry in self.run_of(available[0], w):
                if len(handout.entries) == w.count:
                    break
                self.take(entry, w, handout)
        return handout.entries

    def take(self, entry: Entry, w: Waiting, handout: Handout) -> None:
        entry.status, entry.attempts = "flight", entry.attempts + 1
        entry.due_ms, entry.visibility_ms, entry.received = self.at + w.visibility_ms, w.visibility_ms, True
        entry.handout = handout
        handout.entries.append(entry)

    def in_flight_of(self, name: str, attempt_id: str) -> list[Entry]:
        """What an earlier consume with this attempt_id got and still has, in order."""
        entries = [
            e for e in self.groups[name].values() if e.status == "flight" and e.handout and e.handout.attempt_id == attempt_id
        ]
        return [e for e in entries[0].handout.entries if e in entries] if entries and entries[0].handout else []

    def accept(self, w: Waiting, told: list[tuple[int, int]]) -> None:
        """Hand out what an engine handed out, numbers with attempts. Which messages belong to a run differs between engines, so this
        checks each of them, and that none is missing.
        """
        handout = self.handout_of(w)
        for number, attempts in told:
            entry = self.groups[w.group][number]
            runs = [one for one in handout.entries if entry.key and one.key == entry.key]
            if runs:
                assert entry in self.next_of(w.group, entry.key)[: w.per_key - len(runs)]
            else:
                assert entry in self.available(w.group)
            self.take(entry, w, handout)
            assert entry.attempts == attempts
        assert len(told) == w.count or not self.available(w.group)

    def next_of(self, name: str, key: str) -> list[Entry]:
        """The messages of a key behind those in flight, up to the first one that is delayed."""
        of_key = [e for e in self.groups[name].values() if e.key == key and e.open and e.status != "flight"]
        following = []
        for entry in sorted(of_key, key=lambda e: (not e.private, e.number)):
            if entry.status != "ready" or entry.ready_ms > self.at:
                break
            following.append(entry)
        return following

    def run_of(self, head: Entry, w: Waiting) -> list[Entry]:
        """The message, and those behind it in its key that may be delivered together with it."""
        of_key = [e for e in self.groups[w.group].values() if e.key == head.key and e.open] if head.key else [head]
        run = []
        for entry in sorted(of_key, key=lambda e: (not e.private, e.number))[: w.per_key]:
            if entry.status != "ready" or entry.ready_ms > self.at:
                break
            run.append(entry)
        return run

    def behind(self, entry: Entry) -> list[Entry]:
        """The rest of a run."""
        entries = entry.handout.entries
        later = entries[entries.index(entry) + 1 :]
        return [e for e in later if e.key and e.key == entry.key and e.status == "flight" and e.handout is entry.handout]

    def return_run(self, name: str, behind: list[Entry]) -> None:
        for entry in behind:
            if entry.due_ms <= self.at and entry.received:
                self.fail_one(name, entry)
            else:
                entry.attempts -= 1
                self.give_back_one(entry, 0)

    def finish(self, name: str, entry: Entry, status: str) -> None:
        entry.status = status
        self.drop_finished()
        self.settle()

    def give_back(self, name: str, entry: Entry, delay_ms: int) -> None:
        behind = self.behind(entry)
        self.give_back_one(entry, delay_ms)
        self.return_run(name, behind)

    def give_back_one(self, entry: Entry, delay_ms: int) -> None:
        entry.status, entry.due_ms = ("waiting", self.at + delay_ms) if delay_ms else ("ready", 0)
        self.settle()

    def fail(self, name: str, entry: Entry, delay_ms: int | None = None, rejected: bool = False) -> None:
        behind = self.behind(entry)
        if not self.fail_one(name, entry, delay_ms, rejected):
            self.return_run(name, behind)

    def fail_one(self, name: str, entry: Entry, delay_ms: int | None = None, rejected: bool = False) -> bool:
        if rejected or entry.attempts >= MAX_ATTEMPTS:
            self.finish(name, entry, "dead")
            return True
        self.give_back_one(entry, BACKOFF_MS << (entry.attempts - 1) if delay_ms is None else delay_ms)
        return False

    def not_received(self, name: str, entry: Entry) -> None:
        if entry.uncounted < UNCOUNTED_MAX:
            entry.uncounted += 1
            entry.attempts -= 1
            self.give_back(name, entry, 0)
        else:
            self.fail(name, entry)

    def serve(self) -> None:
        for w in list(self.waiters):
            entries = self.hand_out(w)
            if entries:
                self.waiters.remove(w)
                self.answers[w.origin] = [(e.number, e.attempts) for e in entries]
            elif self.goes_on_with_engine(w.group):
                self.waiters.remove(w)
                self.answers[w.origin] = "on_engine"

    def expire(self) -> None:
        for name, entries in self.groups.items():
            due = [e for e in entries.values() if e.status in ("flight", "waiting") and e.due_ms <= self.at]
            for entry in sorted(due, key=due_order):
                if entry.status not in ("flight", "waiting") or entry.due_ms > self.at:
                    continue  # it went back behind an earlier message of its run
                if entry.status == "flight":
                    (self.fail if entry.received else self.not_received)(name, entry)
                else:
                    entry.status, entry.due_ms = "ready", 0
                self.settle()
        self.serve()
        for w in list(self.waiters):
            if w.due_ms <= self.at:
                self.waiters.remove(w)
                self.answers[w.origin] = self.reason(w.group)

    def held(self, name: str, number: int, receipt: str | None) -> tuple[Entry | None, bool]:
        entry = self.groups.get(name, {}).get(number)
        if entry is None or entry.status == "done":
            return None, False
        if entry.status == "dead":
            return None, receipt is not None
        if entry.receipt is None:
            return None, False
        return (entry, False) if receipt in (None, entry.receipt) else (None, True)


def due_order(entry: Entry) -> tuple[int, int]:
    """Deliveries that end at the same time end in the order in which they began."""
    return entry.due_ms, int(entry.receipt.split(".")[1], 16) if entry.status == "flight" and entry.receipt else 0
