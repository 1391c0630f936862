"""The requests of clients: each takes effect once, and a repeat at any node gets the same answer."""

from __future__ import annotations

import msgspec
import pytest

from dss_api.result import Result
from dss_dev.request_world import TTL_MS, RequestWorld, once
from dss_dev.sum_machine import Add, Sum, Wait, with_sessions
from dss_raft import log_view
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication import client_requests
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.client_requests import ClientRequests, CloseRequestSession, OpenRequestSession
from dss_raft.replication.commands import Cancel, HashState, Nothing, SetClusterVersion
from dss_raft.replication.limits import LimitsMachine, SetLimits, StateLimits
from dss_raft.replication.machine import Origin
from dss_raft.replication.replica import Replica
from dss_raft.replication.state_hash import state_hashes
from dss_raft.versions import Supported

OTHER_DIGEST = b"e" * 16


@pytest.fixture
def world() -> RequestWorld:
    return RequestWorld()


# ------------------------------------------------------------------------ repeats


def test_a_repeat_at_another_node_gets_the_same_answer_and_has_no_effect(world):
    first = world.run(once(1, Add(amount=5)))
    world.run(Add(amount=100))
    assert world.run(once(1, Add(amount=5)), "b") == first
    assert (first.body, first.index, world.total) == ({"total": 5}, 3, 105)


def test_numbers_may_arrive_in_any_order(world):
    assert [world.run(once(number, Add(amount=number))).body["total"] for number in (3, 1, 2)] == [3, 4, 6]
    assert [world.run(once(number, Add(amount=number)), "b").body["total"] for number in (1, 2, 3)] == [4, 6, 3]


def test_a_repeat_in_the_same_entry_has_no_effect(world):
    command = encode_command(once(1, Add(amount=5)))
    world.entry(encode_group("a", 1, 2, [], [command, command]), encode_group("b", 1, 1, [], [command]))
    assert world.total == 5
    assert world.answer(2) == world.answer(3) == world.answer(1, "b") == Result({"total": 5}, "", 3)


def test_the_parts_of_a_request_are_carried_out_separately(world):
    for part in (0, 1, 1, 0):
        world.run(once(1, Add(amount=10), part=part))
    assert world.total == 20


def test_a_refusal_is_an_answer_too(world):
    seq = world.send(once(1, Wait(target=9, lease_ms=1000)))
    world.entry(later_ms=1000)
    assert world.answer(seq) == Result({}, "wait_timeout", world.index)
    world.run(Add(amount=9))
    assert world.run(once(1, Wait(target=9, lease_ms=1000)), "b") == world.answer(seq)


def test_another_call_with_the_same_number_is_refused(world):
    world.run(once(1, Add(amount=5)))
    refused = world.run(once(1, Add(amount=6), digest=OTHER_DIGEST))
    assert (refused.code, refused.body["field"], world.total) == ("request_id_reused", "request_id", 5)


def test_a_command_that_brings_more_fields_the_next_time_is_no_answer_yet(world, monkeypatch):
    monkeypatch.setattr(Add, "is_answer", staticmethod(lambda result: result.body["total"] >= 7))
    assert [world.run(once(1, Add(amount=5))).body["total"] for _ in range(3)] == [5, 10, 10]


# ---------------------------------------------- what is forgotten is never executed


def test_a_request_of_an_unknown_session_is_refused(world):
    assert world.run(once(1, Add(amount=5), session="other")).code == "request_expired"
    assert world.total == 0


def test_a_request_of_a_session_that_has_expired_is_refused(world):
    world.run(once(1, Add(amount=5)))
    assert world.run(once(2, Add(amount=5)), later_ms=TTL_MS - 1).code == "", "each request renews the session"
    for number in (1, 2, 3):
        assert world.run(once(number, Add(amount=5)), later_ms=TTL_MS).code == "request_expired"
    assert world.total == 10
    assert world.replica.usage()["request_answers"] == 0 == world.replica.usage()["request_others"]


def test_a_new_leader_gives_sessions_their_full_time(world):
    world.term = 2
    world.entry(later_ms=TTL_MS)
    assert world.run(once(1, Add(amount=5)), later_ms=TTL_MS - 1).code == ""


def test_a_session_that_is_closed_is_forgotten(world):
    world.run(once(1, Add(amount=5)))
    assert [world.run(CloseRequestSession(session="s")).body["closed"] for _ in range(2)] == [True, False]
    assert world.run(once(1, Add(amount=5))).code == world.run(once(2, Add(amount=5))).code == "request_expired"
    assert world.total == 5


