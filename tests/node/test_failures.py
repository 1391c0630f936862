"""Failed logins and invalid tokens are slowed down for those who fail, and for no one else."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from dss_api import failures
from dss_api.errors import Refused
from dss_api.failures import (
    DEBTORS_MAX,
    LOGIN_OF_ADDRESS_EVERY_S,
    LOGIN_OF_NAME_EVERY_S,
    LOGIN_OF_NETWORK_EVERY_S,
    LOGINS_PER_ADDRESS_MAX,
    LOGINS_PER_NAME_MAX,
    LOGINS_PER_NETWORK_MAX,
    TOKENS_PER_ADDRESS_MAX,
    Debts,
    FailedLogins,
    FailedTokens,
    SlowedDown,
)
from dss_api.guard import Guard


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(clock: Clock) -> FailedLogins:
    return FailedLogins(clock)


def attempt(
    logins: FailedLogins, address: str = "192.0.2.1", name: str = "alice", right: bool = False, known: bool = True
) -> str:
    try:
        with logins.login(address, name, known) as succeeded:
            if right:
                succeeded()
    except SlowedDown as refusal:
        return str(refusal.extra["limit"])
    return "checked"


def fail(logins: FailedLogins, times: int, address: str = "192.0.2.1", name: str = "alice") -> None:
    for _ in range(times):
        assert attempt(logins, address, name) == "checked"


def test_an_address_that_guesses_gets_one_try_in_a_while(logins: FailedLogins, clock: Clock) -> None:
    for number in range(LOGINS_PER_ADDRESS_MAX):
        fail(logins, 1, name=f"user-{number}")
    assert attempt(logins, name="another") == "failed_logins_per_address_max"
    clock.now_s += LOGIN_OF_ADDRESS_EVERY_S
    assert attempt(logins) == "checked"
    assert attempt(logins) == "failed_logins_per_address_max"


def test_the_refusal_says_how_long(logins: FailedLogins) -> None:
    fail(logins, LOGINS_PER_ADDRESS_MAX)
    with pytest.raises(SlowedDown) as refused, logins.login("192.0.2.1", "alice", True):
        pass
    assert refused.value.wait_s == LOGIN_OF_ADDRESS_EVERY_S + 1
    assert f"{refused.value.wait_s} seconds" in refused.value.detail


def test_other_addresses_are_not_slowed_down(logins: FailedLogins) -> None:
    fail(logins, LOGINS_PER_ADDRESS_MAX)
    assert attempt(logins, "192.0.2.2", "bob") == "checked"


def test_the_owner_of_a_name_that_strangers_guess_gets_in(logins: FailedLogins, clock: Clock) -> None:
    for number in range(LOGINS_PER_NAME_MAX):
        fail(logins, 1, f"198.51.100.{number}")
    assert attempt(logins, "198.51.100.1") == "failed_logins_per_name_max", "it has failed before"
    assert attempt(logins, "192.0.2.9", right=True) == "checked"
    assert attempt(logins, "192.0.2.9", right=True) == "checked"
    clock.now_s += LOGIN_OF_NAME_EVERY_S
    assert attempt(logins, "198.51.100.1") == "checked"


def test_a_good_login_does_not_pay_for_earlier_guesses(logins: FailedLogins) -> None:
    for _ in range(LOGINS_PER_ADDRESS_MAX - 1):
        fail(logins, 1, name="victim")
        assert attempt(logins, name="own account", right=True) == "checked"
    fail(logins, 1, name="victim")
    assert attempt(logins, name="victim") == "failed_logins_per_address_max"


def test_tries_in_parallel_are_not_more_tries(logins: FailedLogins) -> None:
    inside = threading.Barrier(LOGINS_PER_ADDRESS_MAX + 1)
    results: list[str] = []

    def try_once() -> None:
        try:
            with logins.login("192.0.2.1", "alice", True):
                inside.wait(60)
        except SlowedDown:
            results.append("slowed down")

    threads = [threading.Thread(target=try_once) for _ in range(LOGINS_PER_ADDRESS_MAX)]
    for thread in threads:
        thread.start()
    while logins._of_address.wait_s("192.0.2.1") == 0.0:
        pass
    try_once()
    assert results == ["slowed down"]
    inside.wait(60)
    for thread in threads:
        thread.join(60)


def test_a_login_that_was_not_checked_counts_as_not_made(logins: FailedLogins) -> None:
    for _ in range(2 * LOGINS_PER_ADDRESS_MAX):
        with pytest.raises(Refused, match="overloaded"), logins.login("192.0.2.1", "alice", True):
            raise Refused("overloaded")
    assert attempt(logins) == "checked"


def test_the_addresses_of_one_customer_with_ipv6_are_one(logins: FailedLogins) -> None:
    for number in range(LOGINS_PER_ADDRESS_MAX):
        fail(logins, 1, f"2001:db8:1:2::{number:x}", f"user-{number}")
    assert attempt(logins, "2001:db8:1:2:ffff::1", "x") == "failed_logins_per_address_max"
    assert attempt(logins, "2001:db8:1:3::1", "x") == "checked"


def test_a_large_network_of_ipv6_cannot_take_the_time_of_all_logins(logins: FailedLogins, clock: Clock) -> None:
    for number in range(LOGINS_PER_NETWORK_MAX):
        fail(logins, 1, f"2001:db8:1:{number:x}::1", f"user-{number}")
    assert attempt(logins, "2001:db8:1:ffff::1", "x") == "failed_logins_per_network_max"
    assert attempt(logins, "2001:db8:2::1", "x") == "checked"
    clock.now_s += LOGIN_OF_NETWORK_EVERY_S
    assert attempt(logins, "2001:db8:1:ffff::1", "x", right=True) == "checked"
    assert attempt(logins, "2001:db8:1:ffff::1", "x") == "checked", "a good login is no debt"
    assert attempt(logins, "2001:db8:1:fffe::1", "x") == "failed_logins_per_network_max"


def test_clients_with_ipv4_are_told_apart_on_a_socket_for_both(logins: FailedLogins) -> None:
    for number in range(LOGINS_PER_ADDRESS_MAX):
        fail(logins, 1, "::ffff:192.0.2.1", f"user-{number}")
    assert attempt(logins, "::ffff:192.0.2.1", "x") == "failed_logins_per_address_max"
    assert attempt(logins, "192.0.2.1", "x") == "failed_logins_per_address_max", "as a trusted proxy names it"
    assert attempt(logins, "::ffff:192.0.2.2", "x") == "checked"


def test_one_customer_with_ipv6_does_not_fill_the_log(clock: Clock) -> None:
    tokens = FailedTokens(clock)
    with capture_logs() as lines:
        for number in range(20):
            tokens.note(f"2001:db8:1:2::{number:x}", True)
            tokens.note(f"::ffff:192.0.2.{number % 2}", True)
    assert [line["address"] for line in lines] == ["2001:db8:1:2::0", "::ffff:192.0.2.0", "::ffff:192.0.2.1"]


def test_lines_are_few_and_have_no_text_that_was_typed(logins: FailedLogins, clock: Clock) -> None:
    with capture_logs() as lines:
        for _ in range(5):
            attempt(logins, name="correct horse battery", known=False)
        clock.now_s += failures.LOG_EVERY_S
        attempt(logins, name="alice", known=True)
    assert [(line["event"], line["address"], line["user"], line["failures_since_last_line"]) for line in lines] == [
        ("access.login_failed", "192.0.2.1", "(unknown)", 0),
        ("access.login_failed", "192.0.2.1", "alice", 4),
    ]
    assert "horse" not in str(lines)


def test_memory_is_bounded_and_the_last_failures_stay(clock: Clock) -> None:
    debts = Debts(1, 60.0, clock)
    for number in range(DEBTORS_MAX + 10):
        debts.add(str(number))
    assert len(debts._until) == DEBTORS_MAX
    assert debts.wait_s(str(DEBTORS_MAX + 9)) == 60.0
    clock.now_s += 61.0
    debts.add("new")
    assert len(debts._until) == 1


def test_logins_are_counted_by_result() -> None:
    def count(result: str) -> float:
        return failures.LOGINS.labels(result)._value.get()

    before = {result: count(result) for result in ("ok", "failed", "slowed_down", "overloaded")}
    logins = FailedLogins(Clock())
    attempt(logins, right=True)
    fail(logins, LOGINS_PER_ADDRESS_MAX)
    attempt(logins)
    assert {result: count(result) - value for result, value in before.items()} == {
        "ok": 1,
        "failed": LOGINS_PER_ADDRESS_MAX,
        "slowed_down": 1,
        "overloaded": 0,
    }


# ------------------------------------------------------------------- tokens


def test_invalid_tokens_are_logged_and_slowed_down_for_their_address(clock: Clock) -> None:
    tokens = FailedTokens(clock)
    with capture_logs() as lines:
        for _ in range(TOKENS_PER_ADDRESS_MAX):
            tokens.note("192.0.2.1", True)
        with pytest.raises(Refused, match="over_limit"):
            tokens.note("192.0.2.1", True)
        tokens.note("192.0.2.2", True)
        tokens.note("192.0.2.1", False)
    assert [(line["event"], line["address"]) for line in lines] == [
        ("access.token_invalid", "192.0.2.1"),
        ("access.token_invalid", "192.0.2.2"),
    ]
    clock.now_s += failures.TOKEN_EVERY_S
    tokens.note("192.0.2.1", True)


def test_a_valid_token_is_served_whatever_its_address_owes() -> None:
    guard = Guard("the right token", is_open=False)

    def code(header: bytes, address: Any = "192.0.2.1") -> str:
        try:
            guard.authenticate(header, address)
        except Refused as refusal:
            return refusal.code
        return "ok"

    for _ in range(TOKENS_PER_ADDRESS_MAX):
        assert code(b"Bearer wrong") == "unauthenticated"
    # One may have been paid off meanwhile.
    assert "over_limit" in {code(b"Bearer wrong") for _ in range(100)}
    assert code(b"Bearer the right token") == "ok"
    assert code(b"Bearer wrong", "192.0.2.2") == "unauthenticated"
    assert code(b"Bearer wrong", None) == "unauthenticated", "a call that is checked again is no new one"
