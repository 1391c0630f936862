"""The verdict, the checks and the node cards."""

from __future__ import annotations

from typing import Any

import pytest

from dss_console.live.judgement import ELECTIONS_MAX, LAG_MAX, WAIT_MS_MAX, Facts, MemberFacts, judge
from dss_console.live.messages import Report

NOON_MS = 12 * 3600 * 1000


def report(node: str, role: int = 0, **fields: Any) -> Report:
    values: dict[str, Any] = {
        "node": node,
        "incarnation": 1,
        "at_ms": NOON_MS,
        "release": "0.2.0",
        "term": 6,
        "role": role,
        "leader": "node-2",
        "commit": 1204,
        "applied": 1204,
        "last_index": 1204,
        "snapshot_index": 0,
        "not_ready": "",
        "pending": 0,
        "waiting": 0,
        "fsync_ms": 2.0,
        "rss_bytes": 84_000_000,
        "lines": 0,
        "hits": 0,
        "misses": 0,
        "store_trouble": "",
        "silent_ms": {},
        "events": [],
        "line_states": {},
        "changes": [],
    }
    return Report(**{**values, **fields})


def member(number: int, silent_ms: int = 0, **fields: Any) -> MemberFacts:
    name = f"node-{number}"
    given = {key: fields.pop(key) for key in ("learner", "outdated", "is_stale") if key in fields}
    told = report(name, role=2 if number == 2 else 0, **fields)
    return MemberFacts(
        name, f"http://{name}:8101", given.pop("learner", False), given.pop("outdated", False), silent_ms, told, **given
    )


def facts(*members: MemberFacts, **fields: Any) -> Facts:
    known: dict[str, Any] = {
        "node": "node-1",
        "at_ms": NOON_MS,
        "members": members or (member(1), member(2), member(3)),
        "term": 6,
        "leader": "node-2",
        "leaderless_ms": 0,
        "leader_since_ms": NOON_MS - 60_000,
        "election_ms_max": 1000,
    }
    return Facts(**{**known, **fields})


def levels(found: Any) -> dict[str, str]:
    return {check.id: check.level for check in found.checks}


def test_all_is_well() -> None:
    found = judge(facts())
    assert found.verdict.code == "healthy"
    assert found.verdict.text == "All 3 members answer. The cluster can lose 1 of them and go on."
    assert set(levels(found).values()) == {"ok"}
    assert [(card.word, card.log) for card in found.nodes] == [("FOLLOWER", "level"), ("LEADER", "level"), ("FOLLOWER", "level")]
    assert found.checks[0].text == "node-2 leads in term 6, since 11:59:00."


def text_of(check: str, **fields: Any) -> str:
    return next(one.text for one in judge(facts(**fields)).checks if one.id == check)


def test_a_node_that_has_just_started_says_what_it_knows_of_elections() -> None:
    since = {"elections_known_since_ms": NOON_MS - 60_000}
    assert text_of("elections", **since) == "No election since 11:59:00; no node that answers has run for longer."
    assert text_of("elections", elections=1, **since) == "1 election since 11:59:00; no node that answers has run for longer."
    assert text_of("elections", elections_known_since_ms=NOON_MS - 600_000) == "No election in the last 10 min."
    for elections, is_stable in ((ELECTIONS_MAX, True), (ELECTIONS_MAX + 1, False)):
        assert (levels(judge(facts(elections=elections, **since)))["elections"] == "ok") is is_stable, "the first one was needed"
    found = {"leader_since_ms": 0, "leader_found_ms": NOON_MS - 60_000}
    assert text_of("leader", **found) == "node-2 leads in term 6, since 11:59:00 or earlier."


def test_a_single_node_is_healthy_and_has_no_spare() -> None:
    verdict = judge(facts(member(1), leader="node-1")).verdict
    assert verdict.code == "healthy"
    assert "no spare" in verdict.text


def test_an_engine_that_is_away_is_named_with_its_reason() -> None:
    away = {"engine_trouble": "10.0.0.9:6379 does not answer"}
    found = judge(facts(member(1, **away), member(2, **away), member(3), topics_on_engine=2))
    assert (found.verdict.code, levels(found)["engine"]) == ("degraded", "warn")
    assert next(check.text for check in found.checks if check.id == "engine") == (
        "node-1 and node-2 cannot use the engine redis: 10.0.0.9:6379 does not answer. "
        "Calls on 2 topics get 503 there; everything else goes on."
    )
    assert "DSS_ENGINE_URL" in found.verdict.action
    unused = judge(facts(member(1, **away)))
    assert (unused.verdict.code, levels(unused)["engine"]) == ("healthy", "info"), "no topic is on it"
    without = {"engine_trouble": "set DSS_ENGINE_URL", "is_without_engine": True}
    assert "engine" not in levels(judge(facts(member(1, **without))))
    assert levels(judge(facts(member(1, **without), topics_on_engine=1)))["engine"] == "warn"


