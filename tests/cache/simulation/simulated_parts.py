"""What the simulation is made of, and the mistakes it can make on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dss_cache.core.coherence import Flight
from dss_cache.core.directory import Fetch1
from dss_raft.replication.machine import Origin

#: Settings of the nodes differ, and change with a restart.
LEASES_S = (1.0, 0.5, 1.4)
KEYS = ("a", "b")


class StaleRead(AssertionError):
    """The promise was broken."""


@dataclass(frozen=True)
class Flaws:
    """Mistakes of an implementation, each to be found."""

    no_lease_check: bool = False
    answer_before_covered: bool = False
    no_overtaken_guard: bool = False
    deposed_leader_grants: bool = False
    revoke_without_waiting: bool = False
    new_leader_does_not_wait: bool = False
    grant_ignores_index: bool = False
    grant_while_revoking: bool = False
    any_voiding_ends_revoking: bool = False
    join_without_lease: bool = False
    writer_not_in_must: bool = False
    own_line_readable_at_once: bool = False
    revoked_node_keeps_lines: bool = False
    snapshot_keeps_lines: bool = False
    lease_counts_from_grant: bool = False
    lease_as_long_as_ones_own: bool = False
    new_leader_waits_for_its_own_length: bool = False
    longer_leases_declared_over_at_once: bool = False
    older_memory_is_good_enough: bool = False
    absence_serves_all: bool = False


NO_FLAWS = Flaws()


class Read:
    """A get under way, and what it may not be older than."""

    def __init__(self, key: str, floor: int, begun: int) -> None:
        self.key = key
        self.floor = floor
        self.begun = begun
        #: 0: it looks again when it is poked
        self.flight: FlightInAir | None = None
        self.can_renew = True


class FlightInAir:
    """A fetch under way: its command, then its row, then its value."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.index = 0
        self.row: Fetch1 | None = None
        self.value: bytes | None = None
        self.has_value = False
        self.readers: list[Read] = []


class Write:
    """A put or delete under way."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.version = 0


@dataclass
class Entry:
    """A place in the log. `command` None: the node `origin.node` opened the session of a new incarnation."""

    command: Any
    origin: Origin
    at_ms: int = 0


@dataclass(eq=False)
class Message:
    sender: str
    #: what a message of an ended process says of it is still true; what it asks for is not wanted any more
    incarnation: int
    to: str
    to_incarnation: int
    kind: str
    content: Any
