"""No crowd at one key makes a step of the table cost the square of its size: the node has nothing else to do meanwhile.

The cost is counted in lines of Python that were run, which is the same on every machine and every day.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from dss_locks.core import inspection
from dss_locks.core.commands import Acquire, Release
from dss_locks.django_app import admin

FEW, MANY = 60, 240
#: a cost in proportion to the size would be 4 times as much, one in proportion to its square 16 times
ALLOWED = 5.5


def lines_run(act: Callable[[], Any]) -> int:
    """How many lines the call runs, loops counted once each time round."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def crowd(locks, size, **fields):
    for number in range(size):
        locks.acquire(f"c{number}", "k", wait_ms=20_000, **fields)


def a_client_with_many_places_asks_again(limited, size):
    """It stands in the queue many times itself, which is what each of its requests searches first."""
    locks = limited()
    locks.acquire("holder", "k")
    crowd(locks, size)
    for number in range(size):
        locks.acquire("busy", "k", f"x{number}", wait_ms=20_000)
    return lambda: locks.acquire("busy", "k", "y", wait_ms=20_000)


def a_search_past_many_upgrades(limited, size):
    locks = limited()
    locks.shared("u", "k")
    locks.shared("v", "k")
    for number in range(size):
        locks.acquire("u", "k", f"x{number}", wait_ms=20_000)
    crowd(locks, size)
    locks.acquire("w", "z")
    locks.acquire("outside", "z", wait_ms=20_000)
    return lambda: locks.acquire("w", "k", wait_ms=20_000)


def a_search_among_many_shared_holders(limited, size):
    locks = limited()
    for number in range(size):
        locks.shared(f"s{number}", "k")
    crowd(locks, size)
    locks.acquire("w", "z")
    locks.acquire("outside", "z", wait_ms=20_000)
    return lambda: locks.acquire("w", "k", wait_ms=20_000)


def a_ring_closes(limited, size):
    locks = limited()
    for number in range(size):
        locks.acquire(f"c{number}", f"k{number}")
    for number in range(size - 1):
        locks.acquire(f"c{number}", f"k{number + 1}", wait_ms=20_000)
    return lambda: locks.acquire(f"c{size - 1}", "k0", wait_ms=20_000)


def half_of_them_are_one_too_many(limited, size):
    locks = limited(holders_per_key_max=size // 2)
    locks.acquire("holder", "k")
    crowd(locks, size, mode="shared")
    return lambda: locks.release("holder", "k")


def they_give_up_from_the_back(limited, size):
    locks = limited()
    locks.acquire("holder", "k", ttl_ms=0)
    for number in range(size):
        locks.acquire(f"c{number}", "k", wait_ms=20_000 - number)
    return lambda: locks.pass_ms(20_000)


def shared_requests_wait_for_another_key_in_front_of_an_exclusive_one(limited, size):
    locks = limited()
    locks.acquire("holder", "other")
    locks.shared("s", "k")
    locks.shared("t", "k")
    for number in range(size):
        locks.shared(f"c{number}", "k", "other", wait_ms=20_000)
    locks.acquire("x", "k", wait_ms=20_000)
    return lambda: locks.release("s", "k")


def many_locks_of_a_client_that_waits_for_much_end(limited, size):
    locks = limited()
    locks.acquire("holder", "k", ttl_ms=0)
    for number in range(size):
        locks.acquire("busy", f"held{number}", ttl_ms=1000)
        locks.acquire("busy", "k", f"x{number}", wait_ms=20_000)
    return lambda: locks.pass_ms(1000)


def the_graph_is_shown(limited, size):
    locks = limited()
    locks.acquire("holder", "k")
    crowd(locks, size)
    return lambda: inspection.graph(locks.table)


def the_waiting_requests_are_shown(limited, size):
    locks = limited()
    locks.acquire("holder", "k")
    crowd(locks, size)
    return lambda: admin.waiter_rows(locks.table, locks.at_ms)


@pytest.mark.parametrize(
    "scene",
    [
        a_client_with_many_places_asks_again,
        a_search_past_many_upgrades,
        a_search_among_many_shared_holders,
        a_ring_closes,
        half_of_them_are_one_too_many,
        they_give_up_from_the_back,
        shared_requests_wait_for_another_key_in_front_of_an_exclusive_one,
        many_locks_of_a_client_that_waits_for_much_end,
        the_graph_is_shown,
        the_waiting_requests_are_shown,
    ],
)
def test_the_cost_grows_with_the_size_and_not_with_its_square(scene, limited):
    few, many = (lines_run(scene(limited, size)) for size in (FEW, MANY))
    assert many < ALLOWED * few


def test_an_uncontended_pair_costs_the_same_among_many_locks(limited):
    def pair(size):
        locks = limited()
        crowd(locks, size)
        for number in range(size):
            locks.acquire(f"c{number}", f"k{number}")
        return lambda: locks.entry(Acquire(key="free", client="a"), Release(key="free", client="a"))

    assert lines_run(pair(MANY)) == lines_run(pair(FEW))


def test_the_position_of_one_who_gave_up_is_the_one_it_had(locks):
    locks.acquire("a", "k", ttl_ms=0)
    origins = [locks.acquire(client, "k", wait_ms=1000) for client in "bcd"]
    locks.pass_ms(1000)
    assert [locks.answers[origin].body["position"] for origin in origins] == [1, 2, 3]


def test_a_refused_waiter_makes_room_in_the_order_of_arrival(limited):
    """b is refused at its turn; c, who waited behind b elsewhere, still comes before d, who came later."""
    locks = limited(holds_per_client_max=1)
    locks.acquire("a", "k1")
    first = locks.acquire("b", "k1", "k2", wait_ms=20_000)
    second = locks.acquire("c", "k2", wait_ms=20_000)
    third = locks.acquire("d", "k2", wait_ms=20_000)
    locks.acquire("b", "own")
    locks.release("a", "k1")
    assert locks.answers[first].code == "over_limit"
    assert locks.answers[second].code == ""
    assert third not in locks.answers
