"""The checks that must hold at every moment, whatever the world does. Each has a name, which its `Violation` carries.

All checks look only at the node that has just acted, so that a step costs the same in a long run as in a short one.

    election_safety      at most one leader per term (paper, figure 3)
    leader_completeness  a new leader holds every entry committed in an earlier term
    log_matching         an index and a term identify one entry, with one predecessor
    state_machine_safety one entry is committed at an index, and one state results from it
    monotone             term, vote, commit index and applied index never go back, across restarts where they are durable
    promise              no vote, acknowledgement or term is sent before it is durable
    vote                 no disk votes that is empty, outdated, or not the member's
    majority             what a leader commits is durable on the disks of a majority of its voters
    quorum               a removal leaves a majority of voters whose disks can vote
    linearizable_read    a read's index is at least what any node had applied when it was requested
    answered             what a proposer was told about its proposal is true, and stays true
    exactly_once         a session's commands are applied once each, in order, with the same answers on every node; a client's request is
                         carried out once, at whichever nodes it is repeated, and never after it was refused as forgotten
    time                 applied time never goes back, and is never faster than real time, whatever single clocks show; it is advanced
                         only to what the clocks of a majority show
    version              no node applies anything from a version on that its release does not support; the version is raised only while
                         all members, as they have last announced it to the leader, support it; no newer command is proposed before
    progress             once healed, a leader is elected and commits, and every node catches up; the version rises if all are new
    core_invariant       the core's own run-time checks
    crash                an unexpected exception
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sim_clocks import AGREE_MS

from dss_api.result import Result
from dss_raft.core import RaftCore, Role
from dss_raft.core.messages import AppendEntries, AppendReply, Entry, EntryKind, PreVote, PreVoteReply, SnapshotReply, VoteReply
from dss_raft.replication.batch import decode_raw
from dss_raft.replication.clocks import PULL
from dss_raft.replication.replica import SET_VERSION_TAG
from dss_raft.versions import Supported

if TYPE_CHECKING:
    from sim_node import SimNode

#: how long the word of a clock may be on its way to a node that is paused
LATE_MS = 2_000


class Violation(Exception):
    """A named check has failed."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check = check


