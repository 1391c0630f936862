"""Every line of the lock section of the HTTP contract, through the JSON fast path and through DRF.

With `TEST_CLUSTER_URLS`, at the nodes of a real cluster, also through a WebSocket: see dss_dev/real_entry_points.py.
"""

from __future__ import annotations

import time

import pytest

from dss_dev.real_entry_points import NAMED, URLS, opened
from dss_locks.core.state import LockLimits
from dss_locks.operations import OPERATIONS


@pytest.fixture(params=NAMED)
def api(request, fake_node):
    with opened(request.param, fake_node, OPERATIONS, lambda node: len(node.futures)) as api:
        yield api


def pass_ms(api, ms):
    if api.is_real:
        time.sleep(ms / 1000)
    else:
        api.run(lambda: api.node.pass_ms(ms))


def test_acquire(api):
    status, answer, _ = api.post("/lock/acquire", key="k", client="a")
    assert status == 200
    token = answer["fencing_token"]
    assert answer == {"ok": True, "fencing_token": token, "expires_in_ms": 30_000, "reentrant": False, "index": token}
    assert token == api.nth(1)
    _, again, _ = api.post("/lock/acquire", key="k", client="a", ttl_ms="1000", mode="exclusive")
    assert (again["fencing_token"], again["expires_in_ms"], again["reentrant"]) == (token, 1000, True)
    assert again["index"] == api.nth(2)
    _, forever, _ = api.post("/lock/acquire", keys=["k2", "k3"], client="a", ttl_ms=0, meta={"pid": 7})
    third = forever["index"]
    assert (forever["expires_in_ms"], forever["fencing_tokens"], third) == (None, {"k2": third, "k3": third}, api.nth(3))


def test_held(api):
    token = api.post("/lock/acquire", key="k", client="a")[1]["fencing_token"]
    status, answer, _ = api.post("/lock/acquire", key="k", client="b", mode="shared")
    assert (status, answer["ok"], answer["code"], answer["position"], answer["index"]) == (423, False, "held", 1, api.nth(2))
    left = api.about(30_000)
    holder = {"key": "k", "client": "a", "mode": "exclusive", "fencing_token": token, "expires_in_ms": left}
    assert answer["holders"] == [holder]


def test_a_wait_that_times_out_and_one_that_is_granted(api):
    api.post("/lock/acquire", key="k", client="a", ttl_ms=3000)
    impatient = api.later("/lock/acquire", key="k", client="b", wait_ms=1000)
    patient = api.later("/lock/acquire", key="k", client="c", wait_ms=20_000)
    pass_ms(api, 1000)
    pass_ms(api, 2000)
    api.join()
    ((status, answer, _),) = impatient
    assert (status, answer["ok"], answer["code"]) == (423, False, "wait_timeout")
    ((status, answer, _),) = patient
    assert (status, answer["waited_ms"]) == (200, api.about(3000))


def test_a_deadlock_names_its_cycle(api):
    api.post("/lock/acquire", key="k1", client="a")
    api.post("/lock/acquire", key="k2", client="b")
    waiting = api.later("/lock/acquire", key="k2", client="a", wait_ms=20_000)
    status, answer, _ = api.post("/lock/acquire", key="k1", client="b", wait_ms=1000)
    assert (status, answer["ok"], answer["code"], answer["deadlock"]) == (409, False, "deadlock", True)
    cycle = [(step["client"], step["waits_for"], step["held_by"]) for step in answer["cycle"]]
    assert cycle == [("b", "k1", "a"), ("a", "k2", "b")]
    _, graph, _ = api.get("/lock/graph")
    assert [(e["from"], e["to"], e["key"]) for e in graph["edges"]] == [("a", "b", "k2")]
    assert {node["client"] for node in graph["nodes"]} == {"a", "b"}
    api.post("/lock/release", key="k2", client="b")
    api.join()
    assert waiting[0][0] == 200


def test_two_upgraders_are_a_deadlock_and_one_alone_upgrades_in_place(api):
    api.post("/lock/acquire", key="k", client="a", mode="shared")
    _, answer, _ = api.post("/lock/acquire", key="k", client="a")
    assert (answer["fencing_token"], answer["index"], answer["reentrant"]) == (answer["index"], api.nth(2), False)
    api.post("/lock/acquire", key="k", client="a", mode="shared")
    api.post("/lock/acquire", key="k", client="b", mode="shared")
    waiting = api.later("/lock/acquire", key="k", client="a", wait_ms=20_000)
    assert api.post("/lock/acquire", key="k", client="b", wait_ms=1000)[1]["code"] == "deadlock"
    api.post("/lock/release", key="k", client="b")
    api.join()
    assert waiting[0][0] == 200


def test_release(api):
    first = api.post("/lock/acquire", key="k", client="a")[1]["fencing_token"]
    status, answer, _ = api.post("/lock/release", key="k", client="a", fencing_token=first)
    assert (status, answer) == (200, {"ok": True, "released": True, "held_ms": api.about(0), "index": api.nth(2)})
    assert api.post("/lock/release", key="k", client="a")[1] == {"ok": True, "released": False, "index": api.nth(3)}
    other = api.post("/lock/acquire", key="k", client="b")[1]["fencing_token"]
    status, answer, _ = api.post("/lock/release", key="k", client="a", fencing_token=first)
    assert (status, answer["code"], answer["current"], other) == (409, "not_holder", other, api.nth(4))
    api.post("/lock/acquire", keys=["k2", "k3"], client="a")
    assert api.post("/lock/release", keys=["k2", "k3"], client="a")[1]["released_keys"] == ["k2", "k3"]


