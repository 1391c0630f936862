"""Messages with a routing key come in publish order, one in flight at a time. Other messages do not wait for them."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dss_dev.queue_broker import Desk


def test_the_next_message_of_a_key_comes_after_the_ack(desk):
    ids = desk.publish(1, 2, key="k")
    desk.publish(3, key="other")
    desk.publish(4)
    assert desk.values(9) == [1, 3, 4]
    assert desk.why_empty() == "key_blocked"
    desk.ack(ids[0])
    assert desk.values(9) == [2]
    assert desk.why_empty() == "all_in_flight"


def test_a_failed_message_comes_again_before_its_successors(desk):
    ids = desk.publish(1, 2, key="k")
    desk.take()
    desk.nack(ids[0], delay_ms=100)
    assert desk.why_empty() == "delayed"
    desk.pass_ms(100)
    assert desk.values(9) == [1]


def test_a_delayed_message_delays_its_successors(desk):
    desk.publish(1, key="k", delay_ms=100)
    desk.publish(2, key="k")
    assert desk.why_empty() == "delayed"
    desk.pass_ms(100)
    (first,) = desk.take(9)
    assert first["value"] == b"1"
    desk.ack(first["msg_id"])
    assert desk.values(9) == [2]


def test_a_dead_letter_lets_the_next_message_pass(desk):
    ids = desk.publish(1, 2, key="k")
    desk.take()
    desk.nack(ids[0], dead=True)
    assert desk.values() == [2]


def test_a_redriven_message_still_excludes_the_others(desk):
    ids = desk.publish(1, 2, 3, key="k")
    desk.take()
    desk.nack(ids[0], dead=True)
    desk.take()
    desk.redrive()
    assert desk.why_empty() == "key_blocked"
    desk.ack(ids[1])
    assert desk.values(9) == [1]
    desk.ack(ids[0])
    assert desk.values(9) == [3]


def test_redriven_messages_come_in_publish_order(desk):
    ids = desk.publish(1, 2, 3, key="k")
    for msg_id in ids[:2]:
        desk.take()
        desk.nack(msg_id, dead=True)
    desk.take()
    desk.redrive(msg_id=ids[1])
    desk.redrive(msg_id=ids[0])
    for msg_id in (ids[2], ids[0], ids[1]):
        assert desk.ack(msg_id).body == {"acked": True}
        desk.take()


def test_finished_keys_take_no_memory(desk):
    desk.take(group="other")
    ids = [desk.publish(n, key=f"k{n}")[0] for n in range(10)]
    for group in ("g", "other"):
        for message in desk.take(10, group=group):
            desk.ack(message["msg_id"], group=group)
    topic = desk.broker.topics["t"]
    assert len(ids) == 10
    assert not topic.messages.chains
    assert not any(group.backlog.keys for group in topic.groups.values())


def test_a_late_ack_leaves_no_valid_entry_in_the_heap(desk):
    """The entry left in the heap is outdated: neither the message nor a second one of its key may be delivered."""
    desk.take(group="slow")
    ids = desk.publish(1, 2, 3, key="k")
    (first,) = desk.take(visibility_ms=10)
    desk.pass_ms(10)
    assert desk.ack(ids[0], first["receipt"]).body == {"acked": True}
    assert desk.values(9) == [2]
    assert desk.why_empty() == "key_blocked"


def test_a_group_does_not_block_the_keys_of_another(desk):
    desk.publish(1, 2, key="k")
    assert desk.values(group="a") == [1]
    assert desk.values(group="b") == [1]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), keys=st.integers(1, 5))
def test_first_deliveries_of_a_key_are_in_publish_order(seed, keys):
    """With acks, nacks, timeouts, dead letters and restarts from snapshots in any order."""
    rng = random.Random(seed)
    desk = Desk()
    desk.settings(max_attempts=2)
    held, seen, published, steps = [], {}, 0, 0
    while published < 40 or held or desk.broker.topics["t"].groups["g"].backlog.pending:
        step = rng.randrange(10)
        steps += 1
        assert steps < 20_000, "it never comes to an end"
        if step < 3 and published < 40:
            desk.publish([published], key=f"k{rng.randrange(keys)}", delay_ms=rng.choice([0, 0, 0, 7]))
            published += 1
        elif step < 6:
            held += desk.take(rng.randrange(1, 4), visibility_ms=rng.choice([5, 50]))
        elif step < 9 and held:
            message = held.pop(rng.randrange(len(held)))
            (desk.ack if rng.randrange(3) else desk.nack)(message["msg_id"], message["receipt"])
        elif step == 9:
            desk.pass_ms(rng.randrange(10))
            if rng.randrange(3) == 0:
                desk.restart()
        for message in held:
            if message["attempt"] == 1:
                numbers = seen.setdefault(message["key"], [])
                if message["msg_id"] not in numbers:
                    numbers.append(message["msg_id"])
    for ids in seen.values():
        assert ids == sorted(ids, key=lambda msg_id: [int(part) for part in msg_id.split("-")])
    assert sum(len(ids) for ids in seen.values()) == published
