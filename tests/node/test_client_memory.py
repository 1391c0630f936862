"""The budget for the memory of clients: the connections that use the most are ended, the others notice nothing."""

from __future__ import annotations

from dss_api.client_memory import GOAL, SHORT_ANSWER_BYTES, Account, ClientMemory, Share
from dss_project.server.held import MESSAGE_BYTES, PIECE_BYTES, HeldMessages


class Clients:
    """Accounts with names, and the names of those that were ended."""

    def __init__(self, bytes_max: int) -> None:
        self.memory = ClientMemory(bytes_max)
        self.ended: list[str] = []
        self.accounts: dict[str, Account] = {}

    def take(self, name: str, count: int) -> None:
        if name not in self.accounts:
            self.accounts[name] = self.memory.open(lambda: self.ended.append(name))
        self.accounts[name].take(count)


def test_nothing_is_ended_within_the_budget() -> None:
    clients = Clients(1000)
    clients.take("a", 600)
    clients.take("b", 400)
    clients.take("a", -600)
    clients.take("b", 600)
    assert not clients.ended
    assert clients.memory.bytes == 1000


def test_the_largest_are_ended_until_a_tenth_is_free() -> None:
    clients = Clients(1000)
    for name, count in (("small", 50), ("large", 400), ("larger", 500), ("last", 51)):
        clients.take(name, count)
    assert clients.ended == ["larger"]
    clients.take("last", 500)
    assert clients.ended == ["larger", "last"]
    assert clients.memory.bytes == 450 <= GOAL * 1000


def test_an_account_that_was_closed_counts_nothing_more() -> None:
    clients = Clients(1000)
    clients.take("a", 600)
    clients.take("b", 100)
    clients.accounts["a"].close()
    clients.accounts["a"].take(-600)
    clients.accounts["a"].take(5000)
    clients.accounts["a"].close()
    assert clients.memory.bytes == 100
    assert not clients.ended
    assert clients.memory.accounts == {clients.accounts["b"]}


def test_the_memory_of_an_ended_connection_is_free_when_it_is_closed() -> None:
    bytes_max = 4 * SHORT_ANSWER_BYTES
    clients = Clients(bytes_max)
    clients.take("b", 10)
    clients.take("a", bytes_max)
    memory = clients.memory
    assert (memory.ending, memory.bytes) == (bytes_max, 10)
    assert clients.accounts["b"].has_room_now(SHORT_ANSWER_BYTES)
    assert not clients.accounts["b"].has_room_now(SHORT_ANSWER_BYTES + 1)
    clients.accounts["b"].end()
    clients.accounts["b"].end()
    assert clients.ended == ["a", "b"]
    for account in clients.accounts.values():
        account.close()
        account.close()
    assert (memory.ending, memory.bytes) == (0, 0)
    assert memory.open(lambda: None).has_room_now(bytes_max)


def test_one_client_that_takes_everything_is_ended_itself() -> None:
    clients = Clients(1000)
    clients.take("small", 10)
    clients.take("large", 5000)
    assert clients.ended == ["large"]
    assert clients.memory.bytes == 10


def test_a_share_is_measured_and_not_counted() -> None:
    memory = ClientMemory(1000)
    account = memory.open(lambda: None)
    account.take(100)
    share = Share(account)
    for count in (500, 200, 200):
        share.set(count)
        assert memory.bytes == 100 + count
    account.close()
    share.set(900)
    assert memory.bytes == 0


def test_a_web_server_keeps_parts_and_messages_until_they_are_taken() -> None:
    held = HeldMessages()
    held.add_piece(1000)
    held.add_piece(500)
    assert held.bytes == 1500 + 2 * PIECE_BYTES
    held.complete()
    held.add_piece(7)
    held.take()
    assert held.bytes == 7 + PIECE_BYTES
    held.complete()
    held.add_piece(1)
    held.forget_unfinished()
    assert held.bytes == 7 + PIECE_BYTES + MESSAGE_BYTES
    held.take()
    held.take()
    assert held.bytes == 0
