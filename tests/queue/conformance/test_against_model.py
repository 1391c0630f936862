"""The operations behave as the naive model of the queue on both engines, for any sequence of steps.

On the engine `redis`, the topic has one partition: what several change is in the table of differences. Below the operations, the broker of
the log and a partition of the engine are compared with the model more closely: tests/queue/test_against_model.py and
tests/queue/redis_engine/test_against_model.py.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dss_dev.queue_model import BACKOFF_MS, MAX_ATTEMPTS, NaiveQueue, Waiting
from dss_raft.replication.machine import Origin

GROUPS = st.sampled_from(["g1", "g2", "g3"])
KEYS = st.sampled_from(["", "", "a", "b"])
ATTEMPTS = st.sampled_from(["", "", "", "x", "y"])


def number_of(msg_id: str) -> int:
    """Of a message: it grows. "r0-<number>" on the engine, "<index>-<n>" in the log."""
    first, _, second = msg_id.partition("-")
    return int(second) if first.startswith("r") else int(first) << 24 | int(second)


class OperationsAgainstModel(RuleBasedStateMachine):
    #: opens a world, in an event loop
    open_world = None

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = self.run(type(self).open_world())
        self.run(self.world.settings(max_attempts=MAX_ATTEMPTS, backoff_ms=BACKOFF_MS, retention_ms=0))
        self.model = NaiveQueue()
        self.model.at = self.world.at_ms
        self.seq = 0
        self.receipts: list[tuple[str, str, str]] = []
        self.ids: list[str] = ["r0-1700000000000000"]
        #: by number
        self.id_of: dict[int, str] = {}
        for keys, name in ((["", "a", "a"], "g1"), (["b", "", "a", "a"], "g2")):
            self.publish(keys, 0)
            self.consume(name, 2, 10, "x", 1)

    def teardown(self) -> None:
        self.run(self.world.stop())
        self.loop.close()

    def run(self, step):
        return self.loop.run_until_complete(step)

    def post(self, name, **fields):
        return self.run(self.world.post(name, **fields))

    def settle(self) -> None:
        """Messages that are not for a new group, or were purged, leave the engine when it looks at the group."""
        self.run(self.world.pass_ms(0))

    # -- rules

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3), delay=st.sampled_from([0, 0, 0, 5, 40]))
    def publish(self, keys, delay):
        answer = self.post("publish", messages=[{"value": 0, "key": key, "delay_ms": delay} for key in keys])
        for key, one in zip(keys, answer["messages"], strict=True):
            self.ids.append(one["msg_id"])
            self.id_of[number_of(one["msg_id"])] = one["msg_id"]
            self.model.publish(number_of(one["msg_id"]), key, delay)
        self.model.settle()

    @rule(
        name=GROUPS,
        count=st.sampled_from([1, 1, 2, 5]),
        visibility=st.sampled_from([10, 30, 100]),
        attempt=ATTEMPTS,
        per_key=st.sampled_from([1, 1, 2, 5]),
    )
    def consume(self, name, count, visibility, attempt, per_key):
        answer = self.post(
            "consume",
            group=name,
            timeout_ms=0,
            visibility_ms=visibility,
            max_messages=count,
            max_per_key=per_key,
            attempt_id=attempt,
        )
        got = answer["messages"]
        self.model.group(name)
        told = [(number_of(one["msg_id"]), one["attempt"]) for one in got]
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
            assert answer["empty_reason"] == self.model.reason(name)
        for one in got:
            entry = self.model.groups[name][number_of(one["msg_id"])]
            assert one["visible_until_ms"] == entry.due_ms
            entry.receipt = one["receipt"]
            self.receipts.append((name, one["msg_id"], one["receipt"]))

    @rule(data=st.data(), status=st.sampled_from(["flight", "flight", "ready", "waiting"]), what=st.sampled_from(["ack", "nack"]))
    def end_a_known_delivery(self, data, status, what):
        known = [
            (name, e.number) for name, g in self.model.groups.items() for e in g.values() if e.status == status and e.receipt
        ]
        if known:
            name, number = data.draw(st.sampled_from(known))
            getattr(self, what)(data, name, self.id_of[number], self.model.groups[name][number].receipt)

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
        answer = self.post("ack", group=name, msg_id=msg_id, receipt=receipt)
        entry, is_stale = self.model.held(name, number_of(msg_id), receipt)
        if is_stale:
            assert answer["code"] == "stale_receipt"
            return
        assert answer["acked"] == (entry is not None)
        if entry is not None:
            self.model.finish(name, entry, "done")

    def nack(self, data, name, msg_id, receipt):
        how = data.draw(st.sampled_from(["plain", "delay", "dead", "silent"]))
        delay = {"delay": 25, "silent": 0}.get(how)
        entry, is_stale = self.model.held(name, number_of(msg_id), receipt)
        fields = {"delay_ms": delay, "dead": how == "dead", "silent": how == "silent"}
        answer = self.post("nack", group=name, msg_id=msg_id, receipt=receipt, **fields)
        if is_stale:
            assert answer["code"] == "stale_receipt"
            return
        nacked = entry is not None and entry.status == "flight"
        assert answer["nacked"] == nacked
        if nacked and how == "silent":
            entry.attempts -= 1
            self.model.give_back(name, entry, 0)
        elif nacked:
            self.model.fail(name, entry, delay, rejected=how == "dead")
            assert answer["dead"] == (entry.status == "dead")

    def extend(self, data, name, msg_id, receipt):
        entry, _ = self.model.held(name, number_of(msg_id), receipt)
        answer = self.post("extend", group=name, msg_id=msg_id, receipt=receipt, visibility_ms=50)
        if entry is None or entry.status != "flight":
            assert answer["code"] == "stale_receipt"
        else:
            entry.due_ms, entry.visibility_ms = self.model.at + 50, 50
            assert answer["visible_until_ms"] == entry.due_ms

    @rule(ms=st.sampled_from([1, 5, 10, 20, 60]))
    def time_passes(self, ms):
        self.model.at += ms
        self.model.expire()
        self.run(self.world.pass_ms(ms))

    @rule(name=GROUPS, now=st.booleans())
    def declare(self, name, now):
        entries = self.model.groups.get(name)
        is_new = entries is None
        if is_new and now and any(ready_ms > self.model.at for _, _, ready_ms in self.model.numbers):
            return  # `start_now` in the table of differences
        answer = self.run(self.world.group(name, start="now" if now else "first"))
        assert answer["created"] == is_new
        entries = self.model.group(name, 1 << 100 if now else 0)
        assert answer["pending"] == sum(entry.open for entry in entries.values())
        self.settle()

    @rule(name=GROUPS, really=st.integers(0, 2))
    def delete_group(self, name, really):
        if really:
            return
        assert self.run(self.world.delete_group(name))["deleted"] == (name in self.model.groups)
        if name in self.model.groups:
            self.model.delete_group(name)
        self.settle()

    @rule()
    def restart(self):
        self.run(self.world.restart())

    @rule(name=GROUPS)
    def redrive(self, name):
        redriven = self.post("redrive", group=name)["redriven"]
        dead = [e for e in self.model.groups.get(name, {}).values() if e.status == "dead"]
        assert redriven == len(dead)
        for entry in dead:
            entry.status, entry.private, entry.attempts, entry.receipt, entry.ready_ms = "ready", True, 0, None, 0
        self.model.settle()

    @rule(really=st.integers(0, 9))
    def purge(self, really):
        if really:
            return
        self.post("purge")
        self.model.numbers = []
        for entries in self.model.groups.values():
            for entry in entries.values():
                if entry.status != "dead":
                    entry.status = "done"
        self.settle()

    # -- invariants

    @invariant()
    def nothing_is_lost(self):
        stats = self.run(self.world.stats())
        lines = {line["group"]: line for line in stats["groups"]}
        assert lines.keys() == self.model.groups.keys()
        for name, entries in self.model.groups.items():
            line = lines[name]
            assert line["in_flight"] == sum(e.status == "flight" for e in entries.values())
            assert line["dead"] == sum(e.status == "dead" for e in entries.values())
            assert line["delayed"] <= self.model.delayed(name), "`delayed_count` in the table of differences"
            assert line["ready"] + line["delayed"] + line["in_flight"] == sum(e.open for e in entries.values())
        retained = {n for n, *_ in self.model.numbers}
        open_somewhere = {n for g in self.model.groups.values() for n, e in g.items() if e.open and not e.private}
        # A run's messages that were acked early are still retained by the model.
        assert len(open_somewhere & retained) <= stats["messages"] <= len(retained)

    @invariant()
    def bytes_are_accounted_for(self):
        messages = self.run(self.world.peek())
        size = sum(1 + len(one["key"]) for one in messages)
        for entries in self.model.groups.values():
            size += sum(1 + len(e.key) for e in entries.values() if e.status == "dead" or (e.private and e.open))
        assert self.run(self.world.stats())["bytes"] == size

    @invariant()
    def a_peek_shows_what_is_unfinished(self):
        for name, entries in self.model.groups.items():
            lines = self.run(self.world.peek(group=name))
            assert {number_of(one["msg_id"]) for one in lines} == {e.number for e in entries.values() if e.open}
            assert [one["state"] for one in lines].count("in_flight") == sum(e.status == "flight" for e in entries.values())
            dead = self.run(self.world.peek(group=name, dead=True))
            assert sorted(number_of(one["msg_id"]) for one in dead) == sorted(
                e.number for e in entries.values() if e.status == "dead"
            )


@pytest.mark.parametrize(("engine", "examples"), [("raft", 40), ("redis", 10)])
def test_operations_against_the_model(engine, examples, open_world):
    machine = type("Machine", (OperationsAgainstModel,), {"open_world": staticmethod(lambda: open_world(engine, partitions=1))})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            # Each step asks a server, so shrinking would take minutes.
            phases=(Phase.generate,),
        ),
    )
