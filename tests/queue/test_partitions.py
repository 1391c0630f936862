"""Consistent hashing of routing keys."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from dss_queue.core.partitions import PARTITIONS, HashRing, ring, stable_hash

KEYS = [f"customer-{n}" for n in range(10_000)]


def test_a_key_keeps_its_partition_in_every_process():
    """Python's own hash() differs between processes; the partition must not."""
    program = "from dss_queue.core.partitions import ring; print([ring(64).partition_of(f'customer-{n}') for n in range(50)])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str([ring(64).partition_of(key) for key in KEYS[:50]])


def test_the_hash_is_pinned():
    """A different hash would move the keys of a running cluster."""
    assert stable_hash("customer-7") == 0x698E94ED4EC1A85A
    assert ring(64).partition_of("customer-7") == 2


def test_keys_are_spread_over_all_partitions():
    counts = Counter(ring(64).partition_of(key) for key in KEYS)
    assert sorted(counts) == list(range(PARTITIONS))
    assert max(counts.values()) < 2 * len(KEYS) / PARTITIONS


def test_more_virtual_nodes_spread_more_evenly():
    def widest(vnodes):
        partition_of = HashRing(PARTITIONS, vnodes).partition_of
        return max(Counter(partition_of(key) for key in KEYS).values())

    assert widest(256) < widest(1)


def test_an_additional_partition_moves_only_its_share():
    before, after = HashRing(16, 64), HashRing(17, 64)
    moved = [key for key in KEYS if before.partition_of(key) != after.partition_of(key)]
    assert all(after.partition_of(key) == 16 for key in moved)
    assert len(moved) < 2 * len(KEYS) / 17


def test_messages_without_a_key_go_round_robin(desk):
    desk.publish(*range(PARTITIONS))
    assert sorted(message["partition"] for message in desk.take(PARTITIONS)) == list(range(PARTITIONS))


def test_every_node_applies_the_partition_of_the_publishing_node(desk):
    """A node with another QUEUE_NUM_VNODES applies the partition that the command carries."""
    partition = desk.message(0, "customer-7").partition
    desk.publish(0, key="customer-7")
    assert desk.take()[0]["partition"] == partition
