"""The library of functions, and what a server must be to run it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from dss_queue.redis_engine.errors import UnfitServer

#: Its number is that of the calls and the stored format. Two releases with different numbers can use the same server.
NAME = "dss_queue_1"
VERSION_MIN = (7, 2)
_FOLDER = Path(__file__).parent / "library"
_REVISION = re.compile(r"^local REVISION = (\d+)$", re.MULTILINE)


@cache
def text() -> str:
    """The source of the library: the files of its folder, in order."""
    return "".join(path.read_text() for path in sorted(_FOLDER.glob("*.lua")))


def revision_of(source: str) -> int:
    """The revision of a source; 0: it has none."""
    found = _REVISION.search(source)
    return int(found[1]) if found else 0


def check_server(address: str, info: dict[str, str], *, needs_disk: bool = False) -> None:
    """Check the answer of `INFO`.

    Raises:
        UnfitServer: with what to change.
    """
    version = info.get("redis_version", "0")
    numbers = tuple(int(one) for one in re.findall(r"\d+", version)[:2])
    if numbers < VERSION_MIN:
        raise UnfitServer(f"{address} is version {version}; the engine needs Redis or Valkey 7.2 or newer")
    if info.get("role") == "slave" and info.get("cluster_enabled") != "1":
        raise UnfitServer(f"{address} is a replica: the engine needs the address of its primary")
    policy = info.get("maxmemory_policy", "")
    if policy != "noeviction":
        raise UnfitServer(
            f"{address} may delete messages when its memory is full: set `maxmemory-policy noeviction` (it is {policy!r})"
        )
    if needs_disk and info.get("aof_enabled") != "1":
        raise UnfitServer(f"{address} has no append-only file, which `acks: fsync` needs: set `appendonly yes`")


def decoded_info(answer: bytes) -> dict[str, str]:
    """The fields of an answer of `INFO`."""
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