def test_renew(api):
    token = api.post("/lock/acquire", key="k", client="a", ttl_ms=10_000)[1]["fencing_token"]
    pass_ms(api, 900)
    status, answer, _ = api.post("/lock/renew", key="k", client="a", fencing_token=token)
    assert (status, answer["expires_in_ms"]) == (200, 10_000)
    assert api.post("/lock/renew", key="k", client="a", ttl_ms=1000)[1]["expires_in_ms"] == 1000
    pass_ms(api, 1000)
    status, answer, _ = api.post("/lock/renew", keys=["k"], client="a")
    assert (status, answer["code"]) == (409, "lock_lost")


def test_check(api):
    token = api.post("/lock/acquire", key="k", client="a")[1]["fencing_token"]
    assert api.post("/lock/check", key="k", fencing_token=token)[1] == {"ok": True, "valid": True, "current": token}
    assert api.post("/lock/check", key="k", fencing_token=token + 1)[1] == {"ok": True, "valid": False, "current": token}


def test_status(api):
    token = api.post("/lock/acquire", key="k", client="a", ttl_ms=3000, lock_delay_ms=2500)[1]["fencing_token"]
    waiting = [api.later("/lock/acquire", key="k", client=client, wait_ms=20_000) for client in ("b", "c")]
    status, answer, _ = api.get("/lock/status?key=k&client=c")
    assert status == 200
    (holder,) = answer["holders"]
    assert (holder["client"], holder["mode"], holder["fencing_token"], holder["lock_delay_ms"]) == ("a", "exclusive", token, 2500)
    assert {"expires_in_ms", "age_ms"} <= holder.keys()
    assert [(w["client"], w["position"]) for w in answer["waiters"]] == [("b", 1), ("c", 2)]
    assert all("age_ms" in waiter for waiter in answer["waiters"])
    assert answer["why"]["position"] == 2
    pass_ms(api, 3000)
    assert api.get("/lock/status?key=k")[1]["delay"]["lost_by"] == "a"
    pass_ms(api, 2500)
    api.post("/lock/release", key="k", client="b")
    api.join()
    assert [answers[0][0] for answers in waiting] == [200, 200]


def test_sessions_and_forced_releases(api):
    session = api.post("/session", client="a", ttl_ms=5000)[1]["session"]
    assert api.post("/lock/acquire", key="k", client="a", session=session)[1]["expires_in_ms"] == api.about(5000)
    assert api.post("/session/renew", session=session)[1]["keys_held"] == 1
    assert api.post("/lock/force_release", key="k", reason="test")[1]["released"]
    assert api.get("/lock/audit")[1]["forced"][0]["reason"] == "test"
    assert api.post("/session/close", session=session)[1]["closed"]
    assert api.post("/session/renew", session=session)[0] == 409


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"client": "a"}, "key"),
        ({"key": "k"}, "client"),
        ({"key": "k", "keys": ["k"], "client": "a"}, "key"),
        ({"keys": [], "client": "a"}, "keys"),
        ({"keys": ["k", "k"], "client": "a"}, "keys"),
        ({"keys": [str(number) for number in range(65)], "client": "a"}, "keys"),
        ({"key": "k\n", "client": "a"}, "key"),
        ({"key": "ä" * 257, "client": "a"}, "key"),
        ({"key": "k", "client": "a", "mode": "both"}, "mode"),
        ({"key": "k", "client": "a", "ttl_ms": -1}, "ttl_ms"),
        ({"key": "k", "client": "a", "wait_ms": 20_001}, "wait_ms"),
        ({"key": "k", "client": "a", "lock_delay_ms": 60_001}, "lock_delay_ms"),
        ({"key": "k", "client": "a", "colour": "red"}, "colour"),
    ],
)
def test_a_refusal_of_bad_input_names_the_field(api, fields, field):
    status, answer, headers = api.post("/lock/acquire", **fields)
    assert (status, answer["ok"], answer["code"], answer["field"]) == (400, False, "invalid", field)
    assert not api.has_headers or headers["content-type"].startswith("application/problem+json")
    assert api.is_real or api.node.index == 0, "nothing was proposed"


@pytest.mark.skipif(bool(URLS), reason="sets limits that the nodes of a cluster do not have")
def test_over_a_limit(api):
    api.node.table.holdings.limits = LockLimits(holds_max=1, sessions_max=1)
    api.post("/lock/acquire", key="k", client="a")
    status, answer, headers = api.post("/lock/acquire", key="k2", client="a")
    assert (status, answer["code"], answer["limit"], answer["maximum"]) == (429, "over_limit", "holds_max", 1)
    assert "holds_max is 1" in answer["detail"]
    assert int(headers["retry-after"]) >= 1
    api.post("/session", client="a")
    assert api.post("/session", client="b")[1]["limit"] == "sessions_max"
