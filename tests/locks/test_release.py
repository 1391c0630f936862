"""A release can be repeated, and never ends another grant."""


def test_a_repeat_is_harmless(locks):
    token = locks.acquire("a", "k").body["fencing_token"]
    locks.pass_ms(250)
    assert locks.release("a", "k", fencing_token=token).body == {"released": True, "held_ms": 250}
    again = locks.release("a", "k", fencing_token=token)
    assert (again.code, again.body) == ("", {"released": False})


def test_a_lock_of_another_client_is_not_released(locks):
    locks.acquire("a", "k")
    answer = locks.release("b", "k")
    assert (answer.code, answer.body) == ("", {"released": False})
    assert locks.holders("k") == [("a", "exclusive")]


def test_a_token_from_before_another_clients_grant_is_not_holder(locks):
    old = locks.acquire("a", "k", ttl_ms=100).body["fencing_token"]
    locks.pass_ms(100)
    new = locks.acquire("b", "k").body["fencing_token"]
    answer = locks.release("a", "k", fencing_token=old)
    assert answer.code == "not_holder"
    assert answer.body == {"keys": ["k"], "current": new}
    assert locks.holders("k") == [("b", "exclusive")]


def test_an_old_token_does_not_release_a_newer_grant_of_the_same_client(locks):
    old = locks.acquire("a", "k", ttl_ms=100).body["fencing_token"]
    locks.pass_ms(100)
    locks.acquire("a", "k")
    assert locks.release("a", "k", fencing_token=old).code == "not_holder"
    assert locks.holders("k") == [("a", "exclusive")]
