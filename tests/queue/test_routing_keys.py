"""Messages with a routing key come in publish order, one in flight at a time. Other messages do not wait for them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dss_dev.queue_broker import Desk


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
