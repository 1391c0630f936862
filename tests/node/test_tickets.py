"""Tickets for the WebSocket of a page: one connection, soon, and for reading only."""

from __future__ import annotations

import pytest

from dss_api.caller import Caller
from dss_api.errors import Refused
from dss_api.rights import OPERATE, READ, Access
from dss_api.tickets import PREFIX, SUBSCRIPTION, TICKET_S, TICKETS_MAX, Tickets
from dss_api.token_text import token_key
from dss_project.registry import subscriptions

ALICE = Caller("user alice", Access(("all",)))


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tickets(clock: Clock) -> Tickets:
    return Tickets(clock)


def test_a_ticket_is_good_for_one_connection_and_for_reading(tickets: Tickets) -> None:
    text = tickets.give(ALICE)
    holder = tickets.take(["dss", PREFIX + text])
    assert holder is not None
    assert holder.name == "user alice"
    assert READ.is_possible(holder.access)
    assert not OPERATE.is_possible(holder.access), "a page acts with forms, which have CSRF tokens"
    with pytest.raises(Refused, match="ticket is not valid"):
        tickets.take(["dss", PREFIX + text])


def test_a_ticket_ends_soon(tickets: Tickets, clock: Clock) -> None:
    text = tickets.give(ALICE)
    clock.now_s += TICKET_S + 0.1
    with pytest.raises(Refused):
        tickets.take([PREFIX + text])


@pytest.mark.parametrize("text", ["", "x", "a" * 5000, "\x00"])
def test_an_invented_ticket_is_refused(tickets: Tickets, text: str) -> None:
    with pytest.raises(Refused):
        tickets.take([PREFIX + text])


def test_without_a_ticket_nothing_changes(tickets: Tickets) -> None:
    assert tickets.take([]) is None
    assert tickets.take(["dss"]) is None


def test_who_may_not_read_gets_no_ticket(tickets: Tickets) -> None:
    with pytest.raises(Refused):
        tickets.give(Caller("user bob", Access(("locks:a/",))))


def test_unused_tickets_are_bounded(tickets: Tickets) -> None:
    first, *others = [tickets.give(ALICE) for _ in range(TICKETS_MAX + 1)]
    with pytest.raises(Refused):
        tickets.take([PREFIX + first])
    assert tickets.take([PREFIX + others[-1]]) is not None


def test_a_token_gets_no_ticket(tickets: Tickets) -> None:
    """A connection of a ticket would have neither the token's quotas nor its end."""
    with pytest.raises(Refused, match="forbidden"):
        tickets.give(Caller("token abc", Access(("all",)), "abc", [token_key("a secret")]))


def test_a_ticket_is_for_a_subscription_that_there_is() -> None:
    assert SUBSCRIPTION in {one.name for one in subscriptions()}
