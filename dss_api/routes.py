"""Operations by path, prepared for the JSON fast path, the WebSocket and the browsable API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import structlog
from prometheus_client import Histogram

from dss_api import attached
from dss_api.answer import Answer
from dss_api.caller import ANYONE, Caller, set_caller
from dss_api.codec import INTERNAL, AnswerEncoder, EncodedAnswer, RequestDecoder, encode_refusal
from dss_api.errors import Refused
from dss_api.operation import Operation
from dss_api.quotas import TokenQuotas
from dss_api.request_id import FIELD, SEAL_MARK, SEAL_PURPOSE, Identified
from dss_api.result import Result
from dss_api.rights import ONLY_ALL, Need

log = structlog.get_logger("api")

Headers = Sequence[tuple[bytes, bytes]]

REQUEST_SECONDS = Histogram(
    "dss_request_seconds",
    "Time from a call's arrival to its answer, waiting included.",
    ["operation", "status"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30),
)


class Route:
    """One operation with everything that can be prepared before its first call."""

    __slots__ = (
        "answers_bytes",
        "changes",
        "decoder",
        "encoder",
        "guarded",
        "handle",
        "is_audited",
        "name",
        "needs",
        "needs_state",
        "observers",
        "path_parameter",
        "prepare",
        "secrets",
        "undo",
    )

    def __init__(self, operation: Operation) -> None:
        self.name = operation.name
        self.handle = operation.handle
        self.prepare = operation.prepare
        self.undo = operation.undo
        self.answers_bytes = operation.answers_bytes
        self.secrets = operation.secrets
        self.guarded = operation.guarded
        self.needs = operation.needs
        self.is_audited = operation.is_audited
        self.needs_state = operation.needs_state
        self.changes = operation.method != "GET"
        self.decoder = RequestDecoder(operation)
        self.encoder = AnswerEncoder(operation.name, operation.answer)
        #: status -> the histogram's `observe`: looking up a label costs more than the observation
        self.observers: dict[int, Callable[[float], None]] = {}
        _, self.path_parameter = split_path(operation.path)

    @property
    def outlives_tokens(self) -> bool:
        """True for a call that changes tokens: it is answered although its caller's token may have ended by it."""
        return self.needs is ONLY_ALL

    async def carry_out(
        self,
        find_node: Callable[[], Any],
        request: Any,
        caller: Caller,
        via: str,
        address: str,
        headers: Headers = (),
    ) -> EncodedAnswer:
        """Run the operation for this caller; an unexpected exception is logged and answered `internal`.

        Args:
            via, address: the entry point, and where the call came from.
            headers: of its request: for traces, and for what the client accepts.
        """
        try:
            node = find_node()
            if self.needs_state:
                require_state(node)
            result = await self.begin(node, request, caller, via, address)
            answer = self.encoder.encode(result, self.answers_bytes and attached.accepts(headers))
            # A client that gave an id can repeat the call, and gets the same answer.
            if self.undo is not None and answer.status == 200 and type(request) is not Identified:
                answer.undo = partial(self.undo, node, request, result)
            return answer
        except Refused as refusal:
            return encode_refusal(refusal)
        except Exception:
            log.exception("api.failed", operation=self.name)
            return encode_refusal(Refused("internal", INTERNAL))

    def begin(self, node: Any, request: Any, caller: Caller, via: str, address: str) -> Awaitable[Result | Answer]:
        """Call the operation's handler with a decoded request, if the caller may. Every call of every entry point passes here.

        Call it in the task of the call, because it sets the task's caller. It is not a coroutine: most calls need only the handler's.

        Raises:
            Refused: `forbidden`.
        """
        if caller is not ANYONE:
            set_caller(caller)
            require_right(self.needs, caller, request)
            if caller.quotas is not None and caller.quotas.is_limited:
                return self._within_quotas(caller.quotas, node, request, caller, via, address)
        if self.is_audited or via == ADMIN:
            return self._audited(node, request, caller, via, address)
        return self._call(node, request)

    async def perform(
        self, node: Any, request: Any, caller: Caller, via: str, address: str, headers: Headers = ()
    ) -> Result | Answer:
        """`begin`, as a task of its own."""
        return await self.begin(node, request, caller, via, address)

    async def _within_quotas(
        self, quotas: TokenQuotas, node: Any, request: Any, caller: Caller, via: str, address: str
    ) -> Result | Answer:
        quotas.rates.take(caller.name)
        with quotas.calls.one(caller.name):
            if self.is_audited:
                return await self._audited(node, request, caller, via, address)
            return await self._call(node, request)

    async def _audited(self, node: Any, request: Any, caller: Caller, via: str, address: str) -> Result | Answer:
        fields = request.request if type(request) is Identified else request
        if self.prepare is not None:
            await self.prepare(node)
        await audit_of(node).record(self, caller, fields, via, address)
        return await self._call(node, request)

    def _call(self, node: Any, request: Any) -> Awaitable[Result | Answer]:
        if type(request) is Identified:
            return self.handle(node, request.request, request.id)
        return self.handle(node, request)

    def observe(self, status: int, seconds: float) -> None:
        observe = self.observers.get(status)
        if observe is None:
            observe = self.observers[status] = REQUEST_SECONDS.labels(self.name, str(status)).observe
        observe(seconds)


