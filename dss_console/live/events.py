"""The events that the nodes have told: their lines on a page, and what is known from them about elections. Pure.

A node that starts finds a leader, which may have been elected long before. So the first leader that a node names after its start counts as
found, not as elected, unless the node is that leader itself or was asked for its vote in that term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dss_console.live.answers import EventLine, Level
from dss_console.live.recorder import REPLICATED, WARNINGS, Recorded, text_of
from dss_console.live.texts import time_of_day

#: Events in the view.
EVENTS_SHOWN_MAX = 40
_ASKED = frozenset(("vote", "vote_refused", "candidate"))


@dataclass
class Elections:
    """Times are in ms, by the wall clock of the node that has told the event first."""

    #: from here on, one of the nodes has seen every election
    known_since_ms: int
    #: (leader, term) -> when it was elected
    elected: dict[tuple[str, int], int] = field(default_factory=dict)
    #: (leader, term) -> when a node found that it leads
    found: dict[tuple[str, int], int] = field(default_factory=dict)

    def count(self, since_ms: int) -> int:
        return sum(at_ms >= since_ms for at_ms in self.elected.values())


def elections(told: Mapping[str, Sequence[Recorded]], started_ms: int) -> Elections:
    """What these nodes know together.

    Args:
        told: node -> its events, in the order in which it recorded them; the earliest ones may be missing.
        started_ms: when the node started that asks.
    """
    known = Elections(started_ms)
    for node, events in told.items():
        own = [event for event in events if event.kind not in REPLICATED]
        if own:
            known.known_since_ms = min(known.known_since_ms, own[0].at_ms)
        has_found = bool(own) and own[0].seq > 1
        asked: set[int] = set()
        for event in own:
            if event.kind == "started":
                has_found = False
            elif event.kind in _ASKED:
                asked.add(event.term)
            elif event.kind == "leader":
                is_seen = has_found or event.subject == node or event.term in asked
                times = known.elected if is_seen else known.found
                led = event.subject, event.term
                times[led] = min(event.at_ms, times.get(led, event.at_ms))
                has_found = True
    return known


def event_lines(told: Mapping[str, Sequence[Recorded]], known: Elections, own: str, started_ms: int) -> list[EventLine]:
    """The latest events of these nodes, latest first. Of a leader, only the first node tells that it leads.

    Args:
        told, started_ms: as for `elections`.
        own: the node that shows them, the only one that tells what each node records by itself.
    """
    led: set[tuple[str, int]] = set()
    latest: list[tuple[str, Recorded]] = []
    for node, event in sorted(((teller, event) for teller in told for event in told[teller]), key=lambda one: one[1].at_ms):
        if event.kind in REPLICATED and node != own:
            continue
        if event.kind == "leader":
            if (event.subject, event.term) in led:
                continue
            led.add((event.subject, event.term))
        latest.append((node, event))
    return [_line(node, event, known, started_ms) for node, event in latest[: -EVENTS_SHOWN_MAX - 1 : -1]]


def _line(node: str, event: Recorded, known: Elections, started_ms: int) -> EventLine:
    level: Level = "warn" if event.kind in WARNINGS else "ok" if event.kind == "leader" else "info"
    text = text_of(event)
    if event.kind == "leader" and (event.subject, event.term) not in known.elected:
        level, text = "info", f"{node} learns that {text}"
    elif event.kind in REPLICATED and event.at_ms < started_ms:
        level, text = "info", f"{text} (before {node} started)"
    return EventLine(
        id=f"{node}-{event.at_ms}-{event.seq}",
        at_ms=event.at_ms,
        at=time_of_day(event.at_ms),
        node=node,
        kind=event.kind,
        level=level,
        text=text,
        subject=event.subject,
        object=event.object,
        term=event.term,
    )
