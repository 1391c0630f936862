"""What the messages of tasks contain, and what is known of a task.

| topic | message | `dedup_id` |
|---|---|---|
| `<namespace>/tasks/<queue>/<level>` | the task (`Call`) | |
| `<namespace>/results` | the result of a task that succeeded (`Record`) | the id |
| | what an attempt that failed leaves (`Record`) | the id, "#", when the attempt began |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from django.conf import settings
from django.utils import timezone

READY, RUNNING, FAILED, SUCCESSFUL = "READY", "RUNNING", "FAILED", "SUCCESSFUL"
#: the errors of how many attempts are kept: of the last ones
ERRORS_KEPT = 10
#: how a delivery that counts as an attempt ends: by a worker that says so, or in silence
SAID = frozenset({"nack", "rejected"})
#: stands for the id of a worker that did not say so before it was lost
LOST_WORKER = "lost"


class WorkerLost(Exception):
    """The worker of a task ended, or lost its connection, before it had a result."""


class ResultTooLarge(Exception):
    """The return value of a task has more bytes, as JSON, than `result_bytes_max`, or than the cluster takes."""


class ErrorNotKept(Exception):
    """An attempt failed, but its error is older than `result_retention`, or there was no room for it."""


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task with its arguments, as enqueued."""

    #: the random part of the id
    secret: str
    #: the module and name of the function
    path: str
    queue: str
    enqueued_at: str
    priority: int = 0
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    run_after: str = ""


class Failure(msgspec.Struct, frozen=True):
    """An error, as `TaskError`."""

    exception: str
    traceback: str

    @classmethod
    def of(cls, kind: type[BaseException], text: str) -> Failure:
        return cls(f"{kind.__module__}.{kind.__qualname__}", text)


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an attempt ended, with those before it."""

    started_ms: int
    attempted_ms: int
    finished_ms: int
    worker_ids: list[str] = []
    errors: list[Failure] = []
    #: of a task that succeeded; its message is gone
    call: Call | None = None
    value: Any = None


class Known(msgspec.Struct):
    """What is known of a task. Times are those of the cluster, in milliseconds; 0: not yet."""

    id: str
    call: Call
    status: str = READY
    started_ms: int = 0
    attempted_ms: int = 0
    finished_ms: int = 0
    worker_ids: list[str] = []
    errors: list[Failure] = []
    value: Any = None

    def begin(self, worker_id: str, at_ms: int) -> None:
        """An attempt begins."""
        self.status = RUNNING
        self.started_ms = self.started_ms or at_ms
        self.attempted_ms = at_ms
        self.worker_ids = [*self.worker_ids, worker_id]

    def record(self, *, with_call: bool) -> Record:
        """For the topic of results."""
        return Record(
            self.started_ms,
            self.attempted_ms,
            self.finished_ms,
            self.worker_ids,
            self.errors[-ERRORS_KEPT:],
            self.call if with_call else None,
            self.value,
        )


def from_message(id: str, call: Call, line: Mapping[str, Any], record: Record | None) -> Known:
    """What a message says that is not finished.

    Args:
        line: of `queue.peek`.
        record: of the last attempt whose worker said that it failed.
    """
    known = Known(id, call)
    history: list[dict[str, Any]] = line.get("history") or []
    ended = [one for one in history if one["reason"] in SAID or one["reason"] == "timeout"]
    if ended:
        known.started_ms, known.attempted_ms = ended[0]["delivered_ms"], ended[-1]["delivered_ms"]
    if record is not None:
        known.started_ms = record.started_ms
        known.worker_ids, known.errors = list(record.worker_ids), list(record.errors)
        ended = [one for one in ended if one["delivered_ms"] > record.attempted_ms]
    for one in ended:
        known.worker_ids.append(LOST_WORKER)
        known.errors.append(_unsaid(one))
    if line["state"] == "dead":
        known.status, known.finished_ms = FAILED, line["dead_ms"]
        if not known.errors:
            known.errors.append(Failure.of(WorkerLost, f"the task is a dead letter: {line['reason']}"))
    elif line["state"] == "in_flight":
        worker_id = line.get("attempt_id", "").rpartition(".")[0]
        known.begin(worker_id or LOST_WORKER, line.get("delivered_ms", 0))
    return known


def from_result(id: str, record: Record) -> Known | None:
    """What the result of a finished task says."""
    if record.call is None:
        return None
    return Known(
        id,
        record.call,
        SUCCESSFUL,
        record.started_ms,
        record.attempted_ms,
        record.finished_ms,
        list(record.worker_ids),
        list(record.errors),
        record.value,
    )


def last_said(line: Mapping[str, Any]) -> int:
    """When the last attempt began whose worker said that it failed; 0: there is none."""
    history: Iterable[dict[str, Any]] = line.get("history") or ()
    return max((one["delivered_ms"] for one in history if one["reason"] in SAID), default=0)


def _unsaid(ending: Mapping[str, Any]) -> Failure:
    if ending["reason"] in SAID:
        return Failure.of(ErrorNotKept, f"attempt {ending['attempt']} failed; its error was not kept")
    return Failure.of(WorkerLost, f"attempt {ending['attempt']}: the worker was lost; it was connected to {ending['node']}")


# ------------------------------------------------------------------- times


def to_text(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat()


def from_text(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def from_ms(ms: int) -> datetime | None:
    """In the time zone that `timezone.now` has; None for 0."""
    if not ms:
        return None
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment if settings.USE_TZ else timezone.make_naive(moment, timezone.get_default_timezone())