_make: Callable[[Operation], Route] = Route


def use(make: Callable[[Operation], Route]) -> None:
    """Routes are made with this from now on."""
    global _make
    _make = make


def route_of(operation: Operation) -> Route:
    """The route of an operation, as this process makes them."""
    return _make(operation)


#: the entry point whose calls are audited in any case: its users are operators
ADMIN = "admin"


class Audit:
    """Records the calls of operators before they are carried out. This one, for nodes without an audit trail, records nothing."""

    #: its name among the services of a node
    SERVICE = "audit"

    async def record(self, route: Route, caller: Caller, request: Any, via: str, address: str) -> None:
        """Raises:
        Refused: the call cannot be recorded, and so must not be carried out.
        """


def audit_of(node: Any) -> Audit:
    """The audit trail of a node."""
    found: Audit | None = getattr(node, "services", {}).get(Audit.SERVICE)
    return found or _NO_AUDIT


_NO_AUDIT = Audit()


def require_possible(needs: Need, caller: Caller) -> None:
    """Before the request is read: refuse a caller that may make no such call.

    Raises:
        Refused: `forbidden`.
    """
    if caller is not ANYONE and not needs.is_possible(caller.access):
        raise Refused("forbidden", f"the token may not make this call; it needs {needs.text}")


def require_right(needs: Need, caller: Caller, request: Any) -> None:
    """Raises:
    Refused: `forbidden`: the caller may not make this call with this request.
    """
    if type(request) is Identified:
        caller.check_seal(SEAL_PURPOSE, request.id.session, SEAL_MARK, FIELD)
        request = request.request
    if not needs.is_met(caller.access, request):
        raise Refused("forbidden", f"the token may not make this call; it needs {needs.text}")


def require_state(node: Any) -> None:
    """Raises:
    Refused: `not_ready`: the node cannot use its replicated state, because an entry of the log could not be applied.
    """
    if node.unusable_reason:
        raise Refused("not_ready", node.unusable_reason, node=node.node_id)


def split_path(path: str) -> tuple[str, str]:
    """("/raft/members/", "id") for "/raft/members/{id}"; a path without a parameter is returned unchanged, with ""."""
    prefix, brace, rest = path.partition("{")
    if not brace:
        return path, ""
    if not rest.endswith("}") or not prefix.endswith("/"):
        raise ValueError(f"a parameter must be the last part of a path: {path}")
    return prefix, rest[:-1]


class Routes:
    """Finds operations by path and by name."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._below: dict[str, dict[str, Route]] = {}
        self.by_name: dict[str, Route] = {}
        for operation in operations:
            prefix, parameter = split_path(operation.path)
            methods = (self._below if parameter else self._exact).setdefault(prefix, {})
            if operation.method in methods:
                raise ValueError(f"two operations at {operation.method} {operation.path}")
            methods[operation.method] = self.by_name[operation.name] = route_of(operation)

    def find(self, path: str) -> tuple[dict[str, Route] | None, str]:
        """The routes at `path` by method, and the value of the path's parameter."""
        methods = self._exact.get(path)
        if methods is None and self._below:
            prefix, _, last = path.rpartition("/")
            if last and (methods := self._below.get(f"{prefix}/")):
                return methods, last
        return methods, ""


def not_allowed(method: str, methods: Iterable[str]) -> EncodedAnswer:
    allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
    allow = ((b"allow", ", ".join(allowed).encode()),)
    if method == "OPTIONS":
        return EncodedAnswer(200, b"", allow)
    refusal = Refused("method_not_allowed", f"{method} is not allowed here; use {' or '.join(m for m in allowed if m != 'HEAD')}")
    return encode_refusal(refusal, allow)
