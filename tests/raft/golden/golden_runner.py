"""Interaction scripts with golden output, like etcd-io/raft's testdata: a command, a line of dashes, everything that happened.

    golden_runner.py                 run all scripts and print which differ
    golden_runner.py --rewrite       write the present output into the scripts, to review a protocol change as a diff

A script is blocks separated by empty lines: comments (#), one command, "----", its output. Commands:

    nodes ID... [learners=ID,ID] [option=N...]   the cluster; times are 10 to 20 ticks for elections, 2 for heartbeats
    join ID                                      a node that waits to be contacted
    campaign ID [force]     tick ID [N]          propose ID DATA...      read ID CONTEXT      transfer ID TO
    add ID MEMBER           promote ID MEMBER    remove ID MEMBER
    ready ID                one Ready: its write starts and is not durable yet
    persisted ID            the write in progress becomes durable
    deliver ID [from=ID] [count=N] [again]       messages in flight to ID arrive, oldest first (`again`: they stay in flight)
    drop ID [from=ID]       messages in flight to ID are lost
    crash ID                memory and the write in progress are lost; the node starts again
    compact ID [keep=N]     a snapshot of what is applied is durable
    stabilize [ID...]       writes, messages and answers among these nodes until nothing more happens
    log ID...               term, vote, commit and entries
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from raft_harness import Cluster, Node

from dss_raft.core import AddLearner, Busy, ChangeRefused, InvariantViolation, NotLeader, Promote, Remove
from dss_raft.core.membership import decode
from dss_raft.core.messages import (
    AppendEntries,
    AppendReply,
    Entry,
    EntryKind,
    InstallSnapshot,
    PreVote,
    PreVoteReply,
    ReadIndexReply,
    ReadIndexRequest,
    RequestVote,
    SnapshotMeta,
    SnapshotReply,
    VoteReply,
)
from dss_raft.core.ready import Ready

FOLDER = Path(__file__).parent
CHUNK_BYTES = 10
#: more rounds than any script needs
STABILIZE_ROUNDS_MAX = 200


class World:
    """The cluster of one script, its messages in flight, and the output so far."""

    def __init__(self) -> None:
        self.cluster = Cluster([])
        self.under_way: list[Any] = []
        self.out: list[str] = []

    def node(self, node_id: str) -> Node:
        return self.cluster[node_id]

    def say(self, text: str) -> None:
        self.out.append(text)

    def run(self, command: str) -> str:
        """Everything that one command causes, as text."""
        name, *words = command.split()
        plain = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        self.out = []
        before = self._faces()
        try:
            action: Callable[..., None] = getattr(self, f"do_{name}")
            action(*plain, **options)
        except (NotLeader, Busy, ChangeRefused, InvariantViolation) as error:
            self.say(f"{type(error).__name__}: {error}")
        self._tell_changes(before)
        return "\n".join(self.out) or "ok"

    def _faces(self) -> dict[str, str]:
        return {node.id: face(node) for node in self.cluster.nodes.values()}

    def _tell_changes(self, before: dict[str, str]) -> None:
        for node_id, now in self._faces().items():
            if before.get(node_id) != now:
                self.say(f"{node_id} is {now}")

    # ---- commands

    def do_nodes(self, *ids: str, learners: str = "", **options: str) -> None:
        numbers = {name: int(value) for name, value in options.items()}
        self.cluster = Cluster(list(ids), learners=learners.replace(",", ""), **numbers)
        for node in self.cluster.nodes.values():
            node.hold_writes = True

    def do_join(self, node_id: str) -> None:
        self.cluster.add(node_id).hold_writes = True

    def do_campaign(self, node_id: str, force: str = "") -> None:
        self.node(node_id).core.campaign(force=bool(force))

    def do_tick(self, node_id: str, count: str = "1") -> None:
        for _ in range(int(count)):
            self.node(node_id).core.tick()

    def do_propose(self, node_id: str, *data: str) -> None:
        for each in data:
            self.say(f"{each} is entry {self.node(node_id).core.propose(each.encode())}")

    def do_read(self, node_id: str, context: str) -> None:
        self.node(node_id).core.read_index(int(context))

    def do_transfer(self, node_id: str, to: str) -> None:
        self.node(node_id).core.transfer(to)

    def do_add(self, node_id: str, member: str) -> None:
        self.say(f"entry {self.node(node_id).core.change(AddLearner(member, ''))}")

    def do_promote(self, node_id: str, member: str) -> None:
        self.say(f"entry {self.node(node_id).core.change(Promote(member))}")

    def do_remove(self, node_id: str, member: str) -> None:
        self.say(f"entry {self.node(node_id).core.change(Remove(member))}")

    def do_ready(self, node_id: str) -> None:
        if not self._ready(self.node(node_id)):
            self.say("nothing")

    def do_persisted(self, node_id: str) -> None:
        node = self.node(node_id)
        if node.held is None:
            self.say("nothing in progress")
        node.flush()

    def do_deliver(self, node_id: str, again: str = "", **options: str) -> None:
        arriving = self._to(node_id, options.get("from", ""))[: int(options.get("count", "1000"))]
        if not again:
            self.under_way = [message for message in self.under_way if not any(message is each for each in arriving)]
        for message in arriving:
            self.say(brief(message))
            self.node(node_id).core.step(message)

    def do_drop(self, node_id: str, **options: str) -> None:
        lost = self._to(node_id, options.get("from", ""))
        self.under_way = [message for message in self.under_way if not any(message is each for each in lost)]
        for message in lost:
            self.say(f"lost: {brief(message)}")

    def do_crash(self, node_id: str) -> None:
        self.node(node_id).start()

    def do_compact(self, node_id: str, keep: str = "0") -> None:
        node = self.node(node_id)
        meta = node.core.meta_at(node.core.applied_index)
        meta = SnapshotMeta(meta.index, meta.term, meta.configuration, size=2 * CHUNK_BYTES, crc=1)
        node.store.snapshot = meta
        node.core.compact(meta, int(keep))
        self.say(f"{node_id} has a snapshot at {meta.index}@{meta.term}, its log begins after {node.core.log.base_index}")

    def do_stabilize(self, *ids: str) -> None:
        chosen = [self.node(node_id) for node_id in (ids or self.cluster.nodes)]
        for _ in range(STABILIZE_ROUNDS_MAX):
            busy = False
            for node in chosen:
                while self._ready(node):
                    busy = True
                if node.held is not None:
                    node.flush()
                    self.say(f"{node.id} persisted")
                    busy = True
            for node in chosen:
                arriving = [m for m in self._to(node.id, "") if any(m.sender == other.id for other in chosen)]
                busy = busy or bool(arriving)
                for message in arriving:
                    self.under_way.remove(message)
                    self.say(brief(message))
                    node.core.step(message)
            if not busy:
                return
        self.say("never settles")

    def do_log(self, *ids: str) -> None:
        for node_id in ids:
            node = self.node(node_id)
            core = node.core
            held = core.log.slice(core.log.first_index, core.last_index)
            marks = f"term {core.term}, vote {core.vote or 'none'}, commit {core.commit_index}, durable {core.log.durable}"
            self.say(f"{node_id}: {marks}: {entries(held)}")

    # ---- work of the core

    def _to(self, node_id: str, sender: str) -> list[Any]:
        return [m for m in self.under_way if m.to == node_id and sender in ("", m.sender)]

    def _ready(self, node: Node) -> bool:
        ready = node.core.take_ready()
        if ready is None:
            return False
        if ready.persist is not None:
            self._write(node, ready)
        for message in ready.messages:
            self.say(f"{node.id} sends {brief(message)}")
            self.under_way.append(message)
        for wanted in ready.chunks_wanted:
            done = wanted.offset + CHUNK_BYTES >= wanted.meta.size
            chunk = InstallSnapshot(
                sender=node.id,
                to=wanted.to,
                term=wanted.term,
                meta=wanted.meta,
                offset=wanted.offset,
                data=b"s" * CHUNK_BYTES,
                crc=0,
                done=done,
            )
            self.say(f"{node.id} sends {brief(chunk)}")
            self.under_way.append(chunk)
        for chunk in ready.chunks_received:
            stored = chunk.offset + len(chunk.data)
            self.say(f"{node.id} stores bytes up to {stored} of snapshot {chunk.meta.index}")
            node.core.chunk_stored(chunk.meta, stored, stored == chunk.meta.size)
        self._take_in(node, ready)
        return True

    def _write(self, node: Node, ready: Ready) -> None:
        persist = ready.persist
        assert persist is not None
        node.held = persist
        parts = [f"term {persist.hard_state.term}, vote {persist.hard_state.vote or 'none'}"]
        if persist.snapshot is not None:
            parts.append(f"snapshot {persist.snapshot.index}@{persist.snapshot.term}")
        if persist.truncate_from:
            parts.append(f"remove from {persist.truncate_from} on")
        if persist.entries:
            parts.append(entries(persist.entries))
        self.say(f"{node.id} writes {'; '.join(parts)}")

    def _take_in(self, node: Node, ready: Ready) -> None:
        if ready.restore is not None:
            self.say(f"{node.id} restores snapshot {ready.restore.index}@{ready.restore.term}")
            node.core.applied(ready.restore.index)
        if ready.committed:
            self.say(f"{node.id} applies {entries(ready.committed)}")
            node.core.applied(ready.committed[-1].index)
        for read in ready.read_states:
            answer = f"at {read.index}" if read.ok else "refused: ask again"
            self.say(f"{node.id} read {read.context} {answer}")


def face(node: Node) -> str:
    """A node's state in one line."""
    core = node.core
    role = "PRE-CANDIDATE" if core.is_pre_candidate else core.role.name
    return f"{role} in term {core.term}, leader {core.leader_id or 'unknown'}, members {' '.join(members(core.configuration))}"


