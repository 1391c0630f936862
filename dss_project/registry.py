"""Every operation of this service, in the order of the API docs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from dss_api.operation import Operation, Subscription
from dss_api.problems import PROBLEMS
from dss_cache.operations import OPERATIONS as CACHE_OPERATIONS
from dss_cache.subscriptions import SUBSCRIPTIONS as CACHE_SUBSCRIPTIONS
from dss_console.live.subscriptions import SUBSCRIPTIONS as CLUSTER_SUBSCRIPTIONS
from dss_locks.operations import OPERATIONS as LOCK_OPERATIONS
from dss_locks.subscriptions import SUBSCRIPTIONS as LOCK_SUBSCRIPTIONS
from dss_queue.operations import OPERATIONS as QUEUE_OPERATIONS
from dss_queue.operations import SUBSCRIPTIONS as QUEUE_SUBSCRIPTIONS
from dss_raft.audit_operations import OPERATIONS as AUDIT_OPERATIONS
from dss_raft.operations import OPERATIONS as RAFT_OPERATIONS
from dss_raft.request_operations import OPERATIONS as REQUEST_OPERATIONS
from dss_raft.token_operations import OPERATIONS as TOKEN_OPERATIONS
from dss_raft.user_operations import OPERATIONS as USER_OPERATIONS


@cache
def operations() -> tuple[Operation, ...]:
    """The operations of Raft, of tokens and users, of request sessions and of the three subsystems.

    Raises:
        ValueError: two of them share a name, or one names a problem that does not exist.
    """
    found = (
        *RAFT_OPERATIONS,
        *TOKEN_OPERATIONS,
        *USER_OPERATIONS,
        *AUDIT_OPERATIONS,
        *REQUEST_OPERATIONS,
        *LOCK_OPERATIONS,
        *QUEUE_OPERATIONS,
        *CACHE_OPERATIONS,
    )
    _check(found)
    return found


@cache
def subscriptions() -> tuple[Subscription, ...]:
    """The subscriptions of the WebSocket entry point.

    Raises:
        ValueError: two share a name with each other or an operation, or one names a problem that does not exist.
    """
    found = (*LOCK_SUBSCRIPTIONS, *QUEUE_SUBSCRIPTIONS, *CACHE_SUBSCRIPTIONS, *CLUSTER_SUBSCRIPTIONS)
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
