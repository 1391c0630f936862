"""Requests for several keys: all or nothing, first come, first served."""


def test_all_are_granted_under_one_token(locks):
    answer = locks.acquire("a", "k1", "k2")
    assert answer.body["fencing_token"] == locks.index
    assert answer.body["fencing_tokens"] == {"k1": locks.index, "k2": locks.index}
    assert locks.holders("k1") == locks.holders("k2") == [("a", "exclusive")]


def test_nothing_is_granted_while_one_key_is_held(locks):
    locks.acquire("a", "k2")
    answer = locks.acquire("b", "k1", "k2", "k3")
    assert answer.code == "held"
    assert [(holder["key"], holder["client"]) for holder in answer.body["holders"]] == [("k2", "a")]
    assert locks.holders("k1") == locks.holders("k3") == []


def test_a_waiting_request_is_granted_when_its_last_key_is_free(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    waiter = locks.acquire("c", "k1", "k2", wait_ms=20_000)
    locks.release("a", "k1")
    assert waiter not in locks.answers
    assert locks.holders("k1") == []
    locks.release("b", "k2")
    assert locks.answers[waiter].code == ""


def test_a_request_for_several_keys_is_not_overtaken(locks):
    locks.acquire("a", "k1")
    many = locks.acquire("many", "k1", "k2", wait_ms=20_000)
    one = locks.acquire("one", "k2", wait_ms=20_000)
    assert one not in locks.answers
    locks.release("a", "k1")
    assert locks.answers[many].code == ""
    locks.release("many", "k1", "k2")
    assert locks.answers[one].code == ""


def test_keys_that_are_already_held_keep_their_token(locks):
    old = locks.acquire("a", "k1").body["fencing_token"]
    answer = locks.acquire("a", "k1", "k2")
    assert answer.body["fencing_tokens"] == {"k1": old, "k2": locks.index}
    assert answer.body["fencing_token"] == locks.index
    assert answer.body["reentrant"] is False
    assert locks.release("a", "k1", "k2", fencing_token=answer.body["fencing_token"]).body["released_keys"] == ["k1", "k2"]


def test_a_request_that_depends_on_a_held_key_is_refused_when_it_is_lost(locks):
    locks.acquire("a", "k1", ttl_ms=1000)
    locks.acquire("b", "k2", ttl_ms=0)
    waiter = locks.acquire("a", "k1", "k2", wait_ms=20_000)
    locks.pass_ms(1000)
    assert locks.answers[waiter].code == "lock_lost"


def test_shared_and_exclusive_requests_for_overlapping_keys(locks):
    locks.shared("a", "k1", "k2")
    assert locks.shared("b", "k2", "k3").code == ""
    assert locks.acquire("c", "k3", "k4").code == "held"
    assert locks.acquire("c", "k4", "k5").code == ""


def test_a_partial_release_names_the_released_keys(locks):
    locks.acquire("a", "k1", "k2")
    answer = locks.release("a", "k2", "k3")
    assert answer.body["released"] is True
    assert answer.body["released_keys"] == ["k2"]
    assert locks.holders("k1") == [("a", "exclusive")]


def test_a_clients_second_request_does_not_wait_for_its_first(locks):
    """The first request still waits for k2. The second one needs only k1, and a client does not block itself."""
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    first = locks.acquire("c", "k1", "k2", wait_ms=20_000)
    second = locks.acquire("c", "k1", wait_ms=20_000)
    locks.release("a", "k1")
    assert first not in locks.answers
    assert locks.answers[second].code == ""
    locks.release("b", "k2")
    assert locks.answers[first].code == ""