def members(configuration: Any) -> list[str]:
    return [f"{member.id}(learner)" if member.learner else member.id for member in configuration.members]


def entries(some: list[Entry]) -> str:
    """index@term:payload of each."""
    if not some:
        return "nothing"
    texts = []
    for entry in some:
        if entry.kind == EntryKind.COMMANDS:
            text = entry.data.decode()
        elif entry.kind == EntryKind.NOOP:
            text = "no-op"
        else:
            text = f"[{' '.join(members(decode(entry)))}]"
        texts.append(f"{entry.index}@{entry.term}:{text}")
    return " ".join(texts)


def brief(message: Any) -> str:
    """A message on one line."""
    line = f"{message.sender}->{message.to} {type(message).__name__} term {message.term}"
    match message:
        case PreVote() | RequestVote():
            force = " by force" if getattr(message, "transfer", False) else ""
            return f"{line} last {message.last_index}@{message.last_term}{force}"
        case PreVoteReply() | VoteReply():
            return f"{line} {'granted' if message.granted else 'refused'}"
        case AppendEntries():
            body = f" {entries(message.entries)}" if message.entries else ""
            return f"{line} after {message.prev_index}@{message.prev_term} commit {message.commit} round {message.round}{body}"
        case AppendReply() if message.ok:
            return f"{line} match {message.match} round {message.round}"
        case AppendReply():
            return f"{line} refuses {message.prev_index}, try {message.hint_index}@{message.hint_term}"
        case InstallSnapshot():
            last = " (last)" if message.done else ""
            return f"{line} {message.meta.index}@{message.meta.term} from byte {message.offset}{last}"
        case SnapshotReply():
            return f"{line} {message.index} {'installed' if message.done else f'up to byte {message.next_offset}'}"
        case ReadIndexRequest():
            return line
        case ReadIndexReply():
            return f"{line} {f'at {message.index}' if message.ok else 'refused'}"
    return line


def play(script: str) -> str:
    """The script with its present output."""
    world = World()
    blocks = []
    for block in script.strip().split("\n\n"):
        head = block.split("\n----\n")[0].rstrip("\n").removesuffix("\n----")
        commands = [line for line in head.splitlines() if line and not line.startswith("#")]
        if not commands:
            blocks.append(head)
            continue
        (command,) = commands
        blocks.append(f"{head}\n----\n{world.run(command)}")
    return "\n\n".join(blocks) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewrite", action="store_true", help="take what happens now as golden")
    options = parser.parse_args()
    different = 0
    for path in sorted(FOLDER.glob("*.txt")):
        before = path.read_text()
        now = play(before)
        if now == before:
            continue
        different += 1
        print(f"{'rewritten' if options.rewrite else 'differs'}: {path.name}")
        if options.rewrite:
            path.write_text(now)
    return 1 if different and not options.rewrite else 0


if __name__ == "__main__":
    sys.exit(main())
