"""A wait that could never end is refused at once, and the answer names everybody in it."""


def members(answer):
    assert answer.code == "deadlock"
    assert answer.body["deadlock"] is True
    return [(step["client"], step["waits_for"], step["held_by"]) for step in answer.body["cycle"]]


def test_two_clients_that_want_each_others_lock(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    first = locks.acquire("a", "k2", wait_ms=20_000)
    assert members(locks.acquire("b", "k1", wait_ms=20_000)) == [("b", "k1", "a"), ("a", "k2", "b")]
    assert first not in locks.answers, "the victim is the request that closes the cycle, nobody else"
    locks.release("b", "k2")
    assert locks.answers[first].code == ""


def test_a_ring_of_five_is_named_in_order(locks):
    clients = "abcde"
    for client in clients:
        locks.acquire(client, f"k{client}")
    for client, after in zip(clients, "bcde", strict=False):
        locks.acquire(client, f"k{after}", wait_ms=20_000)
    assert members(locks.acquire("e", "ka", wait_ms=20_000)) == [
        ("e", "ka", "a"), ("a", "kb", "b"), ("b", "kc", "c"), ("c", "kd", "d"), ("d", "ke", "e"),
    ]  # fmt: skip


def test_a_refusal_leaves_no_trace(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    locks.acquire("a", "k2", wait_ms=20_000)
    before = locks.table.snapshot()
    locks.acquire("b", "k1", wait_ms=20_000)
    assert locks.table.snapshot() == before


def test_two_upgraders(locks):
    locks.shared("a", "k")
    locks.shared("b", "k")
    first = locks.acquire("a", "k", wait_ms=20_000)
    assert members(locks.acquire("b", "k", wait_ms=20_000)) == [("b", "k", "a"), ("a", "k", "b")]
    locks.release("b", "k")
    assert locks.answers[first].code == ""


def test_one_of_many_shared_holders_is_enough(locks):
    for client in "abcd":
        locks.shared(client, "k1")
    locks.acquire("w", "k2")
    locks.acquire("c", "k2", wait_ms=20_000)
    assert members(locks.acquire("w", "k1", wait_ms=20_000)) == [("w", "k1", "c"), ("c", "k2", "w")]


def test_several_keys_at_once(locks):
    locks.acquire("a", "k3")
    locks.acquire("b", "k1")
    locks.acquire("a", "k1", "k2", wait_ms=20_000)
    assert members(locks.acquire("b", "k2", "k3", wait_ms=20_000)) == [("b", "k2", "a"), ("a", "k1", "b")]


def test_a_place_in_a_queue_is_waited_for_like_a_lock(locks):
    """b holds k2. c waits for k1 behind b's own request, and now b would wait for what c holds."""
    locks.acquire("a", "k1")
    locks.acquire("c", "k2")
    locks.acquire("b", "k1", wait_ms=20_000)
    locks.acquire("c", "k1", wait_ms=20_000)
    answer = locks.acquire("b", "k2", wait_ms=20_000)
    assert members(answer) == [("b", "k2", "c"), ("c", "k1", "b")]
    assert [step["because"] for step in answer.body["cycle"]] == ["holds", "waits"]


def test_a_shared_request_that_queues_behind_an_exclusive_one(locks):
    locks.shared("a", "k")
    locks.acquire("b", "k2")
    locks.acquire("b", "k", wait_ms=20_000)
    locks.acquire("a", "k3")
    locks.shared("c", "k", wait_ms=20_000)
    assert members(locks.acquire("a", "k2", wait_ms=20_000)) == [("a", "k2", "b"), ("b", "k", "a")]


def test_an_upgrade_granted_at_once_closes_no_cycle_unseen(locks):
    """w shares k and would follow with k2 only after d; c, who waits for w, now wants k for itself alone."""
    locks.acquire("d", "k2")
    locks.shared("c", "k")
    locks.acquire("w", "k3")
    locks.shared("w", "k", "k2", wait_ms=20_000)
    locks.acquire("c", "k3", wait_ms=20_000)
    assert members(locks.acquire("c", "k", wait_ms=20_000)) == [("c", "k3", "w"), ("w", "k", "c")]


def test_a_request_that_counts_on_its_hold_does_not_hide_those_ahead_of_it(locks):
    """Found by the state machine test: the search took an upgrade in a queue for a member of it."""
    locks.shared("a", "k")
    locks.shared("z", "k")
    locks.acquire("c", "k", wait_ms=20_000)
    locks.acquire("a", "k", wait_ms=20_000)
    locks.shared("b", "k", wait_ms=20_000)
    assert members(locks.acquire("c", "k", "k2", wait_ms=20_000)) == [("c", "k", "b"), ("b", "k", "c")]


def test_no_deadlock_without_waiting(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    locks.acquire("a", "k2", wait_ms=20_000)
    assert locks.acquire("b", "k1").code == "held"


def test_a_wait_that_is_over_is_in_no_cycle(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    locks.acquire("a", "k2", wait_ms=100)
    locks.pass_ms(100)
    waiter = locks.acquire("b", "k1", wait_ms=1000)
    assert waiter not in locks.answers


def test_a_long_chain_without_a_cycle_is_no_deadlock(locks):
    for number in range(500):
        locks.acquire(f"c{number}", f"k{number}")
    for number in range(499):
        assert not hasattr(locks.acquire(f"c{number}", f"k{number + 1}", wait_ms=20_000), "code")
    assert len(members(locks.acquire("c499", "k0", wait_ms=20_000))) == 500
