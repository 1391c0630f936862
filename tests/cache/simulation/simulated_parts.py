"""The parts of the simulation, and the flaws that it can have on purpose."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dss_cache.core.coherence import Flight
from dss_cache.core.directory import FetchRow
from dss_raft.replication.machine import Origin

#: Lease lengths of the nodes, in seconds: the settings differ, and change with a restart.
LEASES_S = (1.0, 0.5, 1.4)
KEYS = ("a", "b")


class StaleRead(AssertionError):
    """The promise was broken."""


@dataclass(frozen=True)
class Flaws:
    """Mistakes that an implementation could make; the simulation must find each."""

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
    writer_not_in_pending: bool = False
    own_line_readable_at_once: bool = False
    revoked_node_keeps_lines: bool = False
    snapshot_keeps_lines: bool = False
    lease_counts_from_grant: bool = False
    lease_as_long_as_ones_own: bool = False
    new_leader_waits_for_its_own_length: bool = False
    longer_leases_declared_over_at_once: bool = False
    older_stored_version_accepted: bool = False
    absence_serves_all: bool = False
    # of near clients and their nodes
    no_client_lease_check: bool = False
    client_lease_counts_from_its_arrival: bool = False
    client_installs_everything: bool = False
    client_keeps_entries_when_it_subscribes_again: bool = False
    forked_client_keeps_entries: bool = False
    acknowledges_before_clients_confirm: bool = False
    client_grant_not_capped: bool = False
    client_leases_not_in_the_log: bool = False
    grant_overtakes_drops: bool = False
    later_grant_extends_deadlines: bool = False
    acknowledges_before_its_session_is_open: bool = False
    session_opens_before_client_leases_are_over: bool = False
    overtaken_fetch_is_installed: bool = False
    holder_not_recorded: bool = False
    gone_client_is_forgotten: bool = False
    revoked_node_keeps_clients: bool = False
    snapshot_keeps_clients: bool = False


NO_FLAWS = Flaws()
_NAMES = [field.name for field in fields(Flaws)]
#: the flaws that only a simulation with near clients can find
CLIENT_FLAWS = _NAMES[_NAMES.index("no_client_lease_check") :]


class Read:
    """A get in progress. `floor` is the oldest version that it may return."""

    def __init__(self, key: str, floor: int, begun: int) -> None:
        self.key = key
        self.floor = floor
        self.begun = begun
        #: None: it looks again when it is poked
        self.fetch: SimFetch | None = None
        self.can_renew = True
        #: of a near client: its connection, and the token of its fetch
        self.near: tuple[Any, int] | None = None


class SimFetch:
    """A fetch in progress: its command is submitted, then its row is known, then its value."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.index = 0
        self.row: FetchRow | None = None
        self.value: bytes | None = None
        self.has_value = False
        self.readers: list[Read] = []


class Write:
    """A put or delete in progress."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.version = 0


@dataclass
class Entry:
    """A log entry. `command` None: the node `origin.node` opened the session of a new incarnation."""

    command: Any
    origin: Origin
    at_ms: int = 0


@dataclass(eq=False)
class SimMessage:
    sender: str
    #: of the sender; acknowledgements of an ended process are still true, its requests are not answered
    incarnation: int
    to: str
    to_incarnation: int
    kind: str
    content: Any
