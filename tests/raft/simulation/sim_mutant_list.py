"""The mutants: classic Raft bugs, each a patch of a line or two. sim_mutants plants them, mutants.py runs them.

`checks` are the checks of the simulator that may kill it; others do not count. `scenario` is a directed test of tests/raft/core,
for bugs that random worlds meet too rarely, or that break a promise no simulator check is about.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A bug: `patches` are (module of the core, text to find, text to put there)."""

    name: str
    patches: tuple[tuple[str, str, str], ...]
    #: the checks that are meant for it
    checks: tuple[str, ...]
    #: a seed known to kill it, tried first (`mutants.py --refresh` finds others when the core's traffic has changed); a mutant
    #: without one, and with a scenario, is for the scenario alone
    seeds: tuple[int, ...] = ()
    scenario: str = ""


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "half is a quorum",
        (("quorum", "return voters // 2 + 1", "return max(1, voters // 2)"),),
        checks=("election_safety", "leader_completeness"),
        seeds=(1,),
        scenario="test_5_3_an_entry_is_committed_once_on_a_majority",
    ),
    Mutant(
        "votes for an outdated log",
        (
            (
                "state",
                "return last_term > log.last_term or (last_term == log.last_term and last_index >= log.last_index)",
                "return bool(log) or True",
            ),
        ),
        checks=("leader_completeness",),
        seeds=(5,),
        scenario="test_5_4_1_the_voter_denies_its_vote_if_its_own_log_is_more_up_to_date",
    ),
    Mutant(
        "compares logs the wrong way round",
        (
            (
                "state",
                "return last_term > log.last_term or (last_term == log.last_term and last_index >= log.last_index)",
                "return last_term < log.last_term or (last_term == log.last_term and last_index <= log.last_index)",
            ),
        ),
        checks=("leader_completeness",),
        # of the lab, too: its replay shows how a leader is elected that lacks a committed entry
        seeds=(10,),
    ),
    Mutant(
        "compares only the length of logs",
        (
            (
                "state",
                "return last_term > log.last_term or (last_term == log.last_term and last_index >= log.last_index)",
                "return last_index >= log.last_index",
            ),
        ),
        checks=("leader_completeness", "core_invariant"),
        scenario="test_5_4_1_the_voter_denies_its_vote_if_its_own_log_is_more_up_to_date",
    ),
    Mutant(
        "always truncates on an append",
        (("log", ("        position = entries[0].index - self.base_index - 1\n        if"), ("        return 0\n        if")),),
        checks=("core_invariant",),
        seeds=(2,),
        scenario="test_5_3_entries_that_match_are_never_removed_by_a_late_duplicate",
    ),
    Mutant(
        "leader ignores a higher term",
        (("core", "if message.term > self.term:\n", "if message.term > self.term and self.role is not Role.LEADER:\n"),),
        checks=("core_invariant", "progress"),
        seeds=(2,),
        scenario="test_5_1_a_candidate_or_leader_that_finds_its_term_out_of_date_reverts_to_follower",
    ),
    Mutant(
        "no check of the previous entry's term",
        (("follower", "elif log.term(prev_index) != message.prev_term:", "elif prev_index > log.last_index:"),),
        checks=("log_matching", "state_machine_safety", "core_invariant"),
        seeds=(10,),
        scenario="test_5_3_an_append_that_does_not_fit_is_refused",
    ),
    Mutant(
        "several votes in a term",
        (
            ("state", 'if self.vote not in ("", candidate):', "if False:"),
            ("election", 'free = core.vote == message.sender or (core.vote == "" and core.leader_id == "")', "free = True"),
        ),
        checks=("election_safety", "monotone", "core_invariant", "promise"),
        seeds=(0,),
        scenario="test_5_2_each_server_votes_for_at_most_one_candidate_per_term_first_come_first_served",
    ),
    Mutant(
        "match is the leader's own last index",
        (("leader", "news = peer.acknowledged(message.match)", "news = peer.acknowledged(core.log.last_index)"),),
        checks=("leader_completeness", "state_machine_safety", "core_invariant"),
        seeds=(134,),
    ),
    Mutant(
        "term is not persisted",
        (
            ("core", "persist = Persist(self.persist_number, hard,", 'persist = Persist(self.persist_number, HardState(0, ""),'),
            ("core", "self.hard_durable = persist.hard_state", "self.hard_durable = self.hard_handed"),
        ),
        checks=("promise", "monotone", "core_invariant"),
        seeds=(0,),
        scenario="test_5_1_each_server_stores_a_current_term_which_increases_monotonically",
    ),
    Mutant(
        "vote is not persisted",
        (
            (
                "core",
                "persist = Persist(self.persist_number, hard,",
                'persist = Persist(self.persist_number, HardState(hard.term, ""),',
            ),
            ("core", "self.hard_durable = persist.hard_state", "self.hard_durable = self.hard_handed"),
        ),
        checks=("promise", "monotone"),
        seeds=(0,),
        scenario="test_5_2_the_vote_survives_a_restart",
    ),
    Mutant(
        "a vote leaves before it is durable",
        (
            (
                "election",
                ("    core.election_elapsed = 0\n    core.send_after_persist(reply)"),
                ("    core.election_elapsed = 0\n    core.messages.append(reply)"),
            ),
        ),
        checks=("promise",),
        seeds=(0,),
        scenario="test_5_2_no_vote_is_sent_before_it_is_on_stable_storage",
    ),
    Mutant(
        "commits what it has not verified",
        (("follower", "commit = min(message.commit, last)", "commit = min(message.commit, log.last_index)"),),
        checks=("state_machine_safety", "core_invariant"),
        seeds=(26,),
        scenario="test_5_3_commit_is_at_most_what_this_append_has_verified",
    ),
    Mutant(
        "commits an old term's entry by counting",
        (("leader", "if index > log.committed and log.term(index) == core.term:", "if index > log.committed:"),),
        checks=("leader_completeness",),
        scenario="test_5_4_2_entries_of_earlier_terms_are_never_committed_by_counting_replicas",
    ),
    Mutant(
        "acknowledges before the fsync",
        (("follower", "match = min(core.verified, core.log.durable)", "match = core.verified"),),
        checks=("promise",),
        seeds=(0,),
        scenario="test_5_5_nothing_is_acknowledged_before_it_is_on_stable_storage",
    ),
    Mutant(
        "leader counts itself before its own fsync",
        (("leader", "matches.append(log.durable)", "matches.append(log.last_index)"),),
        checks=("leader_completeness", "core_invariant", "state_machine_safety"),
        scenario="test_entries_are_sent_immediately_but_the_leader_counts_itself_only_when_they_are_durable",
    ),
    Mutant(
        "a write in progress counts for entries truncated since",
        (("log", "        self.writing = min(self.writing, first - 1)\n", ""),),
        checks=("promise", "core_invariant"),
        seeds=(35,),
    ),
    Mutant(
        "the store keeps what was truncated",
        (("log", "        truncate_from = self.truncated_from\n", "        truncate_from = 0\n"),),
        checks=("core_invariant",),
        seeds=(60,),
    ),
    Mutant(
        "counts votes of an old term",
        (("core", "elif message.term < self.term:", "elif message.term < self.term and not isinstance(message, VoteReply):"),),
        checks=("election_safety", "leader_completeness"),
        scenario="test_5_2_votes_of_another_term_do_not_count",
    ),
    Mutant(
        "counts acknowledgements of an old term",
        (("core", "elif message.term < self.term:", "elif message.term < self.term and not isinstance(message, AppendReply):"),),
        checks=("leader_completeness", "state_machine_safety", "core_invariant"),
        scenario="test_5_4_2_acknowledgements_of_an_older_term_do_not_count",
    ),
    Mutant(
        "stepping down forgets the vote",
        (
            (
                "state",
                ("        self.is_pre_candidate = False\n        self.votes.clear()"),
                ('        self.is_pre_candidate = False\n        self.vote = ""\n        self.votes.clear()'),
            ),
        ),
        checks=("monotone", "election_safety"),
        seeds=(0,),
        scenario="test_stepping_down_in_the_same_term_keeps_the_vote",
    ),
    Mutant(
        "reads without asking a quorum",
        (("leader", "core.reads.confirmed(quorum.reached(rounds))", "core.reads.confirmed(core.round)"),),
        checks=("linearizable_read",),
        seeds=(85,),
        scenario="test_a_read_is_not_answered_by_a_leader_that_is_cut_off",
    ),
    Mutant(
        "reads before an entry of the term is committed",
        (
            (
                "leader",
                "if core.reads.pending and not core.reads.batches and term_committed(core):",
                "if core.reads.pending and not core.reads.batches:",
            ),
            ("leader", "if core.reads.pending and term_committed(core):", "if core.reads.pending:"),
            ("leader", "if core.log.term(index) not in (core.term, None):", "if False:"),
        ),
        checks=("linearizable_read",),
        seeds=(15,),
        scenario="test_8_a_read_only_request_waits_for_the_no_op_to_commit",
    ),
    Mutant(
        "a read is confirmed by a round that began before it",
        (
            (
                "reads",
                "self.batches.append((confirmation_round, commit_index, self.pending))",
                "self.batches.append((confirmation_round - 1, commit_index, self.pending))",
            ),
        ),
        checks=("linearizable_read",),
        scenario="test_8_an_answer_to_an_earlier_round_confirms_no_later_read",
    ),
    Mutant(
        "a learner counts for the commit",
        (("state", "[peer for peer in self.peers if not peer.learner]", "self.peers"),),
        checks=("leader_completeness", "core_invariant", "state_machine_safety", "election_safety"),
        scenario="test_6_new_servers_join_as_non_voting_members",
    ),
    Mutant(
        "a truncated change of members stays in force",
        (("state", "if self.membership.truncate(first):", "if False:"),),
        checks=("core_invariant", "election_safety", "leader_completeness", "progress"),
        scenario="test_6_a_configuration_that_is_removed_from_the_log_is_no_longer_in_force",
    ),
    Mutant(
        "two changes of members at the same time",
        (
            (
                "leader",
                "return core.membership.index <= core.log.committed and term_committed(core)",
                "return term_committed(core)",
            ),
        ),
        checks=("election_safety", "leader_completeness", "state_machine_safety", "core_invariant"),
        scenario="test_6_only_one_change_at_a_time",
    ),
    Mutant(
        "a change of members before an entry of the term is committed",
        (
            (
                "leader",
                "return core.membership.index <= core.log.committed and term_committed(core)",
                "return core.membership.index <= core.log.committed",
            ),
        ),
        checks=("election_safety", "leader_completeness"),
        scenario="test_6_no_change_before_an_entry_of_the_leaders_term_is_committed",
    ),
    Mutant(
        "removes a member without the check",
        (("reachable", "    voters = [member.id", "    return\n    voters = [member.id"),),
        checks=("progress", "quorum"),
        seeds=(1,),
        scenario="test_a_live_voter_is_not_removed_when_too_few_would_remain_reachable",
    ),
    Mutant(
        "force overrides the quorum",
        (("reachable", "if len(reachable) < needed:", "if len(reachable) < needed and not force:"),),
        checks=("progress", "quorum"),
        seeds=(1,),
        scenario="test_a_live_voter_is_not_removed_when_too_few_would_remain_reachable",
    ),
    Mutant(
        "counts a voter that answered before the question",
        (("reachable", "return peer.round >= since", "return True"),),
        checks=("progress", "quorum"),
        seeds=(1,),
        scenario="test_a_voter_that_has_just_stopped_is_not_reachable_after_a_question",
    ),
    Mutant(
        "a node whose removal is not committed never campaigns",
        (("state", "return self.is_voter or (members.index", "return self.is_voter or bool(0) and (members.index"),),
        checks=("progress",),
        seeds=(3077,),
        scenario="test_a_leader_whose_removal_only_its_own_log_has_can_finish_it",
    ),
    Mutant(
        "takes an election for an answer",
        (("reachable", "has_answered = peer.round > 0 or peer.match > 0", "has_answered = True"),),
        checks=("progress",),
        scenario="test_a_new_leader_counts_no_voter_that_has_not_answered_it",
    ),
    Mutant(
        "removes the last spare voter without force",
        (("reachable", "if has_spare or force:", "if True:"),),
        checks=("progress",),
        scenario="test_the_last_spare_voter_is_removed_only_by_force",
    ),
    Mutant(
        "says it has the snapshot before it is durable",
        (
            (
                "follower",
                "    core.installing = core.restoring = meta\n",
                (
                    "    core.installing = core.restoring = meta\n"
                    "    core.messages.append(SnapshotReply(sender=core.node_id, to=core.leader_id, term=core.term, "
                    "index=meta.index, next_offset=meta.size, done=True))\n"
                ),
            ),
        ),
        checks=("promise",),
        seeds=(3,),
        scenario="test_7_a_snapshot_is_acknowledged_only_when_it_is_durable",
    ),
    Mutant(
        "a snapshot leaves the old log behind it",
        (("log", "        self.truncated_from = 1\n", ""),),
        checks=("core_invariant", "promise", "log_matching"),
        scenario="test_7_a_snapshot_with_new_information_supersedes_the_whole_log",
    ),
    Mutant(
        "takes a snapshot's term from the entry before",
        (("log", "self.base_term = self.known_term(to)", "self.base_term = self.known_term(to - 1)"),),
        checks=("progress", "core_invariant", "log_matching"),
        seeds=(30,),
    ),
    Mutant(
        "never steps back when refused",
        (("leader", "    peer.become_probe(hint + 1)\n", "    return\n"),),
        checks=("progress",),
        seeds=(0,),
        scenario="test_5_3_the_leader_forces_followers_logs_to_duplicate_its_own",
    ),
    Mutant(
        "does not answer messages of an older term",
        (("core", "            self._answer_older_term(message)\n", ""),),
        checks=("progress",),
        seeds=(197,),
        scenario="test_a_node_with_a_higher_term_is_not_locked_out",
    ),
    Mutant(
        "never frees what is in flight",
        (("progress", "while inflight and inflight[0][0] <= match:", "while False:"),),
        checks=("progress",),
        seeds=(1,),
    ),
    Mutant(
        "a leader without a quorum stays",
        (("leader", "if not _quorum_is_active(core):", "if False:"),),
        checks=("progress",),
        scenario="test_5_6_a_leader_that_cannot_reach_a_majority_steps_down",
    ),
    Mutant(
        "a leader with a stalled disk stays",
        (("leader", "if core.voting_peers and core.outstanding", "if False and core.outstanding"),),
        checks=("progress",),
        scenario="test_5_6_a_leader_whose_own_disk_stalls_steps_down",
    ),
    Mutant(
        "a rejoining node deposes the leader",
        (("core", "if isinstance(message, RequestVote) and self.in_lease and not message.transfer:", "if False:"),),
        checks=("progress",),
        scenario="test_6_servers_disregard_vote_requests_while_they_believe_a_leader_exists",
    ),
    Mutant(
        "grants pre-votes despite a live leader",
        (("election", "granted = message.term > core.term and not core.in_lease and", "granted = message.term > core.term and"),),
        checks=("progress",),
        scenario="test_a_node_that_was_cut_off_comes_back_without_an_election",
    ),
    Mutant(
        "no entry of its own after an election",
        (("leader", '    append(core, EntryKind.NOOP, b"")\n', ""),),
        checks=("progress",),
        scenario="test_8_a_leader_commits_a_blank_no_op_at_the_start_of_its_term",
    ),
    Mutant(
        "a late read answer meets a later question",
        (
            (
                "reads",
                "contexts, _ = self.sent.pop(nonce, ([], 0))",
                "contexts, _ = self.sent.pop(next(iter(self.sent), 0), ([], 0))",
            ),
        ),
        checks=("linearizable_read",),
        seeds=(5,),
    ),
    Mutant(
        "a repeated command is applied again",
        (("replica", "if seq == session.last_seq + 1:", "if seq <= session.last_seq + 1:"),),
        checks=("exactly_once",),
        seeds=(2,),
    ),
    Mutant(
        "commands after a gap are applied",
        (
            ("replica", "if seq > session.last_seq + 1:", "if False:"),
            ("replica", "if seq == session.last_seq + 1:", "if seq > session.last_seq:"),
        ),
        checks=("exactly_once",),
        seeds=(2,),
    ),
    Mutant(
        "a snapshot forgets the sessions",
        (("sessions", "stored = msgspec.convert(state, dict[str, StoredSession], strict=False)", "stored = {}"),),
        checks=("exactly_once", "state_machine_safety"),
        seeds=(30,),
    ),
    Mutant(
        "a repeated request is carried out again",
        (("client_requests", "request = session.answers.get(key) or session.waiting.get(key)", "request = None"),),
        checks=("exactly_once",),
        seeds=(2,),
    ),
    Mutant(
        "a snapshot forgets the answers to requests",
        (("client_requests", "for data in stored.requests:", "for data in []:"),),
        checks=("exactly_once", "state_machine_safety"),
        seeds=(30,),
    ),
    Mutant(
        "a request of a session that is over is carried out",
        (
            (
                "client_requests",
                'return _expired("the session of `request_id` is unknown, or has ended")',
                "return Unknown(RequestSession(once.session, 1000, at_ms))",
            ),
        ),
        checks=("exactly_once",),
        seeds=(2,),
    ),
    Mutant(
        "a request whose answer was dropped is carried out again",
        (("client_requests", "if once.number > session.dropped:", "if True:"),),
        checks=("exactly_once",),
        seeds=(2,),
    ),
    Mutant(
        "a request whose answer the client has is carried out again",
        (("client_requests", "if once.number <= session.answered:", "if False:"),),
        checks=("exactly_once",),
        seeds=(2,),
    ),
    Mutant(
        "two numbers are one request",
        (("client_requests", "key = (once.number, once.part)", "key = (once.number // 2, once.part)"),),
        checks=("exactly_once",),
        seeds=(2,),
    ),
    Mutant(
        "a new leader stamps with its own wall clock",
        (
            (
                "clocks",
                "self._ms = self._go_on(applied_ms) if applied_ms else self._first_ms(agreed_ms)",
                "self._ms = self.members.wall_ms()",
            ),
        ),
        checks=("time",),
        seeds=(13,),
    ),
    Mutant(
        "time is advanced to the leader's own clock",
        (
            ("proposals", "agreed_ms = self._clock.members.agreed_ms()", "agreed_ms = float(self._clock.members.wall_ms())"),
            ("proposals", "if agreement is None or agreed_ms is None or", "if agreed_ms is None or"),
            ("proposals", "if sum(voter in agreement.nodes for voter in voters) <= len(voters) // 2:", "if not voters:"),
            ("proposals", "nodes=agreement.nodes", "nodes=()"),
        ),
        checks=("time",),
        seeds=(2,),
    ),
    Mutant(
        "one clock is a majority",
        (
            ("clocks", "self.offsets_ms, len(voters) // 2 + 1)", "self.offsets_ms, 1)"),
            ("proposals", "if sum(voter in agreement.nodes for voter in voters) <= len(voters) // 2:", "if False:"),
        ),
        checks=("time",),
        seeds=(57,),
    ),
    Mutant(
        "any clocks agree",
        (("clocks", "AGREE_MS = 60_000", "AGREE_MS = 1 << 50"), ("proposals", "> AGREE_MS", "> 60_000")),
        checks=("time", "progress"),
        seeds=(57,),
    ),
    Mutant(
        "stamps before the stamps in its log are known",
        (("proposals", "        if not self._knows_time():", "        if False:"),),
        checks=("time",),
        seeds=(13,),
    ),
    Mutant(
        "time is never advanced",
        (("proposals", "if behind_ms > AGREE_MS:", "if False:"),),
        checks=("progress",),
        seeds=(57,),
    ),
    Mutant(
        "an empty store votes",
        (("state", "return bool(members.ids) and not self.is_outdated and", "return not self.is_outdated and"),),
        checks=("vote", "leader_completeness", "state_machine_safety", "core_invariant"),
        seeds=(1,),
        scenario="test_an_empty_store_has_no_vote",
    ),
    Mutant(
        "a store that was put back votes",
        (("state", "return bool(members.ids) and not self.is_outdated and", "return bool(members.ids) and"),),
        checks=("vote", "leader_completeness", "state_machine_safety", "election_safety", "monotone", "core_invariant"),
        seeds=(13,),
        scenario="test_a_store_that_was_put_back_has_no_vote",
    ),
    Mutant(
        "answers of another store count",
        (("core", "            if members.is_other_store(sender, store):\n                return False\n", ""),),
        checks=("majority", "core_invariant", "leader_completeness", "state_machine_safety"),
        seeds=(1,),
        scenario="test_the_vote_of_another_store_does_not_count",
    ),
    Mutant(
        "a leader remembers what a peer held before its restart",
        (("progress", "        self.match = 0\n        self.become_probe(self.acknowledged_before + 1)\n", "        pass\n"),),
        checks=("progress", "majority"),
        seeds=(631,),
        scenario="test_a_leader_finds_a_follower_that_lost_what_it_acknowledged",
    ),
    Mutant(
        "a member without a vote counts for a quorum",
        (("reachable", "reachable = [voter for voter in answering if core.has_vote(voter)]", "reachable = answering"),),
        checks=("quorum",),
        seeds=(212,),
        scenario="test_a_voter_whose_disk_was_put_back_is_none_of_those_that_are_needed",
    ),
    Mutant(
        "a deposed leader forgets what was acknowledged",
        (("state", "self.note_promise(peer.id, peer.held)", "pass"),),
        checks=("leader_completeness",),
        scenario="test_a_deposed_leader_remembers_what_was_acknowledged",
    ),
    Mutant(
        "takes a later term for an older disk",
        (("core", "return (term, last_index) < promised", "return last_index < promised[1]"),),
        checks=("core_invariant",),
        scenario="test_a_leader_knows_which_store_has_lost_what_it_acknowledged",
    ),
    Mutant(
        "a late copy opens the session of a removed node again",
        (("sessions", "        session.is_over = True", "        del self.sessions[node]"),),
        checks=("exactly_once",),
        seeds=(63,),
    ),
    Mutant(
        "the version rises without a member that is not linked",
        (("versions", "if missing or old or not members:", "if old or not members:"),),
        checks=("version",),
        seeds=(167,),
    ),
    Mutant(
        "an outdated node helps the leader of a term that it had left",
        (
            (
                "core",
                '            self.become_follower(max(term, self.term), "")',
                '            self.become_follower(self.term, "")',
            ),
        ),
        checks=("core_invariant", "leader_completeness", "state_machine_safety"),
        seeds=(4304,),
    ),
    Mutant(
        "a learner is promoted before its log names it",
        (("leader", "if peer.match < max(1, core.membership.index):", "if peer.match == 0:"),),
        checks=("progress",),
        scenario="test_6_a_learner_is_promoted_only_when_its_log_names_it",
        seeds=(9997,),
    ),
    Mutant(
        "the version rises to the newest release of a member",
        (
            ("versions", "if missing or old or not members:", "if missing or not members:"),
            ("versions", "Raise(min(supported.max", "Raise(max(supported.max"),
        ),
        checks=("version",),
        seeds=(57,),
    ),
    Mutant(
        "a version of a newer release is applied",
        (("replica", "        self._check_versions(batch)\n        self.at_ms", "        self.at_ms"),),
        checks=("version",),
        seeds=(275,),
    ),
    Mutant(
        "a newer command is proposed before its version",
        (("admission", "if command.since > MIN:", "if False:"),),
        checks=("version",),
        seeds=(1,),
    ),
)
