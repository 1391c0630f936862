"""Bugs planted outside the core: in the store, the replicated state, the node, locks and queue.

Each has a patch and the tests that are meant for it. The tests run in a process of their own, in which this module is a pytest
plugin that patches the source at import. The cache's bugs are flaws of its own simulation
(tests/cache/simulation/test_coherence_simulation.py).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from planted_tests import PlantedTests

from dss_dev import patience

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
#: the mutant to plant in a process that has this module as a plugin
VARIABLE = "DSS_COMPONENT_MUTANT"
TESTS_FAILED = 1
PATIENCE_S = 120
#: For how long the tests wait for what a bug prevents.
PLANTED_PATIENCE_S = 10


@dataclass(frozen=True)
class ComponentMutant:
    """A bug: in `module`, `old` becomes `new`; one of `tests` must fail."""

    name: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]


COMPONENT_MUTANTS = (
    ComponentMutant(
        "expires by the local clock while applying",
        "dss_raft.replication.replica",
        "self.at_ms = max(self.at_ms, batch.at_ms)",
        "self.at_ms = __import__('time').time_ns() // 1_000_000",
        ("tests/raft/test_replica.py::test_nothing_expires_without_a_later_stamp",),
    ),
    ComponentMutant(
        "stamps follow the wall clocks without a limit",
        "dss_raft.replication.clocks",
        "                self._ms += min(pull_ms, max(-pull_ms, agreed_ms - self._ms))\n",
        "                self._ms = agreed_ms\n",
        ("tests/raft/test_clocks.py::test_within_a_term_stamps_follow_the_steady_clock",),
    ),
    ComponentMutant(
        "advanced time ends leases",
        "dss_raft.replication.replica",
        "            self.at_ms = command.to_ms\n            self._rearm(index)\n",
        "            self.at_ms = command.to_ms\n",
        (
            "tests/raft/test_replica.py::test_advanced_time_gives_leases_their_full_length_before_anything_expires",
            "tests/raft/test_wrong_clocks.py::test_after_a_day_without_a_leader_time_is_advanced_by_a_day_and_leases_are_not_lost",
        ),
    ),
    ComponentMutant(
        "the stamps of a term start at the leader's wall clock",
        "dss_raft.replication.clocks",
        "self._ms = self._go_on(applied_ms) if applied_ms else self._first_ms(agreed_ms)",
        "self._ms = self.members.wall_ms()",
        (
            "tests/raft/test_clocks.py::test_a_new_leader_with_a_wrong_clock_goes_on_from_applied_time",
            "tests/raft/test_wrong_clocks.py::test_applied_time_is_right_although_the_clock_of_one_leader_is_wrong",
            "tests/raft/simulation/test_simulation.py::test_a_wall_clock_that_is_wrong_by_days_does_no_harm",
        ),
    ),
    ComponentMutant(
        "a cancel forgets a request that it does not undo",
        "dss_raft.replication.replica",
        "if not command.is_undone_by_cancel:",
        "if False:",
        (
            "tests/raft/test_client_requests.py::test_a_cancel_does_not_undo_what_it_cannot_undo",
            "tests/raft/test_repeated_calls.py::test_messages_are_published_once_also_if_the_caller_hung_up",
        ),
    ),
    ComponentMutant(
        "a cancel undoes what another caller may have got",
        "dss_raft.replication.client_requests",
        "if not request.callers:",
        "if True:",
        (
            "tests/raft/test_client_requests.py::test_an_answered_request_is_undone_when_no_caller_can_have_the_answer",
            "tests/raft/test_repeated_calls.py::test_a_lock_that_another_caller_may_have_got_stays",
        ),
    ),
    ComponentMutant(
        "a waiter goes with the node of its first caller",
        "dss_raft.replication.client_requests",
        "return Origin(ANY_NODE, 0, request.serial)",
        "return origin",
        (
            "tests/raft/test_client_requests.py::test_a_waiter_survives_the_restart_of_its_first_node",
            "tests/raft/test_repeated_calls.py::test_a_wait_for_a_lock_goes_on_at_another_node",
        ),
    ),
    ComponentMutant(
        "requests outlive their session's time",
        "dss_raft.replication.client_requests",
        "for session in self._deadlines.pop_due(at_ms):",
        "for session in []:",
        ("tests/raft/test_client_requests.py::test_a_request_of_a_session_that_has_expired_is_refused",),
    ),
    ComponentMutant(
        "a fencing token counted by the process",
        "dss_locks.core.holdings",
        "hold = Hold(key, client, exclusive, index, at_ms",
        "hold = Hold(key, client, exclusive, self.__dict__.setdefault('granted', __import__('itertools').count(1)).__next__(), at_ms",
        ("tests/locks/test_fencing.py::test_check_distinguishes_the_current_token_from_old_ones",),
    ),
    ComponentMutant(
        "no checksum over the entries of the log",
        "dss_raft.disk.rows",
        "return bool(_entry_crc(index, term, kind, data) == crc)",
        "return bool(_entry_crc(index, term, kind, data) or crc or True)",
        ("tests/raft/store/test_store_damage.py::test_a_changed_row",),
    ),
    ComponentMutant(
        "damage at the log's end is taken for the torn tail of a crash",
        "dss_raft.disk.wal",
        "        if ended:\n",
        "        if False:\n",
        (
            "tests/raft/store/test_store_damage.py::test_garbage_in_the_middle_of_the_log_is_damage_even_without_the_high_water_mark",
        ),
    ),
    ComponentMutant(
        "answers before the commit",
        "dss_raft.calls",
        "        assert call.future is not None\n",
        "        assert call.future is not None\n        return Result({'total': 1})\n",
        ("tests/raft/test_node.py::test_calls_are_refused_without_a_majority_and_accepted_with_one_again",),
    ),
    ComponentMutant(
        "a snapshot forgets the messages in flight",
        "dss_queue.core.snapshot",
        "for handout_state in state.handouts:",
        "for handout_state in state.handouts[:0]:",
        ("tests/queue/test_snapshot.py",),
    ),
    ComponentMutant(
        "ready at a start that the cluster has not accepted",
        "dss_raft.readiness",
        "if not self._calls.is_session_accepted:",
        "if False:",
        ("tests/raft/test_readiness.py::test_one_thing_is_missing",),
    ),
    ComponentMutant(
        "not ready whenever something committed is not applied yet",
        "dss_raft.readiness",
        "if self._lag.is_lagging(self._replica.applied_index):",
        "if self._replica.applied_index < core.known_committed:",
        ("tests/raft/test_readiness.py::test_a_busy_node_does_not_flap",),
    ),
    ComponentMutant(
        "a leader that cannot write goes silently",
        "dss_raft.core.leader",
        "    successor = best_successor(core)\n",
        "    successor = None\n",
        ("tests/raft/core/test_core.py::test_a_leader_that_can_no_longer_write_has_the_best_successor_campaign",),
    ),
    ComponentMutant(
        "starts without its high-water mark",
        "dss_raft.disk.store",
        "if not self.is_new and not self._acknowledged.exists():",
        "if False:",
        (
            "tests/raft/store/test_store_damage.py"
            "::test_a_missing_high_water_mark_is_refused_until_an_operator_vouches_for_the_rest",
        ),
    ),
    ComponentMutant(
        "a session event names a ping that its renewal does not answer",
        "dss_locks.subscriptions",
        'renewed.body["expires_in_ms"], renewed.index, ping))',
        'renewed.body["expires_in_ms"], renewed.index, feed.last_ping))',
        ("tests/locks/test_connection_session.py::test_its_events_name_the_last_ping_that_arrived_before_the_renewal_began",),
    ),
    ComponentMutant(
        "believes a refusal without a MAC",
        "dss_raft.net.handshake",
        "if not self._dials or not self._key or not hmac.compare_digest(refusal.mac, self._refusal_mac(refusal.reason)):",
        "if not self._dials:",
        (
            "tests/raft/links/test_wire_handshake.py::test_a_refusal_without_the_secret_is_not_believed_and_says_only_known_words",
            "tests/raft/links/test_links_hostile.py::test_a_stranger_at_a_peers_address_cannot_say_that_this_node_was_removed",
        ),
    ),
    ComponentMutant(
        "a member may use the certificate of another one",
        "dss_raft.net.tls_handshake",
        "        self._check_certificate()\n",
        "",
        ("tests/raft/links/test_tls_handshake.py::test_a_node_cannot_use_the_certificate_of_another_one",),
    ),
    ComponentMutant(
        "two nodes that know TLS link without it",
        "dss_raft.net.handshake",
        "if self._can_tls and self._peer_can_tls:",
        "if False:",
        (
            "tests/raft/links/test_tls_handshake.py"
            "::test_two_nodes_that_know_tls_refuse_the_older_handshake_whatever_somebody_in_between_does",
        ),
    ),
    ComponentMutant(
        "links without TLS are accepted when all members know it",
        "dss_raft.net.links",
        "return self._credentials is None or (self._credentials.accepts_secret and not self._requires_tls())",
        "return True",
        ("tests/raft/links/test_links_tls.py::test_when_all_know_tls_no_other_link_is_made",),
    ),
    ComponentMutant(
        "a restarted node forgets that all members know TLS",
        "dss_raft.node",
        "max(self.replica.highest_version, version_in_log) >= MUTUAL_TLS",
        "self.replica.highest_version >= MUTUAL_TLS",
        ("tests/raft/test_cluster_version.py::test_a_restarted_node_links_with_tls_only_before_it_applies_its_log",),
    ),
    ComponentMutant(
        "a peer is up until its link breaks",
        "dss_raft.net.links",
        "link is not None and link.ticks_without_data <= self._silent_ticks",
        "link is not None",
        ("tests/raft/links/test_links_life.py::test_a_silent_peer_is_not_up_although_its_link_is",),
    ),
    ComponentMutant(
        "a restored cluster goes on at the index of the backup",
        "dss_raft.replication.replica",
        "index, at_ms = self.applied_index + raise_index_by, self.at_ms",
        "index, at_ms = self.applied_index, self.at_ms",
        ("tests/raft/test_founding.py::test_no_number_is_given_out_twice",),
    ),
    ComponentMutant(
        "a restored cluster gives out versions again",
        "dss_cache.core.directory",
        "self.stamp = max(self.stamp, at_ms * 1000) + indexes * STAMPS_PER_INDEX",
        "self.stamp = max(self.stamp, at_ms * 1000)",
        ("tests/raft/test_founding.py::test_no_number_is_given_out_twice",),
    ),
    ComponentMutant(
        "a restored cluster gives out receipts again",
        "dss_queue.core.broker",
        "self.registry.serial += indexes * SERIALS_PER_INDEX",
        "pass",
        ("tests/raft/test_founding.py::test_no_receipt_is_given_out_twice",),
    ),
    ComponentMutant(
        "a restored cluster grants locks to callers that are gone",
        "dss_raft.replication.replica",
        "            for seq in session.waiting:\n",
        "            for seq in ():\n",
        ("tests/raft/test_founding.py::test_callers_that_waited_are_gone_and_got_nothing",),
    ),
    ComponentMutant(
        "dirty values of a restored cluster keep versions that Redis does not take",
        "dss_cache.core.directory",
        "            self.records[key].version = self._next_stamp(at_ms)\n",
        "            pass\n",
        ("tests/raft/test_founding.py::test_a_backing_store_that_went_on_takes_dirty_values_and_lines_are_gone",),
    ),
    ComponentMutant(
        "a node hashes its state at the end of a turn",
        "dss_raft.applying",
        "                if replica.must_hash:\n",
        "                if replica.must_hash and not to_apply:\n",
        ("tests/raft/test_state_hashes.py::test_the_state_is_hashed_right_after_the_entry_that_asks_for_it",),
    ),
    ComponentMutant(
        "an entry of a newer release is taken for one that cannot be decoded",
        "dss_raft.replication.batch",
        "_MUST_BE_RAISED = (MemoryError, RecursionError, WrongFormat)",
        "_MUST_BE_RAISED = (MemoryError, RecursionError)",
        ("tests/raft/test_impossible_entries.py::test_an_entry_of_a_newer_release_stops_its_node_and_is_not_taken_for_garbage",),
    ),
    ComponentMutant(
        "a damaged backup is restored",
        "dss_cli.backup",
        "    if digest.hexdigest() != header.sha256:\n        raise",
        "    if False:\n        raise",
        ("tests/client/test_backup_file.py::test_every_flipped_byte_is_noticed",),
    ),
    ComponentMutant(
        "a newer command in the log takes effect on the releases that know it",
        "dss_raft.replication.replica",
        "for t in machine.commands if t.since <= version}",
        "for t in machine.commands}",
        ("tests/raft/test_versions.py::test_a_command_that_is_newer_than_the_version_has_no_effect_on_any_release",),
    ),
    ComponentMutant(
        "a snapshot of a newer release is restored",
        "dss_raft.replication.replica",
        "        require_supported(state.cluster_version, self.supported)\n",
        "",
        ("tests/raft/test_versions.py::test_a_snapshot_of_an_unknown_version_is_not_restored",),
    ),
    ComponentMutant(
        "the version is proposed by the first leader only",
        "dss_raft.replication.proposals",
        "            self._version = 0\n            self._gathered",
        "            self._gathered",
        ("tests/raft/test_proposals.py::test_a_leader_proposes_a_version_once_in_a_term_and_the_next_leader_again",),
    ),
    ComponentMutant(
        "a node of an older release starts with a log that it cannot apply",
        "dss_raft.node",
        "        self.replica.require_supported(boot_state.entries)\n",
        "",
        ("tests/raft/test_cluster_version.py::test_an_upgrade_node_by_node_and_the_way_back",),
    ),
    ComponentMutant(
        "an older release is linked",
        "dss_raft.net.handshake",
        "            self._check_versions()\n",
        "",
        ("tests/raft/links/test_wire_handshake.py::test_an_older_release_is_refused_once_both_know_the_secret_and_both_say_why",),
    ),
    ComponentMutant(
        "the key does not cover what the nodes announce",
        "dss_raft.net.handshake",
        "dialer, acceptor = (self._own_hello, hello) if self._dials else (hello, self._own_hello)",
        "dialer, acceptor = b'', b''",
        ("tests/raft/links/test_wire_handshake.py::test_nobody_in_between_can_change_the_versions",),
    ),
    ComponentMutant(
        "what an earlier process had applied proves nothing",
        "dss_raft.replication.replica",
        "            self._note_applied_before(session, group.answered)",
        "            pass",
        ("tests/raft/test_outdated_stores.py::test_a_node_finds_out_by_itself_that_it_had_applied_more",),
    ),
    ComponentMutant(
        "a new process votes before the others can tell it that its store is outdated",
        "dss_raft.identity",
        "return any(isinstance(message, _ASKS_FOR_A_PROMISE) for message in frame.messages)",
        "return False",
        ("tests/raft/test_outdated_stores.py::test_a_new_process_waits_for_what_the_others_tell_it_before_it_promises_anything",),
    ),
)


_TESTS = PlantedTests(
    ROOT,
    {
        patience.VARIABLE: str(PLANTED_PATIENCE_S),
        "PYTHONPATH": str(HERE),
        # The plugins that these tests do not need take three quarters of the time.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    },
)


def survived(mutant: ComponentMutant) -> list[str]:
    """The tests that should have failed but did not; empty when the bug was found."""
    missing = []
    for test in mutant.tests:
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", "-p", Path(__file__).stem, test]
        code = _TESTS.run(options, {VARIABLE: mutant.name}, PATIENCE_S)
        if code != TESTS_FAILED:
            missing.append(f"{test} (exit code {code})")
    return missing


def _plant(name: str) -> None:
    from sim_mutants import Patched

    (mutant,) = (mutant for mutant in COMPONENT_MUTANTS if mutant.name == name)
    sys.meta_path.insert(0, Patched([(mutant.module, mutant.old, mutant.new)]))


if name := os.environ.get(VARIABLE):
    _plant(name)
