"""A client may acquire again, upgrade and downgrade a lock that it holds."""


def test_acquiring_again_renews_the_lease_and_keeps_the_token(locks):
    token = locks.acquire("a", "k", ttl_ms=1000).body["fencing_token"]
    locks.pass_ms(900)
    answer = locks.acquire("a", "k", ttl_ms=2000)
    assert answer.body == {"fencing_token": token, "expires_in_ms": 2000, "reentrant": True}
    assert locks.table.next_deadline_ms() == locks.at_ms + 2000


def test_one_release_is_enough(locks):
    locks.acquire("a", "k")
    locks.acquire("a", "k")
    locks.release("a", "k")
    assert locks.acquire("b", "k").code == ""


def test_acquiring_again_does_not_queue(locks):
    locks.shared("a", "k")
    locks.acquire("b", "k", wait_ms=20_000)
    assert locks.shared("a", "k").body["reentrant"] is True


def test_an_upgrade_alone_is_granted_in_place_with_a_new_token(locks):
    token = locks.shared("a", "k").body["fencing_token"]
    answer = locks.acquire("a", "k")
    assert answer.body["fencing_token"] > token
    assert answer.body["reentrant"] is False
    assert locks.holders("k") == [("a", "exclusive")]


def test_an_upgrade_waits_for_the_other_holders_only(locks):
    locks.shared("a", "k")
    locks.shared("b", "k")
    waiter = locks.acquire("w", "k", wait_ms=20_000)
    upgrade = locks.acquire("a", "k", wait_ms=20_000)
    assert locks.shared("late", "k").code == "held"
    locks.release("b", "k")
    assert locks.answers[upgrade].code == ""
    assert waiter not in locks.answers
    assert locks.holders("k") == [("a", "exclusive")]


def test_an_upgrade_that_cannot_wait_is_held_by_the_others(locks):
    locks.shared("a", "k")
    locks.shared("b", "k")
    answer = locks.acquire("a", "k")
    assert answer.code == "held"
    assert [holder["client"] for holder in answer.body["holders"]] == ["b"]


def test_a_waiting_upgrade_is_refused_when_its_shared_lock_ends(locks):
    """The data read under the shared lock may have changed."""
    locks.shared("b", "k", ttl_ms=0)
    locks.shared("a", "k", ttl_ms=1000)
    upgrade = locks.acquire("a", "k", wait_ms=20_000)
    locks.pass_ms(1000)
    assert locks.answers[upgrade].code == "lock_lost"
    assert locks.answers[upgrade].body == {"keys": ["k"]}


def test_a_downgrade_admits_shared_waiters_and_keeps_the_token(locks):
    token = locks.acquire("a", "k").body["fencing_token"]
    reader = locks.shared("b", "k", wait_ms=20_000)
    answer = locks.shared("a", "k")
    assert answer.body["fencing_token"] == token
    assert answer.body["reentrant"] is True
    assert locks.answers[reader].code == ""
    assert locks.holders("k") == [("a", "shared"), ("b", "shared")]
