"""File descriptors: connections must leave some for the node's own files, links and threads."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger("node")

#: For the log store, snapshots, links to members, SQLite connections of pages, and a margin.
RESERVED = 256


def connections_max(wanted: int) -> int:
    """How many connections the process may accept: `wanted`, or fewer if descriptors are short. Raises the soft limit first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = max(soft - RESERVED, 16)
    log.warning("node.few_descriptors", open_files_limit=soft, connections_max=allowed, wanted=wanted)
    return allowed
