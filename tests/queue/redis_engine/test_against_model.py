"""A partition of the engine behaves as the naive model of the queue, for any sequence of steps."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dss_api.errors import Refused
from dss_dev.queue_model import BACKOFF_MS, MAX_ATTEMPTS, NaiveQueue, Waiting
from dss_queue.core.commands import NewMessage
from dss_raft.replication.machine import Origin

GROUPS = st.sampled_from(["g1", "g2", "g3"])
KEYS = st.sampled_from(["", "", "a", "b"])
ATTEMPTS = st.sampled_from(["", "", "", "x", "y"])

HERE: dict[str, object] = {}


@pytest.fixture(autouse=True)
def _server(open_bench):
    HERE["open"] = open_bench


def number_of(msg_id: str) -> int:
    return int(msg_id.partition("-")[2])


class EngineAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.opening = HERE["open"](partitions=1, max_attempts=MAX_ATTEMPTS, backoff_ms=BACKOFF_MS, retention_ms=0)
        self.bench = self.run(self.opening.__aenter__())
        self.model = NaiveQueue()
        self.model.at = self.bench.at_ms
        self.seq = 0
        self.receipts: list[tuple[str, str, str]] = []
        #: what consumes got: group, and ids with receipts
        self.handouts: list[tuple[str, list[tuple[str, str]]]] = []
        self.ids: list[str] = ["r0-1700000000000000"]
        for keys, name in ((["", "a", "a"], "g1"), (["b", "", "a", "a"], "g2")):
            self.publish(keys, 0)
            self.consume(name, 2, 10, "x", 1)

    def teardown(self) -> None:
        self.run(self.opening.__aexit__(None, None, None))
        self.loop.close()

    def run(self, step):
        return self.loop.run_until_complete(step)

    @property
    def engine(self):
        return self.bench.engine

    # -- rules

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3), delay=st.sampled_from([0, 0, 0, 5, 40]))
    def publish(self, keys, delay):
        messages = [NewMessage("", b"0", key, 0, delay, "", b"") for key in keys]
        for key, one in zip(keys, self.run(self.engine.publish(self.bench.topic, messages, self.bench.settings)), strict=True):
            self.ids.append(one.msg_id)
            self.model.publish(number_of(one.msg_id), key, delay)
        self.model.settle()

    @rule(
        name=GROUPS,
        count=st.sampled_from([1, 1, 2, 5]),
        visibility=st.sampled_from([10, 30, 100]),
        attempt=ATTEMPTS,
        per_key=st.sampled_from([1, 1, 2, 5]),
    )
    def consume(self, name, count, visibility, attempt, per_key):
        self.before_group(name)
        got = self.run(
            self.engine.consume(
                self.bench.topic,
                name,
                self.bench.settings,
                visibility_ms=visibility,
                max_messages=count,
                max_per_key=per_key,
                attempt_id=attempt,
            )
        )
        self.model.group(name)
        told = [(number_of(one.msg_id), one.attempt) for one in got.messages]
        self.seq += 1
        waiting = Waiting(Origin("n1", 1, self.seq), name, 0, visibility, count, attempt or f"own-{self.seq}", per_key)
        again = self.model.in_flight_of(name, attempt) if attempt else []
        if again:
            for entry in again:
                entry.due_ms, entry.visibility_ms = self.model.at + visibility, visibility
            assert told == [(entry.number, entry.attempts) for entry in again]
        elif per_key == 1:
            assert told == [(entry.number, entry.attempts) for entry in self.model.hand_out(waiting)]
        else:
            self.model.accept(waiting, told)
        if not told:
            assert got.empty_reason == self.model.reason(name)
        for one in got.messages:
            entry = self.model.groups[name][number_of(one.msg_id)]
            assert one.visible_until_ms == entry.due_ms
            entry.receipt = one.receipt
            self.receipts.append((name, one.msg_id, one.receipt))
        if told:
            self.handouts.append((name, [(one.msg_id, one.receipt) for one in got.messages]))

    @rule(count=st.integers(2, 6))
    def publish_without_keys(self, count):
        self.publish([""] * count, 0)

    @rule(data=st.data(), with_receipts=st.booleans(), part=st.sampled_from(["all", "all", "first", "rest", "and another"]))
    def ack_what_a_consume_got(self, data, with_receipts, part):
        if not self.handouts:
            return
        name, got = data.draw(st.sampled_from(self.handouts[-4:]))
        got = {"first": got[:1], "rest": got[1:] or got}.get(part, got)
        others = [line for line in self.receipts if line[0] == name and line[1] not in dict(got)]
        if part == "and another" and others:
            got = [*got, data.draw(st.sampled_from(others[-4:]))[1:]]
        ids, receipts = [one[0] for one in got], [one[1] for one in got] if with_receipts else None
        answers = self.run(self.engine.ack(self.bench.topic, name, ids, receipts, self.bench.settings))
        for (msg_id, receipt), answer in zip(got, answers, strict=True):
            entry, is_stale = self.model.held(name, number_of(msg_id), receipt if with_receipts else None)
            assert (answer.acked, answer.code == "stale_receipt") == (entry is not None, is_stale)
            if entry is not None:
                self.model.finish(name, entry, "done")

    @rule(data=st.data(), status=st.sampled_from(["flight", "flight", "ready", "waiting"]), what=st.sampled_from(["ack", "nack"]))
    def end_a_known_delivery(self, data, status, what):
        known = [
            (name, e.number) for name, g in self.model.groups.items() for e in g.values() if e.status == status and e.receipt
        ]
        if known:
            name, number = data.draw(st.sampled_from(known))
            getattr(self, what)(data, name, f"r0-{number}", self.model.groups[name][number].receipt)

    @rule(data=st.data(), name=GROUPS, with_receipt=st.booleans(), what=st.sampled_from(["ack", "ack", "nack", "extend"]))
    def end_delivery(self, data, name, with_receipt, what):
        receipt = None
        if self.receipts and data.draw(st.integers(0, 3)):
            name, msg_id, receipt = data.draw(st.sampled_from(self.receipts[-6:]))
            receipt = receipt if with_receipt else None
        else:
            msg_id = data.draw(st.sampled_from(self.ids[-6:]))
        getattr(self, what)(data, name, msg_id, receipt)

    def ack(self, data, name, msg_id, receipt):
        receipts = None if receipt is None else [receipt]
        (answer,) = self.run(self.engine.ack(self.bench.topic, name, [msg_id], receipts, self.bench.settings))
        entry, is_stale = self.model.held(name, number_of(msg_id), receipt)
        assert (answer.acked, answer.code == "stale_receipt") == (entry is not None, is_stale)
        if entry is not None:
            self.model.finish(name, entry, "done")

    def nack(self, data, name, msg_id, receipt):
        how = data.draw(st.sampled_from(["plain", "delay", "dead", "silent"]))
        delay = {"delay": 25, "silent": 0}.get(how)
        entry, is_stale = self.model.held(name, number_of(msg_id), receipt)
        nacking = self.engine.nack(
            self.bench.topic,
            name,
            msg_id,
            receipt,
            self.bench.settings,
            delay_ms=delay,
            dead=how == "dead",
            silent=how == "silent",
        )
        if is_stale:
            with pytest.raises(Refused, match="stale_receipt"):
                self.run(nacking)
            return
        answer = self.run(nacking)
        nacked = entry is not None and entry.status == "flight"
        assert answer.nacked == nacked
        if nacked and how == "silent":
            entry.attempts -= 1
            self.model.give_back(name, entry, 0)
        elif nacked:
            self.model.fail(name, entry, delay, rejected=how == "dead")
            assert answer.dead == (entry.status == "dead")

    def extend(self, data, name, msg_id, receipt):
        entry, _ = self.model.held(name, number_of(msg_id), receipt)
        extending = self.engine.extend(self.bench.topic, name, msg_id, receipt, self.bench.settings, 50)
        if entry is None or entry.status != "flight":
            with pytest.raises(Refused, match="stale_receipt"):
                self.run(extending)
        else:
            entry.due_ms, entry.visibility_ms = self.model.at + 50, 50
            assert self.run(extending) == entry.due_ms

    @rule(ms=st.sampled_from([1, 5, 10, 20, 60]))
    def time_passes(self, ms):
        self.model.at += ms
        self.model.expire()
        self.run(self.bench.pass_ms(ms))

    @rule(name=GROUPS, now=st.booleans())
    def declare(self, name, now):
        self.before_group(name)
        is_new, pending = self.run(self.engine.put_group(self.bench.topic, name, start="now" if now else "first"))
        assert is_new == (name not in self.model.groups)
        entries = self.model.group(name)
        if is_new and now:
            for entry in entries.values():
                entry.status = "done"
            self.model.drop_finished()
            # Messages that are not for a new group leave when it passes them.
            self.run(self.bench.administration.sweep(self.bench.topic, self.bench.settings))
        assert pending == sum(entry.open for entry in entries.values())

    @rule(name=GROUPS)
    def redrive(self, name):
        redriven = self.run(self.bench.administration.redrive(self.bench.topic, name))
        dead = [e for e in self.model.groups.get(name, {}).values() if e.status == "dead"]
        assert redriven == len(dead)
        for entry in dead:
            entry.status, entry.private, entry.attempts, entry.receipt, entry.ready_ms = "ready", True, 0, None, 0
        self.model.settle()

    def before_group(self, name):
        """A new group gets what is retained. The model also retains messages of a run that all groups have acked early."""
        if name not in self.model.groups:
            retained = {number_of(one.msg_id) for one in self.run(self.bench.views.peek(self.bench.topic, limit=1000))}
            left = [line for line in self.model.numbers if line[0] not in retained]
            assert not any(entries[line[0]].open for line in left for entries in self.model.groups.values())
            self.model.numbers = [line for line in self.model.numbers if line[0] in retained]

    @rule(name=GROUPS, really=st.integers(0, 2))
    def delete_group(self, name, really):
        if really:
            return
        self.run(self.bench.administration.delete_group(self.bench.topic, name))
        if self.model.groups.pop(name, None) is not None:
            self.model.drop_finished()
        self.receipts = [one for one in self.receipts if one[0] != name]
        self.handouts = [one for one in self.handouts if one[0] != name]

    @rule(data=st.data(), name=GROUPS)
    def delete_a_dead_letter(self, data, name):
        dead = [e for e in self.model.groups.get(name, {}).values() if e.status == "dead"]
        msg_id = f"r0-{data.draw(st.sampled_from(dead)).number}" if dead else data.draw(st.sampled_from(self.ids))
        deleted = self.run(self.bench.administration.delete_dead(self.bench.topic, name, msg_id))
        assert deleted == bool(dead)
        if dead:
            self.model.groups[name][number_of(msg_id)].status = "done"

    @rule(really=st.integers(0, 9))
    def purge(self, really):
        if really:
            return
        purged = self.run(self.bench.administration.purge(self.bench.topic))
        # A run's messages that were acked early are still retained by the model.
        assert purged <= len(self.model.numbers)
        self.model.numbers = []
        for entries in self.model.groups.values():
            for entry in entries.values():
                if entry.status != "dead":
                    entry.status = "done"

    # -- invariants

    @invariant()
    def the_engine_has_what_the_model_has(self):
        """What is asked is asked together, so that it takes few round trips."""
        (topic, groups), messages, parts = self.run(self.what_is_there())
        self.nothing_is_lost(topic, groups)
        for name, (held, lines, dead) in zip(self.model.groups, parts, strict=True):
            self.deliveries_are_in_flight(name, held)
            self.a_peek_shows_what_is_unfinished(name, lines, dead)
        self.bytes_are_accounted_for(topic, messages)

    async def what_is_there(self):
        views, topic = self.bench.views, self.bench.topic

        async def of_group(name):
            return await asyncio.gather(
                views.in_flight(topic, name, self.late_receipts(name)),
                views.peek(topic, name, limit=1000),
                views.peek(topic, name, dead=True, limit=1000),
            )

        return await asyncio.gather(
            self.bench.stats(), views.peek(topic, limit=1000), asyncio.gather(*map(of_group, self.model.groups))
        )

    def late_receipts(self, name):
        return {msg_id: receipt for group, msg_id, receipt in self.receipts[-12:] if group == name}

    def nothing_is_lost(self, topic, groups):
        lines = {line.group: line for line in groups}
        assert lines.keys() == self.model.groups.keys()
        for name, entries in self.model.groups.items():
            line = lines[name]
            assert line.in_flight == sum(e.status == "flight" for e in entries.values())
            assert line.dead == sum(e.status == "dead" for e in entries.values())
            # What the group has not met is not known as delayed.
            assert line.delayed <= self.model.delayed(name)
            assert line.ready + line.delayed + line.in_flight == sum(e.open for e in entries.values())
        retained = {n for n, *_ in self.model.numbers}
        open_somewhere = {n for g in self.model.groups.values() for n, e in g.items() if e.open and not e.private}
        assert len(open_somewhere & retained) <= topic.messages <= len(retained)

    def deliveries_are_in_flight(self, name, held):
        entries = self.model.groups[name]
        assert held == {
            msg_id
            for msg_id, receipt in self.late_receipts(name).items()
            if (entry := entries.get(number_of(msg_id))) and entry.status == "flight" and entry.receipt == receipt
        }

    def a_peek_shows_what_is_unfinished(self, name, lines, dead):
        entries = self.model.groups[name]
        assert sorted(number_of(one.msg_id) for one in lines) == sorted(e.number for e in entries.values() if e.open)
        assert [one.state for one in lines].count("in_flight") == sum(e.status == "flight" for e in entries.values())
        assert sorted(number_of(one.msg_id) for one in dead) == sorted(e.number for e in entries.values() if e.status == "dead")

    def bytes_are_accounted_for(self, topic, messages):
        size = sum(len(bytes(one.value)) + len(one.key) for one in messages)
        keys = {number: e.key for g in self.model.groups.values() for number, e in g.items()}
        for entries in self.model.groups.values():
            size += sum(1 + len(keys[e.number]) for e in entries.values() if e.status == "dead" or (e.private and e.open))
        # A purge frees the redriven messages of a group at the group's next step.
        assert topic.bytes >= size
        self.run(self.bench.administration.sweep(self.bench.topic, self.bench.settings))
        assert self.run(self.bench.stats())[0].bytes == size


TestEngineAgainstModel = EngineAgainstModel.TestCase
TestEngineAgainstModel.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    # Each step asks a server, so shrinking would take minutes.
    phases=(Phase.generate,),
)
