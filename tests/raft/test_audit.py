"""The audit trail: the records of the replicated state, and the record of a call before the call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dss_api.caller import ANYONE, Caller
from dss_api.errors import Refused
from dss_api.operation import Operation, named
from dss_api.request_id import Identified, RequestId
from dss_api.result import Result
from dss_api.rights import EVERYTHING
from dss_api.routes import Route
from dss_dev.live_rows import rows_here
from dss_project.registry import operations
from dss_raft import audit_log
from dss_raft.audit_log import AuditLog
from dss_raft.audit_operations import AuditQuery, audit
from dss_raft.django_app.admin import take_audit
from dss_raft.replication.audit import REQUEST_LENGTH_MAX, AuditTrail, RecordCall
from dss_raft.replication.limits import StateLimits
from dss_raft.replication.machine import Origin
from dss_raft.versions import LATEST

ALICE = Caller("user alice", EVERYTHING)


def record(**fields: Any) -> RecordCall:
    given = {"by": "a", "via": "http", "address": "192.0.2.1", "node": "n", "operation": "queue.purge", "request": "{}", **fields}
    return RecordCall(**given)


def trail_with(version: int = LATEST, **maxima: int) -> AuditTrail:
    limits = StateLimits(maxima)
    limits.cluster_version = version
    return AuditTrail(limits)


def filled(count: int, **maxima: int) -> AuditTrail:
    trail = trail_with(**maxima)
    for index in range(1, count + 1):
        assert trail.apply(record(reason=str(index)), index * 10, index, Origin("n", 1, index)) == Result()
    return trail


def test_the_oldest_records_make_room() -> None:
    trail = filled(5, audit_records_max=3)
    assert [(one.index, one.at_ms, one.reason) for one in trail.after(0, 10)] == [(3, 30, "3"), (4, 40, "4"), (5, 50, "5")]
    assert trail.dropped == 2
    assert [one.index for one in trail.latest(2)] == [5, 4]
    assert [one.index for one in trail.after(3, 1)] == [4]
    small = filled(5, audit_bytes_max=2 * filled(1).bytes)
    assert (len(small.records), small.dropped) == (2, 3)


def test_the_admin_lists_the_latest_record_first() -> None:
    taken = rows_here(lambda: take_audit(filled(3)))
    assert [(row.index, row.reason, row.at.timestamp()) for row in taken if row.at] == [
        (3, "3", 0.03),
        (2, "2", 0.02),
        (1, "1", 0.01),
    ]


@pytest.mark.parametrize("maxima", [{"audit_records_max": 6}, {"audit_bytes_max": 6 * filled(1).bytes}])
def test_a_caller_that_makes_many_calls_pushes_out_its_own_records_only(maxima: dict[str, int]) -> None:
    trail = trail_with(**maxima)
    callers = ["b", "b", "c", *["a"] * 50, "d"]
    for index, by in enumerate(callers, 1):
        trail.apply(record(by=by), index, index, Origin("n", 1, index))
    assert [(one.by, one.index) for one in trail.records] == [("b", 1), ("b", 2), ("c", 3), ("a", 52), ("a", 53), ("d", 54)]
    assert trail.dropped == len(callers) - 6
    copy = trail_with(**maxima)
    copy.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(trail.snapshot())))
    for one in (trail, copy):
        for index, by in enumerate("eefa", 60):
            one.apply(record(by=by), index, index, Origin("n", 1, index))
    assert (copy.records, copy.dropped, copy.usage()) == (trail.records, trail.dropped, trail.usage())
    assert {one.by for one in trail.records} >= {"c", "d", "f"}


def test_before_version_5_the_oldest_record_of_all_makes_room_as_with_older_members() -> None:
    trail = trail_with(4, audit_records_max=3)
    for index, by in enumerate("baaaa", 1):
        trail.apply(record(by=by), index, index, Origin("n", 1, index))
    assert [one.index for one in trail.records] == [3, 4, 5]


def test_a_trail_with_a_lower_limit_gets_shorter_in_steps() -> None:
    trail = filled(450)
    trail._limits.maxima["audit_records_max"] = 10
    lengths = []
    for index in range(451, 457):
        trail.apply(record(), index, index, Origin("n", 1, index))
        lengths.append(len(trail.records))
    assert lengths == [351, 252, 153, 54, 10, 10]


def test_a_reader_misses_no_record_of_an_entry_with_several() -> None:
    trail = AuditTrail()
    indexes = [5, 7, 7, 7, 8, 9, 9]
    for number, index in enumerate(indexes):
        trail.apply(record(reason=str(number)), index, index, Origin("n", 1, number))
    read: list[str] = []
    at = 0
    while page := trail.after(at, 2):
        read += [one.reason for one in page]
        at = page[-1].index
    assert read == [str(number) for number in range(len(indexes))]


def test_a_copy_from_a_snapshot_is_the_same() -> None:
    trail = filled(5, audit_records_max=3)
    copy = AuditTrail()
    copy.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(trail.snapshot())))
    assert (copy.after(0, 9), copy.dropped, copy.usage()) == (trail.after(0, 9), trail.dropped, trail.usage())
    copy.restore({})
    assert (copy.after(0, 9), copy.dropped, copy.usage()) == ([], 0, {"audit": 0})


# ---------------------------------------------------------------------- before the call


class Node:
    """Applies what is submitted; without a majority it refuses."""

    def __init__(self, version: int = 4) -> None:
        self.node_id = "node-1"
        self.is_running = True
        self.services: dict[str, Any] = {}
        self.replica = SimpleNamespace(cluster_version=version)
        self.trail = AuditTrail()
        self.submitted: list[str] = []
        self.has_majority = True
        AuditLog(self)  # type: ignore[arg-type]

    async def submit(self, command: Any, **options: Any) -> Result:
        if not self.has_majority:
            raise Refused("no_quorum")
        self.submitted.append(type(command).__struct_config__.tag)
        if isinstance(command, RecordCall):
            self.trail.apply(command, 7, len(self.submitted), Origin("n", 1, 1))
        return Result({"released": False, "holders": []}, index=len(self.submitted))

    async def start_election(self, force: bool) -> None:
        self.submitted.append("election")

    async def read_index(self) -> None:
        pass

    def machine(self, name: str) -> AuditTrail:
        assert name == "audit"
        return self.trail


def request_of(operation: Operation, **fields: Any) -> Any:
    return msgspec.convert({**operation.example, **fields}, operation.request, strict=False)


async def test_a_record_is_committed_before_the_call_and_names_the_authenticated_caller() -> None:
    node = Node()
    operation = named(operations(), "locks.force_release")
    request = request_of(operation, by="mallory")
    await Route(operation).perform(node, request, ALICE, "websocket", "192.0.2.7")
    assert node.submitted == ["audit.record", "locks.force_release"]
    (one,) = (await audit(node, AuditQuery())).records  # type: ignore[arg-type]
    assert (one.by, one.via, one.address, one.node) == ("user alice", "websocket", "192.0.2.7", "node-1")
    assert (one.operation, one.reason, one.index, one.at_ms) == ("locks.force_release", "worker-1 is gone", 1, 7)
    assert msgspec.json.decode(one.request) == {
        "key": "example/orders/42",
        "reason": "worker-1 is gone",
        "by": "mallory",
        "client": "",
        "fencing_token": None,
    }


async def test_a_call_that_cannot_be_recorded_is_not_carried_out() -> None:
    node = Node()
    node.has_majority = False
    operation = named(operations(), "queue.purge")
    with pytest.raises(Refused, match="no_quorum"):
        await Route(operation).perform(node, request_of(operation), ALICE, "http", "")
    assert node.submitted == []


async def test_an_election_does_not_wait_for_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "RETRY_S", 0)
    node = Node()
    node.has_majority = False
    operation = named(operations(), "raft.start_election")
    await Route(operation).perform(node, request_of(operation), ALICE, "http", "")
    assert node.submitted == ["election"]
    node.has_majority = True
    async with asyncio.timeout(60):
        while not node.trail.records:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert node.trail.records[0].operation == "raft.start_election"


async def test_a_repeatable_call_is_recorded_too() -> None:
    node = Node()
    operation = named(operations(), "locks.force_release")
    request = Identified(request_of(operation), RequestId("s", 1, 0, b""))
    await Route(operation).perform(node, request, ANYONE, "http", "")
    assert [one.by for one in node.trail.records] == ["anyone"]


async def test_below_version_4_calls_are_only_logged() -> None:
    node = Node(version=3)
    operation = named(operations(), "locks.force_release")
    await Route(operation).perform(node, request_of(operation), ALICE, "http", "")
    assert node.submitted == ["locks.force_release"]


async def test_a_long_call_is_cut() -> None:
    node = Node()
    operation = named(operations(), "locks.force_release")
    await Route(operation).perform(node, request_of(operation, reason="é" * 512, by="ü" * 250), ALICE, "http", "x" * 1000)
    (one,) = node.trail.records
    assert len(one.request) <= REQUEST_LENGTH_MAX + 1
    assert one.reason == "é" * 512


def test_which_calls_are_audited() -> None:
    audited = {one.name for one in operations() if one.is_audited}
    assert audited == {
        "raft.start_election",
        "raft.transfer",
        "raft.skip",
        "raft.save_snapshot",
        "raft.add_member",
        "raft.remove_member",
        "raft.set_limits",
        "tokens.create",
        "tokens.rotate",
        "tokens.revoke",
        "users.create",
        "users.change",
        "users.sign_out",
        "users.delete",
        "locks.force_release",
        "queue.topic",
        "queue.topic_delete",
        "queue.group_delete",
        "queue.settings",
        "queue.redrive",
        "queue.purge",
    }
