"""The broker behaves as a naive model, for any sequence of steps, and so does a restored broker."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dss_dev.queue_model import BACKOFF_MS, MAX_ATTEMPTS, UNCOUNTED_MAX, NaiveQueue, Waiting
from dss_dev.queue_recount import recounted_usage
from dss_queue.core import group as groups
from dss_queue.core.broker import Broker
from dss_queue.core.commands import (
    Ack,
    Consume,
    ConsumeRuns,
    Extend,
    GiveBack,
    MarkReceived,
    Nack,
    NewMessage,
    PeekQuery,
    Publish,
    Purge,
    PutTopic,
    Redrive,
    SetTopic,
)
from dss_queue.core.engines import ConsumeAfterEngine, EngineClosed, EngineForgotten, EngineLeft, EngineUse
from dss_queue.core.inspection import peek, stats
from dss_queue.core.records import message_id
from dss_queue.core.topic_commands import DeleteGroup, DeleteTopic, PutGroup
from dss_raft.replication.machine import Origin, Resolved

TOPIC = "t"
SETTINGS = {"max_attempts": MAX_ATTEMPTS, "backoff_ms": BACKOFF_MS, "retention_ms": 0}
GROUPS = st.sampled_from(["g1", "g2", "g3"])
KEYS = st.sampled_from(["", "", "a", "b"])
NODES = st.sampled_from(["n1", "n2"])
ATTEMPTS = st.sampled_from(["", "", "", "x", "y"])


def number_of(msg_id: str) -> int:
    index, n = msg_id.split("-")
    return int(index) << 24 | int(n)


class QueueAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        # The twin applies the same entries and is never restored.
        self.broker, self.twin, self.model = Broker(), Broker(), NaiveQueue()
        # Small enough that a test reaches it.
        self.uncounted_max, groups.UNCOUNTED_MAX = groups.UNCOUNTED_MAX, UNCOUNTED_MAX
        self.at, self.index, self.seq = 1000, 0, 0
        self.origins: list[Origin] = []
        self.answered: dict[Origin, Any] = {}
        self.receipts: list[tuple[str, str, str]] = []
        self.ids: list[str] = ["1-0"]
        self.apply(PutTopic(topic=TOPIC, **SETTINGS))
        for keys, name in ((["", "a", "a"], "g1"), (["b", "", "a", "a"], "g2")):
            self.publish_all(keys, 0)
            self.consume_as(name, 2, 0, 10, "x", "n1")

    def teardown(self) -> None:
        groups.UNCOUNTED_MAX = self.uncounted_max

    # -- driving

    def begin(self) -> None:
        self.index += 1
        self.model.at = self.at
        for broker in (self.broker, self.twin):
            broker.expire(self.at, self.index)
        self.model.expire()

    def apply(self, command, node="n1"):
        self.begin()
        self.seq += 1
        origin = Origin(node, 1, self.seq)
        self.origins.append(origin)
        self.twin.apply(command, self.at, self.index, origin)
        return self.broker.apply(command, self.at, self.index, origin), origin

    def end(self) -> None:
        self.model.serve()
        self.twin.take_events()
        for event in self.broker.take_events():
            if isinstance(event, Resolved):
                assert event.waiter not in self.answered
                self.answered[event.waiter] = self.told(event.result)
        assert self.answered == self.model.answers

    def told(self, result):
        """An answer in the terms of the model. Receipts come from the broker, so the model copies them."""
        if result.code:
            return result.code
        for message in result.body["messages"]:
            number = number_of(message["msg_id"])
            for entries in self.model.groups.values():
                entry = entries.get(number)
                if entry is not None and entry.status == "flight" and self.is_of(entry, message):
                    entry.receipt = message["receipt"]
                    self.receipts.append((entry.handout.group, message["msg_id"], message["receipt"]))
        if not result.body["messages"]:
            return result.body["empty_reason"]
        return [(number_of(message["msg_id"]), message["attempt"]) for message in result.body["messages"]]

    def is_of(self, entry, message):
        group = self.broker.topics[TOPIC].groups[entry.handout.group]
        delivery = group.in_flight.get(entry.number)
        return delivery is not None and message["receipt"].endswith(f".{delivery.serial:x}")

    # -- rules

    @rule(keys=st.lists(KEYS, min_size=1, max_size=3), delay=st.sampled_from([0, 0, 0, 5, 40]))
    def publish(self, keys, delay):
        self.publish_all(keys, delay)

    def publish_all(self, keys, delay):
        messages = [NewMessage(TOPIC, b"0", key, 1 if key else -1, delay, "", b"") for key in keys]
        result, _ = self.apply(Publish(messages=messages))
        if self.model.is_elsewhere:
            assert result.code == "on_engine"
            self.end()
            return
        for key, one in zip(keys, result.body["messages"], strict=True):
            self.ids.append(one["msg_id"])
            self.model.publish(number_of(one["msg_id"]), key, delay)
        self.model.settle()
        self.end()

    @rule(
        name=GROUPS,
        count=st.sampled_from([1, 1, 2, 5]),
        timeout=st.sampled_from([0, 0, 15, 60]),
        visibility=st.sampled_from([10, 30, 100]),
        attempt=ATTEMPTS,
        node=NODES,
        per_key=st.sampled_from([1, 2, 5]),
    )
    def consume(self, name, count, timeout, visibility, attempt, node, per_key):
        self.consume_as(name, count, timeout, visibility, attempt, node, per_key)

    @rule(data=st.data(), visibility=st.sampled_from([10, 100]))
    def repeat_an_attempt(self, data, visibility):
        attempts = [(o.group, o.attempt_id) for o in self.model.waiters if o.attempt_id]
        for name, entries in self.model.groups.items():
            attempts += [(name, e.handout.attempt_id) for e in entries.values() if e.status == "flight" and e.handout.attempt_id]
        if attempts:
            name, attempt = data.draw(st.sampled_from(sorted(set(attempts))))
            self.consume_as(name, 2, 0, visibility, attempt, "n2")

    def consume_as(self, name, count, timeout, visibility, attempt, node, per_key=1):
        fields = {"topic": TOPIC, "group": name, "max_messages": count, "timeout_ms": timeout}
        fields |= {"visibility_ms": visibility, "attempt_id": attempt}
        command = Consume(**fields) if per_key == 1 else ConsumeRuns(**fields, max_per_key=per_key)
        use = self.broker.topics[TOPIC].engine if TOPIC in self.broker.topics else None
        if use is not None and use.is_leaving:
            assert self.apply(msgspec.structs.replace(command, attempt_id=""), node)[0].code == "on_engine"
            fields["max_per_key"] = per_key
            command = ConsumeAfterEngine(**fields, incarnation=use.incarnation)
        result, origin = self.apply(command, node)
        model = self.model
        model.group(name)
        w = Waiting(origin, name, self.at + timeout, visibility, count, attempt, per_key)
        again = []
        if attempt:
            for old in [o for o in model.waiters if (o.group, o.attempt_id) == (name, attempt)]:
                model.waiters.remove(old)
                model.answers[old.origin] = model.reason(name)
            again = self.model.in_flight_of(name, attempt)
        if again:
            for entry in again:
                entry.due_ms, entry.visibility_ms = self.at + visibility, visibility
            again[0].handout.origin = origin
            expected = [(e.number, e.attempts) for e in again]
        elif entries := model.hand_out(w):
            expected = [(e.number, e.attempts) for e in entries]
        elif model.goes_on_with_engine(name):
            expected = "on_engine"
        elif timeout:
            model.waiters.append(w)
            expected = None
        else:
            expected = model.reason(name)
        assert (None if result is None else self.told(result)) == expected
        self.end()

    @property
    def has_left(self) -> bool:
        """Something is left in the log."""
        return bool(self.model.numbers) or any(e.open for g in self.model.groups.values() for e in g.values())

    @rule(
        data=st.data(),
        status=st.sampled_from(["flight", "flight", "ready", "waiting"]),
        what=st.sampled_from(["ack", "nack", "transact", "leave", "mark"]),
    )
    def end_a_known_delivery(self, data, status, what):
        """Acts on messages that are in flight, or that came back and may still be acked by their last consumer."""
        known = [
            (name, e.number) for name, g in self.model.groups.items() for e in g.values() if e.status == status and e.receipt
        ]
        if known:
            name, number = data.draw(st.sampled_from(known))
            getattr(self, what)(data, name, f"{number >> 24}-{number % 2**24}", self.model.groups[name][number].receipt)
            self.end()

    @rule(
        data=st.data(),
        name=GROUPS,
        with_receipt=st.booleans(),
        what=st.sampled_from(["ack", "ack", "transact", "nack", "extend", "leave", "mark", "mark"]),
    )
    def end_delivery(self, data, name, with_receipt, what):
        receipt = None
        if self.receipts and data.draw(st.integers(0, 3)):
            name, msg_id, receipt = data.draw(st.sampled_from(self.receipts[-6:]))
            receipt = receipt if with_receipt else None
        else:
            msg_id = data.draw(st.sampled_from(self.ids[-6:]))
        getattr(self, what)(data, name, msg_id, receipt)
        self.end()

    def ack(self, data, name, msg_id, receipt):
        result, _ = self.apply(Ack(topic=TOPIC, group=name, msg_id=msg_id, receipt=receipt))
        entry, is_stale = self.model.held(name, number_of(msg_id), receipt)
        if is_stale:
            assert result.code == "stale_receipt"
            return
        assert result.body["acked"] == (entry is not None)
        if entry is not None:
            self.model.finish(name, entry, "done")

    def transact(self, data, name, msg_id, receipt):
        """An ack that also publishes."""
        key = data.draw(KEYS)
        publish = [NewMessage(TOPIC, b"0", key, 1 if key else -1, 0, "", b"")]
        result, _ = self.apply(Ack(topic=TOPIC, group=name, msg_id=msg_id, receipt=receipt, publish=publish))
        entry, is_stale = self.model.held(name, number_of(msg_id), receipt)
        if is_stale:
            assert result.code == "stale_receipt"
            return
        if entry is not None and self.model.is_elsewhere:
            assert result.code == "on_engine"
            return
        assert (result.body["acked"], len(result.body["published"])) == (entry is not None, int(entry is not None))
        if entry is not None:
            self.ids.append(result.body["published"][0]["msg_id"])
            self.model.publish(number_of(self.ids[-1]), key, 0)
            self.model.finish(name, entry, "done")
            self.model.settle()

    def nack(self, data, name, msg_id, receipt):
        how = data.draw(st.sampled_from(["plain", "delay", "dead", "silent"]))
        delay = {"delay": 25, "silent": 0}.get(how)
        command = Nack(
            topic=TOPIC, group=name, msg_id=msg_id, receipt=receipt, delay_ms=delay, dead=how == "dead", silent=how == "silent"
        )
        result, _ = self.apply(command)
        entry, is_stale = self.model.held(name, number_of(msg_id), receipt)
        if is_stale:
            assert result.code == "stale_receipt"
            return
        nacked = entry is not None and entry.status == "flight"
        assert result.body["nacked"] == nacked
        if nacked and how == "silent":
            entry.attempts -= 1
            self.model.give_back(name, entry, 0)
        elif nacked:
            self.model.fail(name, entry, delay, rejected=how == "dead")

    def leave(self, data, name, msg_id, receipt):
        """A subscriber disconnects."""
        receipt = receipt or "1-0.99"
        self.apply(GiveBack(topic=TOPIC, group=name, msg_ids=[msg_id], receipts=[receipt]))
        entry, _ = self.model.held(name, number_of(msg_id), receipt)
        if entry is not None and entry.status == "flight":
            self.model.not_received(name, entry)

    def mark(self, data, name, msg_id, receipt):
        receipt, received = receipt or "1-0.99", data.draw(st.booleans())
        self.apply(MarkReceived(topic=TOPIC, group=name, msg_ids=[msg_id], receipts=[receipt], received=received))
        entry, _ = self.model.held(name, number_of(msg_id), receipt)
        if entry is not None and entry.status == "flight":
            entry.received = received

    def extend(self, data, name, msg_id, receipt):
        result, _ = self.apply(Extend(topic=TOPIC, group=name, msg_id=msg_id, receipt=receipt, visibility_ms=50))
        entry, _ = self.model.held(name, number_of(msg_id), receipt)
        if entry is None or entry.status != "flight":
            assert result.code == "stale_receipt"
        else:
            entry.due_ms, entry.visibility_ms, entry.received = self.at + 50, 50, True
            assert result.body["visible_until_ms"] == entry.due_ms

    @rule(data=st.data(), name=GROUPS, start=st.sampled_from(["first", "now", "message"]))
    def declare(self, data, name, start):
        msg_id = data.draw(st.sampled_from(self.ids[-8:])) if start == "message" else None
        command = PutGroup(topic=TOPIC, group=name, start="first" if msg_id else start, msg_id=msg_id)
        result, _ = self.apply(command)
        created = name not in self.model.groups
        entries = self.model.group(name, number_of(msg_id) if msg_id else {"first": 0, "now": 1 << 100}[start])
        assert result.body == {"created": created, "pending": sum(entry.open for entry in entries.values())}
        self.end()

    @rule(name=GROUPS, really=st.integers(0, 2))
    def delete_group(self, name, really):
        if really:
            return
        result, _ = self.apply(DeleteGroup(topic=TOPIC, group=name))
        assert result.body["deleted"] == (name in self.model.groups)
        if name in self.model.groups:
            self.model.delete_group(name)
        self.end()

    @rule(keeps=st.booleans(), really=st.integers(0, 2))
    def keep_for_later_groups(self, keeps, really):
        """For longer than any test; that it ends is tested elsewhere."""
        if really:
            return
        keep_ms = 10**9 if keeps else 0
        result, _ = self.apply(PutTopic(topic=TOPIC, **SETTINGS, keep_ms=keep_ms))
        if self.model.is_on_engine and keeps:
            assert result.code == "not_on_engine"
        else:
            self.model.keeps = keeps
            self.model.drop_finished()
        self.end()

    @rule(ms=st.sampled_from([1, 5, 10, 20, 60]))
    def time_passes(self, ms):
        self.at += ms
        self.begin()
        self.end()

    @rule(data=st.data())
    def cancel(self, data):
        origin = data.draw(st.sampled_from(self.origins[-5:]))
        self.begin()
        for broker in (self.broker, self.twin):
            broker.cancel(origin, self.at, self.index)
        self.model.waiters = [w for w in self.model.waiters if w.origin != origin]
        for entries in self.model.groups.values():
            for entry in list(entries.values()):
                if entry.status == "flight" and entry.handout.origin == origin:
                    entry.attempts -= 1
                    self.model.give_back_one(entry, 0)
        self.end()

    @rule(node=NODES)
    def node_restarts(self, node):
        self.begin()
        for broker in (self.broker, self.twin):
            broker.node_restarted(node, self.at, self.index)
        self.model.waiters = [w for w in self.model.waiters if w.origin.node != node]
        self.end()

    @rule()
    def leader_changes(self):
        self.index += 1
        for broker in (self.broker, self.twin):
            broker.rearm(self.at, self.index)
        for entries in self.model.groups.values():
            for entry in entries.values():
                if entry.status == "flight":
                    entry.due_ms = self.at + entry.visibility_ms

    @rule(name=GROUPS)
    def redrive(self, name):
        result, _ = self.apply(Redrive(topic=TOPIC, group=name))
        dead = [e for e in self.model.groups.get(name, {}).values() if e.status == "dead"]
        assert result.body["redriven"] == len(dead)
        for entry in dead:
            entry.status, entry.private, entry.attempts, entry.receipt, entry.ready_ms = "ready", True, 0, None, 0
            entry.uncounted = 0
        self.model.settle()
        self.end()

    @rule(really=st.integers(0, 9))
    def purge(self, really):
        if not really:
            self.purge_all()

    def purge_all(self):
        result, _ = self.apply(Purge(topic=TOPIC))
        private = sum(e.private and e.open for g in self.model.groups.values() for e in g.values())
        assert result.body["purged"] == len(self.model.numbers) + private
        self.model.numbers = []
        for entries in self.model.groups.values():
            for entry in entries.values():
                if entry.status != "dead":
                    entry.status = "done"
        self.end()

    @rule()
    def restore(self):
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(self.broker.snapshot()))
        restored = Broker()
        restored.restore(state)
        assert restored.snapshot() == self.broker.snapshot()
        assert restored.next_deadline_ms() == self.broker.next_deadline_ms()
        self.broker = restored

    # -- invariants

    @invariant()
    def the_restored_broker_is_the_same(self):
        assert self.broker.snapshot() == self.twin.snapshot()

    @invariant()
    def nothing_is_lost(self):
        topic = stats(self.broker, TOPIC, self.at)
        assert topic["messages"] == len(self.model.numbers)
        lines = {line["group"]: line for line in topic["groups"]}
        assert lines.keys() == self.model.groups.keys()
        for name, entries in self.model.groups.items():
            line = lines[name]
            known = {
                "in_flight": sum(e.status == "flight" for e in entries.values()),
                "delayed": self.model.delayed(name),
                "dead": sum(e.status == "dead" for e in entries.values()),
            }
            known["ready"] = sum(e.open for e in entries.values()) - known["in_flight"] - known["delayed"]
            assert {what: line[what] for what in known} == known

    @invariant()
    def one_run_at_a_time_for_a_key(self):
        for group in self.broker.topics[TOPIC].groups.values():
            runs = {(d.message.key, id(d.handout)) for d in group.in_flight.values() if d.message.key}
            assert len(runs) == len({key for key, _ in runs})

    @invariant()
    def a_run_is_in_order(self):
        for group in self.broker.topics[TOPIC].groups.values():
            private = group.backlog.private
            for handout in {id(d.handout): d.handout for d in group.in_flight.values()}.values():
                for key in ("a", "b"):
                    run = [n for n in handout.numbers if n in group.in_flight and group.in_flight[n].message.key == key]
                    assert run == sorted(run, key=lambda n: (n not in private, n))

    @invariant()
    def bytes_are_accounted_for(self):
        topic = self.broker.topics[TOPIC]
        kept = [*topic.messages.by_number.values()]
        for group in topic.groups.values():
            kept += [*group.backlog.private.values(), *group.dead.values()]
        assert topic.messages.bytes == sum(one.size for one in kept)
        for broker in (self.broker, self.twin):
            assert broker.usage() == recounted_usage(broker)

    @invariant()
    def a_peek_takes_nothing(self):
        before = self.broker.snapshot()
        for name in ("", *self.model.groups):
            peek(self.broker, PeekQuery(topic=TOPIC, group=name, dead=bool(name), limit=3), self.at)
            peek(self.broker, PeekQuery(topic=TOPIC, group=name, limit=3), self.at)
        assert self.broker.snapshot() == before

    @invariant()
    def each_message_is_found_by_its_id(self):
        topic = self.broker.topics[TOPIC]
        for name, group in topic.groups.items():
            numbers = {*topic.messages.by_number, *group.backlog.private, *group.dead}
            queries = [PeekQuery(topic=TOPIC, group=name, msg_id=message_id(number)) for number in numbers]
            found = [line["state"] for query in queries for line in peek(self.broker, query, self.at)]
            assert found.count("dead") == len(group.dead)
            assert len(found) - found.count("dead") == group.backlog.pending
            assert found.count("in_flight") == len(group.in_flight)

    @invariant()
    def a_peek_of_a_group_shows_the_first_ones_that_it_has_not_finished(self):
        for name, entries in self.model.groups.items():
            unfinished = sorted(entry.number for entry in entries.values() if entry.open)
            for limit in (1, 3, 100):
                lines = peek(self.broker, PeekQuery(topic=TOPIC, group=name, limit=limit), self.at)
                assert [number_of(line["msg_id"]) for line in lines] == unfinished[:limit]


class QueueThatMovesAgainstModel(QueueAgainstModel):
    """The topic goes to the engine `redis` and back at any time. What is there is not part of the log."""

    @initialize(is_empty=st.booleans())
    def start(self, is_empty: bool) -> None:
        super().start()
        #: the topic's stay on the engine, and those whose keys are not deleted yet
        self.stay: int | None = None
        self.abandoned: list[int] = []
        if is_empty:
            self.purge_all()

    @property
    def topic(self):
        return self.broker.topics[TOPIC]

    @rule(acks=st.sampled_from(["primary", "fsync"]))
    def move_to_the_engine(self, acks):
        result, _ = self.apply(SetTopic(topic=TOPIC, **SETTINGS, engine="redis", acks=acks))
        if self.stay is not None and not self.model.is_on_engine:
            assert result.code == "moving"
        else:
            assert result.body["engine"] == "redis"
            if self.stay is None:
                self.stay = self.topic.engine.incarnation
            self.model.is_on_engine, self.model.keeps = True, False
            self.model.drop_finished()
        self.end()

    @rule()
    def purge_more_often(self):
        self.purge_all()

    @rule(name=GROUPS)
    def wait(self, name):
        self.consume_as(name, 1, 60, 30, "", "n1")

    @rule(name=GROUPS)
    def finish_what_is_in_flight(self, name):
        for entry in [e for e in self.model.groups.get(name, {}).values() if e.status == "flight"]:
            self.ack(None, name, message_id(entry.number), entry.receipt)
            self.end()

    @precondition(lambda self: self.model.is_on_engine)
    @rule()
    def move_to_the_log(self):
        result, _ = self.apply(SetTopic(topic=TOPIC, **SETTINGS, engine="raft"))
        if self.has_left:
            # What comes would be published behind what is left from before, and both would overtake what is on the engine.
            assert result.code == "moving"
        else:
            self.model.leave_engine()
        self.end()

    @precondition(lambda self: self.stay is None)
    @rule(key=KEYS)
    def there_and_back(self, key):
        """A message that comes then would overtake one that a node behind publishes on the engine."""
        self.purge_all()
        self.move_to_the_engine("primary")
        self.move_to_the_log()
        self.publish_all([key], 0)

    @precondition(lambda self: self.stay is not None)
    @rule(wrong=st.sampled_from([0, 0, 1]))
    def the_engine_is_closed(self, wrong):
        """A node says so once or more, in time or not."""
        result, _ = self.apply(EngineClosed(topic=TOPIC, incarnation=self.stay + wrong))
        assert result.body["closed"] == (not wrong and not self.model.is_on_engine)
        if result.body["closed"]:
            self.model.is_closing = False
        self.end()

    @rule()
    def change_settings_but_not_the_engine(self):
        result, _ = self.apply(SetTopic(topic=TOPIC, **SETTINGS))
        assert result.body["engine"] == ("redis" if self.model.is_on_engine else "raft")
        self.model.keeps = False
        self.model.drop_finished()
        self.end()

    @precondition(lambda self: self.stay is not None)
    @rule(wrong=st.sampled_from([0, 0, 1]))
    def nothing_is_left_on_the_engine(self, wrong):
        result, _ = self.apply(EngineLeft(topic=TOPIC, incarnation=self.stay + wrong))
        assert result.body["left"] == (not wrong and not self.model.is_on_engine)
        if result.body["left"]:
            self.abandoned.append(self.stay)
            self.stay, self.model.is_closing = None, False
        self.end()

    @rule(data=st.data())
    def keys_are_deleted(self, data):
        named = data.draw(st.lists(st.sampled_from([*self.abandoned, 0]), max_size=3))
        result, _ = self.apply(EngineForgotten(incarnations=named))
        assert result.body["forgotten"] == len({*named} - {0})
        self.abandoned = [one for one in self.abandoned if one not in named]
        self.end()

    @rule(really=st.integers(0, 3))
    def delete_the_topic(self, really):
        if really:
            return
        self.apply(DeleteTopic(topic=TOPIC))
        for name in list(self.model.groups):
            self.model.delete_group(name)
        self.end()
        self.abandoned += [] if self.stay is None else [self.stay]
        self.stay = None
        self.apply(PutTopic(topic=TOPIC, **SETTINGS))
        self.model.numbers, self.model.published, self.model.keeps = [], 0, False
        self.model.is_on_engine = self.model.is_closing = False
        self.end()

    @invariant()
    def the_log_stores_what_was_published_before_or_after(self):
        assert self.topic.published == self.model.published

    @invariant()
    def no_consume_waits_for_what_the_engine_has(self):
        for group in self.topic.groups.values():
            assert not (group.waiters and group.goes_on_with_engine)

    @invariant()
    def the_engine_is_known(self):
        is_on_engine = self.model.is_on_engine
        use = None if self.stay is None else EngineUse(self.stay, not is_on_engine, not self.model.is_elsewhere)
        assert self.topic.engine == use
        assert self.topic.messages.settings.engine == ("redis" if is_on_engine else "raft")
        assert self.broker.registry.abandoned == dict.fromkeys(self.abandoned, TOPIC)
        assert self.stay is None or not self.topic.is_idle

    @invariant()
    def what_is_left_in_the_log_is_seen(self):
        expected = None if self.stay is None else "raft" if self.has_left else None
        assert self.topic.moving_from == (expected if self.model.is_on_engine or self.stay is None else "redis")


TestQueueThatMovesAgainstModel = QueueThatMovesAgainstModel.TestCase
TestQueueThatMovesAgainstModel.settings = settings(
    max_examples=100, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, suppress_health_check=list(HealthCheck))
