"""The Raft paper, sentence by sentence: log replication, safety, crashes and timing (sections 5.3 to 5.6)."""

from __future__ import annotations

import pytest
from raft_harness import append, entry, request

from dss_raft.core import InvariantViolation, NotLeader, Role
from dss_raft.core.messages import (
    AppendEntries,
    AppendReply,
    RequestVote,
    VoteReply,
)

# ---- 5.3 Log replication


def test_5_3_the_leader_appends_the_command_and_sends_it_in_parallel_to_all(cluster):
    """5.3: "The leader appends the command to its log as a new entry, then issues AppendEntries RPCs in parallel"."""
    leader = cluster.elect("a").core
    index = leader.propose(b"x")
    ready = leader.take_ready()
    assert sorted(message.to for message in ready.messages) == ["b", "c"]
    assert all([e.index for e in message.entries] == [index] for message in ready.messages)


def test_5_3_a_follower_redirects_clients_to_the_leader(cluster):
    """5.1: "if a client contacts a follower, the follower redirects it to the leader"."""
    cluster.elect("a")
    with pytest.raises(NotLeader) as refused:
        cluster["c"].core.propose(b"x")
    assert refused.value.hint == "a"


def test_5_3_the_leader_applies_when_safely_replicated(cluster):
    """5.3: "When the entry has been safely replicated, the leader applies the entry to its state machine"."""
    leader = cluster.elect("a")
    cluster.cut("b", "c")
    cluster.propose("a", b"x")
    assert leader.applied == []
    cluster.heal()
    cluster.tick(4)
    assert leader.applied == [b"x"]


def test_5_3_the_leader_retries_indefinitely_until_all_followers_store_all_entries(cluster):
    """5.3: "the leader retries AppendEntries RPCs indefinitely ... until all followers eventually store all log entries"."""
    cluster.elect("a")
    cluster.cut("c")
    cluster.propose("a", b"x")
    cluster.tick(300)
    cluster.heal()
    cluster.tick(6)
    assert cluster["c"].applied == [b"x"]


def test_5_3_an_entry_is_committed_once_on_a_majority(make_cluster):
    """5.3: "A log entry is committed once the leader that created the entry has replicated it on a majority of the servers"."""
    cluster = make_cluster("abcde")
    leader = cluster.elect("a").core
    cluster.cut("b", "c", "d", "e")
    index = leader.propose(b"x")
    cluster.settle()
    reply = {"to": "a", "term": leader.term, "ok": True, "match": index, "prev_index": index}
    leader.step(AppendReply(sender="b", **reply))
    leader.step(AppendReply(sender="b", **reply))
    assert leader.commit_index < index
    leader.step(AppendReply(sender="c", **reply))
    assert leader.commit_index == index


def test_5_3_committing_an_entry_commits_all_preceding_entries(cluster):
    """5.3: "This also commits all preceding entries in the leader's log, including entries created by previous leaders"."""
    cluster.elect("a")
    cluster.cut("a")
    cluster["a"].core.propose(b"lost")
    cluster.settle()
    cluster.heal()
    cluster.cut("c")
    cluster["a"].core.propose(b"kept")
    cluster.tick(3, "a")
    cluster.heal()
    cluster.elect("b")
    assert cluster["b"].applied == [b"lost", b"kept"]


def test_5_3_the_leader_tells_the_highest_committed_index_in_heartbeats_too(cluster):
    """5.3: "it includes that index in future AppendEntries RPCs (including heartbeats)"."""
    leader = cluster.elect("a").core
    cluster.propose("a", b"x")
    cluster.sent.clear()
    cluster.tick(2, "a")
    beats = [message for message in cluster.sent if isinstance(message, AppendEntries)]
    assert {message.commit for message in beats} == {leader.commit_index}


def test_5_3_a_follower_applies_what_it_learns_is_committed_in_log_order(lone):
    """5.3: "Once a follower learns that a log entry is committed, it applies the entry ... (in log order)"."""
    lone.say(append("a", 1, (0, 0), [entry(1, 1, b"1"), entry(2, 1, b"2"), entry(3, 1, b"3")], commit=2, sender="b"))
    assert lone.node.applied == [b"1", b"2"]


def test_5_3_commit_is_at_most_what_this_append_has_verified(lone):
    """Figure 2: "set commitIndex = min(leaderCommit, index of last new entry)": not of the last entry there is."""
    lone.say(append("a", 1, (0, 0), [entry(1, 1), entry(2, 1), entry(3, 1)], sender="b"))
    lone.say(append("a", 2, (1, 1), [], commit=3, sender="c"))
    assert lone.core.commit_index == 1


