"""Snapshots that callers read: in parts, at most two at a time, and closed when they are not read."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from dss_api.errors import Refused
from dss_raft import exports
from dss_raft.core.messages import Configuration, Member, SnapshotMeta
from dss_raft.disk.store_thread import StoreThread
from dss_raft.exports import EXPORTS_MAX, IDLE_S, Exports

DATA = bytes(range(251)) * 5000


class Snapshots:
    """In place of applying and the store: one snapshot in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: SnapshotMeta | None = SnapshotMeta(7, 2, Configuration((Member("a", "http://a:1"),)), len(DATA))
        self.wanted: list[int] = []

    async def snapshot_from(self, index: int) -> SnapshotMeta | None:
        self.wanted.append(index)
        return self.meta

    def open_snapshot(self, meta: SnapshotMeta):
        return self.path.open("rb", buffering=0)


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    path = tmp_path / "7.snap"
    path.write_bytes(DATA)
    return Snapshots(path)


@pytest.fixture
async def node(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exports, "SNAPSHOT_INTERVAL_S", 0.0)
    store_thread = StoreThread(asyncio.get_running_loop())
    node = Exports("a", "dss", snapshots, snapshots, store_thread)  # type: ignore[arg-type]
    yield node
    node.close()
    store_thread.close()


async def refusal(action) -> str:
    with pytest.raises(Refused) as refused:
        await action
    return refused.value.code


async def test_it_is_read_in_parts_although_another_snapshot_replaces_it(node: Exports, snapshots: Snapshots) -> None:
    export_id, header = await node.begin(5)
    assert snapshots.wanted == [5]
    assert (header.cluster, header.node, header.index, header.term) == ("dss", "a", 7, 2)
    assert (header.bytes, header.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    snapshots.path.unlink()
    read = b""
    while part := await node.read(export_id, len(read)):
        assert len(part) <= exports.CHUNK_BYTES
        read += part
    assert read == DATA
    assert await refusal(node.read(export_id, 0)) == "not_found", "the end closes it"


async def test_there_is_one_at_a_time_and_one_in_an_interval(
    node: Exports, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "SNAPSHOT_INTERVAL_S", 5.0)
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(node, "_loop", _LoopAt(now))
    _, refused = await asyncio.gather(node.begin(1), node.begin(1), return_exceptions=True)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.extra["limit"]) == ("over_limit", "snapshot_interval_s")
    assert snapshots.wanted == [1]
    monkeypatch.setattr(node, "_loop", _LoopAt(now + 4))
    assert await refusal(node.begin(1)) == "over_limit"
    monkeypatch.setattr(node, "_loop", _LoopAt(now + 6))
    await node.begin(1)


async def test_there_are_at_most_two(node: Exports) -> None:
    begun = [await node.begin(1) for _ in range(EXPORTS_MAX)]
    assert await refusal(node.begin(1)) == "over_limit"
    assert await node.read(begun[0][0], 2**63 - 1) == b""
    await node.begin(1)


async def test_one_that_is_not_read_is_closed(node: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    (read, _), (left, _) = await node.begin(1), await node.begin(1)
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(node, "_loop", _LoopAt(now + IDLE_S - 1))
    node.close_idle()
    assert await node.read(read, 0)
    monkeypatch.setattr(node, "_loop", _LoopAt(now + 2 * IDLE_S - 2))
    node.close_idle()
    assert await node.read(read, 0)
    assert await refusal(node.read(left, 0)) == "not_found"


class _LoopAt:
    """The running loop at another time."""

    def __init__(self, now_s: float) -> None:
        self.time = lambda: now_s
        self.run_in_executor = asyncio.get_running_loop().run_in_executor


async def test_a_node_that_can_take_none_says_so(node: Exports, snapshots: Snapshots) -> None:
    snapshots.meta = None
    assert await refusal(node.begin(1)) == "not_ready"
    snapshots.meta = SnapshotMeta(0, 0, Configuration(()))
    assert await refusal(node.begin(1)) == "not_ready"
    snapshots.meta = SnapshotMeta(7, 2, Configuration(()), len(DATA))
    for _ in range(EXPORTS_MAX):
        await node.begin(1)
