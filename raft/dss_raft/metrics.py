"""The Prometheus metrics of Raft, on the default registry. They count from the start of this process."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

_FAST_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

ROLE = Gauge("raft_role", "Role of this node: 0 follower, 1 candidate, 2 leader, 3 learner")
APPEND_ENTRIES = Counter("raft_append_entries", "AppendEntries this node answered, by result", ["result"])
REQUEST_VOTE = Counter("raft_request_vote", "RequestVote this node answered", ["granted"])
PEER_REFUSED = Counter("raft_peer_refused", "Connections and frames refused at the peer port", ["reason"])
FSYNC_SECONDS = Histogram("raft_fsync_seconds", "One durable write of the log store", buckets=_FAST_SECONDS)
COMMIT_SECONDS = Histogram("raft_commit_seconds", "From a batch's proposal to its commit, on the leader", buckets=_FAST_SECONDS)
APPLY_SECONDS = Histogram("raft_apply_seconds", "Applying what one turn committed", buckets=_FAST_SECONDS)
SNAPSHOT_SECONDS = Histogram(
    "raft_snapshot_seconds", "Taking a snapshot of the state", buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
)
#: observed on every tick of Raft's timer, which is how soon the loop serves any other event, too
#: the first bucket
PUNCTUAL_S_MAX = 0.001
LOOP_DELAY_SECONDS = Histogram(
    "dss_loop_delay_seconds",
    "How late the event loop ran the timer of Raft's ticks",
    buckets=(PUNCTUAL_S_MAX, 0.005, 0.02, 0.05, 0.1, 0.25, 1, 5),
)
#: punctual ticks that are observed together: about a second
PUNCTUAL_KEPT = 50
LEADER_CHANGES = Counter("raft_leader_changes", "Leaders that this node has learned of, one for each term that had a leader")
CLUSTER_VERSION = Gauge("raft_cluster_version", "The cluster version that this node has applied")
PEER_TLS_EXPIRY = Gauge(
    "raft_peer_tls_expiry_timestamp_seconds", "When a file with which this node links expires; +Inf: there is none.", ["file"]
)
for _file in ("certificate", "ca", "crl"):
    PEER_TLS_EXPIRY.labels(_file).set(float("inf"))
APPLY_STOPPED = Gauge("raft_apply_stopped", "1 while this node cannot apply an entry of the log")
OUTDATED = Gauge("raft_outdated", "1 while this node has no vote, because its disk was put back to an earlier state")
CLOCK_OFF_SECONDS = Gauge(
    "raft_clock_off_seconds", "How far the wall clock of this node is ahead of the one that a majority agrees on; 0 without one"
)
CLOCK_AGREEING = Gauge("raft_clock_agreeing", "Voters whose wall clocks agree; 0 while they are not a majority")
STATE_DIFFERS = Gauge("raft_state_differs", "Members whose state differs from the state of this node")
STATE_HASHES = Counter("raft_state_hashes", "Requests to hash the state, by result", ["result"])
UNDECODABLE = Counter("raft_undecodable", "Commands and entries in the log that could not be decoded, and had no effect")
FRAMES_DROPPED = Counter("raft_frames_dropped", "Frames to other members that were dropped, by reason", ["reason"])

_APPEND_OK = APPEND_ENTRIES.labels(result="ok")
_APPEND_REJECTED = APPEND_ENTRIES.labels(result="rejected")
_VOTE_GRANTED = REQUEST_VOTE.labels(granted="true")
_VOTE_REFUSED = REQUEST_VOTE.labels(granted="false")

role_changed = ROLE.set
leader_changed = LEADER_CHANGES.inc

state_hashed = STATE_HASHES.labels(result="hashed").inc
#: another child process was at work, or it failed
state_not_hashed = STATE_HASHES.labels(result="skipped").inc


#: a frame is over the limit; a member does not read fast enough
frame_too_large = FRAMES_DROPPED.labels(reason="too_large").inc
frame_in_backlog = FRAMES_DROPPED.labels(reason="backlog").inc


class LoopDelay:
    """Observes `LOOP_DELAY_SECONDS`. Ticks that were not late are observed together: an idle node has hardly anything else to do."""

    def __init__(self) -> None:
        self._punctual: list[float] = []

    def observe(self, seconds: float) -> None:
        """A tick was so late."""
        punctual = self._punctual
        if seconds > PUNCTUAL_S_MAX:
            LOOP_DELAY_SECONDS.observe(seconds)
            return
        punctual.append(seconds)
        if len(punctual) >= PUNCTUAL_KEPT:
            for each in punctual:
                LOOP_DELAY_SECONDS.observe(each)
            punctual.clear()


def append_answered(ok: bool) -> None:
    """Count an answer to AppendEntries, by whether the logs matched."""
    (_APPEND_OK if ok else _APPEND_REJECTED).inc()


def vote_answered(granted: bool) -> None:
    """Count an answer to RequestVote."""
    (_VOTE_GRANTED if granted else _VOTE_REFUSED).inc()


def peer_refused(reason: str) -> None:
    """Count a refusal. `reason` is one of `wire.Reason`, so a stranger cannot create labels."""
    PEER_REFUSED.labels(reason=reason).inc()


def show_refusal_reasons(reasons: Iterable[str]) -> None:
    """Show these reasons, at 0: alerts notice the first refusal only if the counter was there before."""
    for reason in reasons:
        PEER_REFUSED.labels(reason=reason)
