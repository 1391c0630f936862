"""Routing keys on partitions: consistent hashing on a ring of virtual nodes (Karger et al., 1997).

Each partition has `vnodes` points on a ring of 2**64. A key belongs to the first point at or after its own hash. More points spread
the keys more evenly. Adding or removing a partition moves only the keys next to its points. The hash is BLAKE2b, so the result is the
same on every node and in every process.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from hashlib import blake2b

#: Partitions of every topic.
PARTITIONS = 16


class HashRing:
    """Maps keys to partitions.

    Args:
        partitions: number of partitions that share the keys.
        vnodes: points per partition on the ring.
    """

    def __init__(self, partitions: int, vnodes: int) -> None:
        points = sorted((stable_hash(f"{p}#{v}"), p) for p in range(partitions) for v in range(vnodes))
        self._hashes = [point for point, _ in points]
        self._owners = [owner for _, owner in points]
        # After the last point the ring starts again.
        self._owners.append(self._owners[0])

    def partition_of(self, key: str) -> int:
        """The partition of `key`, from 0."""
        return self._owners[bisect_left(self._hashes, stable_hash(key))]


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same on every machine, unlike Python's own `hash`."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=8)
def ring(vnodes: int) -> HashRing:
    """The ring of all partitions with `vnodes` points each."""
    return HashRing(PARTITIONS, vnodes)
