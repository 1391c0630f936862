"""The operations of the cache."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from dss_api import rights
from dss_api.attached import BASE64, ENCODING
from dss_api.errors import Refused
from dss_api.operation import Operation
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_api.rights import READ, Either
from dss_cache.answers import (
    ClearAnswer,
    DeleteAnswer,
    DeleteManyAnswer,
    EvictAnswer,
    GetAnswer,
    GetItem,
    GetManyAnswer,
    IncrAnswer,
    LinesAnswer,
    PutAnswer,
    PutManyAnswer,
    StatsAnswer,
    TouchAnswer,
    TraceAnswer,
)
from dss_cache.clearing import clear
from dss_cache.config import config_of
from dss_cache.core.commands import (
    INTEGER_MAX,
    KEYS_PER_CLEAR_MAX,
    Add,
    AddRequest,
    ClearRequest,
    Delete,
    DeleteManyRequest,
    EvictRequest,
    GetManyRequest,
    GetRequest,
    Incr,
    IncrExisting,
    IncrRequest,
    LinesQuery,
    Put,
    PutManyRequest,
    PutRequest,
    StatsQuery,
    Touch,
    TraceQuery,
)
from dss_cache.core.directory import PENDING_KEY
from dss_cache.core.values import from_base64, is_binary, to_answer
from dss_cache.reading import Found, too_large
from dss_cache.service import CacheService, service_of

if TYPE_CHECKING:
    from dss_raft.node import Node

_NULL = msgspec.Raw(b"null")
#: Cluster version from which all members know values that are bytes.
BYTES_SINCE = 5
#: Values that one `mget` answers.
BYTES_PER_MGET_MAX = 16 * 1024 * 1024
#: The value changes between read and write only while it is written back or expires, so one read is nearly always enough.
INCR_READS_MAX = 16
_decode_integer = msgspec.json.Decoder(int).decode


# ------------------------------------------------------------------ writing


async def put(node: Node, request: PutRequest, once: RequestId | None = None) -> Result:
    """Answered when the value is on the disks of a majority and no client can read an older one."""
    service = service_of(node)
    command = Put(key=request.key, value=_value(node, request), ttl_ms=request.ttl_ms, if_version=request.if_version)
    result = await service.write(command, once)
    return _written(service, request.key, result)


async def add(node: Node, request: AddRequest, once: RequestId | None = None) -> Result:
    """Like put, for a key without a value."""
    service = service_of(node)
    result = await service.write(Add(key=request.key, value=_value(node, request), ttl_ms=request.ttl_ms), once)
    return _written(service, request.key, result)


async def incr(node: Node, request: IncrRequest, once: RequestId | None = None) -> Result:
    """Atomic on any number of nodes: the directory adds. Only a clean value has to be read first."""
    service = service_of(node)
    command = IncrExisting if request.must_exist else Incr
    base = base_version = 0
    for _ in range(INCR_READS_MAX):
        result = await service.write(
            command(key=request.key, delta=request.delta, ttl_ms=request.ttl_ms, base=base, base_version=base_version), once
        )
        if "wanted" not in result.body:
            return _written(service, request.key, result)
        (found,) = await service.read_many([request.key])
        base_version = found.version
        if found.value is not None:
            try:
                base = _decode_integer(found.value)
            except msgspec.DecodeError:
                raise Refused("invalid", "the value is not an integer", field="key") from None
            if abs(base) > INTEGER_MAX:
                raise Refused("invalid", "the value is outside 64 bits", field="key")
    detail = f"`{request.key}` changed {INCR_READS_MAX} times between being read and being written; the call had no effect"
    raise Refused("over_limit", detail, limit="incr_reads_max", maximum=INCR_READS_MAX)


async def delete(node: Node, request: Delete, once: RequestId | None = None) -> Result:
    """Answered when no client can read the value. Repeating it is harmless."""
    result = await service_of(node).write(request, once)
    return _without_pending(result)


async def touch(node: Node, request: Touch, once: RequestId | None = None) -> Result:
    """Repeating it is harmless."""
    return _without_pending(await service_of(node).write(request, once))


async def mput(node: Node, request: PutManyRequest, once: RequestId | None = None) -> Result:
    """All items concurrently, each independently of the others."""
    parts = _parts(once, len(request.items))
    puts = (put(node, item, part) for item, part in zip(request.items, parts, strict=True))
    return _many([item.key for item in request.items], await asyncio.gather(*puts, return_exceptions=True))


async def mdelete(node: Node, request: DeleteManyRequest, once: RequestId | None = None) -> Result:
    """All keys concurrently, each independently of the others."""
    parts = _parts(once, len(request.keys))
    deletions = (delete(node, Delete(key=key), part) for key, part in zip(request.keys, parts, strict=True))
    return _many(request.keys, await asyncio.gather(*deletions, return_exceptions=True))


def _parts(once: RequestId | None, count: int) -> list[RequestId | None]:
    return [once and msgspec.structs.replace(once, part=part) for part in range(count)]


def _many(keys: list[str], answers: list[Result | BaseException]) -> Result:
    """The answer to a call that does the same with several keys."""
    items: list[dict[str, Any]] = []
    index = 0
    for key, answer in zip(keys, answers, strict=True):
        if isinstance(answer, Result):
            index = max(index, answer.index)
            items.append({"key": key, "ok": not answer.code, **({"code": answer.code} if answer.code else {}), **answer.body})
        elif isinstance(answer, Refused):
            items.append({"key": key, "ok": False, "code": answer.code, "detail": answer.detail})
        else:
            raise answer
    return Result({"items": items}, "", index)


def _value(node: Node, request: PutRequest | AddRequest) -> bytes:
    """The stored form.

    Raises:
        Refused: `too_large`, `invalid`, `not_supported_yet`.
    """
    value = bytes(request.value)
    if request.encoding != "json":
        version = node.replica.cluster_version
        if version < BYTES_SINCE:
            detail = f"bytes need cluster version {BYTES_SINCE}; it is {version}"
            raise Refused("not_supported_yet", detail, needed=BYTES_SINCE, cluster_version=version)
        try:
            value = from_base64(value) if request.encoding == BASE64 else value
        except ValueError as error:
            raise Refused("invalid", str(error), field="value") from None
        if not is_binary(value):
            raise Refused("invalid", "no bytes are attached to the request", field="value")
    bytes_max = config_of(node).value_bytes_max
    if len(value) > bytes_max:
        raise Refused("too_large", f"`value` is {len(value)} bytes long; the limit is {bytes_max}", field="value")
    return value


def _written(service: CacheService, key: str, result: Result) -> Result:
    if result.code:
        return _without_pending(result)
    service.puts += 1
    line = service.lines.get(key)
    body: dict[str, Any] = {"version": result.body["version"], "state": "I" if line is None else line.state}
    if "value" in result.body:
        body["value"] = result.body["value"]
    return Result(body, "", result.index)


def _without_pending(result: Result) -> Result:
    return Result({name: value for name, value in result.body.items() if name != PENDING_KEY}, result.code, result.index)


# ------------------------------------------------------------------ reading


async def get(node: Node, request: GetRequest) -> GetAnswer:
    """A hit does not wait for anything."""
    service: CacheService = node.services["cache"]
    line = service.near.hit(request.key, service.clock())
    if line is not None:
        service.hits += 1
        if line.answer is None:
            line.answer = _answer(node, Found(line.value, line.version, line.state, hit=True))
        return line.answer  # type: ignore[no-any-return]
    (found,) = await service.read_many([request.key])
    _count(service, found)
    return _answer(node, found)


def _answer(node: Node, found: Found) -> GetAnswer:
    return GetAnswer(
        value=_json(found.value),
        found=found.value is not None,
        hit=found.hit,
        version=found.version,
        state=found.state,
        node=node.node_id,
        encoding=_encoding(found.value),
    )


async def mget(node: Node, request: GetManyRequest) -> GetManyAnswer:
    """Answers the hits from lines and fetches the rest with one command."""
    service = service_of(node)
    items: dict[str, GetItem] = {}
    missing = []
    for key in dict.fromkeys(request.keys):
        line = service.near.hit(key, service.clock())
        if line is None:
            missing.append(key)
        else:
            service.hits += 1
            items[key] = _item(node, key, Found(line.value, line.version, line.state, hit=True))
    if missing:
        for key, found in zip(missing, await service.read_many(missing, BYTES_PER_MGET_MAX), strict=True):
            _count(service, found)
            items[key] = _item(node, key, found)
    answer = [items[key] for key in request.keys]
    # A key may be named more than once, and each time its value is sent.
    if sum(len(item.value) for item in answer) > BYTES_PER_MGET_MAX:
        raise too_large(BYTES_PER_MGET_MAX)
    return GetManyAnswer(items=answer)


def _item(node: Node, key: str, found: Found) -> GetItem:
    is_found = found.value is not None
    value, encoding = _json(found.value), _encoding(found.value)
    return GetItem(key, value, is_found, found.hit, found.version, found.state, node.node_id, encoding)


def _count(service: CacheService, found: Found) -> None:
    if found.hit:
        service.hits += 1
    else:
        service.misses += 1


def _json(value: bytes | None) -> Any:
    return _NULL if value is None else to_answer(value)


def _encoding(value: bytes | None) -> Any:
    return ENCODING if value is not None and is_binary(value) else msgspec.UNSET


# -------------------------------------------------------------- diagnostics


async def evict(node: Node, request: EvictRequest) -> EvictAnswer:
    """Drop this node's line like an eviction does: the value of an M line is written back first."""
    service = service_of(node)
    line = service.lines.get(request.key)
    written_back = line is not None and line.state == "M"
    if written_back:
        await service.write_back.write_now(request.key)
    return EvictAnswer(evicted=service.lines.drop(request.key, "evicted"), written_back=written_back)