def test_a_number_that_the_client_has_the_answer_of_is_refused(world):
    for number in (1, 2, 4):
        world.run(once(number, Add(amount=1)))
    world.run(once(5, Add(amount=1), answered=2))
    assert [world.run(once(number, Add(amount=1))).code for number in (1, 2, 3, 4)] == ["request_expired"] * 2 + ["", ""]
    assert world.total == 5, "3 is new, 4 is a repeat"
    assert world.run(once(6, Add(amount=1), answered=6)).code == "request_expired", "the client contradicts itself"


def test_answers_above_the_limit_are_dropped_oldest_first_and_their_numbers_refused():
    world = RequestWorld(limits={"request_bytes_max": 3 * (client_requests.ANSWER_BYTES + 20)})
    for number in range(1, 6):
        world.run(once(number, Add(amount=1)))
    codes = [world.run(once(number, Add(amount=1))).code for number in range(1, 6)]
    assert codes == ["request_expired"] * 2 + [""] * 3
    assert world.total == 5
    world.restore()
    assert world.run(once(2, Add(amount=1))).code == "request_expired"


def test_one_session_loses_its_oldest_answers_at_its_own_limit(world, monkeypatch):
    monkeypatch.setattr(client_requests, "ANSWER_BYTES_PER_SESSION_MAX", 2 * (client_requests.ANSWER_BYTES + 20))
    world.run(OpenRequestSession(session="t"))
    world.run(once(1, Add(amount=1), session="t"))
    for number in (1, 2, 3):
        world.run(once(number, Add(amount=1)))
    assert world.run(once(1, Add(amount=1))).code == "request_expired"
    assert world.run(once(1, Add(amount=1), session="t")).body == {"total": 1}


# ------------------------------------------------------------------ requests that wait


def test_a_repeat_of_a_request_that_waits_waits_with_it(world):
    first = world.send(once(1, Wait(target=3)))
    second = world.send(once(1, Wait(target=3)), "b")
    assert world.waiters == 1
    world.run(Add(amount=3), "b")
    assert world.answer(first) == world.answer(second, "b") == Result({"total": 3}, "", world.index)
    assert world.run(once(1, Wait(target=3))) == world.answer(first)


def test_a_waiter_stays_while_one_of_its_callers_is_there(world):
    first = world.send(once(1, Wait(target=3)))
    second = world.send(once(1, Wait(target=3)), "b")
    world.send(Cancel(seq=first))
    assert world.waiters == 1
    world.run(Add(amount=3))
    assert world.answer(first) is None
    assert world.answer(second, "b") is not None


def test_a_waiter_without_callers_is_cancelled_and_the_request_forgotten(world):
    first = world.send(once(1, Wait(target=3)))
    world.send(Cancel(seq=first))
    assert world.waiters == 0
    seq = world.send(once(1, Wait(target=3)), "b")
    assert world.waiters == 1, "the repeat is executed again"
    world.run(Add(amount=3))
    assert world.answer(seq, "b") is not None


def test_a_waiter_survives_the_restart_of_its_first_node(world):
    world.send(once(1, Wait(target=3)))
    second = world.send(once(1, Wait(target=3)), "b")
    world.restart("a")
    assert world.waiters == 1
    world.run(Add(amount=3))
    assert world.answer(second, "b") == Result({"total": 3}, "", world.index)


def test_the_restart_of_the_last_node_with_callers_cancels_the_waiter(world):
    world.send(once(1, Wait(target=3)))
    world.restart("a")
    assert world.waiters == 0
    world.send(once(1, Wait(target=3)), "b")
    assert world.waiters == 1


def test_the_end_of_a_session_answers_its_waiters(world):
    seqs = [world.send(once(1, Wait(target=3, lease_ms=10 * TTL_MS))), world.send(once(2, Wait(target=4, lease_ms=10 * TTL_MS)))]
    world.entry(later_ms=TTL_MS)
    assert [found.code for seq in seqs if (found := world.answer(seq))] == ["request_expired"] * 2
    assert world.waiters == 0


