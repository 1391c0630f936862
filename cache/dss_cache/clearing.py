"""`cache.clear`: deletes by prefix, among millions of keys, without stopping the node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dss_cache.answers import ClearAnswer
from dss_cache.core.commands import KEYS_PER_CALL_MAX, KEYS_PER_CLEAR_MAX, ClearRequest, Delete
from dss_cache.core.directory import Directory
from dss_cache.core.events import Stamps
from dss_cache.service import service_of

if TYPE_CHECKING:
    from dss_raft.node import Node

#: How many keys a `clear` looks at before other calls have their turn: about 2 ms.
KEYS_PER_TURN = 10_000


async def clear(node: Node, request: ClearRequest) -> ClearAnswer:
    """Answered when no client can read a deleted value. Values that are stored while it runs stay."""
    service = service_of(node)
    # One at a time: each holds a list of all keys.
    async with service.clearing:
        await node.read_index()
        up_to = service.directory.stamp if request.up_to_version is None else request.up_to_version
        found, remaining, replaced = await _values_under(service.directory, request.prefix, up_to)
        deleted = 0
        for start in range(0, len(found), KEYS_PER_CALL_MAX):
            results = await asyncio.gather(*map(service.write, found[start : start + KEYS_PER_CALL_MAX]))
            # A version conflict: the key has a newer value.
            deleted += sum(not result.code and result.body["deleted"] for result in results)
        if not service.near.acknowledgements.covers(replaced):
            await service.peers.wait_for_invalidations(replaced, ask_now=True)
    return ClearAnswer(deleted=deleted, remaining=remaining, up_to_version=up_to)


async def _values_under(directory: Directory, prefix: str, up_to: int) -> tuple[list[Delete], int, Stamps]:
    """Deletions of the first values under a prefix, how many values remain, and which nodes may still show a value that another call
    has deleted or replaced.

    Looks at all keys, which may be millions, over many turns of the event loop.
    """
    found: list[Delete] = []
    remaining = 0
    replaced: Stamps = {}
    keys = list(directory.records)
    for start in range(0, len(keys), KEYS_PER_TURN):
        for key in keys[start : start + KEYS_PER_TURN]:
            if key.startswith(prefix):
                record = directory.records.get(key)
                if record is None:
                    continue
                if record.absent or record.version > up_to:
                    for node, stamp in record.pending_invalidations.items():
                        replaced[node] = max(stamp, replaced.get(node, 0))
                elif len(found) < KEYS_PER_CLEAR_MAX:
                    found.append(Delete(key=key, if_version=record.version))
                else:
                    remaining += 1
        await asyncio.sleep(0)
    return found, remaining, replaced
