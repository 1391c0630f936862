"""Every operation of this service, in the order the docs show them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from dss_project.api.operation import Operation, Subscription
from dss_project.api.problems import PROBLEMS


@cache
def operations() -> tuple[Operation, ...]:
    """What the four subsystems offer.

    Raises:
        ValueError: two of them share a name, or one names a problem that does not exist.
    """
    from dss_cache.operations import OPERATIONS as CACHE
    from dss_locks.operations import OPERATIONS as LOCKS
    from dss_queue.operations import OPERATIONS as QUEUE
    from dss_raft.operations import OPERATIONS as RAFT

    found = (*RAFT, *LOCKS, *QUEUE, *CACHE)
    _check(found)
    return found


@cache
def subscriptions() -> tuple[Subscription, ...]:
    """What can be listened to on the WebSocket door.

    Raises:
        ValueError: two share a name with each other or an operation, or one names a problem that does not exist.
    """
    from dss_locks.subscriptions import SUBSCRIPTIONS as LOCKS
    from dss_queue.operations import SUBSCRIPTIONS as QUEUE

    found = (*LOCKS, *QUEUE)
    _check((*operations(), *found))
    return found


def _check(found: Sequence[Operation | Subscription]) -> None:
    names = [operation.name for operation in found]
    for operation in found:
        if names.count(operation.name) > 1:
            raise ValueError(f"two operations are called {operation.name}")
        unknown = set(operation.problems) - PROBLEMS.keys()
        if unknown:
            raise ValueError(f"{operation.name} names problems that do not exist: {', '.join(sorted(unknown))}")
