"""Ordinary calls that make a node's state grow, or that once ended it: each kind reaches its limit, and what shrinks the state works."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dss_dev.confinement import MIB
from dss_dev.hostile import SCALE, SETTINGS, STATE_LIMITS, Probe
from dss_dev.local_cluster import ROOT, LocalNode, Reply

pytestmark = pytest.mark.cluster

MakeProbe = Callable[..., Probe]
SetLimits = Callable[..., None]
EDGES = [2**53, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63), -(10**40)]


def post_all(node: LocalNode, path: str, requests: Iterator[Any], workers: int = 4) -> list[Reply]:
    """The answers to many calls, several at the same time."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda request: node.call("POST", path, request), requests))


def statuses(replies: list[Reply]) -> set[int]:
    return {reply.status for reply in replies}


def test_locks_with_large_metadata_fill_their_limit_and_nothing_else(
    node: LocalNode, probe: MakeProbe, set_limits: SetLimits
) -> None:
    """64 keys with 8 KiB of metadata at a time: what grows is refused, and renewals and releases still work."""
    set_limits(lock_bytes_max=2 * MIB)
    assert node.call("POST", "/lock/acquire", {"key": "probe", "client": "probe"}).status == 200
    with probe(2 * MIB):
        replies = []
        for number in range(100 * SCALE):
            meta = {f"{member:x}": f"{number:04}" + "m" * 508 for member in range(16)}
            keys = [f"full/{number}/{key}" for key in range(64)]
            replies.append(node.call("POST", "/lock/acquire", {"keys": keys, "client": "full", "meta": meta, "ttl_ms": 60_000}))
        assert statuses(replies) == {200, 429}
        refused = replies[-1].json
        assert (refused["code"], refused["limit"], refused["maximum"]) == ("over_limit", "lock_bytes_max", 2 * MIB)
        limits = {row["name"]: row for row in node.call("GET", "/raft/limits").json["limits"]}
        assert 1 <= limits["lock_bytes_max"]["share"] < 1.1
        assert b'dss_state_bytes_max{limit="lock_bytes_max"} 2.097152e+06' in node.call("GET", "/metrics").body
        for number in range(100 * SCALE):
            keys = [f"full/{number}/{key}" for key in range(64)]
            assert node.call("POST", "/lock/release", {"keys": keys, "client": "full"}).status == 200
        assert node.call("POST", "/lock/acquire", {"key": "full/again", "client": "full", "ttl_ms": 1}).status == 200


def test_sessions_fill_their_limit(node: LocalNode, probe: MakeProbe, set_limits: SetLimits) -> None:
    """A limit is 1 MiB at least. Locks take most of it, in a few calls."""
    set_limits(lock_bytes_max=MIB)
    locks = [{"keys": [f"{number}/{key}/" + "k" * 480 for key in range(64)], "client": "before"} for number in range(10)]
    assert statuses(post_all(node, "/lock/acquire", ({**lock, "ttl_ms": 600_000} for lock in locks))) == {200}
    with probe(MIB):
        requests = ({"client": f"{n % 50}/" + "c" * 500, "ttl_ms": 600_000} for n in range(500))
        replies = post_all(node, "/session", requests)
        assert statuses(replies) == {200, 429}
        for reply in replies:
            if reply.status == 200:
                assert node.call("POST", "/session/close", {"session": reply.json["session"]}).status == 200
    assert statuses(post_all(node, "/lock/release", iter(locks))) == {200}


def test_cache_keys_stay_within_their_limit(node: LocalNode, probe: MakeProbe, set_limits: SetLimits) -> None:
    set_limits(cache_bytes_max=2 * MIB)
    with probe(2 * MIB):
        items = ([{"key": f"{n}/{m}/" + "k" * 400, "value": m} for m in range(500)] for n in range(20 * SCALE))
        replies = post_all(node, "/cache/mput", ({"items": one} for one in items))
        assert statuses(replies) <= {200, 429}
        limits = {row["name"]: row for row in node.call("GET", "/raft/limits").json["limits"]}
        assert limits["cache_bytes_max"]["share"] < 1.1


