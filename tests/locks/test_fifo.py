"""First come, first served, without starvation."""


def test_waiters_are_granted_in_the_order_of_arrival(locks):
    locks.acquire("a", "k")
    waiting = {client: locks.acquire(client, "k", wait_ms=20_000) for client in "bcd"}
    for holder, after in (("a", "b"), ("b", "c"), ("c", "d")):
        locks.release(holder, "k")
        assert locks.answers[waiting[after]].code == ""
        assert locks.holders("k") == [(after, "exclusive")]


def test_a_shared_request_does_not_overtake_a_waiting_exclusive_one(locks):
    locks.shared("reader", "k")
    writer = locks.acquire("writer", "k", wait_ms=20_000)
    assert locks.shared("late", "k").code == "held", "otherwise readers could block the writer permanently"
    late = locks.shared("late", "k", wait_ms=20_000)
    locks.release("reader", "k")
    assert locks.answers[writer].code == ""
    assert late not in locks.answers
    locks.release("writer", "k")
    assert locks.answers[late].code == ""


def test_shared_waiters_next_to_each_other_are_granted_together(locks):
    locks.acquire("a", "k")
    readers = [locks.shared(client, "k", wait_ms=20_000) for client in "bc"]
    locks.acquire("d", "k", wait_ms=20_000)
    locks.shared("e", "k", wait_ms=20_000)
    locks.release("a", "k")
    assert all(reader in locks.answers for reader in readers)
    assert locks.holders("k") == [("b", "shared"), ("c", "shared")]
    assert locks.queue("k") == ["d", "e"]


def test_a_free_key_with_a_queue_is_not_granted_to_a_newcomer(locks):
    """The first waiter also needs another key. Later requests wait behind it."""
    locks.acquire("a", "k2")
    locks.acquire("b", "k1", "k2", wait_ms=20_000)
    assert locks.acquire("c", "k1").code == "held"
    assert locks.acquire("c", "k1").body == {"holders": [], "position": 2}


def test_a_cancelled_waiter_no_longer_blocks_those_behind_it(locks):
    locks.shared("a", "k")
    writer = locks.acquire("b", "k", wait_ms=20_000)
    reader = locks.shared("c", "k", wait_ms=20_000)
    locks.cancel(writer)
    assert locks.answers[reader].code == ""


def test_a_repeat_of_a_waiting_request_keeps_its_position(locks):
    locks.acquire("a", "k")
    first = locks.acquire("b", "k", wait_ms=1000)
    locks.acquire("c", "k", wait_ms=20_000)
    second = locks.acquire("b", "k", wait_ms=20_000, node="n2")
    assert locks.queue("k") == ["b", "c"]
    locks.pass_ms(1000)
    assert locks.answers[first].code == "wait_timeout"
    locks.release("a", "k")
    assert locks.answers[second].code == ""
    assert locks.holders("k") == [("b", "exclusive")]


def test_a_waiting_call_and_its_repeat_are_both_answered(locks):
    locks.acquire("a", "k")
    first = locks.acquire("b", "k", wait_ms=20_000)
    second = locks.acquire("b", "k", wait_ms=20_000)
    locks.release("a", "k")
    token = locks.answers[first].body["fencing_token"]
    assert locks.answers[second].body["fencing_token"] == token
    assert [locks.answers[origin].body["reentrant"] for origin in (first, second)] == [False, True]


def test_the_answer_says_how_long_the_call_waited(locks):
    locks.acquire("a", "k")
    waiter = locks.acquire("b", "k", wait_ms=20_000)
    locks.pass_ms(700)
    locks.release("a", "k")
    assert locks.answers[waiter].body["waited_ms"] == 700
