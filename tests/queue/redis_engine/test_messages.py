"""Ids and receipts of the engine's messages."""

from __future__ import annotations

import pytest

from dss_api.errors import Refused
from dss_queue.redis_engine import errors
from dss_queue.redis_engine.messages import Named, Place, by_partition, message_id, place_of

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
