"""Limits of the replicated state: all nodes have the same ones, a command changes them, and results of sessions have one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dss_api.errors import Refused
from dss_api.result import Result
from dss_dev.sum_machine import Add, Sum, with_sessions
from dss_raft import operations
from dss_raft.replication.commands import OpenSession
from dss_raft.replication.limits import LimitsMachine, SetLimits, StateLimit, StateLimits
from dss_raft.replication.machine import Origin
from dss_raft.replication.replica import Replica
from dss_raft.replication.sessions import SessionTable
from dss_raft.state_usage import UsageAlarm

ORIGIN = Origin("a", 1, 1)


def limits_with(**used: int) -> StateLimits:
    limits = StateLimits()
    for name in used:
        limits.declare(StateLimit(name, 10 * 2**20, "bytes", lambda name=name: used[name]))
    return limits


def set_limits(machine: LimitsMachine, **maxima: int) -> Result:
    result = machine.apply(SetLimits(limits=maxima), 0, 1, ORIGIN)
    assert result is not None
    return result


# --------------------------------------------------------------------- the machine


def test_a_command_changes_the_limits_that_it_names():
    limits = limits_with(a=0, b=0)
    assert set_limits(LimitsMachine(limits), a=2**20).code == ""
    assert limits.maxima == {"a": 2**20, "b": 10 * 2**20}


@pytest.mark.parametrize("maxima", [{"c": 2**20}, {"a": 2**20 - 1}, {"a": 2**50 + 1}, {"b": 2**21, "a": 1}])
def test_a_command_with_a_fault_changes_nothing(maxima):
    limits = limits_with(a=0, b=0)
    before = dict(limits.maxima)
    result = set_limits(LimitsMachine(limits), **maxima)
    assert (result.code, result.body["field"]) == ("invalid", "limits")
    assert limits.maxima == before


def test_a_name_belongs_to_one_machine():
    with pytest.raises(ValueError, match="two limits are called a"):
        limits_with(a=0).declare(StateLimit("a", 1, "count", lambda: 0))


def test_a_refusal_names_the_limit_and_its_maximum():
    result = limits_with(a=0).over_limit("a")
    assert (result.code, result.body["limit"], result.body["maximum"]) == ("over_limit", "a", 10 * 2**20)


def test_a_snapshot_has_all_maxima_so_that_a_new_default_changes_nothing():
    first, second = limits_with(a=0, b=0), StateLimits({"a": 5, "b": 6})
    second.declare(*first.declared.values())
    set_limits(LimitsMachine(first), a=2**20)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(LimitsMachine(first).snapshot()))
    LimitsMachine(second).restore(state)
    assert second.maxima == {"a": 2**20, "b": 10 * 2**20}


def test_a_limit_that_the_snapshot_does_not_have_gets_its_default():
    limits = limits_with(a=0, b=0)
    limits.maxima["b"] = 7
    LimitsMachine(limits).restore({"maxima": {"a": 2**20, "gone": 3}})
    assert limits.maxima == {"a": 2**20, "b": 10 * 2**20}


def test_a_snapshot_of_a_release_without_limits_loads_with_the_defaults():
    old, limits = with_sessions(Replica("a", [Sum()])), StateLimits()
    new = with_sessions(Replica("a", [Sum(), LimitsMachine(limits)]))
    default = limits.maxima["session_bytes_max"]
    limits.maxima["session_bytes_max"] = 1
    new.restore(old.snapshot())
    assert limits.maxima["session_bytes_max"] == default


# ------------------------------------------------------------ the results of sessions


def full_table(maximum: int = 10**9) -> SessionTable:
    table = SessionTable(StateLimits({"session_bytes_max": maximum}))
    for node in ("a", "b"):
        table.open(node, 1, OpenSession(replaces=0))
    return table


def seqs(table: SessionTable, node: str) -> list[int]:
    session = table.get(node)
    assert session is not None
    return list(session.results)


def test_results_above_the_limit_are_dropped_oldest_first_from_the_largest_session():
    table = full_table(100_000)
    table.keep(table.sessions["b"], 1, Result({"text": "x"}))
    for seq in range(1, 8):
        table.keep(table.sessions["a"], seq, Result({"value": bytes(20_000)}))
    assert seqs(table, "a") == [4, 5, 6, 7]
    assert seqs(table, "b") == [1], "a node that confirms its results does not lose them because of another"
    assert table.result_bytes <= 100_000


def test_a_result_above_the_whole_limit_is_not_kept():
    table = full_table(10_000)
    table.keep(table.sessions["a"], 1, Result({"value": bytes(20_000)}))
    assert (seqs(table, "a"), table.result_bytes) == ([], 0)


def test_a_new_incarnation_frees_the_results_of_the_old_one():
    table = full_table()
    table.keep(table.sessions["a"], 1, Result({"value": bytes(20_000)}))
    table.open("a", 2, OpenSession(replaces=1))
    assert table.result_bytes == 0


def test_a_table_above_a_lowered_limit_loads_whole_and_shrinks_with_the_next_result():
    first, second = full_table(), full_table(10_000)
    for seq in (1, 2):
        first.keep(first.sessions["a"], seq, Result({"value": bytes(20_000)}))
    second.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(first.snapshot())))
    assert seqs(second, "a") == [1, 2]
    second.keep(second.sessions["b"], 1, Result())
    assert (seqs(second, "a"), seqs(second, "b")) == ([], [1])


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.sampled_from("ab"), st.integers(1, 30), st.text(max_size=200)),
        st.tuples(st.just("drop"), st.sampled_from("ab"), st.integers(1, 30), st.just("")),
        st.tuples(st.just("open"), st.sampled_from("ab"), st.integers(1, 3), st.just("")),
    ),
    max_size=60,
)


@given(_steps, st.sampled_from([2_000, 5_000, 10**9]))
def test_the_account_is_that_of_a_table_that_loaded_the_state(steps, maximum):
    table = full_table(maximum)
    for what, node, number, text in steps:
        if what == "keep":
            table.forget(table.sessions[node], [number])
            table.keep(table.sessions[node], number, Result({"text": text, "rows": [[1, None]]}, index=number))
        elif what == "drop":
            table.forget(table.sessions[node], [number])
        else:
            table.open(node, number, OpenSession())
    copy = SessionTable()
    copy.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(table.snapshot()), strict=False))
    assert copy.usage() == table.usage()
    assert copy.result_bytes == table.result_bytes <= maximum


# ------------------------------------------------------------------------- the alarm


def test_a_limit_is_reported_once_at_80_percent_and_once_below_70_percent():
    used = {"a": 0}
    limits = StateLimits()
    limits.declare(StateLimit("a", 100, "count", lambda: used["a"]))
    alarm = UsageAlarm(limits)
    with capture_logs() as logs:
        for used["a"] in (79, 80, 95, 75, 85, 70, 69, 75, 60):
            alarm.check()
    assert [(line["event"], line["used"]) for line in logs] == [("raft.limit_near", 80), ("raft.limit_calm", 69)]


# ---------------------------------------------------------------------- the operations


async def test_a_limit_that_one_node_sets_holds_on_all_nodes(make_cluster):
    cluster = make_cluster(machines=lambda: [Sum(), LimitsMachine(StateLimits())])
    await cluster.start()
    await cluster.leader()
    follower = await cluster.follower()
    answer = await operations.set_limits(follower, SetLimits(limits={"session_bytes_max": 2**20}))
    row = next(row for row in answer.limits if row.name == "session_bytes_max")
    assert (row.name, row.maximum, row.unit) == ("session_bytes_max", 2**20, "bytes")
    assert answer.index > 0
    await follower.submit(Add(amount=1))
    for node in cluster.nodes.values():
        await node.read_index()
        shown = await operations.limits(node, operations.NoParameters())
        row = next(row for row in shown.limits if row.name == "session_bytes_max")
        assert row.maximum == 2**20
        assert 0 < row.used == shown.usage["session_results"]
    with pytest.raises(Refused) as refused:
        await operations.set_limits(follower, SetLimits(limits={"nonsense": 2**20}))
    assert (refused.value.code, refused.value.extra) == ("invalid", {"field": "limits"})
