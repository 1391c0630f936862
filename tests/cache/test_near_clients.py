"""What a node knows about its near clients: holders, invalidations, deadlines, and the stamp that it may report."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dss_cache.core.near_clients import KEY_BYTES, PARTS, NearClients


@pytest.fixture
def clients():
    return NearClients()


def holder(clients, *keys, held_until=100.0):
    """A client with a lease that holds these keys."""
    client = clients.open("subscriber")
    client.held_until = held_until
    assert clients.install(client, keys, 0, 0.0) == set(keys)
    return client


def sweep(clients):
    for _ in range(2 * PARTS):
        clients.sweep()


def test_a_write_is_reported_when_its_holder_has_confirmed(clients):
    client = holder(clients, "a")
    clients.written("a", 10, 1.0)
    assert clients.take(client) == (1, ["a"], False)
    assert clients.reported(12) == 9
    assert clients.confirm(client, 1, 1.5)
    assert clients.reported(12) == 12


def test_keys_of_one_turn_are_one_message(clients):
    client = holder(clients, "a", "b", "c")
    clients.written("a", 10, 1.0)
    clients.written("b", 11, 1.0)
    assert clients.to_send == [client]
    assert clients.take(client) == (1, ["a", "b"], False)
    clients.written("c", 12, 1.0)
    assert clients.take(client) == (2, ["c"], False)
    assert clients.take(client) is None
    clients.confirm(client, 1, 1.5)
    assert clients.reported(12) == 11
    clients.confirm(client, 2, 1.5)
    assert clients.reported(12) == 12


def test_each_holder_must_confirm(clients):
    first, second = holder(clients, "a"), holder(clients, "a")
    other = holder(clients, "b")
    clients.written("a", 10, 1.0)
    assert [clients.take(client) for client in (first, second, other)] == [(1, ["a"], False), (1, ["a"], False), None]
    clients.confirm(first, 1, 1.5)
    assert clients.reported(10) == 9
    clients.confirm(second, 1, 1.5)
    assert clients.reported(10) == 10


def test_a_holder_is_told_once(clients):
    client = holder(clients, "a")
    clients.written("a", 10, 1.0)
    clients.take(client)
    clients.written("a", 11, 1.0)
    assert clients.take(client) is None
    assert clients.reported(11) == 9


def test_what_was_not_sent_cannot_be_confirmed(clients):
    client = holder(clients, "a")
    clients.written("a", 10, 1.0)
    assert not clients.confirm(client, 99, 1.0)
    clients.take(client)
    assert clients.confirm(client, 99, 1.0)


def test_a_client_whose_lease_is_over_is_told_but_not_waited_for(clients):
    client = holder(clients, "a", held_until=0.5)
    clients.written("a", 10, 1.0)
    assert clients.take(client) == (1, ["a"], False)
    assert clients.reported(10) == 10


def test_a_later_grant_does_not_extend_the_deadline(clients):
    client = holder(clients, "a", held_until=2.0)
    clients.written("a", 10, 1.0)
    clients.granted(client, 1.9, 1.0)
    assert clients.expire(2.0) == []
    assert clients.expire(2.1) == [client]
    assert clients.reported(10) == 10


def test_a_client_that_is_dropped_holds_its_keys_until_its_latest_lease_ends(clients):
    client = holder(clients, "a", "b", held_until=2.0)
    clients.written("a", 10, 1.0)
    clients.granted(client, 1.9, 1.0)
    assert clients.expire(2.1) == [client]
    clients.leave(client)
    clients.written("b", 11, 2.2)
    assert clients.take(client) is None, "nothing is sent to it"
    assert clients.reported(11) == 10
    assert clients.expire(2.9) == []
    assert clients.expire(3.0) == []
    assert clients.reported(11) == 11
    assert clients.dropped_clients == 1


def test_a_client_that_has_gone_is_forgotten_when_its_lease_is_over(clients):
    client = holder(clients, "a", held_until=2.0)
    clients.leave(client)
    clients.leave(client)
    assert clients.holders("a") == 1
    clients.expire(2.1)
    assert clients.holders("a") == 0
    clients.written("a", 10, 2.2)
    assert clients.reported(10) == 10


def test_the_account_of_a_key_has_room_for_a_bit_of_every_client():
    clients = NearClients(clients_max=9000)
    holder(clients, "a")
    assert clients.bytes == KEY_BYTES + 1000 + 1


def test_a_number_is_used_again_when_no_bit_of_it_is_left(clients):
    first = holder(clients, "a", "b", held_until=2.0)
    holder(clients, "b")
    clients.leave(first)
    clients.expire(2.1)
    assert holder(clients, "c").number == 2
    sweep(clients)
    assert clients.keys == 2
    assert clients.bytes == 2 * (KEY_BYTES + 1)
    assert holder(clients, "d").number == 0
    assert clients.holders("b") == 1


def test_a_flush_takes_everything_and_waits_like_a_drop(clients):
    client, gone = holder(clients, "a"), holder(clients, "b")
    empty = clients.open("subscriber")
    clients.leave(gone)
    clients.written("a", 10, 1.0)
    clients.install(client, ["c"], 10, 1.0)
    clients.flush(11, 1.0)
    assert clients.keys == clients.bytes == 0
    assert clients.take(client) == (1, [], True), "a flush includes the drops that were not sent"
    assert clients.take(gone) is None
    assert clients.take(empty) is None
    clients.confirm(client, 1, 1.0)
    assert clients.reported(20) == 10, "the client that has gone cannot confirm"
    clients.expire(101)
    assert clients.reported(20) == 20


def test_a_confirmation_that_comes_too_late_does_not_count_for_later_writes(clients):
    client = holder(clients, "a", "b", held_until=1.0)
    clients.written("a", 10, 0.5)
    clients.take(client)
    clients.granted(client, 0.9, 1.0)
    assert clients.expire(1.5) == [client], "the drop of `a` was not confirmed in time"
    clients.leave(client)
    clients.written("b", 11, 1.5)
    assert not clients.confirm(client, 1, 1.5), "it was never told about `b`, and its later lease is not over"
    assert clients.reported(20) == 10
    clients.expire(2.0)
    assert clients.reported(20) == 20


def test_what_a_client_evicted_is_not_dropped(clients):
    client = holder(clients, "a", "b")
    clients.evicted(client, ["a", "unknown"])
    clients.evicted(clients.open("subscriber"), ["a"])
    assert client.keys == clients.keys == 1
    clients.written("a", 10, 1.0)
    assert clients.take(client) is None
    assert clients.reported(10) == 10


def test_a_client_that_holds_too_many_keys_starts_again():
    clients = NearClients(keys_max=3)
    client = holder(clients, "a", "b")
    assert clients.install(client, ["c", "d"], 7, 1.0) == {"c", "d"}
    assert clients.take(client) == (1, [], True)
    assert clients.reported(9) == 7, "a write of `a` waits for the flush"
    assert (clients.holders("a"), clients.holders("c"), client.keys) == (0, 1, 2)
    assert clients.install(clients.open("subscriber"), ["e", "f", "g", "h"], 7, 1.0) == {"e", "f", "g"}


def test_a_client_may_hold_what_it_holds_already_at_the_limit():
    clients = NearClients(bytes_max=KEY_BYTES)
    client = holder(clients, "a")
    assert clients.install(client, ["b"], 0, 0.0) == set()
    other = clients.open("subscriber")
    assert clients.install(other, ["b"], 0, 0.0) == set()
    assert clients.take(client) == (1, [], True), "the largest client makes room"
    sweep(clients)
    assert clients.install(other, ["b"], 0, 0.0) == {"b"}
    assert clients.install(other, ["b"], 0, 0.0) == {"b"}


def test_the_number_of_clients_is_limited():
    clients = NearClients(clients_max=2)
    first = holder(clients, "a", held_until=2.0)
    assert not clients.is_full
    clients.open("subscriber")
    assert clients.is_full
    clients.leave(first)
    assert clients.is_full, "it may hold a lease"
    clients.expire(2.1)
    sweep(clients)
    assert not clients.is_full


def test_the_time_of_a_confirmation_is_measured():
    waited = []
    clients = NearClients(waited=waited.append)
    client = holder(clients, "a")
    clients.written("a", 10, 1.0)
    clients.take(client)
    clients.confirm(client, 1, 1.25)
    assert waited == [0.25]


KEYS = st.sampled_from("abcd")


class Model:
    """The same with sets and lists."""

    def __init__(self, real):
        self.real = real
        self.keys = set()
        self.messages = []  # (seq, stamp, deadline)


class AgainstAModel(RuleBasedStateMachine):
    """Whatever happens in whatever order, holders and the reported stamp are those of a naive model."""

    def __init__(self):
        super().__init__()
        self.clients = NearClients(keys_max=3)
        self.models = []
        self.now = 0.0
        self.stamp = 0

    def model(self, which):
        return self.models[which % len(self.models)]

    @rule()
    def subscribe(self):
        self.models.append(Model(self.clients.open("subscriber")))

    @precondition(lambda self: self.models)
    @rule(which=st.integers(0, 5), lease_s=st.sampled_from([0.5, 1.0]))
    def grant(self, which, lease_s):
        client = self.model(which).real
        if not client.is_gone:
            self.clients.take(client)
            self.clients.granted(client, self.now, lease_s)

    @precondition(lambda self: self.models)
    @rule(which=st.integers(0, 5), keys=st.sets(KEYS, min_size=1, max_size=3))
    def install(self, which, keys):
        model = self.model(which)
        if not model.real.is_gone and len(model.keys | keys) > 3 and model.keys:
            self.told(model, self.stamp + 1)
            model.keys = set()
        installed = self.clients.install(model.real, sorted(keys), self.stamp, self.now)
        assert installed == (set() if model.real.is_gone else keys)
        model.keys |= installed

    @rule(key=KEYS)
    def write(self, key):
        self.stamp += 2
        for model in self.models:
            if key in model.keys:
                model.keys.discard(key)
                self.told(model, self.stamp)
        self.clients.written(key, self.stamp, self.now)

    @rule()
    def flush(self):
        for model in self.models:
            if model.keys:
                model.keys = set()
                self.told(model, self.stamp + 1)
        self.clients.flush(self.stamp + 1, self.now)

    def told(self, model, stamp):
        """A message that is not sent yet is extended. A client that has gone only has to be waited for."""
        real = model.real
        seq = 10**9 if real.is_gone else real.seq + (real.seq == real.sent_seq)
        if real.held_until >= self.now:
            model.messages.append((seq, stamp, real.held_until))

    @precondition(lambda self: self.models)
    @rule(which=st.integers(0, 5))
    def evict(self, which):
        model = self.model(which)
        self.clients.evicted(model.real, list(model.keys)[:1])
        model.keys -= set(list(model.keys)[:1])

    @precondition(lambda self: self.models)
    @rule(which=st.integers(0, 5))
    def send(self, which):
        self.clients.take(self.model(which).real)

    @precondition(lambda self: self.models)
    @rule(which=st.integers(0, 5), back=st.integers(-1, 2))
    def confirm(self, which, back):
        """Of a client that has gone, it may still be on its way."""
        model = self.model(which)
        seq = model.real.sent_seq - back
        self.clients.confirm(model.real, max(seq, 0), self.now)
        if not model.real.is_gone:
            model.messages = [one for one in model.messages if one[0] > min(seq, model.real.sent_seq)]

    @precondition(lambda self: self.models)
    @rule(which=st.integers(0, 5))
    def leave(self, which):
        self.clients.leave(self.model(which).real)

    @rule(seconds=st.sampled_from([0.1, 0.4, 0.6]), sweeps=st.sampled_from([0, 1, 2 * PARTS]))
    def advance(self, seconds, sweeps):
        self.now += seconds
        late = {model.real for model in self.models if any(deadline < self.now for _, _, deadline in model.messages)}
        expected = {client for client in late if not client.is_gone}
        overdue = self.clients.expire(self.now)
        assert set(overdue) == expected
        for client in overdue:
            self.clients.leave(client)
        # Those whose latest lease is over are forgotten at the next tick.
        assert self.clients.expire(self.now) == []
        for model in self.models:
            model.messages = [one for one in model.messages if one[2] >= self.now]
        self.models = [model for model in self.models if not (model.real.is_gone and model.real.held_until < self.now)]
        for _ in range(sweeps):
            self.clients.sweep()

    @invariant()
    def the_holders_are_those_of_the_model(self):
        for key in "abcd":
            assert self.clients.holders(key) == sum(key in model.keys for model in self.models)
        for model in self.models:
            assert model.real.keys == len(model.keys)

    @invariant()
    def the_reported_stamp_is_below_every_open_message(self):
        stamps = [stamp for model in self.models for _, stamp, _ in model.messages]
        assert self.clients.reported(self.stamp) == min([self.stamp, *(stamp - 1 for stamp in stamps)])


AgainstAModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_against_a_model = AgainstAModel.TestCase
