"""The entries of leases that have ended or were renewed do not accumulate."""

from __future__ import annotations


def test_removed_items_do_not_accumulate(locks):
    """One lease lasts long; many come and go behind it."""
    locks.acquire("keeper", "kept", ttl_ms=3_600_000)
    for _ in range(20_000):
        locks.acquire("a", "k", ttl_ms=7_200_000)
        locks.release("a", "k")
    assert len(locks.table.holdings.leases) < 10_000


def test_repeated_shorter_renewals_do_not_accumulate(locks):
    locks.acquire("keeper", "kept", ttl_ms=1000)
    locks.acquire("a", "k")
    for _ in range(10_000):
        locks.renew("a", "k", ttl_ms=7_200_000)
        locks.renew("a", "k", ttl_ms=3_600_000)
        locks.renew("a", "k", ttl_ms=1_800_000)
    assert len(locks.table.holdings.leases) < 10_000
