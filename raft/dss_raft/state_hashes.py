"""The nodes compare hashes of their states, and report a state that differs.

1. The leader proposes `HashState` every DSS_STATE_HASH_INTERVAL_S, if the log has new entries.
2. Each node that applies it hashes its state at that index: in the process if the state is small, otherwise in a child process, like a
   snapshot. While it is taking a snapshot, it skips the round: a missing hash is not a difference.
3. The nodes send their hashes (`Hashed`) to each other, when they have them and when a link comes up, and keep the last few.
4. Different hashes of one index raise an alarm on both nodes. It stays until the other node is removed or has another store
   (`manage.py member replace`). Equal hashes later do not end it: a state that was wrong may have given wrong answers, and may still be
   wrong in a way that the hash does not show.

A payload begins with the version of the format, 1 byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from dss_api.supervised import Tasks
from dss_raft import metrics
from dss_raft.core import RaftCore, Role
from dss_raft.disk.forked import Child, ChildFailed
from dss_raft.formats import Format
from dss_raft.replication.commands import Command, HashState
from dss_raft.replication.replica import Replica
from dss_raft.replication.snapshot_keeper import SnapshotKeeper
from dss_raft.replication.state_hash import Hashes, differing_parts, state_hashes

log = structlog.get_logger("raft")

CHANNEL = "state_hash"
FORMAT = Format("a state's hash", 1)
#: How many hashes are kept of each node. Those of a peer may be of entries that this node has not applied yet.
KEPT_MAX = 8


class Hashed(msgspec.Struct, frozen=True, array_like=True):
    """The hashes of a node's state after one entry."""

    index: int
    cluster_version: int
    hashes: Hashes


class Difference(msgspec.Struct, frozen=True):
    """A peer had another state."""

    index: int
    parts: tuple[str, ...]
    #: the peer's; when it has another one, the alarm ends
    store: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Hashed).decode


class HashingNode(Protocol):
    """What the hashes need from their node."""

    def send(self, peer_id: str, channel: str, payload: bytes) -> None: ...

    def propose_as_leader(self, command: Command) -> bool: ...


