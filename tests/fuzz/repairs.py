"""What the fuzzer of calls leaves out: valid effects that would end the run itself. Their fields are tried with everything else.

- Members stay. Nothing is added under a valid URL, and no member is removed.
- Leadership moves, and elections are forced, only where the hostile value says so (`""` or `"node-1"`, `true`): a few times in a run.
- Calls do not wait for long: what can wait, waits for milliseconds unless the hostile value says otherwise.

Everything else is left in. Topics may be forbidden for a while, limits may be lowered, locks and topics may vanish. A `raft.skip` is
always refused, because all entries can be applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from values import is_wait, struct_info

from dss_api.operation import Operation, Subscription

WAIT_MS = 5


def repaired(operation: Operation | Subscription, request: Any) -> Any:
    """The request without what would end the run. Bytes in it are hostile values."""
    if not isinstance(request, dict):
        return request
    request = dict(request)
    for field in struct_info(operation.request).fields:
        if is_wait(field.type) and not isinstance(request.get(field.encode_name), bytes):
            request[field.encode_name] = WAIT_MS
    repair = _REPAIRS.get(operation.name)
    if repair is not None:
        repair(request)
    return request


def _add_member(request: dict[str, Any]) -> None:
    # No hostile value is a URL that a member can have.
    if not isinstance(request.get("url"), bytes):
        request["url"] = "nowhere"


def _remove_member(request: dict[str, Any]) -> None:
    if not isinstance(request.get("id"), bytes) or b"node-" in request["id"]:
        request["id"] = "node-9"


def _transfer(request: dict[str, Any]) -> None:
    if not isinstance(request.get("to"), bytes):
        request["to"] = "node-9"


def _start_election(request: dict[str, Any]) -> None:
    if not isinstance(request.get("force"), bytes):
        request["force"] = False


_REPAIRS: dict[str, Callable[[dict[str, Any]], None]] = {
    "raft.add_member": _add_member,
    "raft.remove_member": _remove_member,
    "raft.transfer": _transfer,
    "raft.start_election": _start_election,
}
