"""A server that answers steps with something else than the library: the calls are refused, with the reason, and nothing else happens."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from dss_api.errors import Refused

_pack = msgspec.msgpack.Encoder().encode

#: Answers to any step, and some that only one step would give.
ANSWERS = [
    b"",
    b"\xc1",
    b"\xff" * 40,
    _pack(None),
    _pack(1),
    _pack([]),
    _pack([1]),
    _pack({"version": 1}),
    _pack([1, None]),
    _pack([1, "\x00"])[:-1] + b"\xff",
    _pack([1, "abc"]),
    _pack([1, 5, [1]]),
    _pack([1, [["number", 7]], True]),
    _pack([1, [["r", None, 3, "", "later"]], False]),
    _pack([1, [[]], True]),
    _pack([1, "", 1, 1, "short", ["1"], [], "", 0, False, 0]),
    _pack([1, "", 1, 1, "0" * 16, ["1"], [[7, "", "", 1, 1]], "", 0, False, 0]),
    _pack([1, 0, [99], 0, 0, 0, 0]),
    _pack([1, 0, 0, 0, 0, "yesterday", [], 0, "open"]),
    _pack([1, 0, 0, 0, 0, "", 0, 0, 0, ["reason"], 0, 0]),
    None,
    7,
    [b"a"],
]
ID = f"r0-{'1' * 16}"
#: Whether each changes something.
OPERATIONS = {
    "publish": (lambda bench: bench.publish(1), True),
    "consume": (lambda bench: bench.consume(), True),
    "ack": (lambda bench: bench.engine.ack(bench.topic, "g", [ID], [f"{ID}.{'2' * 16}"], bench.settings), True),
    "nack": (lambda bench: bench.engine.nack(bench.topic, "g", ID, None, bench.settings), True),
    "extend": (lambda bench: bench.engine.extend(bench.topic, "g", ID, None, bench.settings, 1000), True),
    "give_back": (lambda bench: bench.engine.give_back(bench.topic, "g", {ID: f"{ID}.{'2' * 16}"}, bench.settings), True),
    "put_group": (lambda bench: bench.engine.put_group(bench.topic, "g"), True),
    "delete_group": (lambda bench: bench.administration.delete_group(bench.topic, "g"), True),
    "purge": (lambda bench: bench.administration.purge(bench.topic), True),
    "purge_dead": (lambda bench: bench.administration.purge_dead(bench.topic, "g"), True),
    "redrive": (lambda bench: bench.administration.redrive(bench.topic, "g"), True),
    "sweep": (lambda bench: bench.administration.sweep(bench.topic, bench.settings, ["g"]), True),
    "delete_topic": (lambda bench: bench.administration.delete_topic(bench.topic), True),
    "stats": (lambda bench: bench.stats(), False),
    "topic_line": (lambda bench: bench.views.topic_line(bench.topic, 0), False),
    "group_stats": (lambda bench: bench.views.group_stats(bench.topic, "g", 0), False),
    "peek": (lambda bench: bench.views.peek(bench.topic), False),
    "peek of a group": (lambda bench: bench.views.peek(bench.topic, "g"), False),
    "dead letters": (lambda bench: bench.views.peek(bench.topic, "g", dead=True), False),
    "in_flight": (lambda bench: bench.views.in_flight(bench.topic, "g", {ID: f"{ID}.1"}), False),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_answer_of_another_form_refuses_the_call(one, monkeypatch, operation):
    call, changes = OPERATIONS[operation]
    answer = None

    async def garbled(key, command, acks, *, repeatable, changes):
        return answer, False

    monkeypatch.setattr(one.servers, "_repeated", garbled)
    refusals: list[Refused] = []
    for answer in ANSWERS:  # noqa: B007  (what the servers answer)
        try:
            async with asyncio.timeout(60):
                await call(one)
        except Refused as refused:
            refusals.append(refused)
    if operation == "give_back":
        # It does not tell its caller, who has gone.
        assert refusals == []
        return
    assert len(refusals) > len(ANSWERS) // 2
    assert {one.code for one in refusals} <= ({"unknown_outcome", "engine_away"} if changes else {"engine_away"})
    assert all("an answer that this release does not know" in one.detail for one in refusals)


async def test_a_key_of_the_wrong_kind_is_named(one, valkey):
    """Something else than the engine has written to the keys."""
    await one.publish(1)
    await one.consume()
    client = valkey.client()
    for key in client.keys(f"dss:{{{one.topic}:*"):
        client.delete(key)
        client.set(key, "x")
    for operation, (call, changes) in OPERATIONS.items():
        if operation != "give_back":
            with pytest.raises(Refused, match="WRONGTYPE") as refused:
                await call(one)
            assert changes or refused.value.code == "engine_away", operation


async def test_a_record_that_cannot_be_read_is_named(one, valkey):
    await one.publish(1)
    await one.consume()
    valkey.client().hset(f"dss:{{{one.topic}:0}}:info", "state", "\xff")
    for operation, (call, _) in OPERATIONS.items():
        if operation == "give_back":
            continue
        with pytest.raises(Refused, match=r"engine_away|unknown_outcome"):
            await call(one)
