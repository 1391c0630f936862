"""An ack that also publishes and releases locks takes effect in one step of the replicated log, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from dss_api.result import Result
from dss_dev.local_cluster import LocalCluster
from dss_dev.sum_machine import with_sessions
from dss_locks.core.commands import Acquire, ForceRelease
from dss_locks.core.table import LockTable
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Ack, Consume, LockRelease, NewMessage, Publish, PutTopic
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.commands import Command
from dss_raft.replication.replica import Replica


class Log:
    """A replica with the lock table and the broker, behind an imitation of the log with one entry per command."""

    def __init__(self) -> None:
        self.replica = with_sessions(self._empty(), "n1")
        self.index = 0
        self.results: dict[int, Result] = {}

    @staticmethod
    def _empty() -> Replica:
        table = LockTable()
        return Replica("n1", [table, Broker(table)])

    def send(self, command: Command) -> int:
        """Apply a command. Returns its number in the session."""
        self.index += 1
        group = encode_group("n1", 1, self.index, [], [encode_command(command)])
        self.replica.apply(Entry(self.index, 1, EntryKind.COMMANDS, encode_batch(1000, [], [group])))
        self.results |= {seq: result for _, seq, result in self.replica.take_outcomes()}
        return self.index

    def do(self, command: Command) -> Result:
        """Apply a command that is answered immediately."""
        return self.results[self.send(command)]

    def restart(self) -> None:
        """Restore the state from its snapshot."""
        data = self.replica.snapshot()
        self.replica = self._empty()
        self.replica.restore(data)

    def stored(self, topic: str) -> int:
        broker: Broker = self.replica.machines["queue"]  # type: ignore[assignment]
        return len(broker.topics[topic].messages.by_number) if topic in broker.topics else 0

    def in_flight(self) -> int:
        broker: Broker = self.replica.machines["queue"]  # type: ignore[assignment]
        return len(broker.topics["orders"].groups["billing"].in_flight)

    def holder(self, key: str) -> str | None:
        table: LockTable = self.replica.machines["locks"]  # type: ignore[assignment]
        lock = table.locks.get(key)
        return lock.holds()[0].client if lock is not None and lock.holder_count() else None


def new(topic: str, value: bytes = b"1") -> NewMessage:
    return NewMessage(topic, value, "", -1, 0, "", b"")


def acquire(client: str, **fields: Any) -> Acquire:
    return Acquire(**{"key": "order-42", "client": client, "ttl_ms": 60_000, **fields})


@pytest.fixture
def log() -> Log:
    """A worker holds a lock, and has a message in flight."""
    log = Log()
    log.token = log.do(acquire("worker")).body["fencing_token"]
    log.do(Publish(messages=[new("orders")]))
    consume = Consume(topic="orders", group="billing", timeout_ms=0, visibility_ms=60_000)
    (log.message,) = log.do(consume).body["messages"]
    return log


def transaction(log: Log, token: int | None = None, **fields: Any) -> Ack:
    release = [LockRelease(key="order-42", client="worker", fencing_token=token)]
    defaults = {"topic": "orders", "group": "billing", "msg_id": log.message["msg_id"], "receipt": log.message["receipt"]}
    return Ack(**{**defaults, "publish": [new("invoices")], "release": release, **fields})


def nothing_happened(log: Log) -> bool:
    return log.in_flight() == 1 and log.stored("invoices") == 0 and log.holder("order-42") == "worker"


@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize("restarted", [False, True])
def test_acks_publishes_and_releases_together(log, with_token, restarted):
    if restarted:
        log.restart()
    result = log.do(transaction(log, log.token if with_token else None))
    assert (result.code, result.body["acked"], result.body["released"]) == ("", True, [True])
    assert len(result.body["published"]) == 1
    assert (log.in_flight(), log.stored("invoices"), log.holder("order-42")) == (0, 1, None)


def test_a_waiter_gets_the_released_lock_in_the_same_step(log):
    waiting = log.send(acquire("next", wait_ms=20_000))
    assert waiting not in log.results
    at = log.send(transaction(log))
    granted = log.results[waiting]
    assert (granted.code, granted.body["fencing_token"], granted.index) == ("", at, at)
    assert log.holder("order-42") == "next"


def test_an_old_token_refuses_the_whole_transaction(log):
    log.do(ForceRelease(key="order-42", client="worker", reason="it hangs", by="admin"))
    log.do(acquire("other"))
    result = log.do(transaction(log, log.token))
    assert (result.code, result.body["keys"]) == ("not_holder", ["order-42"])
    assert (log.in_flight(), log.stored("invoices"), log.holder("order-42")) == (1, 0, "other")


def test_with_a_token_a_lock_that_is_not_held_refuses_it_too(log):
    log.do(ForceRelease(key="order-42", client="worker", reason="it hangs", by="admin"))
    assert log.do(transaction(log, log.token)).code == "not_holder"
    assert (log.in_flight(), log.stored("invoices")) == (1, 0)


def test_without_a_token_a_lock_that_is_not_held_is_ignored(log):
    log.do(ForceRelease(key="order-42", client="worker", reason="it hangs", by="admin"))
    result = log.do(transaction(log))
    assert (result.body["acked"], result.body["released"]) == (True, [False])
    assert log.stored("invoices") == 1


def test_if_one_of_several_locks_is_lost_none_is_released(log):
    other = log.do(acquire("worker", key="stock")).body["fencing_token"]
    releases = [
        LockRelease(key="stock", client="worker", fencing_token=other),
        LockRelease(key="order-42", client="worker", fencing_token=log.token + 1000),
    ]
    result = log.do(transaction(log, release=releases))
    assert (result.code, result.body["keys"]) == ("not_holder", ["order-42"])
    assert nothing_happened(log)
    assert log.holder("stock") == "worker"


def test_a_stale_receipt_keeps_the_lock(log):
    assert log.do(transaction(log, receipt=f"{log.message['msg_id']}.ff")).code == "stale_receipt"
    assert nothing_happened(log)


def test_a_full_topic_keeps_the_lock(log):
    log.do(PutTopic(topic="invoices", max_bytes=1))
    assert log.do(transaction(log, publish=[new("invoices", b'"too long"')])).code == "over_limit"
    assert nothing_happened(log)


def test_a_repeat_does_not_release_a_lock_acquired_since(log):
    log.do(transaction(log))
    log.do(acquire("worker"))
    again = log.do(transaction(log))
    assert (again.code, again.body) == ("", {"acked": False, "published": [], "released": []})
    assert log.holder("order-42") == "worker"
    assert log.stored("invoices") == 1


def test_several_messages_and_locks_without_publishing(log):
    log.do(Publish(messages=[new("orders")]))
    (second,) = log.do(Consume(topic="orders", group="billing", timeout_ms=0, visibility_ms=60_000)).body["messages"]
    log.do(acquire("worker", key="stock"))
    releases = [LockRelease(key="stock", client="worker"), LockRelease(key="order-42", client="worker")]
    ids = [log.message["msg_id"], second["msg_id"]]
    result = log.do(Ack(topic="orders", group="billing", msg_ids=ids, release=releases))
    assert (result.body["acked"], result.body["published"], result.body["released"]) == (True, [], [True, True])
    assert (log.in_flight(), log.holder("stock"), log.holder("order-42")) == (0, None, None)


@pytest.mark.cluster
def test_on_three_nodes_through_the_api(shared_cluster: LocalCluster):
    first, second, third = shared_cluster.nodes
    held = first.call("POST", "/lock/acquire", {"key": "order-42", "client": "worker"}).json
    first.call("POST", "/queue/publish", {"topic": "orders", "value": 1})
    message = second.call("POST", "/queue/consume", {"topic": "orders", "group": "billing", "timeout_ms": 20_000}).json
    release = {"key": "order-42", "client": "worker", "fencing_token": held["fencing_token"] + 1}
    ack = {"topic": "orders", "group": "billing", "msg_id": message["msg_id"], "receipt": message["receipt"]}
    publish = [{"topic": "invoices", "value": {"of": 1}}]
    refused = third.call("POST", "/queue/ack", {**ack, "publish": publish, "release": [release]})
    assert (refused.status, refused.json["code"], refused.json["keys"]) == (409, "not_holder", ["order-42"])
    release["fencing_token"] -= 1
    done = third.call("POST", "/queue/ack", {**ack, "publish": publish, "release": [release]})
    assert (done.status, done.json["acked"], done.json["released"]) == (200, True, [True])
    for node in shared_cluster.nodes:
        assert node.call("GET", "/lock/status?key=order-42").json["locked"] is False
        assert [one["value"] for one in node.call("GET", "/queue/peek?topic=invoices").json["messages"]] == [{"of": 1}]
