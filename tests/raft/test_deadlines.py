"""`Deadlines` finds what is due, in any order of adding, moving and removing, and in the same order on every node."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dss_raft.replication.deadlines import NO_TIMER, STALE_ALLOWED, Deadlines


class Item:
    def __init__(self, name, deadline_ms):
        self.name = name
        self.deadline_ms = deadline_ms
        self.timer = NO_TIMER


def deadlines_of_items():
    return Deadlines(lambda item: item.deadline_ms, lambda item: item.name)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5000)),
        st.tuples(st.just("discard"), st.integers(0, 20)),
        st.tuples(st.just("add again"), st.integers(0, 5000)),
        st.tuples(st.just("later"), st.integers(0, 20)),
        st.tuples(st.just("sooner"), st.integers(0, 20)),
        st.tuples(st.just("pop"), st.integers(0, 1500)),
        st.tuples(st.just("rebuild"), st.just(0)),
    ),
    max_size=80,
)


@given(steps)
def test_it_agrees_with_a_plain_list(steps):
    deadlines = deadlines_of_items()
    live, gone, now_ms, names = [], [], 0, random.Random(1)
    for step, number in steps:
        item = live[number % len(live)] if live else None
        if step == "add":
            live.append(Item(names.random(), now_ms + number))
            deadlines.add(live[-1], live[-1].deadline_ms)
        elif step == "discard" and item:
            live.remove(item)
            gone.append(item)
            deadlines.discard(item)
        elif step == "add again" and gone:
            live.append(gone.pop())
            live[-1].deadline_ms = now_ms + number
            deadlines.add(live[-1], live[-1].deadline_ms)
        elif step == "later" and item:
            item.deadline_ms += 700
        elif step == "sooner" and item:
            item.deadline_ms = (now_ms + item.deadline_ms) // 2
            deadlines.moved_forward(item, item.deadline_ms)
        elif step == "pop":
            now_ms += number
            due = sorted((item.deadline_ms, item.name, item) for item in live if item.deadline_ms <= now_ms)
            assert deadlines.pop_due(now_ms) == [item for _, _, item in due]
            live = [item for item in live if item.deadline_ms > now_ms]
            gone += [item for _, _, item in due]
        elif step == "rebuild":
            deadlines.rebuild(live)
        assert deadlines.next_ms() == min((item.deadline_ms for item in live), default=None)


def test_stale_entries_do_not_accumulate():
    deadlines = deadlines_of_items()
    keeper, item = Item("keeper", 1_000_000), Item("item", 2_000_000)
    deadlines.add(keeper, keeper.deadline_ms)
    for _ in range(10 * STALE_ALLOWED):
        deadlines.add(item, item.deadline_ms)
        deadlines.discard(item)
    assert len(deadlines) < 3 * STALE_ALLOWED
    assert deadlines.pop_due(3_000_000) == [keeper]
    assert deadlines.next_ms() is None
    assert len(deadlines) == 0
