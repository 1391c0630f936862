"""Locks as the live view shows them: the most urgent rows first, in a bounded number, and who waits for whom around one key."""

from __future__ import annotations

from functools import partial

from dss_console.live import panels
from dss_console.live.answers import LockDetail
from dss_console.live.texts import lock_link
from dss_dev.executed_lines import lines_run
from dss_locks.core.commands import Acquire
from dss_locks.core.table import LockTable
from dss_raft.replication.machine import Origin

AT_MS = 1_000_000


def acquire(table: LockTable, number: int, key: str, client: str, wait_ms: int = 0) -> None:
    table.apply(Acquire(key=key, client=client, ttl_ms=60_000, wait_ms=wait_ms), AT_MS, number, Origin("node-1", 1, number))


def make_table() -> LockTable:
    """alice has a, bob has b and waits for a, carol waits for b; zoe has z, for which no request waits."""
    table = LockTable()
    for number in range(1, 20):
        acquire(table, number, f"free-{number}", f"client-{number}")
    acquire(table, 20, "z", "zoe")
    acquire(table, 21, "a", "alice")
    acquire(table, 22, "b", "bob")
    acquire(table, 23, "a", "bob", wait_ms=20_000)
    acquire(table, 24, "b", "carol", wait_ms=20_000)
    return table


def detail_of(table: LockTable, key: str, now_ms: int = AT_MS) -> LockDetail:
    return panels.lock_detail(table, key, now_ms, (), panels.waits_for(table))


def test_keys_that_are_waited_for_come_first_and_the_rows_are_bounded() -> None:
    panel = panels.locks_panel(make_table(), AT_MS + 5_000, panels.ROWS_FEW)
    assert [row.key for row in panel.rows[:2]] == ["a", "b"]
    assert len(panel.rows) == panels.ROWS_FEW
    assert (panel.keys, panel.waiting) == (22, 2)
    assert panel.summary == "22 keys held or waited for, 2 calls waiting, the longest for 5 s"
    assert panel.more == "14 more: search in the admin"
    first = panel.rows[0]
    assert (first.holders, first.waiters, first.longest_wait, first.left, first.fencing_token) == ("alice", 1, "5 s", "55 s", 21)


def test_an_empty_table() -> None:
    panel = panels.locks_panel(LockTable(), AT_MS, panels.ROWS_FEW)
    assert (panel.summary, panel.rows, panel.more) == ("No lock is held.", [], "")
    assert panels.longest_wait(LockTable(), AT_MS) is None
    assert detail_of(LockTable(), "k").summary == "No client holds it, and no request waits for it."


def test_a_lock_shows_everybody_who_is_connected_with_it() -> None:
    detail = detail_of(make_table(), "b", AT_MS + 5_000)
    assert detail.state == "held"
    assert detail.summary == "Held exclusive by bob, fencing token 22; 1 request waiting."
    assert {(edge.waiter, edge.holder, edge.key) for edge in detail.edges} == {("bob", "alice", "a"), ("carol", "bob", "b")}
    assert "zoe" not in detail.picture
    assert detail.picture.startswith("<svg")
    assert detail.waiters[0].chain == "waits for bob (b), which waits for alice (a)"
    assert detail_of(make_table(), "z").picture == ""


def test_names_are_quoted_in_links() -> None:
    assert lock_link("a b/ä?&") == "/ui/lock?name=a+b%2F%C3%A4%3F%26"


def crowded(size: int) -> LockTable:
    """As many share `k` as wait for it, and as many wait for keys that no page shows."""
    table = LockTable()
    for number in range(1, size + 1):
        table.apply(
            Acquire(key="k", client=f"h{number}", ttl_ms=60_000, mode="shared"), AT_MS, number, Origin("node-1", 1, number)
        )
    for number in range(size + 1, 2 * size + 1):
        acquire(table, number, "k", f"w{number}", wait_ms=20_000)
    for number in range(2 * size + 1, 3 * size + 1):
        acquire(table, number, f"other{number % 10}", f"v{number}", wait_ms=20_000)
    return table


def test_what_a_lock_costs_does_not_depend_on_the_number_of_its_clients() -> None:
    """It is shown between two steps of Raft, to each viewer."""
    few, many = crowded(300), crowded(1200)
    for table in (few, many):
        assert len(detail_of(table, "k").waiters) == panels.DETAIL_ROWS_MAX
    for show in (
        lambda table: detail_of(table, "k"),
        lambda table: detail_of(table, "other1"),
        lambda table: detail_of(table, "nothing"),
        lambda table: panels.locks_panel(table, AT_MS, panels.ROWS_MANY),
    ):
        one, other = (lines_run(partial(show, table)) for table in (few, many))
        assert other <= 2 * one, "it grew with the table"
        assert other < 60_000


def test_the_graph_says_that_it_is_cut() -> None:
    assert not panels.waits_for(make_table())["truncated"]
    assert panels.waits_for(crowded(600))["truncated"]
