"""The world of one seed: nodes and clients (sim_load, sim_drivers), and faults until everything is healed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import sim_profile
from sim_check import Violation
from sim_clocks import AGREE_MS, RIGHT_MS_MAX
from sim_load import Load
from sim_node import SimNode
from sim_versions import NEW

from dss_raft.core import InvariantViolation
from dss_raft.core.messages import EntryKind

#: time for progress after the healing: more than thirty election timeouts
PROGRESS_US = 3_000_000
#: a node may catch up for this time in addition
CATCH_UP_US = 30_000_000
#: What must have happened in a run of many seeds. A simulator in which one of these never happens proves nothing about it.
HAPPENINGS = (
    *(name for name in sim_profile.FAULTS if name != "heal"),
    *("message lost", "message late", "message doubled"),
    *("disk stall", "write lost at a crash", "write kept at a crash", "flipped bit"),
    *(
        "restart",
        "clock jump",
        "wall clock set",
        "day passed",
        "time advanced",
        "snapshot",
        "chunk",
        "transfer",
        "forced election",
        "member added",
        "member removed",
        "member replaced",
        "empty disk",
        "restored disk",
        "removal while one is lost",
        "quorum at risk",
        "upgrade",
        "way back",
        "way back refused",
        "version raised",
        "request repeated",
        "request expired",
        "stop at a newer version",
        "newer command",
        "newer command refused",
    ),
)


#: those that need a world with two releases and a node that goes back at the wrong moment
RARE = ("way back refused", "stop at a newer version")


@dataclass
class Outcome:
    """How a seed went; `failed` names the check, "" for a clean run."""

    seed: int
    events: int
    trace_hash: int
    #: what happened, so that a clean run is not an empty one
    commits: int = 0
    leaders: int = 0
    restores: int = 0
    reads: int = 0
    answered: int = 0
    configurations: int = 0
    #: faults and other events, see HAPPENINGS
    happened: Counter[str] = field(default_factory=Counter)
    failed: str = ""
    detail: str = ""
    time_us: int = 0


class World(Load):
    """Faults, the healing, and the outcome."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None, profile: sim_profile.Profile | None = None) -> None:
        super().__init__(seed, trace, profile)
        self.final_index = 0
        self.final_term = 0
        self._later(self.profile.fault_us, self._fault)
        self._later(self.profile.faults_us, self._heal)

    def run(self) -> Outcome:
        """Run until everything has healed and caught up, or a check fails."""
        failed = detail = ""
        try:
            self._loop()
        except Violation as violation:
            failed, detail = violation.check, str(violation)
        except InvariantViolation as violation:
            failed, detail = "core_invariant", f"core_invariant: {violation}"
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            failed, detail = "crash", f"crash: {type(error).__name__}: {error}"
        if failed and self.trace:
            self.trace(f"{self.now / 1000:10.3f} FAILED {detail}")
        check = self.check
        return Outcome(
            seed=self.seed,
            events=self.events,
            trace_hash=hash((self.trace_hash, check.commit_max, check.states.get(check.applied_max, 0))),
            commits=check.commit_max,
            leaders=len(check.leaders),
            restores=self.restores,
            reads=check.reads_answered,
            answered=check.answered,
            configurations=sum(1 for entry in check.committed.values() if entry.kind == EntryKind.CONFIGURATION),
            happened=self.happened,
            failed=failed,
            detail=detail,
            time_us=self.now,
        )

    # ---- faults

    def _fault(self) -> None:
        if self.healed:
            return
        self._later(self.rng.randint(1, 2 * self.profile.fault_us), self._fault)
        if not any(self.profile.weights):
            return
        if self.profile.hot_copies and self.rng.random() < 0.5:
            node = self.rng.choice(list(self.nodes.values()))
            node.backup = node.store.copy()
        (name,) = self.rng.choices(sim_profile.FAULTS, weights=self.profile.weights)
        self._say("", f"-- {name}")
        if name != "fsync_error":
            self.happened[name] += 1
        getattr(self, f"_fault_{name}")()

    def _between(self, some: list[str], others: list[str]) -> None:
        if self.healed:
            return  # a swizzle that started before the healing
        for a in some:
            for b in others:
                self.cut[a, b] = self.cut[b, a] = True

    def _fault_split(self) -> None:
        ids = list(self.nodes)
        self.rng.shuffle(ids)
        self.cut = {}
        middle = self.rng.randint(0, len(ids))
        self._between(ids[:middle], ids[middle:])

    def _fault_isolate(self) -> None:
        leader = self._leader()
        node_id = leader.id if leader is not None and self.rng.random() < 0.5 else self.rng.choice(list(self.nodes))
        self._between([node_id], [other for other in self.nodes if other != node_id])

    def _fault_one_way(self) -> None:
        self.cut[self.rng.choice(list(self.nodes)), self.rng.choice(list(self.nodes))] = True

    def _fault_swizzle(self) -> None:
        """Cut nodes off one by one, and heal them in another order."""
        ids = list(self.nodes)
        self.rng.shuffle(ids)
        for position, node_id in enumerate(ids[: self.rng.randint(1, len(ids))]):
            self._later(position * 10_000, self._between, [node_id], [other for other in ids if other != node_id])
            self._later(self.rng.randint(50_000, 200_000), self._rejoin, node_id)

    def _rejoin(self, node_id: str) -> None:
        self.cut = {pair: True for pair in self.cut if node_id not in pair}

    def _fault_heal(self) -> None:
        self.cut = {}

    def _fault_crash(self) -> None:
        leader = self._leader()
        self._crash(leader if leader is not None and self.rng.random() < 0.5 else self.rng.choice(list(self.nodes.values())))

    def _fault_crash_all(self) -> None:
        for node in self.nodes.values():
            self._crash(node)
        self.time.all_are_down()

    def _fault_fsync_error(self) -> None:
        """The disk reports an error or is full: a leader hands over, and the node stops without a retry."""
        writing = [node for node in self.nodes.values() if node.writing is not None]
        if writing:
            self.happened["fsync_error"] += 1
            node = self.rng.choice(writing)
            node.core.abdicate()
            for message in node.core.messages:
                self._send(node, message)
            self._crash(node)

    def _fault_pause(self) -> None:
        node = self.rng.choice(list(self.nodes.values()))
        node.paused_until = self.now + self.rng.randint(1, 300_000)

    def _fault_clock(self) -> None:
        self.rng.choice(list(self.nodes.values())).clock_rate = self.rng.uniform(*self.profile.clock_rates)

    # ---- the end

    def _heal(self) -> None:
        """Everything works from now on: a leader must commit, and every node must catch up (`_too_late`)."""
        self._say("", "-- healed")
        self.healed = self.releases.is_end = True
        self.cut = {}
        for node in self.nodes.values():
            node.paused_until = min(node.paused_until, self.now)
            node.clock_rate = 1.0
            if not node.alive:
                self._restart(node, node.life)
            if self.releases.end_upgraded and node.supported is not NEW and not node.gone:
                self._crash(node)
                self._restart(node, node.life)
        leader = self._leader()
        if self.profile.hot_copies and leader is not None:
            self._lose_disk(leader)  # it must catch up, also if the leader does not change any more
        self._later(PROGRESS_US, self._too_late)
        self._later(20_000, self._finish)

    def _too_late(self, applied: int = -1) -> None:
        """After PROGRESS_US all nodes should be done. One that still catches up (one entry per round trip) gets more time."""
        now_applied = sum(node.state_index for node in self.nodes.values() if node.alive)
        if now_applied > applied and self.now < self.profile.faults_us + CATCH_UP_US:
            self._later(PROGRESS_US // 3, self._too_late, now_applied)
            return
        leader = self._leader()
        seconds = (self.now - self.profile.faults_us) / 1e6
        raise Violation("progress", f"{seconds:g} s after everything healed: leader {leader.id if leader else 'none'}")

    def _finish(self) -> bool:
        """Propose a last command, and check that every node applies it."""
        self._later(10_000, self._finish)
        leader = self._leader()
        if leader is None:
            return False
        if self.final_term != leader.core.term:
            sessions = leader.sessions
            self.final_index = self._propose(leader, self._data(leader)) if sessions is None else sessions.propose_empty()
            self.final_term = leader.core.term if self.final_index else 0
            self._drain(leader)
            return False
        members = [self.nodes[member.id] for member in leader.core.configuration.members]
        # One whose disk was put back has no vote, but catches up.
        members = [node for node in members if not node.impaired or node.was_restored]
        if any(node.state_index < self.final_index for node in members):
            return False
        if any(node.sessions is not None and node.sessions.in_flight for node in members):
            return False
        if not all(node.core.leader_id == leader.id for node in members):
            return False
        return self._time_has_caught_up(leader) and self._version_has_risen(leader)

    def _version_has_risen(self, leader: SimNode) -> bool:
        """If all members have the new release, the cluster has its version."""
        members = [self.nodes[member] for member in leader.core.membership.ids]
        if not self.releases.is_mixed or any(node.gone or node.supported is not NEW for node in members):
            return True
        assert leader.sessions is not None
        return leader.sessions.replica.cluster_version == NEW.max

    def _time_has_caught_up(self, leader: SimNode) -> bool:
        """Applied time is not behind the right clocks, if they were a majority all the time."""
        sessions, voters = leader.sessions, leader.core.membership.voters
        if sessions is None or self.time.wrong_node is None or self.profile.voters < 3 or len(voters) < 3:
            return True
        if sum(not self.nodes[voter].impaired and voter != self.time.wrong_node for voter in voters) <= len(voters) // 2:
            return True
        return self.time.true_ms() - sessions.replica.at_ms < AGREE_MS + 2 * RIGHT_MS_MAX
