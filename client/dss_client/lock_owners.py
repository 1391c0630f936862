"""The names under which one client holds locks.

The owner of a lock, as the cluster sees it, is the thread (or the task) that acquires it. That is why the cluster can find a deadlock
between threads. A key that the same thread holds already through another lock object is asked for under another owner's name: two lock
objects never share a grant.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

from dss_client.errors import Deadlock


class Holds(Protocol):
    """A lock that is held; see `held.AsyncHeld`."""

    owner: str
    name: str
    keys: tuple[str, ...]
    shared: bool
    renews: bool

    @property
    def is_over(self) -> bool: ...

    async def release(self) -> None: ...

    def lose_in_child(self) -> None: ...


class Owners:
    """The names under which one client holds locks, and which it uses at present.

    Args:
        name: of the process, for people who look at the holders.
    """

    def __init__(self, name: str) -> None:
        self._prefix = f"{name}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._count = itertools.count(1)
        self._of_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], str] = weakref.WeakKeyDictionary()
        #: (owner's name, key) of grants, and of calls whose outcome is not known yet
        self.used: set[tuple[str, str]] = set()
        self.held: dict[str, list[Holds]] = {}

    def make(self) -> str:
        """A name for a thread or a task."""
        return f"{self._prefix}/{next(self._count)}"

    def of_task(self) -> str:
        task = asyncio.current_task()
        if task is None:
            return self.make()
        name = self._of_tasks.get(task)
        if name is None:
            name = self._of_tasks[task] = self.make()
        return name

    def reserve(self, owner: str, keys: Sequence[str]) -> str:
        """A name like `owner` that is not in use for any of the keys."""
        name = owner
        for number in itertools.count(2):
            if not any((name, key) in self.used for key in keys):
                break
            name = f"{owner}.{number}"
        self.used.update((name, key) for key in keys)
        return name

    def give_back(self, name: str, keys: Sequence[str]) -> None:
        self.used.difference_update([(name, key) for key in keys])

    def refuse_to_wait_for_itself(self, owner: str, keys: Sequence[str], shared: bool) -> None:
        """Waiting for a lock that the same thread keeps renewing would never end.

        Raises:
            Deadlock
        """
        for key in keys:
            for held in self.held.get(key, ()):
                if held.owner == owner and held.renews and not (shared and held.shared) and not held.is_over:
                    step = {"client": held.name, "waits_for": key, "held_by": held.name, "because": "holds"}
                    raise Deadlock(
                        f"this thread or task holds {key!r} already through another lock object",
                        status=409,
                        fields={"deadlock": True, "cycle": [step]},
                    )
