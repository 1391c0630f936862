"""Leases end in applied time."""


def test_a_lease_ends_after_its_ttl_and_the_next_is_granted(locks):
    locks.acquire("a", "k", ttl_ms=1000)
    waiter = locks.acquire("b", "k", wait_ms=20_000)
    assert locks.table.next_deadline_ms() == locks.at_ms + 1000
    locks.pass_ms(999)
    assert locks.holders("k") == [("a", "exclusive")]
    locks.pass_ms(1)
    assert locks.answers[waiter].code == ""
    lost = [change for change in locks.changes if change.kind == "lost"]
    assert [(change.client, change.reason, change.held_ms) for change in lost] == [("a", "expired", 1000)]


def test_a_lock_without_a_lease_is_held_until_released(locks):
    answer = locks.acquire("a", "k", ttl_ms=0)
    assert answer.body["expires_in_ms"] is None
    assert locks.table.next_deadline_ms() is None
    locks.pass_ms(10**9)
    assert locks.holders("k") == [("a", "exclusive")]


def test_the_lease_of_a_waiter_starts_with_its_grant(locks):
    locks.acquire("a", "k")
    locks.acquire("b", "k", ttl_ms=1000, wait_ms=20_000)
    locks.pass_ms(5000)
    locks.release("a", "k")
    assert locks.table.next_deadline_ms() == locks.at_ms + 1000


def test_renewing_restarts_the_lease(locks):
    token = locks.acquire("a", "k", ttl_ms=1000).body["fencing_token"]
    locks.pass_ms(900)
    answer = locks.renew("a", "k")
    assert answer.body == {"fencing_token": token, "expires_in_ms": 1000}
    locks.pass_ms(999)
    assert locks.holders("k") == [("a", "exclusive")]
    locks.pass_ms(1)
    assert locks.holders("k") == []


def test_a_renewal_may_shorten_lengthen_and_remove_the_lease(locks):
    locks.acquire("a", "k", ttl_ms=30_000)
    assert locks.renew("a", "k", ttl_ms=10).body["expires_in_ms"] == 10
    assert locks.table.next_deadline_ms() == locks.at_ms + 10
    assert locks.renew("a", "k", ttl_ms=0).body["expires_in_ms"] is None
    assert locks.table.next_deadline_ms() is None
    locks.renew("a", "k", ttl_ms=60_000)
    assert locks.table.next_deadline_ms() == locks.at_ms + 60_000


def test_renewing_a_lock_that_is_not_held_is_lock_lost(locks):
    assert locks.renew("a", "k").code == "lock_lost"
    token = locks.acquire("a", "k", ttl_ms=100).body["fencing_token"]
    locks.pass_ms(100)
    locks.acquire("a", "k")
    assert locks.renew("a", "k", fencing_token=token).code == "lock_lost", "that grant has ended, even for the same client"


def test_renewing_several_keys_is_all_or_nothing(locks):
    locks.acquire("a", "k1", ttl_ms=1000)
    locks.pass_ms(500)
    answer = locks.renew("a", "k1", "k2")
    assert answer.code == "lock_lost"
    assert answer.body == {"keys": ["k2"]}
    assert locks.table.next_deadline_ms() == locks.at_ms + 500


def test_a_new_leader_gives_every_lease_its_full_length_again(locks):
    """Clients could not renew while there was no leader (consul 912: an election lost all locks)."""
    locks.acquire("a", "k", ttl_ms=1000)
    locks.acquire("b", "forever", ttl_ms=0)
    locks.new_leader(after_ms=60_000)
    assert locks.holders("k") == [("a", "exclusive")]
    assert locks.table.next_deadline_ms() == locks.at_ms + 1000
    locks.pass_ms(1000)
    assert locks.holders("k") == []


def test_a_new_leader_does_not_prolong_waits(locks):
    locks.acquire("a", "k", ttl_ms=0)
    waiter = locks.acquire("b", "k", wait_ms=1000)
    locks.new_leader(after_ms=1000)
    assert locks.answers[waiter].code == "wait_timeout"


def test_a_request_for_many_keys_is_granted_when_their_leases_have_ended(locks):
    for number in range(50):
        locks.acquire(f"c{number}", f"k{number}", ttl_ms=1000 + number % 3)
    waiter = locks.acquire("w", *(f"k{number}" for number in range(50)), wait_ms=20_000)
    locks.pass_ms(1001)
    assert waiter not in locks.answers
    locks.pass_ms(1)
    assert locks.answers[waiter].code == ""
