"""The parameters of one seed's world. Every rate is random, so that some seeds are calm and some harsh (swarm testing)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

US_PER_MS = 1000


@dataclass(frozen=True)
class Profile:
    """Times in microseconds of virtual time, probabilities from 0 to 1."""

    voters: int
    #: how long faults occur before everything is healed
    faults_us: int
    tick_us: int
    # ---- network
    latency_us: tuple[int, int]
    slow_probability: float
    slow_us: int
    loss: float
    duplicates: float
    #: a duplicate may come this much later
    duplicate_us: int
    # ---- disk
    fsync_us: int
    stall_probability: float
    stall_us: int
    #: probability that a write in progress survives a crash
    survives: float
    #: virtual microseconds between taking a snapshot and its being durable
    snapshot_us: int
    snapshot_entries: int
    keep_entries: int
    chunk_bytes: int
    # ---- faults
    fault_us: int
    restart_us: int
    weights: tuple[int, ...]
    clock_rates: tuple[float, float]
    burst_ticks: bool
    # ---- load
    client_us: int
    burst: int
    read_us: int
    admin_us: int
    #: transfer, force, add, remove, lose a disk
    admin_weights: tuple[int, ...]
    # ---- the core's limits
    append_entries_max: int
    inflight_messages_max: int
    #: true: the real Replica and clients with sessions; false: a running hash
    sessions: bool
    #: applying may lag behind by this much; 0: entries are applied when they are handed out
    apply_us: int
    append_bytes_max: int
    inflight_bytes_max: int
    uncommitted_bytes_max: int
    #: backups of disks are also taken while their nodes run, not only when they have crashed
    hot_copies: bool = False
    #: probability that a disk is lost or put back together with an outage of the leader, while lagging nodes come back
    outage: float = 0.0


#: the order of `Profile.weights`
FAULTS = ("split", "isolate", "one_way", "swizzle", "heal", "crash", "crash_all", "pause", "clock", "fsync_error")


def draw(rng: Random) -> Profile:
    """The profile of a seed: half are any worlds; the others have many elections, changes of members, lost disks, or restored ones."""
    profile = _draw(rng)
    kind = rng.choice(["any", "any", "any", "elections", "members", "disks", "restores"])
    ms = US_PER_MS
    if kind == "elections":
        return replace(
            profile,
            voters=rng.choice([3, 3, 5]),
            fault_us=30 * ms,
            restart_us=rng.choice([5, 30]) * ms,
            admin_us=rng.choice([20, 40]) * ms,
            admin_weights=(1, 4, 0, 0, 0),
            append_entries_max=rng.choice([1, 1, 3]),
            snapshot_entries=10**9,
            client_us=rng.choice([5, 20]) * ms,
        )
    if kind == "members":
        return replace(
            profile,
            voters=rng.choice([2, 3, 3, 4]),
            fault_us=rng.choice([30, 60]) * ms,
            admin_us=rng.choice([10, 20, 40]) * ms,
            admin_weights=(rng.choice([0, 1]), rng.choice([0, 1, 2]), 3, 3, rng.choice([0, 2])),
            client_us=rng.choice([10, 30]) * ms,
        )
    if kind == "disks":
        return replace(
            profile,
            voters=rng.choice([3, 3, 3, 5]),
            fault_us=rng.choice([60, 100]) * ms,
            restart_us=rng.choice([5, 30]) * ms,
            admin_us=rng.choice([20, 40]) * ms,
            admin_weights=(0, rng.choice([0, 1]), 3, 2, 4),
            sessions=True,
            client_us=rng.choice([3, 10]) * ms,
            outage=0.3,
        )
    if kind == "restores":
        return replace(
            profile,
            voters=rng.choice([3, 3, 3, 5]),
            fault_us=rng.choice([30, 60]) * ms,
            restart_us=rng.choice([5, 30]) * ms,
            weights=(1, 4, 1, 1, 1, 1, 0, 1, 0, 0),
            admin_us=rng.choice([10, 20]) * ms,
            admin_weights=(rng.choice([0, 1]), rng.choice([0, 1]), 4, 3, 6),
            sessions=rng.choice([True, False]),
            client_us=rng.choice([3, 10]) * ms,
            hot_copies=True,
            outage=0.6,
        )
    return profile


def _draw(rng: Random) -> Profile:
    ms = US_PER_MS
    network = rng.choice(["fast", "fast", "mixed", "slow"])
    return Profile(
        voters=rng.choice([1, 2, 3, 3, 3, 3, 3, 4, 5]),
        faults_us=rng.choice([600, 1000, 1500]) * ms,
        tick_us=10 * ms,
        latency_us={"fast": (50, 500), "mixed": (100, 5 * ms), "slow": (1 * ms, 15 * ms)}[network],
        slow_probability=rng.choice([0, 0, 0.02, 0.1]),
        slow_us=rng.choice([30, 100, 300]) * ms,
        loss=rng.choice([0, 0, 0.01, 0.1, 0.3]),
        duplicates=rng.choice([0, 0.01, 0.1]),
        duplicate_us=rng.choice([5, 100, 500]) * ms,
        fsync_us=rng.choice([200, 2 * ms, 2 * ms, 15 * ms]),
        stall_probability=rng.choice([0, 0, 0.01, 0.05]),
        stall_us=rng.choice([40, 150, 400]) * ms,
        survives=rng.choice([0.0, 0.5, 0.5, 1.0]),
        snapshot_us=rng.choice([1, 20]) * ms,
        snapshot_entries=rng.choice([5, 20, 60, 10**9]),
        keep_entries=rng.choice([0, 3, 20]),
        chunk_bytes=rng.choice([8, 64]),
        fault_us=rng.choice([30, 60, 100, 300, 1000]) * ms,
        restart_us=rng.choice([5, 30, 150]) * ms,
        weights=(*(rng.choice([0, 1, 1, 4]) for _ in FAULTS[:-1]), rng.choice([0, 0, 1])),
        clock_rates=rng.choice([(1.0, 1.0), (0.9, 1.1), (0.7, 1.4)]),
        burst_ticks=rng.random() < 0.5,
        client_us=rng.choice([1, 3, 10, 30]) * ms,
        burst=rng.choice([1, 1, 4]),
        read_us=rng.choice([5, 20, 100]) * ms,
        admin_us=rng.choice([40, 100, 300, 10**6]) * ms,
        admin_weights=(*(rng.choice([0, 1, 3]) for _ in range(4)), rng.choice([0, 0, 1])),
        append_entries_max=rng.choice([1, 3, 1024]),
        inflight_messages_max=rng.choice([1, 2, 8]),
        sessions=rng.random() < 0.25,
        apply_us=rng.choice([0, 0, 1 * ms, 20 * ms]),
        append_bytes_max=rng.choice([10, 1 << 20]),
        inflight_bytes_max=rng.choice([10, 1 << 20]),
        uncommitted_bytes_max=rng.choice([100, 1 << 20, 1 << 20]),
    )
