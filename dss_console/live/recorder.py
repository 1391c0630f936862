"""The rare events of one node, for people: elections, links, members, dead letters, refused deadlocks, lost locks. Pure.

They are recorded all the time, so that a page can show what happened before it was opened. An entry costs less than 200 ns, and the ring
bounds the memory. Frequent events, such as grants and publishes, are not recorded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from itertools import islice
from typing import NamedTuple

#: Events that a node keeps.
EVENTS_KEPT = 1024
#: Events in one frame. Above it, the oldest are left out.
EVENTS_PER_FRAME_MAX = 100
NS_PER_MS = 1_000_000


class Recorded(NamedTuple):
    """One event.

    Attributes:
        seq: counts the events of this node from its start.
        at_ms: by the node's wall clock; of the kinds in `REPLICATED`, the stamp of the log entry: a node that starts applies its log again.
        kind: see `TEXTS`.
        subject: a node, a client, or a topic.
        object: a key, or a group.
        detail: a reason.
        term: for elections.
    """

    seq: int
    at_ms: int
    kind: str
    subject: str = ""
    object: str = ""
    detail: str = ""
    term: int = 0


#: time in ns, kind, subject, object, detail, term
_Event = tuple[int, str, str, str, str, int]

#: kind -> sentence
TEXTS = {
    "started": "{subject} started",
    "leader": "{subject} leads in term {term}",
    "no_leader": "{subject} knows no leader in term {term}",
    "candidate": "{subject} asks for votes in term {term}",
    "vote": "{subject} votes for {object} in term {term}",
    "vote_refused": "{subject} refuses {object} its vote in term {term}",
    "link_up": "{subject} is linked to {object}",
    "link_down": "{subject} has lost its link to {object}",
    "members": "the members are {detail}",
    "restored": "{subject} restored a snapshot",
    "dead_letter": "a message of {subject}/{object} became a dead letter: {detail}",
    "deadlock": "{subject} was refused {object}: that would be a deadlock",
    "lock_lost": "{subject} lost {object}: {detail}",
}
#: kinds that every node records by itself from the same log: a view shows its own node's
REPLICATED = frozenset(("members", "dead_letter", "deadlock", "lock_lost"))
#: kinds that deserve attention
WARNINGS = frozenset(("no_leader", "candidate", "link_down", "dead_letter", "deadlock", "lock_lost"))


class Recorder:
    """The last events of a node.

    Args:
        wall_ns: the clock of the events.
    """

    def __init__(self, wall_ns: Callable[[], int]) -> None:
        self._wall_ns = wall_ns
        #: as a `Recorded` without its number, and with the time in ns: what is added is read rarely
        self._ring: deque[_Event] = deque(maxlen=EVENTS_KEPT)
        self._append = self._ring.append
        self.last_seq = 0

    def add(self, kind: str, subject: str = "", object: str = "", detail: str = "", term: int = 0, at_ms: int = 0) -> None:
        """Record an event; `at_ms` is 0 for one that happens now."""
        self.last_seq += 1
        self._append((at_ms * NS_PER_MS or self._wall_ns(), kind, subject, object, detail, term))

    def since(self, seq: int, limit: int = EVENTS_PER_FRAME_MAX, without: Container[str] = ()) -> list[Recorded]:
        """The events after `seq`, in the order in which they were recorded; the latest `limit` of them.

        Args:
            without: kinds that are left out.
        """
        new = min(self.last_seq - seq, len(self._ring))
        if new <= 0:
            return []
        numbered = enumerate(islice(self._ring, len(self._ring) - new, None), self.last_seq - new + 1)
        return [_recorded(number, event) for number, event in numbered if event[1] not in without][-limit:]

    def count(self, kind: str, since_ms: int) -> int:
        """How many events of this kind happened since then."""
        since_ns = since_ms * NS_PER_MS
        # Not from the end to the first that is older: entries that are applied again were stamped earlier than they are recorded.
        return sum(event[1] == kind and event[0] >= since_ns for event in self._ring)


def _recorded(seq: int, event: _Event) -> Recorded:
    at_ns, kind, subject, object, detail, term = event
    return Recorded(seq, at_ns // NS_PER_MS, kind, subject, object, detail, term)


def text_of(event: Recorded) -> str:
    """The event as a sentence without a full stop; a kind of a later release as its name."""
    form = TEXTS.get(event.kind)
    return event.kind if form is None else form.format_map(event._asdict())
