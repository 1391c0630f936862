"""Ids and receipts of the engine's messages."""

from __future__ import annotations

import pytest

from dss_api.errors import Refused
from dss_queue.redis_engine import errors
from dss_queue.redis_engine.messages import Named, Place, Taken, by_partition, message_id, of_one_consume, place_of

NUMBERS = [f"{1_764_230_000_000_000 + place}" for place in range(3)]


def test_an_id_says_where_its_message_is():
    assert place_of(message_id(3, NUMBERS[0])) == Place(3, NUMBERS[0])
    assert place_of(message_id(999, NUMBERS[1])) == Place(999, NUMBERS[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12-0",
        "r3-12",
        f"r-{NUMBERS[0]}",
        f"r03-{NUMBERS[0]}",
        f"r1000-{NUMBERS[0]}",
        f"R3-{NUMBERS[0]}",
        f"r3-0{NUMBERS[0]}",
        f"r3-{NUMBERS[0]}\n",
        f"r3-{NUMBERS[0][:-1]}x",
        "r3-" + "\N{ARABIC-INDIC DIGIT ONE}" * 16,
        "r\N{ARABIC-INDIC DIGIT ONE}-" + NUMBERS[0],
    ],
)
def test_no_message_has_any_other_text_as_its_id(text):
    assert place_of(text) is None
    assert by_partition([(text, None)], 16) == {}
    assert of_one_consume([text], None, 16) is None
    assert of_one_consume([message_id(3, NUMBERS[0]), text], None, 16) is None


def test_deliveries_by_their_partition():
    a, b, c = message_id(0, NUMBERS[0]), message_id(2, NUMBERS[1]), message_id(0, NUMBERS[2])
    other = message_id(2, NUMBERS[2])
    given = [
        (a, f"{a}.{NUMBERS[1]}"),
        (b, f"{a}.{NUMBERS[1]}"),
        (c, None),
        (other, f"{other}."),
        (message_id(4, NUMBERS[0]), None),
    ]
    assert by_partition(given, 4) == {
        0: Named([a, c], [NUMBERS[0], NUMBERS[2]], [NUMBERS[1], ""]),
        # Receipts of another message, and of no delivery.
        2: Named([b, other], [NUMBERS[1], NUMBERS[2]], ["-", "-"]),
    }


def test_what_one_consume_got():
    ids = [message_id(3, number) for number in NUMBERS]
    receipts = [f"{one}.{NUMBERS[2]}" for one in ids]
    text = "".join(NUMBERS)
    assert of_one_consume(ids, receipts, 16) == Taken(3, text, NUMBERS[2])
    assert of_one_consume(ids, None, 16) == Taken(3, text, "")
    assert of_one_consume(ids, receipts, 3) is None, "no such partition"
    assert of_one_consume([*ids, message_id(2, NUMBERS[0])], None, 16) is None, "another partition"


@pytest.mark.parametrize(
    "receipt", ["", "r3-1.1", f"r3-{NUMBERS[1]}", f"r3-{NUMBERS[1]}.", f"r3-{NUMBERS[1]}.9", f"r3-{NUMBERS[2]}.7"]
)
def test_a_receipt_of_another_delivery_is_looked_at_alone(receipt):
    ids = [message_id(3, number) for number in NUMBERS[:2]]
    assert of_one_consume(ids, [f"{ids[0]}.7", receipt], 16) is None
    assert of_one_consume(ids, [receipt, f"{ids[1]}.7"], 16) is None


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("max_bytes", "100 of the 90 bytes"),
        ("partition_messages_max", "100 of 90 messages"),
        ("groups_per_topic_max", "100 of 90 groups"),
        ("of_a_newer_library", "100 of 90"),
    ],
)
def test_a_refusal_of_the_library_says_what_is_full(limit: str, said: str):
    refused = errors.refusal(f"DSS_OVER_LIMIT {limit} 90 100 script: publish")
    assert isinstance(refused, Refused)
    assert said in refused.detail
    assert refused.extra == {"limit": limit, "maximum": 90}