class StateHashes:
    """The hashes of one node and of its peers.

    Args:
        directory: of the store, for the file of the child process.
        interval_s: how often a leader asks for hashes; 0: never.
    """

    def __init__(
        self,
        node: HashingNode,
        core: RaftCore,
        replica: Replica,
        snapshots: SnapshotKeeper,
        directory: Path,
        interval_s: float,
        now_s: float,
    ) -> None:
        self._node = node
        self._core = core
        self._replica = replica
        self._snapshots = snapshots
        self._file = directory / "hashes.child"
        self._interval_s = interval_s
        #: time and entry of the last `HashState` that was proposed or applied here
        self._asked_s = now_s
        self._asked_index = 0
        self._child: Child | None = None
        self._tasks = Tasks()
        self._own: dict[int, Hashed] = {}
        self._of_peers: dict[str, dict[int, Hashed]] = {}
        #: peer -> the last difference that was found
        self.differing: dict[str, Difference] = {}

    def ticked(self, now_s: float) -> None:
        """A tick has passed; `now_s` is the time of a monotonic clock."""
        if self.differing:
            self._forget_rebuilt()
        if self._is_due(now_s) and self._node.propose_as_leader(HashState()):
            self._asked_s = now_s

    def begin(self, now_s: float) -> None:
        """Hash the state as it is now, after the entry that was applied last."""
        index = self._asked_index = self._replica.applied_index
        self._asked_s = now_s
        if self._snapshots.is_small(self._core):
            self._add_own(Hashed(index, self._replica.cluster_version, state_hashes(self._replica)))
        elif self._child is not None or self._snapshots.is_taking:
            self._not_hashed(index, "another child process is writing the state")
        else:
            try:
                self._child = Child(self._encoded, self._file, sync=False)
            except ChildFailed as error:
                self._not_hashed(index, str(error))
            else:
                self._tasks.spawn("raft", self._finish(index, self._child))

    def receive(self, peer: str, payload: bytes) -> None:
        """A frame on the channel.

        Raises:
            WrongFormat: a newer release sent it.
        """
        FORMAT.of_binary(payload)
        hashed = _decode(memoryview(payload)[1:])
        _keep(self._of_peers.setdefault(peer, {}), hashed)
        self._compare(peer, hashed.index)

    def linked(self, peer: str) -> None:
        """A link is up. Send the kept hashes: the peer may have missed some."""
        for hashed in self._own.values():
            self._tell(peer, hashed)

    async def stop(self) -> None:
        """End the child process, if there is one."""
        await self._tasks.stop()
        if self._child is not None:
            self._child.kill()

    def status(self) -> dict[str, Any]:
        """The field `state_hash` of `GET /raft/status`."""
        index = max(self._own, default=None)
        return {
            "index": index,
            "agreeing": [] if index is None else self._agreeing(index),
            "differing": sorted(self.differing),
            "parts": sorted({part for difference in self.differing.values() for part in difference.parts}),
        }

    def _is_due(self, now_s: float) -> bool:
        core = self._core
        return (
            0 < self._interval_s <= now_s - self._asked_s
            and core.role == Role.LEADER
            and len(core.membership.ids) > 1
            and self._replica.cluster_version >= HashState.since
            and core.last_index > self._asked_index
        )

    def _encoded(self) -> bytes:
        """Called in the child process."""
        return _encode(Hashed(self._replica.applied_index, self._replica.cluster_version, state_hashes(self._replica)))

    async def _finish(self, index: int, child: Child) -> None:
        try:
            await child.ended()
            hashed = _decode(self._file.read_bytes())
            self._file.unlink(missing_ok=True)
        except (ChildFailed, OSError) as error:
            self._not_hashed(index, str(error))
        else:
            self._add_own(hashed)
        finally:
            self._child = None

    def _not_hashed(self, index: int, reason: str) -> None:
        metrics.state_not_hashed()
        log.info("raft.state_not_hashed", index=index, reason=reason)

    def _add_own(self, hashed: Hashed) -> None:
        metrics.state_hashed()
        _keep(self._own, hashed)
        log.debug("raft.state_hashed", index=hashed.index, hashes={part: digest.hex() for part, digest in hashed.hashes.items()})
        for member in sorted(self._core.membership.ids):
            self._tell(member, hashed)
        for peer in list(self._of_peers):
            self._compare(peer, hashed.index)

    def _tell(self, peer: str, hashed: Hashed) -> None:
        if peer != self._core.node_id:
            self._node.send(peer, CHANNEL, bytes([FORMAT.version]) + _encode(hashed))

    def _parts(self, peer: str, index: int) -> list[str] | None:
        """The parts in which the states after the entry `index` differ; None if they cannot be compared."""
        own, other = self._own.get(index), self._of_peers[peer].get(index)
        if own is None or other is None or own.cluster_version != other.cluster_version:
            return None
        return differing_parts(own.hashes, other.hashes)

    def _agreeing(self, index: int) -> list[str]:
        members = self._core.membership.ids
        return sorted(peer for peer in self._of_peers if peer in members and self._parts(peer, index) == [])

    def _compare(self, peer: str, index: int) -> None:
        parts = self._parts(peer, index)
        known = self.differing.get(peer)
        if not parts or (known is not None and known.index >= index):
            return
        self.differing[peer] = Difference(index, tuple(parts), self._core.membership.stores.get(peer, ""))
        metrics.STATE_DIFFERS.set(len(self.differing))
        log.error(
            "raft.state_differs",
            index=index,
            node=self._core.node_id,
            peer=peer,
            parts=parts,
            agreeing=self._agreeing(index),
            advice="see docs/how-to/state-differs.md",
        )

    def _forget_rebuilt(self) -> None:
        """End the alarm about members that are gone, or have another store."""
        membership = self._core.membership
        for peer, difference in list(self.differing.items()):
            if peer not in membership.ids or membership.stores.get(peer, "") not in ("", difference.store):
                del self.differing[peer]
                self._of_peers.pop(peer, None)
                metrics.STATE_DIFFERS.set(len(self.differing))
                log.info("raft.state_rebuilt", peer=peer)


def _keep(kept: dict[int, Hashed], hashed: Hashed) -> None:
    """Keep the hashes of the highest indexes."""
    kept[hashed.index] = hashed
    while len(kept) > KEPT_MAX:
        del kept[min(kept)]