def test_a_session_has_a_limit_of_requests_that_wait_and_a_request_one_of_callers(world, monkeypatch):
    monkeypatch.setattr(client_requests, "WAITING_PER_SESSION_MAX", 1)
    monkeypatch.setattr(client_requests, "CALLERS_PER_REQUEST_MAX", 2)
    wait = Wait(target=3)
    world.send(once(1, wait))
    world.send(once(1, wait))
    refused = world.run(once(1, wait)), world.run(once(2, wait))
    assert [one.body["limit"] for one in refused] == ["callers_per_request_max", "requests_waiting_max"]
    assert world.run(once(3, Add(amount=3))).code == "", "what does not wait is not limited"
    world.send(once(2, wait))
    assert world.waiters == 1, "the session has none that waits, so it may have another"


# ----------------------------------------------------------------- callers that hang up


def test_a_cancel_does_not_undo_what_it_cannot_undo(world):
    first = world.send(once(1, Add(amount=5)))
    answer = world.answer(first)
    world.send(Cancel(seq=first))
    assert world.run(once(1, Add(amount=5)), "b") == answer
    assert world.total == 5


def test_an_answered_request_is_undone_when_no_caller_can_have_the_answer(world):
    undone: list[Origin] = []
    world.replica.machines["sum"].cancel = lambda waiter, at_ms, index: undone.append(waiter)  # type: ignore[method-assign]
    first = world.send(once(1, Wait(target=3)))
    second = world.send(once(1, Wait(target=3)), "b")
    world.run(Add(amount=3))
    virtual = Origin("*", 0, 1)
    world.send(Cancel(seq=first))
    assert virtual not in undone, "the other caller may have the answer"
    third = world.send(once(1, Wait(target=3)))
    world.send(Cancel(seq=second), "b")
    assert virtual not in undone
    world.send(Cancel(seq=third))
    assert virtual in undone
    world.send(once(1, Wait(target=9)))
    assert world.waiters == 1, "the repeat is executed again"


def test_a_caller_whose_node_restarted_may_have_the_answer(world):
    first = world.send(once(1, Wait(target=3)))
    world.run(Add(amount=3))
    answer = world.answer(first)
    world.restart("a")
    second = world.send(once(1, Wait(target=3)), "b")
    world.send(Cancel(seq=second), "b")
    assert world.run(once(1, Wait(target=3))) == answer


def test_a_request_with_too_many_callers_is_never_undone(world, monkeypatch):
    monkeypatch.setattr(client_requests, "CALLERS_PER_REQUEST_MAX", 2)
    world.run(Add(amount=3))
    first = world.send(once(1, Wait(target=4)))
    world.run(Add(amount=1))
    answer = world.answer(first)
    seqs = [first, *(world.send(once(1, Wait(target=4))) for _ in range(3))]
    for seq in seqs:
        world.send(Cancel(seq=seq))
    assert world.run(once(1, Wait(target=4))) == answer


def test_nothing_in_place_of_a_request_leaves_it_unknown(world):
    seq = world.send(Nothing())
    world.send(Cancel(seq=seq))
    assert world.run(once(1, Add(amount=5)), "b").body == {"total": 5}


# -------------------------------------------------- snapshots, new clusters, versions


def test_a_snapshot_has_all_of_it(world):
    world.run(once(1, Add(amount=1)))
    world.send(once(2, Wait(target=9)))
    third = world.send(once(2, Wait(target=9)), "b")
    world.run(once(4, Add(amount=1), answered=1))
    world.restore()
    assert world.run(once(1, Add(amount=1))).code == "request_expired"
    assert world.run(once(4, Add(amount=1))).body == {"total": 2}
    world.restart("a")
    assert world.waiters == 1
    world.run(Add(amount=7))
    assert world.answer(third, "b") == Result({"total": 9}, "", world.index)
    assert world.run(once(5, Add(amount=1)), later_ms=TTL_MS - 1).code == ""
    assert world.run(once(6, Add(amount=1)), later_ms=TTL_MS).code == "request_expired"


def test_a_snapshot_without_requests_loads(world):
    state = msgspec.msgpack.decode(RequestWorld(version=2).replica.snapshot())
    del state[7]["requests"]
    world.replica.restore(msgspec.msgpack.encode(state))
    assert not world.replica.requests.sessions


def test_a_new_cluster_keeps_the_answers_and_cancels_what_waits(world):
    world.run(once(1, Add(amount=5)))
    world.send(once(2, Wait(target=9)))
    world.replica.begin_new_cluster(1000)
    assert world.waiters == 0
    world.index += 1000
    with_sessions(world.replica)
    world.seqs = dict.fromkeys("ab", 0)
    assert world.run(once(1, Add(amount=5))).body == {"total": 5}
    world.send(once(2, Wait(target=9)))
    assert (world.waiters, world.total) == (1, 5)


