"""A list of 100,000 rows: how much is done in one turn of the event loop, and how much in one piece elsewhere. Counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dss_admin import live_rows
from dss_admin.live_rows import CHUNK, ROWS_MAX, STEPS_MAX, STEPS_PER_TURN, LiveQuerySet, rows_in_turns
from dss_locks.core.commands import Acquire
from dss_locks.core.table import LockTable
from dss_locks.django_app.models import LockRow
from dss_locks.django_app.rows import take_locks
from dss_queue.core.broker import Broker
from dss_queue.core.commands import NewMessage, Publish
from dss_queue.django_app.rows import take_messages
from dss_raft.django_app.admin import snapshot_rows
from dss_raft.django_app.models import MemberRow
from dss_raft.replication.machine import Origin

MANY = 100_000


class Turns:
    """Stands for the loop: counts the turns, and the rows that each of them makes."""

    def __init__(self) -> None:
        self.count = self.most = 0

    def call(self, take: Callable[[], Any]) -> Any:
        self.count += 1
        taken = take()
        if isinstance(taken, list):
            self.most = max(self.most, len(taken))
        return taken


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    found = Turns()
    monkeypatch.setattr(live_rows, "call_in_loop", found.call)
    return found


class Taken(NamedTuple):
    """A row, as a generator copies it."""

    id: str
    number: int
    url: str = ""
    up: bool = True
    outdated: bool = False
    versions: str = ""
    last_contact_ms: int | None = None
    lag: int | None = None

    @property
    def match_index(self) -> int:
        return self.number

    @property
    def role(self) -> str:
        return f"role-{self.number % 3}"


def many() -> Iterator[Taken]:
    for number in range(MANY):
        yield Taken(f"n{number:06}", (number * 7919) % MANY)


def test_each_turn_of_the_loop_makes_few_rows(turns: Turns) -> None:
    rows = rows_in_turns(many)
    assert len(rows) == MANY == ROWS_MAX
    assert turns.most == STEPS_PER_TURN
    assert turns.count > MANY / STEPS_PER_TURN


def test_steps_without_a_row_count(turns: Turns) -> None:
    rows = rows_in_turns(lambda: (None for _ in range(STEPS_MAX * 2)))
    assert (len(rows), rows.is_cut, turns.most) == (0, True, STEPS_PER_TURN)
    assert turns.count == STEPS_MAX / STEPS_PER_TURN + 1


def test_more_rows_are_cut_and_it_says_so(turns: Turns) -> None:
    assert not rows_in_turns(lambda: iter(range(10))).is_cut
    rows = rows_in_turns(lambda: iter(range(MANY * 2)))
    assert (len(rows), rows.is_cut) == (ROWS_MAX, True)


def test_a_page_makes_its_instances_only(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = MemberRow.__init__
    monkeypatch.setattr(MemberRow, "__init__", lambda row, *args, **fields: (made.append(row), make(row, *args, **fields))[1])
    rows = LiveQuerySet(MemberRow, rows_in_turns(many))
    page = list(rows.filter(role="role-1").filter(id__icontains="N0").order_by("-match_index", "pk")[200:300])
    assert len(page) == len(made) == 100
    numbers = [row.match_index for row in page]
    assert numbers == sorted(numbers, reverse=True)
    expected = sorted((one for one in many() if one.number % 3 == 1), key=lambda one: -one.number)[200:300]
    assert [row.id for row in page] == [one.id for one in expected]


def test_no_sort_is_longer_than_a_chunk(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sort runs in C, with the interpreter's lock."""
    keys = []
    key_of = live_rows._sort_key
    monkeypatch.setattr(live_rows, "_sort_key", lambda value: (keys.append(1), key_of(value))[1])
    rows = LiveQuerySet(MemberRow, list(many())).order_by("match_index")
    first = list(rows[:100])
    assert [row.match_index for row in first] == list(range(100))
    chunks = -(-MANY // CHUNK)
    assert MANY <= len(keys) <= MANY + chunks + 100 * 2, "beyond the chunks, only the page is merged"


def test_a_chosen_row_is_found_in_one_pass(turns: Turns) -> None:
    rows = LiveQuerySet(MemberRow, list(many())).filter(pk__in=[f"n{number:06}" for number in range(0, MANY, 500)])
    assert len(rows) == 200


def test_rows_that_end_while_a_list_is_taken(turns: Turns) -> None:
    """The state changes between two turns."""
    table = LockTable()
    for number in range(3 * STEPS_PER_TURN):
        table.apply(Acquire(key=f"k{number}", client="a", ttl_ms=0), 1, number + 1, Origin("n", 1, number + 1))

    def call(take: Callable[[], Any]) -> Any:
        taken = turns.call(take)
        if turns.count == 2:
            for key in list(table.locks)[STEPS_PER_TURN : 2 * STEPS_PER_TURN]:
                table.release(key, "a", 2, 9999)
        return taken

    live_rows.call_in_loop = call  # type: ignore[assignment]  # the fixture restores it
    rows = rows_in_turns(lambda: take_locks(table, 2))
    assert len(rows) == 2 * STEPS_PER_TURN
    assert len(list(LiveQuerySet(LockRow, rows)[:5])) == 5


def test_messages_are_taken_in_turns_too(turns: Turns) -> None:
    broker = Broker()
    for number in range(5):
        messages = [NewMessage("t", b"1", f"k{one % 7}", one % 7, 0, "", b"") for one in range(200)]
        broker.apply(Publish(messages=messages), 1, number + 1, Origin("n", 1, number + 1))
    rows = rows_in_turns(lambda: take_messages(broker, 2))
    assert (len(rows), turns.most) == (1000, STEPS_PER_TURN)


def test_a_snapshot_that_is_removed_while_the_list_is_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "7-2.snap").write_bytes(b"abc")
    (tmp_path / "5-2.snap").symlink_to(tmp_path / "gone")
    assert [row.index for row in snapshot_rows(tmp_path, 7)] == [7]