async def lines(node: Node, request: LinesQuery) -> Result:
    service = service_of(node)
    unreachable: list[str] = []
    if request.key is None:
        rows: list[dict[str, Any]] = []
        for key, line in service.lines.recent_first():
            if len(rows) >= request.limit:
                break
            rows.append(service.line_row(key, line))
    else:
        by_node, unreachable = await service.peers.ask_all_nodes("line", request.key, 1)
        rows = [by_node[name][0] if by_node[name] else service.no_line_row(name, request.key) for name in sorted(by_node)]
    return Result({"node": node.node_id, "count": len(service.lines), "lines": rows, "unreachable": unreachable})


async def trace(node: Node, request: TraceQuery) -> Result:
    service = service_of(node)
    by_node, unreachable = await service.peers.ask_all_nodes("trace", request.key, request.limit)
    rows = sorted((row for rows in by_node.values() for row in rows), key=lambda row: (-row["at_ms"], row["node"]))
    return Result({"key": request.key, "transitions": rows[: request.limit], "unreachable": unreachable})


async def stats(node: Node, request: StatsQuery) -> StatsAnswer:
    service = service_of(node)
    reads = service.hits + service.misses
    remaining_s = service.near.lease.valid_until - service.clock()
    return StatsAnswer(
        node=node.node_id,
        hits=service.hits,
        misses=service.misses,
        hit_ratio=round(service.hits / reads, 4) if reads else 0.0,
        puts=service.puts,
        invalidations=service.near.invalidations,
        evictions=service.lines.evictions,
        write_backs=service.write_back.count,
        items=len(service.lines),
        bytes=service.lines.bytes,
        keys=len(service.directory.records),
        dirty=len(service.directory.dirty),
        memory=service.store.name,
        memory_trouble=service.write_back.report,
        memory_lost=service.reader.lost,
        lease_ms=max(0, int(remaining_s * 1000)),
        near_clients=service.near.clients.count,
        near_keys=service.near.clients.keys,
        near_leases_ms=dict(service.directory.client_lease_ms),
    )


