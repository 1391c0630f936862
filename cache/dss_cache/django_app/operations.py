"""Operations that only the admin offers."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from dss_api.answer import Answer
from dss_api.errors import Refused
from dss_api.fields import Fields, Name
from dss_api.operation import Operation
from dss_api.rights import OPERATE
from dss_cache.service import service_of


class EvictLines(Fields):
    """Drop the lines of a key on these nodes."""

    key: Name
    nodes: Annotated[list[Name], msgspec.Meta(min_length=1)]


class EvictLinesAnswer(Answer):
    #: the nodes that had a line
    evicted: list[str]


async def evict_lines(node: Any, request: EvictLines) -> EvictLinesAnswer:
    """Each node drops its own line, and writes the value back before if no other node has it.

    Raises:
        Refused: `unknown_outcome`: a node does not answer, so it may still have its line.
    """
    service = service_of(node)
    question = msgspec.json.encode([request.key, request.nodes]).decode()
    rows_of, _ = await service.peers.ask_all_nodes("evict", question, 1)
    silent = [name for name in request.nodes if not rows_of.get(name)]
    evicted = sorted(name for name, rows in rows_of.items() if rows and rows[0]["evicted"])
    if silent:
        done = f"; {', '.join(evicted)} dropped the line" if evicted else ""
        raise Refused("unknown_outcome", f"{', '.join(silent)} did not answer{done}")
    return EvictLinesAnswer(evicted=evicted)


EVICT_LINES = Operation(
    name="cache.evict_lines",
    method="POST",
    path="/cache/evict_lines",
    request=EvictLines,
    handle=evict_lines,
    answer=EvictLinesAnswer,
    needs=OPERATE,
    summary="Drop the lines of a key on several nodes",
)
