"""From what this node knows about the members to node cards, checks and the verdict. Pure: the same facts give the same sentences.

The verdict is the first that applies:

1. UNKNOWN: this node does not run. (A page says so itself when its view is older than two seconds.)
2. REFUSING WRITES: too few voters answer, no leader for two election timeouts, or this node cannot use its state.
3. DEGRADED: writes work, and something needs attention.
4. HEALTHY.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dss_api.durations import duration_text
from dss_console.live.answers import Check, Level, NodeCard, Verdict
from dss_console.live.messages import Report
from dss_console.live.texts import a_b_and_c, count, number, size, time_of_day, topic_link

#: A member that has been silent for this long counts as lost. Links send a ping at least every half second.
SILENT_MS = 1_500
#: Entries that a member may lag behind.
LAG_MAX = 1_000
#: A call that has waited this long for a lock is worth a look.
WAIT_MS_MAX = 30_000
#: What happened within this time counts as recent.
RECENT_MS = 600_000
#: Leaders elected in `RECENT_MS`; from this number on, something is unstable.
ELECTIONS_MAX = 3

LEADER, CANDIDATE, LEARNER = 2, 1, 3


@dataclass(frozen=True)
class MemberFacts:
    """What this node knows about a member."""

    id: str
    url: str
    learner: bool
    #: its disk was put back to an earlier state
    outdated: bool
    #: since something arrived from it; 0 for this node
    silent_ms: int
    #: None: it has not sent one
    report: Report | None
    #: its report is too old to be shown as the present
    is_stale: bool = False

    @property
    def is_silent(self) -> bool:
        return self.silent_ms > SILENT_MS


@dataclass(frozen=True)
class Facts:
    """What this node knows about the cluster."""

    node: str
    at_ms: int
    members: Sequence[MemberFacts]
    term: int
    leader: str
    #: since this node knew a leader; 0 while it does
    leaderless_ms: int
    #: when the leader was elected; 0: not known
    leader_since_ms: int
    election_ms_max: int
    #: when a node found that it leads, if its election is not known; 0: not known either
    leader_found_ms: int = 0
    #: why this node cannot use its state; "" if it can
    unusable: str = ""
    elections: int = 0
    #: elections before this time are not known
    elections_known_since_ms: int = 0
    #: recent dead letters, and the topics with their groups that have any: (topic, group, count)
    new_dead_letters: int = 0
    dead_letters: Sequence[tuple[str, str, int]] = ()
    #: topics with messages on the engine `redis`
    topics_on_engine: int = 0
    #: of them, those of which is not known what is there
    topics_unknown: int = 0
    deadlocks: int = 0
    #: the call that has waited longest: (client, key, ms)
    longest_wait: tuple[str, str, int] | None = None
    differing: Sequence[str] = ()
    is_clock_wrong: bool = False

    @property
    def voters(self) -> list[MemberFacts]:
        return [member for member in self.members if not member.learner and not member.outdated]

    @property
    def needed(self) -> int:
        """Voters that a write needs."""
        return sum(not member.learner for member in self.members) // 2 + 1

    @property
    def answering(self) -> int:
        return sum(not member.is_silent for member in self.voters)

    @property
    def silent(self) -> list[MemberFacts]:
        return [member for member in self.members if member.is_silent]

    @property
    def commit(self) -> int:
        """The highest entry that any member knows to be committed."""
        return max((member.report.commit for member in self.members if member.report is not None), default=0)


@dataclass
class Judgement:
    """The verdict and the sentences behind it."""

    verdict: Verdict
    checks: list[Check] = field(default_factory=list)
    nodes: list[NodeCard] = field(default_factory=list)


def judge(facts: Facts) -> Judgement:
    checks = [
        _leader(facts),
        _voters(facts),
        *_lag(facts),
        *_elections(facts),
        *_dead_letters(facts),
        *_waits(facts),
        *_stores(facts),
        *_engine(facts),
        *_states(facts),
    ]
    return Judgement(_verdict(facts, checks), checks, [_card(facts, member) for member in facts.members])


# ------------------------------------------------------------------ the verdict


def _verdict(facts: Facts, checks: Sequence[Check]) -> Verdict:
    refusal = _refusal(facts)
    if refusal is not None:
        return refusal
    problems = [check for check in checks if check.level in ("warn", "bad")]
    spare = facts.answering - facts.needed
    if not problems:
        if spare > 0:
            text = f"All {len(facts.members)} members answer. The cluster can lose {spare} of them and go on."
        elif len(facts.members) == 1:
            text = "The only member answers. With a single node there is no spare: if it stops, so does the cluster."
        else:
            text = "Every member answers. One loss stops writes."
        return Verdict("healthy", "HEALTHY", text, "", "")
    silent = facts.silent
    if silent:
        names = a_b_and_c([f"{one.id} has been silent for {duration_text(_whole_s(one.silent_ms))}" for one in silent])
        loss = f"the cluster can lose {spare} more" if spare > 0 else "one more loss stops them"
        since = time_of_day(facts.at_ms - max(one.silent_ms for one in silent))
        action = f"Start {a_b_and_c([one.id for one in silent])} again, or look at its machine and its network."
        return Verdict("degraded", "DEGRADED", f"{names}. Writes work; {loss}.", action, since)
    first = problems[0]
    more = f" And {len(problems) - 1} more below." if len(problems) > 1 else ""
    return Verdict("degraded", "DEGRADED", f"{first.text}{more} Writes work.", _ACTIONS.get(first.id, ""), "")


_ACTIONS = {
    "leader": "Wait a moment: an election takes about a second.",
    "lag": "Look at the disk and the network of the node that is behind.",
    "elections": "Look for slow disks and lost links: the events below say which node asked for votes.",
    "dead-letters": "Open the topic, see why they failed, and redrive or delete them.",
    "waits": "Open the lock: it shows who holds it and until when.",
    "stores": "Look at the disk of the node, or at Redis. Values stay in the log meanwhile.",
    "engine": "Look at the servers that DSS_ENGINE_URL names, and at the log of the node.",
    "states": "See the guide about states that differ before anything else.",
    "clock": "Set the clock of this node.",
}


def _refusal(facts: Facts) -> Verdict | None:
    silent = [member for member in facts.voters if member.is_silent]
    if facts.unusable:
        text = f"{facts.node} cannot use its state: {facts.unusable}. Other nodes may work."
        return Verdict("refusing_writes", "REFUSING WRITES HERE", text, "Use another node, and read this node's log.", "")
    if facts.answering < facts.needed:
        names = a_b_and_c([member.id for member in silent])
        text = (
            f"Only {facts.answering} of {len(facts.voters)} voters can be heard from {facts.node}, and a write needs {facts.needed}. "
            f"Silent: {names}. Nothing that was answered is lost."
        )
        since = time_of_day(facts.at_ms - min(member.silent_ms for member in silent)) if silent else ""
        return Verdict("refusing_writes", "REFUSING WRITES", text, f"Start {names} again. Other nodes may see more.", since)
    if facts.leaderless_ms > 2 * facts.election_ms_max:
        text = f"{facts.node} has known no leader for {duration_text(_whole_s(facts.leaderless_ms))}. Other nodes may know one."
        since = time_of_day(facts.at_ms - facts.leaderless_ms)
        return Verdict("refusing_writes", "REFUSING WRITES", text, "Look at the other nodes: the links below lead there.", since)
    return None


# ------------------------------------------------------------------- the checks


def _leader(facts: Facts) -> Check:
    if facts.leader:
        if facts.leader_since_ms:
            since = f", since {time_of_day(facts.leader_since_ms)}"
        else:
            since = f", since {time_of_day(facts.leader_found_ms)} or earlier" if facts.leader_found_ms else ""
        return Check("leader", "ok", f"{facts.leader} leads in term {facts.term}{since}.", "")
    level: Level = "bad" if facts.leaderless_ms > 2 * facts.election_ms_max else "warn"
    return Check("leader", level, f"No leader for {duration_text(facts.leaderless_ms // 100 * 100)}: an election is needed.", "")


def _voters(facts: Facts) -> Check:
    total = len(facts.voters)
    text = f"{facts.answering} of {total} voters answer; a write needs {facts.needed}."
    if facts.answering < facts.needed:
        return Check("voters", "bad", text, "")
    silent = facts.silent
    if silent:
        return Check("voters", "warn", f"{text} Silent: {a_b_and_c([member.id for member in silent])}.", "")
    return Check("voters", "ok", text, "")


def _lag(facts: Facts) -> list[Check]:
    behind = [
        (member.id, facts.commit - member.report.applied)
        for member in facts.members
        if member.report is not None and not member.is_silent and not member.is_stale
    ]
    late = [(member, lag) for member, lag in behind if lag > LAG_MAX]
    if late:
        names = a_b_and_c([f"{member} is {number(lag)} entries behind" for member, lag in late])
        return [Check("lag", "warn", f"{names}.", "")]
    return [Check("lag", "ok", "Every node that answers has applied the log.", "")]


def _elections(facts: Facts) -> list[Check]:
    are_new = facts.elections_known_since_ms > facts.at_ms - RECENT_MS
    if are_new:
        recent = f"since {time_of_day(facts.elections_known_since_ms)}; no node that answers has run for longer"
    else:
        recent = f"in the last {duration_text(RECENT_MS).removesuffix(' 0 s')}"
    # Nodes that have all just started need a leader.
    if facts.elections - are_new >= ELECTIONS_MAX:
        return [Check("elections", "warn", f"{facts.elections} elections {recent}: leadership is not stable.", "")]
    if facts.elections:
        return [
            Check("elections", "ok", f"{facts.elections} {'election' if facts.elections == 1 else 'elections'} {recent}.", "")
        ]
    return [Check("elections", "ok", f"No election {recent}.", "")]


def _dead_letters(facts: Facts) -> list[Check]:
    if not facts.dead_letters:
        where = " in the log" if facts.topics_unknown else ""
        return [Check("dead-letters", "ok", f"No dead letters{where}.", "")]
    total = sum(count for _, _, count in facts.dead_letters)
    topic, group, _ = facts.dead_letters[0]
    others = f" and {len(facts.dead_letters) - 1} more groups" if len(facts.dead_letters) > 1 else ""
    text = f"{number(total)} dead {'letter' if total == 1 else 'letters'} in {topic}/{group}{others}"
    if facts.new_dead_letters:
        # Some of the new ones may have been redriven or deleted.
        return [Check("dead-letters", "warn", f"{text}, {min(facts.new_dead_letters, total)} new.", topic_link(topic))]
    return [Check("dead-letters", "info", f"{text}.", topic_link(topic))]


def _waits(facts: Facts) -> list[Check]:
    checks = []
    if facts.longest_wait is not None and facts.longest_wait[2] > WAIT_MS_MAX:
        client, key, ms = facts.longest_wait
        checks.append(Check("waits", "warn", f"{client} has waited {duration_text(_whole_s(ms))} for {key}.", ""))
    else:
        checks.append(Check("waits", "ok", f"No call has waited longer than {WAIT_MS_MAX // 1000} s for a lock.", "/ui/locks"))
    if facts.deadlocks:
        times = "deadlock was" if facts.deadlocks == 1 else "deadlocks were"
        checks.append(Check("deadlocks", "info", f"{facts.deadlocks} {times} refused lately.", "/ui/locks"))
    return checks


def _stores(facts: Facts) -> list[Check]:
    troubled = [member.id for member in facts.members if member.report is not None and member.report.store_trouble]
    if troubled:
        return [Check("stores", "warn", f"{a_b_and_c(troubled)} cannot use the backing store of the cache.", "/ui/cache")]
    return []


def _engine(facts: Facts) -> list[Check]:
    troubles: dict[str, list[str]] = {}
    for member in facts.members:
        report = member.report
        if report is None or not report.engine_trouble or member.is_silent:
            continue
        if report.is_without_engine and not facts.topics_on_engine:
            continue
        troubles.setdefault(report.engine_trouble, []).append(member.id)
    if not troubles:
        return []
    # Nodes usually have the same trouble.
    text = " ".join(
        f"{a_b_and_c(names)} cannot use the engine redis: {reason.rstrip('.')}." for reason, names in troubles.items()
    )
    if not facts.topics_on_engine:
        return [Check("engine", "info", f"{text} No topic is on it.", "")]
    topics = count(facts.topics_on_engine, "topic")
    return [Check("engine", "warn", f"{text} Calls on {topics} get 503 there; everything else goes on.", "/ui/queues")]


def _states(facts: Facts) -> list[Check]:
    checks = []
    if facts.differing:
        checks.append(Check("states", "bad", f"The state of {a_b_and_c(list(facts.differing))} differs from this node's.", ""))
    if facts.is_clock_wrong:
        checks.append(Check("clock", "warn", f"The wall clock of {facts.node} is more than a minute wrong.", ""))
    outdated = [member.id for member in facts.members if member.outdated]
    if outdated:
        text = f"{a_b_and_c(outdated)} has no vote: its disk was put back to an earlier state."
        checks.append(Check("outdated", "warn", text, ""))
    return checks


# ------------------------------------------------------------------- node cards

_WORDS = {
    "leader": "LEADER",
    "follower": "FOLLOWER",
    "candidate": "CANDIDATE",
    "learner": "LEARNER",
    "unready": "NOT READY",
}


def _card(facts: Facts, member: MemberFacts) -> NodeCard:
    report = member.report
    is_self = member.id == facts.node
    shape = _shape(facts, member)
    word = f"SILENT {duration_text(_whole_s(member.silent_ms))}" if shape == "silent" else _WORDS[shape]
    applied = report.applied if report is not None else 0
    behind = max(0, facts.commit - applied) if report is not None else 0
    return NodeCard(
        id=member.id,
        url=member.url,
        shape=shape,
        word=word,
        is_self=is_self,
        term=report.term if report is not None else 0,
        heard_ms=member.silent_ms,
        heard=_heard(facts, member),
        commit=report.commit if report is not None else 0,
        applied=applied,
        behind=behind,
        level_percent=_percent(applied, facts.commit) if report is not None else 0,
        log=_log_text(report, behind),
        health=_health_text(report),
        trouble=_trouble(member, shape),
    )


def _shape(facts: Facts, member: MemberFacts) -> str:
    report = member.report
    if member.is_silent:
        return "silent"
    if report is None or member.is_stale:
        return "leader" if member.id == facts.leader else "learner" if member.learner else "follower"
    if report.role == LEADER:
        return "leader"
    if report.role == CANDIDATE:
        return "candidate"
    if report.not_ready and not member.learner:
        return "unready"
    return "learner" if member.learner or report.role == LEARNER else "follower"


def _heard(facts: Facts, member: MemberFacts) -> str:
    if member.id == facts.node:
        return "this node"
    if member.is_silent:
        return f"last heard {time_of_day(facts.at_ms - member.silent_ms)}"
    return "heard just now" if member.silent_ms < 1_000 else f"heard {duration_text(_whole_s(member.silent_ms))} ago"


def _log_text(report: Report | None, behind: int) -> str:
    if report is None:
        return "no report yet"
    return f"{number(behind)} behind" if behind else "level"


def _health_text(report: Report | None) -> str:
    if report is None:
        return ""
    fsync = f"fsync at most {report.fsync_ms:g} ms, " if report.fsync_ms else ""
    memory = f"{size(report.rss_bytes)}, " if report.rss_bytes else ""
    return f"{fsync}{memory}release {report.release}"


def _trouble(member: MemberFacts, shape: str) -> str:
    report = member.report
    if member.outdated:
        return "its disk was put back to an earlier state"
    if shape == "silent" or report is None:
        return ""
    if report.not_ready and shape in ("unready", "candidate"):
        return report.not_ready
    return report.store_trouble


def _percent(part: int, whole: int) -> int:
    return 100 if part >= whole else part * 100 // whole


def _whole_s(ms: int) -> int:
    """Rounded down to seconds: a text that changes once a second."""
    return ms // 1000 * 1000