def test_large_values_take_turns_with_the_backing_store(node: LocalNode, probe: MakeProbe) -> None:
    value = "v" * 250_000
    with probe():
        requests = ({"key": f"large/{n % 200}", "value": value} for n in range(200 * SCALE))
        assert statuses(post_all(node, "/cache/put", requests)) <= {200, 429, 503}


def test_messages_and_delays_fill_their_topic(node: LocalNode, probe: MakeProbe) -> None:
    for topic in ("big", "later"):
        assert node.call("PUT", "/queue/topic", {"topic": topic, "max_bytes": 2 * MIB}).status == 200
    with probe(4 * MIB):
        big = [{"topic": "big", "value": "x" * 200_000} for n in range(30 * SCALE)]
        later = [{"topic": "later", "messages": [{"value": "x" * 1000, "delay_ms": 10**9}] * 50} for n in range(60 * SCALE)]
        for messages in (big, later):
            replies = post_all(node, "/queue/publish", iter(messages))
            assert statuses(replies) == {200, 429}
            refused = replies[-1].json
            assert (refused["code"], refused["limit"], refused["maximum"]) == ("over_limit", "max_bytes", 2 * MIB)
    for topic in ("big", "later"):
        assert node.call("DELETE", f"/queue/topic?topic={topic}").status == 200


def test_dedup_ids_fill_the_limit_of_the_queue(node: LocalNode, probe: MakeProbe, set_limits: SetLimits) -> None:
    """Ids that were accepted are never forgotten for new ones: a repeat is found out while the queue is full."""
    used = {row["name"]: row["used"] for row in node.call("GET", "/raft/limits").json["limits"]}
    set_limits(queue_bytes_max=used["queue_bytes_max"] + MIB)
    with probe(MIB):
        ids = [f"{n}/" + "d" * 500 for n in range(3000 * SCALE)]
        batches = [[{"value": "", "dedup_id": one} for one in ids[at : at + 50]] for at in range(0, len(ids), 50)]
        replies = post_all(node, "/queue/publish", ({"topic": "dedup", "messages": batch} for batch in batches))
        assert statuses(replies) == {200, 429}
        refused = replies[-1].json
        assert (refused["code"], refused["limit"]) == ("over_limit", "queue_bytes_max")
        accepted = [(batch, reply.json) for batch, reply in zip(batches, replies, strict=True) if reply.status == 200]
        for batch, answer in (accepted[0], accepted[-1]):
            repeated = node.call("POST", "/queue/publish", {"topic": "dedup", **batch[0]})
            first = answer["messages"][0]["msg_id"]
            assert (repeated.status, repeated.json["duplicate"], repeated.json["msg_id"]) == (200, True, first)
    assert node.call("DELETE", "/queue/topic?topic=dedup").status == 200
    assert node.call("POST", "/queue/publish", {"topic": "dedup", **batches[0][0]}).json["duplicate"] is False
    assert node.call("DELETE", "/queue/topic?topic=dedup").status == 200


def test_topics_made_by_typing_errors_can_be_deleted(node: LocalNode, probe: MakeProbe) -> None:
    names = [f"typo-{n}" for n in range(300 * SCALE)]
    with probe():
        assert statuses(post_all(node, "/queue/publish", ({"topic": name, "value": 1} for name in names))) == {200}
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda name: node.call("DELETE", f"/queue/topic?topic={name}"), names))
        assert statuses(replies) == {200}


