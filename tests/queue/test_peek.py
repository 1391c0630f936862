"""`peek` by the id of a message: what a group has done with one message, whatever its place in the backlog."""

from __future__ import annotations

from typing import Any

import pytest

from dss_dev.queue_broker import Desk
from dss_queue.core.commands import PeekQuery
from dss_queue.core.inspection import peek


def states(desk: Desk, *msg_ids: str, **query: Any) -> list[str]:
    """The state of each message in the group; "" if it has finished it."""
    found = [peek(desk.broker, PeekQuery(topic="t", group="g", msg_id=one, **query), desk.at_ms) for one in msg_ids]
    return [lines[0]["state"] if lines else "" for lines in found]


def publish(desk: Desk, count: int, **fields: Any) -> list[str]:
    return desk.publish(*range(count), **fields)


@pytest.mark.parametrize("key", ["", "k"])
@pytest.mark.parametrize("restarted", [False, True])
def test_the_life_of_messages(desk: Desk, key: str, restarted: bool) -> None:
    first, second, third = publish(desk, 3, key=key)
    assert states(desk, first) == [""], "the group does not exist yet"
    (got,) = desk.take()
    if restarted:
        desk.restart()
    assert states(desk, first, second, third) == ["in_flight", "ready", "ready"]
    desk.ack(got["msg_id"])
    if restarted:
        desk.restart()
    assert states(desk, first, second, third) == ["", "ready", "ready"]
    (got,) = desk.take()
    desk.nack(got["msg_id"], delay_ms=1000)
    assert states(desk, first, second, third) == ["", "delayed", "ready"]
    desk.pass_ms(1000)
    (got,) = desk.take()
    desk.nack(got["msg_id"], dead=True)
    if restarted:
        desk.restart()
    assert states(desk, first, got["msg_id"]) == ["", "dead"]
    assert states(desk, first, second, third, dead=True).count("dead") == 1


def test_a_delayed_message(desk: Desk) -> None:
    desk.consume()
    (delayed,) = publish(desk, 1, delay_ms=5000)
    assert states(desk, delayed) == ["delayed"]
    desk.pass_ms(5000)
    assert states(desk, delayed) == ["ready"]


def test_a_message_in_flight_tells_which_consume_got_it(desk: Desk) -> None:
    (msg_id,) = publish(desk, 1)
    desk.take(attempt_id="worker-1.a")
    (line,) = peek(desk.broker, PeekQuery(topic="t", group="g", msg_id=msg_id), desk.at_ms)
    assert (line["attempt"], line["attempt_id"], line["delivered_ms"]) == (1, "worker-1.a", desk.at_ms)


def test_by_dedup_id(desk: Desk) -> None:
    desk.settings(dedup_window_ms=60_000, retention_ms=60_000)
    desk.publish("one", dedup_id="a")
    desk.publish("two", dedup_id="b")
    query = PeekQuery(topic="t", dedup_id="b")
    assert [line["value"] for line in peek(desk.broker, query, desk.at_ms)] == [b'"two"']
    assert peek(desk.broker, PeekQuery(topic="t", dedup_id="c"), desk.at_ms) == []
    desk.pass_ms(62_000)
    assert peek(desk.broker, query, desk.at_ms) == [], "too old"


@pytest.mark.parametrize("msg_id", ["1-9", "x", "01-0", "9" * 60])
def test_ids_that_no_message_has(desk: Desk, msg_id: str) -> None:
    publish(desk, 1)
    desk.consume()
    assert states(desk, msg_id) == [""]
    assert peek(desk.broker, PeekQuery(topic="t", msg_id=msg_id), desk.at_ms) == []


def test_both_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="either `msg_id` or `dedup_id`"):
        PeekQuery(topic="t", msg_id="1-0", dedup_id="a")
