"""The names of topics, and the ids of tasks.

Each queue has a topic for each level of priority. The id of a task names its topic and its message, and has a random part, so that
the ids of other tasks cannot be guessed: "<queue>.<level>.<msg_id>.<random>", of fewer than 64 characters.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import NamedTuple

#: the consumer group of all workers
GROUP = "workers"

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,24}")
_ID = re.compile(r"([A-Za-z0-9_~-]{1,24})\.(-?\d{1,3})\.(\d{1,15}-\d{1,8})\.([A-Za-z0-9_-]{12})")


class TaskId(NamedTuple):
    """The parts of an id."""

    #: of the names of the queue's topics
    segment: str
    level: int
    msg_id: str
    secret: str

    def __str__(self) -> str:
        return f"{self.segment}.{self.level}.{self.msg_id}.{self.secret}"

    @classmethod
    def parse(cls, text: str) -> TaskId | None:
        """None: no task has this id."""
        match = _ID.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]), match[3], match[4])


def new_secret() -> str:
    return secrets.token_urlsafe(9)


def segment_of(queue_name: str) -> str:
    """The queue's part of a topic's name: the name itself, or its beginning and a hash of it."""
    if _PLAIN.fullmatch(queue_name):
        return queue_name
    beginning = re.sub(r"[^A-Za-z0-9_-]", "_", queue_name)[:11]
    return f"{beginning}~{hashlib.sha256(queue_name.encode()).hexdigest()[:12]}"


def tasks_topic(namespace: str, segment: str, level: int) -> str:
    return f"{namespace}/tasks/{segment}/{level}"


def results_topic(namespace: str) -> str:
    return f"{namespace}/results"
