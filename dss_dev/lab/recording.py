"""A recording of what happens in the lab, in the format of the player: one JSON value in each line.

The first line describes the recording; each other one is an event: `[µs, lane, kind, text, fields, message]`. A message has the same
number where it is sent and where it arrives. Events of one node's log are placed by the time at which the lab got them.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

#: of the format
VERSION = 1
EVENTS_MAX = 5000


class Recording:
    """See the module."""

    def __init__(self, title: str, lanes: list[str]) -> None:
        self.title = title
        self.lanes = lanes
        self.events: list[list[Any]] = []
        self._began = time.monotonic()
        self._messages = 0

    def add(self, lane: str, kind: str, text: str, fields: dict[str, Any] | None = None, message: int = 0) -> None:
        if lane and lane not in self.lanes:
            self.lanes.append(lane)
        if len(self.events) < EVENTS_MAX:
            self.events.append([int((time.monotonic() - self._began) * 1e6), lane, kind, text, fields, message])

    def send(self, lane: str, text: str) -> int:
        self._messages += 1
        self.add(lane, "send", text, message=self._messages)
        return self._messages

    def lines(self) -> bytes:
        header = {
            "version": VERSION,
            "title": self.title,
            "about": "Recorded in this lab. Arrows are calls of clients and their answers; roles are as the nodes reported them.",
            "lanes": self.lanes,
        }
        return b"\n".join(map(msgspec.json.encode, [header, *self.events])) + b"\n"
