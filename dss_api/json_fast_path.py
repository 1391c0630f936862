"""The JSON fast path: calls go straight from a connection to an operation.

It bypasses Django's handler, middleware and DRF, whose thread switches cost more than everything else that a node does for a call. So
nothing here may use the ORM, a session or the disk. The code that all entry points share is in routes.py, codec.py, guard.py and
problems.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dss_api.caller import ANYONE, Caller
from dss_api.guard import Guard, check_origin
from dss_api.operation import Operation
from dss_api.routes import Route, Routes, require_possible


class JsonFastPath:
    """The operations, and who may call them.

    Args:
        find_node: returns the running node, or raises `Refused("stopping")`.
    """

    def __init__(self, operations: Iterable[Operation], find_node: Callable[[], Any], guard: Guard) -> None:
        self.routes = Routes(operations)
        self.find_node = find_node
        self.guard = guard

    def check(self, route: Route, authorization: bytes, origin: bytes, host: bytes, address: str) -> None:
        """Check token and origin before the request is read.

        Raises:
            Refused: `unauthenticated`, `forbidden`, `over_limit`.
        """
        caller = self.authenticate(route, authorization, address)
        if caller is not ANYONE:
            require_possible(route.needs, caller)
        if origin and route.changes:
            check_origin(origin, host)

    def authenticate(self, route: Route, authorization: bytes, address: str | None = None) -> Caller:
        """Who makes the call. See `Guard.authenticate`.

        Raises:
            Refused: `unauthenticated`, `over_limit`.
        """
        return ANYONE if self.guard.is_open or not route.guarded else self.guard.authenticate(authorization, address)
