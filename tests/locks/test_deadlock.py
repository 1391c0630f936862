"""A request that would close a cycle is refused immediately, and the answer names all clients in the cycle."""


def members(answer):
    assert answer.code == "deadlock"
    assert answer.body["deadlock"] is True
    return [(step["client"], step["waits_for"], step["held_by"]) for step in answer.body["cycle"]]


def test_two_clients_that_request_each_others_lock(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    first = locks.acquire("a", "k2", wait_ms=20_000)
    assert members(locks.acquire("b", "k1", wait_ms=20_000)) == [("b", "k1", "a"), ("a", "k2", "b")]
    assert first not in locks.answers, "the victim must be the request that closes the cycle"
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


def test_a_refusal_does_not_change_the_table(locks):
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


def test_a_cycle_through_one_of_many_shared_holders(locks):
    for client in "abcd":
        locks.shared(client, "k1")
    locks.acquire("w", "k2")
    locks.acquire("c", "k2", wait_ms=20_000)
    assert members(locks.acquire("w", "k1", wait_ms=20_000)) == [("w", "k1", "c"), ("c", "k2", "w")]


def test_a_cycle_through_requests_for_several_keys(locks):
    locks.acquire("a", "k3")
    locks.acquire("b", "k1")
    locks.acquire("a", "k1", "k2", wait_ms=20_000)
    assert members(locks.acquire("b", "k2", "k3", wait_ms=20_000)) == [("b", "k2", "a"), ("a", "k1", "b")]


def test_a_client_ahead_in_the_queue_is_waited_for_like_a_holder(locks):
    """b holds k2. c waits for k1 behind b's own request, and now b would wait for what c holds."""
    locks.acquire("a", "k1")
    locks.acquire("c", "k2")
    locks.acquire("b", "k1", wait_ms=20_000)
    locks.acquire("c", "k1", wait_ms=20_000)
    answer = locks.acquire("b", "k2", wait_ms=20_000)
    assert members(answer) == [("b", "k2", "c"), ("c", "k1", "b")]
    assert [step["because"] for step in answer.body["cycle"]] == ["holds", "waits"]


def test_a_cycle_while_a_shared_request_queues_behind_an_exclusive_one(locks):
    locks.shared("a", "k")
    locks.acquire("b", "k2")
    locks.acquire("b", "k", wait_ms=20_000)
    locks.acquire("a", "k3")
    locks.shared("c", "k", wait_ms=20_000)
    assert members(locks.acquire("a", "k2", wait_ms=20_000)) == [("a", "k2", "b"), ("b", "k", "a")]


def test_an_upgrade_that_would_be_granted_immediately_is_checked_for_a_cycle(locks):
    """w waits to share k and k2; d holds k2. c waits for w, and would upgrade k, which w waits for."""
    locks.acquire("d", "k2")
    locks.shared("c", "k")
    locks.acquire("w", "k3")
    locks.shared("w", "k", "k2", wait_ms=20_000)
    locks.acquire("c", "k3", wait_ms=20_000)
    assert members(locks.acquire("c", "k", wait_ms=20_000)) == [("c", "k3", "w"), ("w", "k", "c")]


def test_a_request_that_depends_on_its_hold_does_not_hide_requests_ahead_of_it(locks):
    """Found by the state machine test: the search treated an upgrade in the queue as an ordinary waiter."""
    locks.shared("a", "k")
    locks.shared("z", "k")
    locks.acquire("c", "k", wait_ms=20_000)
    locks.acquire("a", "k", wait_ms=20_000)
    locks.shared("b", "k", wait_ms=20_000)
    assert members(locks.acquire("c", "k", "k2", wait_ms=20_000)) == [("c", "k", "b"), ("b", "k", "c")]


def test_a_request_that_does_not_wait_is_no_deadlock(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    locks.acquire("a", "k2", wait_ms=20_000)
    assert locks.acquire("b", "k1").code == "held"


def test_a_wait_that_has_ended_is_in_no_cycle(locks):
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