def test_the_largest_publishes_are_stored_or_refused(node: LocalNode, probe: MakeProbe) -> None:
    """Bodies and values at their limits, and above them."""
    assert node.call("PUT", "/queue/topic", {"topic": "large", "max_bytes": 16 * MIB}).status == 200
    message = {"value": "x" * 250_000}
    with probe(16 * MIB):
        many = ({"topic": "large", "messages": [message] * count} for _ in range(3 * SCALE) for count in (1, 15, 16, 17))
        answered = statuses(post_all(node, "/queue/publish", many))
        assert {200, 413} <= answered <= {200, 413, 429, 503}
        for length in (1 << 18, 1 << 20, 1 << 22, 1 << 23):
            assert node.call("POST", "/queue/publish", {"topic": "large", "value": "x" * length}).status == 413
        assert node.call("POST", "/queue/publish", {"topic": "after", "value": 1}).status == 200
        assert node.call("GET", "/ready").status == 200
    assert node.call("DELETE", "/queue/topic?topic=large").status == 200


@pytest.mark.parametrize("is_at_rest", [False, True])
def test_incr_of_any_integer(node: LocalNode, probe: MakeProbe, is_at_rest: bool, wait_until: Callable[..., None]) -> None:
    """A value at rest is read from the backing store, so the node computes a field of the command itself."""
    with probe():
        for value in EDGES:
            assert node.call("POST", "/cache/put", {"key": f"edge/{value}", "value": value}).status == 200
        if is_at_rest:
            wait_until(lambda: not node.call("GET", "/cache/stats").json["dirty"], lambda: "the values are not written back")
        for value in EDGES:
            for delta in (1, -1, 2**63 - 1, -(2**63 - 1)):
                reply = node.call("POST", "/cache/incr", {"key": f"edge/{value}", "delta": delta})
                assert reply.status in (200, 400), reply.json


def test_forced_elections_in_a_loop(node: LocalNode, probe: MakeProbe) -> None:
    before, began_s = node.status(), time.monotonic()
    with probe() as watched:
        while watched.answered < 50 * SCALE:
            assert node.call("POST", "/raft/start_election", {"force": True}).status in (200, 409, 429)
    after = node.status()
    assert before is not None
    assert after is not None
    # Between two elections, an election timeout must pass. A busy machine takes longer for the probe's calls.
    assert after["term"] - before["term"] < 20 * SCALE + 2 * (time.monotonic() - began_s)


def test_bursts_of_large_reads(node: LocalNode, probe: MakeProbe) -> None:
    """16 MiB at a time, of several clients at the same time, which read them."""
    keys = [f"read/{n}" for n in range(60)]
    for key in keys:
        assert node.call("POST", "/cache/put", {"key": key, "value": "r" * 250_000}).status == 200
    with probe():
        replies = post_all(node, "/cache/mget", ({"keys": keys} for _ in range(5 * SCALE)), workers=4)
        assert statuses(replies) <= {200, 429, 503}
        assert 200 in statuses(replies)


def test_everything_at_the_same_time(node: LocalNode, probe: MakeProbe) -> None:
    """Reads, pages, metrics and lists beside writes."""
    with probe():
        threads = [threading.Thread(target=_load, args=[node, number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _load(node: LocalNode, number: int) -> None:
    for n in range(30 * SCALE):
        node.call("POST", "/queue/publish", {"topic": f"all-{number}", "value": "x" * 1000})
        node.call("POST", "/lock/acquire", {"key": f"all-{n}", "client": f"{number}", "ttl_ms": 1000})
        node.call("GET", "/metrics")
        node.call("GET", "/lock/graph")
        node.call("GET", "/queue/stats", headers={"Accept": "text/html"})
        node.call("POST", "/queue/consume", json.loads(f'{{"topic": "all-{number}", "group": "g", "timeout_ms": 1}}'))


def test_the_guide_for_small_nodes_names_these_settings() -> None:
    guide = (ROOT / "docs" / "how-to" / "small-nodes.md").read_text()
    for name, value in SETTINGS.items():
        assert f"{name}={value}\n" in guide
    for name, maximum in STATE_LIMITS.items():
        assert f"{name}={maximum}" in guide
