"""The list of deadlines finds what is due, in any order of adding, moving and removing."""

from hypothesis import given
from hypothesis import strategies as st

from dss_locks.core.deadlines import NO_TIMER, Deadlines


class Item:
    def __init__(self, deadline_ms):
        self.deadline_ms = deadline_ms
        self.timer = NO_TIMER


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5000)),
        st.tuples(st.just("discard"), st.integers(0, 20)),
        st.tuples(st.just("later"), st.integers(0, 20)),
        st.tuples(st.just("sooner"), st.integers(0, 20)),
        st.tuples(st.just("pop"), st.integers(0, 1500)),
        st.tuples(st.just("rebuild"), st.just(0)),
    ),
    max_size=80,
)


@given(steps)
def test_it_agrees_with_a_plain_list(steps):
    deadlines = Deadlines(lambda item: item.deadline_ms)
    live, now_ms = [], 0
    for step, number in steps:
        item = live[number % len(live)] if live else None
        if step == "add":
            live.append(Item(now_ms + number))
            deadlines.add(live[-1], live[-1].deadline_ms)
        elif step == "discard" and item:
            live.remove(item)
            deadlines.discard(item)
        elif step == "later" and item:
            item.deadline_ms += 700
        elif step == "sooner" and item:
            item.deadline_ms = (now_ms + item.deadline_ms) // 2
            deadlines.moved_forward(item, item.deadline_ms)
        elif step == "pop":
            now_ms += number
            due = {item for item in live if item.deadline_ms <= now_ms}
            popped = deadlines.pop_due(now_ms)
            assert len(popped) == len(due)
            assert set(popped) == due
            live = [item for item in live if item not in due]
        elif step == "rebuild":
            deadlines.rebuild(live)
        assert deadlines.next_ms() == min((item.deadline_ms for item in live), default=None)


def test_removed_items_do_not_accumulate(locks):
    """One lease stays for long; many come and go behind it."""
    locks.acquire("keeper", "kept", ttl_ms=3_600_000)
    for _ in range(20_000):
        locks.acquire("a", "k", ttl_ms=7_200_000)
        locks.release("a", "k")
    leases = locks.table.holdings.leases
    filed = len(leases._near) + sum(len(slot) for slot in leases._slots.values())
    assert filed < 10_000


def test_repeated_shorter_renewals_do_not_accumulate(locks):
    locks.acquire("keeper", "kept", ttl_ms=1000)
    locks.acquire("a", "k")
    for _ in range(10_000):
        locks.renew("a", "k", ttl_ms=7_200_000)
        locks.renew("a", "k", ttl_ms=3_600_000)
        locks.renew("a", "k", ttl_ms=1_800_000)
    leases = locks.table.holdings.leases
    filed = len(leases._near) + sum(len(slot) for slot in leases._slots.values())
    assert filed < 10_000