def test_below_the_version_nothing_of_it_has_an_effect_or_shows_in_the_hashes():
    world = RequestWorld(version=2)
    assert world.run(OpenRequestSession(session="s")).code == world.run(once(1, Add(amount=5))).code == "invalid"
    assert world.total == 0
    world.entry(own=[HashState()])
    older = Replica("a", [Sum(), LimitsMachine(StateLimits())], Supported(1, 2))
    older.restore(world.replica.snapshot())
    hashes = state_hashes(world.replica)
    assert "requests" not in hashes
    assert hashes == state_hashes(older)
    detail = world.run(SetLimits(limits={"request_bytes_max": 2**20})).body["detail"]
    assert detail == "there is no limit request_bytes_max; the limits are session_bytes_max"
    world.entry(own=[SetClusterVersion(version=3)])
    assert world.run(SetLimits(limits={"request_bytes_max": 2**20})).code == ""


@pytest.mark.parametrize("inner", [b"nonsense", encode_command(Nothing()), encode_command(once(2, Add(amount=1)))])
def test_only_a_machines_command_can_be_repeated(world, inner):
    unfit = msgspec.structs.replace(once(1, Add(amount=1)), command=inner)
    assert world.run(unfit).code == "invalid"
    assert world.run(once(1, Add(amount=1))).body == {"total": 1}, "it was not carried out before"


def test_the_number_of_sessions_is_limited():
    world = RequestWorld(limits={"request_sessions_max": 1})
    refused = world.run(OpenRequestSession(session="t"))
    assert (refused.code, refused.body["limit"]) == ("over_limit", "request_sessions_max")
    world.run(CloseRequestSession(session="s"))
    assert world.run(OpenRequestSession(session="t")).body == {"session": "t", "expires_in_ms": 600_000}


def test_the_account_is_empty_again_when_all_is_gone(world):
    requests = world.replica.requests
    assert isinstance(requests, ClientRequests)
    for number in range(1, 5):
        world.send(once(number, Add(amount=1)))
        world.send(once(10 + number, Wait(target=4 + number)), "b")
    assert min(requests.usage().values()) > 0
    world.run(CloseRequestSession(session="s"))
    assert requests.usage() == {"request_answers": 0, "request_others": 0}
    assert not requests._by_caller
    assert not requests._waiting


@pytest.mark.parametrize(
    ("inner", "shown"),
    [(encode_command(Add(amount=5)), {"op": "sum.add", "amount": 5}), (b"\xc1nonsense", "base64:wW5vbnNlbnNl")],
)
def test_the_log_shows_the_command_of_a_request(inner, shown):
    command = msgspec.structs.replace(once(7, Add(amount=1)), command=inner)
    data = encode_batch(1, [], [encode_group("a", 1, 1, [], [encode_command(command)])])
    view = log_view.show(Entry(1, 1, EntryKind.COMMANDS, data), committed=True, applied=True, skipped=False)
    found = view.groups[0].commands[0]
    assert (found.op, found.fields["number"], found.fields["command"]) == ("request.once", 7, shown)


# ---------------------------------------------------------------------- tokens


def test_a_token_has_a_limited_number_of_sessions(world: RequestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_requests, "SESSIONS_PER_TOKEN_MAX", 2)
    refused = {"limit": "request_sessions_per_token_max"}
    assert [world.run(OpenRequestSession(session=f"{n}_billing-seal")).code for n in range(3)] == ["", "", "over_limit"]
    assert world.run(OpenRequestSession(session="3_billing-seal")).body.items() >= refused.items()
    # Those of other tokens, and those without one, do not count.
    assert [world.run(OpenRequestSession(session=session)).code for session in ("4_mail-seal", "5", "6", "7")] == [""] * 4
    world.run(CloseRequestSession(session="0_billing-seal"))
    assert world.run(OpenRequestSession(session="8_billing-seal")).code == ""
    world.restore()
    assert world.run(OpenRequestSession(session="9_billing-seal")).code == "over_limit"
    world.run(Nothing(), later_ms=client_requests.TTL_MS_DEFAULT + 1)
    assert world.run(OpenRequestSession(session="10_billing-seal")).code == ""