def test_5_3_an_append_that_does_not_fit_is_refused(lone):
    """5.3: "If the follower does not find an entry in its log with the same index and term, then it refuses the new entries"."""
    lone.say(append("a", 1, (0, 0), [entry(1, 1)], sender="b"))
    for prev in [(1, 2), (2, 1)]:
        answers = lone.say(append("a", 3, prev, [entry(prev[0] + 1, 3)], sender="c"))
        assert next(answer.ok for answer in answers if isinstance(answer, AppendReply)) is False
    assert lone.log() == [(1, 1)]


# figure 7: the leader of term 8, and six followers; a follower's log is given by its terms
_LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
_FIGURE_7 = {
    "a: misses one": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b: misses many": [1, 1, 1, 4],
    "c: one too many": [*_LEADER, 6],
    "d: entries of a term the leader never saw": [*_LEADER, 7, 7],
    "e: both": [1, 1, 1, 4, 4, 4, 4],
    "f: a leader that never committed": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("terms", _FIGURE_7.values(), ids=_FIGURE_7.keys())
def test_5_3_the_leader_forces_followers_logs_to_duplicate_its_own(make_cluster, terms):
    """5.3, figure 7: "conflicting entries in follower logs will be overwritten with entries from the leader's log"."""
    cluster = make_cluster("abc")
    for node_id, log in (("a", _LEADER), ("b", _LEADER), ("c", terms)):
        store = cluster[node_id].store
        store.entries = [entry(index + 1, term, b"%d" % term) for index, term in enumerate(log)]
        store.hard_state = type(store.hard_state)(term=7)
        cluster[node_id].start()
    cluster["a"].core.campaign(force=True)
    cluster.tick(6)
    assert cluster.leader().id == "a"
    assert cluster["c"].log() == cluster["a"].log() == [*((i + 1, t) for i, t in enumerate(_LEADER)), (11, 8)]
    assert [(e.index, e.term) for e in cluster["c"].store.entries] == cluster["c"].log()


def test_5_3_the_follower_says_where_to_continue_so_that_one_message_skips_a_term(make_cluster):
    """5.3: "the follower can include the term of the conflicting entry and the first index it stores for that term"."""
    cluster = make_cluster("abc")
    for node_id, log in (("a", [1] + [5] * 50), ("b", [1] + [5] * 50), ("c", [1] + [2] * 50)):
        store = cluster[node_id].store
        store.entries = [entry(index + 1, term) for index, term in enumerate(log)]
        store.hard_state = type(store.hard_state)(term=5)
        cluster[node_id].start()
    cluster["a"].core.campaign(force=True)
    cluster.settle()
    refusals = [m for m in cluster.sent if isinstance(m, AppendReply) and m.sender == "c" and not m.ok]
    assert len(refusals) == 1
    assert cluster["c"].log() == cluster["a"].log()


def test_5_3_entries_that_match_are_never_removed_by_a_late_duplicate(lone):
    """Figure 2: "If an existing entry conflicts with a new one": only then are it and all that follow it deleted."""
    first = append("a", 1, (0, 0), [entry(1, 1)], sender="b")
    lone.say(first, append("a", 1, (1, 1), [entry(2, 1)], sender="b"), first)
    assert lone.log() == [(1, 1), (2, 1)]


def test_5_3_a_leader_never_overwrites_or_deletes_entries_in_its_own_log(cluster):
    """5.3: "A leader never overwrites or deletes entries in its own log (the Leader Append-Only Property)"."""
    leader = cluster.elect("a").core
    with pytest.raises(InvariantViolation):
        leader.truncate(1)


def test_5_3_two_leaders_in_one_term_stop_the_node(cluster):
    """Figure 3, Election Safety: the node stops when it is violated."""
    leader = cluster.elect("a").core
    with pytest.raises(InvariantViolation):
        leader.step(append("a", leader.term, (0, 0), sender="b"))


# ---- 5.4 Safety


@pytest.mark.parametrize(
    ("last", "granted"),
    [((2, 2), True), ((3, 2), True), ((1, 3), True), ((1, 2), False), ((9, 1), False)],
    ids=["equal", "longer", "later term", "shorter", "longer but older term"],
)
def test_5_4_1_the_voter_denies_its_vote_if_its_own_log_is_more_up_to_date(lone, last, granted):
    """5.4.1: "If the logs have last entries with different terms, then the log with the later term is more up-to-date ..."."""
    lone.say(append("a", 2, (0, 0), [entry(1, 1), entry(2, 2)], sender="b"))
    lone.tick(10)
    (answer,) = [m for m in lone.say(request("a", 9, last, sender="c")) if isinstance(m, VoteReply)]
    assert answer.granted is granted


def test_5_4_1_request_vote_includes_information_about_the_candidates_log(lone):
    """5.4.1: "the RPC includes information about the candidate's log"."""
    lone.say(append("a", 2, (0, 0), [entry(1, 1), entry(2, 2)], sender="b"))
    lone.core.campaign(force=True)
    assert {(m.last_index, m.last_term) for m in lone.say() if isinstance(m, RequestVote)} == {(2, 2)}


def test_5_4_2_entries_of_earlier_terms_are_never_committed_by_counting_replicas(make_cluster):
    """5.4.2: "Raft never commits log entries from previous terms by counting replicas"."""
    cluster = make_cluster("abc")
    for node_id in "ab":
        store = cluster[node_id].store
        store.entries = [entry(1, 1), entry(2, 2)]
        store.hard_state = type(store.hard_state)(term=2)
        cluster[node_id].start()
    core = cluster["a"].core
    core.campaign(force=True)
    # b's log equals the leader's up to the end of term 2, but the no-op of term 3 never reaches it
    cluster.drop = lambda m: isinstance(m, AppendEntries)
    cluster.settle()
    core.step(AppendReply(sender="b", to="a", term=core.term, ok=True, match=2, prev_index=2))
    assert core.role is Role.LEADER
    assert core.commit_index == 0
    core.step(AppendReply(sender="b", to="a", term=core.term, ok=True, match=3, prev_index=3))
    assert core.commit_index == 3


def test_5_4_2_acknowledgements_of_an_older_term_do_not_count(cluster):
    """5.4.2 with figure 2: only answers to this term's requests are about this term's log."""
    leader = cluster.elect("a").core
    old_term = leader.term
    cluster.cut("b", "c")
    leader.become_follower(old_term, "")
    leader.campaign(force=True)
    cluster.settle()
    leader.step(VoteReply(sender="b", to="a", term=leader.term, granted=True))
    cluster.settle()
    before = leader.commit_index
    leader.step(AppendReply(sender="b", to="a", term=old_term, ok=True, match=leader.last_index, prev_index=leader.last_index))
    assert leader.commit_index == before


def test_5_4_2_the_leader_counts_itself_only_by_its_own_disk(cluster):
    """Thesis 10.2.1: "the leader may even commit an entry before it has been written to its own disk"."""
    leader = cluster.elect("a")
    leader.hold_writes = True
    index = leader.core.propose(b"x")
    cluster.settle()
    assert leader.core.commit_index == index
    assert leader.applied == []
    assert cluster["b"].applied == [b"x"]
    leader.flush()
    cluster.settle()
    assert leader.applied == [b"x"]


# ---- 5.5 Follower and candidate crashes, 5.6 Timing


def test_5_5_a_repeated_append_has_no_further_effect(lone):
    """5.5: "Raft RPCs are idempotent ... it ignores those entries in the new request"; and it is acknowledged again."""
    message = append("a", 1, (0, 0), [entry(1, 1), entry(2, 1)], sender="b")
    first = lone.say(message)
    again = lone.say(message)
    assert lone.log() == [(1, 1), (2, 1)]
    assert (first[-1].ok, first[-1].match) == (again[-1].ok, again[-1].match) == (True, 2)


def test_5_5_an_acknowledged_entry_survives_a_restart(lone):
    """5.5 with figure 2: the log is persistent state."""
    (answer,) = lone.say(append("a", 1, (0, 0), [entry(1, 1)], sender="b"))
    assert answer.match == 1
    lone.restart()
    assert lone.log() == [(1, 1)]


def test_5_5_nothing_is_acknowledged_before_it_is_on_stable_storage(lone):
    """Figure 2: persistent state is updated "before responding to RPCs"."""
    lone.say(append("a", 1, (0, 0), sender="b"))
    lone.node.hold_writes = True
    said = lone.say(append("a", 1, (0, 0), [entry(1, 1)], sender="b", round=2))
    assert max((m.match for m in said), default=0) == 0
    lone.node.flush()
    assert lone.say()[-1].match == 1


def test_5_6_a_leader_that_cannot_reach_a_majority_steps_down(cluster):
    """Thesis 6.2: "a leader in Raft steps down if an election timeout elapses without a successful round of heartbeats"."""
    leader = cluster.elect("a")
    cluster.cut("a")
    cluster.tick(25, "a")
    assert leader.role is Role.FOLLOWER
    assert leader.core.leader_id == ""
    assert leader.core.vote == "a"


def test_5_6_a_leader_whose_own_disk_stalls_steps_down(cluster):
    """hashicorp/raft 503, 612: heartbeats alone must not keep a leader alive that cannot write."""
    leader = cluster.elect("a")
    leader.hold_writes = True
    leader.core.propose(b"x")
    cluster.tick(25, "a")
    assert leader.role is not Role.LEADER
