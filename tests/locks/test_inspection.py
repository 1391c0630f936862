"""Status: who holds a key, who waits for it, and why."""

from dss_locks.core import inspection


def test_status_of_a_free_key(locks):
    assert inspection.status(locks.table, "k", locks.at_ms) == {
        "key": "k",
        "locked": False,
        "mode": None,
        "holders": [],
        "holder_count": 0,
        "waiters": [],
        "waiter_count": 0,
        "delay": None,
    }


def test_status_shows_holders_with_their_leases_and_waiters_in_order(locks):
    token = locks.acquire("a", "k", ttl_ms=5000, meta={"pid": 7}).body["fencing_token"]
    locks.pass_ms(1000)
    locks.acquire("b", "k", wait_ms=20_000)
    locks.pass_ms(500)
    locks.shared("c", "k", wait_ms=1000)
    status = inspection.status(locks.table, "k", locks.at_ms)
    assert status["mode"] == "exclusive"
    assert status["holders"] == [
        {
            "client": "a",
            "mode": "exclusive",
            "fencing_token": token,
            "expires_in_ms": 3500,
            "age_ms": 1500,
            "ttl_ms": 5000,
            "lock_delay_ms": 0,
            "session": "",
            "meta": {"pid": 7},
        }
    ]
    assert [(w["position"], w["client"], w["mode"], w["age_ms"], w["gives_up_in_ms"]) for w in status["waiters"]] == [
        (1, "b", "exclusive", 500, 19_500),
        (2, "c", "shared", 0, 1000),
    ]


def test_an_upgrade_is_first_in_the_queue(locks):
    locks.shared("a", "k")
    locks.shared("b", "k")
    locks.acquire("c", "k", wait_ms=20_000)
    locks.acquire("b", "k", wait_ms=20_000)
    waiters = inspection.status(locks.table, "k", locks.at_ms)["waiters"]
    assert [(w["position"], w["client"], w["upgrade"]) for w in waiters] == [(1, "b", True), (2, "c", False)]


def test_why_follows_the_chain_to_a_client_that_is_not_waiting(locks):
    locks.acquire("a", "k1", ttl_ms=9000)
    locks.acquire("b", "k2")
    locks.acquire("b", "k1", wait_ms=20_000)
    locks.acquire("c", "k2", wait_ms=20_000)
    locks.acquire("d", "k2", wait_ms=20_000)
    why = inspection.status(locks.table, "k2", locks.at_ms, "d")["why"]
    assert why["position"] == 2
    assert [(h["client"], h["expires_in_ms"]) for h in why["holders"]] == [("b", 30_000)]
    assert why["chain"] == [
        {"client": "d", "waits_for": "k2", "held_by": "b", "because": "holds"},
        {"client": "b", "waits_for": "k1", "held_by": "a", "because": "holds"},
    ]


def test_why_is_null_for_a_client_that_is_not_waiting(locks):
    locks.acquire("a", "k")
    assert inspection.status(locks.table, "k", locks.at_ms, "a")["why"] is None


def test_the_graph_shows_who_waits_for_whom(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k1", wait_ms=20_000)
    locks.acquire("c", "k1", wait_ms=20_000)
    graph = inspection.graph(locks.table)
    assert graph["nodes"] == [
        {"client": "b", "waiting": True, "keys_held": 0},
        {"client": "a", "waiting": False, "keys_held": 1},
        {"client": "c", "waiting": True, "keys_held": 0},
    ]
    assert [(e["from"], e["to"], e["key"], e["because"]) for e in graph["edges"]] == [
        ("b", "a", "k1", "holds"),
        ("c", "a", "k1", "holds"),
        ("c", "b", "k1", "waits"),
    ]
    assert graph["truncated"] is False


def test_the_holders_in_a_refusal_are_limited(locks):
    for number in range(40):
        locks.shared(f"c{number}", "k")
    assert len(locks.acquire("w", "k").body["holders"]) == 16
    assert inspection.status(locks.table, "k", locks.at_ms)["holder_count"] == 40