def test_no_dead_letters_is_said_of_what_is_known() -> None:
    assert text_of("dead-letters", topics_on_engine=2) == "No dead letters."
    assert text_of("dead-letters", topics_on_engine=2, topics_unknown=1) == "No dead letters in the log."


def test_a_silent_follower_is_named_with_the_consequence() -> None:
    found = judge(facts(member(1), member(2), member(3, silent_ms=12_345)))
    assert found.verdict.code == "degraded"
    assert found.verdict.text == "node-3 has been silent for 12 s. Writes work; one more loss stops them."
    assert found.verdict.since == "11:59:47"
    assert "node-3" in found.verdict.action
    assert found.nodes[2].shape == "silent"
    assert found.nodes[2].word == "SILENT 12 s"
    assert levels(found)["voters"] == "warn"


def test_silence_below_the_limit_is_nothing() -> None:
    assert judge(facts(member(1), member(2), member(3, silent_ms=1500))).verdict.code == "healthy"
    assert judge(facts(member(1), member(2), member(3, silent_ms=1501))).verdict.code == "degraded"


def test_without_a_majority_writes_are_refused() -> None:
    found = judge(facts(member(1), member(2, silent_ms=2000), member(3, silent_ms=9000), leader="", leaderless_ms=100))
    assert found.verdict.code == "refusing_writes"
    assert "a write needs 2" in found.verdict.text
    assert "node-2 and node-3" in found.verdict.text
    assert found.verdict.since == "11:59:58", "writes are refused since the second one fell silent"


@pytest.mark.parametrize(("leaderless_ms", "code"), [(500, "degraded"), (2000, "degraded"), (2001, "refusing_writes")])
def test_an_election_is_no_outage_until_it_takes_too_long(leaderless_ms: int, code: str) -> None:
    assert judge(facts(leader="", leaderless_ms=leaderless_ms)).verdict.code == code


def test_a_node_that_cannot_use_its_state_refuses_alone() -> None:
    verdict = judge(facts(unusable="entry 7 could not be applied")).verdict
    assert (verdict.code, verdict.word) == ("refusing_writes", "REFUSING WRITES HERE")


def test_learners_and_outdated_members_have_no_vote() -> None:
    known = facts(member(1), member(2), member(3), member(4, learner=True))
    assert (len(known.voters), known.needed) == (3, 2)
    found = judge(facts(member(1), member(2), member(3, outdated=True)))
    assert levels(found)["outdated"] == "warn"
    assert found.nodes[2].trouble


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"elections": ELECTIONS_MAX}, "elections"),
        ({"dead_letters": [("orders", "billing", 3)], "new_dead_letters": 1}, "dead-letters"),
        ({"longest_wait": ("carol", "orders/42", WAIT_MS_MAX + 1)}, "waits"),
        ({"is_clock_wrong": True}, "clock"),
        ({"members": (member(1), member(2), member(3, applied=1204 - LAG_MAX - 1))}, "lag"),
        ({"members": (member(1), member(2), member(3, store_trouble="disk full"))}, "stores"),
    ],
)
def test_what_degrades(fields: dict[str, Any], check: str) -> None:
    found = judge(facts(**fields))
    assert found.verdict.code == "degraded"
    assert levels(found)[check] == "warn"
    assert found.verdict.action


def test_no_more_dead_letters_are_new_than_there_are() -> None:
    """Those that were redriven have been recorded, but are there no more."""
    found = judge(facts(dead_letters=[("orders", "billing", 1)], new_dead_letters=2))
    assert [check.text for check in found.checks if check.id == "dead-letters"] == ["1 dead letter in orders/billing, 1 new."]


def test_old_dead_letters_and_refused_deadlocks_are_told_and_degrade_nothing() -> None:
    found = judge(facts(dead_letters=[("orders", "billing", 3)], deadlocks=2))
    assert found.verdict.code == "healthy"
    assert levels(found)["dead-letters"] == levels(found)["deadlocks"] == "info"
    assert next(check.link for check in found.checks if check.id == "dead-letters") == "/ui/topic?name=orders"


def test_a_member_of_an_older_release_has_no_report() -> None:
    silent = MemberFacts("node-3", "http://node-3:8101", False, False, 200, None, is_stale=True)
    found = judge(facts(member(1), member(2), silent))
    assert found.verdict.code == "healthy"
    assert (found.nodes[2].word, found.nodes[2].log) == ("FOLLOWER", "no report yet")