_GET: dict[str, Any] = {
    "path": "/cache/get",
    "request": GetRequest,
    "handle": get,
    "answer": GetAnswer,
    "needs": rights.cache("read", "key"),
    "description": (
        "The value is never older than one that was put or read before, on any node. "
        "`hit`: answered from this node's line. If the key has no value, `found` is false and `value` is null."
    ),
    "tag": "Cache",
    "answers_bytes": True,
    "example": {"key": "example/user/7"},
    "problems": ("memory_unavailable",),
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="cache.put",
        method="POST",
        path="/cache/put",
        request=PutRequest,
        handle=put,
        answer=PutAnswer,
        takes_request_id=True,
        needs=rights.cache("write", "key"),
        summary="Store a value",
        description=(
            "Answered when the value is on the disks of a majority and no node can return an older one. `ttl_ms` is the time to live. "
            "With `if_version` the put succeeds only if the key has that version (compare-and-set), or no value if it is 0. "
            "With `encoding: base64` the value is bytes, and `value` is a string in Base64; with `encoding: attached` they are attached."
        ),
        tag="Cache",
        example={"key": "example/user/7", "value": {"name": "Ada"}, "ttl_ms": 60000},
        problems=("version_conflict", "over_limit"),
    ),
    Operation(name="cache.get", method="POST", summary="Read a key", **_GET),
    Operation(name="cache.get_query", method="GET", summary="Read a key, by query string", **_GET),
    Operation(
        name="cache.delete",
        method="POST",
        path="/cache/delete",
        request=Delete,
        handle=delete,
        answer=DeleteAnswer,
        takes_request_id=True,
        needs=rights.cache("write", "key"),
        summary="Delete a key's value",
        description="`deleted` is false if there was no value. With `if_version` only if the key has that version.",
        tag="Cache",
        example={"key": "example/user/7"},
        problems=("version_conflict",),
    ),
    Operation(
        name="cache.add",
        method="POST",
        path="/cache/add",
        request=AddRequest,
        handle=add,
        answer=PutAnswer,
        takes_request_id=True,
        needs=rights.cache("write", "key"),
        summary="Store a value if the key has none",
        tag="Cache",
        example={"key": "example/user/8", "value": {"name": "Grace"}},
        problems=("exists", "over_limit"),
    ),
    Operation(
        name="cache.incr",
        method="POST",
        path="/cache/incr",
        request=IncrRequest,
        handle=incr,
        answer=IncrAnswer,
        takes_request_id=True,
        needs=rights.cache("write", "key"),
        summary="Add to an integer",
        description="Atomic, on any node. `delta` may be negative. A key without a value counts as 0, or is refused with `must_exist`.",
        tag="Cache",
        example={"key": "example/visits", "delta": 1},
        problems=("memory_unavailable", "over_limit", "not_found"),
    ),
    Operation(
        name="cache.touch",
        method="POST",
        path="/cache/touch",
        request=Touch,
        handle=touch,
        answer=TouchAnswer,
        takes_request_id=True,
        needs=rights.cache("write", "key"),
        summary="Give a value a new time to live",
        description="`ttl_ms` counts from now; 0: unlimited. The value and its version stay.",
        tag="Cache",
        example={"key": "example/user/7", "ttl_ms": 60000},
    ),
    Operation(
        name="cache.mget",
        answers_bytes=True,
        method="POST",
        path="/cache/mget",
        request=GetManyRequest,
        handle=mget,
        answer=GetManyAnswer,
        needs=rights.cache("read", "keys"),
        summary="Read several keys",
        description="Each like a separate get; the values need not be from the same moment.",
        tag="Cache",
        example={"keys": ["example/user/7", "example/user/8"]},
        problems=("memory_unavailable",),
    ),
    Operation(
        name="cache.mput",
        method="POST",
        path="/cache/mput",
        request=PutManyRequest,
        handle=mput,
        answer=PutManyAnswer,
        takes_request_id=True,
        needs=rights.cache("write", "items.key"),
        summary="Store several values",
        description="Each like a separate put: some may be refused (`ok` is false, with the `code`) while others are stored.",
        tag="Cache",
        example={"items": [{"key": "example/user/7", "value": 1}, {"key": "example/user/8", "value": 2}]},
    ),
    Operation(
        name="cache.mdelete",
        method="POST",
        path="/cache/mdelete",
        request=DeleteManyRequest,
        handle=mdelete,
        answer=DeleteManyAnswer,
        takes_request_id=True,
        needs=rights.cache("write", "keys"),
        summary="Delete the values of several keys",
        description="Each like a separate delete.",
        tag="Cache",
        example={"keys": ["example/user/7", "example/user/8"]},
    ),
    Operation(
        name="cache.clear",
        method="POST",
        path="/cache/clear",
        request=ClearRequest,
        handle=clear,
        answer=ClearAnswer,
        needs=rights.cache("write", "prefix"),
        summary="Delete the values of all keys that begin with a prefix",
        description=(
            f"Deletes at most {KEYS_PER_CLEAR_MAX:,} values that exist when the call begins; newer ones stay. "
            "If some remain, repeat the call with the `up_to_version` of its answer."
        ),
        tag="Cache",
        example={"prefix": "example/user/"},
    ),
    Operation(
        name="cache.evict",
        method="POST",
        path="/cache/evict",
        request=EvictRequest,
        handle=evict,
        answer=EvictAnswer,
        needs=rights.cache("write", "key"),
        summary="Drop this node's line for a key",
        description="The value stays; the next read on this node fetches it again.",
        tag="Cache",
        example={"key": "example/user/7"},
        problems=("memory_unavailable",),
    ),
    Operation(
        name="cache.lines",
        method="GET",
        path="/cache/lines",
        request=LinesQuery,
        handle=lines,
        answer=LinesAnswer,
        needs=Either((READ, rights.cache("read", "key"))),
        summary="List this node's lines, or every node's line for a key",
        tag="Cache",
        example={"key": "example/user/7"},
    ),
    Operation(
        name="cache.trace",
        method="GET",
        path="/cache/trace",
        request=TraceQuery,
        handle=trace,
        answer=TraceAnswer,
        needs=Either((READ, rights.cache("read", "key"))),
        summary="List the last transitions of a key's lines on every node, with the reasons",
        description="Latest first, by each node's wall clock.",
        tag="Cache",
        example={"key": "example/user/7"},
    ),
    Operation(
        name="cache.stats",
        method="GET",
        path="/cache/stats",
        request=StatsQuery,
        handle=stats,
        answer=StatsAnswer,
        needs=READ,
        summary="Statistics of this node's cache since it started",
        tag="Cache",
    ),
)
