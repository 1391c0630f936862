"""The cost of one step of the table is at most linear in the number of clients at a key, because it blocks the node.

The cost is the number of executed lines of Python, which is the same on every machine.
"""

from __future__ import annotations

import pytest

from dss_dev.executed_lines import lines_run
from dss_locks.core import inspection
from dss_locks.core.commands import Acquire, Release
from dss_locks.django_app import admin

FEW, MANY = 60, 240
#: a linear cost grows by a factor of 4, a quadratic one by 16
ALLOWED = 5.5


def crowd(locks, size, **fields):
    for number in range(size):
        locks.acquire(f"c{number}", "k", wait_ms=20_000, **fields)


def a_client_with_many_waiting_requests_acquires_again(limited, size):
    """Each request of a client first searches that client's own entries in the queue."""
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


def half_of_them_exceed_a_limit(limited, size):
    locks = limited(holders_per_key_max=size // 2)
    locks.acquire("holder", "k")
    crowd(locks, size, mode="shared")
    return lambda: locks.release("holder", "k")


def they_time_out_from_the_back(limited, size):
    locks = limited()
    locks.acquire("holder", "k", ttl_ms=0)
    for number in range(size):
        locks.acquire(f"c{number}", "k", wait_ms=20_000 - number)
    return lambda: locks.pass_ms(20_000)


def shared_requests_wait_for_another_key_ahead_of_an_exclusive_one(limited, size):
    locks = limited()
    locks.acquire("holder", "other")
    locks.shared("s", "k")
    locks.shared("t", "k")
    for number in range(size):
        locks.shared(f"c{number}", "k", "other", wait_ms=20_000)
    locks.acquire("x", "k", wait_ms=20_000)
    return lambda: locks.release("s", "k")


def many_locks_of_a_client_with_many_waiting_requests_end(limited, size):
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
    return lambda: admin.take_waiters(locks.table, locks.at_ms)


@pytest.mark.parametrize(
    "scene",
    [
        a_client_with_many_waiting_requests_acquires_again,
        a_search_past_many_upgrades,
        a_search_among_many_shared_holders,
        a_ring_closes,
        half_of_them_exceed_a_limit,
        they_time_out_from_the_back,
        shared_requests_wait_for_another_key_ahead_of_an_exclusive_one,
        many_locks_of_a_client_with_many_waiting_requests_end,
        the_graph_is_shown,
        the_waiting_requests_are_shown,
    ],
)
def test_the_cost_is_linear_in_the_size(scene, limited):
    few, many = (lines_run(scene(limited, size)) for size in (FEW, MANY))
    assert many < ALLOWED * few


def test_an_uncontended_pair_costs_the_same_with_many_other_locks(limited):
    def pair(size):
        locks = limited()
        crowd(locks, size)
        for number in range(size):
            locks.acquire(f"c{number}", f"k{number}")
        return lambda: locks.entry(Acquire(key="free", client="a"), Release(key="free", client="a"))

    assert lines_run(pair(MANY)) == lines_run(pair(FEW))


def test_a_timeout_reports_the_position_at_the_time(locks):
    locks.acquire("a", "k", ttl_ms=0)
    origins = [locks.acquire(client, "k", wait_ms=1000) for client in "bcd"]
    locks.pass_ms(1000)
    assert [locks.answers[origin].body["position"] for origin in origins] == [1, 2, 3]


def test_waiters_behind_a_refused_one_are_granted_in_order_of_arrival(limited):
    """b is refused when its keys are free. c, which waited behind b at k2, is still granted before d, which came later."""
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