class Checker:
    """Knows the whole history, unlike any node."""

    def __init__(self) -> None:
        self.nodes: dict[str, SimNode] = {}
        self.leaders: dict[int, str] = {}
        #: (store of the voter, term) -> candidate, from the votes that were sent
        self.votes: dict[tuple[str, int], str] = {}
        #: (index, term) -> (entry, term of the previous entry)
        self.entries: dict[tuple[int, int], tuple[Entry, int]] = {}
        #: index -> entry that some node committed
        self.committed: dict[int, Entry] = {}
        self.commit_max = 0
        #: term -> highest index that a node in this term knew to be committed
        self.commit_of_term: dict[int, int] = {}
        #: index -> hash of the state after it
        self.states: dict[int, int] = {0: 0}
        self.applied_max = 0
        #: context -> highest index applied on any node when the read was requested
        self.floors: dict[int, int] = {}
        #: (node, incarnation, seq) -> (index, total) as first answered
        self.session_answers: dict[tuple[str, int, int], tuple[int, int]] = {}
        #: (node, incarnation, seq) of commands that may not reach the machine
        self.apart: set[tuple[str, int, int]] = set()
        #: value of a client's request -> index at which it was carried out
        self.carried_out: dict[int, int] = {}
        #: value of a client's request -> its first answer: index and total
        self.request_answers: dict[int, tuple[int, int]] = {}
        #: value of a client's request -> the first index at which it was refused as forgotten
        self.refused: dict[int, int] = {}
        #: index -> the cluster version that the entry there sets
        self.versions: dict[int, int] = {}
        #: (node, peer) -> what the peer has last announced to the node
        self.announced: dict[tuple[str, str], Supported] = {}
        #: (index, term) -> when it was proposed
        self.proposed_us: dict[tuple[int, int], int] = {}
        #: index -> (term, when it was proposed, applied time after it)
        self.stamped: dict[int, tuple[int, int, int]] = {}
        #: when the latest stamped entry was proposed, and the most that applied time can be then
        self.latest = (0, 0.0)
        self.reads_answered = 0
        self.answered = 0

    # ---- after every event, for the node that moved

    def moved(self, node: SimNode) -> None:
        core = node.core
        term = core.term
        if term != node.seen_term or core.role is not node.seen_role:
            if term < node.seen_term:
                raise Violation("monotone", f"{node.id} went from term {node.seen_term} back to {term}")
            if core.role is Role.LEADER:
                self._leads(node)
            node.seen_term = term
            node.seen_role = core.role
        commit = core.log.committed
        if commit != node.seen_commit:
            self._committed(node, commit)

    def _leads(self, node: SimNode) -> None:
        core = node.core
        known = self.leaders.setdefault(core.term, node.id)
        if known != node.id:
            raise Violation("election_safety", f"{known} and {node.id} both lead term {core.term}")
        # a leader of an older term, elected by late votes, is legal: it will commit nothing
        index = max((last for term, last in self.commit_of_term.items() if term < core.term), default=0)
        if index > core.log.base_index:
            wanted = self.committed[index].term
            if core.log.term(index) != wanted:
                raise Violation("leader_completeness", f"{node.id} leads term {core.term} without entry {index} of term {wanted}")

    def _committed(self, node: SimNode, commit: int) -> None:
        core = node.core
        if commit < node.seen_commit:
            raise Violation("monotone", f"{node.id}'s commit index went from {node.seen_commit} back to {commit}")
        first = max(node.seen_commit, core.log.base_index) + 1
        committed = self.committed
        for entry in core.log.slice(first, commit):
            known = committed.setdefault(entry.index, entry)
            if known is not entry and known != entry:
                raise Violation(
                    "state_machine_safety", f"entry {entry.index} is committed with terms {known.term} and {entry.term}"
                )
        if core.role is Role.LEADER:
            self._is_on_a_majority(core, self.committed[commit])
        node.seen_commit = commit
        self.commit_max = max(self.commit_max, commit)
        self.commit_of_term[core.term] = max(self.commit_of_term.get(core.term, 0), commit)

    def _is_on_a_majority(self, core: RaftCore, entry: Entry) -> None:
        """What was on a disk that was lost since counts, too: it had been acknowledged."""
        members = core.membership
        count = 0
        for voter in members.voters:
            node, store_id = self.nodes[voter], members.stores.get(voter)
            disks = [disk for disk in (node.store, node.lost) if disk is not None and store_id in (None, disk.id)]
            count += any(disk.holds(entry) for disk in disks)
        if count <= len(members.voters) // 2:
            raise Violation("majority", f"{core.node_id} commits entry {entry.index}, which is on {count} of {members.voters}")

    def removed(self, leader: SimNode, node_id: str, without_vote: list[str]) -> None:
        """The leader was asked, and removes a member."""
        voters = leader.core.membership.voters
        able = [voter for voter in voters if voter not in without_vote]
        if len(able) <= len(voters) // 2:
            raise Violation("quorum", f"{leader.id} removes {node_id}, and only {able} of {voters} have a vote")

    # ---- what a node writes and sends

    def appended(self, node: SimNode, entries: list[Entry], prev_term: int) -> None:
        """A write is given to the disk. Every entry of every log passes here."""
        known = self.entries
        for entry in entries:
            other, before = known.setdefault((entry.index, entry.term), (entry, prev_term))
            if before != prev_term or (other is not entry and other != entry):
                raise Violation("log_matching", f"two entries ({entry.index}, term {entry.term}), one on {node.id}")
            prev_term = entry.term

    def leaves(self, node: SimNode, message: Any) -> None:
        """No promise before its write."""
        store = node.store
        kind = type(message)
        if message.term > store.hard_state.term and kind not in (PreVote, PreVoteReply):
            raise Violation("promise", f"{node.id} says term {message.term}, durable is {store.hard_state.term}")
        if kind is AppendReply:
            if message.ok and message.match > store.last_index:
                raise Violation("promise", f"{node.id} acknowledges {message.match}, durable is {store.last_index}")
        elif kind is VoteReply:
            if message.granted:
                self._voted(node, message)
        elif kind is AppendEntries:
            if self.leaders.get(message.term) != node.id:
                raise Violation("election_safety", f"{node.id} sends entries of term {message.term} without leading it")
        elif kind is SnapshotReply and message.done and message.index > store.last_index:
            raise Violation("promise", f"{node.id} says it has installed {message.index}, durable is {store.last_index}")

    def _voted(self, node: SimNode, message: VoteReply) -> None:
        hard, store = node.store.hard_state, node.store
        if store.is_empty or store.is_outdated or node.core.membership.is_other_store(node.id, store.id):
            raise Violation("vote", f"{node.id} votes in term {message.term} although its disk has no vote")
        if hard.term == message.term and hard.vote != message.to:
            raise Violation("promise", f"{node.id} votes for {message.to} in term {message.term}, durable is {hard.vote!r}")
        known = self.votes.setdefault((node.store.id, message.term), message.to)
        if known != message.to:
            raise Violation("monotone", f"{node.id} votes for {known} and {message.to} in term {message.term}")

    # ---- state machines, reads, answers

    def applied(self, node: SimNode, index: int, state: int) -> None:
        known = self.states.setdefault(index, state)
        if known != state:
            raise Violation("state_machine_safety", f"{node.id}'s state after {index} differs from another's")
        if index > self.applied_max:
            self.applied_max = index

    def proposed(self, node: SimNode, index: int, data: bytes) -> None:
        node.proposed[index] = (node.core.term, data)
        self.proposed_us[index, node.core.term] = node.clocks.time.now_us()
        if node.sessions is not None:
            self.own_proposed(node, data)
            if b"sim.add_twice" in data and not self.versions:
                raise Violation("version", f"{node.id} proposes a command of version 2 before that version")

    def delivered(self, node: SimNode, entry: Entry) -> None:
        """The entry must be at the index that `propose` returned."""
        term, data = node.proposed.pop(entry.index, (0, b""))
        if term == entry.term:
            if entry.kind != EntryKind.COMMANDS or entry.data != data:
                raise Violation("answered", f"{node.id} was promised {data!r} at {entry.index}, committed is {entry.data!r}")
            self.answered += 1

    def time_applied(self, entry: Entry, before_ms: int, after_ms: int, is_advanced: bool) -> None:
        """Applied time never goes back, and is never faster than real time, except where an entry advances it."""
        if after_ms < before_ms:
            raise Violation("time", f"entry {entry.index} sets applied time from {before_ms} back to {after_ms}")
        proposed_us = self.proposed_us.get((entry.index, entry.term))
        if proposed_us is None or entry.index in self.stamped:
            return
        term, earlier_us, earlier_ms = self.stamped.get(entry.index - 1, (0, 0, 0))
        self.stamped[entry.index] = (entry.term, proposed_us, after_ms)
        passed_ms = (proposed_us - earlier_us) / 1000
        if not is_advanced and term == entry.term and after_ms - earlier_ms > passed_ms * (1 + PULL) + 2:
            raise Violation("time", f"entry {entry.index} moves applied time by {after_ms - earlier_ms} ms in {passed_ms:g} ms")
        self._envelope(entry.index, proposed_us, after_ms, is_advanced)

    def _envelope(self, index: int, proposed_us: int, after_ms: int, is_advanced: bool) -> None:
        """The same from one leader to the next: no leader is ahead of where all earlier ones can be by now."""
        latest_us, latest_ms = self.latest
        latest_ms += (proposed_us - latest_us) / 1000 * (1 + PULL)
        if latest_us and not is_advanced and after_ms > latest_ms + 2:
            raise Violation("time", f"entry {index} sets applied time to {after_ms}, although it was at most {latest_ms:g} then")
        self.latest = (proposed_us, max(latest_ms, after_ms))

    def own_proposed(self, node: SimNode, data: bytes) -> None:
        for command in map(msgspec.msgpack.decode, decode_raw(data).own):
            if command["op"] == "raft.set_cluster_version":
                self.version_proposed(node, command["version"])
            else:
                self.time_advance_proposed(node, command["to_ms"])

    def time_advance_proposed(self, node: SimNode, to_ms: int) -> None:
        """Time may be advanced only to what the wall clocks of a majority of the voters show, or have shown a moment ago."""
        voters = node.core.membership.voters
        clocks = [node.clocks.time.clocks[voter] for voter in voters]
        agreeing = sum(clock.has_shown(to_ms, AGREE_MS + LATE_MS) for clock in clocks)
        node.clocks.time.happened["time advanced"] += 1
        if agreeing <= len(voters) // 2:
            raise Violation("time", f"{node.id} advances time to {to_ms}, as {agreeing} of {len(voters)} clocks show")

    def version_applied(self, node: SimNode, entry: Entry) -> None:
        """The node has applied an entry."""
        if entry.kind == EntryKind.COMMANDS and SET_VERSION_TAG in entry.data and entry.index not in self.versions:
            found = [each["version"] for each in map(msgspec.msgpack.decode, decode_raw(entry.data).own) if "version" in each]
            self.versions[entry.index] = max(found)
            node.releases.happened["version raised"] += 1
        self.version_restored(node, entry.index)

    def version_restored(self, node: SimNode, index: int) -> None:
        """The node's state is now that after `index`."""
        for at, version in self.versions.items():
            if at <= index and version not in node.supported:
                raise Violation(
                    "version", f"{node.id} supports {node.supported} and applies {index}, but {at} sets version {version}"
                )

    def version_proposed(self, node: SimNode, version: int) -> None:
        for member in node.core.membership.ids:
            supported = node.supported if member == node.id else self.announced.get((node.id, member))
            if supported is None or version not in supported:
                raise Violation("version", f"{node.id} proposes version {version}, but {member} announced {supported}")

    def session_answered(self, node_id: str, incarnation: int, seq: int, index: int, total: int) -> None:
        known = self.session_answers.setdefault((node_id, incarnation, seq), (index, total))
        if known != (index, total):
            raise Violation("exactly_once", f"{node_id}'s command {incarnation}.{seq} is answered {(index, total)} after {known}")

    def request_carried_out(self, value: int, index: int) -> None:
        known = self.carried_out.setdefault(value, index)
        if known != index:
            raise Violation("exactly_once", f"request {value} is carried out at {known} and at {index}")
        if self.refused.get(value, index) < index:
            raise Violation(
                "exactly_once", f"request {value} is carried out at {index}, after it was refused at {self.refused[value]}"
            )

    def request_answered(self, value: int, result: Result) -> None:
        answer = (result.index, result.body["total"])
        known = self.request_answers.setdefault(value, answer)
        if known != answer or self.carried_out.get(value) != result.index:
            raise Violation(
                "exactly_once", f"request {value} of {self.carried_out.get(value)} is answered {answer} after {known}"
            )

    def request_refused(self, value: int, result: Result) -> None:
        if result.code != "request_expired":
            raise Violation("exactly_once", f"request {value} is refused with {result.code}: {result.body}")
        self.refused[value] = min(self.refused.get(value, result.index), result.index)
        if self.carried_out.get(value, 0) > result.index:
            raise Violation("exactly_once", f"request {value} is refused at {result.index}, and was carried out later")

    def read_asked(self, context: int) -> None:
        self.floors[context] = self.applied_max

    def read_answered(self, context: int, index: int, ok: bool) -> None:
        floor = self.floors.pop(context, None)
        if floor is None:
            raise Violation("linearizable_read", f"read {context} is answered twice, or was never asked")
        if ok:
            self.reads_answered += 1
            if index < floor:
                raise Violation(
                    "linearizable_read", f"read {context} may be answered at {index}, but {floor} was applied before it"
                )
