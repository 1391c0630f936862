"""The callbacks that subsystems can register with a node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from dss_api.supervised import report_failure
from dss_raft.replication.machine import Event

#: After a callback has raised, it is left out this many times.
PAUSE_TICKS = 50


class Listeners:
    """The base of `Node` that registers callbacks and calls them, in the order of their registration, in the loop's thread."""

    def __init__(self) -> None:
        self._event_listeners: dict[type[Event], list[Callable[[Any, int], None]]] = defaultdict(list)
        self._leader_listeners: list[Callable[[str, int], None]] = []
        self._vote_listeners: list[Callable[[str, int, bool], None]] = []
        self._tick_listeners: list[Callable[[], None]] = []
        self._upkeep_listeners: list[Callable[[], None]] = []
        #: callbacks that have raised -> how often they are left out until the next call
        self._paused: dict[Callable[[], None], int] = {}
        self._peer_listeners: list[Callable[[str], None]] = []
        self._peer_down_listeners: list[Callable[[str], None]] = []
        self._configuration_listeners: list[Callable[[], None]] = []
        self._replacement_listeners: list[Callable[[], None]] = []
        #: during a callback of `on_event`: the applied time of the event's entry, in ms
        self.event_at_ms = 0

    def on_event(self, event_type: type[Event], callback: Callable[[Any, int], None]) -> None:
        """Call `callback(event, index)` for each event of this type, right after the entry was applied here.

        A node that starts applies the entries of its log again. `event_at_ms` says when the event happened.
        """
        self._event_listeners[event_type].append(callback)

    def on_leader_change(self, callback: Callable[[str, int], None]) -> None:
        """Call `callback(leader_id, term)` when this node learns of another leader or term."""
        self._leader_listeners.append(callback)

    def on_vote(self, callback: Callable[[str, int, bool], None]) -> None:
        """Call `callback(candidate, term, granted)` when this node has answered another one that asked for its vote."""
        self._vote_listeners.append(callback)

    def on_tick(self, callback: Callable[[], None]) -> None:
        """Call `callback()` every tick (a fifth of a heartbeat).

        If it raises, that is logged and counted, and it is called again later. Ticks serve clients and connections, and a fault with one
        of them must not stop the node.
        """
        self._tick_listeners.append(callback)

    def on_upkeep(self, callback: Callable[[], None]) -> None:
        """As `on_tick`, but about every heartbeat: for work that can wait for it. Ticks are most of what an idle node does."""
        self._upkeep_listeners.append(callback)

    def on_state_replaced(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when a leader's snapshot has replaced the state. The events of the entries in it are not reported."""
        self._replacement_listeners.append(callback)

    def on_peer_up(self, callback: Callable[[str], None]) -> None:
        """Call `callback(peer_id)` when a link comes up."""
        self._peer_listeners.append(callback)

    def on_peer_down(self, callback: Callable[[str], None]) -> None:
        """Call `callback(peer_id)` when a link goes down."""
        self._peer_down_listeners.append(callback)

    def on_configuration_change(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when another configuration is in force."""
        self._configuration_listeners.append(callback)

    def _notify_events(self, events: list[tuple[Event, int]], index: int) -> None:
        for event, self.event_at_ms in events:
            for callback in self._event_listeners.get(type(event), ()):
                callback(event, index)

    def _notify_leader_change(self, leader_id: str, term: int) -> None:
        for callback in self._leader_listeners:
            callback(leader_id, term)

    def _notify_vote(self, candidate: str, term: int, granted: bool) -> None:
        for callback in self._vote_listeners:
            callback(candidate, term, granted)

    def _notify_tick(self) -> None:
        self._call_each(self._tick_listeners)

    def _notify_upkeep(self) -> None:
        self._call_each(self._upkeep_listeners)

    def _call_each(self, callbacks: list[Callable[[], None]]) -> None:
        for callback in callbacks:
            if self._paused and self._is_paused(callback):
                continue
            try:
                callback()
            except Exception as error:
                report_failure("tick", error)
                self._paused[callback] = PAUSE_TICKS

    def _is_paused(self, callback: Callable[[], None]) -> bool:
        ticks = self._paused.pop(callback, 0)
        if ticks:
            self._paused[callback] = ticks - 1
        return ticks > 0

    def _notify_state_replaced(self) -> None:
        for callback in self._replacement_listeners:
            callback()

    def _notify_peer_up(self, peer_id: str) -> None:
        for callback in self._peer_listeners:
            callback(peer_id)

    def _notify_peer_down(self, peer_id: str) -> None:
        for callback in self._peer_down_listeners:
            callback(peer_id)

    def _notify_configuration_change(self) -> None:
        for callback in self._configuration_listeners:
            callback()
