"""The OPTIONS of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from django.core.exceptions import ImproperlyConfigured

from dss_django.clients import OPTIONS as CLIENT_OPTIONS

PRIORITY_MIN, PRIORITY_MAX = -100, 100
LEVELS_MAX = 20
DURATION_S_MAX = 366 * 24 * 3600


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See docs/how-to/tasks.md."""

    #: the beginning of the names of all topics
    namespace: str = "django"
    #: The lowest priority of each level. A worker takes a task only if no higher level has one that is ready.
    priorities: tuple[int, ...] = (-100, -50, 0, 1, 50)
    #: how often a task is run before it has failed, whether it raised an error or its worker was lost
    max_attempts: int = 3
    #: seconds before the second attempt, doubled with each further one up to `backoff_max`
    backoff: float = 1.0
    backoff_max: float = 300.0
    #: if a worker is lost, another one gets its tasks after this many seconds
    visibility: float = 30.0
    #: for how many seconds results are kept
    result_retention: float = 24 * 3600.0
    #: a larger return value, as JSON, makes the task fail
    result_bytes_max: int = 64 * 1024
    #: of each error, the end of its traceback
    traceback_bytes_max: int = 8 * 1024

    def __post_init__(self) -> None:
        levels = self.priorities
        if not levels or list(levels) != sorted(set(levels)) or levels[0] != PRIORITY_MIN or levels[-1] > PRIORITY_MAX:
            raise ValueError(f"`priorities` begins with {PRIORITY_MIN} and rises to at most {PRIORITY_MAX}")
        if len(levels) > LEVELS_MAX:
            raise ValueError(f"`priorities` has at most {LEVELS_MAX} levels")
        if not self.namespace or len(self.namespace) > 200:
            raise ValueError("`namespace` has 1 to 200 characters")
        _check("max_attempts", self.max_attempts, 1, 1000)
        _check("backoff", self.backoff, 0, DURATION_S_MAX)
        _check("backoff_max", self.backoff_max, 0, DURATION_S_MAX)
        _check("visibility", self.visibility, 0.5, 12 * 3600)
        _check("result_retention", self.result_retention, 1, DURATION_S_MAX)
        _check("result_bytes_max", self.result_bytes_max, 1, 2**30)
        _check("traceback_bytes_max", self.traceback_bytes_max, 100, 2**20)

    def level_of(self, priority: int) -> int:
        """The highest level that is not above the priority."""
        return max(level for level in self.priorities if level <= priority)


def read_options(given: Mapping[str, Any]) -> tuple[TaskOptions, dict[str, Any]]:
    """The options of a backend, and those of its client.

    Raises:
        ImproperlyConfigured
    """
    of_client = {name: value for name, value in given.items() if name in CLIENT_OPTIONS or name == "urls"}
    of_tasks = {name: value for name, value in given.items() if name not in of_client}
    try:
        return msgspec.convert(of_tasks, TaskOptions), of_client
    except msgspec.ValidationError as error:
        raise ImproperlyConfigured(f"OPTIONS of DSSBackend: {error}") from None


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"`{name}` is {least:g} to {most:g}, not {value!r}")
